"""Part of a labelled set, class by class: what settings are chosen on, so that no test sample has a say."""

import torch
from torch import Tensor

from pretask.rng import Rng
from pretask.types import Batch, Labelled, UserError


def ranks(label: Tensor, rng: Rng) -> Tensor:
    """(N,) -> (N,): the samples of each class numbered from 0 in random order."""
    order = rng.permutation(len(label))
    order = order[label[order].argsort(stable=True)]  # class by class, each in random order
    count = label.bincount()
    first = count.cumsum(0) - count
    ranked = torch.empty_like(label)
    ranked[order] = torch.arange(len(label)) - first[label[order]]
    return ranked


def split(label: Tensor, rng: Rng, share: float = 0.2, most: int | None = None) -> tuple[Tensor, Tensor]:
    """(N,) -> positions kept, positions held out: of each class `share`, at least one, never all of it.

    `most` limits the samples held out, over all classes.
    """
    if most is not None:
        share = min(share, most / len(label))
    count = label.bincount()
    held = torch.minimum((share * count).round().clamp(min=1).long(), count - 1)
    if held.clamp(min=0).sum() == 0:
        raise UserError(
            "every class has a single image, so none can be held out: settings are chosen, and without a test set "
            "scores are taken, on images held out; give more images per class"
        )
    out = ranks(label, rng) < held[label]
    return (~out).nonzero().flatten(), out.nonzero().flatten()


class Part:
    """Some samples of a labelled source, as a source of their own."""

    def __init__(self, whole: Labelled, index: Tensor, name: str):
        self.whole, self.index, self.name = whole, index, name
        self.label, self.classes = whole.label[index], whole.classes
        self.channels, self.size = whole.channels, whole.size
        self.provides, self.bad = whole.provides, whole.bad

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, index: Tensor) -> Batch:
        return Batch(index, self.whole.__getitems__(self.index[index]).image)
