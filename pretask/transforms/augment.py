"""Random image operations on a batch, on its device; every sample draws its own parameters.

Images are (B, C, H, W) floats in [0, 1]. torchvision's transforms draw once per call, so a batch would share its
parameters; its deterministic functionals are the oracle that the tests hold these operations to.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.limits import Parts, Share, Weight
from pretask.rng import Rng

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as in torchvision


RATIO = (3 / 4, 4 / 3)
"""of the sides of a random part, width to height"""


def to_float(image: Tensor) -> Tensor:
    """(B, C, H, W) uint8 -> the same in [0, 1]."""
    return image.float().div_(255)


def column(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def blend(x: Tensor, other: Tensor | float, share: Tensor) -> Tensor:
    """share · x + (1 - share) · other, kept in [0, 1]; `share` (B,) may exceed 1."""
    share = column(share)
    return (share * x).add_((1 - share) * other).clamp_(0, 1)


# ---- geometry


def flip(x: Tensor, rng: Rng, p: float = 0.5) -> Tensor:
    """Left to right, each image with probability p."""
    return torch.where(rng.coin(len(x), 1, 1, 1, p=p), x.flip(-1), x)


def windows(x: Tensor, corner: Tensor, size: int) -> Tensor:
    """T windows of `size` pixels out of each image, (B, T, C, size, size), uninterpolated.

    corner (B, T, 2): the row and column of each window's upper left pixel; (B, T, C, 2) gives each channel its own.
    """
    b, c = x.shape[:2]
    corner = corner if corner.ndim == 4 else corner[:, :, None]
    steps = torch.arange(size, device=x.device)
    rows, columns = corner[..., 0, None] + steps, corner[..., 1, None] + steps  # (B, T, C or 1, size)
    image = torch.arange(b, device=x.device).view(-1, 1, 1, 1, 1)
    channel = torch.arange(c, device=x.device).view(-1, 1, 1)
    return x[image, channel, rows[..., :, None], columns[..., None, :]]


def shift(x: Tensor, rng: Rng, padding: int) -> Tensor:
    """A window of the image's own size, out of the image with `padding` black pixels around it."""
    corner = rng.integers(len(x), 1, 2, high=2 * padding + 1)
    return windows(F.pad(x, [padding] * 4), corner, x.shape[-1])[:, 0]


def crop(x: Tensor, box: Tensor, size: int) -> Tensor:
    """Boxes (B, 4) of centre x, centre y, width, height as fractions of the image -> (B, C, size, size), bilinear."""
    steps = (2 * torch.arange(size, device=x.device) + 1) / size - 1  # pixel centres of a box from -1 to 1
    at = 2 * box[:, :2, None] - 1 + box[:, 2:, None] * steps  # (B, 2, size), the same of the image
    across, down = at.unbind(1)
    grid = torch.stack(torch.broadcast_tensors(across[:, None], down[:, :, None]), -1)  # (B, size, size, 2)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def resized_crop(
    x: Tensor,
    size: int,
    rng: Rng,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = RATIO,
) -> Tensor:
    """A random part of `scale` of the area and of aspect `ratio`, resized to `size`.

    As torchvision's RandomResizedCrop, but for positions between pixels, and a box that would leave the image is
    cut to its side instead of drawn anew.
    """
    if x.shape[-1] > 1.5 * size:  # bilinear sampling has no anti-aliasing
        x = F.interpolate(x, size=(math.ceil(1.5 * size),) * 2, mode="bilinear", antialias=True)
    b = len(x)
    area = rng.uniform(b, low=scale[0], high=scale[1])
    aspect = rng.uniform(b, low=math.log(ratio[0]), high=math.log(ratio[1])).exp()
    sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp(
        max=1
    )  # (B, 2) width, height
    centre = sides / 2 + rng.uniform(b, 2) * (1 - sides)
    return crop(x, torch.cat([centre, sides], 1), size)


# ---- colour


def luma(x: Tensor) -> Tensor:
    """(…, 3, H, W) -> (…, 1, H, W); an image of one channel is its own."""
    if x.shape[-3] == 1:
        return x
    r, g, b = x.unbind(-3)
    return (LUMA[0] * r).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2]).unsqueeze(-3)


def grey(x: Tensor, rng: Rng, p: float) -> Tensor:
    """Without colour, each image with probability p."""
    return torch.where(rng.coin(len(x), 1, 1, 1, p=p), luma(x), x)


