"""Weighted k nearest neighbours: every training sample near a test sample votes by its similarity.

Wu et al. 2018 (NPID), arXiv:1805.01978; k is chosen among DINO's four (Caron et al. 2021, arXiv:2104.14294), on
held-out training samples.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.evals.holdout import Splits

NEIGHBOURS = (10, 20, 100, 200)
"""k, as DINO sweeps it"""
TEMPERATURE = 0.07
"""τ of a vote exp(similarity / τ) (NPID, DINO)"""
BLOCK = 1 << 24
"""similarities held at once: 64 MB"""
GROUP = 16
"""neighbours in memory of whom the best is looked at first"""
QUERIES = 2_000
"""samples of a split, at most, that k is chosen on"""


def unit(x: Tensor) -> Tensor:
    """(N, D) -> rows of length 1, in single precision; a row of zeros stays."""
    return F.normalize(x.float(), dim=1)


def nearest(query: Tensor, gallery: Tensor, k: int, exclude_self: bool = False) -> tuple[Tensor, Tensor]:
    """(Q, D), (N, D) -> cosine similarities and positions (Q, k) of the k most similar rows, best first.

    With `exclude_self` the query is the gallery, and nobody is their own neighbour.
    """
    query, gallery = unit(query), unit(gallery)
    rows = max(1, BLOCK // len(gallery))
    sheet = torch.empty(min(rows, len(query)), len(gallery), device=query.device)  # used anew for every block
    found = []
    for start in range(0, len(query), rows):
        part = query[start : start + rows]
        similarity = torch.mm(part, gallery.T, out=sheet[: len(part)])
        if exclude_self:
            own = torch.arange(len(part), device=query.device)
            similarity[own, own + start] = -torch.inf
        found.append(largest(similarity, k))
    return torch.cat([s for s, _ in found]), torch.cat([i for _, i in found])


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`x.topk(k)` of (Q, N), several times as fast for long rows.

    The k largest numbers lie in the k groups with the largest maxima, so only those groups are sorted.
    """
    q, n = x.shape
    whole = n - n % GROUP
    if k * GROUP * 4 > n:
        value, best = x.topk(k, 1)
        return value, best
    groups = x[:, :whole].reshape(q, -1, GROUP)
    near = groups.amax(2).topk(k, 1).indices  # (Q, k)
    place = (near[:, :, None] * GROUP + torch.arange(GROUP, device=x.device)).flatten(1)
    place = torch.cat([place, torch.arange(whole, n, device=x.device).expand(q, -1)], 1)
    value, best = x.gather(1, place).topk(k, 1)
    return value, place.gather(1, best)


def vote(similarity: Tensor, label: Tensor, classes: int, temperature: float = TEMPERATURE) -> Tensor:
    """(Q, k) similarities and labels of the neighbours -> (Q,) the class with most votes."""
    score = torch.zeros(len(label), classes, device=label.device)
    return score.scatter_add_(1, label, (similarity / temperature).exp()).argmax(1)


def knn(
    train: Tensor, label: Tensor, test: Tensor, classes: int, k: int, temperature: float = TEMPERATURE
) -> Tensor:
    """(N, D), (N,), (Q, D) -> (Q,) predicted classes."""
    similarity, index = nearest(test, train, min(k, len(train)))
    return vote(similarity, label[index], classes, temperature)


def choose(
    x: Tensor, label: Tensor, classes: int, splits: Splits, neighbours: Sequence[int] = NEIGHBOURS
) -> int:
    """(N, D), (N,) -> the k with most held-out training samples right, at most QUERIES of them; the smaller of equals."""
    x = unit(x)
    least = int(splits.fitted.sum(1).min())
    candidates = sorted({min(k, least) for k in neighbours})
    right = torch.zeros(len(candidates), dtype=torch.long)
    for fitted, judged in zip(splits.fitted, splits.judged, strict=True):
        fit, held = splits.fit[fitted], splits.held[judged][:QUERIES]
        similarity, index = nearest(x[held], x[fit], candidates[-1])
        found = label[fit][index]
        for i, k in enumerate(candidates):
            right[i] += (vote(similarity[:, :k], found[:, :k], classes) == label[held]).sum()
    return candidates[int(right.argmax())]
