"""Clustering metrics: NMI, ARI and ACC of clusters against classes.

ACC is the accuracy under the best one-to-one map from clusters to classes (Hungarian, as SCAN: Van Gansbeke et al.
2020, arXiv:2005.12320); NMI is normalized by the arithmetic mean of the entropies.
"""

import numpy as np
import torch
from torch import Tensor


def contingency_table(label: Tensor, cluster: Tensor) -> np.ndarray:
    """(N,), (N,) -> (K, K) number of samples per class and cluster, padded to a square."""
    k = int(max(label.max(), cluster.max())) + 1
    return torch.bincount(label * k + cluster, minlength=k * k).view(k, k).numpy()


def hungarian_correct(label: Tensor, cluster: Tensor) -> Tensor:
    """(N,), (N,) -> (N,) bool: whether a sample lies in the cluster that is matched to its class."""
    from scipy.optimize import linear_sum_assignment

    classes, clusters = linear_sum_assignment(-contingency_table(label, cluster))
    class_of = torch.empty(len(clusters), dtype=torch.long)
    class_of[torch.from_numpy(clusters)] = torch.from_numpy(classes)
    return class_of[cluster] == label


def nmi(tables: np.ndarray, geometric: bool = False) -> np.ndarray:
    """(…, K, K) counts -> (…) mutual information divided by the mean entropy of classes and clusters.

    `geometric`: divided by the geometric mean, as for agglomerative clustering (JULE, arXiv:1604.03628).
    """
    p = tables / tables.sum((-2, -1), keepdims=True)

    def entropy(q: np.ndarray) -> np.ndarray:
        return -(q * np.log(np.where(q > 0, q, 1))).sum(-1)

    classes, clusters = entropy(p.sum(-1)), entropy(p.sum(-2))
    joint = entropy(p.reshape(*p.shape[:-2], -1))
    mean = np.sqrt(classes * clusters) if geometric else (classes + clusters) / 2
    return np.where(mean > 0, (classes + clusters - joint) / np.where(mean > 0, mean, 1), 1.0)


def ari(tables: np.ndarray) -> np.ndarray:
    """(…, K, K) counts -> (…) adjusted Rand index (Hubert, Arabie 1985)."""

    def pairs(count: np.ndarray) -> np.ndarray:
        return (count * (count - 1.0) / 2).sum(-1)

    agreeing = pairs(tables.reshape(*tables.shape[:-2], -1))
    classes, clusters = pairs(tables.sum(-1)), pairs(tables.sum(-2))
    n = tables.sum((-2, -1))
    expected = classes * clusters / np.maximum(n * (n - 1.0) / 2, 1)
    most = (classes + clusters) / 2
    return np.where(
        most > expected, (agreeing - expected) / np.where(most > expected, most - expected, 1), 1.0
    )
