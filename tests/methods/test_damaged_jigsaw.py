"""Damaged jigsaw (Kim et al. 2018): the damaged puzzle and its three heads."""

import dataclasses

import pytest
import torch
from tiles import back, picture
from torch.testing import assert_close

from pretask import data, encoders
from pretask.methods import damaged_jigsaw as dj
from pretask.methods import jigsaw
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.transforms.color import lab_to_rgb, rgb_to_lab
from pretask.types import Batch, UserError

GRAY = dj.Config(gray=1.0)


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:64:48")


def build(source, config=None, encoder="resnet_small:width=16"):
    torch.manual_seed(0)
    return (config or GRAY).build(encoders.build(encoder, source.channels, source.size), source)


def batch(source, n=16):
    return source.__getitems__(torch.arange(n))


# ---- the puzzle


def test_one_tile_is_missing_uniformly_over_positions(source):
    method, many = build(source), Batch(torch.arange(900), batch(source, 60).image.repeat(15, 1, 1, 1))
    missing = torch.cat([method.pretext(many, Rng(k)).missing for k in range(10)])
    assert (missing.bincount(minlength=9) - 1000).abs().max() < 100
    p = method.pretext(batch(source), Rng(1))
    black = ~p.tile.flatten(2).any(2)
    assert torch.equal(black.nonzero()[:, 1], p.missing)


def test_missing_cell_is_independent_of_the_permutation(source):
    """Each of the nine cells is missing equally often."""
    method, many = build(source), Batch(torch.arange(900), batch(source, 60).image.repeat(15, 1, 1, 1))
    cell = torch.cat(
        [
            p.permutation[torch.arange(900), p.missing]
            for k in range(10)
            for p in [method.pretext(many, Rng(k))]
        ]
    )
    assert (cell.bincount(minlength=9) - 1000).abs().max() < 100


def test_network_input_has_no_color(source):
    """Another image of the same lightness gives the same input and other targets."""
    x = rgb_to_lab(augment.to_float(batch(source).image))
    other = lab_to_rgb(torch.cat([x[:, :1], 0.5 * x[:, 1:]], 1))
    method = build(source)
    p = method.pretext(batch(source), Rng(1))
    gray = (p.tile == p.tile[:, :, :1]).all()
    same = rgb_to_lab(other)[:, 0] - x[:, 0]
    assert gray and same.abs().max() < 0.1  # half the color is within sRGB
    q = method.pretext(Batch(torch.arange(16), (other * 255).round().to(torch.uint8)), Rng(1))
    assert_close(p.tile, q.tile, atol=0.01, rtol=0)
    assert (p.target - q.target).abs().max() > 0.05


def test_missing_tile_affects_only_the_inpainting_loss(source):
    method = build(source).eval()
    p = method.pretext(batch(source), Rng(1))
    target = p.target.clone()
    target[torch.arange(16), p.missing] = 1 - target[torch.arange(16), p.missing]
    q = dataclasses.replace(p, target=target)
    with torch.no_grad():
        one, other = method.loss(p).parts, method.loss(q).parts
    assert one["order"] == other["order"] and one["color"] == other["color"]
    assert one["inpaint"] != other["inpaint"]


def test_undoing_the_permutation_restores_the_image_without_the_missing_tile(source):
    method = build(source, dj.Config(gray=1.0, flip=0.0, tile=1.0))
    p = method.pretext(batch(source), Rng(1))
    x, side = augment.to_float(batch(source).image), p.tile.shape[-1]
    assert torch.equal(picture(p.target, p.permutation), x)
    hole = p.permutation[torch.arange(16), p.missing]
    visible = torch.ones(16, 9, dtype=torch.bool)
    visible[torch.arange(16), hole] = False
    visible = visible.view(16, 3, 1, 3, 1).expand(-1, -1, side, -1, side).reshape(16, 1, 3 * side, -1)
    assert_close(picture(p.tile, p.permutation), (rgb_to_lab(x)[:, :1] / 100 * visible).expand(-1, 3, -1, -1))


