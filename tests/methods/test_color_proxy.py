"""What colour as a proxy task must show (Larsson et al. 2016 and 2017): its colours, its costs, and where it reads."""

import cmath
import colorsys
import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from pretask import data as sources
from pretask import encoders
from pretask.encoders import classic
from pretask.methods import color_proxy as cp
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, UserError

HISTOGRAMS = ("hue_chroma", "lab_histogram")


@pytest.fixture(scope="module")
def source():
    return sources.open("synthetic:64:32")


def made(source, config=None, encoder="resnet_small:width=16,wide=32"):
    torch.manual_seed(0)
    config = config or cp.Config()
    return config.build(encoders.build(config.spec(encoder), source.channels, source.size), source)


def woken(method):
    """The method in evaluation, with answers that differ from place to place; at the start they hardly do."""
    torch.manual_seed(1)
    torch.nn.init.normal_(method.hidden.weight, std=0.1)
    return method.eval()


def batch(source, n=16):
    return source.__getitems__(torch.arange(n))


def of_colour(*rgb, side=32, n=2):
    """A batch of images of one colour."""
    pixel = (255 * torch.tensor(rgb)).round().to(torch.uint8).view(1, 3, 1, 1)
    return Batch(torch.arange(n), pixel.expand(n, 3, side, side).clone())


def bin_of(histogram):
    assert (histogram.sum(-1) == 1).all() and ((histogram == 0) | (histogram == 1)).all()
    return histogram.argmax(-1)


# ---- the answers


@pytest.mark.parametrize(
    ("rgb", "hue", "chroma"),
    [
        ((1.0, 0.0, 0.0), 0, 31),
        ((0.0, 1.0, 0.0), 10, 31),
        ((0.0, 0.0, 1.0), 21, 31),
        ((1.0, 0.0, 0.01), 31, 31),  # just below a full turn
        ((0.2, 0.2, 0.2), 0, 0),
        ((0.0, 0.0, 0.0), 0, 0),
        ((1.0, 1.0, 1.0), 0, 0),
    ],
)
def test_known_colours_fall_into_their_bins(source, rgb, hue, chroma):
    p = made(source).pretext(of_colour(*rgb), Rng(1))
    found = bin_of(p.target)
    assert (found[..., 0] == hue).all() and (found[..., 1] == chroma).all()


def test_hue_and_chroma_are_those_of_hsv(source):
    x = images.to_float(batch(source, 2).image)[:, :, ::3, ::3]
    for image, values in zip(x, cp.coordinates(x, "hue_chroma"), strict=True):
        for rgb, (hue, chroma) in zip(image.flatten(1).T.tolist(), values.flatten(1).T.tolist(), strict=True):
            apart = abs(colorsys.rgb_to_hsv(*rgb)[0] - hue)
            assert min(apart, 1 - apart) < 1e-5 and abs(max(rgb) - min(rgb) - chroma) < 1e-6


@pytest.mark.parametrize("targets", HISTOGRAMS)
@pytest.mark.parametrize("window", [1, 3, 7])
def test_histograms_sum_to_one_in_the_window_alone(source, targets, window):
    method = made(source, cp.Config(targets=targets, window=window))
    p = method.pretext(batch(source), Rng(1))
    assert p.target.shape == (16, 16, 2, 32)
    assert_close(p.target.sum(-1), torch.ones(16, 16, 2))
    row, column = p.at[3, 5].tolist()
    values = cp.coordinates(p.image, targets)
    changed, half = torch.full_like(values, 0.123), window // 2
    inside = (3, slice(None), slice(row - half, row + half + 1), slice(column - half, column + half + 1))
    changed[inside] = values[inside]
    assert torch.equal(cp.histograms(changed, p.at, window)[3, 5], p.target[3, 5])


