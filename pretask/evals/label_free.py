"""How far features spread, without any label: effective rank, decay of the spectrum, collapse.

RankMe (Garrido et al. 2023, arXiv:2210.02885), α-ReQ (Agrawal et al., NeurIPS 2022), the standard deviation that
shows SimSiam's collapse (Chen, He 2021, arXiv:2011.10566: 1/√D when healthy, 0 when collapsed), the mean cosine.
"""

import math

import torch
from torch import Tensor

from pretask.evals.knn import unit

EPSILON = 1e-7
"""added to each share of RankMe's spectrum"""
RANKS = (11, 100)
"""first and last eigenvalue of α-ReQ's line (fitting code after Stringer et al. 2019)"""


def gram(x: Tensor) -> Tensor:
    """(N, D) -> the smaller of XᵀX and XXᵀ, in double precision; their positive eigenvalues are the same."""
    x = x.double()
    return x.T @ x if len(x) > x.shape[1] else x @ x.T


def rankme(x: Tensor) -> float:
    """exp of the entropy of the singular values of (N, D), not centred: 1 … min(N, D); of zeros: 0."""
    singular = torch.linalg.eigvalsh(gram(x)).clamp(min=0).sqrt()
    if singular.sum() == 0:
        return 0.0
    p = singular / singular.sum() + EPSILON
    return math.exp(-(p * p.log()).sum().item())


def alpha(x: Tensor) -> float:
    """α of the eigenvalues λ_i ~ i^-α of the covariance of (N, D)."""
    x = x.double()
    return decay(torch.linalg.eigvalsh(gram(x - x.mean(0))).flip(0))


def decay(eigenvalues: Tensor) -> float:
    """Descending (D,) -> minus the slope of ln λ on ln i, weighted by 1/i, over RANKS; nan of fewer than 2.

    A spectrum too short for RANKS is taken from its first eigenvalue.
    """
    rank = torch.arange(1, len(eigenvalues) + 1, dtype=torch.float64)
    first = RANKS[0] if len(eigenvalues) > 2 * RANKS[0] else 1
    floor = 1e-12 * eigenvalues[0].clamp(min=1e-300)  # below: rounding errors
    used = (rank >= first) & (rank <= RANKS[1]) & (eigenvalues > floor)
    if used.sum() < 2:
        return math.nan
    t, y, w = rank[used].log(), eigenvalues[used].double().log(), 1 / rank[used]
    t = t - (w * t).sum() / w.sum()
    return -((w * t * y).sum() / (w * t * t).sum()).item()


def std(x: Tensor) -> float:
    """Standard deviation of each column of the unit-length rows, averaged: 1/√D at best."""
    return unit(x).std(0, correction=0).mean().item()


def cosine(x: Tensor) -> float:
    """Mean cosine similarity of two different samples."""
    z, n = unit(x).double(), len(x)
    return ((z.sum(0).square().sum() - z.square().sum()) / (n * (n - 1))).item() if n > 1 else math.nan


def spread(x: Tensor) -> dict[str, float]:
    """(N, D) -> all four."""
    return {"rankme": rankme(x), "alpha": alpha(x), "std": std(x), "cosine": cosine(x)}