def test_all_permutations_differ_in_at_least_three_tiles(source):
    permutations = build(source).permutations
    different = (permutations[:, None] != permutations[None]).sum(-1) + 9 * torch.eye(len(permutations))
    assert different.min() >= 3


# ---- the heads


def test_untrained_permutation_loss_is_at_chance(source):
    method = build(source)
    with torch.no_grad():
        parts = method.loss(method.pretext(batch(source, 64), Rng(1))).parts
    assert abs(parts["order"] - 1) < 0.05


@pytest.mark.parametrize("alone", ["order", "color", "inpaint"])
def test_heads_with_weight_0_get_no_gradient_and_other_losses_do_not_change(source, alone):
    off = {name: float(name == alone) for name in ("order", "color", "inpaint")}
    method, full = build(source, dj.Config(gray=1.0, **off)), build(source)
    p = method.pretext(batch(source), Rng(1))
    loss = method.loss(p)
    assert_close(loss.total, full.loss(p).parts[alone])
    loss.total.backward()
    for name in off:
        gradients = [w.grad for w in getattr(method, name).parameters()]
        moved = any(g is not None and bool(g.any()) for g in gradients)
        assert moved == (name == alone)


def test_all_weights_0_is_a_user_error(source):
    with pytest.raises(UserError, match="all 0"):
        build(source, dj.Config(order=0.0, color=0.0, inpaint=0.0))


@pytest.mark.parametrize("missing", [False, True])
def test_true_colors_have_zero_loss_and_mean_colors_their_squared_error(source, missing):
    """From the definition: on a grid of 8 x 8, a and b of eight tiles and L, a and b of the ninth."""
    method = build(source).eval()
    p = method.pretext(batch(source, 4), Rng(1))
    target = p.target[:, :, :, 4:5, 4:5].expand_as(p.target)  # tiles of one color: nothing is lost at 8 x 8
    p = dataclasses.replace(p, target=target)
    hole = torch.arange(9) == p.missing[:, None]
    light = rgb_to_lab(target.flatten(0, 1))[:, :1].view_as(target[:, :, :1]) / 100
    p = dataclasses.replace(p, tile=light.expand_as(target) * ~hole[:, :, None, None, None])
    lab = torch.stack([rgb_to_lab(tile) for tile in target.unbind(1)], 1)[..., :8, :8]
    mean, std = (torch.tensor(of)[:, None, None] for of in ((48.0, 1.0, 3.7), (26.0, 10.5, 18.6)))
    true = (lab - mean) / std
    ab, all3 = true[~hole][:, 1:], true[hole]
    method.outputs = lambda pretext: (torch.zeros(4, 8, 100), ab, all3)
    with torch.no_grad():
        parts, painted = method.loss(p).parts, method.predict(p)["target"]
        assert parts["color"] < 1e-8 and parts["inpaint"] < 1e-8
        assert_close(painted, target, atol=2e-3, rtol=0)
        method.outputs = lambda pretext: (torch.zeros(4, 8, 100), 0 * ab, 0 * all3)
        part = method.loss(p).parts["inpaint" if missing else "color"]
    assert_close(part, (all3 if missing else ab).square().mean())


def test_color_images_are_left_out_of_the_color_loss(source):
    """30 % of the images are shown in color, except for the missing tile; the color head learns from the others only."""
    method = build(source, dj.Config(channel_shift=0)).eval()
    many = Batch(torch.arange(600), batch(source, 60).image.repeat(10, 1, 1, 1))
    p = method.pretext(many, Rng(1))
    assert 0.64 < p.gray.float().mean() < 0.76
    visible = torch.arange(9) != p.missing[:, None]
    assert torch.equal(p.tile[~p.gray][visible[~p.gray]], p.target[~p.gray][visible[~p.gray]])
    assert not p.tile[~visible].any()
    assert (p.tile[p.gray] == p.tile[p.gray][:, :, :1]).all()
    painted = torch.where(p.gray[:, None, None, None, None], p.target, 1 - p.target)
    with torch.no_grad():
        one, other = (
            method.loss(dataclasses.replace(q, target=w)).parts["color"]
            for q, w in ((p, p.target), (p, painted))
        )
    assert one == other


