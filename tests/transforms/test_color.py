"""Color conversions equal those of scikit-image and torchvision."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from skimage import color
from torch.testing import assert_close

from pretask.rng import Rng
from pretask.transforms.color import (
    adjust_hue,
    hcv_to_rgb,
    lab_to_rgb,
    rgb_to_hcv,
    rgb_to_lab,
    rgb_to_lightness,
)

X = Rng(0, "images").uniform(6, 3, 20, 20)


def per_image(function, x, *values):
    return torch.stack([function(image, *v) for image, *v in zip(x, *values, strict=True)])


CUBE = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, 18)] * 3, indexing="ij")).view(1, 3, 18 * 18, 18)


def test_adjust_hue_matches_torchvision():
    factor = Rng(2).uniform(6, low=-0.5, high=0.5)
    expected = per_image(lambda i, f: tv.adjust_hue(i, float(f)), X, factor)
    assert_close(adjust_hue(X, factor), expected, atol=2e-5, rtol=0)


def test_adjust_hue_leaves_gray_images_unchanged():
    gray = X[:, :1].repeat(1, 3, 1, 1)
    assert torch.equal(adjust_hue(gray, torch.full((6,), 0.3)), gray)


def numpy_image(x):
    return x[0].permute(1, 2, 0).double().numpy()


def test_rgb_to_lab_and_back_match_scikit_image():
    lab = rgb_to_lab(CUBE)
    assert_close(numpy_image(lab), color.rgb2lab(numpy_image(CUBE)), atol=1e-3, rtol=0)
    assert_close(100 * rgb_to_lightness(CUBE), lab[:, :1], atol=1e-3, rtol=0)
    out_of_gamut = torch.cat([lab[:, :1], lab[:, 1:2], 2 * lab[:, 2:].clamp(max=0)], 1)  # too blue for sRGB
    for x in (lab, out_of_gamut):
        assert_close(numpy_image(lab_to_rgb(x)), color.lab2rgb(numpy_image(x)), atol=1e-4, rtol=0)


def test_hue_chroma_and_value_match_scikit_image():
    hue, chroma, value = rgb_to_hcv(CUBE)
    h, s, v = np.moveaxis(color.rgb2hsv(numpy_image(CUBE)), -1, 0)
    difference = (hue[0].numpy() - 6 * h + 3) % 6 - 3  # hue has period 6
    assert_close(difference, np.zeros_like(difference), atol=1e-4, rtol=0)
    assert_close(value[0].double().numpy(), v, atol=1e-6, rtol=0)
    assert_close(chroma[0].double().numpy(), s * v, atol=1e-6, rtol=0)
    assert_close(hcv_to_rgb(hue, chroma, value), CUBE, atol=1e-6, rtol=0)


@pytest.mark.parametrize("convert", [rgb_to_lab, rgb_to_lightness])
def test_gradients_of_lab_match_finite_differences(convert):
    """For dark colors too."""
    x, step = 0.01 + 0.9 * torch.rand(2, 3, 8, 8) ** 3, 1e-3 * torch.randn(2, 3, 8, 8)
    x.requires_grad_()
    convert(x).square().sum().backward()
    ahead, behind = (convert(x.detach() + sign * step).double().square().sum() for sign in (1, -1))
    assert (x.grad * step).sum().item() == pytest.approx(((ahead - behind) / 2).item(), rel=0.02, abs=0.05)
