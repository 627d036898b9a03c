"""Faults of SwAV."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "equal-shares",
        "Codes are a softmax, so that all images may get the same.",
        patches={"sinkhorn": lambda _: lambda scores, epsilon, _: (scores / epsilon).softmax(1)},
        named_by="monitor",
    ),
    Fault(
        "soft codes",
        "The entropy of the codes has ten times its weight.",
        config={"epsilon": 0.5},
    ),
)
