"""Which of several rows leads a table, and which cannot be distinguished from it?

Every row is compared with the leader on the same test images. Both the images and the seeds of training are random, so the variance
of a difference is the sum of both. Runs are dear and a row has few of them: the variance between seeds is pooled over all rows
that were trained, with as many degrees of freedom as all of them have together. The p-values and intervals of the comparisons
are corrected for their number by Holm's method, so that "X leads all others" is false in at most 5 % of the tables in which it
is not true: Hsu (Simultaneous Confidence Intervals for all Distances from the "Best", Annals of Statistics 9, 1981) shows that
comparisons with the best need no correction for all pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pretask.evals import paired
from pretask.evals.confidence import LEVEL, Interval, interval


@dataclass(frozen=True)
class Gap:
    """The leader minus another row, in points."""

    value: float
    low: float
    """interval at the level that Holm's method gives this comparison"""
    high: float
    p: float
    """two-sided, corrected for the number of comparisons"""
    error: float
    """standard error of the value"""
    freedom: float
    """its degrees of freedom"""
    critical: float
    """standard errors that a gap must exceed"""

    @property
    def clear(self) -> bool:
        return self.p < 1 - LEVEL

    def power(self, points: float) -> float:
        """Probability that a true gap of so many points is clear."""
        from scipy.stats import nct

        return float(nct.sf(self.critical, self.freedom, points / self.error)) if self.error else 1.0


@dataclass(frozen=True)
class Ranking:
    """Rows from the best to the worst, and the leader's gap to each of the others."""

    scores: Mapping[str, Interval]
    gaps: Mapping[str, Gap]

    @property
    def leader(self) -> str:
        return next(iter(self.scores))

    @property
    def leading(self) -> list[str]:
        """The leader and the rows that cannot be distinguished from it."""
        return [self.leader, *(name for name, gap in self.gaps.items() if not gap.clear)]


def rank(correct: Mapping[str, Tensor]) -> Ranking:
    """Rows (S, N): whether each of S runs is right on each of N test images; S may differ between rows."""
    from scipy.stats import t

    values = {name: 100 * each.double().mean(1).numpy() for name, each in correct.items()}
    order = sorted(correct, key=lambda name: -values[name].mean())
    seeds, freedom = pooled_variance([*values.values()])
    leader, *others = order
    tests = {}
    for name in others:
        sample = 100 * (correct[leader].double().mean(0) - correct[name].double().mean(0)).numpy()
        of_images = float(sample.var(ddof=1)) / len(sample)
        of_seeds = seeds * sum(1 / len(values[row]) for row in (leader, name) if len(values[row]) > 1)
        error, free = summed(of_images, len(sample) - 1, of_seeds, freedom)
        tests[name] = (float(sample.mean()), error, free)
    gaps = {}
    for name, (p, level) in paired.holm({name: p_value(*test) for name, test in tests.items()}).items():
        value, error, free = tests[name]
        critical = float(t.isf(level / 2, free))
        gaps[name] = Gap(value, value - critical * error, value + critical * error, p, error, free, critical)
    return Ranking({name: interval(100 * correct[name].double()) for name in order}, gaps)


def p_value(value: float, error: float, freedom: float) -> float:
    """Two-sided, of a mean of 0."""
    from scipy.stats import t

    return float(2 * t.sf(abs(value) / error, freedom)) if error else float(value == 0)


def pooled_variance(values: list[np.ndarray]) -> tuple[float, int]:
    """Scores (S,) of each row -> their variance between seeds, and its degrees of freedom; 0 if no row has several."""
    several = [row for row in values if len(row) > 1]
    freedom = sum(len(row) - 1 for row in several)
    squares = sum(float(row.var(ddof=1)) * (len(row) - 1) for row in several)
    return (squares / freedom if freedom else 0.0), freedom


def summed(one: float, free: int, other: float, other_free: int) -> tuple[float, float]:
    """Two variances with their degrees of freedom -> the standard error, and its degrees (Welch and Satterthwaite)."""
    parts = one**2 / max(free, 1) + other**2 / max(other_free, 1)
    return (one + other) ** 0.5, (one + other) ** 2 / parts if parts else float(free)
