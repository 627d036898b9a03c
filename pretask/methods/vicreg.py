"""VICReg: descriptions of two views agree, each number of them varies over the batch, and no two vary together.

Bardes, Ponce, LeCun: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, ICLR 2022,
arXiv:2105.04906. With several processes variances and covariances are over the batches of all of them.

**Differs:** batch norms see both views at once; the projector's last layer has biases, which no term feels; crops are
bilinear and of an image already reduced to the views' size; a blur has a window of a tenth of the side.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import projector
from pretask.limits import Count, Part, Weight
from pretask.methods.base.views import OfTwoViews, TwoViews, ViewsConfig, unlike
from pretask.runtime import distributed
from pretask.transforms import augment as images
from pretask.types import Loss, Source

EPS = 1e-4
"""added to a variance (sec. 4.1)"""


@dataclass(frozen=True)
class Config(ViewsConfig):
    """Make descriptions of two views agree, while each number varies and no two vary together."""

    invariance: Weight = 25.0
    """λ, weight of the views' distance"""
    variance: Weight = 25.0
    """μ, weight of too small standard deviations"""
    covariance: Weight = 1.0
    """ν, weight of what varies together"""
    width: Count = 1024
    """of the description (8192 in the paper)"""
    hidden: Count = 512
    """of the expander's two hidden layers (8192 in the paper)"""

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


def shortfall(z: Tensor) -> Tensor:
    """(B, D) -> the mean of max(0, 1 - √(Var + ε)) over columns (eq. 1): 0.99 where all rows are equal."""
    return F.relu(1 - (z.var(0) + EPS).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """(B, D) -> Σ_{i≠j} Cov_ij² / D (eq. 3 and 4)."""
    with torch.autocast(z.device.type, enabled=False):
        centred = z - z.mean(0)
        square = (centred.T @ centred / (len(z) - 1)).square()
    return (square.sum() - square.diagonal().sum()) / z.shape[1]


class VICReg(OfTwoViews):
    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.head = projector(encoder.dim, config.hidden, config.hidden, config.width)

    def loss(self, pretext: TwoViews) -> Loss:
        z = self.head(self.encoder(pretext.both)["pool"]).float()
        left, right = (distributed.gather(view) for view in z.chunk(2))
        parts = {
            "invariance": self.config.invariance * F.mse_loss(left, right),
            "variance": self.config.variance * (shortfall(left) + shortfall(right)) / 2,  # released code
            "covariance": self.config.covariance * (covariance(left) + covariance(right)),
        }
        return Loss(torch.stack([*parts.values()]).sum(), parts)
