"""Linear CKA: how alike are two sets of features of the same samples, whatever turns, scales or shifts them?

Kornblith, Norouzi, Lee, Hinton: Similarity of Neural Network Representations Revisited, ICML 2019, arXiv:1905.00414,
eq. 4 with the HSIC of eq. 3, which is biased upwards where there are fewer samples than dimensions:

    CKA(X, Y) = ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖),  columns centred
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Likeness:
    """0 … 1, and its variance over sets of samples drawn anew; both NaN where features do not vary."""

    value: float
    variance: float


def cka(x: Tensor, y: Tensor) -> Likeness:
    """(N, D), (N, E) -> how alike. The variance is the infinitesimal jackknife's, which the bootstrap tends to."""
    x, y = centred(x), centred(y)
    both, left, right = shares(x, y)
    value = both.sum() / (left.sum() * right.sum()).sqrt()
    pulls = 2 * both / both.sum() - left / left.sum() - right / right.sum()  # of each sample on ln CKA
    return Likeness(value.item(), (value * pulls).square().sum().item())


def centred(x: Tensor) -> Tensor:
    """Columns of mean 0, and the largest number 1, as what follows is of fourth degree."""
    x = x.double()
    size, x = x.abs().max(), x - x.mean(0)
    most = x.abs().max()
    return x / torch.where(most > 1e-12 * size, most, 0)  # what is below that is rounding alone


def shares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D), (N, E), centred -> (N,) each sample's part of ‖XᵀY‖² = Σ_ij (x_i·x_j)(y_i·y_j), ‖XᵀX‖² and ‖YᵀY‖².

    By N x N products or D x E ones, whichever are smaller.
    """
    if len(x) < max(x.shape[1], y.shape[1]):
        k, m = x @ x.T, y @ y.T
        return (k * m).sum(1), k.square().sum(1), m.square().sum(1)
    both, left, right = (((a @ (a.T @ b)) * b).sum(1) for a, b in ((x, y), (x, x), (y, y)))
    return both, left, right
