"""Exemplar-CNN against the papers (Dosovitskiy et al. 2014, 2016) and the released code."""

import dataclasses
import json
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from pretask import data, encoders, limits
from pretask.config import TrainConfig, lr_factor
from pretask.data.arrays import Arrays
from pretask.methods import exemplar_cnn as ec
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.runtime import formats
from pretask.train import requirements
from pretask.train.plan import Plan
from pretask.transforms import augment
from pretask.transforms.color import luma, rgb_to_hcv
from pretask.types import Batch, UserError
from pretask.workflows import preview

NO_GEOMETRY = {"translation": 0.0, "scale": (1.0, 1.0), "rotation": 0.0}
PUBLISHED = {
    "pca_contrast": (0.5, 2.0),
    "hsv_power": (0.25, 4.0),
    "hsv_factor": (0.7, 1.4),
    "hsv_offset": 0.1,
}
NO_COLOR = {"pca_contrast": (1.0, 1.0), "hsv_power": (1.0, 1.0), "hsv_factor": (1.0, 1.0), "hsv_offset": 0.0}


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:64:48")


def build(source, config, encoder="resnet_small:width=16"):
    torch.manual_seed(0)
    return config.build(config.build_encoder(encoder, source), source)


def with_seeds(source, config, encoder="resnet_small:width=8", seed=0):
    """The method after `begin`, which samples the seeds."""
    method = build(source, config, encoder)
    method.begin(dataclasses.replace(context(source), rng=Rng(seed, "begin")))
    return method


def noise(n, size, channels=3):
    return Arrays("noise", Rng(1, "noise").integers(n, channels, size, size, high=256).to(torch.uint8))


def batch(source, n=16):
    return source.__getitems__(torch.arange(n))


def context(source, cycle=0, cycles=2):
    return Context(source, [], Plan.of(cycles, 1, cycles).at(cycle), Rng(0, "begin"))


# ---- surrogate classes


def test_every_image_gives_one_class_up_to_num_classes(source):
    method = with_seeds(source, ec.Config())
    assert sorted(method.label.flatten().tolist()) == list(range(64))
    assert method.begin_epoch(context(source)) is None
    method = with_seeds(source, ec.Config(num_classes=20))
    assert sorted(x for x in method.label.flatten().tolist() if x >= 0) == list(range(20))
    weights = method.begin_epoch(context(source))
    assert torch.equal(weights > 0, method.label[:, 0] >= 0) and weights.sum() == 20


def test_seeds_are_determined_by_the_random_seed(source):
    one, again, other = (with_seeds(source, ec.Config(num_classes=20), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.label, again.label) and torch.equal(one.box, again.box)
    assert not torch.equal(one.label, other.label) and not torch.equal(one.box, other.box)


def test_images_without_gradients_give_no_class():
    """Nine of ten images are constant; 40 have gradients."""
    image = Rng(1).integers(400, 1, 1, 1, high=256).expand(-1, 3, 32, 32).clone()
    image[::10] = Rng(2).integers(40, 3, 32, 32, high=256)
    source = Arrays("mostly flat", image.to(torch.uint8))
    for num_classes, expected in ((100, 40), (30, 30)):
        method = with_seeds(source, ec.Config(num_classes=num_classes))
        seeded = (method.label[:, 0] >= 0).nonzero()[:, 0]
        assert len(seeded) == expected and (seeded % 10 == 0).all()
        assert sorted(method.label[seeded, 0].tolist()) == list(range(expected))


def test_if_no_image_has_gradients_all_give_classes():
    flat = Arrays("flat", Rng(1).integers(30, 1, 1, 1, high=256).expand(-1, 3, 32, 32).to(torch.uint8))
    method = with_seeds(flat, ec.Config(num_classes=20))
    assert (method.label >= 0).sum() == 20 and len(method.box.unique(dim=0)) > 10


def test_images_are_sampled_in_proportion_to_energy_without_replacement():
    """Two of six striped images; expected over all pairs: p_i + sum over j of p_j · p_i / (1 - p_j)."""
    contrast = torch.tensor([0.1, 0.2, 0.2, 0.3, 0.4, 0.6])
    x = torch.zeros(6, 3, 16, 16)
    x[..., ::4] = contrast.view(-1, 1, 1, 1)
    source = Arrays("stripes", (x * 255).round().to(torch.uint8))
    method, seen, runs = (
        build(source, ec.Config(num_classes=2, patch=8), "resnet_small:width=8"),
        torch.zeros(6),
        1000,
    )
    for k in range(runs):
        method.sample_seeds(dataclasses.replace(context(source), rng=Rng(k)), torch.arange(6))
        seen += method.label[:, 0] >= 0
    p = contrast.double() ** 2
    p = (p / p.sum()).tolist()
    expected = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(6) if j != i) for i in range(6)]
    assert_close(seen / runs, torch.tensor(expected), atol=0.05, rtol=0)


