"""Agglomerative clustering: the graph, neighbor chains, affinities in loops, and every merge against a recomputation."""

import math
import re
import sys

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.testing import assert_close

from pretask.errors import install_command
from pretask.evals import cluster_metrics
from pretask.ops import agglomerative as ag
from pretask.ops import kmeans
from pretask.rng import Rng
from pretask.types import UserError


def random_case(n: int = 60, width: int = 4, k: int = 6, seed: int = 1):
    """Random samples, their graph and their chains."""
    x = Rng(seed).normal(n, width)
    distance, index = ag.neighbors(x, k)
    return x, ag.affinity_graph(distance, index), ag.neighbor_chains(index[:, 0])


def groups(label: Tensor) -> set[frozenset[int]]:
    """The partition, independent of label numbers."""
    return {frozenset((label == c).nonzero()[:, 0].tolist()) for c in label.unique()}


def blobs(each: int = 40) -> tuple[Tensor, Tensor]:
    """Three well-separated clusters in the plane."""
    center = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    label = torch.arange(3).repeat_interleave(each)
    return center[label] + Rng(3).normal(3 * each, 2), label


# ---- reference: the formulas in loops


def slow_directed_affinity(w: np.ndarray, i: list[int], j: list[int]) -> float:
    return sum(sum(w[n, m] for n in j) * sum(w[m, n] for n in j) for m in i)


def slow_affinity(w: np.ndarray, i: list[int], j: list[int]) -> float:
    return slow_directed_affinity(w, i, j) / len(j) ** 2 + slow_directed_affinity(w, j, i) / len(i) ** 2


def score(a: np.ndarray, i: int, neighbor_clusters: int, weight: float) -> tuple[float, int]:
    """The merge score of cluster i and the cluster that it merges with, from its row of affinities."""
    others = sorted((j for j in range(len(a)) if j != i), key=lambda j: (-a[i, j], j))
    near = [a[i, j] for j in others[:neighbor_clusters]]
    near += [0.0] * (neighbor_clusters - len(near))
    gap = sum(near[0] - further for further in near[1:])
    return near[0] + (weight * gap / (neighbor_clusters - 1) if neighbor_clusters > 1 else 0), others[0]


def slow_agglomerate(
    w, label: Tensor, x: Tensor, clusters: int, neighbor_clusters=5, weight=1.0, exact=True, isolated_first=0
):
    """`agglomerate` in loops; in exact mode everything is recomputed after each merge."""
    dense = w.toarray()
    parts = [(label == c).nonzero()[:, 0].tolist() for c in range(int(label.max()) + 1)]
    s = np.array([[slow_directed_affinity(dense, i, j) if i is not j else 0.0 for j in parts] for i in parts])
    while len(parts) > clusters:
        size = np.array([len(p) for p in parts])
        if exact:
            s = np.array(
                [[slow_directed_affinity(dense, i, j) if i is not j else 0.0 for j in parts] for i in parts]
            )
        a = s / size[None] ** 2 + s.T / size[:, None] ** 2
        isolated = sorted((i for i in range(len(parts)) if a[i].max() == 0), key=lambda i: size[i])
        if isolated and (len(parts) > isolated_first or a.max() == 0):
            i, mean = isolated[0], [x[p].mean(0) for p in parts]
            far = [math.inf if j == i else float((mean[j] - mean[i]).norm()) for j in range(len(parts))]
            j = int(np.argmin(far))
        else:
            i = max(range(len(parts)), key=lambda i: score(a, i, neighbor_clusters, weight)[0])
            j = score(a, i, neighbor_clusters, weight)[1]
        i, j = min(i, j), max(i, j)
        s[i] += s[j]
        s[:, i] += s[:, j]
        s = np.delete(np.delete(s, j, 0), j, 1)
        s[i, i] = 0
        parts[i] += parts.pop(j)
    found = torch.empty(len(x), dtype=torch.int64)
    for c, p in enumerate(parts):
        found[p] = c
    return found


# ---- the graph


