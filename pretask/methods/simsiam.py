"""SimSiam: predict one view's projection from another view with a stop-gradient, without teacher or
negatives.

Chen, He: Exploring Simple Siamese Representation Learning, CVPR 2021, arXiv:2011.10566. The stop-gradient on
the target prevents collapse.

**Differs:** batch norms see both views at once; the learning rate is annealed every step, not every epoch;
crops are taken from an image already resized to the encoder's size; the blur kernel is a tenth of the image
side.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import build_mlp
from pretask.limits import PositiveFraction, PositiveInt
from pretask.methods.base.views import TwoViewMethod, TwoViews, ViewConfig
from pretask.transforms import augment
from pretask.types import Loss, Source


@dataclass(frozen=True)
class Config(ViewConfig):
    """Predict the projection of another view of the same image, with a stop-gradient on the target."""

    family: ClassVar[str] = "self-distillation"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=128, lr=1e-3, weight_decay=0.01)

    width: PositiveInt = 512
    """output width of projector and predictor (paper: 2048)"""
    bottleneck: PositiveInt = 128
    """hidden width of the predictor: a quarter of `width`, as in the paper"""

    def build(self, encoder: Encoder, source: Source) -> "SimSiam":
        return SimSiam(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ResNet-50 on ImageNet, with --size 224: batch 512, SGD, 100 epochs (sec. 3, table 1)."""

    encoder: ClassVar[str] = "resnet50"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=100,
        batch=512,
        optimizer="sgd",
        lr=0.05 * 512 / 256,
        weight_decay=1e-4,
        decay_all=True,  # `main_simsiam.py` has one parameter group
        warmup=0.0,
    )

    side: PositiveFraction = 1.0
    """full size"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(blur=0.5)
    """crops of at least a fifth of the area"""
    width: PositiveInt = 2048
    """output width"""
    bottleneck: PositiveInt = 512
    """hidden width of the predictor"""


def mean_cosine_similarity(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean of cos(p, stopgrad(z)) over rows: the loss is its negative (eq. 1)."""
    return F.cosine_similarity(predicted.float(), target.detach().float(), dim=1).mean()


class SimSiam(TwoViewMethod):
    pretext_task = "Siamese prediction with stop-gradient"

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        d = config.width
        self.projector = nn.Sequential(build_mlp(encoder.dim, d, d, d), nn.BatchNorm1d(d, affine=False))
        self.predictor = build_mlp(d, config.bottleneck, d)

    def loss(self, pretext: TwoViews) -> Loss:
        z = self.projector(self.encoder(pretext.both)["pool"])  # (2B, D)
        z1, z2 = z.chunk(2)
        predicted = self.predictor(z)
        std = F.normalize(z.detach().float(), dim=1).std(0).mean() * z.shape[1] ** 0.5
        return Loss(-mean_cosine_similarity(predicted, torch.cat([z2, z1])), {"std": std})

    def groups(self) -> Iterable[dict[str, Any]]:
        """The predictor's learning rate is not annealed (sec. 4.2 and the released code)."""
        predictor_params = {id(p) for p in self.predictor.parameters()}
        for group in super().groups():
            yield {**group, "params": [p for p in group["params"] if id(p) not in predictor_params]}
            yield {
                **group,
                "params": [p for p in group["params"] if id(p) in predictor_params],
                "steady": True,
            }
