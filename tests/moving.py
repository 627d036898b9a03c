"""Video frames of a textured square that moves over a textured background."""

from pathlib import Path

import numpy as np
from PIL import Image

HIGH, WIDE, SIDE = 120, 160, 40


def texture(high: int, wide: int, seed: int, grain: int = 6) -> np.ndarray:
    """(high, wide, 3) smooth noise, which looks different everywhere."""
    coarse = np.random.default_rng(seed).integers(0, 256, (high // grain, wide // grain, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC))


def scene(position: tuple[float, float] | None, background: int = 0, shift: int = 0) -> np.ndarray:
    """A frame with a textured square at (x, y) on a textured background shifted by `shift` pixels."""
    frame = texture(HIGH, 2 * WIDE, background)[:, shift : shift + WIDE].copy()
    if position is not None:
        x, y = (round(v) for v in position)
        frame[y : y + SIDE, x : x + SIDE] = 255 - texture(SIDE, SIDE, 99)
    return frame


def position(k: int) -> tuple[float, float]:
    """Position of the square in frame k."""
    return 20 + 1.5 * k, 40 + 0.5 * k


def write_frames(folder: Path, frames: list[np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{k}.png")
    return folder