def test_neighbors_are_the_nearest_others_for_every_block_size():
    x = Rng(1).normal(70, 5)
    far = torch.cdist(x.double(), x.double()).square().fill_diagonal_(math.inf)
    expected, index = far.sort(1)
    for block in (1, 70 * 9, 1 << 24):
        distance, found = ag.neighbors(x, 8, block)
        assert torch.equal(found, index[:, :8])
        assert_close(distance, expected[:, :8].float())


def test_neighbors_among_thousands_match_a_full_sort():
    """In this case only groups with large maxima are sorted."""
    x = Rng(1).normal(2000, 3)
    index = torch.cdist(x, x).fill_diagonal_(math.inf).argsort(1)[:, :4]
    assert (ag.neighbors(x, 4)[1] == index).float().mean() > 0.999  # cdist itself rounds


def test_samples_are_not_their_own_neighbors_even_among_duplicates():
    distance, index = ag.neighbors(torch.full((9, 3), 1000.0), 8)
    for i, row in enumerate(index.tolist()):
        assert row == [j for j in range(9) if j != i]
    assert not distance.any()
    near = torch.tensor([[1000.0, 0], [1000.01, 0], [1000.5, 0], [1000.52, 0]])
    assert ag.neighbors(near, 1)[1][:, 0].tolist() == [1, 0, 3, 2]


def test_small_distances_far_from_the_mean_are_accurate():
    at = torch.tensor([0.0, 0.01, 0.03, 0.07])
    distance, index = ag.neighbors(torch.cat([at - 1000, at + 1000])[:, None], 3)
    assert index[[1, 5]].tolist() == [[0, 2, 3], [4, 6, 7]]
    assert_close(distance[1], torch.tensor([1e-4, 4e-4, 36e-4]), rtol=0.05, atol=0)


def test_graph_has_k_links_per_row_and_the_mean_squared_distance_as_bandwidth():
    distance, index = ag.neighbors(Rng(1).normal(80, 3), 7)
    for a in (1.0, 0.5):
        w = ag.affinity_graph(distance, index, a)
        assert w.nnz == 80 * 7 and set(np.diff(w.indptr)) == {7}
        assert not w.diagonal().any()
        assert w.data.min() > 0 and w.data.max() <= 1
        assert_close(-np.log(w.data).mean(), 1 / a)
        assert (w != w.T).nnz  # not symmetric
    sigma = float(distance.double().mean())
    assert_close(
        ag.affinity_graph(distance, index)[0, int(index[0, 2])], math.exp(-float(distance[0, 2]) / sigma)
    )


def test_duplicates_have_a_graph():
    w = ag.affinity_graph(*ag.neighbors(torch.ones(6, 2), 3))
    assert np.array_equal(w.data, np.ones(18))


# ---- chains


def test_chains_contain_each_sample_and_its_nearest():
    for seed in range(5):
        _, index = ag.neighbors(Rng(seed).normal(50, 2), 1)
        label = ag.neighbor_chains(index[:, 0])
        assert torch.equal(label, label[index[:, 0]])
        assert 1 <= int(label.max()) + 1 <= 25
        assert label.bincount().min() >= 2
        seen = [c for n, c in enumerate(label.tolist()) if c not in label[:n]]
        assert seen == list(range(len(seen)))  # labels are in order of appearance


def test_chains_that_meet_are_one_cluster():
    # 0 -> 1 <-> 2 <- 3,  4 <-> 5
    assert ag.neighbor_chains(torch.tensor([1, 2, 1, 2, 5, 4])).tolist() == [0, 0, 0, 0, 1, 1]


# ---- affinities


def golden():
    w = np.zeros((4, 4))
    w[0, 2] = w[2, 0] = 0.5
    w[1, 3] = w[3, 1] = 1.0
    w[0, 1] = w[1, 0] = w[2, 3] = w[3, 2] = 0.9
    return csr_array(w), torch.tensor([0, 0, 1, 1])


def test_affinities_of_four_samples_by_hand():
    w, label = golden()
    assert_close(ag.directed_affinity(w, label).toarray()[[0, 1], [1, 0]], np.array([1.25, 1.25]))
    assert_close(ag.cluster_affinity(w, label), torch.tensor([[0, 0.625], [0.625, 0]], dtype=torch.float64))


