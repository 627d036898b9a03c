"""Several views of every image: what the methods that compare views have in common."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.limits import Natural, Part, Parts
from pretask.methods.base.method import Method, MethodConfig
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch


@dataclass(frozen=True)
class ViewsConfig(MethodConfig):
    """How views are drawn, and what is trained on them on a small machine."""

    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=128, lr=3e-3, weight_decay=0.01)

    side: Part = 0.75
    """of a view, as a share of the image's; smaller views, and more of them in the same time"""
    views: images.Views = images.Views()
    """how a view is drawn"""

    def pair(self) -> tuple[images.Views, images.Views]:
        """How the left and the right view are drawn."""
        return self.views, self.views


def unlike(views: images.Views) -> tuple[images.Views, images.Views]:
    """The left view always blurred, the right one seldom, and its highlights inverted in a fifth (BYOL, table 6)."""
    return replace(views, blur=1.0, solarize=0.0), replace(views, blur=0.1, solarize=0.2)


@dataclass(frozen=True)
class TwoViews:
    left: Tensor  # (B, C, H, W)
    right: Tensor

    @property
    def both(self) -> Tensor:
        return torch.cat([self.left, self.right])  # (2B, C, H, W)


V = TypeVar("V", bound=TwoViews)


class OfViews(Method[V]):
    """A method whose puzzle has two large views of every image."""

    def __init__(self, config: Any, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.side = encoder.side(config.side)

    def large(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        x, (left, right) = images.to_float(batch.image), self.config.pair()
        return left(x, self.side, rng.child("left")), right(x, self.side, rng.child("right"))

    def export(self) -> Encoder:
        return self.encoder


class OfTwoViews(OfViews[TwoViews]):
    """A method whose puzzle is these two."""

    def pretext(self, batch: Batch, rng: Rng) -> TwoViews:
        return TwoViews(*self.large(batch, rng))


@dataclass(frozen=True)
class CropsConfig(ViewsConfig):
    """Two large views and several small ones (SwAV, arXiv:2006.09882, sec. 3.2)."""

    views: images.Views = images.Views(crop=(0.3, 1.0))
    """how a large view is drawn"""
    small: Natural = 4
    """small views beside the two large ones"""
    small_side: Part = 0.375
    """of a small view, as a share of the image's"""
    small_crop: Parts = (0.05, 0.3)
    """share of the area that a small view shows; else it is drawn as a large one"""


@dataclass(frozen=True)
class Crops(TwoViews):
    small: Tensor  # (B, V, C, h, w)


class OfCrops(OfViews[Crops]):
    """A method whose puzzle has small views, too."""

    def __init__(self, config: Any, encoder: Encoder):
        super().__init__(config, encoder)
        self.small_side = encoder.side(config.small_side)

    def pretext(self, batch: Batch, rng: Rng) -> Crops:
        x, c, side = images.to_float(batch.image), self.config, self.small_side
        views = replace(c.views, crop=c.small_crop)
        small = [views(x, side, rng.child("small", i)) for i in range(c.small)]
        none = x.new_empty(len(x), 0, x.shape[1], side, side)
        return Crops(*self.large(batch, rng), torch.stack(small, 1) if small else none)

    def through(self, head: Any, pretext: Crops) -> Tensor:
        """What a head (N, D) -> (N, K) makes of the pooled features of all views: (2 + V, B, K), the large ones first.

        The encoder gets one size after the other, the head all views at once (released code of SwAV and DINO): a batch
        norm in the head counts them all.
        """
        rows = [self.encoder(pretext.both)["pool"]]
        if pretext.small.shape[1]:
            rows.append(self.encoder(pretext.small.transpose(0, 1).flatten(0, 1))["pool"])
        return head(torch.cat(rows)).unflatten(0, (-1, len(pretext.left)))
