"""Coordinates in the span preserve rows, distances, and what k-means and SVMs learn from them."""

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.svm import LinearSVC
from torch.testing import assert_close

from pretask.evals import cluster_metrics
from pretask.ops import kmeans
from pretask.ops.neighbors import unit
from pretask.ops.span import span
from pretask.rng import Rng


@pytest.mark.parametrize(("n", "d"), [(10, 200), (3, 17), (39, 40)])
def test_rows_are_recovered_from_their_coordinates(n, d):
    x = Rng(n, d).normal(n, d)
    z, mix = span(x)
    assert mix is not None and z.shape == (n, n)
    basis = x.T @ mix
    assert_close(basis.T @ basis, torch.eye(n), atol=1e-4, rtol=0)
    assert_close(z @ basis.T, x, atol=1e-4, rtol=0)
    assert_close(x @ basis, z, atol=1e-4, rtol=0)
    gram = z.T @ z
    assert (gram - gram.diag().diag()).abs().max() < 1e-4 * gram.max()


def test_rows_are_unchanged_if_there_are_at_least_as_many_as_dimensions():
    x = Rng(0).normal(40, 40)
    z, mix = span(x)
    assert z is x and mix is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_repeated_rows_have_fewer_coordinates(dtype):
    x = Rng(0, "rank").normal(3, 50).to(dtype)[torch.arange(12) % 3]
    z, mix = span(x)
    assert mix is not None and mix.shape == (12, 3)
    assert_close(z @ mix.T @ x, x, atol=1e-4, rtol=0)
    assert not span(torch.zeros(4, 9))[0].any()


def test_kmeans_in_the_span_equals_kmeans_in_full_dimension():
    """For well-separated clusters; and all pairwise distances are the same."""
    rng = Rng(0, "clusters")
    group = rng.integers(60, high=4)
    x = 3 * rng.normal(4, 300)[group] + rng.normal(60, 300)
    found = kmeans.cluster(x, 4, seed=0)
    full = torch.from_numpy(KMeans(4, n_init=10, random_state=0).fit_predict(unit(x).numpy())).long()
    assert cluster_metrics.nmi(cluster_metrics.contingency_table(found, full)) == pytest.approx(1)
    z, _ = span(unit(x))
    assert_close(torch.pdist(z), torch.pdist(unit(x)), atol=1e-4, rtol=0)


def test_svm_in_the_span_equals_svm_in_full_dimension():
    rng = Rng(0, "machine")
    x, unseen = rng.normal(50, 200).double(), rng.normal(30, 200).double()
    label = (x[:, 0] > 0).numpy()
    z, mix = span(x)
    assert mix is not None

    def decide(x: torch.Tensor, test: torch.Tensor):
        return (
            LinearSVC(C=0.1, dual=False, tol=1e-8, max_iter=10_000)
            .fit(x.numpy(), label)
            .decision_function(test.numpy())
        )

    assert_close(
        torch.from_numpy(decide(z, unseen @ x.T @ mix)),
        torch.from_numpy(decide(x, unseen)),
        atol=1e-5,
        rtol=0,
    )
