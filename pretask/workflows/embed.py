"""Frozen features of images: as rows, as one array, or as a table on disk, in the order of the source.

`pretask embed RUN --data PATH` writes features.parquet (columns file, features) and features.npy with the
same rows. Both are written as the images come by, so memory does not grow with their number.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from pretask import encoders
from pretask.data import loader
from pretask.data.base import Images, bar
from pretask.data.stream import Stream
from pretask.encoders import Encoder, pooled
from pretask.limits import PositiveInt, checked
from pretask.runtime import files
from pretask.runtime.device import find_device
from pretask.train.run import Run
from pretask.types import Batch, UserError

GROUP = 4096
"""rows of a parquet row group, and the most that wait in memory"""


# ---- the encoder that is meant


def encoder_of(spec: Any, size: int | None = None) -> Encoder:
    """A run, its folder, an encoder as it is, or timm:NAME with the weights that timm publishes.

    `size` is of timm models only; a run's is its own. None: the size that the weights were trained at.
    """
    if isinstance(spec, Encoder):
        return spec
    if isinstance(spec, Run):
        return spec.encoder
    if not str(spec).startswith("timm:"):
        return Run(spec).encoder
    import timm

    name, _ = encoders.parse(str(spec))
    if not timm.is_model(name):
        return encoders.build(str(spec))  # which says what is near
    if not timm.is_model_pretrained(name):
        raise UserError(f"timm publishes no weights of {name}; expected a run, or timm:NAME with weights")
    published: Any = timm.get_pretrained_cfg(name)
    try:
        return encoders.build(str(spec), 3, size or published.input_size[-1], pretrained=True).eval()
    except UserError:
        raise
    except Exception as wrong:  # whatever the hub, the network or the cache throw
        first = str(wrong).strip().splitlines()[:1]
        raise UserError(
            f"the weights of {name} could not be had ({type(wrong).__name__}: {''.join(first)}); "
            "connect to the network once, so that timm can keep them"
        ) from None


# ---- features


def check_stage(encoder: Encoder, stage: str) -> None:
    if stage not in encoder.widths:
        raise UserError(f"{encoder.name} has no stage {stage!r}; it has {', '.join(encoder.widths)}")


def rows(encoder: Encoder, source: Images, stage: str = "pool", batch: int = 256) -> Iterator["Rows"]:
    """Features of every readable image, `batch` at a time; unreadable ones are in `source.ledger.bad`."""
    check_stage(encoder, stage)
    home = encoder.mean.device
    encoder.to(find_device())
    try:
        for each in batches(source, batch):
            found = pooled(encoder, each.image, stage)
            names = source.files(each.index)
            kept = source.readable(each.index).nonzero()[:, 0].tolist()
            yield Rows([names[i] for i in kept], found[kept].numpy(), len(names))
    finally:
        encoder.to(home)


@dataclass(frozen=True)
class Rows:
    files: list[str]
    features: np.ndarray  # (B, D) float32
    seen: int  # images read, the unreadable among them


def batches(source: Images, batch: int) -> Iterator[Batch]:
    """Every image once, in order; in an unreadable one's place stands another."""
    if not isinstance(source, Stream):
        return loader.epoch(source, torch.arange(len(source)), batch)
    return source.whole(batch)


def array(encoder: Encoder, source: Images, stage: str = "pool", batch: int = 256) -> np.ndarray:
    """(N, D) float32: a row for every readable image."""
    parts = [each.features for each in rows(encoder, source, stage, batch)]
    return np.concatenate(parts)


# ---- on disk


@dataclass(frozen=True)
class Written:
    table: Path
    array: Path
    skipped: Path | None
    """the list of what could not be read, if there was any"""
    n: int
    width: int


@checked
def write(
    encoder: Encoder,
    source: Images,
    out: Path = Path("features.parquet"),
    stage: str = "pool",
    batch: PositiveInt = 256,
    progress: bool = True,
) -> Written:
    """features.parquet, features.npy beside it, and features.skipped.csv if files could not be read."""
    out = out if out.suffix else out.with_suffix(".parquet")
    if out.suffix != ".parquet":
        raise UserError(f"--out {out} should end in .parquet; the .npy is written beside it")
    targets = out, out.with_suffix(".npy"), out.with_suffix(".bad.csv")
    for path in targets:
        if path.exists():
            raise UserError(f"{path} exists; choose another --out")
    with complete(*targets) as (table, plain, skipped):
        n, width = fill(table, plain, rows(encoder, source, stage, batch), len(source), progress)
        source.ledger.write(skipped, targets[2])
    return Written(*targets[:2], targets[2] if source.ledger.bad else None, n, width)


@contextmanager
def complete(*targets: Path) -> Iterator[list[Path]]:
    """Paths to write to; what was written gets its name when all is done, or is removed."""
    beside = [path.with_name(path.name + ".new") for path in targets]
    try:
        targets[0].parent.mkdir(parents=True, exist_ok=True)
        yield beside
        written = [(made, path) for made, path in zip(beside, targets, strict=True) if made.exists()]
        for made, _ in written:
            files.sync(made)
        for made, path in written:
            made.replace(path)
    except OSError as failure:
        raise files.Unwritable(targets[0], failure) from None
    finally:
        for made in beside:
            files.remove(made)


def fill(table: Path, plain: Path, found: Iterator[Rows], total: int, progress: bool) -> tuple[int, int]:
    """Both files, from the same rows; returns how many there are, and their width."""
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
        head(file, 0, width)
        for each in found:
            waiting.append(each)
            n += len(each.files)
            shown.advance(task, each.seen)
            if sum(len(w.files) for w in waiting) >= GROUP:
                flush()
        if waiting:
            flush()
        file.seek(0)
        head(file, n, width)  # NumPy leaves room in the header for the number of rows to grow
    return n, width


def printable(name: str) -> str:
    r"""A file name in UTF-8, as tables hold nothing else: an odd byte becomes \xff, so that no two names become one."""
    return os.fsencode(name).decode(errors="backslashreplace")


def head(file: BinaryIO, n: int, width: int) -> None:
    described = {"descr": "<f4", "fortran_order": False, "shape": (n, width)}
    np.lib.format.write_array_header_1_0(file, described)