@pytest.mark.parametrize(("flat", "most"), [(0, 112), (950, 1000)])
def test_four_images_per_seed_are_read_and_more_if_some_have_no_gradients(flat, most, monkeypatch):
    source, read = noise(1000, 96), []
    source.image[:flat] = 7
    plain = source.__getitems__
    monkeypatch.setattr(ec, "PIXELS", 16 * 96 * 96)
    method = build(source, ec.Config(num_classes=25), "resnet_small:width=8")
    monkeypatch.setattr(source, "__getitems__", lambda index: (read.extend(index.tolist()), plain(index))[1])
    method.sample_seeds(context(source), Rng(1).permutation(1000))
    assert 100 <= len(read) == len(set(read)) <= most and (method.label >= 0).sum() == 25
    assert (method.label[:flat] < 0).all()


def test_several_seeds_of_an_image_are_separated_and_sampled_equally_often():
    source = noise(40, 48)
    method = with_seeds(source, ec.Config(num_classes=90, seeds_per_image=3, patch=8))
    has = method.label >= 0
    assert sorted(method.label[has].tolist()) == list(range(90)) and has.sum(1).max() == 3
    assert torch.equal(method.begin_epoch(context(source)), has.sum(1).float())
    for places, there in zip(method.box, has, strict=True):
        for later in range(3):
            for former in range(later):
                if there[later] and there[former]:
                    (r, c, s), (r0, c0, s0) = places[later].tolist(), places[former].tolist()
                    assert max(abs(r + s / 2 - r0 - s0 / 2), abs(c + s / 2 - c0 - s0 / 2)) > s
    index = has.sum(1).argmax().expand(3000)  # an image with three
    shown = method.pretext(source.__getitems__(index), Rng(1)).label
    assert Counter(shown.tolist()).keys() == set(method.label[index[0]].tolist())
    assert min(Counter(shown.tolist()).values()) > 900
    b = source.__getitems__(index[:1].expand(200))
    still = build(
        source,
        ec.Config(num_classes=90, seeds_per_image=3, patch=8, **NO_GEOMETRY, **NO_COLOR),
        "resnet_small:width=8",
    )
    still.load_state_dict(method.state_dict())
    puzzle = still.pretext(b, Rng(2))
    k = (method.label[index[0]] == puzzle.label[:, None]).int().argmax(1)
    expected = still.seed_patches(augment.to_float(b.image), method.box[index[0]][k])
    assert_close(puzzle.image, expected, atol=2e-3, rtol=0)


