"""Faults of Exemplar-CNN."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "color-distortions",
        "Copies keep the colors of their seed.",
        patches={"ExemplarCNN.distort_color": lambda _: lambda self, image, u: image},
    ),
    Fault(
        "degrees taken as radians",
        "Copies are rotated by any angle.",
        config={"rotation": 1146.0},
    ),
)
