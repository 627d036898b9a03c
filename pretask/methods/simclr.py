"""SimCLR: contrastive learning of two augmented views with the NT-Xent loss.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual Representations, ICML
2020, arXiv:2002.05709. "Released" is google-research/simclr at be133b3, before it became that of SimCLRv2.
With several processes, negatives and batch norms span all of them (sec. 2.2).

**Differs:** the released loss sums the two directions of a pair, twice the mean of algorithm 1; LARS cancels
this factor for matrices, and the recipes double the learning rate of gains and biases. Relative to the
gradient, the weight decay of 1e-6 is therefore twice as large. The released momentum accumulates scaled
steps, this one gradients, so a change of the learning rate takes effect over some steps. By default the
projector has no final batch norm. Convolutions are initialized by fan-out, not fan-in, and linear layers
uniformly, not with a standard deviation of 0.01; pixels are normalized by mean and standard deviation, not
scaled to [0, 1]; brightness is multiplied, as in later released code, not added.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import build_mlp
from pretask.limits import PositiveFloat, PositiveFraction, PositiveInt
from pretask.methods.base.views import MATCH, TwoViewMethod, TwoViews, ViewConfig
from pretask.runtime import distributed
from pretask.transforms import augment
from pretask.types import Loss, Source


@dataclass(frozen=True)
class Config(ViewConfig):
    """Find the other view of the same image among all views of the batch."""

    family: ClassVar[str] = "contrastive"
    temperature: PositiveFloat = 0.2
    """τ, temperature of the softmax over views (released: 0.1 on ImageNet, 0.5 on CIFAR-10)"""
    width: PositiveInt = 128
    """output width of the projector (sec. 2.3)"""
    hidden: PositiveInt = 512
    """hidden width of the projector (released: as wide as the features, 2048)"""
    final_bn: bool = False
    """end the projector with a batch norm without bias, as released"""

    def build(self, encoder: Encoder, source: Source) -> "SimCLR":
        return SimCLR(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """CIFAR-10 (appendix B.9): ResNet-50 for 32 px, batch 512, LARS, 1000 epochs, no blur (released)."""

    encoder: ClassVar[str] = "resnet50_cifar"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=1000,
        batch=512,
        optimizer="lars",
        lr=1.0 * 512 / 256,
        bias_lr_scale=2.0,
        weight_decay=1e-6,
        warmup=0.01,
    )

    temperature: PositiveFloat = 0.5
    """as in the released command; B.9 tries 0.1, 0.5 and 1.0"""
    hidden: PositiveInt = 2048
    """hidden width of the projector"""
    final_bn: bool = True
    """in all released runs"""
    side: PositiveFraction = 1.0
    """full size"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(crop=(0.08, 1.0))
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
        bias_lr_scale=2.0,
        weight_decay=1e-6,
        warmup=0.1,
    )

    temperature: PositiveFloat = 0.1
    """temperature of the softmax over views (released command)"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(crop=(0.08, 1.0), jitter=1.0, blur=0.5)
    """jitter of strength 1, and half of the views blurred (appendix A)"""


def nt_xent(z1: Tensor, z2: Tensor, temperature: float, first: int = 0) -> tuple[Tensor, Tensor]:
    """Normalized temperature-scaled cross-entropy (eq. 1) of this process's 2b views among all 2B.

    z1, z2: (B, D) unit rows of all processes; the loss is over the b rows from `first` on, those of this
    process. Returns the mean loss and the fraction of views whose nearest other view is their positive.
    """
    z = torch.cat([z1, z2])  # (2B, D)
    count = len(z1)
    own = torch.arange(first, first + count // distributed.world(), device=z1.device)
    rows = torch.cat([own, own + count])  # (2b,) this process's views among all
    positive = torch.cat([own + count, own])
    with torch.autocast(z1.device.type, enabled=False):  # bfloat16 rounds a logit of 5 by up to 0.02
        similarity = z[rows] @ z.T / temperature  # (2b, 2B)
    similarity = similarity.scatter(1, rows[:, None], -torch.inf)  # a view is not compared with itself
    accuracy = (similarity.argmax(1) == positive).float().mean()
    return F.cross_entropy(similarity, positive), accuracy


class SimCLR(TwoViewMethod):
    pretext_task = "Contrastive learning of two views"
    caption = MATCH

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.projector = build_mlp(encoder.dim, config.hidden, config.width, bias=not config.final_bn)
        if config.final_bn:
            last = nn.BatchNorm1d(config.width)
            last.bias.requires_grad_(False)
            self.projector.append(last)

    def project(self, pretext: TwoViews) -> tuple[Tensor, Tensor]:
        z = F.normalize(self.projector(self.encoder(pretext.both)["pool"]).float(), dim=1)
        z1, z2 = z.chunk(2)
        return z1, z2  # (B, D) each

    def loss(self, pretext: TwoViews) -> Loss:
        z1, z2 = (distributed.gather(z) for z in self.project(pretext))
        first = distributed.rank() * len(pretext.view1)
        total, accuracy = nt_xent(z1, z2, self.config.temperature, first)
        return Loss(total, {"accuracy": accuracy})

    def predict(self, pretext: TwoViews) -> Mapping[str, Tensor]:
        z1, z2 = self.project(pretext)
        return {"view2": pretext.view2[(z1 @ z2.T).argmax(1)]}
