"""Accelerated convolutions equal the plain ones: same results, gradients and names."""

import copy
from unittest.mock import patch

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from pretask.encoders.fast_conv import accelerate
from pretask.rng import Rng

ONE_PIXEL = [  # kernel, stride, padding, (H, W)
    (3, 1, 1, (1, 1)),
    (3, 2, 1, (2, 2)),
    (3, 2, 1, (1, 2)),
    (1, 2, 0, (2, 2)),
    (7, 2, 3, (2, 1)),
    (3, 1, 0, (3, 3)),
    (2, 3, (0, 1), (4, 2)),
]
MORE = [(3, 1, 1, (1, 2)), (3, 2, 1, (3, 3)), (1, 1, 0, (2, 2)), (3, 1, 1, (5, 4))]


def both(conv: nn.Module) -> tuple[nn.Module, nn.Module]:
    fast = copy.deepcopy(conv)
    accelerate(fast)
    return conv, fast


@pytest.mark.parametrize(("kernel", "stride", "padding", "sides"), ONE_PIXEL + MORE)
@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients_match_the_plain_convolution(kernel, stride, padding, sides, bias):
    x = Rng(0).normal(5, 4, *sides)
    answers = []
    for conv in both(nn.Conv2d(4, 6, kernel, stride, padding, bias=bias)):
        image = x.clone().requires_grad_()
        y = conv(image)
        (y * Rng(1).normal(*y.shape)).sum().backward()
        answers.append([y, image.grad, *(p.grad for p in conv.parameters())])
    for plain, fast in zip(*answers, strict=True):
        assert plain.shape == fast.shape
        assert_close(fast, plain)


@pytest.mark.parametrize(("kernel", "stride", "padding", "sides"), ONE_PIXEL)
def test_single_pixel_outputs_need_no_convolution(kernel, stride, padding, sides):
    _, fast = both(nn.Conv2d(4, 6, kernel, stride, padding))
    with patch.object(F, "conv2d", side_effect=AssertionError("a convolution")):
        assert fast(torch.rand(5, 4, *sides)).shape == (5, 6, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "side"),
    [
        ({"groups": 2}, 1),
        ({"dilation": 2, "stride": 3}, 3),
        ({"padding_mode": "reflect", "kernel_size": 4}, 2),
        ({"padding": "same"}, 1),
    ],
)
def test_grouped_dilated_and_padded_convolutions_are_unchanged(arguments, side):
    plain, fast = both(nn.Conv2d(4, 6, **{"kernel_size": 3, "padding": 1} | arguments))
    x = torch.rand(5, 4, side, side)
    assert plain(x).shape[2:] == (1, 1)
    assert_close(fast(x), plain(x))


def test_subclasses_with_their_own_forward_are_unchanged():
    class Doubled(nn.Conv2d):
        def forward(self, input):  # the argument name of timm's subclasses
            return 2 * super().forward(input)

    plain, fast = both(Doubled(4, 6, 3, padding=1))
    x = torch.rand(5, 4, 1, 1)
    assert_close(fast(x), plain(x))


def test_a_network_keeps_names_weights_and_outputs_and_is_channels_last_throughout():
    plain, fast = both(timm.create_model("resnet18", num_classes=0).eval())
    x = Rng(0).uniform(4, 3, 32, 32)
    assert_close(fast(x), plain(x), atol=1e-5, rtol=1e-4)
    for (name, value), (other, same) in zip(
        plain.state_dict().items(), fast.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(value, same)

    def check(module: nn.Module, _: object, y: torch.Tensor) -> None:
        assert y.is_contiguous(memory_format=torch.channels_last)

    for conv in fast.modules():
        if isinstance(conv, nn.Conv2d):
            conv.register_forward_hook(check)
    fast(x)


def test_a_copy_uses_its_own_weights():
    _, fast = both(nn.Conv2d(4, 6, 3, padding=1))
    copied = copy.deepcopy(fast)
    nn.init.zeros_(copied.weight)
    nn.init.zeros_(copied.bias)
    x = torch.rand(5, 4, 1, 1)
    assert not copied(x).any() and fast(x).all()
