"""Which of several rows leads a table, and which cannot be distinguished from it?

Rows are compared on the same test images. Both the images and the seeds of training are random, so the variance of a difference
is the sum of three: that of the images, and that of each row's seeds. Degrees of freedom are those of Welch and Satterthwaite.
Holm's method corrects p-values and intervals for the number of pairs of rows, not only for those with the leader: which row
leads is known only afterwards, and the leader of many equal rows is far ahead of the last one by chance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from pretask.evals.confidence import LEVEL, Interval, interval
from pretask.evals.paired import holm


@dataclass(frozen=True)
class Gap:
    """The leader minus another row, in points."""

    value: float
    low: float
    """interval at the level that Holm's method gives this comparison"""
    high: float
    p: float
    """two-sided, corrected for the number of pairs"""
    error: float
    """standard error of the value"""
    freedom: float
    """its degrees of freedom"""

    @property
    def clear(self) -> bool:
        return self.p < 1 - LEVEL

    def power(self, points: float) -> float:
        """Probability that a true gap of so many points is clear."""
        from scipy.stats import nct

        if not self.error:
            return 1.0
        critical = (self.high - self.value) / self.error
        return float(nct.sf(critical, self.freedom, points / self.error))


@dataclass(frozen=True)
class Ranking:
    """Rows from the best to the worst, and how far the leader is ahead of each of the others."""

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

    points = {name: 100 * each.double() for name, each in correct.items()}
    order = sorted(points, key=lambda name: -points[name].mean().item())
    tests = {pair: difference(*(points[name] for name in pair)) for pair in combinations(order, 2)}
    corrected = holm({pair: p_value(*test) for pair, test in tests.items()})
    gaps = {}
    for other in order[1:]:
        (value, error, freedom), (p, level) = tests[order[0], other], corrected[order[0], other]
        margin = float(t.isf(level / 2, freedom)) * error
        gaps[other] = Gap(value, value - margin, value + margin, p, error, freedom)
    return Ranking({name: interval(points[name]) for name in order}, gaps)


def difference(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """(S, N), (S', N) -> mean difference, its standard error and degrees of freedom."""
    sample = one.mean(0) - other.mean(0)
    parts = [
        variance_of_mean(sample),
        *(variance_of_mean(row.mean(1)) for row in (one, other) if len(row) > 1),
    ]
    total = sum(variance for variance, _ in parts)
    squares = sum(variance**2 / freedom for variance, freedom in parts)
    return sample.mean().item(), total**0.5, total**2 / squares if squares else float(len(sample) - 1)


def variance_of_mean(values: Tensor) -> tuple[float, int]:
    """(T,) -> the variance of their mean, and its degrees of freedom."""
    return values.var().item() / len(values), len(values) - 1


def p_value(value: float, error: float, freedom: float) -> float:
    """Two-sided, of a mean of 0."""
    from scipy.stats import t

    return float(2 * t.sf(abs(value) / error, freedom)) if error else float(value == 0)
