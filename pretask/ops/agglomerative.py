"""Agglomerative clustering on a k-nearest-neighbor graph: graph degree linkage with the local-structure term of JULE.

Graph degree linkage (Zhang, Wang, Zhao, Tang, ECCV 2012, arXiv:1208.5092) with the local-structure term of JULE (Yang,
Parikh, Batra, CVPR 2016, arXiv:1604.03628); numbers without another source are those of JULE's released code. Each
sample is first joined with its nearest neighbor. Then one pair of clusters at a time is merged: the one with the largest
affinity plus the mean difference to the affinities of the next neighbors.

Cost, for N samples of dimension D with k neighbors in n clusters with r neighboring clusters each: N²·D multiplications for
the neighbors, in blocks; n·(n + r²) steps for n merges, and in exact mode k²·N·log N more; memory for N·(D + 9k) + 5n·r
numbers, never N².

JULE's released code is jwyang/JULE.torch at 69bdfd8: W is computed in affinity/affinity.lua:14-43, a merge is chosen in
agg_clustering/agg_clustering.lua:102-129 and performed in regular mode, 131-185, or in fast mode, 187-256. The paper's text
was not available, so its equations have no numbers here.

**Differs** from that code: the full affinity matrix is used instead of its upper half, in which a cluster is only compared
with those of lower index; missing neighbors have affinity 0; the local-structure term is used throughout (there: while there
are more than 100 clusters); chains of nearest neighbors have unlimited length (there: 51 samples); clusters without any
affinity are merged one by one as they appear (there: once at the beginning of a period); and by default `cluster` does not
let a few outliers be a final cluster, such as two images far from all others (`smallest`: with it, the pixels of MNIST reach
the published baseline of NMI 0.91, without it 0.66; bench/cluster.py).
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretask.errors import install_command
from pretask.ops.neighbors import BLOCK, largest
from pretask.types import UserError

NEIGHBORS = 20
"""K_s: nearest neighbors per sample"""
NEIGHBOR_CLUSTERS = 5
"""K_c: neighboring clusters in the local-structure term"""
WEIGHT = 1.0
"""λ: weight of the local-structure term"""
ISOLATED_FIRST = 20
"""multiple of the final number of clusters above which clusters without any affinity are merged first"""
SMALLEST = 0.05
"""fraction of the mean size below which a cluster does not count as a final one"""


# ---- the graph


def neighbors(x: Tensor, k: int, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """(N, D) -> squared distances and indices (N, k) of the k nearest others, nearest first; k < N.

    Ties are in order of index. N x N distances are never held at once.
    """
    x = x.float() - x.float().mean(0)  # |x|² - 2xy + |y|² is more accurate for small values
    square, rows = x.square().sum(1), max(1, block // len(x))
    distance, index = x.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    for some in torch.arange(len(x), device=x.device).split(rows):
        near = torch.addmm(square[None], x[some], x.T, beta=-1, alpha=2)  # (R, N), larger is nearer
        near[torch.arange(len(some), device=x.device), some] = -torch.inf
        found = largest(near, k)[1].sort(1).values
        exact = torch.stack([(x[f] - x[i]).square().sum(1) for i, f in zip(some, found, strict=True)])
        order = exact.argsort(stable=True)
        distance[some], index[some] = exact.gather(1, order), found.gather(1, order)
    return distance, index


def affinity_graph(distance: Tensor, index: Tensor, a: float = 1.0) -> Any:
    """Squared distances and indices of neighbors (N, k) -> sparse W (N, N), from each sample to its neighbors.

    W_ij = exp(-d²_ij / σ²) with σ² = a / (N·k) Σ_ij d²_ij, over the k neighbors j of each i; not symmetric.
    """
    from scipy.sparse import csr_array

    n, k = index.shape
    squared = distance.double().cpu().numpy()
    weight = np.exp(-squared / max(a * squared.mean(), np.finfo(float).tiny))
    return csr_array((weight.ravel(), index.cpu().numpy().ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))


def neighbor_chains(nearest: Tensor) -> Tensor:
    """(N,) the nearest other of each sample -> (N,) clusters: the connected components of these links.

    Each cluster has at least two samples, so there are at most N / 2; labels are in order of appearance.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n = len(nearest)
    links = csr_array((np.ones(n), (np.arange(n), nearest.cpu().numpy())), shape=(n, n))
    return relabel(torch.from_numpy(connected_components(links, directed=False)[1]))


