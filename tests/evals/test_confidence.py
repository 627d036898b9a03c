"""95 % intervals cover the true value in 95 % of experiments; a difference of equal rows is exactly zero."""

import math

import numpy as np
import pytest
import torch

from pretask.evals import confidence as module
from pretask.evals.confidence import bootstrap_counts, bootstrap_means, interval, student_interval
from pretask.rng import Rng


def test_interval_of_an_accuracy_is_the_normal_approximation():
    right = (torch.arange(2000) < 1300).double()
    found = interval(right)
    reach = 1.96 * math.sqrt(0.65 * 0.35 / 2000)
    assert found.value == pytest.approx(0.65)
    assert found.low == pytest.approx(0.65 - reach, abs=0.1 * reach)
    assert found.high == pytest.approx(0.65 + reach, abs=0.1 * reach)


def test_bootstrap_means_are_those_of_sampling_with_replacement():
    score = torch.tensor([0.0, 0.2, 0.2, 1.0, 0.6, 0.6, 0.6])
    drawn = score[Rng(0).integers(20_000, 7, high=7)].mean(1)
    means = bootstrap_means(score, seed=0)
    assert means.shape == (module.RESAMPLES,)
    assert means.mean() == pytest.approx(drawn.mean().item(), abs=0.015)
    assert means.std() == pytest.approx(drawn.std().item(), rel=0.1)
    for q in (0.05, 0.5, 0.95):
        assert np.quantile(means, q) == pytest.approx(drawn.quantile(q).item(), abs=0.03)


def test_bootstrap_counts_keep_total_and_frequencies():
    drawn = bootstrap_counts(np.array([10, 0, 30]), seed=1)
    assert drawn.shape == (module.RESAMPLES, 3) and (drawn.sum(1) == 40).all() and not drawn[:, 1].any()
    assert drawn[:, 0].mean() == pytest.approx(10, abs=0.5)


def test_the_same_seed_gives_the_same_interval():
    score = Rng(0).uniform(200)
    assert interval(score, 3) == interval(score, 3) != interval(score, 4)


def test_interval_is_students_t_without_test_variance():
    values = np.array([60.0, 61.0, 63.5])
    found = student_interval(values, 0.0, 1000)
    reach = 4.302653 * values.std(ddof=1) / math.sqrt(3)  # t with 2 degrees of freedom, from tables
    assert (found.value, found.low) == (pytest.approx(61.5), pytest.approx(61.5 - reach, rel=1e-6))


def test_interval_of_equal_runs_has_the_test_variance():
    found = student_interval(np.array([60.0, 60.0, 60.0]), 0.25, 100_000)
    assert found.high - found.value == pytest.approx(1.96 * 0.5, rel=1e-3)


def test_interval_of_one_run_has_the_test_variance():
    found = student_interval(np.array([60.0]), 0.25, 100_000)
    assert (found.low, found.high) == (pytest.approx(60 - 0.98, abs=1e-3), pytest.approx(60 + 0.98, abs=1e-3))


def covered(runs: int, of_run: float, of_sample: float, experiments: int = 400, n: int = 500) -> float:
    """Fraction of simulated experiments whose interval covers the true accuracy.

    Run s is correct on sample i if 0.6 + a_s + b_i + noise > 0, with standard deviations `of_run`, `of_sample` and 1.
    """
    truth = 0.5 * (1 + math.erf(0.6 / math.sqrt(2 * (of_run**2 + of_sample**2 + 1))))
    rng = Rng(runs, "coverage")
    hit = 0
    for seed in range(experiments):
        a, b = of_run * rng.normal(runs, 1), of_sample * rng.normal(1, n)
        right = (0.6 + a + b + rng.normal(runs, n) > 0).double()
        found = interval(right, seed)
        hit += found.low <= truth <= found.high
    return hit / experiments


def test_intervals_of_one_run_cover_its_accuracy_in_95_percent_of_test_sets():
    assert covered(1, of_run=0.0, of_sample=1.0) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("runs", [3, 5])
@pytest.mark.parametrize(("of_run", "of_sample"), [(0.2, 1.0), (0.05, 2.0)])
def test_intervals_of_several_runs_cover_the_accuracy_of_a_new_run(runs, of_run, of_sample):
    assert covered(runs, of_run, of_sample) == pytest.approx(0.95, abs=0.035)


def test_interval_of_one_run_does_not_cover_other_seeds():
    assert covered(1, of_run=0.3, of_sample=1.0) < 0.6


def test_difference_of_equal_rows_is_exactly_zero():
    right = (Rng(0).uniform(3, 400) < 0.7).double()
    for rows in (right, right[:1]):
        found = interval(100 * (rows - rows))
        assert (found.value, found.low, found.high) == (0, 0, 0)


def test_a_paired_difference_is_narrower_than_two_intervals():
    hard = Rng(1).uniform(1000)
    one, other = (hard < 0.60).double(), (hard < 0.63).double()
    paired = interval(other - one)
    assert paired.low > 0 and interval(other).low < interval(one).high
