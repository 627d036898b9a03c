"""Base classes of methods that compare augmented views of an image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.limits import NonNegativeInt, PositiveFraction, PositiveFractions
from pretask.methods.base.method import Method, MethodConfig, Minimum
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.types import Batch
from pretask.viz.puzzle import WHOLE, Board, Caption, Frame, Panel, Puzzle, Tile


@dataclass(frozen=True)
class ViewConfig(MethodConfig):
    """How views are augmented, and a recipe for a small machine."""

    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=128, lr=3e-3, weight_decay=0.01)

    side: PositiveFraction = 0.75
    """side of a view as a fraction of the image's; smaller views train faster"""
    views: augment.ViewAugmentation = augment.ViewAugmentation()
    """augmentation of a view"""

    def smallest_batch(self) -> Minimum:
        """A batch of one image has no negatives, and batch norms need two rows."""
        return Minimum(2)

    def augmentations(self) -> tuple[augment.ViewAugmentation, augment.ViewAugmentation]:
        """The augmentations of the first and the second view."""
        return self.views, self.views


def asymmetric(views: augment.ViewAugmentation) -> tuple[augment.ViewAugmentation, augment.ViewAugmentation]:
    """View 1 always blurred; view 2 blurred in 10 % and solarized in 20 % of images (BYOL, table 6)."""
    return replace(views, blur=1.0, solarize=0.0), replace(views, blur=0.1, solarize=0.2)


@dataclass(frozen=True)
class TwoViews:
    view1: Tensor  # (B, C, H, W)
    view2: Tensor

    @property
    def both(self) -> Tensor:
        return torch.cat([self.view1, self.view2])  # (2B, C, H, W)


V = TypeVar("V", bound=TwoViews)
MATCH = "Which view shows the same image as view 1?", "view 2"
"""question and answer of methods that distinguish views of different images"""


