"""Each operation on a batch equals torchvision's, image by image, at the parameters that were drawn."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from skimage import color
from torch.testing import assert_close

from pretask.rng import Rng
from pretask.transforms import augment as images

X = Rng(0, "images").uniform(6, 3, 20, 20)


def one_by_one(function, x, *values):
    return torch.stack([function(image, *v) for image, *v in zip(x, *values, strict=True)])


def test_blending_is_torchvisions_brightness_contrast_and_saturation():
    share = Rng(1).uniform(6, low=0.2, high=1.8)
    assert_close(
        images.blend(X, 0.0, share), one_by_one(lambda i, f: tv.adjust_brightness(i, float(f)), X, share)
    )
    mean = images.luma(X).mean((1, 2, 3), keepdim=True)
    assert_close(
        images.blend(X, mean, share), one_by_one(lambda i, f: tv.adjust_contrast(i, float(f)), X, share)
    )
    assert_close(
        images.blend(X, images.luma(X), share),
        one_by_one(lambda i, f: tv.adjust_saturation(i, float(f)), X, share),
    )


def test_turning_the_hue_is_torchvisions():
    turns = Rng(2).uniform(6, low=-0.5, high=0.5)
    expected = one_by_one(lambda i, f: tv.adjust_hue(i, float(f)), X, turns)
    assert_close(images.turn_hue(X, turns), expected, atol=2e-5, rtol=0)


def test_turning_the_hue_leaves_grey_alone():
    grey = X[:, :1].repeat(1, 3, 1, 1)
    assert torch.equal(images.turn_hue(grey, torch.full((6,), 0.3)), grey)


def test_a_box_crops_as_torchvision_resizes_when_it_lies_on_pixels():
    box = torch.tensor([[0.5, 0.4, 0.5, 0.6]]).repeat(6, 1)  # left 5, top 2, 10 x 12 of 20
    expected = tv.resized_crop(X, 2, 5, 12, 10, [16, 16], antialias=False)
    inner = slice(1, -1)  # at its border torchvision repeats the last pixel, where the image goes on
    assert_close(images.crop(X, box, 16)[..., inner, inner], expected[..., inner, inner], atol=1e-5, rtol=0)


def test_blur_is_torchvisions_at_the_width_drawn():
    width = Rng(3).uniform(6, low=0.1, high=2.0)
    expected = one_by_one(lambda i, s: tv.gaussian_blur(i, [3, 3], [float(s)] * 2), X, width)
    assert_close(images.blur(X, Rng(3), p=1.0), expected, atol=1e-5, rtol=0)


def test_a_shift_is_a_crop_of_the_padded_image():
    top, left = Rng(4).integers(6, 2, high=9).T
    padded = tv.pad(X, [4])
    expected = one_by_one(lambda i, t, le: tv.crop(i, int(t), int(le), 20, 20), padded, top, left)
    assert torch.equal(images.shift(X, Rng(4), 4), expected)


def test_solarizing_is_torchvisions():
    assert_close(images.solarize(X, Rng(0), 1.0), tv.solarize(X, 0.5))


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, r: images.flip(x, r),
        lambda x, r: images.shift(x, r, 4),
        lambda x, r: images.resized_crop(x, 16, r),
        lambda x, r: images.jitter(x, r),
        lambda x, r: images.grey(x, r, 0.5),
        lambda x, r: images.blur(x, r),
        lambda x, r: images.Views(blur=0.5, solarize=0.2)(x, 16, r),
    ],
)
def test_every_operation_draws_for_each_image_and_on_shares_as_on_the_whole(operation):
    same = X[:1].repeat(64, 1, 1, 1)
    out = operation(same, Rng(5))
    assert not torch.equal(out[0], out[1:]) and len(out.unique(dim=0)) > 1
    assert out.min() >= 0 and out.max() <= 1 and torch.equal(out, operation(same, Rng(5)))
    halves = [operation(same[:32], Rng(5, share=(rank, 2))) for rank in (0, 1)]
    assert_close(torch.cat(halves), out)


def test_crops_cover_the_scale_and_stay_inside():
    ramp = torch.linspace(0, 1, 64).view(1, 1, 1, 64).expand(4000, 1, 64, 64)
    out = images.resized_crop(ramp, 8, Rng(6), scale=(0.25, 0.25), ratio=(1.0, 1.0))
    spread = out[:, 0, 0, -1] - out[:, 0, 0, 0]  # half the width, less one of its eight pixels
    assert_close(spread, torch.full((4000,), 0.5 * 7 / 8 * 64 / 63), atol=0.02, rtol=0)
    left = out[:, 0, 0, 0] - 0.5 / 16
    assert left.min() < 0.02 and left.max() > 0.48 and abs(left.mean() - 0.25) < 0.01


def test_a_large_canvas_is_reduced_with_anti_aliasing():
    stripes = (torch.arange(256) % 2).float().expand(8, 3, 256, 256)
    out = images.resized_crop(stripes, 32, Rng(7), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert (out - 0.5).abs().max() < 0.1


# ---- spaces of colour, against scikit-image

CUBE = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, 18)] * 3, indexing="ij")).view(1, 3, 18 * 18, 18)
"""every sixteenth value of each channel, and black and white"""


def numpy_image(x):
    return x[0].permute(1, 2, 0).double().numpy()


def test_lab_is_scikit_images_in_both_directions():
    lab = images.lab(CUBE)
    assert_close(numpy_image(lab), color.rgb2lab(numpy_image(CUBE)), atol=1e-3, rtol=0)
    assert_close(100 * images.lightness(CUBE), lab[:, :1], atol=1e-3, rtol=0)
    beyond = torch.cat([lab[:, :1], lab[:, 1:2], 2 * lab[:, 2:].clamp(max=0)], 1)  # bluer than sRGB can be
    for x in (lab, beyond):
        assert_close(numpy_image(images.from_lab(x)), color.lab2rgb(numpy_image(x)), atol=1e-4, rtol=0)


def test_hue_chroma_and_value_are_scikit_images():
    hue, chroma, value = images.to_hcv(CUBE)
    h, s, v = np.moveaxis(color.rgb2hsv(numpy_image(CUBE)), -1, 0)
    turned = (hue[0].numpy() - 6 * h + 3) % 6 - 3  # the circle is closed
    assert_close(turned, np.zeros_like(turned), atol=1e-4, rtol=0)
    assert_close(value[0].double().numpy(), v, atol=1e-6, rtol=0)
    assert_close(chroma[0].double().numpy(), s * v, atol=1e-6, rtol=0)
    assert_close(images.from_hcv(hue, chroma, value), CUBE, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seen", [images.lab, images.lightness])
def test_lab_can_be_trained_through(seen):
    """Its gradient is what the difference of two near colours says, for dark ones too."""
    x, move = 0.01 + 0.9 * torch.rand(2, 3, 8, 8) ** 3, 1e-3 * torch.randn(2, 3, 8, 8)
    x.requires_grad_()
    seen(x).square().sum().backward()
    ahead, behind = (seen(x.detach() + way * move).double().square().sum() for way in (1, -1))
    assert (x.grad * move).sum().item() == pytest.approx(((ahead - behind) / 2).item(), rel=0.02, abs=0.05)
