"""Barlow Twins: push the cross-correlation matrix of two views' embeddings towards the identity.

Zbontar, Jing, Misra, LeCun, Deny: Barlow Twins, ICML 2021, arXiv:2103.03230. "Released" is
facebookresearch/barlowtwins at 8e8d284. With several processes the correlations are over the batches of all
of them.

**Differs:** where paper and released code disagree, the recipe has the released numbers (λ is 0.005 and the
weight decay 1.5e-6 in the paper, sec. 2.2). The released code sums correlations over processes with a call
that has no gradient, so the gradient of P processes is 1/P of the loss's; LARS cancels this factor for
matrices, and gains and biases learn P times more slowly than here (the paper's run had 32 GPUs). For a weight
w with gradient g and decay d, the released LARS divides by |g + d·w|, this one by |g| + d·|w|.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import build_mlp
from pretask.limits import NonNegativeFloat, PositiveFraction, PositiveInt
from pretask.methods.base.views import TwoViewMethod, TwoViews, ViewConfig, asymmetric
from pretask.runtime import distributed
from pretask.transforms import augment
from pretask.types import Loss, Source

EPS = 1e-5
"""added to the variance of an embedding dimension, as in a batch norm (released code)"""


@dataclass(frozen=True)
class Config(ViewConfig):
    """Make the cross-correlation matrix of two views' embeddings the identity."""

    family: ClassVar[str] = "redundancy reduction"
    lambda_: NonNegativeFloat = 0.0051
    """λ, weight of the redundancy-reduction term (released code)"""
    width: PositiveInt = 1024
    """output width of the projector (paper: 8192, sec. 2.2)"""
    hidden: PositiveInt = 512
    """width of the projector's two hidden layers (paper: 8192, sec. 2.2)"""

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
        bias_lr_scale=0.0048 / 0.2,
        weight_decay=1e-6,
        warmup=0.01,
    )

    side: PositiveFraction = 1.0
    """full size"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(crop=(0.08, 1.0), saturation=0.2)
    """shared by both views, which differ in blur and solarization"""
    width: PositiveInt = 8192
    """output width"""
    hidden: PositiveInt = 8192
    """width of the hidden layers"""

    def augmentations(self) -> tuple[augment.ViewAugmentation, augment.ViewAugmentation]:
        return asymmetric(self.views)


def standardize(z: Tensor) -> Tensor:
    """(B, D) -> columns with mean 0 and (biased) variance 1."""
    z = z - z.mean(0)
    return z / (z.square().mean(0) + EPS).sqrt()


def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """(B, D), (B, D) -> (D, D): correlation of each dimension of one view with each of the other (eq. 2)."""
    with torch.autocast(z1.device.type, enabled=False):
        return standardize(z1.float()).T @ standardize(z2.float()) / len(z1)


def loss_terms(c: Tensor, lambda_: float) -> tuple[Tensor, Tensor]:
    """The invariance term Σ (1 - C_ii)² and the redundancy-reduction term λ Σ_{i≠j} C_ij² (eq. 1)."""
    square = c.square()
    return (1 - c.diagonal()).square().sum(), lambda_ * (square.sum() - square.diagonal().sum())


class BarlowTwins(TwoViewMethod):
    pretext_task = "Redundancy reduction between two views"

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.projector = build_mlp(encoder.dim, config.hidden, config.hidden, config.width, bias=False)

    def loss(self, pretext: TwoViews) -> Loss:
        views = (pretext.view1, pretext.view2)
        z = (self.projector(self.encoder(view)["pool"]) for view in views)  # (B, D) each
        invariance, redundancy = loss_terms(
            cross_correlation(*map(distributed.gather, z)), self.config.lambda_
        )
        return Loss(invariance + redundancy, {"invariance": invariance, "redundancy": redundancy})
