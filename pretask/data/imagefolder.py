"""Labels in the `imagefolder` layout of Hugging Face: a table next to the images with their paths in column `file_name`."""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretask.data import decode
from pretask.data.base import LABEL_NAMES
from pretask.data.ledger import Ledger
from pretask.runtime.console import say

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NAME = "file_name"


def labels(root: Path, images: Sequence[bytes], ledger: Ledger) -> dict[bytes, Any] | None:
    """Path of an image below `root` -> its label; None if no table has labels. Rows without an image are skipped.

    A table lies in a folder of images or in a parent folder, and its paths are relative to that folder.
    """
    found: dict[bytes, Any] = {}
    lost: dict[str, str] = {}
    known, has_labels = set(images), False
    for folder in sorted(above(images)):
        for table in (Path(root, os.fsdecode(folder), name) for name in TABLES):
            if not table.is_file():
                continue
            for place, row in rows(table, lost):
                name = row.get(NAME)
                label = next((row[each] for each in LABEL_NAMES if row.get(each) is not None), None)
                has_labels = has_labels or label is not None
                image = os.path.normpath(os.path.join(folder, os.fsencode(name))) if name else b""
                if image in known:
                    found[image] = label
                else:
                    lost[place] = f"no such image: {name}" if name else f"has no {NAME}"
    if not has_labels:
        return None
    for place, why in lost.items():
        ledger.skip(place, why)
    return found


def above(images: Sequence[bytes]) -> set[bytes]:
    """The folders of the images and all their parent folders."""
    folders = {os.path.dirname(path) for path in images}
    return folders | {
        b"/".join(folder.split(b"/")[:depth]) for folder in folders for depth in range(folder.count(b"/") + 1)
    }


def rows(table: Path, lost: dict[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Location and content of each row; invalid lines are added to `lost`."""
    try:
        if table.suffix == ".parquet":
            yield from ((f"{table.name} row {i}", row) for i, row in enumerate(cells(table)))
            return
        with table.open(
            encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as file:  # like file names
            if table.suffix == ".csv":
                reader = csv.DictReader(file)
                yield from ((f"{table.name} line {reader.line_num}", row) for row in reader)
                return
            for number, line in enumerate(file, 1):
                row, place = parsed(line), f"{table.name} line {number}"
                if row is not None:
                    yield place, row
                elif line.strip():
                    lost[place] = "not a JSON object"
    except (OSError, ValueError, csv.Error) as error:
        say(f"{table} is only read in part: {decode.reason(error)}")


def cells(table: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet table, with the columns in use."""
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(table)
    return file.read([name for name in file.schema_arrow.names if name in (NAME, *LABEL_NAMES)]).to_pylist()


def parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get(NAME, ""), str) else None
