"""Linear CKA against the paper's formula, and its invariances."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pretask.evals.cka import centered, cka, sample_terms
from pretask.rng import Rng


def pair(n: int, d: int = 5, e: int = 3, seed: int = 0):
    rng = Rng(seed, "cka")
    x = rng.normal(n, d) + 2
    return x, x[:, :1] * rng.normal(1, e) + rng.normal(n, e)


def slow(x, y) -> float:
    """Eq. 3 and 4: HSIC(K, L) = tr(K H L H) / (n - 1)², entry by entry."""
    n = len(x)

    def kernel(z):
        k = [[sum(a * b for a, b in zip(z[i], z[j], strict=True)) for j in range(n)] for i in range(n)]
        row = [sum(k[i]) / n for i in range(n)]
        whole = sum(row) / n
        return [[k[i][j] - row[i] - row[j] + whole for j in range(n)] for i in range(n)]

    def hsic(k, m):
        return sum(k[i][j] * m[i][j] for i in range(n) for j in range(n)) / (n - 1) ** 2

    k, m = kernel(x.tolist()), kernel(y.tolist())
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5


@pytest.mark.parametrize("n", [4, 20])  # fewer samples than dimensions, and more
def test_cka_matches_the_paper_formula(n):
    x, y = pair(n)
    assert cka(x, y).value == pytest.approx(slow(x.double(), y.double()), abs=1e-9)


def test_cka_is_invariant_to_rotation_scale_and_shift_but_not_to_stretching():
    x, _ = pair(200)
    rotation = torch.linalg.qr(Rng(1).normal(5, 5)).Q
    same = cka(x, -3 * x @ rotation + 7)
    assert same.value == pytest.approx(1, abs=1e-6) and same.variance < 1e-10
    assert cka(x, x * torch.tensor([9.0, 1, 1, 1, 1])).value < 0.9


def test_independent_features_have_a_cka_near_0():
    rng = Rng(2)
    assert cka(rng.normal(5000, 8), rng.normal(5000, 6)).value < 0.01


def test_the_sample_and_the_feature_form_agree():
    x, y = (centered(z) for z in pair(6, d=5, e=3))
    wide = torch.cat([x, torch.zeros(6, 4)], 1)  # the same features, in more dimensions than samples
    for one, other in zip(sample_terms(x, y), sample_terms(wide, y), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("n", [150, 600])
def test_the_variance_matches_the_bootstrap(n):
    x, y = pair(n, seed=3)
    draws = np.random.default_rng(0).integers(n, size=(400, n))
    resampled = np.var([cka(x[torch.from_numpy(d)], y[torch.from_numpy(d)]).value for d in draws])
    assert cka(x, y).variance == pytest.approx(resampled, rel=0.35)


def test_extreme_scales_do_not_overflow_and_constant_features_give_nan():
    x, y = pair(50)
    assert cka(x * 1e30, y * 1e-30).value == pytest.approx(cka(x, y).value, abs=1e-5)
    assert not np.isfinite(cka(x, torch.full((50, 3), 0.1)).value)
