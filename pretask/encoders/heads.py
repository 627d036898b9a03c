"""Heads and EMA copies of networks."""

import copy
import math
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pretask.encoders import Encoder

M = TypeVar("M", bound=nn.Module)

DROP_RATES = {"drop_prob", "drop_rate", "prob"}
"""attributes that hold the drop rate of timm's DropPath, DropBlock2d, classifiers and PatchDropout"""


def build_mlp(*widths: int, bias: bool = True) -> nn.Sequential:
    """Linear layers with batch norm and ReLU in between; the last is linear, with or without a bias."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths[:-1]):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias))


def ema_copy(module: M) -> M:
    """A momentum teacher: a copy without gradients, dropout and stochastic depth, updated by `update_ema`.

    In training mode its batch norms use statistics of its own batches, as in the released code of BYOL and
    DINO.
    """
    teacher = copy.deepcopy(module).requires_grad_(False)
    for part in teacher.modules():
        if isinstance(part, _DropoutNd):
            part.p = 0.0
        for rate in DROP_RATES & vars(part).keys():
            setattr(part, rate, 0.0)
    return teacher


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move every teacher weight towards the student's: θ' ← m · θ' + (1 - m) · θ, with m = `momentum`."""
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.lerp_(new, 1 - momentum)


def cosine_momentum(start: float, fraction: float) -> float:
    """Teacher momentum at a fraction of the run: from `start` to 1 on a half cosine."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * fraction)) / 2


def linear_warmup(start: float, end: float, warmup: float, fraction: float) -> float:
    """A teacher's temperature at a fraction of the run: from `start` to `end` in the first `warmup` of it."""
    return start + (end - start) * fraction / warmup if fraction < warmup else end


class TileEncoder(nn.Module):
    """An encoder for tiles much smaller than its images; each tile is encoded separately and is
    already normalized.

    Networks with a fixed input size, such as transformers, get every tile resized to it.
    """

    def __init__(self, encoder: Encoder, side: int, flat: bool = False):
        super().__init__()
        self.encoder, self.flat, self.side = encoder, flat, encoder.side(side / encoder.size)
        with torch.no_grad():
            features, last = self.eval()(torch.zeros(1, encoder.channels, side, side))
        self.train()
        self.dim, self.channels = features.shape[1], last.shape[1]

    def forward(self, tile: Tensor) -> tuple[Tensor, Tensor]:
        """(M, C, t, t) -> pooled features (M, dim), or the flattened last map if `flat`, and that map."""
        if self.side != tile.shape[-1]:
            tile = F.interpolate(tile, size=(self.side,) * 2, mode="bilinear")
        stages = self.encoder.stages(tile)
        last = list(stages.values())[-2]
        return last.flatten(1) if self.flat else stages["pool"], last
