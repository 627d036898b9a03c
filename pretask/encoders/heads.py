"""Projection heads."""

from itertools import pairwise

from torch import nn


def projector(*widths: int) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them; the last is plain."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths[:-1]):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
