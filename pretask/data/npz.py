"""`.npz` files: `images` as arrays, or as encoded bytes with their offsets; perhaps with labels."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretask.data import decode
from pretask.data.arrays import Arrays
from pretask.data.base import Asked, Opened, Settled, Texts, bar, settle
from pretask.data.encoded import Chosen, Packed, collect
from pretask.data.ledger import Ledger
from pretask.types import UserError

DEPTHS = (1, 3, 4)
"""grey, colour, colour with transparency"""


def understands(spec: str) -> bool:
    return spec.endswith(".npz") and Path(spec).expanduser().is_file()


def load(spec: str, asked: Asked) -> Opened:
    """`images` (N, H, W[, C]) uint8, or `jpeg` and `offsets`; perhaps `labels` and `class_names`."""
    content, there = read(spec, "images", "jpeg", "offsets")
    name = Path(spec).stem
    if "images" in content:
        check_pixels(content["images"], spec)
        pixels, ledger = content["images"], Ledger()
        settled = labels(spec, len(pixels), asked, ledger)
        kept = settled.kept
        some = len(kept) < len(pixels)
        numbers = Texts.of(map(str, kept)) if some else None
        held = Arrays(name, fitted(pixels[kept] if some else pixels, asked, spec), numbers, ledger)
        return Opened(held, settled.label, settled.classes)
    if len(content) < 2:
        raise UserError(f"{spec} holds {there}; expected `images` (N, H, W[, C]) uint8")
    packed = Packed(content["jpeg"], content["offsets"])
    check_packed(packed, spec)
    ledger = Ledger()
    settled = labels(spec, len(packed), asked, ledger)
    items = packed if len(settled.kept) == len(packed) else Chosen(packed, settled.kept)
    return collect(name, items, asked, settled.label, settled.classes, ledger)


def read(spec: str, *wanted: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of the wanted arrays that there are, and the names of all; nothing is unpickled."""
    try:
        with np.load(Path(spec).expanduser(), allow_pickle=False) as z:
            return {key: z[key] for key in wanted if key in z.files}, z.files
    except Exception as error:  # a zip, its compression, the arrays' headers: all can be damaged
        raise UserError(f"{spec} cannot be read as .npz: {decode.reason(error)}") from None


def labels(spec: str, n: int, asked: Asked, ledger: Ledger) -> Settled:
    """`labels` (n,), whole numbers or words, and `class_names`."""
    content, _ = read(spec, "labels", "class_names") if asked.labels != "none" else ({}, [])
    if "labels" not in content:
        return Settled(np.arange(n), None, [])
    label, names = content["labels"], content.get("class_names")
    if label.shape != (n,):
        raise UserError(f"{spec}: `labels` has shape {label.shape}; expected ({n},)")
    if names is not None and names.ndim != 1:
        raise UserError(f"{spec}: `class_names` has shape {names.shape}; expected (classes,)")
    return settle(label, asked, ledger, str, None if names is None else [str(c) for c in names])


def check_pixels(pixels: np.ndarray, name: str) -> None:
    """Raises UserError unless these are images."""
    shaped = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] in DEPTHS)
    if pixels.dtype != np.uint8 or not pixels.size or not shaped:
        raise UserError(
            f"{name}: `images` has shape {pixels.shape} and type {pixels.dtype}; "
            "expected uint8 of shape (N, H, W) or (N, H, W, 3)"
        )


def check_packed(packed: Packed, name: str) -> None:
    """Raises UserError unless every image lies within the bytes."""
    data, offsets = packed.data, packed.offsets
    if data.dtype != np.uint8 or data.ndim != 1 or offsets.dtype.kind not in "iu" or offsets.ndim != 1:
        raise UserError(f"{name}: expected `jpeg` (bytes,) uint8 and `offsets` (N + 1,) of whole numbers")
    ends = offsets.astype(np.int64)
    if len(ends) < 2 or ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] > len(data):
        raise UserError(f"{name}: `offsets` do not rise from 0 to the {len(data):,} bytes of `jpeg`")


def fitted(pixels: np.ndarray, asked: Asked, name: str) -> Tensor:
    """(N, H, W) or (N, H, W, C) uint8 -> (N, channels, size, size)."""
    check_pixels(pixels, name)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    n, height, width, depth = pixels.shape
    size, channels = asked.size or min(height, width), asked.channels or (1 if depth == 1 else 3)
    if (height, width, depth) == (size, size, channels):
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    out = torch.empty(n, channels, size, size, dtype=torch.uint8)
    with bar(asked.progress) as progress:
        for i in progress.track(range(n), description=f"resizing {Path(name).name}"):
            image = Image.fromarray(pixels[i].squeeze(-1) if depth == 1 else pixels[i])
            out[i] = torch.from_numpy(decode.canvas(image, size, channels, asked.stretch).copy())
    return out
