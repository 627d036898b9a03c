"""Clustering metrics against scikit-learn, and ACC against a search over all one-to-one maps."""

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from pretask.evals import cluster_metrics
from pretask.rng import Rng

CASES = [(n, a, b) for n in (2, 7, 40, 500) for a in (1, 2, 5) for b in (1, 3, 8)]


@pytest.mark.parametrize(("n", "classes", "clusters"), CASES)
def test_nmi_and_ari_match_scikit_learn(n, classes, clusters):
    rng = Rng(n, classes, clusters)
    label, found = rng.integers(n, high=classes), rng.integers(n, high=clusters)
    found = torch.where(rng.coin(n, p=0.5), label, found)  # half of the samples agree
    table = cluster_metrics.contingency_table(label, found)
    assert np.isclose(cluster_metrics.nmi(table), normalized_mutual_info_score(label, found), atol=1e-12)
    assert np.isclose(cluster_metrics.ari(table), adjusted_rand_score(label, found), atol=1e-12)


def test_a_batch_of_tables_gives_the_same_values_as_single_tables():
    tables = Rng(0, "tables").integers(30, 4, 4, high=9).numpy()
    tables[0] = np.diag([5, 0, 3, 1])
    for measure in (cluster_metrics.nmi, cluster_metrics.ari):
        assert np.allclose(measure(tables), [measure(t) for t in tables], atol=1e-15)
        assert measure(tables)[0] == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_acc_is_the_best_of_all_one_to_one_maps(k, seed):
    rng = Rng(seed, k)
    label, found = rng.integers(60, high=k), rng.integers(60, high=k)
    best = max(int((torch.tensor(p)[found] == label).sum()) for p in permutations(range(k)))
    assert int(cluster_metrics.hungarian_correct(label, found).sum()) == best


def test_acc_does_not_depend_on_the_numbering_of_clusters():
    rng = Rng(1, "acc")
    label = rng.integers(300, high=7)
    found = torch.where(rng.coin(300, p=0.7), label, rng.integers(300, high=7))
    right = cluster_metrics.hungarian_correct(label, found)
    for seed in range(5):
        renamed = Rng(seed).permutation(7)[found]
        assert torch.equal(cluster_metrics.hungarian_correct(label, renamed), right)
    assert torch.equal(right, found == label)


def test_surplus_clusters_and_classes_stay_unmatched():
    label = torch.tensor([0, 0, 0, 1, 1, 1])
    assert cluster_metrics.hungarian_correct(label, torch.tensor([2, 2, 4, 3, 3, 0])).tolist() == [
        1,
        1,
        0,
        1,
        1,
        0,
    ]
    assert cluster_metrics.hungarian_correct(label, torch.zeros(6, dtype=torch.long)).sum() == 3
