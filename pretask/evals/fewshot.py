"""Few labels: a linear probe trained on 1, 5, 10 or 100 samples per class, drawn several times.

Nothing is tuned: a handful of samples leaves none to tune on, and choosing on test, as was once usual (Goyal et al.
2019, arXiv:1905.01235, sec. 5.2), flatters. Features are standardised by the whole training set, whose labels this
does not need. All draws are solved together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretask.evals.holdout import ranks
from pretask.evals.linear_probe import Design, Probe, Problem, standard
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


def probes(x: Tensor, label: Tensor, classes: int, draws: Sequence[Tensor]) -> list[Probe]:
    """(N, D), (N,), positions -> a probe of each draw, with PENALTY on rows of about unit length."""
    some = torch.cat([*draws]).unique()
    moments = standard(x)
    design = Design(x[some], moments)
    part = torch.stack([torch.isin(some, few) for few in draws])  # (R, M)
    penalty = PENALTY * max(1, int((moments[1] > 0).sum()))  # in the units of standardized columns
    theta = Problem(design, label[some], classes, part).solve(
        penalty, tolerance=1e-6
    )  # few rows cost hundredths of a nat
    return [design.probe(each) for each in theta]


def fewshot(
    train: Tensor, label: Tensor, test: Tensor, test_label: Tensor, classes: int, shots: int, seed: int
) -> Tensor:
    """-> (R, N): which test samples each of DRAWS probes got right. Every class needs `shots` samples."""
    draws = [draw(label, shots, seed, number) for number in range(DRAWS)]
    found = [probe.predict(test) for probe in probes(train, label, classes, draws)]
    return torch.stack(found) == test_label
