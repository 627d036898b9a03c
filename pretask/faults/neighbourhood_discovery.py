"""Faults of neighborhood discovery."""

import torch

from pretask.faults import Fault

FAULTS = (
    Fault(
        "fresh-bank",
        "The memory bank keeps the random rows that it begins with.",
        patches={"NeighbourhoodDiscovery.after_step": lambda _: lambda *_: None},
    ),
    Fault(
        "image as its own neighbor",
        "Discovery finds every image nearest to itself.",
        patches={
            "discover": lambda own: (
                lambda bank, k, t: (own(bank, k, t)[0], torch.arange(len(bank))[:, None].expand(-1, k))
            )
        },
    ),
)
