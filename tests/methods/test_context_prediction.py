"""What a faithful context prediction must show (Doersch et al. 2015 and the released code)."""

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pretask import data as sources
from pretask import encoders
from pretask.methods import context_prediction as cp
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, UserError

PLAIN = cp.Config(zoom=1.0, colour="keep", coarse=0.0, jitter=0.0)


@pytest.fixture(scope="module")
def source():
    return sources.open("synthetic:64:64")


def made(source, config=PLAIN, encoder="resnet_small:width=16"):
    torch.manual_seed(0)
    return config.build(encoders.build(encoder, source.channels, source.size), source)


def batch(source, n=16):
    return source.__getitems__(torch.arange(n))


# ---- the question


def test_a_grid_has_forty_pairs_and_its_sides_are_asked_more_often_than_its_corners():
    counts = Counter(cp.pairs()[:, 2].tolist())
    assert counts == {0: 4, 1: 6, 2: 4, 3: 6, 4: 6, 5: 4, 6: 6, 7: 4}


def test_seen_from_the_other_patch_the_place_is_the_opposite_one():
    place = {(a, b): at for a, b, at in cp.pairs().tolist()}
    assert all(place[b, a] == 7 - at for (a, b), at in place.items())


def test_places_are_numbered_by_rows():
    around = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1], [2, 2]]
    from_centre = {b: at for a, b, at in cp.pairs().tolist() if a == 4}
    assert from_centre == {3 * row + column: at for at, (row, column) in enumerate(around)}


