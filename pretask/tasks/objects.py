"""Shared by classification and detection: images with the boxes and classes of their objects."""

from torch import Tensor

from pretask.data import annotated
from pretask.data.annotated import Annotated
from pretask.data.base import Images, OpenOptions
from pretask.encoders import Encoder
from pretask.tasks.base import Plan, Task
from pretask.types import UserError


class ObjectTask(Task[Annotated]):
    def load(self, spec: str, options: OpenOptions) -> Annotated:
        return annotated.load(spec, options)

    def align_classes(self, train: Annotated, test: Annotated) -> tuple[Annotated, Annotated]:
        every = list(dict.fromkeys([*train.classes, *test.classes]))
        return train.numbered_as(every), test.numbered_as(every)

    def classes(self, train: Annotated) -> list[str]:
        return list(train.classes)

    def image_labels(self, train: Annotated, encoder: Encoder, plan: Plan) -> tuple[Images, Tensor]:
        return annotated.pictures(train, encoder.size, encoder.channels, plan.progress), train.shown


def scored_classes(train: Annotated, test: Annotated) -> tuple[list[int], list[str]]:
    """Classes with objects in both sets, and a sentence on the other classes."""
    in_both = ((train.shown == 1).any(0) & (test.shown == 1).any(0)).tolist()
    scored = [k for k, both in enumerate(in_both) if both]
    if not scored:
        raise UserError(f"{train.name} and {test.name} have no class in common, so nothing can be scored")
    left_out = [c for c, both in zip(train.classes, in_both, strict=True) if not both]
    listed = f"{', '.join(left_out[:8])}{', …' if len(left_out) > 8 else ''}"
    sentence = f"left out, since they do not appear in both sets: {listed} ({len(left_out)} of {len(in_both)} classes)"
    return scored, [sentence] if left_out else []
