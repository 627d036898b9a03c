"""BYOL: predict a momentum teacher's projection of one view from another view, without negatives.

Grill et al.: Bootstrap Your Own Latent, NeurIPS 2020, arXiv:2006.07733. The teacher's stop-gradient and the
student's predictor prevent collapse. The teacher drops nothing, and its batch norms use statistics of its
batches, as the student's do (released code).

**Differs:** the loss is the mean over both directions, half of the paper's sum; batch norms see both views at
once; the last layers of projector and predictor have biases, the released ones have none; crops are bilinear
and taken from an image already resized to the encoder's size.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import build_mlp, cosine_momentum, ema_copy, update_ema
from pretask.limits import PositiveFraction, PositiveInt, UnitInterval
from pretask.methods.base.views import TwoViewMethod, TwoViews, ViewConfig, asymmetric
from pretask.transforms import augment
from pretask.types import Loss, Progress, Source


@dataclass(frozen=True)
class Config(ViewConfig):
    """Predict a momentum teacher's projection of another view of the same image."""

    family: ClassVar[str] = "self-distillation"
    ema_momentum: UnitInterval = 0.99
    """teacher's EMA momentum at the start, annealed to 1 (0.996 on ImageNet)"""
    width: PositiveInt = 128
    """output width of projector and predictor (paper: 256)"""
    hidden: PositiveInt = 512
    """hidden width of projector and predictor (paper: 4096)"""

    def build(self, encoder: Encoder, source: Source) -> "BYOL":
        return BYOL(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ResNet-50 on ImageNet, with --size 224: batch 4096, LARS, 1000 epochs (sec. 3.3)."""

    encoder: ClassVar[str] = "resnet50"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=1000, batch=4096, optimizer="lars", lr=0.2 * 4096 / 256, weight_decay=1.5e-6, warmup=0.01
    )

    side: PositiveFraction = 1.0
    """full size"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(crop=(0.08, 1.0), saturation=0.2)
    """shared by both views, which differ in blur and solarization"""
    ema_momentum: UnitInterval = 0.996
    """at the start (sec. 3.3)"""
    width: PositiveInt = 256
    """output width"""
    hidden: PositiveInt = 4096
    """hidden width"""

    def augmentations(self) -> tuple[augment.ViewAugmentation, augment.ViewAugmentation]:
        return asymmetric(self.views)


def regression_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean of ‖p/‖p‖ - z/‖z‖‖² = 2 - 2 cos(p, z) over rows (eq. 2): from 0 to 4."""
    return 2 - 2 * F.cosine_similarity(predicted.float(), target.float(), dim=1).mean()


class BYOL(TwoViewMethod):
    pretext_task = "Self-distillation of two views with an EMA teacher"

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.projector = build_mlp(encoder.dim, config.hidden, config.width)
        self.predictor = build_mlp(config.width, config.hidden, config.width)
        self.teacher = nn.ModuleList(ema_copy(net) for net in (encoder, self.projector))

    def loss(self, pretext: TwoViews) -> Loss:
        predicted = self.predictor(self.projector(self.encoder(pretext.both)["pool"]))  # (2B, D)
        with torch.no_grad():
            encoder, projector = self.teacher
            z1, z2 = projector(encoder(pretext.both)["pool"]).chunk(2)
        return Loss(regression_loss(predicted, torch.cat([z2, z1])))

    def after_step(self, carry: Any, progress: Progress) -> None:
        momentum = cosine_momentum(self.config.ema_momentum, progress.fraction)
        for teacher, student in zip(self.teacher, (self.encoder, self.projector), strict=True):
            update_ema(teacher, student, momentum)
