"""Colorization as a proxy task (Larsson et al. 2016 and 2017): targets, loss, hypercolumns and predicted images."""

import cmath
import colorsys
import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from pretask import data, encoders
from pretask.encoders import classic
from pretask.methods import color_proxy as cp
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.transforms.color import channel_mean, rgb_to_hcv, rgb_to_lab, tint
from pretask.types import Batch, UserError

HISTOGRAMS = ("hue_chroma", "lab_histogram")


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:64:32")


def build(source, config=None, encoder="resnet_small:width=16,wide=32"):
    torch.manual_seed(0)
    config = config or cp.Config()
    return config.build(encoders.build(config.spec(encoder), source.channels, source.size), source)


def randomized(method):
    """The method in eval mode, with outputs that differ between locations; at initialization they hardly do."""
    torch.manual_seed(1)
    torch.nn.init.normal_(method.hidden.weight, std=0.1)
    return method.eval()


def batch(source, n=16):
    return source.__getitems__(torch.arange(n))


def constant_images(*rgb, side=32, n=2):
    """A batch of images of a single color."""
    pixel = (255 * torch.tensor(rgb)).round().to(torch.uint8).view(1, 3, 1, 1)
    return Batch(torch.arange(n), pixel.expand(n, 3, side, side).clone())


def bin_of(histogram):
    assert (histogram.sum(-1) == 1).all() and ((histogram == 0) | (histogram == 1)).all()
    return histogram.argmax(-1)


# ---- the targets


@pytest.mark.parametrize(
    ("rgb", "hue", "chroma"),
    [
        ((1.0, 0.0, 0.0), 0, 31),
        ((0.0, 1.0, 0.0), 10, 31),
        ((0.0, 0.0, 1.0), 21, 31),
        ((1.0, 0.0, 0.01), 31, 31),  # just below a full circle
        ((0.2, 0.2, 0.2), 0, 0),
        ((0.0, 0.0, 0.0), 0, 0),
        ((1.0, 1.0, 1.0), 0, 0),
    ],
)
def test_known_colors_are_in_the_expected_bins(source, rgb, hue, chroma):
    p = build(source).pretext(constant_images(*rgb), Rng(1))
    found = bin_of(p.target)
    assert (found[..., 0] == hue).all() and (found[..., 1] == chroma).all()


def test_hue_and_chroma_match_colorsys(source):
    x = augment.to_float(batch(source, 2).image)[:, :, ::3, ::3]
    for image, values in zip(x, cp.color_values(x, "hue_chroma"), strict=True):
        for rgb, (hue, chroma) in zip(image.flatten(1).T.tolist(), values.flatten(1).T.tolist(), strict=True):
            difference = abs(colorsys.rgb_to_hsv(*rgb)[0] - hue)
            assert min(difference, 1 - difference) < 1e-5 and abs(max(rgb) - min(rgb) - chroma) < 1e-6


@pytest.mark.parametrize("targets", HISTOGRAMS)
@pytest.mark.parametrize("window", [1, 3, 7])
def test_histograms_sum_to_1_and_depend_only_on_the_window(source, targets, window):
    method = build(source, cp.Config(targets=targets, window=window))
    p = method.pretext(batch(source), Rng(1))
    assert p.target.shape == (16, 16, 2, 32)
    assert_close(p.target.sum(-1), torch.ones(16, 16, 2))
    row, column = p.location[3, 5].tolist()
    values = cp.color_values(p.image, targets)
    changed, half = torch.full_like(values, 0.123), window // 2
    inside = (3, slice(None), slice(row - half, row + half + 1), slice(column - half, column + half + 1))
    changed[inside] = values[inside]
    assert torch.equal(cp.histograms(changed, p.location, window)[3, 5], p.target[3, 5])


