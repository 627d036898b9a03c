"""What a damaged jigsaw must show (Kim et al. 2018, as far as it is known, and what follows from its idea)."""

import dataclasses

import pytest
import torch
from tiles import back, picture
from torch.testing import assert_close

from pretask import data as sources
from pretask import encoders
from pretask.methods import damaged_jigsaw as dj
from pretask.methods import jigsaw
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, UserError

GREY = dj.Config(grey=1.0)


@pytest.fixture(scope="module")
def source():
    return sources.open("synthetic:64:48")


def made(source, config=None, encoder="resnet_small:width=16"):
    torch.manual_seed(0)
    return (config or GREY).build(encoders.build(encoder, source.channels, source.size), source)


def batch(source, n=16):
    return source.__getitems__(torch.arange(n))


# ---- the puzzle


def test_one_tile_is_missing_and_every_slot_is_as_often(source):
    method, many = made(source), Batch(torch.arange(900), batch(source, 60).image.repeat(15, 1, 1, 1))
    missing = torch.cat([method.pretext(many, Rng(k)).missing for k in range(10)])
    assert (missing.bincount(minlength=9) - 1000).abs().max() < 100
    p = method.pretext(batch(source), Rng(1))
    black = ~p.tile.flatten(2).any(2)
    assert torch.equal(black.nonzero()[:, 1], p.missing)


def test_a_missing_slot_says_nothing_of_the_order(source):
    """The cell that is missing is as often each of the nine, whatever the order."""
    method, many = made(source), Batch(torch.arange(900), batch(source, 60).image.repeat(15, 1, 1, 1))
    cell = torch.cat(
        [p.order[torch.arange(900), p.missing] for k in range(10) for p in [method.pretext(many, Rng(k))]]
    )
    assert (cell.bincount(minlength=9) - 1000).abs().max() < 100


def test_the_network_sees_no_colour(source):
    """Another image of the same lightness: the same puzzle, other answers."""
    x = images.lab(images.to_float(batch(source).image))
    other = images.from_lab(torch.cat([x[:, :1], 0.5 * x[:, 1:]], 1))
    method = made(source)
    p = method.pretext(batch(source), Rng(1))
    grey = (p.tile == p.tile[:, :, :1]).all()
    same = images.lab(other)[:, 0] - x[:, 0]
    assert grey and same.abs().max() < 0.1  # half the colour is within sRGB
    q = method.pretext(Batch(torch.arange(16), (other * 255).round().to(torch.uint8)), Rng(1))
    assert_close(p.tile, q.tile, atol=0.01, rtol=0)
    assert (p.whole - q.whole).abs().max() > 0.05


def test_the_missing_tile_reaches_no_input_and_the_inpainting_loss_alone(source):
    method = made(source).eval()
    p = method.pretext(batch(source), Rng(1))
    whole = p.whole.clone()
    whole[torch.arange(16), p.missing] = 1 - whole[torch.arange(16), p.missing]
    q = dataclasses.replace(p, whole=whole)
    with torch.no_grad():
        one, other = method.loss(p).parts, method.loss(q).parts
    assert one["order"] == other["order"] and one["colour"] == other["colour"]
    assert one["inpaint"] != other["inpaint"]


def test_undoing_the_order_shows_the_image_with_a_hole(source):
    method = made(source, dj.Config(grey=1.0, flip=0.0, tile=1.0))
    p = method.pretext(batch(source), Rng(1))
    x, side = images.to_float(batch(source).image), p.tile.shape[-1]
    assert torch.equal(picture(p.whole, p.order), x)
    hole = p.order[torch.arange(16), p.missing]
    there = torch.ones(16, 9, dtype=torch.bool)
    there[torch.arange(16), hole] = False
    there = there.view(16, 3, 1, 3, 1).expand(-1, -1, side, -1, side).reshape(16, 1, 3 * side, -1)
    assert_close(picture(p.tile, p.order), (images.lab(x)[:, :1] / 100 * there).expand(-1, 3, -1, -1))


