"""Where the numbers of one more run lie, given those of a few reference runs with other seeds.

Every number is compared with its mean over the reference runs, in units of half of its prediction interval: t · s · √(1 + 1/S). The
variance of so few runs is uncertain. On a curve it is pooled over neighboring points. A single number has no neighbors; its variance
is averaged with those of other methods, by the moderated t of Smyth (Linear Models and Empirical Bayes Methods for Assessing
Differential Expression in Microarray Experiments, SAGMB 3(1):3, 2004, sec. 4 to 6). The error is divided among all numbers
(Bonferroni), so the whole comparison has the stated one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ERROR = 0.01
"""probability that a correct run is outside"""
REACH = 2
"""points to each side of a point of a curve that its variance is pooled over"""


@dataclass(frozen=True)
class Prior:
    """Variance of a number over seeds, as known from other methods, and the degrees of freedom that this knowledge is worth."""

    variance: float
    dof: float


@dataclass(frozen=True)
class Band:
    """Prediction intervals of the points of a curve, or of a single number."""

    mean: np.ndarray  # (K,)
    half: np.ndarray  # (K,) half of the intervals

    def distance(self, values: np.ndarray) -> np.ndarray:
        """(K,) -> (K,) distances from the mean; above 1 is outside, and so is a value that is not finite."""
        found = np.abs(values - self.mean) / self.half
        return np.where(np.isfinite(found), found, np.inf)


def prior_of(variances: Sequence[float], dof: float) -> Prior:
    """Sample variances (M,) of one number in M methods, each of `dof` degrees of freedom -> what they have in common.

    The moments of log s² under a scaled F distribution: mean ln s0² - ψ(d0/2) + ln(d0/2) + ψ(d/2) - ln(d/2), and variance
    ψ'(d/2) + ψ'(d0/2).
    """
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    logs = np.log(np.asarray(variances, float)) - digamma(dof / 2) + np.log(dof / 2)
    excess = logs.var(ddof=1) - float(polygamma(1, dof / 2))
    if excess <= float(polygamma(1, 1e3)):  # no more different than by chance
        return Prior(float(np.exp(logs.mean())), 2e3)
    half: Any = brentq(lambda x: float(polygamma(1, x)) - excess, 1e-3, 1e3)
    return Prior(float(np.exp(logs.mean() + digamma(half) - np.log(half))), 2 * half)


def curve(runs: np.ndarray, error: float, floor: float) -> Band:
    """(S, K) curves of the reference runs -> the band of another run, outside of which it is with probability `error`.

    `floor` is the smallest standard deviation that is believed. Neighboring points that vary together count as fewer: for the degrees of
    freedom of a pooled variance by the squares of their correlations, as far as they are those of a first-order autoregression.
    """
    seeds, points = runs.shape
    variance = runs.var(0, ddof=1)
    together = autocorrelation((runs - runs.mean(0)) / np.sqrt(np.maximum(variance, floor**2) + 1e-300)) ** 2
    near = [slice(max(0, k - REACH), k + REACH + 1) for k in range(points)]
    pooled = np.array([variance[some].mean() for some in near])
    dof = np.array([(seeds - 1) * independent(len(variance[some]), together) for some in near])
    count = 1 + (points - 1) * (1 - together)
    return band(runs.mean(0), np.maximum(pooled, floor**2), dof, seeds, error / count)


def autocorrelation(rows: np.ndarray) -> float:
    """(S, K) -> correlation of neighboring points, from 0 to 1."""
    square = (rows**2).sum()
    between = (rows[:, 1:] * rows[:, :-1]).sum() * rows.shape[1] / (rows.shape[1] - 1)
    return float(np.clip(between / square, 0.0, 1.0)) if square else 0.0


def independent(points: int, together: float) -> float:
    """The number of independent points whose mean square is as uncertain as that of `points` with these squared correlations."""
    lag = np.arange(1, points)
    return points / (1 + 2 * float(((1 - lag / points) * together**lag).sum()))


def number(runs: np.ndarray, prior: Prior, error: float, floor: float) -> Band:
    """(S,) numbers of the reference runs -> the interval of another run."""
    seeds = len(runs)
    dof = seeds - 1 + prior.dof
    variance = ((seeds - 1) * runs.var(ddof=1) + prior.dof * prior.variance) / dof
    return band(runs.mean(keepdims=True), np.array([max(variance, floor**2)]), np.array([dof]), seeds, error)


def band(mean: np.ndarray, variance: np.ndarray, dof: np.ndarray, seeds: int, error: float) -> Band:
    from scipy.stats import t

    return Band(mean, t.isf(error / 2, dof) * np.sqrt(variance * (1 + 1 / seeds)))
