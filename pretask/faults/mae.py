"""Faults of masked autoencoders."""

import torch

from pretask.faults import Fault

FAULTS = (
    Fault(
        "normalized-targets",
        "Targets are the pixels themselves.",
        config={"norm_pix_loss": False},
        paper=(
            "He et al. 2022, in the ablation of the target: accuracy is slightly lower with plain pixels. "
            "Nothing collapses."
        ),
    ),
    Fault(
        "positions",
        "The decoder is not given the positions of the patches.",
        patches={"sincos_pos_embed": lambda own: lambda grid, width: torch.zeros_like(own(grid, width))},
    ),
)