def test_the_list_leaves_no_two_orders_that_a_hole_could_confuse(source):
    orders = made(source).orders
    different = (orders[:, None] != orders[None]).sum(-1) + 9 * torch.eye(len(orders))
    assert different.min() >= 3


# ---- the heads


def test_at_the_start_every_part_costs_about_what_knowing_nothing_costs(source):
    method = made(source)
    with torch.no_grad():
        parts = method.loss(method.pretext(batch(source, 64), Rng(1))).parts
    assert abs(parts["order"] - 1) < 0.05


@pytest.mark.parametrize("alone", ["order", "colour", "inpaint"])
def test_a_head_without_weight_gets_no_gradient_and_the_others_cost_the_same(source, alone):
    off = {name: float(name == alone) for name in ("order", "colour", "inpaint")}
    method, whole = made(source, dj.Config(grey=1.0, **off)), made(source)
    p = method.pretext(batch(source), Rng(1))
    loss = method.loss(p)
    assert_close(loss.total, whole.loss(p).parts[alone])
    loss.total.backward()
    for name in off:
        gradients = [w.grad for w in getattr(method, name).parameters()]
        moved = any(g is not None and bool(g.any()) for g in gradients)
        assert moved == (name == alone)


def test_all_heads_off_is_a_mistake(source):
    with pytest.raises(UserError, match="all 0"):
        made(source, dj.Config(order=0.0, colour=0.0, inpaint=0.0))


@pytest.mark.parametrize("missing", [False, True])
def test_the_true_colours_cost_nothing_and_paint_the_picture_and_grey_costs_their_square(source, missing):
    """Slow, from the definition: at 8 x 8 places, a and b of eight tiles and L, a and b of the ninth."""
    method = made(source).eval()
    p = method.pretext(batch(source, 4), Rng(1))
    whole = p.whole[:, :, :, 4:5, 4:5].expand_as(p.whole)  # tiles of one colour: nothing is lost at 8 x 8
    p = dataclasses.replace(p, whole=whole)
    hole = torch.arange(9) == p.missing[:, None]
    light = images.lab(whole.flatten(0, 1))[:, :1].view_as(whole[:, :, :1]) / 100
    p = dataclasses.replace(p, tile=light.expand_as(whole) * ~hole[:, :, None, None, None])
    lab = torch.stack([images.lab(tile) for tile in whole.unbind(1)], 1)[..., :8, :8]
    mean, spread = (torch.tensor(of)[:, None, None] for of in ((48.0, 1.0, 3.7), (26.0, 10.5, 18.6)))
    true = (lab - mean) / spread
    ab, all3 = true[~hole][:, 1:], true[hole]
    method.answers = lambda pretext: (torch.zeros(4, 8, 100), ab, all3)
    with torch.no_grad():
        parts, painted = method.loss(p).parts, method.solve(p)["whole"]
        assert parts["colour"] < 1e-8 and parts["inpaint"] < 1e-8
        assert_close(painted, whole, atol=2e-3, rtol=0)
        method.answers = lambda pretext: (torch.zeros(4, 8, 100), 0 * ab, 0 * all3)
        part = method.loss(p).parts["inpaint" if missing else "colour"]
    assert_close(part, (all3 if missing else ab).square().mean())


def test_images_that_keep_their_colour_are_not_asked_for_it(source):
    """Three in ten show all that they hold, but for the missing tile; the colour head learns from the others alone."""
    method = made(source, dj.Config(fringe=0)).eval()
    many = Batch(torch.arange(600), batch(source, 60).image.repeat(10, 1, 1, 1))
    p = method.pretext(many, Rng(1))
    assert 0.64 < p.grey.float().mean() < 0.76
    there = torch.arange(9) != p.missing[:, None]
    assert torch.equal(p.tile[~p.grey][there[~p.grey]], p.whole[~p.grey][there[~p.grey]])
    assert not p.tile[~there].any()
    assert (p.tile[p.grey] == p.tile[p.grey][:, :, :1]).all()
    painted = torch.where(p.grey[:, None, None, None, None], p.whole, 1 - p.whole)
    with torch.no_grad():
        one, other = (
            method.loss(dataclasses.replace(q, whole=w)).parts["colour"]
            for q, w in ((p, p.whole), (p, painted))
        )
    assert one == other


