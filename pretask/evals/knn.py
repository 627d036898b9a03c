"""Weighted k-nearest-neighbor classifier: the nearest training samples vote, weighted by similarity.

Wu et al. 2018 (NPID), arXiv:1805.01978. k is one of DINO's four values (Caron et al. 2021, arXiv:2104.14294), chosen on
held-out training samples.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pretask.evals.holdout import Splits
from pretask.ops.neighbors import nearest, unit

NEIGHBORS = (10, 20, 100, 200)
"""candidates for k (DINO)"""
TEMPERATURE = 0.07
"""τ of a vote exp(similarity / τ) (NPID, DINO)"""
QUERIES = 2_000
"""maximum number of held-out samples per split on which k is chosen"""


def vote(similarity: Tensor, label: Tensor, classes: int, temperature: float = TEMPERATURE) -> Tensor:
    """(Q, k) similarities and labels of the neighbors -> (Q,) the class with most votes."""
    score = torch.zeros(len(label), classes, device=label.device)
    return score.scatter_add_(1, label, (similarity / temperature).exp()).argmax(1)


def knn(
    train: Tensor, label: Tensor, test: Tensor, classes: int, k: int, temperature: float = TEMPERATURE
) -> Tensor:
    """(N, D), (N,), (Q, D) -> (Q,) predicted classes."""
    similarity, index = nearest(test, train, min(k, len(train)))
    return vote(similarity, label[index], classes, temperature)


def choose(
    x: Tensor, label: Tensor, classes: int, splits: Splits, neighbors: Sequence[int] = NEIGHBORS
) -> int:
    """(N, D), (N,) -> the k with the most correct held-out samples (at most QUERIES per split); the smaller of equals."""
    ks = candidates(splits, neighbors)
    correct = torch.zeros(len(ks), dtype=torch.long)
    for held_out, similarity, index in held_out_neighbors(x, splits, ks[-1]):
        neighbor_label = label[index]
        for i, k in enumerate(ks):
            predicted = vote(similarity[:, :k], neighbor_label[:, :k], classes)
            correct[i] += (predicted == label[held_out]).sum()
    return ks[int(correct.argmax())]


def candidates(splits: Splits, neighbors: Sequence[int]) -> list[int]:
    """Values of k, none above the number of samples that every split fits to."""
    least = int(splits.fit_mask.sum(1).min())
    return sorted({min(k, least) for k in neighbors})


def held_out_neighbors(x: Tensor, splits: Splits, k: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each split: positions (Q,) of at most QUERIES held-out samples, and similarities and positions (Q, k) of their
    nearest neighbors among the samples fitted to."""
    x = unit(x)
    for fit_mask, held_out_mask in zip(splits.fit_mask, splits.held_out_mask, strict=True):
        fit, held_out = splits.fit[fit_mask], splits.held_out[held_out_mask][:QUERIES]
        similarity, index = nearest(x[held_out], x[fit], k)
        yield held_out, similarity, fit[index]
