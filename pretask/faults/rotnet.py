"""Faults of RotNet."""

from dataclasses import replace

from pretask.faults import Fault


def three_rotations(original):
    """The last quarter turn is that by 90 degrees."""

    def rotated(*arguments):
        made = original(*arguments)
        views = made.image.unflatten(0, (-1, 4))
        return replace(made, image=views[:, [0, 1, 2, 1]].flatten(0, 1))

    return rotated


FAULTS = (
    Fault(
        "crops",
        "Images are shifted but not cropped.",
        config={"crop": 1.0},
    ),
    Fault(
        "one rotation twice",
        "Images that are said to be rotated by 270 degrees are rotated by 90.",
        patches={"rotated": three_rotations},
    ),
)
