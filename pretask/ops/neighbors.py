"""Nearest neighbors by cosine similarity, exact, in blocks that fit into memory."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1 << 24
"""similarities held in memory at once: 64 MB"""
GROUP = 16
"""consecutive values reduced to their maximum first"""


def unit(x: Tensor) -> Tensor:
    """(N, D) -> rows of length 1, in single precision; rows of zeros are unchanged."""
    return F.normalize(x.float(), dim=1)


def nearest(query: Tensor, gallery: Tensor, k: int, exclude_self: bool = False) -> tuple[Tensor, Tensor]:
    """(Q, D), (N, D) -> cosine similarities and indices (Q, k) of the k most similar rows, best first.

    With `exclude_self`, the query is the gallery, and rows are not their own neighbors.
    """
    query, gallery = unit(query), unit(gallery)
    rows = max(1, BLOCK // len(gallery))
    buffer = torch.empty(min(rows, len(query)), len(gallery), device=query.device)  # reused by all blocks
    found = []
    for start in range(0, len(query), rows):
        part = query[start : start + rows]
        similarity = torch.mm(part, gallery.T, out=buffer[: len(part)])
        if exclude_self:
            own = torch.arange(len(part), device=query.device)
            similarity[own, own + start] = -torch.inf
        found.append(largest(similarity, k))
    return torch.cat([s for s, _ in found]), torch.cat([i for _, i in found])


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`x.topk(k)` of (Q, N), several times faster for long rows.

    The k largest values are in the k groups with the largest maxima, so only those groups are sorted.
    """
    q, n = x.shape
    whole = n - n % GROUP
    if k * GROUP * 4 > n:
        value, best = x.topk(k, 1)
        return value, best
    groups = x[:, :whole].reshape(q, -1, GROUP)
    top = groups.amax(2).topk(k, 1).indices  # (Q, k)
    index = (top[:, :, None] * GROUP + torch.arange(GROUP, device=x.device)).flatten(1)
    index = torch.cat([index, torch.arange(whole, n, device=x.device).expand(q, -1)], 1)
    value, best = x.gather(1, index).topk(k, 1)
    return value, index.gather(1, best)
