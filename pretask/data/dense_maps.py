"""Maps beside an image, depth, normals and instances: how they are read, fitted to the canvas, and kept.

They are kept in the bytes of the image's own array, so that memory, workers and stand-ins treat a scene as one
canvas of more planes: 2 bytes a pixel for the depth, 3 for a normal, 2 for an instance. A batch has them as numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from pretask.data import decode
from pretask.data.decode import Unreadable

BYTES: Mapping[str, int] = {"depth": 2, "normals": 3, "instances": 2}
"""of a pixel: depth in millimetres and ids as 16 bits, high byte first; a normal as `encode` makes it"""
FARTHEST = 65.535
"""metres that 16 bits of millimetres reach; what is farther counts as unknown"""


@dataclass(frozen=True)
class Planes:
    """What the planes of a canvas are: the channels of an image, then its maps."""

    channels: int
    maps: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return self.channels + sum(BYTES[name] for name in self.maps)

    def pack(self, image: np.ndarray, maps: Mapping[str, np.ndarray]) -> np.ndarray:
        """(C, S, S) uint8 and fitted maps -> (count, S, S) uint8."""
        return np.concatenate([image, *(as_bytes(name, maps[name]) for name in self.maps)])

    def unpack(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, count, S, S) uint8 -> images (B, C, S, S) uint8, and maps as a batch has them."""
        if not self.maps:
            return pixels, {}
        image, *parts = pixels.split([self.channels, *(BYTES[name] for name in self.maps)], dim=1)
        return image.contiguous(), {n: as_numbers(n, x) for n, x in zip(self.maps, parts, strict=True)}


def as_bytes(name: str, x: np.ndarray) -> np.ndarray:
    """A fitted map -> (bytes, S, S) uint8."""
    if name == "normals":
        return encode(x).transpose(2, 0, 1)
    return np.stack([x >> 8, x & 255]).astype(np.uint8)


def as_numbers(name: str, x: Tensor) -> Tensor:
    """(B, bytes, S, S) uint8 -> depth (B, 1, S, S) in metres, normals (B, 3, S, S), or instances (B, 1, S, S) int32."""
    if name == "normals":
        known = x.any(1, keepdim=True)
        n = (x.float() - 1) / 127 - 1
        return n / n.norm(dim=1, keepdim=True).clamp(min=1e-6) * known
    high, low = x.int().split(1, 1)
    return (256 * high + low) / 1000 if name == "depth" else 256 * high + low


# ---- normals as colours


def encode(n: np.ndarray) -> np.ndarray:
    """Unit vectors (H, W, 3), zeros where unknown -> (H, W, 3) uint8: 1 … 255 stands for -1 … 1, (0, 0, 0) for unknown."""
    known = n.any(2, keepdims=True)
    return ((n.clip(-1, 1) * 127).round() + 128).astype(np.uint8) * known


def decoded(colours: np.ndarray) -> np.ndarray:
    """The inverse, float32."""
    return ((colours.astype(np.float32) - 1) / 127 - 1) * colours.any(2, keepdims=True)


# ---- the canvas: the central square at another size, as decode.canvas cuts it


def fit(name: str, x: np.ndarray, size: int) -> np.ndarray:
    """(H, W) numbers: the nearest. (H, W, 3) normals: the mean direction of what is known. Both (size, size, …)."""
    return mean_direction(x, size) if name == "normals" else nearest(x, size)


def nearest(x: np.ndarray, size: int) -> np.ndarray:
    side = min(x.shape)
    rows, columns = (
        ((length - side) / 2 + (np.arange(size) + 0.5) * side / size).astype(int) for length in x.shape
    )
    return x[rows[:, None], columns]


def mean_direction(n: np.ndarray, size: int) -> np.ndarray:
    height, width = n.shape[:2]
    if height == width == size:
        return n
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    parts = (Image.fromarray(np.ascontiguousarray(n[..., k], np.float32)) for k in range(3))
    mean = np.stack([np.asarray(p.resize((size, size), Image.Resampling.BOX, box=box)) for p in parts], 2)
    length = np.linalg.norm(mean, axis=2, keepdims=True)
    return np.where(length > 1e-3, mean / length.clip(min=1e-3), 0)


# ---- files


def of_png(path: Path, kind: str) -> np.ndarray:
    """A map as the project's own layout keeps it: (H, W) int32 of `depth` and `instances`, (H, W, 3) of `normals`."""
    image = decode.opened(path)
    pixels = np.asarray(image)
    wanted = {
        "depth": "16 bit, millimetres",
        "instances": "8 or 16 bit, one id a pixel",
        "normals": "8 bit RGB",
    }
    fits = {
        "depth": image.mode[0] == "I",
        "instances": image.mode[0] in "ILP",
        "normals": image.mode == "RGB",
    }
    if not fits[kind]:
        raise Unreadable(f"a PNG of mode {image.mode}; expected {wanted[kind]}")
    return decoded(pixels) if kind == "normals" else ids(pixels)


def ids(x: np.ndarray) -> np.ndarray:
    """(H, W) whole numbers that 16 bits can hold; below 0 they say that nothing is known."""
    if x.max() > 65535:
        raise Unreadable(f"holds {x.max()}; expected at most 65535")
    return x.astype(np.int32).clip(min=0)


def millimetres(metres: np.ndarray) -> np.ndarray:
    """(H, W) -> int32; 0 for what is unknown: not a number, negative, or beyond FARTHEST."""
    known = np.isfinite(metres) & (metres > 0) & (metres <= FARTHEST)
    return (np.where(known, metres, 0) * 1000).round().astype(np.int32)
