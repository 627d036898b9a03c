"""Clustering: do the classes appear by themselves? k-means on unit-length features, then NMI, ARI and ACC.

ACC is the accuracy under the best one-to-one map from clusters to classes (Hungarian, as SCAN: Van Gansbeke et al.
2020, arXiv:2005.12320); NMI is normalised by the arithmetic mean of the entropies.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from pretask.evals.knn import unit
from pretask.ops.span import span

RESTARTS = 10
"""k-means starts, of which the one with the smallest distances counts"""


def cluster(x: Tensor, clusters: int, seed: int) -> Tensor:
    """(N, D) -> (N,) cluster numbers; no label is asked for."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(min(clusters, len(x)), n_init=RESTARTS, random_state=seed)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # collapsed features have fewer distinct points
        rows, _ = span(unit(x).cpu())
        return torch.from_numpy(means.fit_predict(rows.numpy())).long()


def table(label: Tensor, cluster: Tensor) -> np.ndarray:
    """(N,), (N,) -> (K, K) how often a class fell into a cluster, square."""
    k = int(max(label.max(), cluster.max())) + 1
    return torch.bincount(label * k + cluster, minlength=k * k).view(k, k).numpy()


def matched(label: Tensor, cluster: Tensor) -> Tensor:
    """(N,) whether a sample lies in the cluster that stands for its class."""
    from scipy.optimize import linear_sum_assignment

    class_of, cluster_of = linear_sum_assignment(-table(label, cluster))
    meaning = torch.empty(len(cluster_of), dtype=torch.long)
    meaning[torch.from_numpy(cluster_of)] = torch.from_numpy(class_of)
    return meaning[cluster] == label


def nmi(tables: np.ndarray, geometric: bool = False) -> np.ndarray:
    """(…, K, K) counts -> (…) mutual information over the mean entropy of classes and clusters.

    `geometric`: over the root of their product, as agglomerative clustering is scored (JULE, arXiv:1604.03628).
    """
    p = tables / tables.sum((-2, -1), keepdims=True)

    def entropy(q: np.ndarray) -> np.ndarray:
        return -(q * np.log(np.where(q > 0, q, 1))).sum(-1)

    classes, clusters = entropy(p.sum(-1)), entropy(p.sum(-2))
    both = entropy(p.reshape(*p.shape[:-2], -1))
    mean = np.sqrt(classes * clusters) if geometric else (classes + clusters) / 2
    return np.where(mean > 0, (classes + clusters - both) / np.where(mean > 0, mean, 1), 1.0)


def ari(tables: np.ndarray) -> np.ndarray:
    """(…, K, K) counts -> (…) Rand index adjusted for chance (Hubert, Arabie 1985)."""

    def pairs(count: np.ndarray) -> np.ndarray:
        return (count * (count - 1.0) / 2).sum(-1)

    together = pairs(tables.reshape(*tables.shape[:-2], -1))
    classes, clusters = pairs(tables.sum(-1)), pairs(tables.sum(-2))
    n = tables.sum((-2, -1))
    chance = classes * clusters / np.maximum(n * (n - 1.0) / 2, 1)
    most = (classes + clusters) / 2
    return np.where(most > chance, (together - chance) / np.where(most > chance, most - chance, 1), 1.0)
