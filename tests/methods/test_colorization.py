"""Colorization against the paper (Zhang et al. 2016) and the released code."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pretask import data, encoders
from pretask.methods import colorization as cz
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.transforms.color import lab_to_rgb, rgb_to_lab
from pretask.types import Batch, UserError
from pretask.workflows import contract

COUNTS = (5, 8, 10, 12, 14, 15, 16, 16, 17, 18, 18, 18, 19, 20, 19, 20, 20, 19, 19, 10)
"""bins of each a, from -90 to 100 (released list)"""


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:64:32")


def build(source, config=None, encoder="resnet_small:width=16", seed=0):
    torch.manual_seed(seed)
    config = config or cz.Config()
    return config.build(encoders.build(config.spec(encoder), source.channels, source.size), source)


def batch(source, n=16):
    return source.__getitems__(torch.arange(n))


def ab(*colors):
    """Colors (a, b) as a 1 x 1 map per sample."""
    return torch.tensor(colors).float().view(-1, 2, 1, 1)


# ---- bins and soft encoding


def test_bins_are_the_released_list():
    assert cz.BINS.shape == (313, 2) and len(cz.BINS.unique(dim=0)) == 313
    assert (cz.BINS % 10 == 0).all() and cz.BINS[120].tolist() == [0, 0]
    assert tuple(cz.BINS[:, 0].unique_consecutive(return_counts=True)[1].tolist()) == COUNTS
    assert (cz.BINS[:, 0].diff() >= 0).all()
    for a in cz.BINS[:, 0].unique():
        assert (cz.BINS[cz.BINS[:, 0] == a, 1].diff() == 10).all()


@pytest.mark.parametrize(
    ("color", "neighbors", "expected"),
    [
        ((0, 0), 5, (0.6488, 0.0878, 0.0878, 0.0878, 0.0878)),
        ((3, 4), 5, (0.4062, 0.2723, 0.1825, 0.1224, 0.0166)),
        ((0, 0), 10, (0.6192, *(0.0838,) * 4, *(0.0113,) * 4, 0.0002)),
        ((0, 0), 1, (1.0,)),
    ],
)
def test_soft_encoding_has_the_expected_weights(color, neighbors, expected):
    _, weight = cz.soft_encode(ab(color), neighbors)
    assert_close(weight.flatten(), torch.tensor(expected), atol=5e-5, rtol=0)


def test_soft_encoding_matches_the_formula_in_loops(source):
    colors = rgb_to_lab(augment.to_float(batch(source, 2).image))[:, 1:, ::8, ::8]
    nearest, weight = cz.soft_encode(colors, 5)
    assert nearest.shape == weight.shape == (2, 5, 4, 4)
    for i in range(2):
        for y in range(4):
            for x in range(4):
                a, b = colors[i, :, y, x].tolist()
                far = sorted(((a - p) ** 2 + (b - q) ** 2, k) for k, (p, q) in enumerate(cz.BINS.tolist()))
                mass = [math.exp(-d / (2 * 5.0**2)) for d, _ in far[:5]]
                assert nearest[i, :, y, x].tolist() == [k for _, k in far[:5]]
                assert_close(weight[i, :, y, x], torch.tensor(mass) / sum(mass), atol=1e-5, rtol=0)


def test_of_bins_at_equal_distance_the_first_counts_as_nearest():
    nearest, weight = cz.soft_encode(ab((5, 5)), 5)
    four = [k for k, bin in enumerate(cz.BINS.tolist()) if bin in ([0, 0], [0, 10], [10, 0], [10, 10])]
    assert nearest.flatten().tolist()[:4] == four
    assert_close(weight.flatten()[:4], weight.flatten()[:1].expand(4))


# ---- class rebalancing


def test_rebalancing_weights_average_1_and_are_all_1_without_rebalancing():
    prior = cz.smooth(torch.randint(0, 1000, (313,), generator=torch.Generator().manual_seed(0)).float())
    for uniform in (0.25, 0.5, 0.75):
        weight = cz.rebalancing_weights(prior, uniform)
        assert_close((prior * weight).sum(), torch.tensor(1.0))
        low, high = ((1 - uniform) * s + uniform / 313 for s in (prior.min(), prior.max()))
        assert_close(weight.max() / weight.min(), high / low)
        assert weight.argmax() == prior.argmin()
    assert_close(cz.rebalancing_weights(prior, 1.0), torch.ones(313))


def test_smoothing_moves_mass_to_neighboring_bins_and_keeps_the_sum():
    count = torch.zeros(313)
    count[[0, 120, 312]] = torch.tensor([1.0, 7.0, 2.0])
    prior = cz.smooth(count)
    expected = [0.0] * 313
    for source, n in ((0, 1.0), (120, 7.0), (312, 2.0)):  # as loops
        mass = [
            math.exp(-((a - cz.BINS[source, 0]) ** 2 + (b - cz.BINS[source, 1]) ** 2) / 50)
            for a, b in cz.BINS.tolist()
        ]
        expected = [e + n / 10 * m / sum(mass) for e, m in zip(expected, mass, strict=True)]
    assert_close(prior, torch.tensor(expected), atol=1e-6, rtol=1e-4)
    assert_close(prior.sum(), torch.tensor(1.0))


def test_color_distribution_is_measured_on_the_training_images():
    """Only red images: red is common and has a low weight, all other colors are rare."""
    red = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    red[:, 0] = 200
    only = data.open("synthetic:64:32")
    only.image[:] = red
    method = contract.Case.of(cz.Config(), only, "resnet_small:width=16").started()
    nearest, _ = cz.soft_encode(rgb_to_lab(augment.to_float(red))[:, 1:, :1, :1], 1)
    assert method.prior.argmax() == nearest and method.weight.argmin() == nearest
    assert method.weight[nearest.flatten()] < 1 < method.weight.median()
    assert_close((method.prior * method.weight).sum(), torch.tensor(1.0))


# ---- the annealed mean


def test_annealed_mean_interpolates_between_mean_and_mode():
    p = torch.full((1, 313, 1, 1), 1e-9)
    p[:, 120], p[:, 300] = 0.6, 0.4
    logits, (one, other) = p.log() + 3, cz.BINS[[120, 300]]
    for temperature, fraction in ((1.0, 0.6), (0.38, 0.744), (0.01, 1.0)):
        found = cz.annealed_mean(logits, temperature).flatten()
        assert_close(found, fraction * one + (1 - fraction) * other, atol=0.15, rtol=0)
    expected = (p.log() / 0.38).exp()
    expected = (expected / expected.sum()).flatten() @ cz.BINS
    assert_close(cz.annealed_mean(logits, 0.38).flatten(), expected)


# ---- the puzzle


def test_lightness_and_target_ab_give_the_image(source):
    p = build(source, cz.Config(stride=1)).pretext(batch(source), Rng(1))
    assert_close(lab_to_rgb(torch.cat([100 * p.lightness, p.ab], 1)), p.image, atol=1 / 255, rtol=0)


def test_targets_are_colors_of_single_pixels(source):
    method = build(source)
    p = method.pretext(batch(source), Rng(1))
    whole = rgb_to_lab(p.image)
    assert p.image.shape[-1] == 24 and p.ab.shape == (16, 2, 6, 6)
    for y in range(6):
        for x in range(6):
            assert torch.equal(p.ab[:, :, y, x], whole[:, 1:, 4 * y, 4 * x])


def test_inputs_are_crops_of_the_image_or_its_flip(source):
    b = batch(source)
    p, x = build(source).pretext(b, Rng(1)), augment.to_float(b.image)
    places = set()
    for i in range(len(x)):
        for flipped, whole in ((False, x[i]), (True, x[i].flip(-1))):
            for top in range(9):
                for left in range(9):
                    if torch.equal(whole[:, top : top + 24, left : left + 24], p.image[i]):
                        places.add((i, flipped, top, left))
    assert {i for i, *_ in places} == set(range(16))
    assert len({place[2:] for place in places}) > 8
    assert {flipped for _, flipped, *_ in places} == {False, True}


def test_network_input_is_only_the_lightness(source):
    method = build(source).eval()
    p = method.pretext(batch(source), Rng(1))
    other = lab_to_rgb(torch.cat([100 * p.lightness, 0.3 * rgb_to_lab(p.image)[:, 1:]], 1))
    with torch.no_grad():
        expected = method.output(p.lightness)
        assert next(method.encoder.net.parameters()).shape[1] == 1
        assert_close(method.head(list(method.encoder(other).values())[-2]), expected, atol=1e-3, rtol=1e-3)


# ---- the loss


def test_loss_matches_the_formula_in_loops(source):
    method = contract.Case.of(cz.Config(), source, "resnet_small:width=16").started().eval()
    p = method.pretext(batch(source, 4), Rng(1))
    with torch.no_grad():
        method.head.weight *= 30  # predictions that differ between locations
        logits = nn.functional.interpolate(method.output(p.lightness), size=(6, 6), mode="bilinear")
        loss = method.loss(p)
    total, plain = 0.0, 0.0
    for i in range(4):
        colored = max(abs(v) for v in p.ab[i].flatten().tolist()) > 5
        for y in range(6):
            for x in range(6):
                far = (cz.BINS - p.ab[i, :, y, x]).square().sum(1)
                five = far.argsort(stable=True)[:5]
                z = (-far[five] / 50).exp()
                cost = -(z / z.sum() * logits[i, :, y, x].log_softmax(0)[five]).sum().item()
                plain += cost / 144
                total += colored * method.weight[five[0]].item() * cost / 144
    assert loss.total.item() == pytest.approx(total, rel=1e-4)
    assert loss.parts["unweighted"].item() == pytest.approx(plain, rel=1e-4)


def test_uniform_predictions_have_loss_ln_313(source):
    method = build(source)
    nn.init.zeros_(method.head.weight)
    nn.init.zeros_(method.head.bias)
    loss = method.loss(method.pretext(batch(source), Rng(1)))
    assert loss.parts["unweighted"].item() == pytest.approx(math.log(313), abs=1e-4)


def test_untrained_loss_is_at_chance(source):
    method = contract.Case.of(cz.Config(), source, "resnet_small:width=16").started()
    with torch.no_grad():
        parts = method.loss(method.pretext(batch(source), Rng(1))).parts
    assert abs(parts["unweighted"].item() - math.log(313)) < 0.3


@pytest.mark.parametrize("regression", [False, True])
def test_images_without_color_give_no_loss_and_no_gradient(source, regression):
    b = batch(source)
    gray = b.image.float().mean(1, keepdim=True).expand_as(b.image).to(torch.uint8)
    method = build(source, cz.Config(regression=regression))
    loss = method.loss(method.pretext(Batch(b.index, gray), Rng(1)))
    loss.total.backward()
    assert loss.total == 0 and all(not p.grad.any() for p in method.parameters() if p.grad is not None)
    half = torch.cat([gray[:8], b.image[8:]])
    p = method.pretext(Batch(b.index, half), Rng(1))
    assert p.colored.tolist() == [False] * 8 + [True] * 8


def test_gradient_is_linear_in_the_class_weights(source):
    """Weighting the loss weights the gradient of each location."""
    method = build(source).eval()
    p = method.pretext(batch(source, 2), Rng(1))
    nearest = cz.soft_encode(p.ab, 1)[0].flatten()

    def gradient(weight):
        method.weight.copy_(weight)
        method.zero_grad()
        method.loss(p).total.backward()
        return method.head.bias.grad.clone()

    each = [gradient(torch.nn.functional.one_hot(k, 313).float()) for k in nearest.unique()]
    weight = torch.rand(313)
    assert_close(
        gradient(weight),
        sum(weight[k] * g for k, g in zip(nearest.unique(), each, strict=True)),
        atol=1e-6,
        rtol=1e-3,
    )


def test_regression_loss_is_the_squared_error(source):
    method = build(source, cz.Config(regression=True)).eval()
    p = method.pretext(batch(source), Rng(1))
    nn.init.zeros_(method.head.weight)
    nn.init.zeros_(method.head.bias)
    mine = ((p.ab / 14).square().sum(1) / 2).mean()
    assert_close(method.loss(p).total, mine)
    assert_close(
        method.predict(p)["image"], lab_to_rgb(torch.cat([100 * p.lightness, 0 * p.image[:, :2]], 1))
    )


def test_regression_has_no_class_rebalancing(source):
    """As in the paper's L2 baseline."""
    method = contract.Case.of(cz.Config(regression=True), source, "resnet_small:width=16").started()
    assert_close(method.weight, torch.ones(313))
    assert method.prior.max() > 0.01


