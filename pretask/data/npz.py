"""`.npz` files: `images` as an array, or `jpeg` bytes with `offsets`; optionally with `labels` and `class_names`."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretask.data import decode
from pretask.data.arrays import Arrays
from pretask.data.base import Opened, OpenOptions, ResolvedLabels, Texts, bar, resolve_labels
from pretask.data.deep import Deep
from pretask.data.encoded import ItemSubset, Packed, collect
from pretask.data.ledger import Ledger
from pretask.transforms.ranges import PixelStats, Range, resolve_range
from pretask.types import UserError

DEPTHS = (1, 3, 4)
"""numbers of channels: gray, RGB, RGB with alpha"""


def understands(spec: str) -> bool:
    return spec.endswith(".npz") and Path(spec).expanduser().is_file()


def load(spec: str, options: OpenOptions) -> Opened:
    """`images` (N, H, W[, C]), or `jpeg` and `offsets`; optionally `labels` and `class_names`."""
    content, there = read(spec, "images", "jpeg", "offsets")
    name = Path(spec).stem
    if "images" in content:
        check_pixels(content["images"], spec)
        pixels, ledger = content["images"], Ledger()
        resolved = read_labels(spec, len(pixels), options, ledger)
        kept = resolved.kept
        is_subset = len(kept) < len(pixels)
        numbers = Texts.of(map(str, kept)) if is_subset else None
        pixels = pixels[kept] if is_subset else pixels
        known = range_of(name, pixels, options.range)
        held = Arrays(name, fit(pixels, options, spec, known), numbers, ledger, range=known)
        return Opened(held, resolved.label, resolved.classes)
    if len(content) < 2:
        raise UserError(f"{spec} contains {there}; expected `images` (N, H, W[, C])")
    packed = Packed(content["jpeg"], content["offsets"])
    check_packed(packed, spec)
    ledger = Ledger()
    resolved = read_labels(spec, len(packed), options, ledger)
    items = packed if len(resolved.kept) == len(packed) else ItemSubset(packed, resolved.kept)
    return collect(name, items, options, resolved.label, resolved.classes, ledger)


def read(spec: str, *names: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of these names that exist, and the names of all arrays; nothing is unpickled."""
    try:
        with np.load(Path(spec).expanduser(), allow_pickle=False) as z:
            return {key: z[key] for key in names if key in z.files}, z.files
    except Exception as error:  # the zip, its compression and the array headers can all be damaged
        raise UserError(f"{spec} cannot be read as .npz: {decode.reason(error)}") from None


def read_labels(spec: str, n: int, options: OpenOptions, ledger: Ledger) -> ResolvedLabels:
    """`labels` (n,) of integers or strings, or multi-label (n, K) of 0 and 1; and `class_names`."""
    content, _ = read(spec, "labels", "class_names") if options.labels != "none" else ({}, [])
    if "labels" not in content:
        return ResolvedLabels(np.arange(n), None, [])
    label, names = content["labels"], content.get("class_names")
    if label.shape[:1] != (n,) or label.ndim > 2 or label.shape[1:] in ((0,), (1,)):
        raise UserError(
            f"{spec}: `labels` has shape {label.shape}; expected ({n},), or ({n}, classes) of 0 and 1"
        )
    if names is not None and names.ndim != 1:
        raise UserError(f"{spec}: `class_names` has shape {names.shape}; expected (classes,)")
    words = None if names is None else [str(c) for c in names]
    if words is not None and label.ndim == 2 and len(words) != label.shape[1]:
        raise UserError(f"{spec}: `labels` has shape {label.shape}, but there are {len(words)} `class_names`")
    return resolve_labels(label, options, ledger, str, words)


def check_pixels(pixels: np.ndarray, name: str) -> None:
    """Raises UserError unless `pixels` has the shape and type of images."""
    shaped = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] in DEPTHS)
    if pixels.dtype.kind not in "uif" or not pixels.size or not shaped:
        raise UserError(
            f"{name}: `images` has shape {pixels.shape} and type {pixels.dtype}; "
            "expected integers or floats of shape (N, H, W) or (N, H, W, 3)"
        )


def check_packed(packed: Packed, name: str) -> None:
    """Raises UserError unless the offsets of all images lie within the bytes."""
    data, offsets = packed.data, packed.offsets
    if data.dtype != np.uint8 or data.ndim != 1 or offsets.dtype.kind not in "iu" or offsets.ndim != 1:
        raise UserError(f"{name}: expected `jpeg` (bytes,) uint8 and `offsets` (N + 1,) of integers")
    ends = offsets.astype(np.int64)
    if len(ends) < 2 or ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] > len(data):
        raise UserError(
            f"{name}: `offsets` are not ascending from 0 to {len(data):,}, the size of `jpeg` in bytes"
        )


def range_of(name: str, pixels: np.ndarray, known: Range) -> Range:
    """`known`, completed from all images (N, H, W[, C])."""
    check_pixels(pixels, name)
    if pixels.dtype == np.uint8:
        return known
    return resolve_range(
        name, known, [PixelStats.from_pixels(pixels[..., :3] if pixels.ndim == 4 else pixels)]
    )


def fit(pixels: np.ndarray, options: OpenOptions, name: str, known: Range) -> Tensor:
    """(N, H, W) or (N, H, W, C) of any numeric type -> (N, channels, size, size) uint8."""
    check_pixels(pixels, name)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    n, height, width, depth = pixels.shape
    size, channels = options.size or min(height, width), options.channels or (1 if depth == 1 else 3)
    if pixels.dtype == np.uint8 and (height, width, depth) == (size, size, channels):
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    out = torch.empty(n, channels, size, size, dtype=torch.uint8)
    with bar(options.progress) as progress:
        for i in progress.track(range(n), description=f"resizing {Path(name).name}"):
            if pixels.dtype == np.uint8:
                image = Image.fromarray(pixels[i].squeeze(-1) if depth == 1 else pixels[i])
            else:
                image = Deep((width, height), partial(pixels.__getitem__, i), alpha=2 if depth == 4 else 0)
            out[i] = torch.from_numpy(decode.canvas(image, size, channels, options.stretch, known).copy())
    return out
