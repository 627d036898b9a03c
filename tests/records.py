"""Shards and tables of tiny images, identified by their red value."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

Members = Mapping[str, bytes] | Iterable[tuple[str, bytes]]


def png(red: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (red, 0, 0)).save(file, form)
    return file.getvalue()


def tar(path: Path, members: Members, mode: str = "w") -> Path:
    """Write a tar of members in this order; names may repeat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def names_in(path: Path) -> list[str]:
    """Names of all members, in order."""
    with tarfile.open(path) as archive:
        return archive.getnames()


def cells(reds: Iterable[int]) -> list[dict]:
    return [{"bytes": png(red), "path": None} for red in reds]


def table(path: Path, **columns: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def reds(source) -> list[int]:
    return source.__getitems__(torch.arange(len(source))).image[:, 0, 0, 0].tolist()