# ---- recipes


def test_true_bins_give_the_image(source):
    """Predicting the true bin everywhere recovers the image, up to the width of a bin."""
    method = build(source, cz.Config(stride=1, num_neighbors=1, side=1.0))
    p = method.pretext(batch(source), Rng(1))
    nearest, _ = cz.soft_encode(p.ab, 1)
    one_hot_logits = 100 * nn.functional.one_hot(nearest[:, 0], 313).movedim(-1, 1).float()
    method.output = lambda light: one_hot_logits
    lab = rgb_to_lab(method.predict(p)["image"])
    inside = (
        (rgb_to_lab(p.image)[:, 1:].abs().amax(1) < 40)
        & (p.lightness[:, 0] > 0.2)
        & (p.lightness[:, 0] < 0.8)
    )
    far = (lab - rgb_to_lab(p.image))[:, 1:].square().sum(1).sqrt()[inside]
    assert far.median() < 5 and (far < 7.5).float().mean() > 0.95


def test_paper_networks_have_the_published_sizes():
    big = data.open("synthetic:2:256")
    paper = build(big, cz.Paper(), cz.Paper.encoder)
    assert sum(p.numel() for p in paper.parameters()) == 32_230_393
    with torch.no_grad():
        assert paper.output(torch.zeros(1, 1, 256, 256)).shape == (1, 313, 64, 64)
        assert paper.side == 176 and paper.pretext(batch(big, 1), Rng(0)).ab.shape == (1, 2, 44, 44)
        features = build(big, cz.Features(), cz.Features.encoder)
        assert features.side == 180 and features.pretext(batch(big, 1), Rng(0)).ab.shape == (1, 2, 23, 23)
        assert features.encoder.widths["fc7"] == 4096


