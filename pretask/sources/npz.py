"""`.npz` files: `images` as arrays, or as encoded bytes with their offsets; perhaps with labels."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretask.sources import decode
from pretask.sources.arrays import Arrays
from pretask.sources.common import Asked, Opened, bar, numbered
from pretask.sources.encoded import Packed, collect
from pretask.types import UserError


def understands(spec: str) -> bool:
    return spec.endswith(".npz") and Path(spec).expanduser().is_file()


def load(spec: str, asked: Asked) -> Opened:
    """`images` (N, H, W[, C]) uint8, or `jpeg` and `offsets`; perhaps `labels` and `class_names`."""
    content = read(Path(spec).expanduser())
    name = Path(spec).stem
    n = len(content["images"]) if "images" in content else len(content["offsets"]) - 1
    label, classes = None, []
    if asked.labels and "labels" in content:
        if content["labels"].shape != (n,):
            raise UserError(f"{spec}: `labels` has shape {content['labels'].shape}; expected ({n},)")
        names = content.get("class_names")
        label, classes = numbered(content["labels"], None if names is None else [str(c) for c in names])
    if "images" in content:
        return Opened(Arrays(name, fitted(content["images"], asked, spec)), label, classes)
    return collect(name, Packed(content["jpeg"], content["offsets"]), asked, label, classes)


def read(path: Path) -> dict[str, np.ndarray]:
    """The known arrays of a `.npz`; nothing is unpickled."""
    known = ("images", "jpeg", "offsets", "labels", "class_names")
    try:
        with np.load(path, allow_pickle=False) as z:
            content = {key: z[key] for key in known if key in z.files}
            there = z.files
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as .npz: {decode.reason(error)}") from None
    if "images" not in content and not {"jpeg", "offsets"} <= set(content):
        raise UserError(f"{path} holds {there}; expected `images` (N, H, W[, C]) uint8")
    return content


def fitted(pixels: np.ndarray, asked: Asked, name: str) -> Tensor:
    """(N, H, W) or (N, H, W, C) uint8 -> (N, channels, size, size)."""
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3, 4) or not len(pixels):
        raise UserError(
            f"{name}: `images` has shape {pixels.shape} and type {pixels.dtype}; "
            "expected uint8 of shape (N, H, W) or (N, H, W, 3)"
        )
    n, height, width, depth = pixels.shape
    size, channels = asked.size or min(height, width), asked.channels or (1 if depth == 1 else 3)
    if (height, width, depth) == (size, size, channels):
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    out = torch.empty(n, channels, size, size, dtype=torch.uint8)
    with bar(asked.progress) as progress:
        for i in progress.track(range(n), description=f"resizing {Path(name).name}"):
            image = Image.fromarray(pixels[i].squeeze(-1) if depth == 1 else pixels[i])
            out[i] = torch.from_numpy(decode.canvas(image, size, channels).copy())
    return out
