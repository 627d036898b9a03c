"""Label-free metrics on known spectra, and the invariances that each has or lacks."""

import math

import pytest
import torch

from pretask import data, encoders
from pretask.evals import label_free
from pretask.rng import Rng


def orthonormal(n: int, d: int, *keys: int | str) -> torch.Tensor:
    return torch.linalg.qr(Rng(*keys).normal(n, d).double()).Q


def with_singular_values(s: torch.Tensor, n: int, d: int) -> torch.Tensor:
    """(n, d) with the singular values s and random directions."""
    return orthonormal(n, len(s), "left") * s @ orthonormal(d, len(s), "right").T


GAUSSIAN = Rng(0, "gaussian").normal(2048, 128)


def test_rankme_of_one_direction_is_1():
    assert label_free.rankme(with_singular_values(torch.ones(1), 2048, 128)) == pytest.approx(1.000, abs=5e-4)


def test_rankme_of_equal_singular_values_is_their_number():
    for n, d in ((2048, 128), (100, 128)):  # more samples than columns, and fewer
        rank = label_free.rankme(with_singular_values(torch.ones(16), n, d))
        assert rank == pytest.approx(16.0, abs=0.005)


def test_rankme_of_a_gaussian_changes_with_its_mean():
    assert label_free.rankme(GAUSSIAN) == pytest.approx(127.0, abs=0.05)
    assert label_free.rankme(GAUSSIAN + 20) == pytest.approx(10.8, abs=0.1)  # it does not center


def test_rankme_is_the_exponential_entropy_of_the_singular_values():
    x = Rng(1, "rankme").normal(60, 20) * torch.linspace(0.1, 3, 20)
    s = torch.linalg.svdvals(x.double())
    expected = math.exp(-sum(p * math.log(p) for p in (s / s.sum() + 1e-7).tolist()))
    assert label_free.rankme(x) == pytest.approx(expected, rel=1e-9)
    assert label_free.rankme(x) == pytest.approx(label_free.rankme(1e4 * x), rel=1e-6)
    assert label_free.rankme(torch.zeros(5, 3)) == 0


@pytest.mark.parametrize("length", [128, 2048, 15])  # longer than the fitted ranks, and shorter
@pytest.mark.parametrize("exponent", [1.3, 0.5])
def test_alpha_of_a_power_law_is_its_exponent(length, exponent):
    eigenvalues = torch.arange(1, length + 1).double() ** -exponent
    assert label_free.decay_exponent(eigenvalues) == pytest.approx(exponent, abs=5e-4)


def test_alpha_is_fitted_to_ranks_11_to_100_with_more_weight_on_early_ones():
    bent = torch.arange(1, 301).double() ** -1.0
    bent[:10], bent[100:] = 5, 1e-3  # outside
    assert label_free.decay_exponent(bent) == pytest.approx(1.0, abs=5e-4)
    rank = torch.arange(11, 101).double()
    bent[10:100] = torch.where(rank < 40, rank**-1.0, 40 * rank**-2.0)
    line = torch.stack([rank.log(), torch.ones(90)], 1).double()
    root = rank.rsqrt()[:, None]  # of the weights 1 / rank
    expected = torch.linalg.lstsq(line * root, bent[10:100].log()[:, None] * root).solution[0].item()
    assert label_free.decay_exponent(bent) == pytest.approx(-expected, rel=1e-9)


@pytest.mark.parametrize("n", [2000, 100])
def test_alpha_is_that_of_the_covariance(n):
    s = torch.arange(1, 61) ** -0.65
    left = orthonormal(n, 61, "left")
    left = torch.linalg.qr(torch.cat([torch.ones(n, 1), left[:, :60]], 1)).Q[:, 1:]  # columns with mean 0
    x = left * s @ orthonormal(128, 60, "right").T[:60]
    assert label_free.alpha(x) == pytest.approx(1.3, abs=0.01)
    assert label_free.alpha(x + 3) == pytest.approx(1.3, abs=0.01)  # a mean does not change the covariance
    assert label_free.alpha(1000 * x) == pytest.approx(1.3, abs=0.01)


