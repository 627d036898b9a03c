"""What a faithful Exemplar-CNN must show (Dosovitskiy et al. 2014, 2016)."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pretask import encoders, images, sources
from pretask.context import Context
from pretask.methods import exemplar_cnn as ec
from pretask.plan import Plan
from pretask.rng import Rng
from pretask.sources.arrays import Arrays
from pretask.types import Batch, UserError

STILL = {"shift": 0.0, "scale": (1.0, 1.0), "turn": 0.0}
PUBLISHED = {"axes": (0.5, 2.0), "power": (0.25, 4.0), "stretch": (0.7, 1.4), "offset": 0.1}
PALE = {"axes": (1.0, 1.0), "power": (1.0, 1.0), "stretch": (1.0, 1.0), "offset": 0.0}


@pytest.fixture(scope="module")
def source():
    return sources.open("synthetic:64:48")


def made(source, config, encoder="resnet_small:width=16"):
    torch.manual_seed(0)
    return config.build(encoders.build(encoder, source.channels, source.size), source)


def batch(source, n=16):
    return source.__getitems__(torch.arange(n))


def context(source, round=0, rounds=2):
    return Context(source, [], Plan.of(rounds, 1, rounds).at(round), Rng(0, "begin"))


# ---- classes


def test_every_image_gives_one_class_or_as_many_as_were_asked_for(source):
    method = made(source, ec.Config())
    assert sorted(method.label.tolist()) == list(range(64))
    method = made(source, ec.Config(seeds=20))
    assert sorted(x for x in method.label.tolist() if x >= 0) == list(range(20))
    weights = method.begin_epoch(context(source))
    assert torch.equal(weights > 0, method.label >= 0) and weights.sum() == 20


def test_a_classifier_that_knows_nothing_pays_the_logarithm_of_the_classes(source):
    method = made(source, ec.Config())
    torch.nn.init.zeros_(method.head[-1].weight)
    torch.nn.init.zeros_(method.head[-1].bias)
    loss = method.loss(method.pretext(batch(source, 64), Rng(1)))
    assert_close(loss.total.item(), math.log(64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("copies", [1, 5])
def test_a_seed_has_exactly_as_many_copies_as_were_asked_for(source, copies):
    method = made(source, ec.Config(copies=copies))
    seen = torch.stack([method.pretext(batch(source, 4), Rng(k)).image for k in range(40)])  # (40, 4, …)
    for of_one in seen.unbind(1):
        assert len(of_one.flatten(1).unique(dim=0)) == copies


def test_without_a_number_every_copy_is_new(source):
    method = made(source, ec.Config())
    seen = torch.stack([method.pretext(batch(source, 2), Rng(k)).image for k in range(20)])
    assert len(seen[:, 0].flatten(1).unique(dim=0)) == 20


def test_a_copy_follows_from_its_seed_and_its_number_alone(source):
    method = made(source, ec.Config(copies=1))
    alone = method.pretext(batch(source, 16).rows(slice(5, 6)), Rng(7)).image
    assert_close(alone[0], method.pretext(batch(source, 16), Rng(1)).image[5])


def test_the_numbers_of_a_copy_are_even_and_independent():
    index = torch.arange(4000)
    u = ec.hashed(index, index % 7)
    assert u.min() >= 0 and u.max() < 1
    assert (u.mean(0) - 0.5).abs().max() < 0.03 and (u.var(0) - 1 / 12).abs().max() < 0.006
    assert (torch.corrcoef(u.T) - torch.eye(ec.DRAWS)).abs().max() < 0.08
    steps = ec.hashed(index, torch.zeros(4000, dtype=torch.int64))[:, 0]
    assert abs(torch.corrcoef(torch.stack([steps[1:], steps[:-1]]))[0, 1]) < 0.06


# ---- where seeds lie


def test_seeds_are_drawn_in_proportion_to_the_squared_gradient():
    """Stripes on two sides of an image, one with twice the contrast: four times the energy, four times as often."""
    image = torch.zeros(1, 3, 16, 200)
    image[..., 30:70:4] = 0.2
    image[..., 130:170:4] = 0.4
    energy = ec.busy(image, 8, 4)
    left, right = energy[..., :96].sum(), energy[..., 96:].sum()
    assert_close(right / left, torch.tensor(4.0), rtol=0.02, atol=0)
    flat = energy[..., 80:110]
    assert flat.max() < 1e-6 * energy.max()


@pytest.mark.parametrize("margin", [4, 5, 7])
def test_how_busy_a_patch_is_is_the_mean_of_its_squared_gradients(margin):
    """Slow, pixel by pixel; beyond the border an image goes on as it ends."""
    x = Rng(1).uniform(2, 3, 18, 21)
    found = ec.busy(x, 8, margin)
    assert found.shape == (2, 18 - 2 * margin + 1, 21 - 2 * margin + 1)
    for image, energies in zip(images.luma(x)[:, 0], found, strict=True):

        def at(row, column, image=image):
            return image[min(max(row, 0), 17), min(max(column, 0), 20)]

        for i, j in ((0, 0), (1, 3), (energies.shape[0] - 1, energies.shape[1] - 1)):
            top, left = i + margin - 4, j + margin - 4
            energy = [
                (at(r, c + 1) - at(r, c - 1)) ** 2 + (at(r + 1, c) - at(r - 1, c)) ** 2
                for r in range(top, top + 8)
                for c in range(left, left + 8)
            ]
            assert_close(energies[i, j], torch.stack(energy).mean())


def test_no_seed_lies_where_nothing_is_and_busier_places_are_likelier():
    x = torch.zeros(400, 3, 48, 48)
    x[:, :, :, :24:4] = 0.4
    x[:, :, :, 24::4] = 0.2
    x[:, :, 24:] = 0.5  # the lower half is empty
    source = Arrays("stripes", (x * 255).to(torch.uint8))
    method = made(source, ec.Config(patch=8, **STILL))
    corner = method.corners(x, torch.arange(400))
    assert (corner[:, 0] < 25).all()
    energy = ec.busy(x[:1], method.side, method.margin)[0].sum(0)  # of each column
    first = corner[:, 1] - (method.margin - method.side // 2)
    expected = (energy * torch.arange(len(energy))).sum() / energy.sum()
    assert abs(first.float().mean() - expected) < 1.5  # evenly drawn ones would be 4 px further on


def test_a_seed_stays_where_it_is(source):
    method = made(source, ec.Config(patch=24))
    x = images.to_float(batch(source).image)
    assert torch.equal(method.corners(x, torch.arange(16)), method.corners(x, torch.arange(16)))


def test_where_the_image_has_room_no_copy_reaches_beyond_it():
    """The published reach: 22.4 (cos 20° + sin 20°) + 6.4 = 35.1 px for patches of 32 in images of 96."""
    method = made(sources.open("synthetic:64:96"), ec.Paper(), "resnet_small:width=8")
    assert {name: getattr(method.config, name) for name in PUBLISHED} == PUBLISHED
    assert method.side == 32 and 36 <= method.margin <= 44
    assert 22.4 * (math.cos(math.radians(20)) + math.sin(math.radians(20))) + 6.4 < method.margin


def test_by_default_colours_change_by_half_of_the_published_ranges_and_the_head_has_a_layer(source):
    ours, paper = ec.Config(), ec.Paper()
    for name in ("axes", "power", "stretch"):
        half = [math.log(x) / 2 for x in getattr(paper, name)]
        assert_close([math.log(x) for x in getattr(ours, name)], half, atol=0.01, rtol=0)
    assert ours.offset == paper.offset / 2
    assert [m.out_features for m in made(source, ours).head if isinstance(m, nn.Linear)] == [512, 64]
    assert [m.out_features for m in made(source, paper, "exemplar").head] == [64]


def test_images_too_small_for_a_seed_say_what_size_is_needed():
    with pytest.raises(UserError, match="--size"):
        made(sources.open("synthetic:64:8"), ec.Config())
    with pytest.raises(UserError, match="--patch"):
        made(sources.open("synthetic:64:16"), ec.Config(patch=4))


@pytest.mark.parametrize(("size", "side"), [(32, 24), (48, 32), (96, 32)])
def test_a_seed_has_32_pixels_and_leaves_room_in_small_images(size, side):
    assert made(sources.open(f"synthetic:64:{size}"), ec.Config()).side == side


# ---- how a copy is distorted


def test_without_distortion_a_copy_is_its_seed(source):
    method = made(source, ec.Config(patch=24, **STILL, **PALE))
    method.begin(context(source))
    b = batch(source)
    seed = method.seeds(images.to_float(b.image), b.index)
    assert_close(method.pretext(b, Rng(1)).image, seed, atol=2e-5, rtol=0)


def coordinates(config, n=300, size=96):
    """Where the pixels of copies come from: (n, 2 of x and y, p, p), pixels, and the centres of their seeds."""
    source = sources.open(f"synthetic:64:{size}")
    method = made(source, config, "resnet_small:width=8")
    down, across = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    ramp = torch.stack([across, down, across * 0]).expand(n, -1, -1, -1)
    u = ec.hashed(torch.arange(n), torch.arange(n)).T
    busy = Rng(3).uniform(n, 3, size, size)
    corner = method.corners(busy, torch.arange(n))
    method.corners = lambda x, index: corner
    return method.placed(ramp, torch.arange(n), u[:6])[:, :2], corner.flip(1) + method.side / 2


def test_shifts_stay_within_a_fifth_and_are_balanced():
    at, centre = coordinates(ec.Paper(scale=(1.0, 1.0), turn=0.0))
    moved = at.mean((2, 3)) - centre
    assert 6 < moved.abs().max() <= 6.4 + 1e-3 and moved.mean().abs() < 0.5


def test_scales_stay_between_their_ends_and_halve_as_often_as_they_double():
    at, _ = coordinates(ec.Paper(shift=0.0, turn=0.0))
    factor = (at[:, 0, 0, -1] - at[:, 0, 0, 0]) / 31
    assert 0.7 - 1e-3 <= factor.min() < 0.72 and 1.36 < factor.max() <= 1.4 + 1e-3
    assert abs(factor.log().mean() - math.log(0.7 * 1.4) / 2) < 0.03


def test_turns_stay_within_twenty_degrees_and_keep_shapes():
    at, _ = coordinates(ec.Paper(shift=0.0, scale=(1.0, 1.0)))
    across, down = at[:, :, 0, -1] - at[:, :, 0, 0], at[:, :, -1, 0] - at[:, :, 0, 0]
    angle = torch.atan2(across[:, 1], across[:, 0]).rad2deg()
    assert 19 < angle.abs().max() <= 20 + 1e-2 and angle.mean().abs() < 2
    assert_close((across * down).sum(1), torch.zeros(len(at)), atol=1e-2, rtol=0)
    assert_close(across.norm(dim=1), torch.full((len(at),), 31.0), atol=1e-2, rtol=0)


def test_all_pixels_of_a_copy_share_one_draw(source):
    """An image of one colour stays one."""
    flat = Rng(1).uniform(32, 3, 1, 1).expand(-1, -1, 48, 48)
    method = made(source, ec.Config())
    out = method.pretext(Batch(torch.arange(32), (flat * 255).to(torch.uint8)), Rng(1)).image
    assert_close(out, out[..., :1, :1].expand_as(out), atol=1e-3, rtol=0)


def test_hue_goes_around_and_saturation_and_value_stay_within_their_ends():
    red = torch.tensor([1.0, 0.05, 0.2]).view(1, 3, 1, 1).expand(64, 3, 4, 4)  # hue 0.97
    method = made(sources.open("synthetic:64:48"), ec.Config(**PUBLISHED))
    u = torch.full((10, 64), 0.5)
    u[3:5], u[5:7] = 0.5, -math.log(0.7) / math.log(2)  # powers and factors of 1
    u[9] = 1.0  # 0.1 more hue
    hue, chroma, _ = images.to_hcv(method.coloured(red, u))
    assert_close(hue / 6 % 1, torch.full_like(hue, (1 - 0.15 / 0.95 / 6 + 0.1) % 1), atol=2e-3, rtol=0)
    assert chroma.min() > 0.5
    extreme = method.coloured(Rng(1).uniform(64, 3, 8, 8), Rng(2).uniform(10, 64).round())
    assert extreme.min() >= 0 and extreme.max() <= 1


def test_contrast_is_stretched_along_the_axes_of_colour(source):
    method = made(source, ec.Config(**PALE | {"axes": (0.5, 2.0)}))
    method.begin(context(source))
    assert_close(method.axes @ method.axes.T, torch.eye(3), atol=1e-5, rtol=0)
    u = torch.full((10, 1), 0.5)  # factor 1 on every axis
    u[0] = 1.0  # twice along the first
    x = method.colour.view(1, 3, 1, 1) + 0.01 * Rng(1).normal(1, 3, 8, 8)
    before, after = (
        torch.einsum("ad,bdhw->bahw", method.axes, y - method.colour.view(3, 1, 1))
        for y in (x, method.coloured(x, u))
    )
    assert_close(after, before * torch.tensor([2.0, 1.0, 1.0]).view(3, 1, 1), atol=1e-4, rtol=0)


def test_grey_images_are_distorted_too():
    source = sources.open("synthetic:64:48", channels=1)
    method = made(source, ec.Config())
    method.begin(context(source))
    image = method.pretext(batch(source), Rng(1)).image
    assert image.shape[1] == 1 and image.min() >= 0 and image.max() <= 1


# ---- seeds that look alike


def test_seeds_that_cannot_be_told_apart_become_one_class():
    one = Rng(1).integers(20, 3, 48, 48, high=256).to(torch.uint8)
    twins = Arrays("twins", torch.cat([one, one]))
    method = made(twins, ec.Clustered()).train()
    method.corners = lambda x, index: torch.zeros(len(x), 2, dtype=torch.long)  # twins show the same patch
    before = method.head[-1].weight.clone()
    method.begin_epoch(context(twins, round=0))
    assert len(method.label.unique()) == 40
    pairs = method.label.view(2, 20).T.clone()
    method.begin_epoch(context(twins, round=1))
    now = method.label.view(2, 20)
    assert torch.equal(now[0], now[1]) and sorted(now[0].tolist()) == list(range(20))
    assert_close(method.head[-1].weight[now[0]], before[pairs].mean(1))
    assert method.logits(method.pretext(batch(twins), Rng(1))).shape == (16, 20)


def test_seeds_that_differ_stay_apart(source):
    method = made(source, ec.Clustered(merge=1.01))
    method.begin_epoch(context(source, round=1))
    assert len(method.label.unique()) == 64


# ---- what it teaches


def jensen(method, source, copies=40):
    """E log‖exp(logits)‖₁ − log‖exp(E logits)‖₁ over copies of a seed, the mean over seeds."""
    b = batch(source)
    with torch.no_grad():
        logits = torch.stack([method.eval().logits(method.pretext(b, Rng(k))) for k in range(copies)])
    return (logits.logsumexp(-1).mean(0) - logits.mean(0).logsumexp(-1)).mean().item()


def test_what_the_distortions_cost_is_never_below_nothing(source):
    """The second bracket of the objective's limit, by Jensen's inequality."""
    method = made(source, ec.Config())
    assert jensen(method, source) > 0
    still = made(source, ec.Config(**STILL, **PALE))
    assert abs(jensen(still, source)) < 1e-5


def test_the_published_net_can_look_at_a_whole_image():
    net = encoders.build("exemplar", 3, 96).eval()
    stages = net(torch.zeros(1, 3, 96, 96))
    assert [s.shape[1] for s in stages.values()] == [64, 128, 256, 512, 512]
    assert net(torch.zeros(1, 3, 32, 32))["fc"].shape[-2:] == (1, 1)


def test_seeds_are_joined_once_a_round_in_a_run_that_is_stretched(source, monkeypatch):
    method, joined = made(source, ec.Clustered()), []
    monkeypatch.setattr(method, "join", lambda context: joined.append(context.progress.round))
    plan = Plan.of(20, 1, 4).changed(6, 126)
    for step in range(126):
        method.begin_epoch(Context(source, [], plan.at(step), Rng(0, "begin")))
    assert joined == [1, 2, 3]