def test_batch_norms_of_the_paper_networks_have_no_gain():
    for net in ("colornet", "color_alexnet"):
        norms = [m for m in encoders.build(net, 1, 64).modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == 7 and not any(m.affine for m in norms)


def test_feature_network_stages_are_conv_batch_norm_relu_pooling():
    """conv, BN, ReLU, pooling (richzhang/colorization train_alexnet/train_val.prototxt): no stage has negative outputs,
    fc7 included, and about half of each batch norm's outputs are set to zero."""
    torch.manual_seed(0)
    net = encoders.build("color_alexnet", 1, 180)
    kinds = ["".join(type(m).__name__[0] for m in stage) for stage in net.net]
    assert kinds == ["CBRM", "CBRM", "CBR", "CBR", "CBRM", "CBR", "CBR"]
    with torch.no_grad():
        stages = net(nn.functional.interpolate(torch.rand(4, 1, 12, 12), 180, mode="bilinear"))
    assert [stages[name].min().item() for name in stages] == [0.0] * 7 + [stages["pool"].min().item()]
    for name in ("conv3", "conv4", "fc6", "fc7"):
        assert 0.4 < (stages[name] == 0).float().mean() < 0.8, name


def test_feature_network_pooling_rounds_sizes_up():
    """Sides as in Caffe: the same as with rounding down for 180 px, one more for 256 px."""
    with torch.no_grad():
        for size, sides in ((180, [23, 12, 12, 12, 12, 12, 12]), (256, [33, 17, 17, 17, 17, 17, 17])):
            net = encoders.build("color_alexnet", 1, size).eval()
            assert list(net.sides.values()) == sides


@pytest.mark.parametrize("net", ["colornet", "color_alexnet"])
def test_paper_network_input_is_lightness_minus_50(net):
    """data_l_meansub of both prototxts: scale 1, bias -50. Outputs still start at about 1, as with magic_init: at 25 times
    that, the biases would have no effect for a hundred thousand steps."""
    torch.manual_seed(0)
    encoder = encoders.build(f"{net}:sees=lightness", 3, 64).train()
    seen, outputs = [], []
    first = next(m for m in encoder.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda _, x, y: seen.append(x[0]) or outputs.append(y.detach().clone()))
    black_and_white = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 64, 64)
    encoder(black_and_white)
    assert_close(seen[0][0], torch.full((1, 64, 64), -50.0), atol=1e-3, rtol=0)
    assert_close(seen[0][1], torch.full((1, 64, 64), 50.0), atol=1e-3, rtol=0)
    x = batch(data.open("synthetic:32:64"), 32).image / 255
    encoder(x)
    assert_close(seen[1], rgb_to_lab(x)[:, :1] - 50, atol=2e-2, rtol=0)
    assert 0.2 < outputs[1].std() < 2


