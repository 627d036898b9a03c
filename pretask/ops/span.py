"""Coordinates in the span of the samples, for fewer samples than dimensions."""

import torch
from torch import Tensor

NOISE = 1e-6
"""fraction of the largest eigenvalue of a single-precision Gram matrix below which eigenvalues are rounding errors"""


def span(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """(N, D) -> coordinates (N, R) of the rows in an orthonormal basis of their span, R ≤ N < D, and the matrix `mix`
    (N, R) for which the basis is xᵀ mix.

    The basis vectors are the principal axes, so the columns of the coordinates are orthogonal. Inner products and distances
    of rows, and so optima of rotation-invariant objectives, are preserved. If N ≥ D, x is returned unchanged, with None.
    """
    if len(x) >= x.shape[1]:
        return x, None
    values, vectors = torch.linalg.eigh(x @ x.T)
    noise = NOISE if x.dtype == torch.float32 else 1e-13
    kept = values > noise * values[-1]
    kept[-1] = True  # for rows of zeros, a column of zeros
    root, vectors = values[kept].clamp(min=0).sqrt(), vectors[:, kept]
    return vectors * root, vectors / root.clamp(min=torch.finfo(x.dtype).tiny)
