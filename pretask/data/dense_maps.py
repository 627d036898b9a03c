"""Dense maps of an image (depth, normals, instances): reading, cropping and storage.

Maps are stored as bytes in the array of their image, so that caching, workers and the replacement of unreadable images
treat a scene as one image with more planes: 2 bytes per pixel for depth, 3 for normals, 2 for instances. A batch has them
as numbers.
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
"""bytes per pixel: depth in millimeters and ids as 16 bits, high byte first; normals as colors, see `encode`"""
FARTHEST = 65.535
"""largest depth in meters, 16 bits of millimeters; larger depths are unknown"""


@dataclass(frozen=True)
class Planes:
    """The planes of an array: the channels of an image, then its maps."""

    channels: int
    maps: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return self.channels + sum(BYTES[name] for name in self.maps)

    def pack(self, image: np.ndarray, maps: Mapping[str, np.ndarray]) -> np.ndarray:
        """(C, S, S) uint8 and maps of size S -> (count, S, S) uint8."""
        return np.concatenate([image, *(as_bytes(name, maps[name]) for name in self.maps)])

    def unpack(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, count, S, S) uint8 -> images (B, C, S, S) uint8, and maps as in a batch."""
        if not self.maps:
            return pixels, {}
        image, *parts = pixels.split([self.channels, *(BYTES[name] for name in self.maps)], dim=1)
        return image.contiguous(), {n: as_numbers(n, x) for n, x in zip(self.maps, parts, strict=True)}


def as_bytes(name: str, x: np.ndarray) -> np.ndarray:
    """A map of size S -> (bytes, S, S) uint8."""
    if name == "normals":
        return encode(x).transpose(2, 0, 1)
    return np.stack([x >> 8, x & 255]).astype(np.uint8)


def as_numbers(name: str, x: Tensor) -> Tensor:
    """(B, bytes, S, S) uint8 -> depth (B, 1, S, S) in meters, normals (B, 3, S, S), or instances (B, 1, S, S) int32."""
    if name == "normals":
        known = x.any(1, keepdim=True)
        n = (x.float() - 1) / 127 - 1
        return n / n.norm(dim=1, keepdim=True).clamp(min=1e-6) * known
    high, low = x.int().split(1, 1)
    return (256 * high + low) / 1000 if name == "depth" else 256 * high + low


# ---- normals as colors


def encode(n: np.ndarray) -> np.ndarray:
    """Unit vectors (H, W, 3), zeros if unknown -> (H, W, 3) uint8: 1 … 255 encodes -1 … 1, (0, 0, 0) unknown."""
    known = n.any(2, keepdims=True)
    return ((n.clip(-1, 1) * 127).round() + 128).astype(np.uint8) * known


def decode_normals(colors: np.ndarray) -> np.ndarray:
    """The inverse of `encode`, float32."""
    return ((colors.astype(np.float32) - 1) / 127 - 1) * colors.any(2, keepdims=True)


# ---- center crop and resize, with the same crop as decode.canvas


def fit(name: str, x: np.ndarray, size: int) -> np.ndarray:
    """(H, W) or normals (H, W, 3) -> (size, size, …): the nearest value, or the mean direction of known normals."""
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
    """Read a map in the project's own layout: `depth` and `instances` (H, W) int32, `normals` (H, W, 3) float32."""
    image = decode.pillow(decode.read(path))
    pixels = np.asarray(image)
    expected = {
        "depth": "16 bit in millimeters",
        "instances": "8 or 16 bit ids",
        "normals": "8-bit RGB",
    }
    fits = {
        "depth": image.mode[0] == "I",
        "instances": image.mode[0] in "ILP",
        "normals": image.mode == "RGB",
    }
    if not fits[kind]:
        raise Unreadable(f"PNG of mode {image.mode}; expected {expected[kind]}")
    return decode_normals(pixels) if kind == "normals" else ids(pixels)


def ids(x: np.ndarray) -> np.ndarray:
    """(H, W) integers that fit into 16 bits -> int32; negative ones mean unknown and become 0."""
    if x.max() > 65535:
        raise Unreadable(f"contains {x.max()}; expected at most 65535")
    return x.astype(np.int32).clip(min=0)


def millimeters(meters: np.ndarray) -> np.ndarray:
    """(H, W) meters -> int32; 0 (unknown) for values that are not finite, not positive, or beyond FARTHEST."""
    known = np.isfinite(meters) & (meters > 0) & (meters <= FARTHEST)
    return (np.where(known, meters, 0) * 1000).round().astype(np.int32)
