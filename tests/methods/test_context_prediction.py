"""Context prediction against the paper (Doersch et al. 2015) and the released code."""

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pretask import data, encoders
from pretask.methods import context_prediction as cp
from pretask.rng import Rng
from pretask.train import requirements
from pretask.transforms import augment
from pretask.types import Batch, UserError

PLAIN = cp.Config(crop=1.0, color="keep", downsample=0.0, jitter=0.0)


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:64:64")


def build(source, config=PLAIN, encoder="resnet_small:width=16"):
    torch.manual_seed(0)
    return config.build(encoders.build(encoder, source.channels, source.size), source)


def batch(source, n=16):
    return source.__getitems__(torch.arange(n))


# ---- the pairs


def test_a_grid_has_40_pairs_and_fewer_diagonal_ones():
    counts = Counter(cp.neighbor_pairs()[:, 2].tolist())
    assert counts == {0: 4, 1: 6, 2: 4, 3: 6, 4: 6, 5: 4, 6: 6, 7: 4}


def test_swapping_a_pair_gives_the_opposite_position():
    position = {(a, b): at for a, b, at in cp.neighbor_pairs().tolist()}
    assert all(position[b, a] == 7 - at for (a, b), at in position.items())


def test_positions_are_in_raster_order():
    around = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1], [2, 2]]
    from_center = {b: at for a, b, at in cp.neighbor_pairs().tolist() if a == 4}
    assert from_center == {3 * row + column: at for at, (row, column) in enumerate(around)}


