"""Which of several candidates is better than a reference? Paired differences, tested together.

Accuracies on repeated folds share most of their training samples, so the variance of their mean is larger than that of T
independent ones: Nadeau and Bengio (Inference for the Generalization Error, Machine Learning 52, 2003, sec. 5) replace 1 / T by
1 / T + n_test / n_train. Holm's method (A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of
Statistics 6, 1979) corrects for the number of candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pretask.evals.confidence import LEVEL
from pretask.rng import Rng
from pretask.types import UserError

K = TypeVar("K")
FOLDS = 5
REPEATS = 5
"""times that the folds are drawn"""
MAX_SCORED = 5000
"""largest number of samples that are scored over all repetitions, of a larger set in one"""
FEWEST = 4
"""fewest samples of a class: one is held out, and of the others some are held out to choose a penalty"""


@dataclass(frozen=True)
class Verdict:
    """A candidate compared with the reference, in the unit of the differences."""

    gain: float
    low: float
    """interval of the gain, at the level that Holm's method gives this candidate"""
    high: float
    p: float
    """two-sided, corrected for the number of candidates"""
    smallest: float
    """smallest gain whose interval would have excluded 0, had this been the only difference"""

    @property
    def better(self) -> bool:
        return self.gain > 0 and self.p < 1 - LEVEL

    @property
    def worse(self) -> bool:
        return self.gain < 0 and self.p < 1 - LEVEL


def verdicts(differences: Mapping[str, np.ndarray], overlap: float = 0.0) -> dict[str, Verdict]:
    """Differences (T,) from the reference, for each candidate -> its verdict.

    `overlap` is n_test / n_train for the folds of one labeled set; 0 for the samples of a test set.
    """
    from scipy.stats import t

    tests = {name: single_test(values, overlap) for name, values in differences.items()}
    found = {}
    for name, (adjusted, level) in holm({name: p for name, (_, _, p) in tests.items()}).items():
        mean, error, _ = tests[name]
        margin = error * float(t.isf(level / 2, len(differences[name]) - 1))
        found[name] = Verdict(mean, mean - margin, mean + margin, adjusted, margin)
    return found


def holm(p: Mapping[K, float]) -> dict[K, tuple[float, float]]:
    """p-values of several tests -> for each its p-value corrected for their number, and the level that it is tested at."""
    found, adjusted = {}, 0.0
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        adjusted = max(adjusted, min(1.0, (len(p) - rank) * p[name]))
        found[name] = adjusted, (1 - LEVEL) / (len(p) - rank)
    return {name: found[name] for name in p}


def single_test(values: np.ndarray, overlap: float) -> tuple[float, float, float]:
    """(T,) -> mean, its standard error, and the two-sided p-value of a mean of 0."""
    from scipy.stats import t

    mean, error = float(values.mean()), float(((1 / len(values) + overlap) * values.var(ddof=1)) ** 0.5)
    if error == 0:
        return mean, 0.0, float(mean == 0)
    return mean, error, float(2 * t.sf(abs(mean) / error, len(values) - 1))


@dataclass(frozen=True)
class Part:
    """One fold of one repetition."""

    fit: Tensor  # positions
    test: Tensor


def folds(label: Tensor, seed: int) -> list[Part]:
    """(N,) -> repeated stratified folds; fewer than FOLDS if a class has fewer samples. Raises UserError."""
    from sklearn.model_selection import RepeatedStratifiedKFold

    least = int(label.bincount()[label.unique()].min())
    if least < FEWEST:
        raise UserError(
            f"a class has {least} labeled image{'s' * (least != 1)}; a comparison needs {FEWEST} or more of each class"
        )
    repeats = min(REPEATS, max(1, MAX_SCORED // len(label)))
    state = int(Rng(seed, "outer folds").integers(1, high=2**31)[0])
    drawn = RepeatedStratifiedKFold(n_splits=min(FOLDS, least), n_repeats=repeats, random_state=state)
    return [Part(torch.from_numpy(fit), torch.from_numpy(test)) for fit, test in drawn.split(label, label)]


def overlap(parts: list[Part]) -> float:
    """n_test / n_train."""
    return sum(len(part.test) for part in parts) / sum(len(part.fit) for part in parts)