def test_places_are_uniform_within_the_margin_and_every_images_own(source):
    method = made(source, cp.Config(side=1.0))
    many = Batch(torch.arange(1000), batch(source, 50).image.repeat(20, 1, 1, 1))
    at = method.pretext(many, Rng(1)).at
    low, high = 5, 27  # 32 of 224 px are 5 of 32
    assert at.dtype == torch.int64 and at.min() == low and at.max() == high - 1
    expected = at[..., 0].numel() / (high - low)
    for axis in (0, 1):
        counts = (at[..., axis].flatten() - low).bincount(minlength=high - low)
        assert (counts - expected).abs().max() < 5 * math.sqrt(expected)
    assert abs(torch.corrcoef(at.flatten(0, 1).T.float())[0, 1]) < 0.03
    assert (at[1:] != at[:1]).flatten(1).any(1).all()
    assert not torch.equal(at, method.pretext(many, Rng(2)).at)


# ---- the loss


def slow_loss(p, answers, window):
    """Pixel by pixel and bin by bin, as the paper prints it."""
    hue_cost = chroma_cost = 0.0
    b, n = p.at.shape[:2]
    for i in range(b):
        for j in range(n):
            row, column = p.at[i, j].tolist()
            of_hue, of_chroma = [0.0] * 32, [0.0] * 32
            for y in range(row - window // 2, row + window // 2 + 1):
                for x in range(column - window // 2, column + window // 2 + 1):
                    r, g, b_ = p.image[i, :, y, x].tolist()
                    of_hue[int(32 * 0.99999 * colorsys.rgb_to_hsv(r, g, b_)[0])] += 1 / window**2
                    of_chroma[int(32 * 0.99999 * (max(r, g, b_) - min(r, g, b_)))] += 1 / window**2
            r, g, b_ = p.image[i, :, row, column].tolist()
            grey = (r + g + b_) / 3

            def divergence(truth, logits):
                total = math.log(sum(math.exp(v) for v in logits))
                return sum(
                    t * (math.log(t) - v + total) for t, v in zip(truth, logits, strict=True) if t > 1e-9
                )

            hue, chroma = answers[i, j].tolist()
            hue_cost += 5 * (max(r, g, b_) - min(r, g, b_)) * divergence(of_hue, hue)
            chroma_cost += min(1, 3 * min(grey, 1 - grey)) * divergence(of_chroma, chroma)
    return hue_cost / (b * n), chroma_cost / (b * n)


@pytest.mark.parametrize("window", [1, 3])
def test_the_loss_is_that_of_the_paper(source, window):
    method = woken(made(source, cp.Config(window=window)))
    p = method.pretext(batch(source, 6), Rng(1))
    with torch.no_grad():
        answers = 10 * method.answers(cp.maps(method.encoder, p.grey), p.at)
        method.answers = lambda *_: answers
        loss = method.loss(p)
    hue, chroma = slow_loss(p, answers, window)
    assert_close(loss.parts["hue"].item(), hue, rtol=1e-3, atol=1e-3)
    assert_close(loss.parts["chroma"].item(), chroma, rtol=1e-3, atol=1e-3)
    assert_close(loss.total, loss.parts["hue"] + loss.parts["chroma"])


def test_a_and_b_cost_their_squared_error_in_units_of_fourteen(source):
    method = woken(made(source, cp.Config(targets="lab")))
    p = method.pretext(batch(source, 4), Rng(1))
    ab, total = images.lab(p.image)[:, 1:], 0.0
    with torch.no_grad():
        answers = method.answers(cp.maps(method.encoder, p.grey), p.at)
        for i in range(4):
            for j, (row, column) in enumerate(p.at[i].tolist()):
                total += (ab[i, :, row, column] / 14 - answers[i, j, :, 0]).square().sum().item()
        loss = method.loss(p)
    assert_close(loss.total.item(), total / p.at[..., 0].numel(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [cp.Config(), cp.Config(hidden=1024, places=128)])
def test_at_the_start_all_bins_are_as_likely(source, config):
    method = made(source, config)
    p = method.pretext(batch(source, 16), Rng(1))
    p = dataclasses.replace(p, weight=torch.ones_like(p.weight))
    with torch.no_grad():
        parts = method.loss(p).parts
    assert abs(parts["chroma"] / math.log(32) - 1) < 0.01
    assert abs(parts["hue"] / math.log(32) - 1) < 0.01
    q = method.pretext(batch(source, 16), Rng(1))
    chroma = torch.stack([cp.coordinates(q.image, "hue_chroma")[i, 1, *q.at[i].T] for i in range(16)])
    with torch.no_grad():
        assert abs(method.loss(q).parts["hue"] / (5 * chroma.mean() * math.log(32)) - 1) < 0.01


def test_grey_asks_for_no_hue_and_a_full_colour_for_five_times_as_much(source):
    method = woken(made(source))
    loss = method.loss(method.pretext(of_colour(0.5, 0.5, 0.5), Rng(1)))
    loss.total.backward()
    assert loss.parts["hue"] == 0 and loss.parts["chroma"] > 0
    assert not method.heads["hue"].weight.grad.any() and not method.heads["hue"].bias.grad.any()
    assert method.heads["chroma"].weight.grad.any()
    full = method.pretext(of_colour(1.0, 0.0, 0.0), Rng(1)).weight[..., 0]
    assert_close(full, torch.full_like(full, 5.0))


def test_chroma_counts_by_how_far_it_is_from_black_and_white(source):
    assert_close(cp.tells(torch.tensor([0.1, 0.5, 0.0, 1.0, 0.9])), torch.tensor([0.3, 1.0, 0.0, 0.0, 0.3]))
    p = made(source).pretext(of_colour(0.2, 0.2, 0.2), Rng(1))
    assert_close(p.weight[..., 1], torch.full((2, 16), 0.6), atol=1e-5, rtol=0)


def test_two_halves_of_a_batch_cost_what_the_whole_does(source):
    method = woken(made(source))
    p = method.pretext(batch(source), Rng(1))
    fields = {f.name: getattr(p, f.name).split(8) for f in dataclasses.fields(p)}
    halves = [cp.Sampled(**{name: parts[i] for name, parts in fields.items()}) for i in (0, 1)]
    with torch.no_grad():
        assert_close(torch.stack([method.loss(h).total for h in halves]).mean(), method.loss(p).total)


# ---- where it reads


def dense(x, stride, side):
    """A map enlarged to the whole image, pixel by pixel: (B, D, h, w) -> (B, D, side, side)."""
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


def test_a_sparse_hypercolumn_is_the_dense_one_at_its_place():
    side = 28  # no multiple of 8
    source = sources.open(f"synthetic:64:{side}")
    method = made(source, cp.Config(side=1.0)).eval()
    p = method.pretext(batch(source, 2), Rng(1))
    at = torch.cat([p.at, torch.tensor([[0, 0], [side - 1, 3], [2, side - 1]]).expand(2, -1, -1)], 1)
    with torch.no_grad():
        layers = cp.maps(method.encoder, p.grey)
        sparse = cp.hypercolumns(layers, method.strides, at)
    steps = [1, 2, 2, 4, 8, 8]  # the image, the stem, three stages, the wide one
    whole = torch.cat([dense(x, stride, side) for x, stride in zip(layers, steps, strict=True)], 1)
    expected = torch.stack([whole[i, :, at[i, :, 0], at[i, :, 1]].T for i in range(2)])
    assert sparse.shape == (2, 19, 1 + 16 + 16 + 32 + 64 + 32)
    assert_close(sparse, expected, atol=1e-5, rtol=1e-5)


def test_a_ramp_is_read_as_row_and_column_over_the_stride():
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    ramp = torch.stack([rows, columns])[None]  # its cells hold their own places
    at = torch.tensor([[[0, 0], [3, 5], [13, 8], [32, 24], [35, 27]]])
    read = cp.hypercolumns([ramp], [4.0], at)
    last = torch.tensor([8.0, 6.0])
    assert_close(read, torch.minimum(at / 4, last))
    assert_close(cp.hypercolumns([torch.full((1, 2, 1, 1), 3.0)], [64.0], at), torch.full((1, 5, 2), 3.0))


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
def test_strides_are_those_of_the_net_whatever_the_size(encoder, size, expected):
    built = encoders.build(f"{encoder}{',' if ':' in encoder else ':'}sees=mean", 3, size).eval()
    with torch.no_grad():
        assert cp.strides(built) == expected


def test_the_papers_hypercolumn_has_12416_channels():
    with torch.device("meta"):
        net = classic.color_vgg16()
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(c.out_channels for c in convolutions) == 12416
    assert [c.kernel_size[0] for c in convolutions] == [3] * 13 + [7, 1]


def test_the_papers_net_drops_half_of_fc6_and_of_fc7_in_training_alone():
    """train_vgg16.prototxt: dropout_ratio 0.5 behind the ReLUs of fc6 and fc7."""
    torch.manual_seed(0)
    net = encoders.build("color_vgg16:width=4,wide=256", 1, 96)
    image, zeros = torch.rand(8, 1, 96, 96), {}
    for training in (True, False):
        with torch.no_grad():
            stages = net.train(training)(image)
        zeros[training] = {name: (x == 0).float().mean().item() for name, x in stages.items()}
    for name in zeros[True]:
        twice = name in ("fc6", "fc7")  # cut at zero, or dropped
        assert zeros[True][name] == pytest.approx(0.75 if twice else 0.5, abs=0.1) or name == "pool", name
    with torch.no_grad():
        assert torch.equal(net(image)["fc7"], net(image)["fc7"])


def test_the_papers_net_is_given_the_mean_of_the_channels_less_the_released_one():
    """train_vgg16.prototxt: 0 to 1, shift -0.4488, then the mean of three channels."""
    encoder = encoders.build("color_vgg16:width=4,wide=16,sees=mean", 3, 48).eval()
    seen, image = [], torch.rand(2, 3, 48, 48)
    first = next(m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        encoder(image)
    assert_close(seen[0], ((image - 0.4488).sum(1, keepdim=True) / 3))


def test_the_papers_net_begins_as_caffes_xavier_has_it():
    """Uniform within sqrt(3 / inputs), outputs not counted."""
    torch.manual_seed(0)
    net = classic.color_vgg16(width=16, wide=64)
    for layer in (m for m in net.modules() if isinstance(m, torch.nn.Conv2d)):
        inputs = layer.weight[0].numel()
        assert layer.weight.abs().max() <= math.sqrt(3 / inputs)
        assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(inputs), rel=0.1)


def test_training_makes_no_hypercolumn_but_those_of_its_places(source):
    method, seen = made(source), []
    method.hidden.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    method.loss(method.pretext(batch(source), Rng(1)))
    assert seen == [(16, 16, 1 + 16 + 16 + 32 + 64 + 32)]


def test_the_network_never_sees_colour(source):
    """Channels that change places, and hues that turn on the same mean: other answers are asked, the same are given."""
    method = woken(made(source))
    x = images.to_float(batch(source).image)
    p = method.pretext(batch(source), Rng(1))
    hue, chroma, _ = images.to_hcv(p.image)
    turned = images.tinted(images.mean(p.image), hue + 2.5, chroma)
    with torch.no_grad():
        own, pool = method.answers(cp.maps(method.encoder, p.grey), p.at), method.export()(p.image)["pool"]
        assert own.std((0, 1)).max() > 1e-3
        assert_close(method.export()(turned)["pool"], pool, atol=1e-4, rtol=1e-4)
        assert (turned - p.image).abs().max() > 0.1
        swapped = Batch(torch.arange(16), (255 * x[:, [2, 0, 1]]).round().to(torch.uint8))
        q = method.pretext(swapped, Rng(1))
        assert_close(q.grey, p.grey)
        assert not torch.equal(q.target, p.target)
        assert_close(method.answers(cp.maps(method.encoder, q.grey), q.at), own, atol=1e-4, rtol=1e-4)
        blind = dataclasses.replace(p, image=torch.zeros_like(p.image), target=torch.zeros_like(p.target))
        assert torch.equal(method.solve(blind)["image"], method.solve(p)["image"])


# ---- the picture


def test_a_tint_of_the_own_hue_and_chroma_gives_the_image_back(source):
    x = images.to_float(batch(source).image)
    hue, chroma = cp.coordinates(x, "hue_chroma").unbind(1)
    assert_close(images.tinted(images.mean(x), 6 * hue, chroma), x, atol=1e-5, rtol=0)


def test_a_tint_keeps_the_mean_and_stays_a_colour():
    grey, hue, chroma = Rng(1).uniform(4, 1, 8, 8), 6 * Rng(2).uniform(4, 8, 8), Rng(3).uniform(4, 8, 8)
    x = images.tinted(grey, hue, chroma)
    assert x.min() > -1e-6 and x.max() < 1 + 1e-6
    assert_close(images.mean(x), grey)
    again = images.to_hcv(x)[1]
    assert (again <= chroma + 1e-5).all() and ((again - chroma).abs() < 1e-5).any()


@pytest.mark.parametrize("targets", ["hue_chroma", "lab_histogram", "lab"])
def test_the_right_answers_paint_the_picture(source, targets):
    method = made(source, cp.Config(targets=targets, side=1.0)).eval()
    p = method.pretext(batch(source, 4), Rng(1))
    every = torch.cartesian_prod(torch.arange(32), torch.arange(32)).expand(4, -1, -1)
    values = cp.coordinates(p.image, targets)
    right = (
        values.flatten(2).transpose(1, 2)[..., None]
        if targets == "lab"
        else cp.histograms(values, every, 1).clamp(min=1e-9).log()
    )
    asked = []

    def answers(layers, at):
        asked.append(at)
        return right[:, (32 * at[0, :, 0] + at[0, :, 1]).round().long()]

    method.answers = answers
    with torch.no_grad():
        painted = method.solve(p)["image"]
    assert_close(torch.cat(asked, 1), every.float(), atol=1e-4, rtol=0)
    assert_close(images.mean(painted), p.grey, atol=1e-5, rtol=0)
    error = (painted - p.image).abs()
    assert error.mean() < 0.02 and (targets == "lab_histogram" or error.max() < 0.12)


def test_a_hue_that_nobody_knows_fades_to_grey(source):
    method = made(source).eval()
    colour = method.expected(torch.zeros(1, 32 * 32, 2, 32)).transpose(1, 2).view(1, 3, 32, 32)
    grey = torch.full((1, 1, 32, 32), 0.5)
    assert_close(method.painted(grey, colour), grey.expand(1, 3, 32, 32), atol=1e-4, rtol=0)


def test_a_hue_in_doubt_fades_as_far_as_its_mean_over_the_bins_is_short(source):
    """Slow, from the released decoder: |Σ p e^iθ / 32| against 0.03, so that a hue spread over half of the circle keeps
    two thirds of its chroma; a threshold for the sum would keep all of it."""
    method = made(source).eval()
    answers = torch.full((1, 3, 2, 32), -30.0)
    answers[0, 0, 0, 5] = answers[0, 1, 0, 4:20] = answers[0, 2, 0, 4:28] = 0.0  # sure, half, three quarters
    answers[0, :, 1, 9] = 0.0  # a chroma of 9.5 / 32
    colour = method.expected(answers).transpose(1, 2).view(1, 3, 1, 3)
    painted = method.painted(torch.full((1, 1, 1, 3), 0.5), colour)
    for place, bins in enumerate((range(5, 6), range(4, 20), range(4, 28))):
        total = sum(cmath.exp(2j * math.pi * (k + 0.5) / 32) / len(bins) for k in bins)
        fading = min(1.0, abs(total / 32) / 0.03)
        chroma = painted[0, :, 0, place].amax() - painted[0, :, 0, place].amin()
        assert chroma.item() == pytest.approx(9.5 / 32 * fading, abs=1e-4)


# ---- recipes and mistakes


def test_the_papers_crops_are_squares_of_images_enlarged_by_a_uniform_factor():
    """Each image tells its rows and columns: both go on by 352 / s of a pixel, s uniform from 352 to 600 (2016)."""
    at = torch.arange(64, dtype=torch.uint8)
    grid = torch.stack([at[:, None].expand(64, 64), at.expand(64, 64), 0 * at.expand(64, 64)])
    batch = Batch(torch.arange(400), grid.expand(400, 3, 64, 64))
    method = made(sources.open("synthetic:4:64"), cp.Paper(), "resnet_small:width=4")
    shown = 255 * method.pretext(batch, Rng(1)).image
    inner = slice(8, 56)  # clear of the border
    down = shown[:, 0, inner].diff(dim=1).mean((1, 2))
    right = shown[:, 1, :, inner].diff(dim=2).mean((1, 2)).abs()
    assert_close(down, right, atol=2e-3, rtol=0)
    side = (352 / down).sort().values
    assert_close(side, torch.linspace(352, 600, 400), atol=25, rtol=0)  # Kolmogorov: 0.1 of 248


def test_an_unstretched_crop_of_all_is_the_image(source):
    method = made(source, cp.Config(stretch=False, crop=1.0, side=1.0))
    p, x = method.pretext(batch(source), Rng(1)), images.to_float(batch(source).image)
    same, mirrored = ((p.image - y).abs().amax((1, 2, 3)) < 1e-4 for y in (x, x.flip(3)))
    assert (same | mirrored).all() and same.any() and mirrored.any()


def test_the_head_decays_by_its_own_rate_and_no_weight_is_left_out(source):
    method = made(source)
    groups = list(method.groups())
    assert sorted(id(w) for g in groups for w in g["params"]) == sorted(map(id, method.parameters()))
    head = [id(w) for g in groups if g.get("weight_decay") == 1e-6 for w in g["params"]]
    assert set(head) == {id(m.weight) for m in (method.hidden, *method.heads.values())}


def test_the_paper_recipe_is_that_of_the_released_code():
    c = cp.Paper()
    assert (c.places, c.window, c.hidden, c.encoder, c.sees) == (128, 7, 1024, "color_vgg16", "mean")
    t = c.train
    assert (t.optimizer, t.lr, t.momentum, t.weight_decay, t.batch) == ("sgd", 1e-3, 0.9, 5e-4, 8)
    assert [2.0 * at for at in t.drops] == [1.0, 1.5, 1.75]  # million steps


def test_the_papers_head_has_biases_at_twice_the_rate_and_begins_as_caffes_xavier_has_it(source):
    method = made(source, cp.Paper())
    for group in method.optimizers(cp.Paper.train)[0].param_groups:
        vectors = {p.ndim for p in group["params"]} == {1}
        assert group["lr"] == pytest.approx(2e-3 if vectors else 1e-3)
        assert group["weight_decay"] in ({0.0} if vectors else {5e-4, cp.HEAD_DECAY})
        assert group["momentum"] == 0.9 and not group["nesterov"]
    for head in method.heads.values():
        bound = math.sqrt(3 / 1024)
        assert 0.95 * bound < head.weight.abs().max() <= bound and not head.bias.any()
    assert method.hidden.weight.std().item() == pytest.approx(1e-4, rel=0.05)


def test_grey_images_and_nets_without_maps_are_mistakes(source):
    with pytest.raises(UserError, match="1 channel"):
        made(sources.open("synthetic:64:32", channels=1))
    with pytest.raises(UserError, match="reads maps"):
        made(source, encoder="mlp:width=8")