def test_position_is_the_true_offset_of_the_second_patch(source):
    """On images whose pixels hold their own coordinates."""
    method = build(source)
    at = torch.stack(torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")).float() / 255
    corner = method.cut_patches(at.expand(8, 2, -1, -1), Rng(1))[..., 0, 0] * 255  # (8, 9, 2)
    for first, second, position in method.pairs.tolist():
        cell = position + (position > 3)
        step = (corner[:, second] - corner[:, first]) / method.pitch
        assert_close(step, torch.tensor([cell // 3 - 1.0, cell % 3 - 1.0]).expand(8, 2), atol=1e-3, rtol=0)


def test_pairs_are_drawn_from_all_40(source):
    method = build(source, cp.Config())
    seen = set()
    for k in range(30):
        p = method.pretext(batch(source), Rng(k))
        seen |= set(zip(p.first.flatten().tolist(), p.second.flatten().tolist(), strict=True))
    assert len(seen) == 40


# ---- geometry


def test_paper_patches_have_the_published_geometry():
    """Patches of 96 px at a pitch of 144, jittered by up to 7 px: gaps of 34 to 62 px, all inside the image."""
    source = data.open("synthetic:2:400")
    method = build(source, cp.Paper(), "context_alexnet")
    assert (method.side, method.pitch, method.max_jitter) == (96, 144, 7)
    assert method.config.color == "drop"
    at = torch.stack(torch.meshgrid(torch.arange(400), torch.arange(400), indexing="ij")).float()
    corner = method.cut_patches(at.expand(200, 2, -1, -1), Rng(1))[..., 0, 0].view(200, 3, 3, 2)
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
def test_jitter_is_uniform_in_every_direction_for_every_cell(config, encoder, size, reach):
    """The difference of the jitters of two cells has a triangular distribution; few patches touch the border."""
    method = build(data.open(f"synthetic:2:{size}"), config, encoder)
    at = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).float()
    corner = torch.cat(
        [method.cut_patches(at.expand(100, 2, -1, -1), Rng(k))[..., 0, 0] for k in range(20)]
    )  # (2000, 9, 2)
    cells = torch.arange(9)
    moved = corner - method.pitch * torch.stack(
        [cells // 3, cells % 3], 1
    )  # the grid's origin and the jitter
    n = 2 * reach + 1
    triangle = torch.tensor([(n - abs(d)) / n**2 for d in range(-2 * reach, 2 * reach + 1)])
    for cell in (0, 1, 2, 3, 5, 6, 7, 8):
        for axis in range(2):
            difference = (moved[:, cell] - moved[:, 4])[:, axis].round().long() + 2 * reach
            frequency = difference.bincount(minlength=len(triangle)) / len(difference)
            assert_close(frequency, triangle, atol=0.05, rtol=0)
            assert abs((frequency - triangle).cumsum(0)).max() < 0.05
    assert corner.min() >= 0 and corner.max() <= size - method.side
    outer = corner[:, [0, 1, 2], 0], corner[:, [0, 3, 6], 1], corner[:, [6, 7, 8], 0], corner[:, [2, 5, 8], 1]
    touching = [
        (line == (0 if side < 2 else size - method.side)).float().mean() for side, line in enumerate(outer)
    ]
    chance = 1 / n / (method.slack + 1)  # of the outermost grid origin and the outermost jitter
    assert chance < 0.12
    assert_close(torch.stack(touching), torch.full((4,), chance), atol=0.03, rtol=0)


def test_patches_that_do_not_fit_are_a_user_error():
    with pytest.raises(UserError, match="smaller --patch"):
        build(data.open("synthetic:64:16"), cp.Config(patch=0.4))
    with pytest.raises(UserError, match="or --jitter"):  # without jitter it fits
        build(data.open("synthetic:64:96"), cp.Config(patch=0.25))
    source = data.open("synthetic:64:16")
    with pytest.raises(UserError, match="--size 19 or more, or a larger --patch"):
        requirements.check(cp.Config(), encoders.build("resnet_small:width=8", 3, 16), source)
    for size in range(19, 130):
        assert build(data.open(f"synthetic:2:{size}"), cp.Config(), "resnet_small:width=4").slack >= 0


# ---- against shortcuts


@pytest.mark.parametrize("color", ["drop", "project", "keep"])
def test_every_patch_has_mean_0_per_channel_and_rms_1(source, color):
    patch = build(source, cp.Config(color=color)).pretext(batch(source), Rng(1)).patch
    assert patch.mean((-2, -1)).abs().max() < 1e-4
    assert_close(patch.square().mean((2, 3, 4)), torch.ones(16, 9), atol=1e-3, rtol=0)


def test_color_dropping_keeps_one_channel_and_puts_noise_in_the_others():
    x = Rng(1).uniform(300, 2, 3, 12, 12)
    dropped = cp.drop_channels(x, Rng(2))
    kept = (dropped == x).flatten(3).all(3)  # (300, 2, 3)
    assert (kept.sum(2) == 1).all()
    frequency = kept.float().mean((0, 1))
    assert (frequency - 1 / 3).abs().max() < 0.08  # all channels equally often
    noise = dropped[~kept]
    assert noise.abs().max() <= 0.5 / 255 + 1e-7 and abs(noise.std() * 255 - 0.289) < 0.01
    assert not torch.equal(kept[:, 0], kept[:, 1])  # drawn per patch


def test_projection_removes_the_green_magenta_axis_and_keeps_gray():
    expected = [[0.8333, 0.3333, -0.1667], [0.3333, 0.3333, 0.3333], [-0.1667, 0.3333, 0.8333]]
    assert_close(cp.PROJECTION, torch.tensor(expected), atol=1e-4, rtol=0)
    assert_close(cp.PROJECTION @ torch.ones(3), torch.ones(3))
    assert (cp.AXIS @ cp.PROJECTION).abs().max() < 1e-6


def test_constant_patches_give_finite_inputs(source):
    flat = Batch(torch.arange(4), torch.full((4, 3, 64, 64), 128, dtype=torch.uint8))
    for color in ("drop", "project", "keep"):
        assert build(source, cp.Config(color=color)).pretext(flat, Rng(1)).patch.isfinite().all()


def test_a_third_of_the_patches_is_downsampled(source):
    method = build(source, cp.Config(downsample=0.33))
    patch = Rng(1).uniform(200, 9, 3, 16, 16)
    changed = (method.downsample_patches(patch, Rng(2)) != patch).flatten(2).any(2)
    assert 0.29 < changed.float().mean() < 0.37
    low = [min(16, max(1, int(Rng(k).unsharded.uniform(1, low=(10 / 96) ** 2, high=(95 / 96) ** 2).item() ** 0.5 * 16))) for k in range(300)]  # fmt: skip
    assert 1 <= min(low) <= 2 and max(low) == 15


# ---- the network


def test_untrained_loss_is_at_chance(source):
    with torch.no_grad():
        method = build(source, cp.Config())
        loss = method.loss(method.pretext(batch(source, 64), Rng(1)))
    assert (
        abs(loss.total.item() - math.log(8)) < 0.35
    )  # with batch norm before the last layer, logits are not near 0


def test_batch_norms_of_the_head_and_the_paper_network_have_no_gain(source):
    large = data.open("synthetic:2:400")
    for method in (build(source).embed, build(large, cp.Paper(), "context_alexnet")):
        norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert norms and all(m.weight is None and m.bias is None for m in norms)


def test_logits_depend_on_the_order_of_the_two_patches(source):
    method = build(source).eval()
    p = method.pretext(batch(source, 4), Rng(1))
    with torch.no_grad():
        one, other = method.logits(p), method.logits(cp.PatchPairs(p.patch, p.second, p.first, p.position))
    assert one.shape == (4, 8, 8) and not torch.allclose(one, other)


def test_patches_are_encoded_independently(source):
    method = build(source).eval()
    p = method.pretext(batch(source, 2), Rng(1))
    other = p.patch.clone()
    other[:, 0] = other[:, 0].flip(-1)
    with torch.no_grad():
        before, after = (method.patches(x.flatten(0, 1))[0].view(2, 9, -1) for x in (p.patch, other))
    assert torch.equal(before[:, 1:], after[:, 1:]) and not torch.equal(before[:, 0], after[:, 0])


def test_paper_encoder_has_the_published_sides():
    net = encoders.build("context_alexnet", 3, 96).eval()
    sides = [s.shape[-1] for name, s in net(torch.zeros(1, 3, 96, 96)).items() if name != "pool"]
    assert sides == [12, 6, 6, 6, 3]


@pytest.fixture(scope="module")
def published():
    """conv1 to fc9 of train.py:54-82, with narrower fc6 to fc8."""
    return build(data.open("synthetic:2:400"), cp.Paper(hidden=256), "context_alexnet")


LAYERS = """Scale Conv2d ReLU MaxPool2d LocalResponseNorm Conv2d ReLU MaxPool2d LocalResponseNorm
    Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d ReLU MaxPool2d
    Linear BatchNorm1d ReLU Linear BatchNorm1d ReLU Linear ReLU Linear"""


def leaves(method):
    modules = [*method.patches.encoder.net.modules(), *method.embed.modules(), *method.head.modules()]
    return [m for m in modules if not list(m.children())]


def test_paper_network_has_the_released_layers_in_order(published):
    assert [type(m).__name__ for m in leaves(published)] == LAYERS.split()
    shapes = [tuple(m.weight.shape) for m in leaves(published) if getattr(m, "weight", None) is not None]
    assert shapes == [
        (96, 3, 11, 11), (256, 96, 5, 5), (384, 256, 3, 3), (384, 384, 3, 3), (256, 384, 3, 3),
        (256, 2304), (256, 512), (256, 256), (8, 256),
    ]  # fmt: skip


def test_weights_are_initialized_like_caffe(published):
    """Uniform within sqrt(3 / fan-in); torch's Xavier uses the mean of fan-in and fan-out."""
    for layer in leaves(published):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = math.sqrt(3 / layer.weight[0].numel())
            assert 0.99 * bound < layer.weight.abs().max() <= bound * 1.0001 or layer.weight.numel() < 5000
            assert_close(layer.weight.std(), torch.tensor(bound / math.sqrt(3)), rtol=0.04, atol=0)
            assert layer.bias is None or not layer.bias.any()


def test_conv1_input_has_an_rms_of_50(published):
    seen = []
    conv1 = next(m for m in leaves(published) if isinstance(m, nn.Conv2d))
    conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    source = data.open("synthetic:2:400")
    with torch.no_grad():
        p = published.eval().pretext(batch(source, 2), Rng(1))
        published.logits(p)
    assert_close(seen[0].square().mean((1, 2, 3)).sqrt(), torch.full((18,), 50.0), rtol=1e-3, atol=0)


def test_a_step_equals_one_on_the_summed_loss_at_the_published_rate(published):
    """No momentum, no weight decay, 1e-5 times the gradient of the sum over all pairs of a step, the same for biases."""
    config = published.config
    num_images, num_pairs = config.train.batch, config.num_pairs
    optimizer = published.optimizers(config.train)[0]
    for group in optimizer.param_groups:
        assert group["momentum"] == 0 and group["weight_decay"] == 0
        assert_close(group["lr"], 1e-5 * num_images * num_pairs)
    weight = published.head[-1].weight
    before = weight.detach().clone()
    logits = Rng(1).normal(num_images * num_pairs, 256) @ weight.T
    position = Rng(2).integers(num_images * num_pairs, high=8)
    (summed,) = torch.autograd.grad(
        nn.functional.cross_entropy(logits, position, reduction="sum"), weight, retain_graph=True
    )
    optimizer.zero_grad()
    nn.functional.cross_entropy(logits, position).backward()
    optimizer.step()
    assert_close(weight.detach(), before - 1e-5 * summed)


# ---- the shortcut by chromatic aberration


def test_color_dropping_hides_the_position_given_by_chromatic_aberration():
    """Noise through a lens that magnifies green by 3 %: the shift of green against red gives a patch's position."""

    def through_lens(n):
        x = Rng(1).uniform(n, 1, 66, 66)
        smooth = nn.functional.avg_pool2d(x, 3, 1)
        box = torch.tensor([0.5, 0.5, 1 / 1.06, 1 / 1.06]).expand(n, 4)
        green = augment.crop(smooth, box, 64)
        return torch.cat([smooth, green, smooth], 1)

    def correlation(color):
        """Between a patch's column in the grid and the shift that best aligns its green with its red channel."""
        config = cp.Config(crop=1.0, downsample=0.0, color=color, jitter=0.0)
        method = build(data.open("synthetic:64:64"), config)
        p = method.pretext(Batch(torch.arange(48), (through_lens(48) * 255).to(torch.uint8)), Rng(2)).patch
        left, right = p[..., 1:-1], p
        match = torch.stack(
            [(left[:, :, 0] * right[:, :, 1, :, k : k + left.shape[-1]]).mean((-2, -1)) for k in range(3)], -1
        )
        shift = (match[..., 2] - match[..., 0]).view(-1, 3, 3)
        column = torch.arange(3.0).expand_as(shift)
        return torch.corrcoef(torch.stack([shift.flatten(), column.flatten()]))[0, 1].abs()

    assert correlation("keep") > 0.6
    assert correlation("drop") < 0.2
