"""Random augmentations of image batches on their device; each sample draws its own parameters.

Images are (B, C, H, W) floats in [0, 1]. torchvision's transforms draw their parameters once per call, so all images of a
batch would share them. The tests compare each operation with torchvision's deterministic functional.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.limits import NonNegativeFloat, PositiveFractions, UnitInterval
from pretask.rng import Rng
from pretask.transforms.color import adjust_hue, luma

RATIO = (3 / 4, 4 / 3)
"""range of the aspect ratio of a random crop, width to height"""


def to_float(image: Tensor) -> Tensor:
    """(B, C, H, W) uint8 -> floats in [0, 1]."""
    return image.float().div_(255)


def column(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def blend(x: Tensor, other: Tensor | float, ratio: Tensor) -> Tensor:
    """ratio · x + (1 - ratio) · other, clamped to [0, 1]; `ratio` (B,) may exceed 1."""
    ratio = column(ratio)
    return (ratio * x).add_((1 - ratio) * other).clamp_(0, 1)


# ---- geometry


def flip(x: Tensor, rng: Rng, p: float = 0.5) -> Tensor:
    """Flip each image horizontally with probability p."""
    return torch.where(rng.coin(len(x), 1, 1, 1, p=p), x.flip(-1), x)


def windows(x: Tensor, corner: Tensor, size: int) -> Tensor:
    """Cut T windows of `size` pixels from each image without interpolation: (B, T, C, size, size).

    corner (B, T, 2): the row and column of each window's upper left pixel, or (B, T, C, 2), one per channel.
    """
    b, c = x.shape[:2]
    corner = corner if corner.ndim == 4 else corner[:, :, None]
    steps = torch.arange(size, device=x.device)
    rows, columns = corner[..., 0, None] + steps, corner[..., 1, None] + steps  # (B, T, C or 1, size)
    image = torch.arange(b, device=x.device).view(-1, 1, 1, 1, 1)
    channel = torch.arange(c, device=x.device).view(-1, 1, 1)
    return x[image, channel, rows[..., :, None], columns[..., None, :]]


def shift(x: Tensor, rng: Rng, padding: int) -> Tensor:
    """Pad each image with `padding` black pixels and crop a random window of the original size."""
    corner = rng.integers(len(x), 1, 2, high=2 * padding + 1)
    return windows(F.pad(x, [padding] * 4), corner, x.shape[-1])[:, 0]


def crop(x: Tensor, box: Tensor, size: int) -> Tensor:
    """Crop a box from each image, bilinearly: (B, C, size, size).

    box (B, 4): center x, center y, width, height, as fractions of the image.
    """
    steps = (
        2 * torch.arange(size, device=x.device) + 1
    ) / size - 1  # pixel centers, box coordinates in -1 … 1
    position = (
        2 * box[:, :2, None] - 1 + box[:, 2:, None] * steps
    )  # (B, 2, size), image coordinates in -1 … 1
    grid_x, grid_y = position.unbind(1)
    grid = torch.stack(torch.broadcast_tensors(grid_x[:, None], grid_y[:, :, None]), -1)  # (B, size, size, 2)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def random_boxes(count: int, rng: Rng, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """(B, 4): center x, center y, width, height of random boxes, as fractions of the image.

    The area is from `scale`, the ratio of width to height from `ratio`, log-uniform. A box larger than the image is
    clipped to it.
    """
    area = rng.uniform(count, low=scale[0], high=scale[1])
    aspect = rng.uniform(count, low=math.log(ratio[0]), high=math.log(ratio[1])).exp()
    sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp(max=1)  # (B, 2)
    center = sides / 2 + rng.uniform(count, 2) * (1 - sides)
    return torch.cat([center, sides], 1)


def resized_crop(
    x: Tensor,
    size: int,
    rng: Rng,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = RATIO,
) -> Tensor:
    """Crop a random fraction `scale` of the area with aspect ratio `ratio` and resize it to `size`.

    Like torchvision's RandomResizedCrop, except that positions lie between pixels, and that a box larger than the
    image is clipped to it instead of drawn again.
    """
    if x.shape[-1] > 1.5 * size:  # bilinear sampling does not antialias
        x = F.interpolate(x, size=(math.ceil(1.5 * size),) * 2, mode="bilinear", antialias=True)
    return crop(x, random_boxes(len(x), rng, scale, ratio), size)


def positions(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 3, H, W): x and y of every pixel's center, from 0 to 1, in place of colors.

    After a crop, by the same draws, they say where it was made; see `extent`.
    """
    b, _, h, w = image.shape
    y, x = ((torch.arange(n, device=image.device) + 0.5) / n for n in (h, w))
    both = torch.stack([x.expand(h, -1), y[:, None].expand(-1, w), torch.zeros(h, w, device=image.device)])
    return both.expand(b, -1, -1, -1)


