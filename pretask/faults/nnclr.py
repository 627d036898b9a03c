"""Faults of NNCLR."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "own-neighbors",
        "All images have the same neighbor.",
        patches={"nearest": lambda _: lambda z, queue: queue[:1].expand(len(z), -1)},
        named_by="monitor",
    ),
    Fault(
        "neighbors",
        "An image's own view takes the place of its nearest neighbor.",
        patches={"nearest": lambda _: lambda z, queue: z},
    ),
    Fault(
        "fresh-queue",
        "The queue keeps the random rows that it begins with.",
        patches={"enqueue": lambda _: lambda *_: None},
    ),
)
