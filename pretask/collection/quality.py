"""Images that may be unusable: flat, blurred, too dark or bright, tiny, of extreme shape, or gray among color.

A fault that more than COMMON of the images have is a property of the collection, such as MNIST's dark background, and not reported.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from pretask.data import decode, originals
from pretask.data.base import Images

SIDE = 256
"""longer side of the picture that is measured, pixels"""
FLAT = 0.02
"""standard deviation of the luminance, 0 … 1, below which an image is flat"""
DARK, BRIGHT = 0.15, 0.85
"""an image is dark if 99 % of its luminance is below, and bright if 99 % is above"""
LONG = 3.0
"""ratio of the longer to the shorter side above which a shape is extreme"""
TINY = 0.5
"""fraction of the median shorter side, and of the encoder's input, below which an image is tiny"""
BLURRED = 1e-3
"""an image is blurred if removing its finest details changes less than this fraction of its variance"""
DETAIL = 32
"""shorter side in pixels below which blur is not measured"""
GRAY = 0.02
"""mean difference between channels below which an image is gray"""
COLORED = 0.8
"""fraction of colored images from which a gray one is unusual"""
COMMON = 0.05
"""fraction of images from which a fault is no fault"""


@dataclass(frozen=True)
class Look:
    """What is measured of an image."""

    width: int
    height: int
    std: float
    low: float
    """luminance that 99 % of the pixels exceed"""
    high: float
    """luminance that 99 % of the pixels do not exceed"""
    detail: float
    """fraction of the variance that its finest details make up"""
    color: float
    """mean difference between the largest and the smallest channel"""


UNSEEN = Look(1, 1, 1.0, 0.0, 1.0, 1.0, 1.0)
"""of an image that could not be read any more"""


def look(source: Images, i: int) -> Look | None:
    """Measures an image; None if it cannot be read."""
    try:
        with decode.readable():
            (width, height), picture = decode.thumbnail(
                originals.stored(source, i), SIDE, source.channels, source.range
            )
    except decode.Unreadable:
        return None
    return measured(width, height, picture)


def measured(width: int, height: int, picture: Image.Image) -> Look:
    pixels = np.asarray(picture.convert("RGB"), np.float32) / 255
    gray = picture.convert("L")
    luminance = np.asarray(gray, np.float32) / 255
    coarse = np.asarray(gray.filter(ImageFilter.GaussianBlur(1)), np.float32) / 255
    variance = float(luminance.var())
    return Look(
        width,
        height,
        variance**0.5,
        float(np.quantile(luminance, 0.01)),
        float(np.quantile(luminance, 0.99)),
        float(np.square(luminance - coarse).mean()) / max(variance, 1e-6),
        float((pixels.max(2) - pixels.min(2)).mean()),
    )


def faults(looks: Sequence[Look], size: int) -> tuple[list[str], dict[str, int]]:
    """The first fault of each image, "" if it has none, and how many images have faults that are common; `size` of the encoder's input."""
    least = TINY * min(float(np.median([short(each) for each in looks])), size) if looks else 0.0
    colored = float(np.mean([each.color > GRAY for each in looks])) if looks else 0.0
    found: list[str] = [""] * len(looks)
    common: dict[str, int] = {}
    for name, test in tests(least, colored).items():
        has = [test(each) for each in looks]
        if sum(has) > COMMON * len(looks):
            common[name] = sum(has)
            continue
        found = [before or (name if now else "") for before, now in zip(found, has, strict=True)]
    return found, common


def tests(least: float, colored: float) -> Mapping[str, Callable[[Look], bool]]:
    """Fault -> whether an image has it."""
    return {
        "tiny": lambda x: short(x) < least,
        "extreme shape": lambda x: max(x.width, x.height) > LONG * short(x),
        "too dark": lambda x: x.high < DARK,
        "too bright": lambda x: x.low > BRIGHT,
        "flat": lambda x: x.std < FLAT,
        "blurred": lambda x: short(x) >= DETAIL and x.std >= FLAT and x.detail < BLURRED,
        "gray among color": lambda x: colored >= COLORED and x.color <= GRAY,
    }


def short(x: Look) -> int:
    return min(x.width, x.height)
