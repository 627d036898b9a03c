"""Part of a labelled set, class by class: what settings are chosen on, so that no test sample has a say."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pretask.rng import Rng
from pretask.types import Batch, Labelled, UserError

FEW = 2_000
"""samples up to which settings are chosen by repeated folds, as a fifth of them decides little"""
FOLDS = 5
REPEATS = 10
"""times that the folds are drawn, at most; as many as come to FEW held-out samples in all"""
HELD = 10_000
"""of more samples, so many are held out at most"""
FIT = 10_000
"""and so many fitted to, at most"""
SINGLE = (
    "every class has a single image, so none can be held out: settings are chosen, and without a test set "
    "scores are taken, on images held out; give more images per class"
)


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
        raise UserError(SINGLE)
    out = ranks(label, rng) < held[label]
    return (~out).nonzero().flatten(), out.nonzero().flatten()


@dataclass(frozen=True)
class Splits:
    """B ways to hold samples out, side by side, so that whatever is chosen can be tried on all of them at once."""

    fit: Tensor  # (M,) positions of the samples that some way fits to
    fitted: Tensor  # (B, M) bool: which of them each way fits to
    held: Tensor  # (H,) positions of the samples that some way holds out, in random order
    judged: Tensor  # (B, H) bool: which of them each way holds out
    share: float = 1.0  # of the samples that are not held out, those that are fitted to

    def each(self, right: Tensor) -> Tensor:
        """(B, H) bool, who was right -> (H',) how often, of the times that a sample was held out."""
        times = self.judged.sum(0)
        return ((right & self.judged).sum(0) / times)[times > 0].double()

    def accuracy(self, right: Tensor) -> float:
        """(B, H) -> 0 … 1; every sample counts alike."""
        return self.each(right).mean().item()


def splits(label: Tensor, seed: int) -> Splits:
    """(N,) -> how settings are chosen: of up to FEW samples by repeated stratified folds, of more by one split."""
    n, order = len(label), Rng(seed, "queries").permutation(len(label))
    if n > FEW:
        kept, held = split(label, Rng(seed, "holdout"), most=HELD)
        fit = kept
        if len(kept) > FIT:
            fit = kept[split(label[kept], Rng(seed, "fit"), FIT / len(kept))[1]]
        held = order[torch.isin(order, held)]
        every = [torch.ones(1, len(rows)).bool() for rows in (fit, held)]
        return Splits(fit, every[0], held, every[1], len(fit) / len(kept))
    count = label.bincount()
    if count.max() < 2:
        raise UserError(SINGLE)
    repeats = min(REPEATS, max(1, FEW // n))
    fold = torch.stack([folds(label, Rng(seed, "folds", r)) for r in range(repeats)])  # (R, N)
    held = (fold[:, None] == torch.arange(FOLDS)[:, None]).flatten(0, 1)  # (R · FOLDS, N)
    held = held[held.any(1)]  # a handful of samples does not fill every fold
    return Splits(torch.arange(n), ~held, order, (held & (count[label] > 1))[:, order])


def folds(label: Tensor, rng: Rng) -> Tensor:
    """(N,) -> (N,) a fold from 0 to FOLDS - 1; every class is spread over the folds as evenly as can be."""
    first = rng.child("first").integers(
        int(label.max()) + 1, high=FOLDS
    )  # small classes begin in different folds
    return (ranks(label, rng) + first[label]) % FOLDS


class Part:
    """Some samples of a labelled source, as a source of their own."""

    def __init__(self, whole: Labelled, index: Tensor, name: str):
        self.whole, self.index, self.name = whole, index, name
        self.label, self.classes = whole.label[index], whole.classes
        self.channels, self.size = whole.channels, whole.size
        self.provides, self.ledger = whole.provides, whole.ledger

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, index: Tensor) -> Batch:
        return Batch(index, self.whole.__getitems__(self.index[index]).image)
