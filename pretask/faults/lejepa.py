"""Faults of LeJEPA."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "gaussian",
        "Nothing spreads the embeddings.",
        config={"lambda_": 0.0},
        named_by="monitor",
        paper=(
            "Balestriero and LeCun 2025: prediction alone is minimized by constant embeddings; SIGReg excludes "
            "them."
        ),
    ),
    Fault(
        "half of the integral",
        "The test of normality is not doubled for negative frequencies.",
        patches={"sigreg": lambda own: lambda z, along: own(z, along) / 2},
    ),
)
