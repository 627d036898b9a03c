"""CaffeNet as papers of its time train it: layers, shapes, their order and the initialization of the prototxts."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from pretask import encoders
from pretask.encoders import classic

CONV = ("Conv2d", "ReLU")
POOLED = (*CONV, "MaxPool2d", "LocalResponseNorm")
LAYERS = (*POOLED, *POOLED, *CONV, *CONV, *CONV, "MaxPool2d", *CONV, "Dropout", *CONV, "Dropout")
"""lluisgomez/TextTopicNet CNN/CaffeNet/train_val.prototxt without data and fc8; its wide layers as convolutions"""
SHAPES = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (4096, 256, 6, 6),
    "fc7": (4096, 4096, 1, 1),
}
STEPS = {"conv1": (4, 0, 1), "conv2": (1, 2, 2), "conv3": (1, 1, 1), "conv4": (1, 1, 2), "conv5": (1, 1, 2)}
"""stride, padding and groups"""
FILLED = {"conv1": (0.01, 0), "conv2": (0.01, 1), "conv3": (0.01, 0), "conv4": (0.01, 1), "conv5": (0.01, 1)}
"""standard deviation of weights and constant bias; 0.005 and 1 for fc6 and fc7"""


def kinds(net: nn.Module) -> tuple[str, ...]:
    return tuple(type(m).__name__ for m in net.modules() if not isinstance(m, nn.Sequential))


def meta(**arguments) -> nn.Sequential:
    with torch.device("meta"):
        return classic.caffenet(**arguments)


def test_layers_and_shapes_match_the_prototxt():
    net = meta()
    assert kinds(net) == LAYERS
    assert {name: tuple(stage[0].weight.shape) for name, stage in net.named_children()} == SHAPES
    assert list(dict(net.named_children())) == list(SHAPES)
    for name, stage in net.named_children():
        layer = stage[0]
        steps = (layer.stride[0], layer.padding[0], layer.groups)
        assert steps == STEPS.get(name, (1, 0, 1)), name
        assert layer.bias is not None
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "outputs", "count"),
    [
        ({}, 0, 56_868_224),
        ({}, 40, 57_032_104),
        ({}, 1000, 60_965_224),
        ({"fc7": 1024, "dropout": 0}, 0, 44_282_240),
    ],
)
def test_parameter_counts_match_the_published_ones(arguments, outputs, count):
    net = meta(**arguments)
    assert sum(p.numel() for p in net.parameters()) + outputs * (4096 + 1) == count
    assert ("Dropout" in kinds(net)) == (not arguments)


def test_larger_images_give_larger_maps_with_the_same_weights():
    sides = {}
    for size in (227, 256):
        net = classic.caffenet(size=size, fc6=8, fc7=4)
        assert net.fc6[0].weight.shape == (8, 256, 6, 6)
        x, sides[size] = torch.zeros(1, 3, size, size), []
        for stage in net:
            x = stage(x)
            sides[size].append(x.shape[-1])
    assert sides == {227: [27, 13, 13, 13, 6, 1, 1], 256: [31, 15, 15, 15, 7, 2, 2]}


def rounded_up(x: torch.Tensor) -> torch.Tensor:
    """Max pooling over 3 x 3 with stride 2; the last window is cut off at the border."""
    starts = range(0, 2 * math.ceil((x.shape[-1] - 3) / 2) + 1, 2)
    rows = torch.stack([x[:, :, y : y + 3].amax(2) for y in starts], 2)
    return torch.stack([rows[..., y : y + 3].amax(3) for y in starts], 3)


def across(x: torch.Tensor) -> torch.Tensor:
    """Caffe's LRN across 5 channels, α 1e-4 in all, β 0.75."""
    squares = [x[:, max(0, c - 2) : c + 3].square().sum(1) for c in range(x.shape[1])]
    return x / (1 + 1e-4 / 5 * torch.stack(squares, 1)) ** 0.75


@pytest.mark.parametrize("stage", ["conv1", "conv2"])
def test_maps_are_pooled_with_rounding_up_and_then_normalized(stage):
    """Normalization before pooling, as in the first AlexNet, gives other numbers."""
    torch.manual_seed(0)
    layer = getattr(classic.caffenet(size=96, fc6=8, fc7=8), stage)
    x = 255 * torch.rand(2, 3 if stage == "conv1" else 96, 96, 96) - 120
    with torch.no_grad():
        y = 4 * layer[0](x)  # large enough for the normalization to matter
        layer[0].weight *= 4
        layer[0].bias *= 4
        found, relu = layer(x), y.relu()
    assert_close(found, across(rounded_up(relu)), rtol=1e-3, atol=1e-3)
    assert (found - rounded_up(across(relu))).abs().max() > 0.05 * found.abs().max()
    assert found.shape[-1] == math.ceil((y.shape[-1] - 3) / 2) + 1


def test_convolution_groups_are_independent():
    torch.manual_seed(0)
    net = classic.caffenet(size=96, fc6=8, fc7=8)
    for stage in (net.conv2, net.conv4, net.conv5):
        x = torch.rand(1, 2 * stage[0].weight.shape[1], 9, 9)
        half = x.shape[1] // 2
        other = torch.cat([x[:, :half], torch.rand_like(x[:, half:])], 1)
        mine, theirs = (stage[0](each)[:, : stage[0].out_channels // 2] for each in (x, other))
        assert torch.equal(mine, theirs)


def test_initial_weights_match_the_prototxt():
    torch.manual_seed(0)
    net = classic.caffenet(size=227, fc6=512, fc7=512)
    for name, stage in net.named_children():
        std, bias = FILLED.get(name, (0.005, 1))
        layer = stage[0]
        assert_close(layer.weight.std().item(), std, rtol=0.02, atol=0)
        assert abs(layer.weight.mean()) < 0.02 * std
        assert layer.bias.eq(bias).all(), name


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_scaled_to_caffes_range_minus_the_mean(channels):
    encoder = encoders.build("caffenet:fc6=8,fc7=8", channels, 96).eval()
    x = torch.rand(2, channels, 8, 8)
    mean = torch.tensor([122.67892, 116.66877, 104.00699])  # BGR: 104.00699, 116.66877, 122.67892
    mean = (mean if channels == 3 else mean.mean(0, keepdim=True)).view(-1, 1, 1)
    assert_close(encoder.normalized(x), 255 * x - mean, rtol=1e-4, atol=1e-3)


def test_features_of_initial_weights_vary_between_images():
    """With inputs of unit scale, the biases of 1 would dominate."""
    torch.manual_seed(0)
    encoder = encoders.build("caffenet:fc6=256,fc7=256", 3, 96).eval()
    image = F.interpolate(torch.rand(16, 3, 6, 6), 96, mode="bilinear")
    with torch.no_grad():
        pool = encoder(image)["pool"]
        dim = encoder.stages((image - 0.5) / 0.25)["pool"]
    spread, before = (z.std(0).mean() / z.mean() for z in (pool, dim))
    assert spread > 10 * before, (spread, before)
