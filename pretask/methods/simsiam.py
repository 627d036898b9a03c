"""SimSiam: from one view of an image, foresee what the same network makes of another.

Chen, He: Exploring Simple Siamese Representation Learning, CVPR 2021, arXiv:2011.10566. BYOL without a teacher: what
keeps all images from getting the same features is that no gradient flows through what is to be foreseen.

**Differs:** batch norms see both views at once; the learning rate falls with every step, not every epoch; crops are of an
image already reduced to the views' size; a blur has a window of a tenth of the side.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import projector
from pretask.limits import Count, Part
from pretask.methods.base.views import OfTwoViews, TwoViews, ViewsConfig
from pretask.transforms import augment as images
from pretask.types import Loss, Source


@dataclass(frozen=True)
class Config(ViewsConfig):
    """Foresee the features of another view of the same image; what is foreseen gets no gradient."""

    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=128, lr=1e-3, weight_decay=0.01)

    width: Count = 512
    """of the projection (2048 in the paper)"""
    bottleneck: Count = 128
    """of the predictor's hidden layer: a quarter of the width, as in the paper"""

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
        decay_all=True,  # `main_simsiam.py` gives its optimizer all parameters alike
        warmup=0.0,
    )

    side: Part = 1.0
    """full size"""
    views: images.Views = images.Views(blur=0.5)
    """crops of a fifth of the area or more"""
    width: Count = 2048
    """of the projection"""
    bottleneck: Count = 512
    """of the predictor's hidden layer"""


def closeness(foreseen: Tensor, target: Tensor) -> Tensor:
    """Mean of cos(p, sg z) over rows: the loss is its negative (eq. 1)."""
    return F.cosine_similarity(foreseen.float(), target.detach().float(), dim=1).mean()


class SimSiam(OfTwoViews):
    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        d = config.width
        self.head = nn.Sequential(projector(encoder.dim, d, d, d), nn.BatchNorm1d(d, affine=False))
        self.predictor = projector(d, config.bottleneck, d)

    def loss(self, pretext: TwoViews) -> Loss:
        z = self.head(self.encoder(pretext.both)["pool"])  # (2B, D)
        left, right = z.chunk(2)
        foreseen = self.predictor(z)
        std = F.normalize(z.detach().float(), dim=1).std(0).mean() * z.shape[1] ** 0.5
        return Loss(-closeness(foreseen, torch.cat([right, left])), {"std": std})

    def groups(self) -> Iterable[dict[str, Any]]:
        """The predictor's learning rate does not fall (sec. 4.2 and the released code)."""
        foresees = {id(p) for p in self.predictor.parameters()}
        for group in super().groups():
            yield {**group, "params": [p for p in group["params"] if id(p) not in foresees]}
            yield {**group, "params": [p for p in group["params"] if id(p) in foresees], "steady": True}