def mean(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> the mean of the channels, (B, 1, H, W)."""
    return x.mean(1, keepdim=True)


XYZ = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
) / torch.tensor([[0.95047], [1.0], [1.08883]])
"""from linear sRGB, in units of the white D65"""


AB_SPREAD = 14.0
"""about the standard deviation of a and b in photographs, of both together"""
LAB_MEAN, LAB_SPREAD = (48.0, 1.0, 3.7), (26.0, 10.5, 18.6)
"""about the means and standard deviations of L, a and b in photographs (of 100 of Imagenette)"""


def linear(x: Tensor) -> Tensor:
    """sRGB -> proportional to light, both in [0, 1] (IEC 61966-2-1)."""
    power, line = x.clamp(min=0.04045), x.clamp(max=0.04045)  # the one goes on where the other ends
    return line.sub_(0.04045).div_(12.92).add_(power.add_(0.055).div_(1.055).log2_().mul_(2.4).exp2_())


def perceived(x: Tensor) -> Tensor:
    """Light, of white's -> as it is perceived, both in [0, 1]: the cube root, but for the darkest (CIE 15)."""
    root, line = x.clamp(min=0.008856), x.clamp(max=0.008856)
    return line.sub_(0.008856).mul_(7.787).add_(root.log2_().div_(3).exp2_())


def lab(x: Tensor) -> Tensor:
    """(B, 3, H, W) sRGB -> CIELab under D65: L in [0, 100], a and b within 128 of 0."""
    fx, fy, fz = perceived(torch.einsum("dc,bchw->bdhw", XYZ.to(x.device), linear(x))).unbind(1)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], 1)


def lightness(x: Tensor) -> Tensor:
    """(B, 3, H, W) sRGB -> L of CIELab in [0, 1], (B, 1, H, W)."""
    r, g, b = linear(x).split(1, 1)
    red, green, blue = XYZ[1].tolist()
    return perceived((red * r).add_(g, alpha=green).add_(b, alpha=blue)).mul_(1.16).sub_(0.16)


def from_lab(x: Tensor) -> Tensor:
    """The inverse of `lab`; colours that sRGB lacks are cut to it."""
    fy = (x[:, 0] + 16) / 116
    f = torch.stack([fy + x[:, 1] / 500, fy, fy - x[:, 2] / 200], 1)
    xyz = torch.where(f > 0.206893, f**3, (f - 16 / 116) / 7.787)
    linear = torch.einsum("dc,bchw->bdhw", XYZ.inverse().to(x.device), xyz).clamp(0, 1)
    return torch.where(
        linear > 0.0031308, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055, 12.92 * linear
    )


def to_hcv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, H, W) -> hue, 6 once around the circle, chroma and value of HSV, (B, H, W) each; saturation is c / v."""
    r, g, b = x.unbind(1)
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    hue = torch.where(
        value == r,
        g - b,
        torch.where(value == g, (b - r).add_(chroma, alpha=2), (r - g).add_(chroma, alpha=4)),
    )
    return hue.div_(chroma.clamp(min=1e-8)), chroma, value


def from_hcv(hue: Tensor, chroma: Tensor, value: Tensor) -> Tensor:
    """The inverse of `to_hcv`; any hue counts, once around or more."""
    lowest = torch.tensor([3.0, 5.0, 1.0], device=hue.device).view(3, 1, 1)  # red is lowest at cyan, …
    away = hue[:, None] - lowest
    away.sub_((away / 6).round_(), alpha=6).abs_()  # (B, 3, H, W) in [0, 3]
    return away.sub_(2).clamp_(-1, 0).mul_(chroma[:, None]).add_(value[:, None]).clamp_(0, 1)


def tinted(grey: Tensor, hue: Tensor, chroma: Tensor) -> Tensor:
    """Hue, 6 once around, and chroma (B, H, W) put on the grey of (B, 1, H, W) -> (B, 3, H, W), of the same mean.

    x = grey + chroma · (pure - mean(pure)), where pure is the hue at its fullest, from 0 to 1. A chroma that would
    leave [0, 1] is cut; the mean of the channels stays.
    """
    pure = from_hcv(hue, torch.ones_like(hue), torch.ones_like(hue))
    middle = mean(pure)  # in [1/3, 2/3]
    room = torch.minimum(grey / middle, (1 - grey) / (1 - middle))
    return grey + torch.minimum(chroma[:, None], room) * (pure - middle)


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """The hue of (B, 3, H, W) moved by `turns` (B,) of a full circle, in HSV."""
    hue, chroma, value = to_hcv(x)
    return from_hcv(hue.add_(6 * turns.view(-1, 1, 1)), chroma, value)


def jitter(
    x: Tensor,
    rng: Rng,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
    p: float = 1.0,
) -> Tensor:
    """torchvision's ColorJitter; the order of the four is drawn once per batch. Grey images keep their one channel."""
    coloured = x.shape[1] == 3

    def share(strength: float) -> Tensor:
        return rng.uniform(len(x), low=max(0.0, 1 - strength), high=1 + strength)

    factors = [share(brightness), share(contrast), share(saturation), rng.uniform(len(x), low=-hue, high=hue)]
    out = x
    for operation in rng.whole.permutation(4).tolist():
        by = factors[operation]
        if operation == 0 and brightness:
            out = blend(out, 0.0, by)
        elif operation == 1 and contrast:
            out = blend(out, luma(out).mean((1, 2, 3), keepdim=True), by)
        elif operation == 2 and saturation and coloured:
            out = blend(out, luma(out), by)
        elif operation == 3 and hue and coloured:
            out = turn_hue(out, by)
    return out if p >= 1 else torch.where(rng.coin(len(x), 1, 1, 1, p=p), out, x)


