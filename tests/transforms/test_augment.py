"""Each batched operation equals torchvision's on each image, with the same parameters."""

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch.testing import assert_close

from pretask.rng import Rng
from pretask.transforms import augment
from pretask.transforms.color import (
    luma,
)

X = Rng(0, "images").uniform(6, 3, 20, 20)


def per_image(function, x, *values):
    return torch.stack([function(image, *v) for image, *v in zip(x, *values, strict=True)])


def test_blend_matches_torchvision_brightness_contrast_and_saturation():
    ratio = Rng(1).uniform(6, low=0.2, high=1.8)
    assert_close(
        augment.blend(X, 0.0, ratio), per_image(lambda i, f: tv.adjust_brightness(i, float(f)), X, ratio)
    )
    mean = luma(X).mean((1, 2, 3), keepdim=True)
    assert_close(
        augment.blend(X, mean, ratio), per_image(lambda i, f: tv.adjust_contrast(i, float(f)), X, ratio)
    )
    assert_close(
        augment.blend(X, luma(X), ratio),
        per_image(lambda i, f: tv.adjust_saturation(i, float(f)), X, ratio),
    )


def test_crop_of_a_box_on_pixel_borders_matches_torchvision_resized_crop():
    box = torch.tensor([[0.5, 0.4, 0.5, 0.6]]).repeat(6, 1)  # left 5, top 2, 10 x 12 of 20
    expected = tv.resized_crop(X, 2, 5, 12, 10, [16, 16], antialias=False)
    inner = slice(1, -1)  # torchvision repeats the border pixels of the box, we sample the image beyond it
    assert_close(augment.crop(X, box, 16)[..., inner, inner], expected[..., inner, inner], atol=1e-5, rtol=0)


def test_blur_matches_torchvision_gaussian_blur():
    std = Rng(3).uniform(6, low=0.1, high=2.0)
    expected = per_image(lambda i, s: tv.gaussian_blur(i, [3, 3], [float(s)] * 2), X, std)
    assert_close(augment.blur(X, Rng(3), p=1.0), expected, atol=1e-5, rtol=0)


def test_shift_is_a_crop_of_the_padded_image():
    top, left = Rng(4).integers(6, 2, high=9).T
    padded = tv.pad(X, [4])
    expected = per_image(lambda i, t, le: tv.crop(i, int(t), int(le), 20, 20), padded, top, left)
    assert torch.equal(augment.shift(X, Rng(4), 4), expected)


def test_solarize_matches_torchvision():
    assert_close(augment.solarize(X, Rng(0), 1.0), tv.solarize(X, 0.5))


def test_erased_boxes_match_torchvision_erase_and_have_its_sizes():
    """RandomErasing: an area of 2 to 33 %, sides in a ratio of 0.3 to 3.3, anywhere in the image."""
    x, fill = Rng(1).uniform(2000, 3, 40, 40), torch.tensor([2.0, 3.0, 4.0]).view(3, 1, 1)
    out = augment.erase(x, Rng(2), 1.0, fill)
    gone = (out == fill).all(1)
    rows, columns = gone.any(2), gone.any(1)
    for i in range(50):
        (top, height), (left, width) = (
            (int(at[i].int().argmax()), int(at[i].sum())) for at in (rows, columns)
        )
        assert torch.equal(out[i], tv.erase(x[i], top, left, height, width, fill))
    area, ratio = gone.float().mean((1, 2)), columns.sum(1) / rows.sum(1)
    assert 0.01 < area.min() < 0.03 and 0.32 < area.max() < 0.37 and abs(area.mean() - 0.175) < 0.005
    assert 0.2 < ratio.min() < 0.33 and 3.0 < ratio.max() < 5 and abs(ratio.log().mean()) < 0.05
    large = ratio[area > 0.2]
    assert 0.27 < large.min() < 0.33 and 3.0 < large.max() < 3.7
    assert rows[:, 0].any() and rows[:, -1].any() and columns[:, 0].any() and columns[:, -1].any()
    some = (augment.erase(x, Rng(3), 0.25, fill) != x).flatten(1).any(1).float().mean()
    assert abs(some - 0.25) < 0.04


def test_hue_augmentation_changes_hue_by_half_as_much_as_brightness():
    assert augment.HueAugmentation().jitter_strengths == pytest.approx((0.4, 0.4, 0.4, 0.2))
    assert augment.HueAugmentation(jitter=1.0).jitter_strengths == pytest.approx((0.8, 0.8, 0.8, 0.4))


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, r: augment.flip(x, r),
        lambda x, r: augment.shift(x, r, 4),
        lambda x, r: augment.resized_crop(x, 16, r),
        lambda x, r: augment.color_jitter(x, r),
        lambda x, r: augment.gray(x, r, 0.5),
        lambda x, r: augment.blur(x, r),
        lambda x, r: augment.erase(x, r, 0.5, torch.zeros(3, 1, 1)),
        lambda x, r: augment.ViewAugmentation(blur=0.5, solarize=0.2)(x, 16, r),
    ],
)
def test_every_operation_draws_per_image_and_shards_equal_the_whole_batch(operation):
    same = X[:1].repeat(64, 1, 1, 1)
    out = operation(same, Rng(5))
    assert not torch.equal(out[0], out[1:]) and len(out.unique(dim=0)) > 1
    assert out.min() >= 0 and out.max() <= 1 and torch.equal(out, operation(same, Rng(5)))
    halves = [operation(same[:32], Rng(5, shard=(rank, 2))) for rank in (0, 1)]
    assert_close(torch.cat(halves), out)


def test_crops_have_the_given_scale_and_stay_inside_the_image():
    ramp = torch.linspace(0, 1, 64).view(1, 1, 1, 64).expand(4000, 1, 64, 64)
    out = augment.resized_crop(ramp, 8, Rng(6), scale=(0.25, 0.25), ratio=(1.0, 1.0))
    extent = out[:, 0, 0, -1] - out[:, 0, 0, 0]  # half of the width, minus one of its eight pixels
    assert_close(extent, torch.full((4000,), 0.5 * 7 / 8 * 64 / 63), atol=0.02, rtol=0)
    left = out[:, 0, 0, 0] - 0.5 / 16
    assert left.min() < 0.02 and left.max() > 0.48 and abs(left.mean() - 0.25) < 0.01


def test_large_images_are_downscaled_with_antialiasing():
    stripes = (torch.arange(256) % 2).float().expand(8, 3, 256, 256)
    out = augment.resized_crop(stripes, 32, Rng(7), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert (out - 0.5).abs().max() < 0.1


# ---- color spaces, against scikit-image

"""18 values of each channel in all combinations, black and white included"""