def test_losses_and_gradients_of_two_half_batches_average_to_those_of_the_whole(source):
    """So several processes compute the same step as one, however the color images are distributed."""
    method = build(source, dj.Config()).eval().double()
    p = method.pretext(batch(source), Rng(3))
    p = dataclasses.replace(p, tile=p.tile.double())  # the color losses are computed in float32
    assert p.gray[:8].sum() != p.gray[8:].sum()

    def loss_and_gradients(*puzzles):
        method.zero_grad()
        total = torch.stack([method.loss(q).total for q in puzzles]).mean()
        total.backward()
        return [total.detach(), *(w.grad.clone() for w in method.parameters())]

    fields = {f.name: getattr(p, f.name).split(8) for f in dataclasses.fields(p)}
    halves = [dj.Damaged(**{name: parts[i] for name, parts in fields.items()}) for i in (0, 1)]
    for one, both in zip(loss_and_gradients(p), loss_and_gradients(*halves), strict=True):
        assert_close(both, one, atol=1e-7, rtol=1e-5)


def test_extra_permutations_move_the_missing_tile_too(source):
    method = build(source).eval()
    p, rows = method.pretext(batch(source, 4), Rng(1)), torch.arange(4)[:, None]
    cell = back(p.tile, p.permutation)
    with torch.no_grad():
        logits = method.outputs(p)[0]
        for k, label in enumerate(p.extra_labels.unbind(1)):
            permutation = method.permutations[label]
            tile = cell[rows, permutation]
            missing = (~tile.flatten(2).any(2)).nonzero()[:, 1]
            alone = dataclasses.replace(p, tile=tile, permutation=permutation, label=label, missing=missing)
            assert_close(logits[:, k + 1], method.outputs(alone)[0][:, 0])


def test_paper_recipe_is_that_of_jigsaw_with_all_images_gray():
    ours, theirs = dj.Paper(), jigsaw.Paper()
    for name in ("num_permutations", "tile", "width", "hidden", "dropout", "flatten", "flip", "shuffles"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.encoder, ours.train) == (theirs.encoder, theirs.train)
    assert (ours.gray, ours.shuffles, ours.distance_stat) == (1.0, 1, "minimum")


def test_grayscale_sources_are_a_user_error():
    with pytest.raises(UserError, match="1 channel"):
        build(data.open("synthetic:64:48", channels=1))


def test_missing_tiles_have_one_embedding_and_never_enter_the_encoder(source):
    """Black tiles do not enter batch norm either."""
    method = build(source).train()
    seen = []
    method.tiles.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    method.loss(method.pretext(batch(source), Rng(1)))
    assert len(seen[0]) == 16 * 8
    assert seen[0].flatten(1).any(1).all()


def test_predicted_image_keeps_the_visible_lightness_and_ignores_the_target(source):
    method = build(source, dj.Config(channel_shift=0)).eval()
    p = method.pretext(batch(source), Rng(1))
    with torch.no_grad():
        found, blind = (
            method.predict(q)["target"] for q in (p, dataclasses.replace(p, target=torch.rand_like(p.target)))
        )
    assert torch.equal(found, blind)  # the target is not used
    visible = torch.arange(9) != p.missing[:, None]
    own, predicted = (rgb_to_lab(x[visible])[:, 0] for x in (p.target, found))
    assert (own - predicted).abs().mean() < 3  # except for colors outside of sRGB
    own, predicted = (rgb_to_lab(x[~visible])[:, 0] for x in (p.target, found))
    assert (own - predicted).abs().mean() > 3  # an untrained network cannot know the missing tile
