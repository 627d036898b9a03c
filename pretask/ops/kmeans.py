"""k-means: of unit vectors with restarts, and by mini-batches where there are too many rows for that."""

import warnings

import torch
from torch import Tensor

from pretask.ops.neighbors import unit
from pretask.ops.span import span

RESTARTS = 10
"""k-means starts, of which the one with the smallest distances counts"""
BATCH = 4096
"""rows between two steps of the centers"""


def cluster(x: Tensor, clusters: int, seed: int) -> Tensor:
    """(N, D) -> (N,) cluster numbers of the rows, brought to unit length; fewer clusters where there are fewer rows."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(min(clusters, len(x)), n_init=RESTARTS, random_state=seed)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # collapsed features have fewer distinct points
        rows, _ = span(unit(x).cpu())
        return torch.from_numpy(means.fit_predict(rows.numpy())).long()


def centers(x: Tensor, k: int, seed: int, seen: int) -> Tensor:
    """(N, D) -> (K, D) centers, K = min(k, N), by mini-batches (Sculley 2010, "Web-scale k-means clustering").

    `seen` rows in all are drawn: fewer than that are passed over several times.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    rule = {"batch_size": BATCH, "max_iter": -(-seen // len(x)), "max_no_improvement": None}
    known = {"init": "random", "n_init": 1, "compute_labels": False, "random_state": seed}
    means = MiniBatchKMeans(min(k, len(x)), **rule, **known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # few images hold few distinct patches
        return torch.from_numpy(means.fit(x.numpy()).cluster_centers_)