def relabel(label: Tensor) -> Tensor:
    """(N,) any integers -> (N,) 0, 1, … in order of appearance."""
    _, first, inverse = np.unique(label.cpu().numpy(), return_index=True, return_inverse=True)
    return torch.from_numpy(np.argsort(np.argsort(first))[inverse])


# ---- affinities of clusters


def directed_affinity(w: Any, label: Tensor) -> Any:
    """Sparse S (K, K): S_ij = Σ over samples m of cluster i of (sum of W from j to m) · (sum of W from m to j)."""
    from scipy.sparse import csr_array

    n, own = len(label), label.cpu().numpy()
    membership = csr_array((np.ones(n), own, np.arange(n + 1)), shape=(n, int(own.max()) + 1))
    degrees = (w @ membership).multiply(w.T @ membership)  # (N, K), from m to j times from j to m
    return (membership.T @ degrees).tocsr()


def cluster_affinity(w: Any, label: Tensor) -> Tensor:
    """A (K, K) = S_ij / |j|² + S_ji / |i|², dense and symmetric with diagonal 0; only for few clusters."""
    s = torch.from_numpy(directed_affinity(w, label).toarray())
    directed = (s / label.bincount().square()).fill_diagonal_(0)
    return directed + directed.T


# ---- merging


def agglomerate(
    w: Any,
    label: Tensor,
    x: Tensor,
    clusters: int,
    *,
    neighbor_clusters: int = NEIGHBOR_CLUSTERS,
    weight: float = WEIGHT,
    exact: bool = True,
    isolated_first: int | None = None,
    final_clusters: int | None = None,
    smallest: float = 0.0,
) -> Tensor:
    """Graph W (N, N), labels (N,), samples (N, D) -> labels (N,) of `clusters` clusters, or of the given ones if fewer.

    Each merge joins the cluster i with its nearest i1 for which A(i, i1) + λ / (K_c - 1) · Σ_k (A(i, i1) - A(i, ik)) is
    largest, k from 2 to K_c, where λ is `weight` and K_c `neighbor_clusters`. With `exact` (the paper's regular mode) A equals
    a recomputation after each merge; otherwise the affinities of both parts are summed, which omits samples with one link
    to each part in opposite directions (its fast mode).

    While more than `isolated_first` clusters are left (default: 20 times `final_clusters`), a cluster without any affinity is
    merged with that of the nearest mean; later, only if no two clusters have any.

    `final_clusters` is the number after the last of several calls. At or below `isolated_first`, `final_clusters` clusters of
    at least `smallest` times N / final_clusters samples are preserved: if there are no more, the smallest cluster is merged
    with that of the highest affinity, or of the nearest mean. 0: outliers can be final clusters.
    Raises UserError if numba is not installed.
    """
    label = relabel(label)
    count, final_clusters = int(label.max()) + 1, final_clusters or clusters
    if count <= clusters:
        return label
    kernel = load_kernel()
    rows = candidate_pairs(w, label, exact)
    points = x.float().cpu()
    total = torch.zeros(count, points.shape[1]).index_add_(0, label, points)
    owner = kernel.merge(
        *rows,
        links(w),
        label.numpy().copy(),
        total.numpy(),
        clusters,
        ISOLATED_FIRST * final_clusters if isolated_first is None else isolated_first,
        neighbor_clusters,
        weight,
        exact,
        final_clusters,
        smallest * len(x) / final_clusters,
    )
    return relabel(torch.from_numpy(owner))


