"""Few labels: a linear probe trained on 1, 5, 10 or 100 samples per class, drawn several times.

Nothing is tuned: a handful of samples leaves none to tune on, and choosing on test, as was once usual (Goyal et al.
2019, arXiv:1905.01235, sec. 5.2), flatters. Features are standardised by the whole training set, whose labels this
does not need.
"""

import torch
from torch import Tensor

from pretask.evals.holdout import ranks
from pretask.evals.linear import Problem, standard
from pretask.rng import Rng

SHOTS = (1, 5, 10, 100)
"""samples per class"""
DRAWS = 5
"""samples of samples (Goyal et al. 2019, for low-shot VOC07)"""
PENALTY = 1e-3
"""λ, as in linear.py, for rows of about unit length: within a point of the best of 1 … 1e-5 at every number of shots
on CIFAR-10 training images and untrained networks"""


def draw(label: Tensor, shots: int, seed: int, number: int) -> Tensor:
    """Positions of `shots` samples of each class that has any."""
    return (ranks(label, Rng(seed, "fewshot", shots, number)) < shots).nonzero().flatten()


def span(x: Tensor) -> tuple[Tensor, Tensor]:
    """(n, D) -> coordinates (n, r) in an orthonormal basis (D, r) of the rows; r ≤ n.

    The penalised optimum lies in the span of the rows, so nothing is lost, and 10 rows are a problem of 10 columns.
    """
    if len(x) >= x.shape[1]:
        return x, torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    basis = torch.linalg.qr(x.T).Q
    return x @ basis, basis


def fewshot(
    train: Tensor, label: Tensor, test: Tensor, test_label: Tensor, classes: int, shots: int, seed: int
) -> Tensor:
    """-> (R, N): which test samples each of DRAWS probes got right. Every class needs `shots` samples."""
    mean, scale = standard(train)
    scale = (scale / (scale > 0).sum().clamp(min=1).sqrt()).float()  # rows of about unit length
    mean = mean.float()

    def rows(x: Tensor) -> Tensor:
        return (x.float() - mean) * scale

    unseen, right = rows(test), []
    for number in range(DRAWS):
        few = draw(label, shots, seed, number)
        z, basis = span(rows(train[few]))
        still = (torch.zeros(z.shape[1]), torch.ones(z.shape[1]))
        probe = Problem(z, label[few], classes, still).solve(PENALTY)
        right.append((unseen @ basis @ probe.weight.T + probe.bias).argmax(1) == test_label)
    return torch.stack(right)