def test_locations_are_uniform_within_the_margin_and_drawn_per_image(source):
    method = build(source, cp.Config(side=1.0))
    many = Batch(torch.arange(1000), batch(source, 50).image.repeat(20, 1, 1, 1))
    location = method.pretext(many, Rng(1)).location
    low, high = 5, 27  # 32 of 224 px are 5 of 32
    assert location.dtype == torch.int64 and location.min() == low and location.max() == high - 1
    expected = location[..., 0].numel() / (high - low)
    for axis in (0, 1):
        counts = (location[..., axis].flatten() - low).bincount(minlength=high - low)
        assert (counts - expected).abs().max() < 5 * math.sqrt(expected)
    assert abs(torch.corrcoef(location.flatten(0, 1).T.float())[0, 1]) < 0.03
    assert (location[1:] != location[:1]).flatten(1).any(1).all()
    assert not torch.equal(location, method.pretext(many, Rng(2)).location)


# ---- the loss


def slow_loss(p, answers, window):
    """The paper's formula in loops over pixels and bins."""
    hue_loss = chroma_loss = 0.0
    b, n = p.location.shape[:2]
    for i in range(b):
        for j in range(n):
            row, column = p.location[i, j].tolist()
            of_hue, of_chroma = [0.0] * 32, [0.0] * 32
            for y in range(row - window // 2, row + window // 2 + 1):
                for x in range(column - window // 2, column + window // 2 + 1):
                    r, g, b_ = p.image[i, :, y, x].tolist()
                    of_hue[int(32 * 0.99999 * colorsys.rgb_to_hsv(r, g, b_)[0])] += 1 / window**2
                    of_chroma[int(32 * 0.99999 * (max(r, g, b_) - min(r, g, b_)))] += 1 / window**2
            r, g, b_ = p.image[i, :, row, column].tolist()
            gray = (r + g + b_) / 3

            def divergence(truth, logits):
                total = math.log(sum(math.exp(v) for v in logits))
                return sum(
                    t * (math.log(t) - v + total) for t, v in zip(truth, logits, strict=True) if t > 1e-9
                )

            hue, chroma = answers[i, j].tolist()
            hue_loss += 5 * (max(r, g, b_) - min(r, g, b_)) * divergence(of_hue, hue)
            chroma_loss += min(1, 3 * min(gray, 1 - gray)) * divergence(of_chroma, chroma)
    return hue_loss / (b * n), chroma_loss / (b * n)


@pytest.mark.parametrize("window", [1, 3])
def test_loss_matches_the_paper_formula(source, window):
    method = randomized(build(source, cp.Config(window=window)))
    p = method.pretext(batch(source, 6), Rng(1))
    with torch.no_grad():
        answers = 10 * method.outputs(cp.feature_maps(method.encoder, p.gray), p.location)
        method.outputs = lambda *_: answers
        loss = method.loss(p)
    hue, chroma = slow_loss(p, answers, window)
    assert_close(loss.parts["hue"].item(), hue, rtol=1e-3, atol=1e-3)
    assert_close(loss.parts["chroma"].item(), chroma, rtol=1e-3, atol=1e-3)
    assert_close(loss.total, loss.parts["hue"] + loss.parts["chroma"])


def test_regression_loss_is_the_squared_error_of_ab_in_units_of_14(source):
    method = randomized(build(source, cp.Config(targets="lab")))
    p = method.pretext(batch(source, 4), Rng(1))
    ab, total = rgb_to_lab(p.image)[:, 1:], 0.0
    with torch.no_grad():
        answers = method.outputs(cp.feature_maps(method.encoder, p.gray), p.location)
        for i in range(4):
            for j, (row, column) in enumerate(p.location[i].tolist()):
                total += (ab[i, :, row, column] / 14 - answers[i, j, :, 0]).square().sum().item()
        loss = method.loss(p)
    assert_close(loss.total.item(), total / p.location[..., 0].numel(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [cp.Config(), cp.Config(hidden=1024, num_locations=128)])
def test_initial_predictions_are_uniform(source, config):
    method = build(source, config)
    p = method.pretext(batch(source, 16), Rng(1))
    p = dataclasses.replace(p, weight=torch.ones_like(p.weight))
    with torch.no_grad():
        parts = method.loss(p).parts
    assert abs(parts["chroma"] / math.log(32) - 1) < 0.01
    assert abs(parts["hue"] / math.log(32) - 1) < 0.01
    q = method.pretext(batch(source, 16), Rng(1))
    chroma = torch.stack([cp.color_values(q.image, "hue_chroma")[i, 1, *q.location[i].T] for i in range(16)])
    with torch.no_grad():
        assert abs(method.loss(q).parts["hue"] / (5 * chroma.mean() * math.log(32)) - 1) < 0.01


def test_hue_weight_is_0_for_gray_and_5_at_full_chroma(source):
    method = randomized(build(source))
    loss = method.loss(method.pretext(constant_images(0.5, 0.5, 0.5), Rng(1)))
    loss.total.backward()
    assert loss.parts["hue"] == 0 and loss.parts["chroma"] > 0
    assert not method.heads["hue"].weight.grad.any() and not method.heads["hue"].bias.grad.any()
    assert method.heads["chroma"].weight.grad.any()
    full = method.pretext(constant_images(1.0, 0.0, 0.0), Rng(1)).weight[..., 0]
    assert_close(full, torch.full_like(full, 5.0))


def test_chroma_weight_falls_to_0_at_black_and_white(source):
    assert_close(
        cp.chroma_weight(torch.tensor([0.1, 0.5, 0.0, 1.0, 0.9])), torch.tensor([0.3, 1.0, 0.0, 0.0, 0.3])
    )
    p = build(source).pretext(constant_images(0.2, 0.2, 0.2), Rng(1))
    assert_close(p.weight[..., 1], torch.full((2, 16), 0.6), atol=1e-5, rtol=0)


def test_losses_of_two_half_batches_average_to_that_of_the_whole(source):
    method = randomized(build(source))
    p = method.pretext(batch(source), Rng(1))
    fields = {f.name: getattr(p, f.name).split(8) for f in dataclasses.fields(p)}
    halves = [cp.Sampled(**{name: parts[i] for name, parts in fields.items()}) for i in (0, 1)]
    with torch.no_grad():
        assert_close(torch.stack([method.loss(h).total for h in halves]).mean(), method.loss(p).total)


# ---- hypercolumns


def dense(x, stride, side):
    """A feature map upsampled to the image in loops over pixels: (B, D, h, w) -> (B, D, side, side)."""
    out = torch.zeros(*x.shape[:2], side, side)
    for row in range(side):
        for column in range(side):
            y, z = (min(v / stride, n - 1) for v, n in zip((row, column), x.shape[-2:], strict=True))
            top, left = min(int(y), x.shape[-2] - 1), min(int(z), x.shape[-1] - 1)
            bottom, right = min(top + 1, x.shape[-2] - 1), min(left + 1, x.shape[-1] - 1)
            u, v = y - top, z - left
            upper = (1 - v) * x[:, :, top, left] + v * x[:, :, top, right]
            lower = (1 - v) * x[:, :, bottom, left] + v * x[:, :, bottom, right]
            out[:, :, row, column] = (1 - u) * upper + u * lower
    return out


def test_sparse_hypercolumns_equal_dense_ones_at_the_same_location():
    side = 28  # no multiple of 8
    source = data.open(f"synthetic:64:{side}")
    method = build(source, cp.Config(side=1.0)).eval()
    p = method.pretext(batch(source, 2), Rng(1))
    location = torch.cat(
        [p.location, torch.tensor([[0, 0], [side - 1, 3], [2, side - 1]]).expand(2, -1, -1)], 1
    )
    with torch.no_grad():
        layers = cp.feature_maps(method.encoder, p.gray)
        sparse = cp.hypercolumns(layers, method.strides, location)
    steps = [1, 2, 2, 4, 8, 8]  # the image, the stem, three stages, the wide layer
    whole = torch.cat([dense(x, stride, side) for x, stride in zip(layers, steps, strict=True)], 1)
    expected = torch.stack([whole[i, :, location[i, :, 0], location[i, :, 1]].T for i in range(2)])
    assert sparse.shape == (2, 19, 1 + 16 + 16 + 32 + 64 + 32)
    assert_close(sparse, expected, atol=1e-5, rtol=1e-5)


def test_hypercolumn_of_a_ramp_is_the_location_divided_by_the_stride():
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    ramp = torch.stack([rows, columns])[None]  # cells hold their own coordinates
    location = torch.tensor([[[0, 0], [3, 5], [13, 8], [32, 24], [35, 27]]])
    read = cp.hypercolumns([ramp], [4.0], location)
    last = torch.tensor([8.0, 6.0])
    assert_close(read, torch.minimum(location / 4, last))
    assert_close(
        cp.hypercolumns([torch.full((1, 2, 1, 1), 3.0)], [64.0], location), torch.full((1, 5, 2), 3.0)
    )


@pytest.mark.parametrize(
    ("encoder", "size", "expected"),
    [
        ("resnet_small:width=8", 32, [1, 2, 2, 4, 8]),
        ("resnet_small:width=8", 44, [1, 2, 2, 4, 8]),
        ("resnet18", 48, [1, 2, 4, 8, 16, 32]),
        ("vit_tiny_patch16_224:patch_size=8,depth=4", 32, [1, 8, 8, 8, 8]),
        (
            "color_vgg16:width=2,wide=4",
            64,
            [1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32],
        ),
    ],
)
def test_measured_strides_are_those_of_the_network(encoder, size, expected):
    built = encoders.build(f"{encoder}{',' if ':' in encoder else ':'}sees=mean", 3, size).eval()
    with torch.no_grad():
        assert cp.feature_strides(built) == expected


def test_paper_hypercolumn_has_12416_channels():
    with torch.device("meta"):
        net = classic.color_vgg16()
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(c.out_channels for c in convolutions) == 12416
    assert [c.kernel_size[0] for c in convolutions] == [3] * 13 + [7, 1]


def test_paper_network_has_dropout_in_fc6_and_fc7_only_in_training():
    """train_vgg16.prototxt: dropout_ratio 0.5 after the ReLUs of fc6 and fc7."""
    torch.manual_seed(0)
    net = encoders.build("color_vgg16:width=4,wide=256", 1, 96)
    image, zeros = torch.rand(8, 1, 96, 96), {}
    for training in (True, False):
        with torch.no_grad():
            stages = net.train(training)(image)
        zeros[training] = {name: (x == 0).float().mean().item() for name, x in stages.items()}
    for name in zeros[True]:
        twice = name in ("fc6", "fc7")  # zero by ReLU or by dropout
        assert zeros[True][name] == pytest.approx(0.75 if twice else 0.5, abs=0.1) or name == "pool", name
    with torch.no_grad():
        assert torch.equal(net(image)["fc7"], net(image)["fc7"])


def test_paper_network_input_is_the_channel_mean_minus_the_released_mean():
    """train_vgg16.prototxt: 0 to 1, shift -0.4488, then the mean of three channels."""
    encoder = encoders.build("color_vgg16:width=4,wide=16,sees=mean", 3, 48).eval()
    seen, image = [], torch.rand(2, 3, 48, 48)
    first = next(m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        encoder(image)
    assert_close(seen[0], ((image - 0.4488).sum(1, keepdim=True) / 3))


def test_paper_network_is_initialized_by_caffes_xavier():
    """Uniform within sqrt(3 / fan-in)."""
    torch.manual_seed(0)
    net = classic.color_vgg16(width=16, wide=64)
    for layer in (m for m in net.modules() if isinstance(m, torch.nn.Conv2d)):
        inputs = layer.weight[0].numel()
        assert layer.weight.abs().max() <= math.sqrt(3 / inputs)
        assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(inputs), rel=0.1)


def test_training_computes_hypercolumns_only_at_the_sampled_locations(source):
    method, seen = build(source), []
    method.hidden.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    method.loss(method.pretext(batch(source), Rng(1)))
    assert seen == [(16, 16, 1 + 16 + 16 + 32 + 64 + 32)]


def test_network_input_has_no_color(source):
    """Permuted channels, or shifted hues of the same mean: the targets differ, the outputs do not."""
    method = randomized(build(source))
    x = augment.to_float(batch(source).image)
    p = method.pretext(batch(source), Rng(1))
    hue, chroma, _ = rgb_to_hcv(p.image)
    shifted = tint(channel_mean(p.image), hue + 2.5, chroma)
    with torch.no_grad():
        own, pool = (
            method.outputs(cp.feature_maps(method.encoder, p.gray), p.location),
            method.export()(p.image)["pool"],
        )
        assert own.std((0, 1)).max() > 1e-3
        assert_close(method.export()(shifted)["pool"], pool, atol=1e-4, rtol=1e-4)
        assert (shifted - p.image).abs().max() > 0.1
        swapped = Batch(torch.arange(16), (255 * x[:, [2, 0, 1]]).round().to(torch.uint8))
        q = method.pretext(swapped, Rng(1))
        assert_close(q.gray, p.gray)
        assert not torch.equal(q.target, p.target)
        assert_close(
            method.outputs(cp.feature_maps(method.encoder, q.gray), q.location), own, atol=1e-4, rtol=1e-4
        )
        blind = dataclasses.replace(p, image=torch.zeros_like(p.image), target=torch.zeros_like(p.target))
        assert torch.equal(method.predict(blind)["image"], method.predict(p)["image"])


# ---- predicted images


def test_tint_by_its_own_hue_and_chroma_recovers_an_image(source):
    x = augment.to_float(batch(source).image)
    hue, chroma = cp.color_values(x, "hue_chroma").unbind(1)
    assert_close(tint(channel_mean(x), 6 * hue, chroma), x, atol=1e-5, rtol=0)


def test_tint_keeps_the_mean_and_stays_in_range():
    gray, hue, chroma = Rng(1).uniform(4, 1, 8, 8), 6 * Rng(2).uniform(4, 8, 8), Rng(3).uniform(4, 8, 8)
    x = tint(gray, hue, chroma)
    assert x.min() > -1e-6 and x.max() < 1 + 1e-6
    assert_close(channel_mean(x), gray)
    again = rgb_to_hcv(x)[1]
    assert (again <= chroma + 1e-5).all() and ((again - chroma).abs() < 1e-5).any()


@pytest.mark.parametrize("targets", ["hue_chroma", "lab_histogram", "lab"])
def test_true_targets_recover_the_image(source, targets):
    method = build(source, cp.Config(targets=targets, side=1.0)).eval()
    p = method.pretext(batch(source, 4), Rng(1))
    every = torch.cartesian_prod(torch.arange(32), torch.arange(32)).expand(4, -1, -1)
    values = cp.color_values(p.image, targets)
    right = (
        values.flatten(2).transpose(1, 2)[..., None]
        if targets == "lab"
        else cp.histograms(values, every, 1).clamp(min=1e-9).log()
    )
    queried = []

    def outputs(maps, location):
        queried.append(location)
        return right[:, (32 * location[0, :, 0] + location[0, :, 1]).round().long()]

    method.outputs = outputs
    with torch.no_grad():
        predicted = method.predict(p)["image"]
    assert_close(torch.cat(queried, 1), every.float(), atol=1e-4, rtol=0)
    assert_close(channel_mean(predicted), p.gray, atol=1e-5, rtol=0)
    error = (predicted - p.image).abs()
    assert error.mean() < 0.02 and (targets == "lab_histogram" or error.max() < 0.12)


def test_a_uniform_hue_distribution_fades_to_gray(source):
    method = build(source).eval()
    color = method.expected_color(torch.zeros(1, 32 * 32, 2, 32)).transpose(1, 2).view(1, 3, 32, 32)
    gray = torch.full((1, 1, 32, 32), 0.5)
    assert_close(method.apply_color(gray, color), gray.expand(1, 3, 32, 32), atol=1e-4, rtol=0)


def test_chroma_fades_with_the_length_of_the_mean_hue_vector(source):
    """From the released decoder: |Σ p e^iθ / 32| relative to 0.03, so that a hue spread over half of the circle keeps two
    thirds of its chroma; a threshold on the sum would keep all of it."""
    method = build(source).eval()
    answers = torch.full((1, 3, 2, 32), -30.0)
    answers[0, 0, 0, 5] = answers[0, 1, 0, 4:20] = answers[0, 2, 0, 4:28] = (
        0.0  # 1 bin, 1/2 and 3/4 of the circle
    )
    answers[0, :, 1, 9] = 0.0  # a chroma of 9.5 / 32
    color = method.expected_color(answers).transpose(1, 2).view(1, 3, 1, 3)
    predicted = method.apply_color(torch.full((1, 1, 1, 3), 0.5), color)
    for place, bins in enumerate((range(5, 6), range(4, 20), range(4, 28))):
        total = sum(cmath.exp(2j * math.pi * (k + 0.5) / 32) / len(bins) for k in bins)
        fading = min(1.0, abs(total / 32) / 0.03)
        chroma = predicted[0, :, 0, place].amax() - predicted[0, :, 0, place].amin()
        assert chroma.item() == pytest.approx(9.5 / 32 * fading, abs=1e-4)


# ---- recipes and user errors


def test_paper_crops_are_squares_of_images_enlarged_by_a_uniform_factor():
    """Pixels hold their row and column: both increase by 352 / s per pixel, s uniform from 352 to 600 (2016)."""
    at = torch.arange(64, dtype=torch.uint8)
    grid = torch.stack([at[:, None].expand(64, 64), at.expand(64, 64), 0 * at.expand(64, 64)])
    batch = Batch(torch.arange(400), grid.expand(400, 3, 64, 64))
    method = build(data.open("synthetic:4:64"), cp.Paper(), "resnet_small:width=4")
    shown = 255 * method.pretext(batch, Rng(1)).image
    inner = slice(8, 56)  # without the border
    down = shown[:, 0, inner].diff(dim=1).mean((1, 2))
    right = shown[:, 1, :, inner].diff(dim=2).mean((1, 2)).abs()
    assert_close(down, right, atol=2e-3, rtol=0)
    side = (352 / down).sort().values
    assert_close(side, torch.linspace(352, 600, 400), atol=25, rtol=0)  # Kolmogorov: 0.1 of 248


def test_unstretched_crop_of_the_whole_area_is_the_image(source):
    method = build(source, cp.Config(stretch=False, crop=1.0, side=1.0))
    p, x = method.pretext(batch(source), Rng(1)), augment.to_float(batch(source).image)
    same, flipped = ((p.image - y).abs().amax((1, 2, 3)) < 1e-4 for y in (x, x.flip(3)))
    assert (same | flipped).all() and same.any() and flipped.any()


def test_head_has_its_own_weight_decay_and_groups_hold_all_parameters(source):
    method = build(source)
    groups = list(method.groups())
    assert sorted(id(w) for g in groups for w in g["params"]) == sorted(map(id, method.parameters()))
    head = [id(w) for g in groups if g.get("weight_decay") == 1e-6 for w in g["params"]]
    assert set(head) == {id(m.weight) for m in (method.hidden, *method.heads.values())}


def test_paper_recipe_matches_the_released_code():
    c = cp.Paper()
    assert (c.num_locations, c.window, c.hidden, c.encoder, c.sees) == (128, 7, 1024, "color_vgg16", "mean")
    t = c.train
    assert (t.optimizer, t.lr, t.momentum, t.weight_decay, t.batch) == ("sgd", 1e-3, 0.9, 5e-4, 8)
    assert [2.0 * at for at in t.milestones] == [1.0, 1.5, 1.75]  # million steps


def test_paper_head_has_biases_at_twice_the_rate_and_caffes_xavier(source):
    method = build(source, cp.Paper())
    for group in method.optimizers(cp.Paper.train)[0].param_groups:
        vectors = {p.ndim for p in group["params"]} == {1}
        assert group["lr"] == pytest.approx(2e-3 if vectors else 1e-3)
        assert group["weight_decay"] in ({0.0} if vectors else {5e-4, cp.HEAD_DECAY})
        assert group["momentum"] == 0.9 and not group["nesterov"]
    for head in method.heads.values():
        bound = math.sqrt(3 / 1024)
        assert 0.95 * bound < head.weight.abs().max() <= bound and not head.bias.any()
    assert method.hidden.weight.std().item() == pytest.approx(1e-4, rel=0.05)


def test_grayscale_sources_and_encoders_without_maps_are_user_errors(source):
    with pytest.raises(UserError, match="1 channel"):
        build(data.open("synthetic:64:32", channels=1))
    with pytest.raises(UserError, match="needs feature maps"):
        build(source, encoder="mlp:width=8")
