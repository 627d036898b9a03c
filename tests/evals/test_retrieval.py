"""Recall@K against a loop over queries, and the definition's own examples."""

import torch

from pretask.evals import retrieval
from pretask.rng import Rng


def slow(x: torch.Tensor, label: list[int], k: int) -> list[bool]:
    unit = x / x.norm(dim=1, keepdim=True)
    found = []
    for n, c in enumerate(label):
        others = sorted((m for m in range(len(label)) if m != n), key=lambda m: -float(unit[n] @ unit[m]))
        found.append(any(label[m] == c for m in others[:k]))
    return found


def test_hits_match_a_loop_over_queries():
    rng = Rng(0, "retrieval")
    x, label = rng.normal(150, 4), rng.integers(150, high=20)
    hits = retrieval.hits(x, label)
    assert list(hits) == [1, 2, 4, 8]
    for k, hit in hits.items():
        assert hit.tolist() == slow(x, label.tolist(), k)
    assert 0 < hits[1].sum() < hits[2].sum() < hits[4].sum() < hits[8].sum() < 150


def test_recall_is_the_hit_rate_and_not_the_fraction_of_relevant_samples():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.3], [0.0, 1.0]])
    label = torch.tensor([0, 0, 0, 1])
    hits = retrieval.hits(x, label, (1, 2))
    assert hits[1].tolist() == [True, True, True, False]  # one of two relevant samples is enough
    assert hits[2].tolist() == [True, True, True, False]  # the only sample of its class: never found


def test_fewer_samples_than_k_are_all_candidates():
    hits = retrieval.hits(torch.eye(3), torch.tensor([0, 1, 0]), (1, 8))
    assert hits[8].tolist() == [True, False, True]
