"""Shortcuts: low-level cues that can reveal a puzzle's answer regardless of image content, and how to remove each.

Reported by papers on pretext tasks: chromatic aberration and lines that continue from patch to patch (Doersch et al. 2015,
arXiv:1505.05192, sec. 3.1 and 4.1), brightness and contrast of neighboring tiles (Noroozi & Favaro 2016, arXiv:1603.09246,
sec. 3.2 and 4.2), color (the same, sec. 4.2). Each function removes as little else as possible.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.rng import Rng
from pretask.transforms import augment
from pretask.transforms.color import luma

BLOCK = 8
"""side of JPEG's blocks, pixels"""


@dataclass(frozen=True)
class Shortcut:
    """`image` removes the shortcut from images (B, C, H, W) in [0, 1], or `tiles` from the tiles of a puzzle (B, T, C, h, w)."""

    name: str
    description: str
    image: Callable[[Tensor, Rng], Tensor] | None = None
    tiles: Callable[[Tensor], Tensor] | None = None
    colored: bool = False  # only in color images


# ---- from images


def remove_fringes(x: Tensor, rng: Rng) -> Tensor:
    """Give every channel the fine detail of green and keep its coarse color, which removes displaced edges."""
    green = x[:, 1:2]
    return (green + smooth(x - green)).clamp(0, 1)


def remove_saturation(x: Tensor, rng: Rng) -> Tensor:
    """Make coarse colors gray and keep the colors of fine detail, so that fringes remain."""
    return (x - smooth(x - luma(x))).clamp(0, 1)


def remove_shading(x: Tensor, rng: Rng) -> Tensor:
    """Subtract the quadratic surface fitted to an image's luma."""
    at = torch.linspace(-1, 1, x.shape[-1], device=x.device)
    row, column = (each.flatten() for each in torch.meshgrid(at, at, indexing="ij"))
    basis = torch.stack([torch.ones_like(row), row, column, row * column, row**2, column**2], 1)
    light = luma(x).flatten(1).T  # (H·W, B)
    surface = basis @ (torch.linalg.pinv(basis) @ light)
    return (x - (surface - surface.mean(0)).T.view(len(x), 1, *x.shape[-2:])).clamp(0, 1)


def remove_grid(x: Tensor, rng: Rng) -> Tensor:
    """Shift each image by 0 to 7 pixels, so that JPEG blocks start at random positions."""
    corner = rng.integers(len(x), 1, 2, high=BLOCK)
    padding = BLOCK - 1
    return augment.windows(F.pad(x, (0, padding, 0, padding), mode="reflect"), corner, x.shape[-1])[:, 0]


def remove_traces(x: Tensor, rng: Rng) -> Tensor:
    """Downscale to 0.7 of the side and upscale again, which removes the finest detail."""
    small = F.interpolate(x, scale_factor=0.7, mode="bilinear", antialias=True)
    return F.interpolate(small, size=x.shape[-2:], mode="bilinear")


def remove_rim(x: Tensor, rng: Rng) -> Tensor:
    """Replace the outermost sixteenth by a reflection of what lies inside."""
    rim = max(1, x.shape[-1] // 16)
    return F.pad(x[..., rim:-rim, rim:-rim], (rim,) * 4, mode="reflect")


def smooth(x: Tensor) -> Tensor:
    """Mean over a window of a quarter of the side."""
    radius = max(1, x.shape[-1] // 8)
    return F.avg_pool2d(F.pad(x, (radius,) * 4, mode="reflect"), 2 * radius + 1, 1)


# ---- from tiles


def remove_edges(x: Tensor) -> Tensor:
    """Fade the outermost eighth of each tile into the tile's mean, so that lines do not continue in the next tile."""
    side = x.shape[-1]
    at = torch.arange(side, device=x.device)
    depth = torch.minimum(at, side - 1 - at) / max(1, side // 8)
    mean = x.mean((-2, -1), keepdim=True)
    return mean + (x - mean) * torch.minimum(depth[:, None], depth).clamp(max=1)


SHORTCUTS = (
    Shortcut("fringes", "color fringes of lenses (chromatic aberration)", remove_fringes, colored=True),
    Shortcut("saturation", "color and colorfulness of each location", remove_saturation, colored=True),
    Shortcut("shading", "light that falls off toward one side or the corners", remove_shading),
    Shortcut("JPEG grid", "position of the 8-pixel blocks", remove_grid),
    Shortcut(
        "fine traces", "artifacts of scaling, sharpening and compression in the finest detail", remove_traces
    ),
    Shortcut("rim", "frames and dark or blurred rims of images", remove_rim),
    Shortcut("edges", "lines and shading that continue from tile to tile", tiles=remove_edges),
)