def test_std_of_directions_without_preference_is_one_over_root_d():
    assert label_free.std(GAUSSIAN) == pytest.approx(1 / math.sqrt(128), rel=0.01)
    assert label_free.std(GAUSSIAN * Rng(2).uniform(2048, 1, low=0.1, high=9)) == pytest.approx(
        1 / math.sqrt(128), rel=0.01
    )


def test_cosine_is_the_mean_over_different_samples():
    x = Rng(3, "cosine").normal(30, 5) + 0.5
    pairs = [
        torch.nn.functional.cosine_similarity(x[i], x[j], dim=0).item()
        for i in range(30)
        for j in range(30)
        if i != j
    ]
    assert label_free.cosine(x) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_metrics_of_collapsed_features():
    collapsed = label_free.metrics(torch.full((300, 40), 0.3))
    assert collapsed["rankme"] == pytest.approx(1, abs=0.01)
    assert collapsed["std"] < 1e-6 and collapsed["cosine"] == pytest.approx(1)
    assert math.isnan(collapsed["alpha"])  # there is no spectrum to fit a line to


def test_one_sample_has_no_spread():
    single = label_free.metrics(torch.ones(1, 4))
    assert single["std"] == 0 and math.isnan(single["cosine"]) and math.isnan(single["alpha"])


# ---- LiDAR


def slow_lidar(x: torch.Tensor) -> float:
    """The formula, with loops."""
    n, q, d = x.shape
    x = x.double()
    means = [sum(x[i, j] for j in range(q)) / q for i in range(n)]
    whole = sum(means) / n
    between = sum(torch.outer(m - whole, m - whole) for m in means) / (n - 1)
    within = 1e-4 * torch.eye(d, dtype=torch.double)
    for i in range(n):
        for j in range(q):
            within = within + torch.outer(x[i, j] - means[i], x[i, j] - means[i]) / (n * (q - 1))
    found = torch.linalg.eigvals(torch.linalg.inv(within) @ between).real.clamp(
        min=0
    )  # similar, so the same eigenvalues
    p = ((found + 1e-8) / (found + 1e-8).sum()).tolist()
    return math.exp(-sum(each * math.log(each) for each in p))


def test_lidar_is_the_formula():
    x = Rng(2, "lidar").normal(12, 4, 6) + 2 * Rng(3, "lidar").normal(12, 1, 6)
    assert label_free.lidar(x) == pytest.approx(slow_lidar(x), rel=1e-6)


def test_lidar_counts_directions_that_differ_between_images_more_than_between_views():
    """Five of 32 directions hold the image; the others only noise of the views."""
    image = Rng(0, "image").normal(400, 1, 32) * (torch.arange(32) < 5)
    views = image * 20 + Rng(1, "views").normal(400, 10, 32)
    assert label_free.lidar(views) == pytest.approx(5, rel=0.1)
    assert label_free.lidar(Rng(1, "views").normal(400, 10, 32)) > 25


def test_lidars_views_are_of_some_images_and_drawn_by_the_seed():
    source, encoder = data.open("synthetic:40:16"), encoders.build("resnet_small:width=8", 3, 16)
    first, again, other = (label_free.views(encoder, source, seed, "cpu") for seed in (0, 0, 1))
    assert first.shape == (40, label_free.LIDAR_VIEWS, encoder.dim)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert encoder.training


# ---- stability of clusters


def test_clusters_that_exist_are_stable_and_those_of_noise_are_not():
    label = torch.arange(600) % label_free.CLUSTERS
    rng = Rng(0, "clusters")
    center = 10 * rng.child("center").normal(label_free.CLUSTERS, 16)
    noise = rng.normal(600, 16)
    assert label_free.stability(center[label] + noise, 0) > 95
    assert label_free.stability(noise, 0) < 40
    assert math.isnan(label_free.stability(noise[:10], 0))