def test_the_place_says_where_the_patch_was(source):
    """Images whose pixels are their own coordinates: the second patch lies where the answer says."""
    method = made(source)
    at = torch.stack(torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")).float() / 255
    corner = method.cut(at.expand(8, 2, -1, -1), Rng(1))[..., 0, 0] * 255  # (8, 9, 2)
    for first, second, place in method.pairs.tolist():
        cell = place + (place > 3)
        step = (corner[:, second] - corner[:, first]) / method.pitch
        assert_close(step, torch.tensor([cell // 3 - 1.0, cell % 3 - 1.0]).expand(8, 2), atol=1e-3, rtol=0)


def test_pairs_are_drawn_from_all_forty(source):
    method = made(source, cp.Config())
    seen = set()
    for k in range(30):
        p = method.pretext(batch(source), Rng(k))
        seen |= set(zip(p.first.flatten().tolist(), p.second.flatten().tolist(), strict=True))
    assert len(seen) == 40


# ---- geometry


def test_the_published_geometry():
    """Patches of 96 px at a pitch of 144, moved by 7 at most: gaps from 34 to 62, all inside the image."""
    source = sources.open("synthetic:64:400")
    method = made(source, cp.Paper(), "context_alexnet")
    assert (method.side, method.pitch, method.reach) == (96, 144, 7)
    assert method.config.colour == "drop"
    at = torch.stack(torch.meshgrid(torch.arange(400), torch.arange(400), indexing="ij")).float()
    corner = method.cut(at.expand(200, 2, -1, -1), Rng(1))[..., 0, 0].view(200, 3, 3, 2)
    gap = torch.cat(
        [(corner[:, :, 1:, 1] - corner[:, :, :-1, 1]).flatten(), (corner[:, 1:, :, 0] - corner[:, :-1, :, 0]).flatten()]
    ) - 96  # fmt: skip
    assert gap.min() == 34 and gap.max() == 62
    assert corner.min() >= 0 and corner.max() <= 400 - 96


@pytest.mark.parametrize(
    ("config", "encoder", "size", "reach"),
    [
        (cp.Config(), "resnet_small:width=4", 96, 2),
        (cp.Config(), "resnet_small:width=4", 32, 1),
        (cp.Paper(), "context_alexnet", 400, 7),
    ],
)
def test_jitter_is_even_in_every_direction_for_every_cell_and_few_patches_touch_the_border(
    config, encoder, size, reach
):
    """Two cells of a grid differ by the pitch and both their jitters, whose difference is distributed as a triangle."""
    method = made(sources.open(f"synthetic:64:{size}"), config, encoder)
    at = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).float()
    corner = torch.cat(
        [method.cut(at.expand(100, 2, -1, -1), Rng(k))[..., 0, 0] for k in range(20)]
    )  # (2000, 9, 2)
    cells = torch.arange(9)
    moved = corner - method.pitch * torch.stack(
        [cells // 3, cells % 3], 1
    )  # where the grid begins, and the jitter
    n = 2 * reach + 1
    triangle = torch.tensor([(n - abs(d)) / n**2 for d in range(-2 * reach, 2 * reach + 1)])
    for cell in (0, 1, 2, 3, 5, 6, 7, 8):
        for axis in range(2):
            apart = (moved[:, cell] - moved[:, 4])[:, axis].round().long() + 2 * reach
            share = apart.bincount(minlength=len(triangle)) / len(apart)
            assert_close(share, triangle, atol=0.05, rtol=0)
            assert abs((share - triangle).cumsum(0)).max() < 0.05
    assert corner.min() >= 0 and corner.max() <= size - method.side
    outer = corner[:, [0, 1, 2], 0], corner[:, [0, 3, 6], 1], corner[:, [6, 7, 8], 0], corner[:, [2, 5, 8], 1]
    touching = [
        (line == (0 if side < 2 else size - method.side)).float().mean() for side, line in enumerate(outer)
    ]
    chance = 1 / n / (method.spare + 1)  # of the grid as far out as it goes, and the patch once more
    assert chance < 0.12
    assert_close(torch.stack(touching), torch.full((4,), chance), atol=0.03, rtol=0)


def test_what_does_not_fit_says_what_would():
    with pytest.raises(UserError, match="smaller --patch"):
        made(sources.open("synthetic:64:16"), cp.Config(patch=0.4))
    with pytest.raises(UserError, match="or --jitter"):  # without jitter it fits
        made(sources.open("synthetic:64:96"), cp.Config(patch=0.25))
    with pytest.raises(UserError, match="--size 19 or more"):
        made(sources.open("synthetic:64:16"), cp.Config())
    for size in range(19, 130):
        assert made(sources.open(f"synthetic:64:{size}"), cp.Config(), "resnet_small:width=4").spare >= 0


# ---- against shortcuts


@pytest.mark.parametrize("colour", ["drop", "project", "keep"])
def test_every_patch_has_mean_0_in_every_channel_and_the_same_size(source, colour):
    patch = made(source, cp.Config(colour=colour)).pretext(batch(source), Rng(1)).patch
    assert patch.mean((-2, -1)).abs().max() < 1e-4
    assert_close(patch.square().mean((2, 3, 4)), torch.ones(16, 9), atol=1e-3, rtol=0)


def test_dropping_keeps_one_channel_and_drowns_the_others():
    x = Rng(1).uniform(300, 2, 3, 12, 12)
    dropped = cp.dropped(x, Rng(2))
    kept = (dropped == x).flatten(3).all(3)  # (300, 2, 3)
    assert (kept.sum(2) == 1).all()
    share = kept.float().mean((0, 1))
    assert (share - 1 / 3).abs().max() < 0.08  # each channel as often
    noise = dropped[~kept]
    assert noise.abs().max() <= 0.5 / 255 + 1e-7 and abs(noise.std() * 255 - 0.289) < 0.01
    assert not torch.equal(kept[:, 0], kept[:, 1])  # each patch for itself


def test_projection_takes_green_against_magenta_out_and_leaves_grey():
    expected = [[0.8333, 0.3333, -0.1667], [0.3333, 0.3333, 0.3333], [-0.1667, 0.3333, 0.8333]]
    assert_close(cp.PROJECTION, torch.tensor(expected), atol=1e-4, rtol=0)
    assert_close(cp.PROJECTION @ torch.ones(3), torch.ones(3))
    assert (cp.AXIS @ cp.PROJECTION).abs().max() < 1e-6


def test_patches_of_one_grey_do_not_break_it(source):
    flat = Batch(torch.arange(4), torch.full((4, 3, 64, 64), 128, dtype=torch.uint8))
    for colour in ("drop", "project", "keep"):
        assert made(source, cp.Config(colour=colour)).pretext(flat, Rng(1)).patch.isfinite().all()


def test_a_third_of_the_patches_is_made_coarse(source):
    method = made(source, cp.Config(coarse=0.33))
    patch = Rng(1).uniform(200, 9, 3, 16, 16)
    rough = (method.coarsened(patch, Rng(2)) != patch).flatten(2).any(2)
    assert 0.29 < rough.float().mean() < 0.37
    low = [min(16, max(1, int(Rng(k).whole.uniform(1, low=(10 / 96) ** 2, high=(95 / 96) ** 2).item() ** 0.5 * 16))) for k in range(300)]  # fmt: skip
    assert 1 <= min(low) <= 2 and max(low) == 15


# ---- the solver


def test_an_untrained_net_guesses(source):
    with torch.no_grad():
        method = made(source, cp.Config())
        loss = method.loss(method.pretext(batch(source, 64), Rng(1)))
    assert abs(loss.total.item() - math.log(8)) < 0.35  # batch norm without gain leaves logits of some size


def test_no_norm_of_the_head_and_of_the_published_net_can_silence_a_unit(source):
    large = sources.open("synthetic:64:400")
    for method in (made(source).column, made(large, cp.Paper(), "context_alexnet")):
        norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert norms and all(m.weight is None and m.bias is None for m in norms)


def test_swapping_the_two_patches_is_another_question(source):
    method = made(source).eval()
    p = method.pretext(batch(source, 4), Rng(1))
    with torch.no_grad():
        one, other = method.logits(p), method.logits(cp.Neighbours(p.patch, p.second, p.first, p.place))
    assert one.shape == (4, 8, 8) and not torch.allclose(one, other)


def test_a_patch_is_seen_by_itself(source):
    method = made(source).eval()
    p = method.pretext(batch(source, 2), Rng(1))
    other = p.patch.clone()
    other[:, 0] = other[:, 0].flip(-1)
    with torch.no_grad():
        before, after = (method.patches(x.flatten(0, 1))[0].view(2, 9, -1) for x in (p.patch, other))
    assert torch.equal(before[:, 1:], after[:, 1:]) and not torch.equal(before[:, 0], after[:, 0])


def test_the_published_tower():
    net = encoders.build("context_alexnet", 3, 96).eval()
    sides = [s.shape[-1] for name, s in net(torch.zeros(1, 3, 96, 96)).items() if name != "pool"]
    assert sides == [12, 6, 6, 6, 3]


@pytest.fixture(scope="module")
def published():
    """conv1 to fc9 of train.py:54-82, fc6 to fc8 narrower."""
    return made(sources.open("synthetic:64:400"), cp.Paper(hidden=256), "context_alexnet")


LAYERS = """Times Conv2d ReLU MaxPool2d LocalResponseNorm Conv2d ReLU MaxPool2d LocalResponseNorm
    Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d ReLU MaxPool2d
    Linear BatchNorm1d ReLU Linear BatchNorm1d ReLU Linear ReLU Linear"""


def leaves(method):
    modules = [*method.patches.encoder.net.modules(), *method.column.modules(), *method.head.modules()]
    return [m for m in modules if not list(m.children())]


def test_the_published_net_has_its_layers_in_order_and_no_norm_in_fc8(published):
    assert [type(m).__name__ for m in leaves(published)] == LAYERS.split()
    shapes = [tuple(m.weight.shape) for m in leaves(published) if getattr(m, "weight", None) is not None]
    assert shapes == [
        (96, 3, 11, 11), (256, 96, 5, 5), (384, 256, 3, 3), (384, 384, 3, 3), (256, 384, 3, 3),
        (256, 2304), (256, 512), (256, 256), (8, 256),
    ]  # fmt: skip


def test_weights_begin_as_caffe_draws_them(published):
    """Uniform within the root of three over the inputs; torch's Xavier has half the sum of inputs and outputs."""
    for layer in leaves(published):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = math.sqrt(3 / layer.weight[0].numel())
            assert 0.99 * bound < layer.weight.abs().max() <= bound * 1.0001 or layer.weight.numel() < 5000
            assert_close(layer.weight.std(), torch.tensor(bound / math.sqrt(3)), rtol=0.04, atol=0)
            assert layer.bias is None or not layer.bias.any()


def test_conv1_is_given_patches_of_a_size_of_fifty(published):
    seen = []
    conv1 = next(m for m in leaves(published) if isinstance(m, nn.Conv2d))
    conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    source = sources.open("synthetic:64:400")
    with torch.no_grad():
        p = published.eval().pretext(batch(source, 2), Rng(1))
        published.logits(p)
    assert_close(seen[0].square().mean((1, 2, 3)).sqrt(), torch.full((18,), 50.0), rtol=1e-3, atol=0)


def test_a_step_is_that_of_the_summed_loss_at_the_published_rate(published):
    """No momentum, no decay, 1e-5 times the gradient of the sum over all pairs of a step, biases at the same rate."""
    config = published.config
    images_, pairs = config.train.batch, config.pairs
    optimizer = published.optimizers(config.train)[0]
    for group in optimizer.param_groups:
        assert group["momentum"] == 0 and group["weight_decay"] == 0
        assert_close(group["lr"], 1e-5 * images_ * pairs)
    weight = published.head[-1].weight
    before = weight.detach().clone()
    logits = Rng(1).normal(images_ * pairs, 256) @ weight.T
    place = Rng(2).integers(images_ * pairs, high=8)
    (summed,) = torch.autograd.grad(
        nn.functional.cross_entropy(logits, place, reduction="sum"), weight, retain_graph=True
    )
    optimizer.zero_grad()
    nn.functional.cross_entropy(logits, place).backward()
    optimizer.step()
    assert_close(weight.detach(), before - 1e-5 * summed)


# ---- the shortcut that the paper found


def test_the_place_of_a_patch_is_told_by_the_fringes_of_a_lens_until_colours_are_dropped():
    """Noise seen through a lens that magnifies green by 3 %: how far green lies from red tells where a patch was."""

    def through_lens(n):
        x = Rng(1).uniform(n, 1, 66, 66)
        smooth = nn.functional.avg_pool2d(x, 3, 1)
        box = torch.tensor([0.5, 0.5, 1 / 1.06, 1 / 1.06]).expand(n, 4)
        green = images.crop(smooth, box, 64)
        return torch.cat([smooth, green, smooth], 1)

    def told(colour):
        """Correlation between a patch's column of three and the shift that best matches its green with its red."""
        config = cp.Config(zoom=1.0, coarse=0.0, colour=colour, jitter=0.0)
        method = made(sources.open("synthetic:64:64"), config)
        p = method.pretext(Batch(torch.arange(48), (through_lens(48) * 255).to(torch.uint8)), Rng(2)).patch
        left, right = p[..., 1:-1], p
        match = torch.stack(
            [(left[:, :, 0] * right[:, :, 1, :, k : k + left.shape[-1]]).mean((-2, -1)) for k in range(3)], -1
        )
        shift = (match[..., 2] - match[..., 0]).view(-1, 3, 3)
        column = torch.arange(3.0).expand_as(shift)
        return torch.corrcoef(torch.stack([shift.flatten(), column.flatten()]))[0, 1].abs()

    assert told("keep") > 0.6
    assert told("drop") < 0.2