class ViewMethod(Method[V]):
    """A method whose puzzle has two global views of every image."""

    caption: ClassVar[tuple[str, str]] = ("What do both views have in common?", "the same image")
    """question and answer below the pictures"""

    def __init__(self, config: Any, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.side = encoder.side(config.side)

    def global_views(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        x, (view1, view2) = augment.to_float(batch.image), self.config.augmentations()
        return view1(x, self.side, rng.child("left")), view2(x, self.side, rng.child("right"))

    def frames(self, batch: Batch, rng: Rng) -> list[list[Frame]]:
        """Of each image, the parts that its views show."""
        at, pair = augment.positions(batch.image), self.config.augmentations()
        first, second = (
            augment.extent(views.cropped(at, self.side, rng.child(name))).tolist()
            for views, name in zip(pair, ("left", "right"), strict=True)
        )
        return [[Frame(a, "1", "first"), Frame(b, "2", "second")] for a, b in zip(first, second, strict=True)]

    def show(self, pretext: V, answers: Mapping[str, Tensor], batch: Batch, rng: Rng) -> Iterator[Puzzle]:
        question, answer = self.caption
        for i, (image, frames) in enumerate(zip(batch.image, self.frames(batch, rng), strict=True)):
            shown = Puzzle(
                [Panel("image", image, frames), Panel("view 1", pretext.view1[i], [Frame(WHOLE)])],
                [Panel("view 2", pretext.view2[i], [Frame(WHOLE, role="second")])],
                captions=[Caption(question, answer)],
            )
            if "view2" in answers:
                chosen = answers["view2"][i]
                own = torch.equal(chosen, pretext.view2[i])
                answered = Caption(question, answer, "view 2" if own else "a view of another image", (own,))
                shown = replace(
                    shown, predicted=[Panel("network's choice", chosen, correct=own)], captions=[answered]
                )
            yield shown

    def export(self) -> Encoder:
        return self.encoder


class TwoViewMethod(ViewMethod[TwoViews]):
    """A method whose puzzle has exactly two views."""

    def pretext(self, batch: Batch, rng: Rng) -> TwoViews:
        return TwoViews(*self.global_views(batch, rng))


@dataclass(frozen=True)
class IndexedView:
    image: Tensor  # (B, C, H, W), one random view of each image
    index: Tensor  # (B,) index of the image in the source


def show_indexed_views(
    pretext: IndexedView, answers: Mapping[str, Tensor], batch: Batch, boxes: Tensor
) -> Iterator[Puzzle]:
    """Each view, and where its image shows it: `boxes` (B, 4) of `augment.extent`."""
    for i, box in enumerate(boxes.tolist()):
        index, predicted = pretext.index[i], answers["index"][i] if answers else None
        own = (
            (f"image {int(predicted) + 1}", (bool(predicted == index),))
            if predicted is not None
            else ("", ())
        )
        yield Puzzle(
            [Panel("view", pretext.image[i])],
            [Panel(f"image {int(index) + 1}", batch.image[i], [Frame(box)])],
            captions=[Caption("Which image is this a view of?", f"image {int(index) + 1}", *own)],
        )


@dataclass(frozen=True)
class MultiCropConfig(ViewConfig):
    """Multi-crop: two global views and several smaller local ones (SwAV, arXiv:2006.09882, sec. 3.2)."""

    views: augment.ViewAugmentation = augment.ViewAugmentation(crop=(0.3, 1.0))
    """augmentation of a global view"""
    local_crops: NonNegativeInt = 4
    """local views per image, in addition to the two global ones"""
    local_size: PositiveFraction = 0.375
    """side of a local view as a fraction of the image's"""
    local_scale: PositiveFractions = (0.05, 0.3)
    """area of a local view as a fraction of the image's, from and to; all else is as in global views"""


@dataclass(frozen=True)
class MultiCrop(TwoViews):
    local_views: Tensor  # (B, V, C, h, w)


class MultiCropMethod(ViewMethod[MultiCrop]):
    """A method whose puzzle has local views too."""

    def __init__(self, config: Any, encoder: Encoder):
        super().__init__(config, encoder)
        self.local_size = encoder.side(config.local_size)

    def pretext(self, batch: Batch, rng: Rng) -> MultiCrop:
        x, c, side = augment.to_float(batch.image), self.config, self.local_size
        views = replace(c.views, crop=c.local_scale)
        local = [views(x, side, rng.child("small", i)) for i in range(c.local_crops)]
        none = x.new_empty(len(x), 0, x.shape[1], side, side)
        return MultiCrop(*self.global_views(batch, rng), torch.stack(local, 1) if local else none)

    def frames(self, batch: Batch, rng: Rng) -> list[list[Frame]]:
        c, at = self.config, augment.positions(batch.image)
        views = replace(c.views, crop=c.local_scale)
        found = super().frames(batch, rng)
        for i in range(c.local_crops):
            boxes = augment.extent(views.cropped(at, self.local_size, rng.child("small", i))).tolist()
            found = [[Frame(box, "", "other"), *frames] for box, frames in zip(boxes, found, strict=True)]
        return found

    def show(
        self, pretext: MultiCrop, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        shown = super().show(pretext, answers, batch, rng)
        for local_views, puzzle in zip(pretext.local_views, shown, strict=True):
            board = Board(
                [Tile(view) for view in local_views], columns=max(1, round(len(local_views) ** 0.5))
            )
            local = [Panel("local crops", board)] if len(local_views) else []
            yield replace(puzzle, answer=[*puzzle.answer, *local])

    def forward_views(self, head: Any, pretext: MultiCrop) -> Tensor:
        """Apply a head (N, D) -> (N, K) to the pooled features of all views: (2 + V, B, K), global views
        first.

        The encoder runs once per view size, the head once on all views, so its batch norms see all of them
        (released code of SwAV and DINO).
        """
        rows = [self.encoder(pretext.both)["pool"]]
        if pretext.local_views.shape[1]:
            rows.append(self.encoder(pretext.local_views.transpose(0, 1).flatten(0, 1))["pool"])
        return head(torch.cat(rows)).unflatten(0, (-1, len(pretext.view1)))
