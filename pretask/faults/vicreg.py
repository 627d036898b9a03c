"""Faults of VICReg."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "variance",
        "The term that keeps the embedding's dimensions from becoming constant has weight 0.",
        config={"variance": 0.0},
        named_by="monitor",
    ),
    Fault(
        "covariance",
        "The term that decorrelates the embedding's dimensions has weight 0.",
        config={"covariance": 0.0},
    ),
)