def test_uniform_predictions_have_a_loss_of_the_log_of_the_classes(source):
    method = with_seeds(source, ec.Config(), "resnet_small:width=16")
    torch.nn.init.zeros_(method.head[-1].weight)
    torch.nn.init.zeros_(method.head[-1].bias)
    loss = method.loss(method.pretext(batch(source, 64), Rng(1)))
    assert_close(loss.total.item(), math.log(64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("copies", [1, 5])
def test_a_seed_has_exactly_the_configured_number_of_copies(source, copies):
    method = build(source, ec.Config(copies=copies))
    seen = torch.stack([method.pretext(batch(source, 4), Rng(k)).image for k in range(40)])  # (40, 4, …)
    for of_one in seen.unbind(1):
        assert len(of_one.flatten(1).unique(dim=0)) == copies


def test_with_copies_0_every_copy_is_new(source):
    method = build(source, ec.Config())
    seen = torch.stack([method.pretext(batch(source, 2), Rng(k)).image for k in range(20)])
    assert len(seen[:, 0].flatten(1).unique(dim=0)) == 20


def test_a_copy_is_determined_by_its_seed_and_its_number(source):
    method = build(source, ec.Config(copies=1))
    alone = method.pretext(batch(source, 16).rows(slice(5, 6)), Rng(7)).image
    assert_close(alone[0], method.pretext(batch(source, 16), Rng(1)).image[5])


def test_hashed_numbers_are_uniform_and_independent():
    index = torch.arange(4000)
    u = ec.hash_uniform(index, index % 7)
    assert u.min() >= 0 and u.max() < 1
    assert (u.mean(0) - 0.5).abs().max() < 0.03 and (u.var(0) - 1 / 12).abs().max() < 0.006
    assert (torch.corrcoef(u.T) - torch.eye(ec.DRAWS)).abs().max() < 0.08
    steps = ec.hash_uniform(index, torch.zeros(4000, dtype=torch.int64))[:, 0]
    assert abs(torch.corrcoef(torch.stack([steps[1:], steps[:-1]]))[0, 1]) < 0.06


# ---- sampling of seeds


def test_patch_energy_is_proportional_to_the_squared_gradient():
    """Stripes on two sides of an image, one with twice the contrast: four times the energy."""
    image = torch.zeros(1, 3, 16, 200)
    image[..., 30:70:4] = 0.2
    image[..., 130:170:4] = 0.4
    energy = ec.patch_energy(ec.integral_image(ec.squared_gradient(image)), 8, 0)
    left, right = energy[..., :96].sum(), energy[..., 96:].sum()
    assert_close((right / left).item(), 4.0, rtol=0.02, atol=0)
    assert not energy[..., 80:110].any(), "exactly 0"


@pytest.mark.parametrize("inset", [0, 1, 3])
def test_patch_energy_is_the_mean_of_the_squared_gradients(inset):
    """In loops over pixels, with replicated borders."""
    x = Rng(1).uniform(2, 3, 18, 21)
    found = ec.patch_energy(ec.integral_image(ec.squared_gradient(x)), 8, inset)
    assert found.shape == (2, 18 - 8 - 2 * inset + 1, 21 - 8 - 2 * inset + 1)
    for image, energies in zip(luma(x)[:, 0], found, strict=True):

        def at(row, column, image=image):
            return image[min(max(row, 0), 17), min(max(column, 0), 20)]

        for i, j in ((0, 0), (1, 3), (energies.shape[0] - 1, energies.shape[1] - 1)):
            energy = [
                (at(r, c + 1) - at(r, c - 1)) ** 2 + (at(r + 1, c) - at(r - 1, c)) ** 2
                for r in range(i + inset, i + inset + 8)
                for c in range(j + inset, j + inset + 8)
            ]
            assert_close(energies[i, j].float(), torch.stack(energy).mean())


def test_seed_positions_are_sampled_in_proportion_to_energy():
    x = torch.zeros(400, 3, 48, 48)
    x[:, :, :, :24:4] = 0.4
    x[:, :, :, 24::4] = 0.2
    x[:, :, 24:] = 0.5  # the lower half is empty
    method = with_seeds(Arrays("stripes", (x * 255).to(torch.uint8)), ec.Config(patch=8))
    row, column, side = method.box[:, 0].unbind(1)
    assert (row < 25).all()
    one = side == 8
    energy = ec.patch_energy(ec.integral_image(ec.squared_gradient(x[:1])), 8, 1)[0].sum(0)  # of each column
    expected = (energy * torch.arange(1, len(energy) + 1)).sum() / energy.sum()
    assert (
        one.sum() > 70 and abs(column[one].float().mean() - expected) < 2.5
    )  # uniform sampling would give 4 px more


def test_seeds_have_four_sizes_and_stay_0_625_of_their_side_from_the_border():
    """Released: equally likely sides of 32 / 0.8^k, centers of the smallest in the central 56 x 56 of 96 px."""
    method = with_seeds(noise(1600, 96), ec.Config(num_classes=1600))
    corner, side = method.box[:, 0, :2], method.box[:, 0, 2]
    assert sorted(side.unique().tolist()) == [32, 40, 50, 62]
    center = corner + side[:, None] / 2
    for one in (32, 40, 50, 62):
        of = center[side == one]
        assert 330 < len(of) < 470
        assert (of.min() - 0.625 * one).abs() < 2 and (96 - 0.625 * one - of.max()).abs() < 2
    of = center[side == 32]
    assert of.min() >= 20 and of.max() <= 76
    for axis in of.unbind(1):
        assert axis.histc(4, 20, 76).min() > 0.17 * len(of)


@pytest.mark.parametrize(("size", "sides"), [(32, [24]), (48, [32]), (64, [32, 40]), (96, [32, 40, 50, 62])])
def test_seeds_cover_at_most_three_quarters_of_the_side(size, sides):
    method = build(data.open(f"synthetic:64:{size}"), ec.Config())
    assert method.sides == sides and method.side == sides[0]
    for side in sides:
        assert ec.border_margin(side, size) >= 0 and 2 * ec.border_margin(side, size) + side < size


@pytest.mark.parametrize("size", range(11, 100, 7))
@pytest.mark.parametrize("patch", [8, 15, 32, 70])
def test_a_seed_fits_into_images_of_every_size(size, patch):
    side = min(patch, 3 * size // 4)
    assert 0 <= ec.border_margin(side, size) <= (size - side) // 2


def test_default_color_ranges_are_half_of_the_published_and_the_head_has_a_hidden_layer(source):
    ours, paper = ec.Config(), ec.Paper()
    assert {name: getattr(paper, name) for name in PUBLISHED} == PUBLISHED
    for name in ("pca_contrast", "hsv_power", "hsv_factor"):
        half = [math.log(x) / 2 for x in getattr(paper, name)]
        assert_close([math.log(x) for x in getattr(ours, name)], half, atol=0.01, rtol=0)
    assert ours.hsv_offset == paper.hsv_offset / 2
    assert [m.out_features for m in build(source, ours).head if isinstance(m, nn.Linear)] == [512, 64]
    assert [m.out_features for m in build(source, paper, "exemplar").head] == [64]


def test_too_small_images_are_a_user_error_that_gives_the_size():
    with pytest.raises(UserError, match="--size 11 or more"):
        requirements.check(
            ec.Config(), encoders.build("resnet_small:width=8", 3, 8), data.open("synthetic:64:8")
        )
    with pytest.raises(UserError, match="--patch 4 is out of range"):
        limits.check(ec.Config(patch=4))


# ---- distortions


def test_without_distortions_a_copy_is_the_seed_patch():
    source = noise(64, 48)
    method = with_seeds(source, ec.Config(patch=24, **NO_GEOMETRY, **NO_COLOR))
    b = batch(source, 64)
    made = method.pretext(b, Rng(1)).image
    for copy, image, (row, column, side) in zip(made, b.image, method.box[:, 0].tolist(), strict=True):
        patch = image[:, row : row + side, column : column + side] / 255
        resized = F.interpolate(patch[None], size=24, mode="bilinear")[0]
        assert_close(copy, resized, atol=2e-3, rtol=0)


def coordinates(config, n=300, size=96):
    """Source x and y of the pixels of copies (n, 2, p, p); the seeds' boxes; the random numbers."""
    method = with_seeds(noise(n, size, 1), config)
    down, across = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    ramp = torch.stack([across, down]).expand(n, -1, -1, -1)
    u = ec.hash_uniform(torch.arange(n), torch.arange(n)).T
    place = method.box[:, 0]
    return method.distort_geometry(ramp, place, u[:6]), place, u


@pytest.fixture
def no_halving(monkeypatch):
    """Disables the halved image, whose coordinates would be wrong near the border."""
    monkeypatch.setattr(ec, "MAX_REDUCTION", math.inf)


@pytest.mark.parametrize("size", [96, 160])
def test_copies_show_only_real_pixels_and_move_no_further_than_needed(size, no_halving):
    """In loops over corners: a copy that reaches beyond the image is moved inside, if it fits at all."""
    config = ec.Paper()
    at, places, numbers = coordinates(config, 600, size)
    moved = fitted = 0
    for copy, (row, column, side), u in zip(at, places.tolist(), numbers.T.tolist(), strict=True):
        length = side * 0.7 * 2 ** u[3]
        turn = math.radians(20) * (2 * u[2] - 1)
        middle = [
            column + side / 2 + 0.2 * side * (2 * u[0] - 1),
            row + side / 2 + 0.2 * side * (2 * u[1] - 1),
        ]
        corners = [
            (
                middle[0] + length / 2 * (a * math.cos(turn) - b * math.sin(turn)),
                middle[1] + length / 2 * (a * math.sin(turn) + b * math.cos(turn)),
            )
            for a in (-1, 1)
            for b in (-1, 1)
        ]
        low, high = ([pick(corner[i] for corner in corners) for i in (0, 1)] for pick in (min, max))
        if any(last - first > size for first, last in zip(low, high, strict=True)):
            continue
        away = [max(0, -first) - max(0, last - size) for first, last in zip(low, high, strict=True)]
        moved += any(away)
        fitted += 1
        expected = torch.tensor([m + a for m, a in zip(middle, away, strict=True)])
        assert_close(copy.mean((1, 2)), expected, atol=0.05, rtol=0)
        for axis in (1, 2):  # with reflected or repeated pixels, the steps would differ
            steps = copy.diff(dim=axis)
            assert (steps - steps.mean((1, 2), keepdim=True)).abs().max() < 0.3
    assert moved > 30 and (fitted == 600 if size == 160 else fitted > 450)


def test_large_copies_are_downscaled_without_aliasing():
    """Stripes of one pixel, against the mean of 8 x 8 samples per pixel."""
    x = torch.zeros(40, 1, 96, 96)
    x[..., ::2] = 1
    center, angle = torch.full((40, 2), 48.0), torch.linspace(-0.3, 0.3, 40)
    for factor, worst in ((2.7, 0.1), (1.6, 0.1)):
        side = torch.full((40,), 32 * factor)
        truth = F.avg_pool2d(ec.crop_rotated(x, center, side, angle, 256), 8)
        assert (ec.crop_rotated(x, center, side, angle, 32) - truth).square().mean().sqrt() < worst


def test_a_copy_does_not_depend_on_the_rest_of_the_batch():
    """Some are sampled from the halved image, others are not."""
    x, u = Rng(1).uniform(50, 3, 96, 96), Rng(2).uniform(50, 2)
    center, side, angle = 30 + 36 * u, 20 + 65 * u[:, 0], u[:, 1] - 0.5
    whole = ec.crop_rotated(x, center, side, angle, 32)
    for k in (0, 7, 49):
        alone = ec.crop_rotated(*(v[k : k + 1] for v in (x, center, side, angle)), 32)
        assert_close(alone[0], whole[k])


def test_translations_are_within_a_fifth_of_the_side_and_centered(no_halving):
    at, place, _ = coordinates(ec.Paper(scale=(1.0, 1.0), rotation=0.0), size=160)
    corner, side = place[:, :2].flip(1), place[:, 2:]
    moved = (at.mean((2, 3)) - corner - side / 2) / side
    assert 0.19 < moved.abs().max() <= 0.2 + 1e-3 and moved.mean().abs() < 0.015


def test_scales_are_log_uniform_in_their_range(no_halving):
    at, place, _ = coordinates(ec.Paper(translation=0.0, rotation=0.0), size=160)
    factor = (at[:, 0, 0, -1] - at[:, 0, 0, 0]) / 31 / (place[:, 2] / 32)
    assert 0.7 - 1e-3 <= factor.min() < 0.72 and 1.36 < factor.max() <= 1.4 + 1e-3
    assert abs(factor.log().mean() - math.log(0.7 * 1.4) / 2) < 0.03


def test_rotations_are_within_20_degrees_and_keep_shapes(no_halving):
    at, place, _ = coordinates(ec.Paper(translation=0.0, scale=(1.0, 1.0)), size=160)
    across, down = at[:, :, 0, -1] - at[:, :, 0, 0], at[:, :, -1, 0] - at[:, :, 0, 0]
    angle = torch.atan2(across[:, 1], across[:, 0]).rad2deg()
    assert 19 < angle.abs().max() <= 20 + 1e-2 and angle.mean().abs() < 2
    assert_close((across * down).sum(1), torch.zeros(len(at)), atol=1e-2, rtol=0)
    assert_close(across.norm(dim=1), 31 / 32 * place[:, 2].float(), atol=2e-2, rtol=0)


def test_color_distortion_is_the_same_for_all_pixels(source):
    """A constant image stays constant."""
    flat = Rng(1).uniform(32, 3, 1, 1).expand(-1, -1, 48, 48)
    method = build(source, ec.Config())
    out = method.pretext(Batch(torch.arange(32), (flat * 255).to(torch.uint8)), Rng(1)).image
    assert_close(out, out[..., :1, :1].expand_as(out), atol=1e-3, rtol=0)


def test_hue_wraps_around_and_saturation_and_value_are_clamped():
    red = torch.tensor([1.0, 0.05, 0.2]).view(1, 3, 1, 1).expand(64, 3, 4, 4)  # hue 0.97
    method = build(data.open("synthetic:64:48"), ec.Config(**PUBLISHED))
    u = torch.full((10, 64), 0.5)
    u[3:5], u[5:7] = 0.5, -math.log(0.7) / math.log(2)  # powers and factors of 1
    u[9] = 1.0  # 0.1 more hue
    hue, chroma, _ = rgb_to_hcv(method.distort_color(red, u))
    assert_close(hue / 6 % 1, torch.full_like(hue, (1 - 0.15 / 0.95 / 6 + 0.1) % 1), atol=2e-3, rtol=0)
    assert chroma.min() > 0.5
    extreme = method.distort_color(Rng(1).uniform(64, 3, 8, 8), Rng(2).uniform(10, 64).round())
    assert extreme.min() >= 0 and extreme.max() <= 1


def test_contrast_is_scaled_along_the_principal_axes_of_color(source):
    method = build(source, ec.Config(**NO_COLOR | {"pca_contrast": (0.5, 2.0)}))
    method.begin(context(source))
    assert_close(method.color_axes @ method.color_axes.T, torch.eye(3), atol=1e-5, rtol=0)
    u = torch.full((10, 1), 0.5)  # factor 1 on every axis
    u[0] = 1.0  # twice along the first
    x = method.color_mean.view(1, 3, 1, 1) + 0.01 * Rng(1).normal(1, 3, 8, 8)
    before, after = (
        torch.einsum("ad,bdhw->bahw", method.color_axes, y - method.color_mean.view(3, 1, 1))
        for y in (x, method.distort_color(x, u))
    )
    assert_close(after, before * torch.tensor([2.0, 1.0, 1.0]).view(3, 1, 1), atol=1e-4, rtol=0)


def test_grayscale_images_are_distorted_too():
    source = data.open("synthetic:64:48", channels=1)
    method = build(source, ec.Config())
    method.begin(context(source))
    image = method.pretext(batch(source), Rng(1)).image
    assert image.shape[1] == 1 and image.min() >= 0 and image.max() <= 1


# ---- merging of classes


def test_identical_seeds_are_merged_into_one_class():
    one = Rng(1).integers(20, 3, 48, 48, high=256).to(torch.uint8)
    duplicates = Arrays("duplicates", torch.cat([one, one]))
    method = build(
        duplicates, ec.Clustered()
    ).train()  # before `begin` all seeds are in the center, so duplicates have the same patch
    before = method.head[-1].weight.clone()
    method.begin_epoch(context(duplicates, cycle=0))
    assert len(method.label.unique()) == 40
    pairs = method.label.view(2, 20).T.clone()
    method.begin_epoch(context(duplicates, cycle=1))
    now = method.label.view(2, 20)
    assert torch.equal(now[0], now[1]) and sorted(now[0].tolist()) == list(range(20))
    assert_close(method.head[-1].weight[now[0]], before[pairs].mean(1))
    assert method.logits(method.pretext(batch(duplicates), Rng(1))).shape == (16, 20)


def test_different_seeds_are_not_merged(source):
    method = build(source, ec.Clustered(merge_threshold=1.01))
    method.begin_epoch(context(source, cycle=1))
    assert len(method.label.unique()) == 64


# ---- the objective


def jensen(method, source, copies=40):
    """E log‖exp(logits)‖₁ − log‖exp(E logits)‖₁ over copies of a seed, the mean over seeds."""
    b = batch(source)
    with torch.no_grad():
        logits = torch.stack([method.eval().logits(method.pretext(b, Rng(k))) for k in range(copies)])
    return (logits.logsumexp(-1).mean(0) - logits.mean(0).logsumexp(-1)).mean().item()


def test_the_invariance_term_of_the_objective_is_nonnegative(source):
    """The second bracket of the objective's limit, by Jensen's inequality."""
    method = build(source, ec.Config())
    assert jensen(method, source) > 0
    still = build(source, ec.Config(**NO_GEOMETRY, **NO_COLOR))
    assert abs(jensen(still, source)) < 1e-5


# ---- the paper recipe


RELEASED = {
    "encoder.net.conv1.0": ((64, 3, 5, 5), 0.05, 0.1, 1.0, 0.0),
    "encoder.net.conv2.0": ((128, 64, 5, 5), 0.02, 0.1, 1.0, 0.0),
    "encoder.net.conv3.0": ((256, 128, 5, 5), 0.01, 0.1, 1.0, 0.25),
    "encoder.net.fc.0": ((512, 256, 8, 8), 0.01, 0.1, 1.0, 1.0),
    "head.0": ((64, 512), 0.005, 0.0, 0.25, 4.0),
}
"""template/train.prototxt: shape, std of the weights, bias, blobs_lr and weight_decay of the weights; of every bias 2 and 0"""


def test_paper_network_has_the_released_initialization_rates_and_weight_decay():
    config = ec.Paper()
    source = data.open("synthetic:64:96")
    method = build(source, config, "exemplar")
    (optimizer,) = method.optimizers(config.train)
    known = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    named = dict(method.named_parameters())
    assert named.keys() == {f"{layer}.{part}" for layer in RELEASED for part in ("weight", "bias")}
    for layer, (shape, std, bias, rate, decay) in RELEASED.items():
        weight, other = named[f"{layer}.weight"], named[f"{layer}.bias"]
        assert weight.shape == shape and abs(weight.mean()) < 0.05 * std
        assert weight.std().item() == pytest.approx(std, rel=0.05)
        assert (other == bias).all()
        assert known[id(weight)] == pytest.approx((0.01 * rate, 0.004 * decay))
        assert known[id(other)] == pytest.approx((0.02, 0.0))
    assert optimizer.defaults["momentum"] == 0.9 and not optimizer.defaults["nesterov"]


def test_paper_learning_rates_follow_the_released_script():
    """train_nn_pretrain_distr.sh … 1 … 1200000 0.01: the number of steps at each rate."""
    phases = [(1_200_000, 0.01), (120_000, 0.004), (120_000, 0.001), (60_000, 0.0004), (60_000, 0.0001)]
    train, steps, step = ec.Paper().train, sum(count for count, _ in phases), 0
    assert (100_000 // train.batch) * train.epochs == pytest.approx(steps, rel=1e-3)  # of STL-10's images
    for count, rate in phases:
        for at in (step + 100, step + count - 100):
            assert train.lr * lr_factor(train, at / steps) == pytest.approx(rate)
        step += count


def test_train_config_survives_a_json_round_trip():
    for config in (ec.Config, ec.Paper):
        card = json.loads(json.dumps(dataclasses.asdict(config.train)))
        assert formats.instance(TrainConfig, card, "train", []) == config.train


def test_other_encoders_get_the_published_rates(source):
    method = build(source, ec.Paper(), "resnet_small:width=8")
    (optimizer,) = method.optimizers(ec.Paper.train)
    sizes = [sum(p.numel() for p in g["params"]) for g in optimizer.param_groups]
    assert sum(sizes) == sum(p.numel() for p in method.parameters())
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.0025, 0.01, 0.02])


def test_paper_network_has_3x3_pooling_and_divides_bytes_by_256():
    encoder = encoders.build("exemplar", 3, 96)
    assert sum(p.numel() for p in encoder.parameters()) == 4_864 + 204_928 + 819_456 + 8_389_120
    pools = [m for m in encoder.modules() if isinstance(m, nn.MaxPool2d)]
    assert [(m.kernel_size, m.stride, m.ceil_mode) for m in pools] == [(3, 2, True)] * 2
    assert encoder.sides == {
        "conv1": 48,
        "conv2": 24,
        "conv3": 24,
        "fc": 17,
    }  # test_conv_STL.prototxt's quadrants
    x = Rng(1).integers(1, 3, 4, 4, high=256).float()
    assert_close(encoder.normalized(x / 255), (x - 127.5) * 0.00390625)


def test_a_preview_shows_sampled_seeds(monkeypatch):
    begun = []
    monkeypatch.setattr(ec.ExemplarCNN, "begin", lambda self, context: begun.append(len(context.source)))
    preview.preview("synthetic:600:32", ec.Config(), "puzzles")
    assert begun == [500]


def test_paper_network_accepts_whole_images():
    net = encoders.build("exemplar", 3, 96).eval()
    stages = net(torch.zeros(1, 3, 96, 96))
    assert [s.shape[1] for s in stages.values()] == [64, 128, 256, 512, 512]
    assert net(torch.zeros(1, 3, 32, 32))["fc"].shape[-2:] == (1, 1)


def test_classes_are_merged_once_per_round_in_an_extended_run(source, monkeypatch):
    method, merged = build(source, ec.Clustered()), []
    monkeypatch.setattr(method, "merge_classes", lambda context: merged.append(context.progress.cycle))
    plan = Plan.of(20, 1, 4).changed(6, 126)
    for step in range(126):
        method.begin_epoch(Context(source, [], plan.at(step), Rng(0, "begin")))
    assert merged == [1, 2, 3]
