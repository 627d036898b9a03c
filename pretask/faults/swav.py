"""Faults of SwAV."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "equal-shares",
        "Codes are a softmax, so that all images may get the same.",
        patches={"sinkhorn": lambda _: lambda scores, epsilon, _: (scores / epsilon).softmax(1)},
        named_by="monitor",
        paper=(
            "Caron et al. 2020, on computing codes: the constraint of equal shares keeps images from being all assigned "
            "to one prototype."
        ),
    ),
    Fault(
        "soft codes",
        "The entropy of the codes has ten times its weight.",
        config={"epsilon": 0.5},
    ),
)
