"""What stands between an encoder and an answer."""

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

TIMM_RATES = {"drop_prob", "drop_rate", "prob"}
"""what DropPath and DropBlock2d, classifiers and PatchDropout call the share that they drop"""


def projector(*widths: int, bias: bool = True) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them; the last is plain, with a bias or without."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths[:-1]):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias))


def teacher_of(module: M) -> M:
    """A copy that no gradient reaches and that drops neither paths nor units; `follow` moves it.

    Its batch norms count its own batches while it is trained along, as in the released code of BYOL and DINO.
    """
    teacher = copy.deepcopy(module).requires_grad_(False)
    for part in teacher.modules():
        if isinstance(part, _DropoutNd):
            part.p = 0.0
        for rate in TIMM_RATES & vars(part).keys():
            setattr(part, rate, 0.0)
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, keep: float) -> None:
    """Every weight of the teacher moves a step towards the student's: keep · θ' + (1 - keep) · θ."""
    for own, new in zip(teacher.parameters(), student.parameters(), strict=True):
        own.lerp_(new, 1 - keep)


def rising(start: float, fraction: float) -> float:
    """From `start` to 1 along half a cosine: how much a teacher keeps, at a fraction of the run."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * fraction)) / 2


class TileEncoder(nn.Module):
    """An encoder for tiles much smaller than its images, each seen by itself and already normalised.

    Nets that take images of one size alone, such as transformers, get every tile enlarged to an image of its own.
    """

    def __init__(self, encoder: Encoder, side: int, flat: bool = False):
        super().__init__()
        self.encoder, self.flat, self.side = encoder, flat, encoder.side(side / encoder.size)
        with torch.no_grad():
            description, last = self.eval()(torch.zeros(1, encoder.channels, side, side))
        self.train()
        self.dim, self.channels = description.shape[1], last.shape[1]

    def forward(self, tile: Tensor) -> tuple[Tensor, Tensor]:
        """(M, C, t, t) -> its pooled features, or all numbers of its last map if `flat`, (M, dim); and that map."""
        if self.side != tile.shape[-1]:
            tile = F.interpolate(tile, size=(self.side,) * 2, mode="bilinear")
        stages = self.encoder.stages(tile)
        last = list(stages.values())[-2]
        return last.flatten(1) if self.flat else stages["pool"], last
