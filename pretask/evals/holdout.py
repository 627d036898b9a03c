"""Stratified hold-out splits of a labeled set: hyperparameters are chosen on training samples, not on test samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pretask.rng import Rng
from pretask.types import UserError

MAX_FOLDED = 2_000
"""largest number of samples split into repeated folds; one fifth of so few samples is too noisy to choose by"""
FOLDS = 5
REPEATS = 10
"""maximum number of times the folds are drawn; fewer if that gives MAX_FOLDED held-out samples in all"""
MAX_HELD_OUT = 10_000
"""maximum number of held-out samples of a larger set"""
MAX_FIT = 10_000
"""maximum number of samples fitted to of a larger set"""
SINGLE = (
    "every class has a single image {}, so none can be held out to {}; give at least one class 3 images or more, or 2 and "
    "separate images as --test"
)


def strata(label: Tensor) -> Tensor:
    """(N,) classes, or (N, K) labels of multi-label images -> (N,) the strata of a split: the classes, or one for all."""
    return label if label.ndim == 1 else torch.zeros(len(label), dtype=torch.long)


def ranks(label: Tensor, rng: Rng) -> Tensor:
    """(N,) -> (N,): the samples of each class, numbered from 0 in random order."""
    order = rng.permutation(len(label))
    order = order[label[order].argsort(stable=True)]  # sorted by class, in random order within each
    count = label.bincount()
    first = count.cumsum(0) - count
    ranked = torch.empty_like(label)
    ranked[order] = torch.arange(len(label)) - first[label[order]]
    return ranked


def split(label: Tensor, rng: Rng, fraction: float = 0.2, most: int | None = None) -> tuple[Tensor, Tensor]:
    """(N,) -> positions kept, positions held out: `fraction` of each class, at least one sample and never all.

    `most` limits the total number of held-out samples.
    """
    if most is not None:
        fraction = min(fraction, most / len(label))
    count = label.bincount()
    quota = torch.minimum((fraction * count).round().clamp(min=1).long(), count - 1)
    if quota.clamp(min=0).sum() == 0:
        raise UserError(SINGLE.format("in all", "test on"))
    out = ranks(label, rng) < quota[label]
    return (~out).nonzero().flatten(), out.nonzero().flatten()


@dataclass(frozen=True)
class Splits:
    """B splits into fitting and held-out samples, stored together so that all of them are solved at once."""

    fit: Tensor  # (M,) positions of the samples that any split fits to
    fit_mask: Tensor  # (B, M) bool: which of them each split fits to
    held_out: Tensor  # (H,) positions of the samples that any split holds out, in random order
    held_out_mask: Tensor  # (B, H) bool: which of them each split holds out
    fit_fraction: float = 1.0  # fraction of the samples not held out that is fitted to

    def per_sample(self, correct: Tensor) -> Tensor:
        """(B, H) bool -> (H',) accuracy of each sample over the splits that hold it out."""
        times = self.held_out_mask.sum(0)
        return ((correct & self.held_out_mask).sum(0) / times)[times > 0].double()

    def accuracy(self, correct: Tensor) -> float:
        """(B, H) -> 0 … 1; every sample has the same weight."""
        return self.per_sample(correct).mean().item()


def splits(label: Tensor, seed: int) -> Splits:
    """(N,) -> repeated stratified folds of up to MAX_FOLDED samples, or one split of more."""
    n, order = len(label), Rng(seed, "queries").permutation(len(label))
    if n > MAX_FOLDED:
        kept, held_out = split(label, Rng(seed, "holdout"), most=MAX_HELD_OUT)
        fit = kept
        if len(kept) > MAX_FIT:
            fit = kept[split(label[kept], Rng(seed, "fit"), MAX_FIT / len(kept))[1]]
        held_out = order[torch.isin(order, held_out)]
        fit_mask, held_out_mask = (torch.ones(1, len(rows)).bool() for rows in (fit, held_out))
        return Splits(fit, fit_mask, held_out, held_out_mask, len(fit) / len(kept))
    count = label.bincount()
    if count.max() < 2:
        raise UserError(SINGLE.format("to train on", "choose hyperparameters on"))
    repeats = min(REPEATS, max(1, MAX_FOLDED // n))
    fold = torch.stack([folds(label, Rng(seed, "folds", r)) for r in range(repeats)])  # (R, N)
    in_fold = (fold[:, None] == torch.arange(FOLDS)[:, None]).flatten(0, 1)  # (R · FOLDS, N)
    scored = in_fold & (count[label] > 1)
    used = scored.any(1)  # very few samples do not fill every fold
    return Splits(torch.arange(n), ~in_fold[used], order, scored[used][:, order])


def folds(label: Tensor, rng: Rng, count: int = FOLDS) -> Tensor:
    """(N,) -> (N,) folds from 0 to `count` - 1, with every class spread as evenly as possible."""
    # small classes start in different folds
    first = rng.child("first").integers(int(label.max()) + 1, high=count)
    return (ranks(label, rng) + first[label]) % count
