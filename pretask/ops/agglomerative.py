"""Agglomerative clustering on a graph of nearest neighbours: clusters merge that are linked in both directions.

Graph degree linkage (Zhang, Wang, Zhao, Tang, ECCV 2012, arXiv:1208.5092) with the local-structure term of JULE (Yang,
Parikh, Batra, CVPR 2016, arXiv:1604.03628); numbers without another source are those of JULE's released code. Every
sample is first joined with its nearest neighbour, then those two clusters merge, one pair at a time, whose affinity is
largest and stands out most against that of their next neighbours.

Cost, for N samples of D numbers with k neighbours in n clusters, each near r others: N²·D multiplications for the
neighbours, in blocks; n·(n + r²) steps for n merges, and in the exact mode k²·N·log N more; memory N·(D + 9k) + 5n·r
numbers, never N².

JULE's released code is jwyang/JULE.torch at 69bdfd8: W is computed in affinity/affinity.lua:14-43, a merge is chosen in
agg_clustering/agg_clustering.lua:102-129, and made there in the regular mode, 131-185, or in the fast one, 187-256. The paper's own text was
not at hand, so its equations stand here without their numbers.

**Differs** from that code: the matrix of affinities is whole, not its upper half, where a cluster is ranked against those
of lower number alone; neighbors that do not exist have affinity 0; the local-structure term counts to the end (there:
while there are more than 100 clusters); chains of nearest neighbors have no end (there: 51 samples); clusters without any
affinity are merged one by one as they appear (there: once at the beginning of a period); and by default `cluster` lets no
few outliers be one of the clusters in the end, as two images far from all others would (`smallest`: with it, the pixels
of MNIST come to the published baseline of NMI 0.91, without it to 0.66; bench/cluster.py).
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretask.evals.knn import BLOCK, largest
from pretask.types import UserError

NEIGHBOURS = 20
"""K_s: links of a sample"""
RIVALS = 5
"""K_c: neighbouring clusters of which the nearest should stand out"""
WEIGHT = 1.0
"""λ of standing out"""
RESCUE = 20
"""times the wanted number of clusters above which one with no affinity to any other is merged first"""
SMALLEST = 0.05
"""share of the mean size below which a cluster is not one of those wanted"""


# ---- the graph


def neighbours(x: Tensor, k: int, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """(N, D) -> squared distances and positions (N, k) of the k nearest others, nearest first; k < N.

    Of equals the first comes first. Never N x N at once.
    """
    x = x.float() - x.float().mean(0)  # |x|² - 2xy + |y|² is exact where the numbers are small
    square, rows = x.square().sum(1), max(1, block // len(x))
    distance, index = x.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    for some in torch.arange(len(x), device=x.device).split(rows):
        near = torch.addmm(square[None], x[some], x.T, beta=-1, alpha=2)  # (R, N), largest where nearest
        near[torch.arange(len(some), device=x.device), some] = -torch.inf
        found = largest(near, k)[1].sort(1).values
        exact = torch.stack([(x[f] - x[i]).square().sum(1) for i, f in zip(some, found, strict=True)])
        order = exact.argsort(stable=True)
        distance[some], index[some] = exact.gather(1, order), found.gather(1, order)
    return distance, index


def graph(distance: Tensor, index: Tensor, a: float = 1.0) -> Any:
    """(N, k) squared distances and positions of neighbours -> W (N, N), sparse, from each sample to its neighbours.

    W_ij = exp(-d²_ij / σ²) with σ² = a / (N·k) Σ_ij d²_ij, over the k neighbors j of every i; not symmetric.
    """
    from scipy.sparse import csr_array

    n, k = index.shape
    squared = distance.double().cpu().numpy()
    weight = np.exp(-squared / max(a * squared.mean(), np.finfo(float).tiny))
    return csr_array((weight.ravel(), index.cpu().numpy().ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))


def chains(nearest: Tensor) -> Tensor:
    """(N,) the nearest other of each sample -> (N,) clusters: all whose chains of nearest neighbours meet.

    A sample is never alone, so there are N / 2 clusters at most; they are numbered in order of appearance.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n = len(nearest)
    links = csr_array((np.ones(n), (np.arange(n), nearest.cpu().numpy())), shape=(n, n))
    return numbered(torch.from_numpy(connected_components(links, directed=False)[1]))


def numbered(label: Tensor) -> Tensor:
    """(N,) any whole numbers -> (N,) 0, 1, … in order of appearance."""
    _, first, inverse = np.unique(label.cpu().numpy(), return_index=True, return_inverse=True)
    return torch.from_numpy(np.argsort(np.argsort(first))[inverse])


# ---- affinities of clusters


def linked(w: Any, label: Tensor) -> Any:
    """S (K, K), sparse: S_ij = Σ over samples m of cluster i of (all W from j to m) · (all W from m to j)."""
    from scipy.sparse import csr_array

    n, own = len(label), label.cpu().numpy()
    belongs = csr_array((np.ones(n), own, np.arange(n + 1)), shape=(n, int(own.max()) + 1))
    degrees = (w @ belongs).multiply(w.T @ belongs)  # (N, K), out of m into j times out of j into m
    return (belongs.T @ degrees).tocsr()


def affinity(w: Any, label: Tensor) -> Tensor:
    """A (K, K) = S_ij / |j|² + S_ji / |i|², whole and symmetric; its diagonal is 0. For few clusters: it is dense."""
    s = torch.from_numpy(linked(w, label).toarray())
    part = (s / label.bincount().square()).fill_diagonal_(0)
    return part + part.T


# ---- merging


