"""k-means: on unit vectors with restarts, and mini-batch k-means for many rows."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from pretask.ops.neighbors import unit
from pretask.ops.span import span

RESTARTS = 10
"""number of random initializations; the result with the smallest distances is used"""
BATCH = 4096
"""rows per mini-batch"""


def cluster(x: Tensor, clusters: int, seed: int) -> Tensor:
    """(N, D) -> (N,) cluster numbers of the rows, normalized to unit length; at most N clusters."""
    rows, _ = span(unit(x).cpu())
    return fit(rows, clusters, seed, RESTARTS)(rows)


def fit(rows: Tensor, clusters: int, seed: int, restarts: int) -> Callable[[Tensor], Tensor]:
    """(N, D) -> a function from (M, D) to (M,) cluster numbers; at most N clusters."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(min(clusters, len(rows)), n_init=restarts, random_state=seed)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # collapsed features have fewer distinct points
        means.fit(rows.numpy())
    return lambda given: torch.from_numpy(means.predict(given.numpy())).long()


def centers(x: Tensor, k: int, seed: int, seen: int) -> Tensor:
    """(N, D) -> (K, D) centers, K = min(k, N), by mini-batches (Sculley 2010, "Web-scale k-means clustering").

    `seen` rows are drawn in total, so a smaller N means several passes.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    rule = {"batch_size": BATCH, "max_iter": -(-seen // len(x)), "max_no_improvement": None}
    known = {"init": "random", "n_init": 1, "compute_labels": False, "random_state": seed}
    means = MiniBatchKMeans(min(k, len(x)), **rule, **known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # few images hold few distinct patches
        return torch.from_numpy(means.fit(x.numpy()).cluster_centers_)