def test_affinities_match_the_formula_in_loops():
    _, w, label = random_case()
    dense = w.toarray()
    parts = [(label == c).nonzero()[:, 0].tolist() for c in range(int(label.max()) + 1)]
    found = ag.cluster_affinity(w, label)
    assert torch.equal(found, found.T)
    for i in range(len(parts)):
        for j in range(len(parts)):
            expected = slow_affinity(dense, parts[i], parts[j]) if i != j else 0.0
            assert_close(found[i, j].item(), expected)


def test_affinity_of_a_union_is_the_sum_of_its_parts_plus_cross_terms():
    _, w, label = random_case()
    label = label % 6
    s = torch.from_numpy(ag.directed_affinity(w, label).toarray())
    joined = torch.where(label == 1, 0, label)  # 0 ∪ 1
    t = torch.from_numpy(ag.directed_affinity(w, joined).toarray())
    assert_close(t[0, 2:], s[0, 2:] + s[1, 2:])
    assert (t[2:, 0] >= s[2:, 0] + s[2:, 1] - 1e-12).all()
    dense = w.toarray()
    into, out = (np.stack([d[label.numpy() == c].sum(0) for c in (0, 1)]) for d in (dense, dense.T))
    crossed = into[0] * out[1] + into[1] * out[0]  # samples linked to one part and from the other
    extra = torch.tensor([crossed[label.numpy() == c].sum() for c in range(2, 6)])
    assert_close(t[2:, 0] - s[2:, 0] - s[2:, 1], extra)
    assert extra.max() > 0


# ---- merging


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("exact", [True, False])
def test_every_merge_matches_the_loops(seed, exact):
    x, w, label = random_case(seed=seed, n=50, width=3, k=5)
    count = int(label.max()) + 1
    for clusters in range(count, 0, -1):
        isolated_first = (0, 1000)[seed % 2]
        found = ag.agglomerate(w, label, x, clusters, exact=exact, isolated_first=isolated_first)
        expected = slow_agglomerate(w, label, x, clusters, exact=exact, isolated_first=isolated_first)
        assert groups(found) == groups(expected), f"{clusters} of {count}"


@pytest.mark.parametrize(("neighbor_clusters", "weight"), [(1, 1.0), (2, 1.0), (5, 0.0), (5, 3.0), (9, 1.0)])
def test_local_structure_term_matches_the_loops(neighbor_clusters, weight):
    x, w, label = random_case(seed=7)
    for clusters in (12, 8, 5, 3, 2):
        options = {"neighbor_clusters": neighbor_clusters, "weight": weight, "isolated_first": 1000}
        assert groups(ag.agglomerate(w, label, x, clusters, **options)) == groups(
            slow_agglomerate(w, label, x, clusters, **options)
        )


def test_single_samples_can_be_merged():
    x, w, _ = random_case(n=30)
    label = torch.arange(30)
    for clusters in (29, 20, 10, 2):
        expected = slow_agglomerate(w, label, x, clusters, isolated_first=1000)
        assert groups(ag.agglomerate(w, label, x, clusters, isolated_first=1000)) == groups(expected)


def test_fast_mode_omits_samples_linked_to_the_parts_in_opposite_directions():
    """m -> a and b -> m: m has an affinity to a ∪ b only in exact mode."""
    w = np.zeros((8, 8))
    for i, j in ((0, 1), (2, 3), (4, 5), (6, 7), (0, 2)):
        w[i, j] = w[j, i] = 1.0
    w[4, 0], w[2, 4] = 0.9, 0.9  # the pair 4, 5 with the pairs 0, 1 and 2, 3
    w[6, 5] = w[5, 6] = 0.1
    label, x = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), torch.arange(8.0)[:, None]
    for exact, expected in ((True, {0, 1, 2, 3, 4, 5}), (False, {0, 1, 2, 3})):
        found = ag.agglomerate(csr_array(w), label, x, 2, exact=exact, isolated_first=1000)
        assert frozenset(expected) in groups(found)


