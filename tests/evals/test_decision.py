"""The decision for each kind of table."""

import re

import numpy as np
import pytest
import torch

from pretask.evals.decision import decide
from pretask.evals.ranking import rank

ROLES = {
    "simclr": "run",
    "byol": "run",
    "W, frozen": "published",
    "k-means patches": "patches",
    "raw pixels": "pixels",
}


def decision(**accuracy):
    """Of rows that are right on each of 2,000 images with the given probability, in %."""
    rng = np.random.default_rng(0)
    names = {"frozen": "W, frozen", "patches": "k-means patches", "pixels": "raw pixels"}
    rows = {
        names.get(key, key): torch.from_numpy(
            rng.random((3 if key in ("simclr", "byol") else 1, 2000)) < p / 100
        )
        for key, p in accuracy.items()
    }
    return decide(rank(rows), {name: ROLES[name] for name in rows})


@pytest.mark.parametrize(
    ("accuracy", "use", "equal", "said"),
    [
        ({"simclr": 80, "byol": 70, "patches": 60}, "simclr", (), r"Use simclr: byol, the next best, is \d+\.\d points \[\d.*\] behind it\."),
        ({"simclr": 80, "byol": 80, "patches": 60}, None, None, r"Use (simclr|byol), or (simclr|byol), which cannot be distinguished from it\."),
        ({"simclr": 60, "byol": 55, "frozen": 80}, "W, frozen", (), r"Do not pretrain: simclr, the best run, is \d.*\] behind W, frozen\."),
        ({"simclr": 60, "frozen": 80}, "W, frozen", (), r"Do not pretrain: simclr, the best run, is \d.*\] behind W, frozen\."),
        ({"simclr": 70, "byol": 60, "patches": 70}, "k-means patches", ("simclr",), r"Do not pretrain: with all labels k-means patches and simclr, the best run, cannot be distinguished\."),
        ({"simclr": 60, "frozen": 70, "patches": 70}, None, None, r"Do not pretrain: simclr, the best run, is .* behind (W, frozen|k-means patches)\."),
        ({"simclr": 70, "frozen": 70, "patches": 70}, "W, frozen", None, r"Do not pretrain: with all labels W, frozen and simclr, the best run, cannot be distinguished\."),
    ],
)  # fmt: skip
def test_decision(accuracy, use, equal, said):
    found = decision(**accuracy)
    assert re.fullmatch(said, found.sentence), found.sentence
    assert use in (None, found.use) and equal in (None, found.equal)


def test_of_2000_tables_of_equal_rows_few_name_one_that_is_best():
    """Three runs of three seeds that differ by a point, and three rows that need no training."""
    rng, clear = np.random.default_rng(0), 0
    names = {"simclr": 3, "byol": 3, "vicreg": 3, "W, frozen": 1, "k-means patches": 1, "raw pixels": 1}
    roles = {**ROLES, "vicreg": "run"}
    for _ in range(2000):
        difficulty = rng.normal(size=300)
        rows = {
            name: torch.from_numpy(
                rng.random((seeds, 300))
                < 1 / (1 + np.exp(-difficulty - 0.5 * rng.normal(size=300)))
                + 0.01 * rng.normal(size=(seeds, 1)) * (seeds > 1)
            )
            for name, seeds in names.items()
        }
        clear += not decide(rank(rows), roles).equal
    assert clear / 2000 <= 0.05
