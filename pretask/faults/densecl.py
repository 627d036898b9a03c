"""Faults of DenseCL."""

import torch

from pretask.faults import Fault
from pretask.faults.moco import attraction

FAULTS = (
    Fault(
        "negatives",
        "Queries are only drawn to their keys.",
        config={"ema_momentum": 0.9},
        patches={"info_nce_queue": attraction},
        named_by="monitor",
    ),
    Fault(
        "matching",
        "Cells are compared with the cell at the same place of the other view, not with the most similar one.",
        patches={"best_match": lambda _: lambda one, other: torch.arange(one.shape[1]).expand(len(one), -1)},
    ),
)
