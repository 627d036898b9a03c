"""Average precision by each definition in use; they differ by percentage points, so every score names its definition.

    11-point    mean over r = 0, 0.1, …, 1 of the best precision at a recall of at least r: VOC 2007 (Everingham et al. 2010)
    all-point   area under that interpolated precision at all recalls: VOC 2010 and later; FAIR's benchmark for VOC07
                (Goyal et al. 2019, arXiv:1905.01235, released code)
    step        sum of precision times the increase of recall, without interpolation: scikit-learn
    101-point   11-point with steps of 0.01: COCO (Lin et al. 2014, arXiv:1405.0312)

Samples with equal scores share one threshold; the released codes break such ties by the order of files. All functions work
on many test sets at once: `weight` is the number of times that each sample is in each of R sets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

EPSILON = 1e-9
"""a recall this little below a grid point counts as having reached it"""


@dataclass(frozen=True)
class Curve:
    """Precision and recall at each of the B distinct scores of positive samples, highest first; at other scores recall does
    not change and precision falls. Recall is NaN for a set without positives."""

    precision: np.ndarray  # (R, B), 0 … 1
    recall: np.ndarray  # (R, B), increasing from left to right


def curve(
    score: np.ndarray,
    positive: np.ndarray,
    positives: np.ndarray | float | None = None,
    weight: np.ndarray | None = None,
) -> Curve:
    """Scores (M,) of samples and whether each is `positive` (M,) -> the curve in each of R test sets.

    `positives` (R,) is the total number of positives, including those without a score; None: those given. `weight` (R, M);
    None: one set with each sample once.
    """
    order = np.argsort(-score, kind="stable")
    score, positive = score[order], positive[order].astype(bool)
    weight = np.ones((1, len(score))) if weight is None else weight
    total = (
        weight[:, order[positive]].sum(1) if positives is None else np.broadcast_to(positives, len(weight))
    )
    if not positive.any():
        return Curve(np.zeros((len(total), 1)), np.where(total > 0, 0.0, np.nan)[:, None])
    count = positive.cumsum()
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True))  # last sample of each distinct score
    last = last[np.diff(count[last], prepend=0) > 0]
    true_positives = prefix_sums(weight.take(order[positive], 1), count[last])
    predicted = prefix_sums(weight.take(order[: last[-1] + 1], 1), last + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(predicted > 0, true_positives / predicted, 0.0)
        recall = (
            np.where(total > 0, 1.0, np.nan)[:, None] * true_positives / np.maximum(total, 1e-300)[:, None]
        )
    return Curve(precision, recall)


def prefix_sums(weight: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(R, M), (B,) increasing -> (R, B): sums of the first `ends` columns."""
    return np.add.reduceat(weight, np.append(0, ends[:-1]), 1).cumsum(1, dtype=float)


def interpolated(precision: np.ndarray) -> np.ndarray:
    """(R, B) -> the best precision at this recall or a higher one."""
    return np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]


def increments(recall: np.ndarray) -> np.ndarray:
    """(R, B) -> the increase of recall at each step, starting from 0."""
    return np.diff(recall, axis=1, prepend=0.0)


def grid_mean(curve: Curve, points: int) -> np.ndarray:
    """Mean of the interpolated precision at recalls 0, 1/points, …, 1."""
    reached = np.floor(curve.recall * points + EPSILON) + 1  # number of grid points reached, including 0
    return (interpolated(curve.precision) * increments(reached)).sum(1) / (points + 1)


def eleven_point(curve: Curve) -> np.ndarray:
    return grid_mean(curve, 10)


def all_point(curve: Curve) -> np.ndarray:
    return (interpolated(curve.precision) * increments(curve.recall)).sum(1)


def step(curve: Curve) -> np.ndarray:
    return (curve.precision * increments(curve.recall)).sum(1)


def coco(curve: Curve) -> np.ndarray:
    return grid_mean(curve, 100)


DEFINITIONS: Mapping[str, Callable[[Curve], np.ndarray]] = {
    "11-point": eleven_point,
    "all-point": all_point,
    "step": step,
}
"""name -> (R,) average precisions of a curve, 0 … 1; NaN for a set without positives"""


def mean_over_classes(per_class: list[np.ndarray]) -> np.ndarray:
    """Average precisions (R,) of K classes -> their mean (R,) over the classes present in each set; 0 if there are none."""
    rows = np.stack(per_class)
    present = np.isfinite(rows)
    return np.where(present, rows, 0.0).sum(0) / np.maximum(present.sum(0), 1)
