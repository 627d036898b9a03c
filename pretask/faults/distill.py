"""Faults of distillation."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "wrong flip",
        "The teacher sees the mirrored view.",
        patches={"Distill.targets": lambda own: lambda self, image: own(self, image.flip(-1))},
    ),
    Fault(
        "uncentered targets",
        "The teacher's mean features are not subtracted.",
        patches={
            "principal_axes": lambda own: (
                lambda rows, count: (rows.new_zeros(rows.shape[1]), own(rows, count)[1])
            )
        },
    ),
)
