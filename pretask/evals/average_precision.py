"""Average precision, by each definition that is in use; they differ by points, so a number is named after its own.

    11-point    mean over r = 0, 0.1, …, 1 of the best precision at a recall of at least r: VOC 2007 (Everingham et al. 2010)
    all-point   area below the same best precision at every recall: VOC 2010 and later; what FAIR's benchmark computes for
                VOC07 (Goyal et al. 2019, arXiv:1905.01235, released code)
    step        sum of precision times the growth of recall, without the best of what follows: scikit-learn
    101-point   11-point with steps of 0.01: COCO (Lin et al. 2014, arXiv:1405.0312)

Equal scores count at once, as one threshold finds all of them or none; the released codes break such ties by the order of
files. Everything works on many test sets at once: `weight` says how often each sample is in each of R sets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

EPSILON = 1e-9
"""recalls this near below a grid point count as having reached it"""


@dataclass(frozen=True)
class Curve:
    """Precision and recall at each of B different scores, the highest first; recall is NaN where there is nothing to find."""

    precision: np.ndarray  # (R, B), 0 … 1
    recall: np.ndarray  # (R, B), rises from left to right


def curve(
    score: np.ndarray,
    right: np.ndarray,
    positives: np.ndarray | float | None = None,
    weight: np.ndarray | None = None,
) -> Curve:
    """M samples with scores (M,) of which some are `right` (M,), in R test sets.

    `positives` (R,) is how many there were to find; None: as many as are right. `weight` (R, M); None: one set, each once.
    """
    order = np.argsort(-score, kind="stable")
    score, right = score[order], right[order].astype(float)
    weight = np.ones((1, len(score))) if weight is None else weight[:, order]
    last = np.append(score[1:] != score[:-1], True)[: len(score)]  # of equal scores
    hits, tried = ((weight * each).cumsum(1)[:, last] for each in (right, np.ones_like(right)))
    total = weight @ right if positives is None else np.broadcast_to(positives, len(weight))
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(tried > 0, hits / tried, 0.0)
        recall = np.where(total > 0, 1.0, np.nan)[:, None] * hits / np.maximum(total, 1e-300)[:, None]
    if not len(score):  # nothing was found
        precision, recall = np.zeros((len(total), 1)), np.where(total > 0, 0.0, np.nan)[:, None]
    return Curve(precision, recall)


def best_ahead(precision: np.ndarray) -> np.ndarray:
    """(R, B) -> the best precision at this recall or a higher one."""
    return np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]


def growth(recall: np.ndarray) -> np.ndarray:
    """(R, B) -> by how much recall rises at each step; the first from 0."""
    return np.diff(recall, axis=1, prepend=0.0)


def on_grid(found: Curve, points: int) -> np.ndarray:
    """Mean of the best precision at recalls 0, 1/points, …, 1."""
    reached = np.floor(found.recall * points + EPSILON) + 1  # grid points up to here, 0 among them
    return (best_ahead(found.precision) * growth(reached)).sum(1) / (points + 1)


def eleven_point(found: Curve) -> np.ndarray:
    return on_grid(found, 10)


def all_point(found: Curve) -> np.ndarray:
    return (best_ahead(found.precision) * growth(found.recall)).sum(1)


def step(found: Curve) -> np.ndarray:
    return (found.precision * growth(found.recall)).sum(1)


def coco(found: Curve) -> np.ndarray:
    return on_grid(found, 100)


DEFINITIONS: Mapping[str, Callable[[Curve], np.ndarray]] = {
    "11-point": eleven_point,
    "all-point": all_point,
    "step": step,
}
"""name -> (R,) average precisions of a curve, 0 … 1; NaN where there is nothing to find"""


def mean_over_classes(each: list[np.ndarray]) -> np.ndarray:
    """K classes' average precisions (R,) -> their mean (R,), over the classes that a set has; 0 where it has none."""
    rows = np.stack(each)
    there = np.isfinite(rows)
    return np.where(there, rows, 0.0).sum(0) / np.maximum(there.sum(0), 1)