def test_partitions_are_nested_and_lose_one_cluster_per_merge():
    x, w, label = random_case(n=120)
    before = groups(label)
    for clusters in range(len(before) - 1, 0, -1):
        found = ag.agglomerate(w, label, x, clusters, isolated_first=0)
        now = groups(found)
        assert len(now) == clusters and len(found) == 120
        assert len(before - now) == 2 and len(now - before) == 1
        assert found.unique().tolist() == list(range(clusters))
        before = now


def test_requesting_as_many_or_more_clusters_changes_nothing():
    x, w, label = random_case()
    for more in (0, 5):
        assert torch.equal(ag.agglomerate(w, label, x, int(label.max()) + 1 + more), label)


@pytest.mark.parametrize("exact", [True, False])
def test_merging_is_deterministic_and_independent_of_sample_order(exact):
    x = Rng(5).normal(300, 6)
    order = Rng(6).permutation(300)
    found = ag.cluster(x, 7, exact=exact)
    assert torch.equal(found, ag.cluster(x, 7, exact=exact))
    again = torch.empty(300, dtype=torch.int64)
    again[order] = ag.cluster(x[order], 7, exact=exact)
    assert groups(again) == groups(found)


@pytest.mark.parametrize("exact", [True, False])
def test_three_blobs_are_found(exact):
    x, label = blobs()
    found = ag.cluster(x, 3, exact=exact)
    assert cluster_metrics.nmi(cluster_metrics.contingency_table(label, found)) == pytest.approx(1)
    assert groups(found) == groups(label)


def test_isolated_clusters_join_the_nearest_mean():
    """Three pairs without links between them: the two nearest are merged."""
    w = np.zeros((6, 6))
    for i in (0, 2, 4):
        w[i, i + 1] = w[i + 1, i] = 1.0
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0], [13.0], [14.0]])
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    found = ag.agglomerate(csr_array(w), label, x, 2)
    assert found.tolist() == [0, 0, 0, 0, 1, 1]  # the first isolated cluster, and the one nearest to it
    assert ag.agglomerate(csr_array(w), label, x, 1).tolist() == [0] * 6


def test_mean_of_a_union_is_that_of_all_its_samples():
    w = np.zeros((8, 8))
    for i in (0, 2, 4, 6):
        w[i, i + 1] = w[i + 1, i] = 1.0
    x = torch.tensor([[10.0], [11.0], [13.0], [14.0], [17.2], [18.2], [28.0], [29.0]])
    found = ag.agglomerate(csr_array(w), torch.arange(4).repeat_interleave(2), x, 2)
    assert found.tolist() == [0] * 6 + [1] * 2  # 17.7 is nearer to 12 than to 28.5


def test_digits_are_found_in_pixels_and_outliers_are_not_a_cluster(shared_data):
    digits = np.load(shared_data("clustering", "mnist_test3k.npz"))
    x = torch.from_numpy(digits["images"]).flatten(1) / 255
    x, label = x / x.norm(dim=1, keepdim=True), torch.from_numpy(digits["labels"]).long()

    def nmi(found):
        return float(cluster_metrics.nmi(cluster_metrics.contingency_table(label, found), geometric=True))

    found, every = ag.cluster(x, 10), ag.cluster(x, 10, smallest=0.0)
    assert every.bincount().min() < 15 <= found.bincount().min()
    assert nmi(found) > 0.74 > 0.6 > nmi(kmeans.cluster(x, 10, 0))


def test_outliers_are_merged_late_with_their_nearest_cluster():
    """Three pairs and a single sample, which is merged once at most two clusters reach the smallest size."""
    x = torch.tensor([[0.0], [1.0], [3.0], [4.0], [20.0], [21.0], [30.0]])
    w, label = np.zeros((7, 7)), torch.tensor([0, 0, 1, 1, 2, 2, 3])
    for i, j, v in ((0, 1, 1.0), (2, 3, 1.0), (4, 5, 1.0), (1, 2, 0.9), (3, 4, 0.5), (6, 0, 1e-6)):
        w[i, j] = w[j, i] = v
    least = {"smallest": 0.5}  # of 7 / 2 samples: 1.75
    assert ag.agglomerate(csr_array(w), label, x, 3, final_clusters=2, **least).tolist() == [
        0,
        0,
        0,
        0,
        1,
        1,
        2,
    ]
    assert ag.agglomerate(csr_array(w), label, x, 2, **least).tolist() == [0, 0, 0, 0, 1, 1, 0]
    assert ag.agglomerate(csr_array(w), label, x, 2).tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert ag.agglomerate(csr_array(w), label, x, 2, isolated_first=0, **least).tolist() == [
        0,
        0,
        0,
        0,
        0,
        0,
        1,
    ]


