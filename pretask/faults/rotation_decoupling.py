"""Faults of rotation feature decoupling."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "irrelevance",
        "The second half of the features may differ between rotations.",
        patches={"variance": lambda _: lambda half: 0 * half.sum()},
    ),
    Fault(
        "sum of distances",
        "The loss on the second half is summed over rotations and features, not averaged.",
        patches={"variance": lambda _: lambda half: half.var(1, correction=0).sum(1).mean()},
    ),
)
