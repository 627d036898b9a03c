"""One offline page to look through a collection: a map of all images that pans and zooms, with their pictures, neighbors and columns."""

import base64
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pretask.runtime import files
from pretask.viz.draw import PALETTE
from pretask.viz.page import load_template

MOST = 50_000
"""images on a page"""
THUMB = 28
"""side of a picture, pixels"""
ROW = 64
"""pictures along a side of a sheet"""
QUALITY = 70
"""of the sheets, which are JPEG"""
MOST_VALUES = 24
"""different values up to which a column of text is a legend of its own; the rarer ones are "other" """
OTHER = "other"


@dataclass(frozen=True)
class Column:
    """A column to color by: of text, the number of each image's value among `values`; of numbers, the numbers themselves."""

    name: str
    data: np.ndarray  # (N,) uint16 or float32
    values: Sequence[str] = ()

    @classmethod
    def of(cls, name: str, cells: Sequence[Any]) -> "Column":
        if all(
            isinstance(cell, int | float | np.number) and not isinstance(cell, bool | np.bool_)
            for cell in cells
        ):
            distinct = set(cells)
            if len(distinct) > MOST_VALUES:
                return cls(name, np.array(cells, np.float32))
        texts = np.array([str(cell) for cell in cells])
        values, number, count = np.unique(texts, return_inverse=True, return_counts=True)
        if len(values) <= MOST_VALUES:
            return cls(name, number.astype(np.uint16), natural(values))
        kept = np.sort(np.argsort(-count, kind="stable")[: MOST_VALUES - 1])
        place = np.full(len(values), MOST_VALUES - 1, np.uint16)
        place[kept] = np.arange(len(kept))
        return cls(name, place[number], [*natural(values[kept]), OTHER])


def natural(values: np.ndarray) -> list[str]:
    return [str(value) for value in values]


def sheets(batches: Iterable[Tensor]) -> Iterator[str]:
    """(B, C, H, W) uint8 images in order -> sheets of ROW x ROW pictures as data URIs."""
    waiting: list[Tensor] = []
    held = 0
    for image in batches:
        small = F.interpolate(
            image.float(), size=(THUMB, THUMB), mode="bilinear", antialias=True, align_corners=False
        )
        waiting.append(small.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1))
        held += len(image)
        while held >= ROW**2:
            joined = torch.cat(waiting)
            yield sheet(joined[: ROW**2])
            waiting, held = [joined[ROW**2 :]], held - ROW**2
    if held:
        yield sheet(torch.cat(waiting))


def sheet(small: Tensor) -> str:
    """(N, 3, THUMB, THUMB) -> one picture, filled row by row."""
    rows = math.ceil(len(small) / ROW)
    padded = torch.zeros(rows * ROW, 3, THUMB, THUMB, dtype=torch.uint8)
    padded[: len(small)] = small
    whole = (
        padded.view(rows, ROW, 3, THUMB, THUMB).permute(0, 3, 1, 4, 2).reshape(rows * THUMB, ROW * THUMB, 3)
    )
    buffer = io.BytesIO()
    Image.fromarray(whole.numpy()).save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def packed(x: np.ndarray) -> str:
    """The bytes of an array, in little-endian order, as base64."""
    return base64.b64encode(np.ascontiguousarray(x.astype(x.dtype.newbyteorder("<"))).tobytes()).decode()


def write(
    path: Path,
    title: str,
    names: Sequence[str],
    at: np.ndarray,
    near: np.ndarray,
    images: Iterable[Tensor],
    columns: Sequence[Column],
    about: str,
) -> None:
    """A page of N images: names, positions (N, 2) on the map, neighbors (N, K), batches of pixels in the same order, columns."""
    low, high = at.min(0), at.max(0)
    scaled = ((at - low) / np.where(high > low, high - low, 1)).astype(np.float32)
    data: Mapping[str, Any] = {
        "names": list(names),
        "at": packed(scaled),
        "near": packed(near.astype(np.int32)),
        "k": near.shape[1],
        "columns": [
            {"name": each.name, "data": packed(each.data), "values": list(each.values)} for each in columns
        ],
        "thumb": THUMB,
        "row": ROW,
        "palette": list(PALETTE),
    }
    page = load_template("pretask.viz", "explorer.html.j2").render(
        title=title, about=about, data=data, sheets=list(sheets(images)), count=len(names)
    )
    files.write_text(path, page)
