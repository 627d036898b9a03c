"""Label-free metrics of features: effective rank, decay of the spectrum, collapse.

RankMe (Garrido et al. 2023, arXiv:2210.02885), α-ReQ (Agrawal et al., NeurIPS 2022), SimSiam's standard deviation (Chen,
He 2021, arXiv:2011.10566: 1/√D if healthy, 0 if collapsed) and the mean cosine similarity.
"""

import math

import torch
from torch import Tensor

from pretask.ops.neighbors import unit

EPSILON = 1e-7
"""added to each normalized singular value in RankMe"""
RANKS = (11, 100)
"""first and last eigenvalue that α-ReQ's line is fitted to (fitting code after Stringer et al. 2019)"""


def gram(x: Tensor) -> Tensor:
    """(N, D) -> the smaller of XᵀX and XXᵀ, in double precision; both have the same positive eigenvalues."""
    x = x.double()
    return x.T @ x if len(x) > x.shape[1] else x @ x.T


def rankme(x: Tensor) -> float:
    """(N, D), not centered -> exp of the entropy of the singular values: 1 … min(N, D), or 0 if all are 0."""
    singular = torch.linalg.eigvalsh(gram(x)).clamp(min=0).sqrt()
    if singular.sum() == 0:
        return 0.0
    p = singular / singular.sum() + EPSILON
    return math.exp(-(p * p.log()).sum().item())


def alpha(x: Tensor) -> float:
    """(N, D) -> α of the eigenvalues λ_i ~ i^-α of the covariance."""
    x = x.double()
    return decay_exponent(torch.linalg.eigvalsh(gram(x - x.mean(0))).flip(0))


def decay_exponent(eigenvalues: Tensor) -> float:
    """Descending (D,) -> minus the slope of ln λ against ln i, weighted by 1/i, over RANKS; NaN for fewer than 2.

    If the spectrum is too short for RANKS, the fit starts at the first eigenvalue.
    """
    rank = torch.arange(1, len(eigenvalues) + 1, dtype=torch.float64)
    first = RANKS[0] if len(eigenvalues) > 2 * RANKS[0] else 1
    floor = 1e-12 * eigenvalues[0].clamp(min=1e-300)  # smaller values are rounding errors
    used = (rank >= first) & (rank <= RANKS[1]) & (eigenvalues > floor)
    if used.sum() < 2:
        return math.nan
    t, y, w = rank[used].log(), eigenvalues[used].double().log(), 1 / rank[used]
    t = t - (w * t).sum() / w.sum()
    return -((w * t * y).sum() / (w * t * t).sum()).item()


def std(x: Tensor) -> float:
    """Mean over columns of the standard deviation of unit-length rows: 1/√D at best."""
    return unit(x).std(0, correction=0).mean().item()


def cosine(x: Tensor) -> float:
    """Mean cosine similarity over pairs of different samples."""
    z, n = unit(x).double(), len(x)
    return ((z.sum(0).square().sum() - z.square().sum()) / (n * (n - 1))).item() if n > 1 else math.nan


def metrics(x: Tensor) -> dict[str, float]:
    """(N, D) -> all four metrics."""
    return {"rankme": rankme(x), "alpha": alpha(x), "std": std(x), "cosine": cosine(x)}