def load_kernel() -> Any:
    """The module with the compiled loop. Raises UserError if numba is not installed."""
    try:
        from pretask.ops import merging
    except ImportError:
        raise UserError(f"clustering needs the package `numba`: {install_command('cluster')}") from None
    return merging


def candidate_pairs(w: Any, label: Tensor, exact: bool) -> tuple[np.ndarray, ...]:
    """CSR rows of all pairs whose affinity is or can become positive: ends (K + 1,), j, S_ij and S_ji (P,).

    In exact mode, two clusters with any link between them can get a positive affinity when one of them grows.
    """
    from scipy.sparse import coo_array, csr_array

    s = directed_affinity(w, label).tocoo()
    i, j = s.coords
    pairs = [(i, j), (j, i)]
    if exact:
        edges, own = w.tocoo(), label.numpy()
        a, b = (own[side] for side in edges.coords)
        pairs += [(a, b), (b, a)]
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    distinct, count = a != b, s.shape[0]
    pattern = csr_array(coo_array((np.ones(distinct.sum()), (a[distinct], b[distinct])), shape=s.shape))
    pattern.sum_duplicates()
    row = np.repeat(np.arange(count), np.diff(pattern.indptr))
    column, s = pattern.indices.astype(np.int64), s.tocsr()
    forward, backward = values_at(s, row, column), values_at(s, column, row)
    return pattern.indptr.astype(np.int64), column, forward, backward


def values_at(s: Any, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Values (P,) of a sparse matrix, 0 for missing entries."""
    return np.asarray(s[row, column], dtype=np.float64).ravel() if len(row) else np.zeros(0)


def links(w: Any) -> tuple[np.ndarray, ...]:
    """CSR rows of the samples linked to each sample in either direction: ends (N + 1,), m, W_nm and W_mn (L,)."""
    pattern = (w + w.T).tocsr()
    pattern.sort_indices()
    row = np.repeat(np.arange(w.shape[0]), np.diff(pattern.indptr))
    column = pattern.indices.astype(np.int64)
    return pattern.indptr.astype(np.int64), column, values_at(w, row, column), values_at(w, column, row)


def merge_schedule(first: int, last: int, unrolling_rate: float) -> list[int]:
    """The number of clusters in each period, from `first` to `last`: a fraction η, `unrolling_rate`, less each time."""
    counts = [first]
    while counts[-1] > last:
        counts.append(max(last, counts[-1] - math.ceil(unrolling_rate * counts[-1])))
    return counts


def cluster(
    x: Tensor,
    clusters: int,
    *,
    num_neighbors: int = NEIGHBORS,
    neighbor_clusters: int = NEIGHBOR_CLUSTERS,
    exact: bool = True,
    smallest: float = SMALLEST,
    unrolling_rate: float = 1.0,
) -> Tensor:
    """(N, D) -> labels (N,): chains of nearest neighbors, merged until `clusters` are left.

    Affinities are recomputed from the samples whenever a fraction `unrolling_rate` of the clusters was merged, which makes a
    difference only in fast mode. If there are fewer chains than `clusters`, each sample starts as a cluster.
    Raises UserError if there are more clusters than samples.
    """
    if not 1 <= clusters <= len(x):
        raise UserError(f"cannot make {clusters} clusters of {len(x)} images; expected 1 to {len(x)}")
    if len(x) == 1:
        return torch.zeros(1, dtype=torch.int64)
    distance, index = neighbors(x, min(num_neighbors, len(x) - 1))
    label = neighbor_chains(index[:, 0])
    if int(label.max()) + 1 < clusters:
        label = torch.arange(len(x))
    w = affinity_graph(distance, index)
    options: dict[str, Any] = {
        "neighbor_clusters": neighbor_clusters,
        "exact": exact,
        "final_clusters": clusters,
        "smallest": smallest,
    }
    for count in merge_schedule(int(label.max()) + 1, clusters, unrolling_rate)[1:]:
        label = agglomerate(w, label, x, count, **options)
    return label
