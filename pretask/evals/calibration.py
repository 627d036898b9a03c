"""Probabilities that mean what they say: temperature scaling of few labels, isotonic regression of many, by scikit-learn.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599; Zadrozny and Elkan, Transforming Classifier Scores into
Accurate Multiclass Probability Estimates, KDD 2002.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor, nn

from pretask.evals.confidence import LEVEL

MANY = 1000
"""labels from which on probabilities are calibrated by isotonic regression"""
BINS = 10
"""of a reliability diagram, with equally many predictions each"""


class Temperature(nn.Module):
    """(N, K) logits -> probabilities softmax(logits / T)."""

    inverse: Tensor  # () 1 / T

    def __init__(self, inverse: float = 1.0):
        super().__init__()
        self.register_buffer("inverse", torch.tensor(inverse, dtype=torch.float32))

    def forward(self, logits: Tensor) -> Tensor:
        return (self.inverse * logits).softmax(-1)


class Isotonic(nn.Module):
    """(N, K) logits -> probabilities: those of the softmax, each class mapped by an increasing function, normalized."""

    x: Tensor  # (K, M) probabilities at which the functions are known, ascending
    y: Tensor  # (K, M) their values

    def __init__(self, x: Tensor, y: Tensor):
        super().__init__()
        self.register_buffer("x", x)
        self.register_buffer("y", y)

    def forward(self, logits: Tensor) -> Tensor:
        p = logits.softmax(-1)[..., None]  # (N, K, 1)
        right = (
            (p > self.x).sum(-1).clamp(1, self.x.shape[1] - 1)
        )  # (N, K) first known point that is not smaller
        index = torch.stack([right - 1, right])  # (2, N, K)
        x, y = (
            each.expand(*index.shape, -1).gather(-1, index[..., None])[..., 0] for each in (self.x, self.y)
        )
        part = ((p[..., 0] - x[0]) / (x[1] - x[0]).clamp(min=1e-9)).clamp(0, 1)
        mapped = y[0] + part * (y[1] - y[0])
        total = mapped.sum(-1, keepdim=True)
        return torch.where(total > 0, mapped / total.clamp(min=1e-12), 1 / mapped.shape[-1])


class Logits(ClassifierMixin, BaseEstimator):
    """A classifier whose decision function is its input, which scikit-learn calibrates."""

    def __init__(self, classes: int = 2):
        self.classes = classes

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Logits":
        self.classes_ = np.arange(self.classes)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return (X[:, 1] - X[:, 0]) / 2 if self.classes == 2 else X

    def predict(self, X: np.ndarray) -> np.ndarray:
        return X.argmax(1)


def fit(logits: Tensor, label: Tensor) -> Temperature | Isotonic:
    """(N, K), (N,) of samples that the classifier was not fitted to -> a calibration."""
    return isotonic(logits, label) if len(label) >= MANY else temperature(logits, label)


def temperature(logits: Tensor, label: Tensor) -> Temperature:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    classes = logits.shape[1]
    known = label.bincount(minlength=classes) > 0
    if not known.all():  # a class without a sample would shift the labels
        keep = known.nonzero().flatten()
        number = torch.full((classes,), -1).index_copy_(0, keep, torch.arange(len(keep)))
        return temperature(logits[:, keep], number[label]) if len(keep) > 1 else Temperature()
    x, y = logits.double().numpy(), label.numpy()
    given: Any = FrozenEstimator(Logits(classes).fit(x, y))
    everything = np.arange(
        len(y)
    )  # the classifier is not fitted again, so one part that holds all samples will do
    fitted: Any = CalibratedClassifierCV(
        given,
        method="temperature",
        cv=[(everything, everything)],
        ensemble=False,  # pyright: ignore[reportArgumentType]
    )
    fitted.fit(x, y)
    [calibrator] = fitted.calibrated_classifiers_[0].calibrators
    return Temperature(float(calibrator.beta_))


def isotonic(logits: Tensor, label: Tensor) -> Isotonic:
    from sklearn.isotonic import IsotonicRegression

    probability = logits.double().softmax(1).numpy()
    points: list[tuple[np.ndarray, np.ndarray]] = []
    for k in range(logits.shape[1]):
        fitted = IsotonicRegression(y_min=0, y_max=1).fit(probability[:, k], (label == k).numpy())
        points.append((fitted.X_thresholds_, fitted.y_thresholds_))
    return Isotonic(*(padded([each[i] for each in points]) for i in (0, 1)))


def padded(rows: Sequence[np.ndarray]) -> Tensor:
    """(K, M) of K rows, each with its last value repeated; at least two columns."""
    width = max(2, *map(len, rows))
    return torch.tensor(
        np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in rows]), dtype=torch.float32
    )


# ---- how good they are


@dataclass(frozen=True)
class Bin:
    """Predictions of similar probability."""

    probability: float
    accuracy: float
    low: float
    """exact binomial interval of the accuracy"""
    high: float
    count: int


def reliability(probability: Tensor, correct: Tensor) -> list[Bin]:
    """(N,) of the predicted class, (N,) bool -> bins with equally many predictions."""
    order = probability.argsort()
    parts = order.tensor_split(min(BINS, max(1, len(order) // 5)))
    return [
        Bin(probability[part].mean().item(), *binomial(int(correct[part].sum()), len(part)), len(part))
        for part in parts
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: mean distance between probability and accuracy, in points."""
    total = sum(each.count for each in bins)
    return 100 * sum(each.count * abs(each.probability - each.accuracy) for each in bins) / total