@pytest.mark.parametrize(("recipe", "rate", "decay"), [(cz.Paper, 1.0, 1e-3), (cz.Features, 2.0, 0.0)])
def test_biases_have_the_released_learning_rate_and_weight_decay(recipe, rate, decay):
    """colorization_train_val_v2.prototxt has Caffe's defaults 1 and 1; the feature network lr_mult 2, decay_mult 0."""
    method = build(data.open("synthetic:8:64"), recipe(), "resnet_small:width=8")
    for group in method.optimizers(recipe.train)[0].param_groups:
        vectors = {p.ndim for p in group["params"]} == {1}
        assert group["lr"] == pytest.approx(3e-5 * (rate if vectors else 1))
        assert group["weight_decay"] == pytest.approx(decay if vectors else 1e-3)


def test_feature_network_starts_with_a_zero_head_and_released_wide_layers():
    source = data.open("synthetic:4:128")
    method = build(source, cz.Features(), "color_alexnet")
    assert not any(p.any() for p in method.head.parameters())
    for stage in (method.encoder.net.fc6, method.encoder.net.fc7):
        assert stage[0].weight.std().item() == pytest.approx(0.005, rel=0.02) and stage[0].bias.eq(1).all()


def test_grayscale_sources_and_encoders_without_maps_are_user_errors():
    with pytest.raises(UserError, match="sees the lightness of color images"):
        build(data.open("synthetic:8:32", channels=1))
    with pytest.raises(UserError, match="needs feature maps, and mlp:width=16,sees=lightness has none"):
        build(data.open("synthetic:8:32"), encoder="mlp:width=16")