def agglomerate(
    w: Any,
    label: Tensor,
    x: Tensor,
    clusters: int,
    *,
    rivals: int = RIVALS,
    weight: float = WEIGHT,
    exact: bool = True,
    rescued: int | None = None,
    wanted: int | None = None,
    smallest: float = 0.0,
) -> Tensor:
    """Graph W (N, N), clusters (N,), samples (N, D) -> (N,) `clusters` clusters, or as many as there are, if fewer.

    Merged is the cluster i, with its nearest i1, for which A(i, i1) + λ / (K_c - 1) · Σ_k (A(i, i1) - A(i, ik)) is
    largest, k from 2 to K_c, where λ is `weight` and K_c `rivals`. `exact` (the paper's regular mode) keeps A as if computed anew after each merge;
    else affinities of both parts are summed and samples linked to one part each way are left out (its fast mode).

    While more than `rescued` clusters are left (20 times `wanted`), one with no affinity to any other is merged with
    that of the nearest mean; later, only when no two have any.

    `wanted` is how many there will be in the end, if this is not the last call. At `rescued` and below, `wanted`
    clusters of at least `smallest` times N / wanted samples are kept: where there are no more, the smallest cluster
    merges with the one of the highest affinity to it, or of the nearest mean. 0: outliers may end as clusters.
    UserError where numba is not installed.
    """
    label = numbered(label)
    count, wanted = int(label.max()) + 1, wanted or clusters
    if count <= clusters:
        return label
    kernel = compiled()
    rows = near_pairs(w, label, exact)
    points = x.float().cpu()
    total = torch.zeros(count, points.shape[1]).index_add_(0, label, points)
    owner = kernel.merge(
        *rows,
        both_ways(w),
        label.numpy().copy(),
        total.numpy(),
        clusters,
        RESCUE * wanted if rescued is None else rescued,
        rivals,
        weight,
        exact,
        wanted,
        smallest * len(x) / wanted,
    )
    return numbered(torch.from_numpy(owner))


def compiled() -> Any:
    """The compiled loop; UserError where numba is missing."""
    try:
        from pretask.ops import merging
    except ImportError:
        raise UserError("clustering needs the package `numba`: pip install 'pretask[cluster]'") from None
    return merging


def near_pairs(w: Any, label: Tensor, exact: bool) -> tuple[np.ndarray, ...]:
    """Rows of all pairs whose affinity is, or can become, more than 0: ends (K + 1,), j, S_ij and S_ji (P,).

    Two clusters whose samples have any link come to an affinity once one has grown, but in the fast mode never do.
    """
    from scipy.sparse import coo_array, csr_array

    s = linked(w, label).tocoo()
    i, j = s.coords
    pairs = [(i, j), (j, i)]
    if exact:
        links, own = w.tocoo(), label.numpy()
        a, b = (own[side] for side in links.coords)
        pairs += [(a, b), (b, a)]
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    apart, count = a != b, s.shape[0]
    pattern = csr_array(coo_array((np.ones(apart.sum()), (a[apart], b[apart])), shape=s.shape))
    pattern.sum_duplicates()
    row = np.repeat(np.arange(count), np.diff(pattern.indptr))
    column, s = pattern.indices.astype(np.int64), s.tocsr()
    own, back = picked(s, row, column), picked(s, column, row)
    return pattern.indptr.astype(np.int64), column, own, back


def picked(s: Any, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Values of a sparse matrix at (P,) places, 0 where it has none."""
    return np.asarray(s[row, column], dtype=np.float64).ravel() if len(row) else np.zeros(0)


def both_ways(w: Any) -> tuple[np.ndarray, ...]:
    """W as lists of all who are linked to a sample in either direction: ends (N + 1,), m, W_nm and W_mn (L,)."""
    pattern = (w + w.T).tocsr()
    pattern.sort_indices()
    row = np.repeat(np.arange(w.shape[0]), np.diff(pattern.indptr))
    column = pattern.indices.astype(np.int64)
    return pattern.indptr.astype(np.int64), column, picked(w, row, column), picked(w, column, row)


def course(first: int, last: int, unroll: float) -> list[int]:
    """How many clusters each period begins with, from `first` to `last`: a share η, `unroll`, of them less each time."""
    counts = [first]
    while counts[-1] > last:
        counts.append(max(last, counts[-1] - math.ceil(unroll * counts[-1])))
    return counts


def cluster(
    x: Tensor,
    clusters: int,
    *,
    neighbours_each: int = NEIGHBOURS,
    rivals: int = RIVALS,
    exact: bool = True,
    smallest: float = SMALLEST,
    unroll: float = 1.0,
) -> Tensor:
    """(N, D) -> (N,): chains of nearest neighbours merged until `clusters` are left.

    Affinities are computed anew from the samples whenever a share `unroll` of the clusters has merged, which makes a
    difference in the fast mode alone. Where there are fewer chains than `clusters`, every sample begins by itself.
    UserError for more clusters than samples.
    """
    if not 1 <= clusters <= len(x):
        raise UserError(f"{len(x)} images make no {clusters} clusters; expected 1 to {len(x)}")
    if len(x) == 1:
        return torch.zeros(1, dtype=torch.int64)
    distance, index = neighbours(x, min(neighbours_each, len(x) - 1))
    label = chains(index[:, 0])
    if int(label.max()) + 1 < clusters:
        label = torch.arange(len(x))
    w = graph(distance, index)
    for count in course(int(label.max()) + 1, clusters, unroll)[1:]:
        label = agglomerate(
            w, label, x, count, rivals=rivals, exact=exact, wanted=clusters, smallest=smallest
        )
    return label
