"""Linear CKA: similarity of two sets of features of the same samples, invariant to rotation, scale and translation.

Kornblith, Norouzi, Lee, Hinton: Similarity of Neural Network Representations Revisited, ICML 2019, arXiv:1905.00414,
eq. 4 with the HSIC of eq. 3, which is biased upward if there are fewer samples than dimensions:

    CKA(X, Y) = ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖),  columns centered
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Similarity:
    """CKA, 0 … 1, and its variance over resampled sets of samples; both NaN for constant features."""

    value: float
    variance: float


def cka(x: Tensor, y: Tensor) -> Similarity:
    """(N, D), (N, E) -> CKA. The variance is that of the infinitesimal jackknife, the limit of the bootstrap."""
    x, y = centered(x), centered(y)
    xy, xx, yy = sample_terms(x, y)
    value = xy.sum() / (xx.sum() * yy.sum()).sqrt()
    influence = 2 * xy / xy.sum() - xx / xx.sum() - yy / yy.sum()  # of each sample on ln CKA
    return Similarity(value.item(), (value * influence).square().sum().item())


def centered(x: Tensor) -> Tensor:
    """Columns with mean 0, scaled to a largest absolute value of 1, since products of four are taken."""
    x = x.double()
    size, x = x.abs().max(), x - x.mean(0)
    most = x.abs().max()
    return x / torch.where(most > 1e-12 * size, most, 0)  # smaller values are rounding errors


def sample_terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D), (N, E), centered -> (N,) each sample's term of ‖XᵀY‖² = Σ_ij (x_i·x_j)(y_i·y_j), ‖XᵀX‖² and ‖YᵀY‖².

    Computed from N x N or D x E products, whichever are smaller.
    """
    if len(x) < max(x.shape[1], y.shape[1]):
        k, m = x @ x.T, y @ y.T
        return (k * m).sum(1), k.square().sum(1), m.square().sum(1)
    xy, xx, yy = (((a @ (a.T @ b)) * b).sum(1) for a, b in ((x, y), (x, x), (y, y)))
    return xy, xx, yy
