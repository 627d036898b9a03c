"""Writes an explorer: one offline page with a map of all images (viz/explorer.py)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretask.collection import layout
from pretask.data import loader
from pretask.data.base import Images
from pretask.ops.neighbors import nearest, unit
from pretask.rng import Rng
from pretask.runtime.console import busy
from pretask.types import Source
from pretask.viz import explorer
from pretask.viz.explorer import Column
from pretask.workflows.collection import Opened
from pretask.workflows.embed import Written

PAGE = "explorer.html"
NEIGHBORS = 8
BATCH = 256


def of_collection(path: Path, own: Opened, columns: Mapping[str, Sequence[Any]], seed: int = 0) -> Path:
    """An explorer of a collection."""
    return explore(path, own.source, own.names, own.positions, own.x, columns, seed)


def of_features(written: Written, source: Images) -> Path:
    """An explorer of features that were written to disk, next to them."""
    readable = source.readable(torch.arange(len(source))).nonzero().flatten()
    x = torch.from_numpy(np.load(written.array))
    return explore(written.table.with_name(PAGE), source, source.files(readable), readable, x, {})


def explore(
    path: Path, source: Source, names: Sequence[str], positions: Tensor, x: Tensor, columns: Mapping[str, Sequence[Any]], seed: int = 0,
    laid_out: tuple[np.ndarray, str] | None = None,
) -> Path:  # fmt: skip
    """An explorer of N images with features (N, D) at these positions (N,) of a source, colored by columns of N cells each.

    Of more than explorer.MOST images it shows some, drawn at random. `laid_out` are the positions (N, 2) of the images on the map and the name
    of the algorithm, if they are known.
    """
    rows = torch.arange(len(names))
    about = f"A map of {len(names):,} images"
    if len(names) > explorer.MOST:
        rows = Rng(seed, "explorer").permutation(len(names))[: explorer.MOST].sort().values
        about = f"A map of {len(rows):,} of {len(names):,} images, drawn at random"
    z = unit(x[rows].float() - x.float().mean(0))
    with busy(f"laying out {len(rows):,} images"):
        at, how = laid_out or layout.layout(z, seed)
        _, near = nearest(z, z, min(NEIGHBORS, len(z) - 1), exclude_self=True)
    chosen = [int(row) for row in rows]
    explorer.write(
        path, source.name, [names[row] for row in chosen], at, near.numpy(), pictures(source, positions[rows]),
        [Column.of(name, [cells[row] for row in chosen]) for name, cells in columns.items()],
        f"{about}, by {how}: similar ones lie close together, and distances between far groups mean nothing.",
    )  # fmt: skip
    return path


def pictures(source: Source, positions: Tensor) -> Iterator[Tensor]:
    return (batch.image for batch in loader.epoch(source, positions, BATCH))


def column_of(names: Sequence[str], cells: Mapping[str, Any], otherwise: Any = "") -> list[Any]:
    """The cells of some images as a column of all."""
    return [cells.get(name, otherwise) for name in names]
