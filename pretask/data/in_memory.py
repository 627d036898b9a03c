"""Images that the caller already holds: a NumPy array or a tensor of bytes, or of numbers from 0 to 1."""

from typing import Any

import numpy as np
import torch

from pretask.data.arrays import Arrays
from pretask.data.base import Asked, Opened
from pretask.data.npz import fitted
from pretask.types import UserError

SPEC = "array-in-memory"
"""stands in a run's card where others have a path"""


def understands(spec: str) -> bool:
    return spec == SPEC


def load(spec: str, asked: Asked) -> Opened:
    raise UserError(
        "the images were an array in memory, which is gone; give them again, from Python: "
        "pretask.pretrain(None, images, resume=RUN), or store them as .npz and use that"
    )


def held(images: Any, size: int | None = None, channels: int | None = None) -> Arrays:
    """(N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or in [0, 1] -> a source."""
    pixels = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[3] not in (1, 3, 4):
        pixels = pixels.transpose(0, 2, 3, 1)
    asked = Asked(size=size, channels=channels, progress=False)
    return Arrays(SPEC, fitted(whole(pixels), asked, "the array"))


def whole(pixels: np.ndarray) -> np.ndarray:
    """Any numbers that mean 0 … 255 or 0 … 1 -> uint8."""
    if pixels.dtype == np.uint8 or not pixels.size:
        return pixels
    if pixels.dtype.kind not in "iuf":
        raise UserError(f"the array holds {pixels.dtype}; expected uint8, or numbers from 0 to 1")
    low, high = pixels.min(), pixels.max()
    limit = 1 if pixels.dtype.kind == "f" else 255
    if not (low >= 0 and high <= limit):
        raise UserError(
            f"the array holds {pixels.dtype} from {low:g} to {high:g}; expected uint8, or floats from 0 to 1"
        )
    return (pixels * 255).round().astype(np.uint8) if limit == 1 else pixels.astype(np.uint8)
