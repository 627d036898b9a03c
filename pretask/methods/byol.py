"""BYOL: from one view of an image, foresee what a slowly following teacher makes of another.

Grill et al.: Bootstrap Your Own Latent, NeurIPS 2020, arXiv:2006.07733. There are no negatives: what keeps all images
from getting the same features is that the teacher gets no gradient and that a predictor stands between the two.

The teacher drops nothing, and its batch norms count its batches as the student's do (released code).

**Differs:** the loss is the mean over both directions, half of the paper's sum; batch norms see both views at once; the
last layers of projector and predictor have biases, the released ones have none; crops are bilinear and of an image
already reduced to the views' size.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import follow, projector, rising, teacher_of
from pretask.limits import Count, Part, Share
from pretask.methods.base.views import OfTwoViews, TwoViews, ViewsConfig, unlike
from pretask.transforms import augment as images
from pretask.types import Loss, Progress, Source


@dataclass(frozen=True)
class Config(ViewsConfig):
    """Foresee a slowly following teacher's features of another view of the same image."""

    keep: Share = 0.99
    """share of the teacher's weights that stays at each step; rises to 1 (0.996 on ImageNet)"""
    width: Count = 128
    """of the projection (256 in the paper)"""
    hidden: Count = 512
    """of the hidden layer of projector and predictor (4096 in the paper)"""

    def build(self, encoder: Encoder, source: Source) -> "BYOL":
        return BYOL(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ResNet-50 on ImageNet, with --size 224: batch 4096, LARS, 1000 epochs (sec. 3.3)."""

    encoder: ClassVar[str] = "resnet50"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=1000, batch=4096, optimizer="lars", lr=0.2 * 4096 / 256, weight_decay=1.5e-6, warmup=0.01
    )

    side: Part = 1.0
    """full size"""
    views: images.Views = images.Views(crop=(0.08, 1.0), saturation=0.2)
    """but for blur and solarisation, in which the two views differ"""
    keep: Share = 0.996
    """at first (sec. 3.3)"""
    width: Count = 256
    """of the projection"""
    hidden: Count = 4096
    """of the hidden layers"""

    def pair(self) -> tuple[images.Views, images.Views]:
        return unlike(self.views)


def distance(foreseen: Tensor, target: Tensor) -> Tensor:
    """Mean of ‖p/‖p‖ - z/‖z‖‖² = 2 - 2 cos(p, z) over rows (eq. 2): from 0 to 4."""
    return 2 - 2 * F.cosine_similarity(foreseen.float(), target.float(), dim=1).mean()


class BYOL(OfTwoViews):
    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.head = projector(encoder.dim, config.hidden, config.width)
        self.predictor = projector(config.width, config.hidden, config.width)
        self.teacher = nn.ModuleList(teacher_of(net) for net in (encoder, self.head))

    def loss(self, pretext: TwoViews) -> Loss:
        foreseen = self.predictor(self.head(self.encoder(pretext.both)["pool"]))  # (2B, D)
        with torch.no_grad():
            encoder, head = self.teacher
            of_left, of_right = head(encoder(pretext.both)["pool"]).chunk(2)
        return Loss(distance(foreseen, torch.cat([of_right, of_left])))

    def after_step(self, carry: Any, progress: Progress) -> None:
        keep = rising(self.config.keep, progress.fraction)
        for teacher, student in zip(self.teacher, (self.encoder, self.head), strict=True):
            follow(teacher, student, keep)
