"""Faults of I-JEPA."""

import torch

from pretask.faults import Fault

FAULTS = (
    Fault(
        "moving-teacher",
        "The teacher keeps its random initial weights.",
        patches={"update_ema": lambda _: lambda *_: None},
    ),
    Fault(
        "positions",
        "The predictor is not given the positions of context and blocks.",
        patches={"sincos_pos_embed": lambda own: lambda grid, width: torch.zeros_like(own(grid, width))},
    ),
)
