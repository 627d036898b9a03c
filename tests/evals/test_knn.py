"""Weighted kNN, against loops that follow the definition."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pretask.evals import knn
from pretask.evals.holdout import Splits, splits
from pretask.ops import neighbors
from pretask.rng import Rng


def slow_vote(train: Tensor, label: Tensor, test: Tensor, k: int, temperature: float) -> list[int]:
    """Class score = Σ exp(cosine / τ) over the neighbors of that class (NPID, eq. 7)."""
    predicted = []
    for query in test.tolist():
        near = sorted(
            ((cosine(query, row), int(c)) for row, c in zip(train.tolist(), label, strict=True)), reverse=True
        )
        score: dict[int, float] = {}
        for similarity, c in near[:k]:
            score[c] = score.get(c, 0.0) + math.exp(similarity / temperature)
        predicted.append(max(score, key=lambda c: score[c]))
    return predicted


def cosine(a: list[float], b: list[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize("k", [1, 7, 40, 60])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_vote_matches_the_paper_formula(k, temperature):
    rng = Rng(0, "knn")
    train, label, test = rng.normal(60, 5), rng.integers(60, high=4), rng.normal(50, 5)
    expected = slow_vote(train, label, test, k, temperature)
    assert knn.knn(train, label, test, 4, k, temperature).tolist() == expected


def test_k_above_the_number_of_samples_uses_all_samples():
    rng = Rng(1, "knn")
    train, label, test = rng.normal(12, 5), rng.integers(12, high=3), rng.normal(20, 5)
    assert knn.knn(train, label, test, 3, 200).tolist() == slow_vote(train, label, test, 12, knn.TEMPERATURE)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 63, 64, 65, 127, 640, 641, 655, 656, 1000])
@pytest.mark.parametrize("k", [1, 2, 10])
def test_largest_matches_topk(n, k):
    k = min(k, n)
    rng = Rng(n, k)
    rising = torch.arange(n).expand(3, n)  # the largest are at the end, in an incomplete group
    x = torch.cat([rng.orders(40, n), rising, rising.flip(1), rising % 16]).float()
    value, place = neighbors.largest(x, k)
    assert_close(value, x.topk(k).values, rtol=0, atol=0)
    assert_close(x.gather(1, place), value, rtol=0, atol=0)
    assert all(len(set(row)) == k for row in place.tolist())


@pytest.mark.parametrize("n", [9, 200, 700])  # with few and with many groups, in one block and in several
def test_no_sample_is_its_own_neighbor(n, monkeypatch):
    monkeypatch.setattr(neighbors, "BLOCK", 64 * n)
    x = Rng(n, "self").normal(n, 6)
    similarity, place = neighbors.nearest(x, x, 5, exclude_self=True)
    full = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2).fill_diagonal_(-2)
    assert_close(similarity, full.topk(5).values)
    assert torch.equal(place, full.topk(5).indices)


def test_length_is_ignored_and_a_row_of_zeros_has_similarity_0():
    rng = Rng(2, "knn")
    x, length = rng.normal(50, 4), rng.uniform(50, 1, low=0.1, high=100)
    query = rng.normal(9, 4)
    assert torch.equal(neighbors.nearest(query, x, 3)[1], neighbors.nearest(query, x * length, 3)[1])
    assert neighbors.nearest(torch.zeros(1, 4), x, 3)[0].abs().max() == 0


def test_the_chosen_k_has_the_highest_held_out_accuracy_and_the_smallest_of_ties_wins():
    rng = Rng(0, "knn")
    rare = torch.tensor([0, 1, 2, 2, 2, 2, 2, 2, 2, 2])
    label, truth = (rare[rng.integers(n, high=10)] for n in (300, 400))
    train, held = (rng.normal(len(y), 10) + 1.5 * torch.eye(3, 10)[y] for y in (label, truth))
    right = {k: int((knn.knn(train, label, held, 3, k) == truth).sum()) for k in (1, 5, 40, 299)}
    best = max(right.values())
    assert right[1] < best > right[299]

    def chosen(train, label, held, truth, neighbors):
        n, m = len(train), len(held)
        one_split = Splits(
            torch.arange(n), torch.ones(1, n).bool(), torch.arange(n, n + m), torch.ones(1, m).bool()
        )
        return knn.choose(torch.cat([train, held]), torch.cat([label, truth]), 3, one_split, neighbors)

    assert chosen(train, label, held, truth, (299, 40, 5, 1)) == min(k for k in right if right[k] == best)
    assert chosen(train, label, train, label, (1, 1)) == 1
    separated = torch.eye(3, 10)[label] + 0.01 * train
    assert chosen(separated, label, separated, label, (20, 10)) == 10
    assert (
        chosen(separated[:8], label[:8], separated, label, (100, 200)) == 8
    )  # at most the number of samples


def test_k_is_chosen_over_all_folds_with_neighbors_from_the_other_folds():
    rng = Rng(1, "folds")
    label = rng.integers(90, high=3)
    x = rng.normal(90, 10) + 1.5 * torch.eye(3, 10)[label]
    ways = splits(label, 0)
    right = dict.fromkeys((1, 5, 40), 0)
    for fit_mask, held_out_mask in zip(ways.fit_mask, ways.held_out_mask, strict=True):
        fit, held = ways.fit[fit_mask], ways.held_out[held_out_mask]
        for k in right:
            right[k] += int((knn.knn(x[fit], label[fit], x[held], 3, k) == label[held]).sum())
    assert knn.choose(x, label, 3, ways, (40, 5, 1)) == max(right, key=lambda k: (right[k], -k))
