"""Faults of MoCo."""

import torch

from pretask.faults import Fault


def attraction(original):
    """A loss that only draws queries to their keys."""

    def loss(query, key, *_):
        return 1 - (query * key).sum(1).mean(), torch.zeros(())

    return loss


FAULTS = (
    Fault(
        "negatives",
        "Queries are only drawn to their keys.",
        config={"ema_momentum": 0.9},
        patches={"info_nce_queue": attraction},
        named_by="monitor",
    ),
    Fault(
        "fresh-keys",
        "The queue keeps the random rows that it begins with.",
        patches={"enqueue": lambda _: lambda *_: None},
    ),
    Fault(
        "moving-teacher",
        "The teacher keeps its random initial weights.",
        patches={"update_ema": lambda _: lambda *_: None},
    ),
)