def binomial(right: int, n: int) -> tuple[float, float, float]:
    """The share of `right` of n, and its exact interval (Clopper and Pearson, Biometrika 26, 1934)."""
    from scipy.stats import binomtest

    found = binomtest(right, n).proportion_ci(LEVEL, method="exact")
    return right / n, float(found.low), float(found.high)


def lower_bound(right: int, n: int) -> float:
    """One-sided exact lower bound of a share."""
    from scipy.stats import binomtest

    return float(binomtest(right, n, alternative="greater").proportion_ci(LEVEL, method="exact").low)


def fewest(precision: float) -> int:
    """Number of predictions, all right, whose lower bound is `precision`."""
    return int(np.ceil(np.log(1 - LEVEL) / np.log(precision))) if precision < 1 else 0


def sure_from(probability: Tensor, correct: Tensor, precision: float) -> float | None:
    """(N,), (N,) bool -> the smallest probability from which on predictions are right in a share of at least `precision`, by the lower
    bound; None if there is none.

    Sets of the surest predictions are tested from the smallest that could pass to larger ones, until one fails, so that a threshold that does
    not hold is chosen in at most 5 % of all cases (fixed-sequence testing; Angelopoulos et al., Learn then Test, arXiv:2110.01052).
    """
    order = probability.argsort(descending=True)
    right = correct[order].cumsum(0)
    found = None
    for n in range(fewest(precision), len(order) + 1, max(1, len(order) // 50)):
        if n == 0 or lower_bound(int(right[n - 1]), n) < precision:
            break
        found = float(probability[order[n - 1]])
    return found


# ---- wrong labels


def suspected(probability: Tensor, label: Tensor) -> list[tuple[int, int]]:
    """Confident learning (Northcutt, Jiang, Chuang, JAIR 70, 2021, arXiv:1911.00068).

    (N, K) out-of-fold probabilities, (N,) given labels -> (sample, its likelier class), the surest first. A sample counts for a class if its
    probability is at least the mean of those that are labeled so; of several classes for the likeliest. It is suspected if that is
    not the given one. Differs: the likelier class must also be likelier than all others together, since a weak classifier would otherwise
    suspect half of all labels.
    """
    classes = probability.shape[1]
    count = label.bincount(minlength=classes)
    own = torch.zeros(classes, dtype=probability.dtype).index_add_(
        0, label, probability[torch.arange(len(label)), label]
    )
    threshold = torch.where(count > 0, own / count.clamp(min=1), torch.inf)
    confident = probability >= threshold
    likeliest = torch.where(confident, probability, -1).argmax(1)
    likely = probability[torch.arange(len(label)), likeliest] > 0.5
    rows = (confident.any(1) & likely & (likeliest != label)).nonzero().flatten()
    surest = (probability[rows, likeliest[rows]] - probability[rows, label[rows]]).argsort(descending=True)
    return [(int(row), int(likeliest[row])) for row in rows[surest]]