def solarize(x: Tensor, rng: Rng, p: float) -> Tensor:
    """Tones from the middle up are inverted, each image with probability p."""
    return torch.where((x >= 0.5) & rng.coin(len(x), 1, 1, 1, p=p), 1 - x, x)


def blur(x: Tensor, rng: Rng, p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)) -> Tensor:
    """Gaussian, of a width of its own for each image (`sigma` in pixels), each with probability p.

    The window is a tenth of the side, as in SimCLR (arXiv:2002.05709, appendix A).
    """
    b, c, h, w = x.shape
    reach = max(1, round(0.05 * w))
    width = rng.uniform(b, low=sigma[0], high=sigma[1])
    at = torch.arange(-reach, reach + 1, device=x.device)
    weight = (-(at**2) / (2 * width[:, None] ** 2)).exp()
    weight = (weight / weight.sum(1, keepdim=True)).repeat_interleave(c, 0)  # (B·C, K)
    flat = F.pad(x, [reach] * 4, mode="reflect").reshape(1, b * c, h + 2 * reach, w + 2 * reach)
    flat = F.conv2d(flat, weight[:, None, None], groups=b * c)
    flat = F.conv2d(flat, weight[:, None, :, None], groups=b * c)
    return torch.where(rng.coin(b, 1, 1, 1, p=p), flat.view(b, c, h, w).clamp(0, 1), x)


def standardise(x: Tensor) -> Tensor:
    """Each channel of each (…, H, W) with mean 0 and standard deviation 1; a constant becomes 0."""
    centred = x - x.mean((-2, -1), keepdim=True)
    return centred / centred.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=1 / 255)


# ---- the two-view recipe of the contrastive line


@dataclass(frozen=True)
class Views:
    """How a view of an image is drawn: SimCLR's recipe (arXiv:2002.05709, appendix A)."""

    crop: Parts = (0.2, 1.0)
    """share of the area that a view shows; 1 1: the image as it is"""
    flip: Share = 0.5
    """probability of a left-right flip"""
    jitter: Weight = 0.5
    """strength of the colour jitter; 0.8 of it for brightness, contrast and saturation, 0.2 for hue"""
    saturation: Weight | None = None
    """largest change of saturation; none: as of brightness (BYOL and what followed it: 0.2, half of that)"""
    jitter_p: Share = 0.8
    """probability of a jitter"""
    grey: Share = 0.2
    """probability of losing all colour"""
    blur: Share = 0.0
    """probability of a Gaussian blur (small images: none; appendix B.9)"""
    solarize: Share = 0.0
    """probability of inverted highlights (BYOL's second view)"""

    def __call__(self, x: Tensor, size: int, rng: Rng) -> Tensor:
        """(B, C, H, W) in [0, 1] -> one view (B, C, size, size)."""
        shape = (1.0, 1.0) if self.crop == (1.0, 1.0) else RATIO
        x = flip(resized_crop(x, size, rng, self.crop, shape), rng, self.flip)
        x = self.colors(x, rng)
        x = blur(x, rng, self.blur) if self.blur else x
        return solarize(x, rng, self.solarize) if self.solarize else x

    @property
    def strengths(self) -> tuple[float, float, float, float]:
        """Largest changes of brightness, contrast, saturation and hue."""
        s = 0.8 * self.jitter
        return s, s, s if self.saturation is None else self.saturation, 0.2 * self.jitter

    def colors(self, x: Tensor, rng: Rng) -> Tensor:
        """What becomes of them: first the jitter, then, in some views, they are lost."""
        x = jitter(x, rng, *self.strengths, p=self.jitter_p)
        return grey(x, rng, self.grey) if x.shape[1] == 3 else x