def extent(crop: Tensor) -> Tensor:
    """Crops of positions (…, 3, h, w), flipped or not -> (…, 4): left, top, right, bottom as fractions of the image."""
    sides = []
    for centers in (crop[..., 0, 0, :], crop[..., 1, :, 0]):
        first, last = centers[..., [0, -1]].sort(-1).values.unbind(-1)
        half = (last - first) / (2 * max(1, centers.shape[-1] - 1))  # from the center of a pixel to its edge
        sides.append((first - half, last + half))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], -1).clamp(0, 1)


# ---- color


def gray(x: Tensor, rng: Rng, p: float) -> Tensor:
    """Convert each image to grayscale with probability p, keeping three channels."""
    return torch.where(rng.coin(len(x), 1, 1, 1, p=p), luma(x), x)


def color_jitter(
    x: Tensor,
    rng: Rng,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
    p: float = 1.0,
) -> Tensor:
    """torchvision's ColorJitter; the order of the four operations is drawn once per batch. Gray images keep one channel."""
    colored = x.shape[1] == 3

    def ratio(strength: float) -> Tensor:
        return rng.uniform(len(x), low=max(0.0, 1 - strength), high=1 + strength)

    factors = [ratio(brightness), ratio(contrast), ratio(saturation), rng.uniform(len(x), low=-hue, high=hue)]
    out = x
    for operation in rng.unsharded.permutation(4).tolist():
        factor = factors[operation]
        if operation == 0 and brightness:
            out = blend(out, 0.0, factor)
        elif operation == 1 and contrast:
            out = blend(out, luma(out).mean((1, 2, 3), keepdim=True), factor)
        elif operation == 2 and saturation and colored:
            out = blend(out, luma(out), factor)
        elif operation == 3 and hue and colored:
            out = adjust_hue(out, factor)
    return out if p >= 1 else torch.where(rng.coin(len(x), 1, 1, 1, p=p), out, x)


def solarize(x: Tensor, rng: Rng, p: float) -> Tensor:
    """Invert values of 0.5 and more in each image with probability p."""
    return torch.where((x >= 0.5) & rng.coin(len(x), 1, 1, 1, p=p), 1 - x, x)


def blur(x: Tensor, rng: Rng, p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)) -> Tensor:
    """Gaussian blur of each image with probability p, with its own standard deviation from `sigma`, in pixels.

    The kernel size is a tenth of the side, as in SimCLR (arXiv:2002.05709, appendix A).
    """
    b, c, h, w = x.shape
    radius = max(1, round(0.05 * w))
    std = rng.uniform(b, low=sigma[0], high=sigma[1])
    offset = torch.arange(-radius, radius + 1, device=x.device)
    kernel = (-(offset**2) / (2 * std[:, None] ** 2)).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)  # (B·C, K)
    flat = F.pad(x, [radius] * 4, mode="reflect").reshape(1, b * c, h + 2 * radius, w + 2 * radius)
    flat = F.conv2d(flat, kernel[:, None, None], groups=b * c)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=b * c)
    return torch.where(rng.coin(b, 1, 1, 1, p=p), flat.view(b, c, h, w).clamp(0, 1), x)


