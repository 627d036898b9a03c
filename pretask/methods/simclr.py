"""SimCLR: two random views of each image should be each other's nearest in the batch.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020,
arXiv:2002.05709. "Released" is google-research/simclr at be133b3, before it became that of SimCLRv2. With several
processes the negatives are the views of all of them, and batch norms see all of them too (sec. 2.2).

Differs: the released loss is the sum over the two directions of a pair, twice the mean of algorithm 1; LARS makes up
for that in matrices, and the recipes have gains and biases learn twice as fast. The decay of 1e-6 weighs twice as
much beside the gradient, then. The released momentum adds up steps, this one gradients, so a change of the learning
rate takes some steps to arrive there. By default the head ends without batch norm. Convolutions are drawn by their
outputs, not by their inputs, and linear layers uniformly, not with a deviation of 0.01; pixels enter less their
mean, in units of their deviation, not in [0, 1]; brightness is multiplied, as in later released code, not added to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import projector
from pretask.limits import Count, Part, Positive
from pretask.methods.base.views import OfTwoViews, TwoViews, ViewsConfig
from pretask.runtime import distributed
from pretask.transforms import augment as images
from pretask.types import Loss, Source


@dataclass(frozen=True)
class Config(ViewsConfig):
    """Find the other view of the same image among all views of the batch."""

    temperature: Positive = 0.2
    """τ, of the softmax over views (released: 0.1 on ImageNet, 0.5 on CIFAR-10)"""
    width: Count = 128
    """of the projection (sec. 2.3)"""
    hidden: Count = 512
    """of the projection head's hidden layer (released: as wide as the features, 2048)"""
    normed: bool = False
    """the projection head ends with a batch norm that has gains but no biases, as released"""

    def build(self, encoder: Encoder, source: Source) -> "SimCLR":
        return SimCLR(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """CIFAR-10 (appendix B.9): ResNet-50 for 32 px, batch 512, LARS, 1000 epochs, no blur (released command)."""

    encoder: ClassVar[str] = "resnet50_cifar"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=1000,
        batch=512,
        optimizer="lars",
        lr=1.0 * 512 / 256,
        vector_lr=2.0,
        weight_decay=1e-6,
        warmup=0.01,
    )

    temperature: Positive = 0.5
    """of those that B.9 tries, 0.1, 0.5 and 1.0, the one in the released command"""
    hidden: Count = 2048
    """of the projection head's hidden layer"""
    normed: bool = True
    """in all released runs"""
    side: Part = 1.0
    """full size"""
    views: images.Views = images.Views(crop=(0.08, 1.0))
    """jitter of strength 0.5 and no blur (appendix B.9)"""


@dataclass(frozen=True)
class PaperImageNet(Paper):
    """ImageNet (sec. 2.3), with --size 224: ResNet-50, batch 4096, LARS, 100 epochs."""

    encoder: ClassVar[str] = "resnet50"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=100,
        batch=4096,
        optimizer="lars",
        lr=0.3 * 4096 / 256,
        vector_lr=2.0,
        weight_decay=1e-6,
        warmup=0.1,
    )

    temperature: Positive = 0.1
    """of the softmax over views (released command)"""
    views: images.Views = images.Views(crop=(0.08, 1.0), jitter=1.0, blur=0.5)
    """jitter of strength 1, and half of the views blurred (appendix A)"""


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
        self.head = projector(encoder.dim, config.hidden, config.width, bias=not config.normed)
        if config.normed:
            last = nn.BatchNorm1d(config.width)
            last.bias.requires_grad_(False)
            self.head.append(last)

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
