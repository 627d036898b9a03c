"""Accuracy over the number of labels, and how many times as many labels one kind of features needs to equal another.

Probes are fitted to a few samples of each class, with the draws and the penalty of fewshot.py. Intervals are over test images: the
bootstrap resamples them for both curves at once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretask.encoders import Encoder
from pretask.evals import baselines, fewshot, finetune
from pretask.evals.confidence import RESAMPLES
from pretask.evals.features import embed
from pretask.evals.holdout import strata
from pretask.rng import Rng
from pretask.types import LabeledSource

SHOTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""labels a class"""


@dataclass(frozen=True)
class Curve:
    """Accuracy with each number of labels a class."""

    shots: tuple[int, ...]
    correct: Tensor  # (len(shots), N) mean over draws, of each test sample

    @property
    def accuracy(self) -> list[float]:
        """In %."""
        return (100 * self.correct.mean(1)).tolist()


def curve(train: Tensor, label: Tensor, test: Tensor, test_label: Tensor, classes: int, seed: int) -> Curve:
    """(N, D), (N,), (M, D), (M,) -> accuracy with as many labels as every class has."""
    count = strata(label).bincount()
    shots = tuple(n for n in SHOTS if n <= count[count > 0].min())
    found = [
        fewshot.fewshot(train, label, test, test_label, classes, n, seed).double().mean(0) for n in shots
    ]
    return Curve(shots, torch.stack(found) if found else torch.zeros(0, len(test)))


def supervised(
    encoder: Encoder, train: LabeledSource, test: LabeledSource, steps: int, seed: int, **options: Any
) -> Curve:
    """The untrained encoder trained with a few labels of each class, then with all (finetune.py).

    The last point is that of all labels, at the mean number of labels a class.
    """
    found, label = {}, train.label
    for shots in (*finetune.shot_counts(label), None):
        index = torch.arange(len(label)) if shots is None else fewshot.draw(label, shots, seed, 0)
        net, name = (
            baselines.untrained(encoder, seed),
            "with all labels" if shots is None else f"with {shots} labels a class",
        )
        classifier = finetune.fit(net, train, index, finetune.TRAIN, steps, seed, 1.0, name=name, **options)
        logits = embed(classifier, test, **options).stages["pool"]
        found[shots or len(label) // len(label.unique())] = (logits.argmax(1) == test.label).double()
    return Curve(tuple(found), torch.stack([*found.values()]))


@dataclass(frozen=True)
class Worth:
    """How many times as many labels the other features need."""

    shots: int
    """labels a class with which the better features are measured"""
    times: float
    low: float
    high: float
    """infinity if the other features do not get there with all labels"""


def worth(better: Curve, other: Curve, seed: int = 0) -> Worth | None:
    """Measured where the other curve has most room on both sides; None with fewer than two points."""
    if len(better.shots) < 2:
        return None
    full = np.ones((1, better.correct.shape[1])) / better.correct.shape[1]
    at = best_point(better, other)
    times = multiples(better, other, at, full)[0]
    rng = np.random.default_rng(int(Rng(seed, "worth").integers(1, high=2**31)[0]))
    n = better.correct.shape[1]
    weight = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    low, high = np.quantile(multiples(better, other, at, weight), (0.025, 0.975), method="nearest")
    return Worth(better.shots[at], float(times), float(low), float(high))


def best_point(better: Curve, other: Curve) -> int:
    """The largest number of labels at which the other curve still reaches the better one; else the smallest number."""
    top = max(other.accuracy)
    reached = [i for i, value in enumerate(better.accuracy) if value <= top]
    return max(reached, default=0)


def multiples(better: Curve, other: Curve, at: int, weight: np.ndarray) -> np.ndarray:
    """(R, N) weights of test samples -> (R,) multiples of labels; infinite if the other curve ends below."""
    target = weight @ better.correct[at].numpy()
    curves = np.maximum.accumulate(weight @ other.correct.numpy().T, axis=1)  # more labels are not worse
    logs = np.log(other.shots)
    needed = np.array([np.interp(t, c, logs) for t, c in zip(target, curves, strict=True)])
    needed[target > curves[:, -1]] = np.inf
    return np.exp(needed) / better.shots[at]