def erase(x: Tensor, rng: Rng, p: float, fill: Tensor) -> Tensor:
    """Replace a random box of each image by `fill` (C, 1, 1) with probability p: torchvision's RandomErasing.

    A box larger than the image is clipped to it instead of drawn again, and its position lies between pixels.
    """
    box = random_boxes(len(x), rng, (0.02, 0.33), (1 / 3.3, 1 / 0.3))[..., None]  # (B, 4, 1)
    pixels = (torch.arange(x.shape[-1], device=x.device) + 0.5) / x.shape[-1]
    columns, rows = ((pixels - box[:, :2]).abs() < box[:, 2:] / 2).unbind(1)  # (B, W), (B, H)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside & rng.coin(len(x), 1, 1, 1, p=p), fill, x)


def standardize(x: Tensor) -> Tensor:
    """Scale each channel of each image (…, H, W) to mean 0 and standard deviation 1; a constant channel becomes 0."""
    centered = x - x.mean((-2, -1), keepdim=True)
    return centered / centered.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=1 / 255)


# ---- the augmentation of contrastive methods


@dataclass(frozen=True)
class ViewAugmentation:
    """Augmentation of one view: SimCLR's recipe (arXiv:2002.05709, appendix A)."""

    crop: PositiveFractions = (0.2, 1.0)
    """range of the crop's area, as fractions of the image; 1 1 keeps the whole image"""
    flip: UnitInterval = 0.5
    """probability of a horizontal flip"""
    jitter: NonNegativeFloat = 0.5
    """strength s of the color jitter: 0.8 s for brightness, contrast and saturation, 0.2 s for hue"""
    saturation: NonNegativeFloat | None = None
    """largest change of saturation; none: the same as of brightness (BYOL and later methods: 0.2, half of that)"""
    jitter_p: UnitInterval = 0.8
    """probability of color jitter"""
    gray: UnitInterval = 0.2
    """probability of conversion to grayscale"""
    blur: UnitInterval = 0.0
    """probability of Gaussian blur (none for small images; appendix B.9)"""
    solarize: UnitInterval = 0.0
    """probability of solarization (used in BYOL's second view)"""

    def __call__(self, x: Tensor, size: int, rng: Rng) -> Tensor:
        """(B, C, H, W) in [0, 1] -> one view (B, C, size, size)."""
        x = self.distort_colors(self.cropped(x, size, rng), rng)
        x = blur(x, rng, self.blur) if self.blur else x
        return solarize(x, rng, self.solarize) if self.solarize else x

    def cropped(self, x: Tensor, size: int, rng: Rng) -> Tensor:
        """What a view shows, in the image's own colors."""
        shape = (1.0, 1.0) if self.crop == (1.0, 1.0) else RATIO
        return flip(resized_crop(x, size, rng, self.crop, shape), rng, self.flip)

    @property
    def jitter_strengths(self) -> tuple[float, float, float, float]:
        """The largest changes of brightness, contrast, saturation and hue."""
        s = 0.8 * self.jitter
        return s, s, s if self.saturation is None else self.saturation, 0.2 * self.jitter

    def distort_colors(self, x: Tensor, rng: Rng) -> Tensor:
        """Color jitter, then random conversion to grayscale."""
        x = color_jitter(x, rng, *self.jitter_strengths, p=self.jitter_p)
        return gray(x, rng, self.gray) if x.shape[1] == 3 else x


@dataclass(frozen=True)
class HueAugmentation(ViewAugmentation):
    """The same with a stronger hue jitter, half of the other three (released code of EMP-SSL and DIET-CP)."""

    @property
    def jitter_strengths(self) -> tuple[float, float, float, float]:
        brightness, contrast, saturation, _ = super().jitter_strengths
        return brightness, contrast, saturation, brightness / 2
