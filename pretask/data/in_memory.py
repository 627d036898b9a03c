"""Images passed from Python as a NumPy array or a tensor, of bytes or other numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pretask.data.arrays import Arrays
from pretask.data.base import DEFAULTS, Opened, OpenOptions
from pretask.data.npz import fit, range_of
from pretask.transforms.ranges import Range
from pretask.types import UserError

SPEC = "array-in-memory"
"""used in a run's card in place of a path"""


def understands(spec: str) -> bool:
    return spec == SPEC


def load(spec: str, options: OpenOptions) -> Opened:
    raise UserError(
        "the images were an in-memory array, which was not saved; pass them again from Python, "
        "pretask.pretrain(None, images, resume=RUN), or store them as .npz and use that file"
    )


def from_array(images: Any, options: OpenOptions = DEFAULTS, **fields: Any) -> Arrays:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) of bytes or other numbers -> a source. `fields` are those of `OpenOptions`."""
    pixels = as_array(images)
    options = replace(options, **fields, progress=False)
    made = fit_array(pixels, options, range_of(SPEC, pixels, options.range))
    made.warn_if_constant()
    return made


def as_array(images: Any) -> np.ndarray:
    """An array or tensor -> (N, H, W) or (N, H, W, C)."""
    pixels = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[3] not in (1, 3, 4):
        return pixels.transpose(0, 2, 3, 1)
    return pixels


def fit_array(pixels: np.ndarray, options: OpenOptions, known: Range) -> Arrays:
    return Arrays(SPEC, fit(pixels, options, "the array", known), range=known)