def test_isolated_clusters_are_merged_first_while_many_are_left():
    x, w, label = random_case(n=40)
    w = w.tolil()
    isolated = (label == label[0]).nonzero()[:, 0].tolist()
    w[isolated], w[:, isolated] = 0, 0
    w, count = csr_array(w), int(label.max()) + 1
    first = ag.agglomerate(w, label, x, count - 1, isolated_first=0)
    assert (label == label[0])[first == first[0]].sum() < (first == first[0]).sum()  # merged
    later = ag.agglomerate(w, label, x, count - 1, isolated_first=count)
    assert groups(later) >= {frozenset(isolated)}


def test_two_outliers_are_a_cluster_only_with_smallest_0():
    middle = torch.tensor([[0.0, 0.0], [10.0, 0.0]]).repeat_interleave(100, 0)
    x = torch.cat([middle + Rng(3).normal(200, 2), torch.tensor([[5.0, 30.0], [5.1, 30.0]])])
    every = ag.cluster(x, 3, smallest=0.0)
    assert sorted(every.bincount().tolist()) == [2, 100, 100]
    assert sorted(ag.cluster(x, 3).bincount().tolist())[0] > 2


@pytest.mark.parametrize("unrolling_rate", [0.2, 0.9, 1.0])
def test_affinities_are_recomputed_at_the_unrolling_rate(unrolling_rate):
    """In fast mode, which otherwise omits more and more terms."""
    x = Rng(2).normal(150, 3)
    distance, index = ag.neighbors(x, 8)
    w, label = ag.affinity_graph(distance, index), ag.neighbor_chains(index[:, 0])
    while (count := int(label.max()) + 1) > 4:
        count = max(4, count - math.ceil(unrolling_rate * count))
        label = slow_agglomerate(w, label, x, count, neighbor_clusters=3, exact=False, isolated_first=20 * 4)
    found = ag.cluster(
        x, 4, num_neighbors=8, neighbor_clusters=3, exact=False, smallest=0.0, unrolling_rate=unrolling_rate
    )
    assert groups(found) == groups(label)


def test_more_clusters_than_chains_start_from_single_samples():
    x, _, label = random_case()
    count = int(label.max()) + 10
    assert ag.cluster(x, count).unique().tolist() == list(range(count))
    assert ag.cluster(x[:1], 1).tolist() == [0]
    with pytest.raises(UserError, match="cannot make 61 clusters of 60 images"):
        ag.cluster(x, 61)


def test_a_missing_numba_is_a_user_error(monkeypatch):
    for name in [n for n in sys.modules if n == "numba" or n.startswith("pretask.ops.merging")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("pretask.ops.merging", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(UserError, match=re.escape(install_command("cluster"))):
        ag.cluster(torch.rand(20, 2), 2)


def test_the_loop_is_compiled_without_a_writable_cache(monkeypatch):
    from pretask.ops import merging

    njit = merging.njit

    def unwritable(*arguments, cache=False):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")  # numba's words
        return njit(*arguments)

    monkeypatch.setattr(merging, "njit", unwritable)
    assert merging.compiled(double)(21) == 42


def double(x):
    return 2 * x


def test_no_dense_distance_matrix_is_allocated(monkeypatch):
    """For 3,000 samples, at most `block` similarities are held at once."""
    largest, topk = 0, torch.Tensor.topk

    def watched(self, *arguments, **options):
        nonlocal largest
        largest = max(largest, self.numel())
        return topk(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "topk", watched)
    ag.neighbors(Rng(1).normal(3000, 2), 5, block=1 << 18)
    assert 0 < largest <= 1 << 18
