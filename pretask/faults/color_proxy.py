"""Faults of colorization as a proxy task."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "hue-weight",
        "Hue counts as much as chroma, not five times as much where there is color.",
        patches={"HUE_WEIGHT": lambda _: 1.0},
    ),
    Fault(
        "row and column swapped",
        "Targets are taken at the transposed locations.",
        patches={
            "histograms": lambda own: lambda values, location, window: own(values, location.flip(-1), window)
        },
    ),
)
