"""SimCLR: two random views of each image should be each other's nearest in the batch.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020,
arXiv:2002.05709. With several processes the negatives are the views of all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask import distributed, images
from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import projector
from pretask.types import Loss, Source
from pretask.views import OfTwoViews, TwoViews, ViewsConfig


@dataclass(frozen=True)
class Config(ViewsConfig):
    """Find the other view of the same image among all views of the batch."""

    temperature: float = 0.2
    """of the softmax over views (0.1 on ImageNet, 0.5 on CIFAR-10 in the paper)"""
    width: int = 128
    """of the projection (sec. 3)"""
    hidden: int = 512
    """of the projection head's hidden layer (2048 in the paper)"""

    def build(self, encoder: Encoder, source: Source) -> "SimCLR":
        return SimCLR(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """The paper's CIFAR-10 run (appendix B.9): ResNet-50, batch 512, LARS, 1000 epochs, no blur."""

    encoder: ClassVar[str] = "resnet50"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=1000, batch=512, optimizer="lars", lr=1.0, weight_decay=1e-6, warmup=0.01
    )

    temperature: float = 0.5
    """of the softmax over views (appendix B.9)"""
    hidden: int = 2048
    """of the projection head's hidden layer"""
    side: float = 1.0
    """full size"""
    views: images.Views = images.Views(crop=(0.08, 1.0))
    """jitter of strength 0.5 and no blur (appendix B.9)"""


def nt_xent(left: Tensor, right: Tensor, temperature: float, first: int = 0) -> tuple[Tensor, Tensor]:
    """Normalised temperature-scaled cross-entropy (eq. 1) of 2b views of this process among all 2B.

    left, right: (B, D) unit rows of all processes; the loss is over the rows from `first` on, as many as each
    process holds. Returns the mean loss and the share of views whose nearest other view is the right one.
    """
    everything = torch.cat([left, right])  # (2B, D)
    count = len(left)
    own = torch.arange(first, first + count // distributed.world(), device=left.device)
    rows = torch.cat([own, own + count])  # (2b,) place of the own views among all
    partner = torch.cat([own + count, own])
    with torch.autocast(left.device.type, enabled=False):  # bfloat16 rounds a logit of 5 by up to 0.02
        similarity = everything[rows] @ everything.T / temperature  # (2b, 2B)
    similarity = similarity.scatter(1, rows[:, None], -torch.inf)  # a view is not compared with itself
    accuracy = (similarity.argmax(1) == partner).float().mean()
    return F.cross_entropy(similarity, partner), accuracy


class SimCLR(OfTwoViews):
    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.head = projector(encoder.dim, config.hidden, config.width)

    def project(self, pretext: TwoViews) -> tuple[Tensor, Tensor]:
        z = F.normalize(self.head(self.encoder(pretext.both)["pool"]).float(), dim=1)
        left, right = z.chunk(2)
        return left, right  # (B, D) each

    def loss(self, pretext: TwoViews) -> Loss:
        left, right = (distributed.gather(z) for z in self.project(pretext))
        first = distributed.rank() * len(pretext.left)
        total, accuracy = nt_xent(left, right, self.config.temperature, first)
        return Loss(total, {"accuracy": accuracy})

    def solve(self, pretext: TwoViews) -> Mapping[str, Tensor]:
        left, right = self.project(pretext)
        return {"right": pretext.right[(left @ right.T).argmax(1)]}
