"""Clues: what may give a puzzle's answer away without saying what is in the image, and how each is taken away.

Found by those who saw networks solve puzzles too well: the colour fringes of lenses and lines that run on from patch to
patch (Doersch et al. 2015, arXiv:1505.05192, sec. 3.1 and 4.1), brightness and contrast of neighbouring tiles (Noroozi &
Favaro 2016, arXiv:1603.09246, sec. 3.2 and 4.2), colour (the same, sec. 4.2). Each takes away as little else as it can.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.rng import Rng
from pretask.transforms import augment as images

BLOCK = 8
"""pixels of JPEG's blocks"""


@dataclass(frozen=True)
class Clue:
    """`image` takes it out of images (B, C, H, W) in [0, 1]; or `tiles` out of a puzzle's (B, T, C, h, w)."""

    name: str
    told_by: str
    image: Callable[[Tensor, Rng], Tensor] | None = None
    tiles: Callable[[Tensor], Tensor] | None = None
    coloured: bool = False  # there is none in grey images


# ---- out of images


def without_fringes(x: Tensor, rng: Rng) -> Tensor:
    """Every channel gets the fine detail of green, and keeps its own coarse colour: no edge is doubled."""
    green = x[:, 1:2]
    return (green + smooth(x - green)).clamp(0, 1)


def without_saturation(x: Tensor, rng: Rng) -> Tensor:
    """Every place becomes grey, and keeps the colours of its fine detail: fringes stay."""
    return (x - smooth(x - images.luma(x))).clamp(0, 1)


def without_shading(x: Tensor, rng: Rng) -> Tensor:
    """The quadratic surface nearest to an image's brightness, levelled."""
    at = torch.linspace(-1, 1, x.shape[-1], device=x.device)
    down, across = (each.flatten() for each in torch.meshgrid(at, at, indexing="ij"))
    basis = torch.stack([torch.ones_like(down), down, across, down * across, down**2, across**2], 1)
    light = images.luma(x).flatten(1).T  # (H·W, B)
    surface = basis @ (torch.linalg.pinv(basis) @ light)
    return (x - (surface - surface.mean(0)).T.view(len(x), 1, *x.shape[-2:])).clamp(0, 1)


def without_grid(x: Tensor, rng: Rng) -> Tensor:
    """Moved by 0 to 7 pixels, so that blocks begin anywhere."""
    corner = rng.integers(len(x), 1, 2, high=BLOCK)
    spare = BLOCK - 1
    return images.windows(F.pad(x, (0, spare, 0, spare), mode="reflect"), corner, x.shape[-1])[:, 0]


def without_traces(x: Tensor, rng: Rng) -> Tensor:
    """Scaled down to seven tenths and up again: what is finer is gone."""
    small = F.interpolate(x, scale_factor=0.7, mode="bilinear", antialias=True)
    return F.interpolate(small, size=x.shape[-2:], mode="bilinear")


def without_rim(x: Tensor, rng: Rng) -> Tensor:
    """The outermost sixteenth mirrors what lies inside it."""
    rim = max(1, x.shape[-1] // 16)
    return F.pad(x[..., rim:-rim, rim:-rim], (rim,) * 4, mode="reflect")


def smooth(x: Tensor) -> Tensor:
    """Mean over a window of a quarter of the side."""
    reach = max(1, x.shape[-1] // 8)
    return F.avg_pool2d(F.pad(x, (reach,) * 4, mode="reflect"), 2 * reach + 1, 1)


# ---- out of tiles


def without_edges(x: Tensor) -> Tensor:
    """The outermost eighth of each tile fades into the tile's mean: nothing meets what is in the next."""
    side = x.shape[-1]
    at = torch.arange(side, device=x.device)
    depth = torch.minimum(at, side - 1 - at) / max(1, side // 8)
    mean = x.mean((-2, -1), keepdim=True)
    return mean + (x - mean) * torch.minimum(depth[:, None], depth).clamp(max=1)


CLUES = (
    Clue("fringes", "edges whose colours a lens has bent apart", without_fringes, coloured=True),
    Clue("saturation", "how colourful a place is, and in which colour", without_saturation, coloured=True),
    Clue("shading", "light that falls off towards one side or the corners", without_shading),
    Clue("JPEG grid", "where blocks of 8 pixels begin", without_grid),
    Clue("fine traces", "what scaling, sharpening and coding leave in the finest detail", without_traces),
    Clue("rim", "frames and dark or smeared rims of images", without_rim),
    Clue("edges", "lines and shades that run on from tile to tile", tiles=without_edges),
)
