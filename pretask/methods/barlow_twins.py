"""Barlow Twins: each number of a description should agree between two views, and no two numbers should repeat each other.

Zbontar, Jing, Misra, LeCun, Deny: Barlow Twins, ICML 2021, arXiv:2103.03230. "Released" is
facebookresearch/barlowtwins at 8e8d284. With several processes the correlations are over the batches of all of them.

Differs: where paper and released code disagree, the recipe has the released numbers (λ is 0.005 and the weight decay
1.5e-6 in the paper, sec. 2.2). The released correlations are summed over processes by a call that has no gradient,
so the gradient of P processes is a P-th of the loss's; LARS makes up for that in matrices, and gains and biases
learn P times more slowly than here (the paper's run had 32 GPUs). Of a weight w with gradient g and decay d the
released LARS divides by |g + d·w|, this one by |g| + d·|w|.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import projector
from pretask.limits import Count, Part, Weight
from pretask.methods.base.views import OfTwoViews, TwoViews, ViewsConfig, unlike
from pretask.runtime import distributed
from pretask.transforms import augment as images
from pretask.types import Loss, Source

EPS = 1e-5
"""added to the variance of a column, as a batch norm does (released code)"""


@dataclass(frozen=True)
class Config(ViewsConfig):
    """Make each number of a description agree between two views, and repeat no other."""

    redundancy: Weight = 0.0051
    """λ, weight of what should not correlate (released code)"""
    width: Count = 1024
    """of the description (8192 in the paper, sec. 2.2)"""
    hidden: Count = 512
    """of the projector's two hidden layers (8192 in the paper, sec. 2.2)"""

    def build(self, encoder: Encoder, source: Source) -> "BarlowTwins":
        return BarlowTwins(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ResNet-50 on ImageNet, with --size 224: batch 2048, LARS, 1000 epochs (released code)."""

    encoder: ClassVar[str] = "resnet50"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=1000,
        batch=2048,
        optimizer="lars",
        lr=0.2 * 2048 / 256,
        lr_end=0.001 * 0.2 * 2048 / 256,
        vector_lr=0.0048 / 0.2,
        weight_decay=1e-6,
        warmup=0.01,
    )

    side: Part = 1.0
    """full size"""
    views: images.Views = images.Views(crop=(0.08, 1.0), saturation=0.2)
    """but for blur and solarisation, in which the two views differ"""
    width: Count = 8192
    """of the description"""
    hidden: Count = 8192
    """of the hidden layers"""

    def pair(self) -> tuple[images.Views, images.Views]:
        return unlike(self.views)


def standardised(z: Tensor) -> Tensor:
    """(B, D) -> columns of mean 0 and (biased) variance 1."""
    z = z - z.mean(0)
    return z / (z.square().mean(0) + EPS).sqrt()


def correlations(left: Tensor, right: Tensor) -> Tensor:
    """(B, D), (B, D) -> (D, D): how each column of the one correlates with each of the other (eq. 2)."""
    with torch.autocast(left.device.type, enabled=False):
        return standardised(left.float()).T @ standardised(right.float()) / len(left)


def cost(c: Tensor, redundancy: float) -> tuple[Tensor, Tensor]:
    """Σ (1 - C_ii)² and λ Σ_{i≠j} C_ij² (eq. 1)."""
    square = c.square()
    return (1 - c.diagonal()).square().sum(), redundancy * (square.sum() - square.diagonal().sum())


class BarlowTwins(OfTwoViews):
    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.head = projector(encoder.dim, config.hidden, config.hidden, config.width, bias=False)

    def loss(self, pretext: TwoViews) -> Loss:
        z = (self.head(self.encoder(view)["pool"]) for view in (pretext.left, pretext.right))  # (B, D) each
        agreement, redundancy = cost(correlations(*map(distributed.gather, z)), self.config.redundancy)
        return Loss(agreement + redundancy, {"agreement": agreement, "redundancy": redundancy})