def test_two_halves_of_a_batch_cost_and_teach_what_the_whole_does(source):
    """So that several processes learn what one would, however the images that keep their colour are dealt out."""
    method = made(source, dj.Config()).eval().double()
    p = method.pretext(batch(source), Rng(3))
    p = dataclasses.replace(p, tile=p.tile.double())  # the colours are scored in single precision
    assert p.grey[:8].sum() != p.grey[8:].sum()

    def taught(*puzzles):
        method.zero_grad()
        total = torch.stack([method.loss(q).total for q in puzzles]).mean()
        total.backward()
        return [total.detach(), *(w.grad.clone() for w in method.parameters())]

    fields = {f.name: getattr(p, f.name).split(8) for f in dataclasses.fields(p)}
    halves = [dj.Damaged(**{name: parts[i] for name, parts in fields.items()}) for i in (0, 1)]
    for one, both in zip(taught(p), taught(*halves), strict=True):
        assert_close(both, one, atol=1e-7, rtol=1e-5)


def test_the_other_orders_move_the_hole_along(source):
    method = made(source).eval()
    p, rows = method.pretext(batch(source, 4), Rng(1)), torch.arange(4)[:, None]
    cell = back(p.tile, p.order)
    with torch.no_grad():
        together = method.answers(p)[0]
        for k, entry in enumerate(p.others.unbind(1)):
            order = method.orders[entry]
            tile = cell[rows, order]
            missing = (~tile.flatten(2).any(2)).nonzero()[:, 1]
            alone = dataclasses.replace(p, tile=tile, order=order, entry=entry, missing=missing)
            assert_close(together[:, k + 1], method.answers(alone)[0][:, 0])


def test_the_paper_recipe_is_that_of_jigsaw_with_every_image_grey():
    ours, theirs = dj.Paper(), jigsaw.Paper()
    for name in ("orders", "tile", "width", "hidden", "dropout", "flat", "flip", "shuffles"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.encoder, ours.train) == (theirs.encoder, theirs.train)
    assert (ours.grey, ours.shuffles, ours.spread) == (1.0, 1, "minimum")


def test_grey_images_are_a_mistake():
    with pytest.raises(UserError, match="1 channel"):
        made(sources.open("synthetic:64:48", channels=1))


def test_a_missing_tile_is_described_alike_in_all_images(source):
    """What the network would say of a black tile is not used: batch norm never sees it."""
    method = made(source).train()
    seen = []
    method.tiles.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    method.loss(method.pretext(batch(source), Rng(1)))
    assert len(seen[0]) == 16 * 8
    assert seen[0].flatten(1).any(1).all()


def test_the_answer_shows_the_light_that_was_seen_and_nothing_that_was_not(source):
    method = made(source, dj.Config(fringe=0)).eval()
    p = method.pretext(batch(source), Rng(1))
    with torch.no_grad():
        found, blind = (
            method.solve(q)["whole"] for q in (p, dataclasses.replace(p, whole=torch.rand_like(p.whole)))
        )
    assert torch.equal(found, blind)  # the picture that is to be found is not looked at
    there = torch.arange(9) != p.missing[:, None]
    own, answered = (images.lab(x[there])[:, 0] for x in (p.whole, found))
    assert (own - answered).abs().mean() < 3  # but for colours that sRGB lacks
    own, answered = (images.lab(x[~there])[:, 0] for x in (p.whole, found))
    assert (own - answered).abs().mean() > 3  # of the missing tile nothing is known yet
