"""k-means against scikit-learn: restarts, mini-batches, fewer distinct rows than clusters."""

import numpy as np
import torch
from sklearn.cluster import KMeans

from pretask.evals.cluster_metrics import hungarian_correct
from pretask.ops import kmeans
from pretask.rng import Rng


def test_separated_clusters_are_found_for_rows_of_any_length():
    rng = Rng(2, "blobs")
    label = rng.integers(200, high=3)
    x = (torch.eye(3, 8)[label] + 0.05 * rng.normal(200, 8)) * rng.uniform(200, 1, low=0.1, high=50)
    found = kmeans.cluster(x, 3, seed=0)
    assert hungarian_correct(label, found).all()
    assert torch.equal(found, kmeans.cluster(x, 3, seed=0))


def test_several_starts_have_a_lower_inertia_than_the_median_start():
    x = Rng(3, "starts").normal(300, 6)
    z = (x / x.norm(dim=1, keepdim=True)).numpy()

    def inertia(found: np.ndarray) -> float:
        return sum(float(((z[found == k] - z[found == k].mean(0)) ** 2).sum()) for k in range(12))

    single = [inertia(KMeans(12, n_init=1, random_state=s).fit_predict(z)) for s in range(10)]
    assert inertia(kmeans.cluster(x, 12, seed=0).numpy()) < np.median(single)


def test_duplicates_and_few_samples_are_clustered_without_warnings(recwarn):
    assert kmeans.cluster(torch.ones(20, 4), 5, seed=0).unique().tolist() == [0]
    assert len(kmeans.cluster(torch.eye(3), 10, seed=0).unique()) == 3
    assert not recwarn.list


def objective(x: torch.Tensor, centers: torch.Tensor) -> float:
    return torch.cdist(x.double(), centers.double()).min(1).values.square().mean().item()


def test_mini_batches_are_within_3_percent_of_full_batches():
    x = Rng(8).normal(3000, 10) + 3 * torch.eye(10)[Rng(9).integers(3000, high=10)]
    reference = (
        KMeans(25, n_init=1, init="random", max_iter=12, random_state=0).fit(x.numpy()).inertia_ / 3000
    )
    assert objective(x, kmeans.centers(x, 25, 10, seen=200_000)) < 1.03 * reference


def test_with_fewer_distinct_rows_than_centers_every_row_has_a_center():
    x = torch.eye(4).repeat(50, 1)  # four distinct rows for ten centers
    centers = kmeans.centers(x, 10, 13, seen=200_000)
    assert centers.shape == (10, 4) and centers.isfinite().all()
    assert objective(centers, x[:4]) < 1e-9 and objective(x, centers) < 1e-9
