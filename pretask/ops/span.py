"""Fewer samples than dimensions: whatever is learned from them lies in their span, and so do their distances."""

import torch
from torch import Tensor

NOISE = 1e-6
"""share of the largest eigenvalue below which one of a single-precision Gram matrix is rounding error"""


def span(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """(N, D) -> coordinates (N, R) of the rows in an orthonormal basis of their span, R ≤ N < D, and how the rows mix
    to that basis: (N, R), so that it is xᵀ mix.

    The basis is that of the principal axes: the columns of the coordinates are orthogonal. Products and distances of
    rows, and so every optimum of a rotation-invariant objective, stay what they are. Rows that are no fewer than their
    dimensions come back as they are, without a mix.
    """
    if len(x) >= x.shape[1]:
        return x, None
    values, vectors = torch.linalg.eigh(x @ x.T)
    noise = NOISE if x.dtype == torch.float32 else 1e-13
    kept = values > noise * values[-1]
    kept[-1] = True  # rows of zeros have a column of zeros
    root, vectors = values[kept].clamp(min=0).sqrt(), vectors[:, kept]
    return vectors * root, vectors / root.clamp(min=torch.finfo(x.dtype).tiny)
