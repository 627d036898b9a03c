"""Prediction intervals of one more run hold their error, and see what is outside."""

import numpy as np
import pytest

from pretask.evals import bands
from pretask.evals.bands import Prior


def curves(rng, shape, correlation: float) -> np.ndarray:
    """(…, K) standard normal noise of a first-order autoregression along the last axis."""
    noise = rng.normal(size=shape)
    out = noise.copy()
    for k in range(1, shape[-1]):
        out[..., k] = correlation * out[..., k - 1] + (1 - correlation**2) ** 0.5 * noise[..., k]
    return out


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("growth", [0.0, 3.0])
def test_another_curve_is_outside_as_rarely_as_stated(correlation, growth):
    """Noise may grow along the curve, and be correlated from point to point."""
    rng = np.random.default_rng(0)
    draws, outside = 3000, 0
    scale = np.exp(growth * np.linspace(0, 1, 20))
    runs = curves(rng, (draws, 6, 20), correlation) * scale
    for each in runs:
        band = bands.curve(each[:5], 0.01, 0.0)
        outside += bool((band.distance(each[5]) > 1).any())
    assert outside / draws < 0.02


def test_a_curve_that_is_shifted_or_not_finite_is_outside():
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(5, 20))
    band = bands.curve(runs, 0.01, 0.0)
    shifted = runs.mean(0)
    assert (band.distance(shifted) == 0).all()
    shifted[7] += 8
    assert (band.distance(shifted) > 1).tolist() == [k == 7 for k in range(20)]
    shifted[7] = np.nan
    assert np.isinf(band.distance(shifted)[7])


def test_equal_reference_runs_have_the_floor_as_standard_deviation():
    band = bands.curve(np.zeros((5, 20)), 0.01, 0.5)
    assert (band.half > 0.5 * 1.2**0.5 * 3).all()
    assert (bands.number(np.zeros(5), Prior(0.0, 4.0), 0.01, 0.5).half > 0.5 * 1.2**0.5 * 3).all()


@pytest.mark.parametrize("dof", [3.0, 12.0])
def test_the_prior_of_many_variances_is_found(dof):
    """Variances around 4, drawn from a scaled inverse chi-squared distribution, measured with 4 degrees of freedom."""
    rng = np.random.default_rng(0)
    true = 4 * dof / rng.chisquare(dof, 4000)
    measured = true * rng.chisquare(4, 4000) / 4
    found = bands.prior_of(measured, 4)
    assert found.variance == pytest.approx(4, rel=0.1)
    assert found.dof == pytest.approx(dof, rel=0.2)


def test_variances_that_differ_by_chance_only_are_known_well():
    rng = np.random.default_rng(0)
    found = bands.prior_of(9 * rng.chisquare(4, 4000) / 4, 4)
    assert found.dof > 100 and found.variance == pytest.approx(9, rel=0.1)


@pytest.mark.parametrize("dof", [3.0, 12.0])
def test_another_number_is_outside_as_rarely_as_stated(dof):
    rng = np.random.default_rng(0)
    draws = 20_000
    std = (dof / rng.chisquare(dof, draws)) ** 0.5
    runs = rng.normal(size=(draws, 6)) * std[:, None]
    outside = sum(
        bool(bands.number(each[:5], Prior(1.0, dof), 0.01, 0.0).distance(each[5:])[0] > 1) for each in runs
    )
    assert outside / draws == pytest.approx(0.01, abs=0.003)
