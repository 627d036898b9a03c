"""Few-shot evaluation: a linear probe trained on 1, 5, 10 or 100 samples per class, averaged over several draws.

The penalty is fixed: so few samples leave none to choose it on, and choosing it on the test set, as used to be common
(Goyal et al. 2019, arXiv:1905.01235, sec. 5.2), inflates scores. Features are standardized by the whole training set,
which needs no labels. All draws are solved together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretask.evals.holdout import ranks
from pretask.evals.linear_probe import Design, Probe, Problem, standardization
from pretask.rng import Rng

SHOTS = (1, 5, 10, 100)
"""samples per class"""
IMAGES = (10, 100, 1000)
"""total number of samples, for multi-label images"""
DRAWS = 5
"""number of draws of training samples (Goyal et al. 2019, for low-shot VOC07)"""
PENALTY = 1e-3
"""λ, as in linear_probe.py, for rows of about unit length: within one point of the best of 1 … 1e-5 for every number of
shots on CIFAR-10 training images and untrained networks"""


def draw(label: Tensor, shots: int, seed: int, number: int) -> Tensor:
    """Positions of `shots` samples of each class present."""
    return (ranks(label, Rng(seed, "fewshot", shots, number)) < shots).nonzero().flatten()


def probes(
    x: Tensor, label: Tensor, classes: int, draws: Sequence[Tensor], problem: type[Problem] = Problem
) -> list[Probe]:
    """(N, D), (N,) or other labels that `problem` takes, positions of each draw -> a probe for each draw."""
    union = torch.cat([*draws]).unique()
    moments = standardization(x)
    design = Design(x[union], moments)
    mask = torch.stack([torch.isin(union, draw) for draw in draws])  # (R, M)
    penalty = PENALTY * max(1, int((moments[1] > 0).sum()))  # for standardized columns
    # on few rows the cost is only hundredths of a nat
    theta = problem(design, label[union], classes, mask).solve(penalty, tolerance=1e-6)
    return [design.probe(each) for each in theta]


def fewshot(
    train: Tensor, label: Tensor, test: Tensor, test_label: Tensor, classes: int, shots: int, seed: int
) -> Tensor:
    """-> (DRAWS, N) bool: whether each draw's probe is correct on each test sample. Each class needs `shots` samples."""
    draws = [draw(label, shots, seed, number) for number in range(DRAWS)]
    predicted = [probe.predict(test) for probe in probes(train, label, classes, draws)]
    return torch.stack(predicted) == test_label
