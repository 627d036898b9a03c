"""Which features of an encoder are used: those of one stage, with its map averaged to a grid.

A map (C, h, w) is average-pooled to s x s with the largest s for which C·s² is at most WIDTH (and s at most h), as is usual for
linear probes per layer (Zhang et al. 2017, arXiv:1611.09842; Goyal et al. 2019, arXiv:1905.01235: about 9000 values; here 4096, so
that a stage of 50,000 samples takes 400 MB).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.encoders import Encoder, inference_batch
from pretask.transforms import augment
from pretask.types import UserError

WIDTH = 4096
"""maximum number of values per stage, unless a grid is given"""


def finest_grid(channels: int, side: int, width: int = WIDTH) -> int:
    """Side of the finest grid with at most `width` values in all channels, and no finer than the map."""
    return max(1, min(math.isqrt(width // channels), side))


def to_grid(x: Tensor, grid: int) -> Tensor:
    """(B, C, h, w) -> (B, C · grid²), averaged over the cells of a grid."""
    return F.adaptive_avg_pool2d(x, grid).flatten(1)


def pool_map(x: Tensor, width: int = WIDTH, grid: int | None = None) -> Tensor:
    """(B, C, h, w) or (B, D) -> (B, D'): a map is average-pooled to the finest grid with at most `width` values, or to `grid` if it has
    so many cells, and flattened."""
    if x.ndim == 2:
        return x
    side = min(x.shape[2:])
    return to_grid(x, min(grid, side) if grid else finest_grid(x.shape[1], side, width))


class Readout(nn.Module):
    """(B, C, H, W) in [0, 1] -> (B, D): the features of one stage; a map is averaged to `grid` x `grid` cells."""

    def __init__(self, encoder: Encoder, stage: str = "pool", grid: int | None = None):
        """`grid` None: the finest one with at most WIDTH values. Raises UserError for an unknown stage and for a grid that is too fine."""
        super().__init__()
        if stage not in encoder.widths:
            raise UserError(f"{encoder.name} has no stage {stage!r}; it has {', '.join(encoder.widths)}")
        side, channels = encoder.sides.get(stage), encoder.widths[stage]
        if side is None and grid is not None:
            raise UserError(f"{stage} of {encoder.name} is no map, so it has no --grid")
        if side is not None and grid is not None and grid > side:
            raise UserError(
                f"--grid {grid} is finer than {stage} of {encoder.name}, which is {side} x {side}"
            )
        self.encoder, self.stage = encoder, stage
        self.grid = grid if side is None else grid or finest_grid(channels, side)
        self.width = channels * (self.grid or 1) ** 2

    def __str__(self) -> str:
        """ "stage2 of resnet18, 8 x 8" """
        return f"{self.stage} of {self.encoder.name}" + (f", {self.grid} x {self.grid}" if self.grid else "")

    def forward(self, image: Tensor) -> Tensor:
        found = self.encoder(image)[self.stage]
        return found if self.grid is None else to_grid(found, self.grid)

    @torch.no_grad()
    def rows(self, image: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, D) on the CPU, in evaluation mode. The encoder's mode is restored."""
        was_training, device = self.encoder.training, self.encoder.mean.device
        self.encoder.eval()
        parts = image.split(inference_batch(self.encoder.size, device))
        found = [self(augment.to_float(part.to(device))).float().cpu() for part in parts]
        self.encoder.train(was_training)
        return torch.cat(found)
