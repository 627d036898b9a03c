"""Frozen features of images: as rows, as one array, or as a table on disk, in the order of the source.

`pretask embed RUN --data PATH` writes features.parquet (columns file, features) and features.npy with the
same rows. Both are written batch by batch, so memory does not grow with the number of images.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from pretask.data import loader
from pretask.data.base import Images, bar
from pretask.data.stream import Stream
from pretask.encoders.readout import Readout
from pretask.limits import PositiveInt, checked
from pretask.runtime import files
from pretask.runtime.device import find_device
from pretask.types import Batch, UserError

GROUP = 4096
"""rows of a Parquet row group, and approximate number of rows held in memory"""


# ---- features


def rows(readout: Readout, source: Images, batch: int = 256) -> Iterator["Rows"]:
    """Features of every readable image, `batch` at a time; unreadable ones are in `source.ledger.bad`."""
    home = readout.encoder.mean.device
    readout.to(find_device())
    try:
        for each in batches(source, batch):
            found = readout.rows(each.image)
            names = source.files(each.index)
            kept = source.readable(each.index).nonzero()[:, 0].tolist()
            yield Rows([names[i] for i in kept], found[kept].numpy(), len(names))
    finally:
        readout.to(home)


@dataclass(frozen=True)
class Rows:
    files: list[str]
    features: np.ndarray  # (B, D) float32
    seen: int  # number of images, including unreadable ones


def batches(source: Images, batch: int) -> Iterator[Batch]:
    """Every image once, in order; an unreadable image is replaced by another."""
    if not isinstance(source, Stream):
        return loader.epoch(source, torch.arange(len(source)), batch)
    return source.whole(batch)


def array(readout: Readout, source: Images, batch: int = 256) -> np.ndarray:
    """(N, D) float32, one row per readable image."""
    parts = [each.features for each in rows(readout, source, batch)]
    return np.concatenate(parts)


# ---- on disk


@dataclass(frozen=True)
class Written:
    table: Path
    array: Path
    skipped: Path | None
    """the list of unreadable files; None if there were none"""
    n: int
    width: int


@checked
def write(
    readout: Readout,
    source: Images,
    out: Path = Path("features.parquet"),
    batch: PositiveInt = 256,
    progress: bool = True,
) -> Written:
    """Write features.parquet and features.npy, and features.bad.csv if files could not be read."""
    out = out if out.suffix else out.with_suffix(".parquet")
    if out.suffix != ".parquet":
        raise UserError(f"--out {out} should end in .parquet; the .npy file gets the same name")
    targets = out, out.with_suffix(".npy"), out.with_suffix(".bad.csv")
    for path in targets:
        if path.exists():
            raise UserError(f"{path} exists; choose another --out")
    with atomic_writes(*targets) as (table, plain, skipped):
        n, width = fill(table, plain, rows(readout, source, batch), len(source), progress)
        source.ledger.write(skipped, targets[2])
    return Written(*targets[:2], targets[2] if source.ledger.bad else None, n, width)


@contextmanager
def atomic_writes(*targets: Path) -> Iterator[list[Path]]:
    """Temporary paths to write to; they are renamed to `targets` when the block ends, or removed after an error."""
    temporary = [path.with_name(path.name + ".new") for path in targets]
    try:
        targets[0].parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        written = [(made, path) for made, path in zip(temporary, targets, strict=True) if made.exists()]
        for made, _ in written:
            files.sync(made)
        for made, path in written:
            made.replace(path)
    except OSError as failure:
        raise files.Unwritable(targets[0], failure) from None
    finally:
        for made in temporary:
            files.remove(made)


def fill(table: Path, plain: Path, found: Iterator[Rows], total: int, progress: bool) -> tuple[int, int]:
    """Write both files from the same rows; returns the number of rows and their width."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def flush() -> None:
        names = [name for each in waiting for name in each.files]
        values = np.concatenate([each.features for each in waiting])
        listed = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
        writer.write_table(
            pa.Table.from_arrays([pa.array(map(printable, names), pa.string()), listed], schema=schema)
        )
        file.write(values.tobytes())
        waiting.clear()

    first = next(found)
    width, n, waiting = first.features.shape[1], len(first.files), [first]
    schema = pa.schema([("file", pa.string()), ("features", pa.list_(pa.float32(), width))])
    with plain.open("wb") as file, pq.ParquetWriter(table, schema) as writer, bar(progress) as shown:
        task = shown.add_task("embedding", total=total, completed=first.seen)
        write_header(file, 0, width)
        for each in found:
            waiting.append(each)
            n += len(each.files)
            shown.advance(task, each.seen)
            if sum(len(w.files) for w in waiting) >= GROUP:
                flush()
        if waiting:
            flush()
        file.seek(0)
        write_header(file, n, width)  # NumPy leaves room in the header for the number of rows to grow
    return n, width


def printable(name: str) -> str:
    r"""A file name as valid UTF-8, which tables require: an invalid byte becomes \xff, so that different names stay different."""
    return os.fsencode(name).decode(errors="backslashreplace")


def write_header(file: BinaryIO, n: int, width: int) -> None:
    described = {"descr": "<f4", "fortran_order": False, "shape": (n, width)}
    np.lib.format.write_array_header_1_0(file, described)
