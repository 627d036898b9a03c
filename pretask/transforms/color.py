"""Conversions between color spaces. Images are (B, 3, H, W) in [0, 1] unless stated otherwise."""

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as in torchvision


def luma(x: Tensor) -> Tensor:
    """(…, 3, H, W) -> (…, 1, H, W); an image with one channel is returned as it is."""
    if x.shape[-3] == 1:
        return x
    r, g, b = x.unbind(-3)
    return (LUMA[0] * r).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2]).unsqueeze(-3)


def channel_mean(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> the mean of the channels, (B, 1, H, W)."""
    return x.mean(1, keepdim=True)


XYZ = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
) / torch.tensor([[0.95047], [1.0], [1.08883]])
"""matrix from linear sRGB to XYZ, relative to the white point D65"""


AB_STD = 14.0
"""approximate standard deviation of a and b together in photographs"""
LAB_MEAN, LAB_STD = (48.0, 1.0, 3.7), (26.0, 10.5, 18.6)
"""approximate means and standard deviations of L, a and b in photographs (measured on 100 images of Imagenette)"""


def srgb_to_linear(x: Tensor) -> Tensor:
    """sRGB -> linear light, both in [0, 1] (IEC 61966-2-1)."""
    power, line = x.clamp(min=0.04045), x.clamp(max=0.04045)  # the line ends where the power function begins
    return line.sub_(0.04045).div_(12.92).add_(power.add_(0.055).div_(1.055).log2_().mul_(2.4).exp2_())


def lab_response(x: Tensor) -> Tensor:
    """CIELab's f(t): the cube root of linear light, with a linear part for the darkest values (CIE 15)."""
    root, line = x.clamp(min=0.008856), x.clamp(max=0.008856)
    return line.sub_(0.008856).mul_(7.787).add_(root.log2_().div_(3).exp2_())


def rgb_to_lab(x: Tensor) -> Tensor:
    """(B, 3, H, W) sRGB -> CIELab under D65: L in [0, 100], a and b in [-128, 128]."""
    fx, fy, fz = lab_response(torch.einsum("dc,bchw->bdhw", XYZ.to(x.device), srgb_to_linear(x))).unbind(1)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], 1)


def rgb_to_lightness(x: Tensor) -> Tensor:
    """(B, 3, H, W) sRGB -> L of CIELab scaled to [0, 1], (B, 1, H, W)."""
    r, g, b = srgb_to_linear(x).split(1, 1)
    red, green, blue = XYZ[1].tolist()
    return lab_response((red * r).add_(g, alpha=green).add_(b, alpha=blue)).mul_(1.16).sub_(0.16)


def lab_to_rgb(x: Tensor) -> Tensor:
    """The inverse of `rgb_to_lab`; colors outside of the sRGB gamut are clipped."""
    fy = (x[:, 0] + 16) / 116
    f = torch.stack([fy + x[:, 1] / 500, fy, fy - x[:, 2] / 200], 1)
    xyz = torch.where(f > 0.206893, f**3, (f - 16 / 116) / 7.787)
    linear = torch.einsum("dc,bchw->bdhw", XYZ.inverse().to(x.device), xyz).clamp(0, 1)
    return torch.where(
        linear > 0.0031308, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055, 12.92 * linear
    )


def rgb_to_hcv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, H, W) -> hue (6 is a full circle), chroma and value of HSV, (B, H, W) each; saturation is chroma / value."""
    r, g, b = x.unbind(1)
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    hue = torch.where(
        value == r,
        g - b,
        torch.where(value == g, (b - r).add_(chroma, alpha=2), (r - g).add_(chroma, alpha=4)),
    )
    return hue.div_(chroma.clamp(min=1e-8)), chroma, value


def hcv_to_rgb(hue: Tensor, chroma: Tensor, value: Tensor) -> Tensor:
    """The inverse of `rgb_to_hcv`; hue has period 6."""
    lowest = torch.tensor([3.0, 5.0, 1.0], device=hue.device).view(3, 1, 1)  # red is lowest at cyan, …
    distance = hue[:, None] - lowest
    distance.sub_((distance / 6).round_(), alpha=6).abs_()  # (B, 3, H, W) in [0, 3]
    return distance.sub_(2).clamp_(-1, 0).mul_(chroma[:, None]).add_(value[:, None]).clamp_(0, 1)


def tint(gray: Tensor, hue: Tensor, chroma: Tensor) -> Tensor:
    """Color gray images (B, 1, H, W) with hue (6 is a full circle) and chroma (B, H, W): (B, 3, H, W), of the same mean.

    x = gray + chroma · (pure - mean(pure)), where pure is the hue at full saturation and value. A chroma that would
    leave [0, 1] is reduced; the mean of the channels does not change.
    """
    pure = hcv_to_rgb(hue, torch.ones_like(hue), torch.ones_like(hue))
    mean = channel_mean(pure)  # in [1/3, 2/3]
    largest = torch.minimum(gray / mean, (1 - gray) / (1 - mean))
    return gray + torch.minimum(chroma[:, None], largest) * (pure - mean)


def adjust_hue(x: Tensor, hue_factor: Tensor) -> Tensor:
    """Shift the hue of (B, 3, H, W) by `hue_factor` (B,), a fraction of a full circle, in HSV."""
    hue, chroma, value = rgb_to_hcv(x)
    return hcv_to_rgb(hue.add_(6 * hue_factor.view(-1, 1, 1)), chroma, value)
