"""VICReg: variance, invariance and covariance regularization of two views' embeddings.

Bardes, Ponce, LeCun: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, ICLR 2022,
arXiv:2105.04906. With several processes variances and covariances are over the batches of all of them.

**Differs:** batch norms see both views at once; the projector's last layer has biases, which no loss term
depends on; crops are bilinear and taken from an image already resized to the encoder's size; the blur kernel
is a tenth of the image side.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import build_mlp
from pretask.limits import NonNegativeFloat, PositiveFraction, PositiveInt
from pretask.methods.base.views import TwoViewMethod, TwoViews, ViewConfig, asymmetric
from pretask.runtime import distributed
from pretask.transforms import augment
from pretask.types import Loss, Source

EPS = 1e-4
"""added to a variance (sec. 4.1)"""


@dataclass(frozen=True)
class Config(ViewConfig):
    """Make the embeddings of two views agree, with high variance and low covariance over the batch."""

    family: ClassVar[str] = "redundancy reduction"
    invariance: NonNegativeFloat = 25.0
    """λ, weight of the mean squared distance between the views"""
    variance: NonNegativeFloat = 25.0
    """μ, weight of the hinge on the standard deviations"""
    covariance: NonNegativeFloat = 1.0
    """ν, weight of the off-diagonal covariances"""
    width: PositiveInt = 1024
    """output width of the projector (paper: 8192)"""
    hidden: PositiveInt = 512
    """width of the projector's two hidden layers (paper: 8192)"""

    def build(self, encoder: Encoder, source: Source) -> "VICReg":
        return VICReg(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ResNet-50 on ImageNet, with --size 224: batch 2048, LARS, 1000 epochs (released README)."""

    encoder: ClassVar[str] = "resnet50"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=1000,
        batch=2048,
        optimizer="lars",
        lr=0.2 * 2048 / 256,
        lr_end=0.0002 * 2048 / 256,
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


def variance_loss(z: Tensor) -> Tensor:
    """(B, D) -> the mean of max(0, 1 - √(Var + ε)) over columns (eq. 1): 0.99 if all rows are equal."""
    return F.relu(1 - (z.var(0) + EPS).sqrt()).mean()


def covariance_loss(z: Tensor) -> Tensor:
    """(B, D) -> Σ_{i≠j} Cov_ij² / D (eq. 3 and 4)."""
    with torch.autocast(z.device.type, enabled=False):
        centered = z - z.mean(0)
        square = (centered.T @ centered / (len(z) - 1)).square()
    return (square.sum() - square.diagonal().sum()) / z.shape[1]


class VICReg(TwoViewMethod):
    pretext_task = "Variance-invariance-covariance regularization"

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.projector = build_mlp(encoder.dim, config.hidden, config.hidden, config.width)

    def loss(self, pretext: TwoViews) -> Loss:
        z = self.projector(self.encoder(pretext.both)["pool"]).float()
        z1, z2 = (distributed.gather(view) for view in z.chunk(2))
        parts = {
            "invariance": self.config.invariance * F.mse_loss(z1, z2),
            "variance": self.config.variance * (variance_loss(z1) + variance_loss(z2)) / 2,  # released code
            "covariance": self.config.covariance * (covariance_loss(z1) + covariance_loss(z2)),
        }
        return Loss(torch.stack([*parts.values()]).sum(), parts)
