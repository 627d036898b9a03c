"""`labels:FILE@DATA`: the images that a table names, with its labels; as `--labels FILE --data DATA`.

The table is a CSV, TSV or JSONL file with a row per image: its path and its label, or the label columns of `--labels-from`. A path is
relative to DATA, or else to the table, or else absolute. If DATA is no folder, it is the image's name there, as `pretask embed`
writes it. Rows without an image and images without a row are counted; a path with two different labels is an error.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretask.data import folder, image_text, listed, rows, splits
from pretask.data.base import LABEL_NAMES, Opened, OpenOptions, Texts, resolve_labels
from pretask.data.encoded import Encoded, collect
from pretask.data.labels import LabelColumns
from pretask.data.ledger import NO_LABEL, Ledger
from pretask.data.paths import missing, spellings
from pretask.data.subset import Subset
from pretask.runtime import accounts
from pretask.text import encodings
from pretask.types import UserError

PREFIX = "labels:"
NAMES = ("path", *image_text.IMAGE_NAMES)
"""usual names of the column of paths"""
NO_IMAGE = "no such image"


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    line: int
    path: str
    label: Any
    cells: Mapping[str, Any]


def understands(spec: str) -> bool:
    return spec.startswith(PREFIX)


def spec_of(table: str | Path, data: str) -> str:
    """The spec of images of `data` with the labels of a table."""
    return f"{PREFIX}{table}@{data}"


def split(spec: str) -> tuple[Path, str]:
    """A spec -> the table, whose name may contain an @, and the spec of the images."""
    path = spec.removeprefix(PREFIX)
    ends = [i for i, letter in enumerate(path) if letter == "@"]
    for end in ends:
        if (table := Path(path[:end]).expanduser()).is_file():
            return table, path[end + 1 :]
    raise UserError(
        f"{path.partition('@')[0]} is not a file; expected a table with the columns path and label"
    )


def load(spec: str, options: OpenOptions) -> Opened:
    table, data = split(spec)
    ledger = Ledger()
    entries = unique(table, [*read(table, options, ledger)], ledger)
    if (root := root_of(data, options)) is not None:
        return of_files(table, data, root, entries, options, ledger)
    return of_names(table, data, entries, options, ledger)


def read(table: Path, options: OpenOptions, ledger: Ledger) -> Iterator[Entry]:
    """The rows of a table. Raises UserError if it has no column of paths or labels."""
    if table.suffix.lower() not in image_text.ROWS:
        raise UserError(
            f"{table} is no table; expected {', '.join(image_text.ROWS)}, with the columns path and label"
        )
    content, detected = encodings.read(table, options.reading.encoding)
    if detected:
        accounts.say_once(f"{table} is read as {detected}")
    named = NAMES if options.reading.column is None else (options.reading.column,)
    columns = LabelColumns(options.reading, LABEL_NAMES)
    found = [*parsed(table, content, named)]
    there = dict.fromkeys(name for row in found for name in row.cells)
    labels = options.reading.label_columns or LABEL_NAMES
    for usual, flag in ((named, "--column"), (labels, "--labels-from")):
        if not any(name in there for name in usual):
            raise UserError(
                f"{table} has the columns {', '.join(there) or 'none'}; expected path and label, or name them with {flag}"
            )
    for row in found:
        path = next((row.cells[name] for name in named if row.cells.get(name)), None)
        if row.why or not isinstance(path, str):
            ledger.skip(f"{table.name} line {row.line}", row.why or "has no path")
        else:
            yield Entry(row.line, path, columns.of(row.cells), row.cells)
    columns.check(table, list(there))


def parsed(table: Path, content: str, named: Sequence[str]) -> Iterator[rows.Row]:
    if table.suffix.lower() == ".jsonl":
        yield from rows.of_jsonl(content)
        return
    tabs = table.suffix.lower() == ".tsv"
    try:
        yield from rows.of_csv(
            content, named, (), LABEL_NAMES, lambda path: not missing(table.parent, path), tabs
        )
    except UserError as error:
        raise UserError(f"{table}: {error}") from None


def unique(table: Path, entries: Sequence[Entry], ledger: Ledger) -> list[Entry]:
    """The rows without repetitions. Raises UserError for a path with two labels."""
    first: dict[str, Entry] = {}
    for each in entries:
        before = first.setdefault(os.path.normpath(each.path), each)
        if before is each:
            continue
        if before.label != each.label:
            raise UserError(
                f"{table} has two labels for {each.path}: {before.label} in line {before.line} and {each.label} in line {each.line}"
            )
        ledger.exclude(f"{table.name} line {each.line}", "row repeated")
    return [*first.values()]


def cells(spec: str, options: OpenOptions) -> dict[str, Mapping[str, Any]]:
    """Name of an image -> all cells of its row."""
    table, data = split(spec)
    root = root_of(data, options)
    found = {
        each.path if root is None else file_of(root, table.parent, each.path): each.cells
        for each in read(table, options, Ledger())
    }
    return {name: row for name, row in found.items() if name is not None}


def root_of(data: str, options: OpenOptions) -> Path | None:
    """The folder that names of images are relative to; None unless the images are files of a folder or a list."""
    from pretask import data as sources

    kind = sources.kind(data)
    if kind is listed:
        return listed.read(Path(data.removeprefix(listed.PREFIX)).expanduser())[0]
    if kind is not folder:
        return None
    root, part = splits.split_spec(data)
    part = options.split or part
    return folder.part_of(root, part) if part not in ("", splits.ALL, splits.CLASSES) else root


# ---- images that are files


def of_files(
    table: Path, data: str, root: Path, entries: Sequence[Entry], options: OpenOptions, ledger: Ledger
) -> Opened:
    there = names_in(data, root)
    known, labels = set(there), dict[str, Any]()
    for each in entries:
        name = file_of(root, table.parent, each.path)
        # of a list, only what it lists: the rest was left out on purpose
        if name is None or (data.startswith(listed.PREFIX) and not os.path.isabs(name) and name not in known):
            ledger.exclude(f"{table.name} line {each.line}", f"{NO_IMAGE}: {each.path}")
        else:
            labels[name] = each.label
    tell(table, data, len(labels), len(entries), len(known.difference(labels)), ledger)
    names = [*dict.fromkeys([*there, *labels])] if options.labels == "any" else [*labels]
    cells = [labels.get(name) for name in names]
    resolved = resolve_labels(cells, options, ledger, lambda i: names[i], why=NO_LABEL)
    kept = folder.Files(str(root), Texts.of(names[i] for i in resolved.kept))
    return collect(table.stem, kept, options, resolved.label, resolved.classes, ledger)


def file_of(root: Path, home: Path, path: str) -> str | None:
    """The name, relative to `root`, of the file that a path means; absolute if it lies elsewhere; None if there is none."""
    for base in (root, home):
        for spelled in spellings(path):
            if not missing(base, spelled):
                whole = os.path.abspath(base / spelled)
                inside = os.path.relpath(whole, os.path.abspath(root))
                return whole if inside.startswith(os.pardir + os.sep) else inside
    return None


def names_in(data: str, root: Path) -> list[str]:
    """Names of all images, in order."""
    if data.startswith(listed.PREFIX):
        return listed.read(Path(data.removeprefix(listed.PREFIX)).expanduser())[1]
    return [os.fsdecode(name) for name in folder.scan(root)[0]]


# ---- images that have only names


def of_names(
    table: Path, data: str, entries: Sequence[Entry], options: OpenOptions, ledger: Ledger
) -> Opened:
    from pretask import data as sources

    source = sources.open_spec(data, replace(options, labels="none")).images
    source.__getitems__(torch.arange(1))  # a stream has no positions and raises here
    position = {name: i for i, name in enumerate(source.files(torch.arange(len(source))))}
    found = {position[each.path]: each.label for each in entries if each.path in position}
    for each in entries:
        if each.path not in position:
            ledger.exclude(f"{table.name} line {each.line}", f"{NO_IMAGE}: {each.path}")
    tell(table, data, len(found), len(entries), len(position) - len(found), ledger)
    index = [*range(len(source))] if options.labels == "any" else [*found]
    names = source.files(torch.tensor(index))
    resolved = resolve_labels(
        [found.get(i) for i in index], options, ledger, lambda i: names[i], why=NO_LABEL
    )
    chosen = torch.from_numpy(np.array(index, np.int64)[resolved.kept])
    images = source.subset(chosen) if isinstance(source, Encoded) else Subset(source, chosen)
    return Opened(images, resolved.label, resolved.classes)


def tell(table: Path, data: str, used: int, entries: int, without: int, ledger: Ledger) -> None:
    """Say how rows and images match. Raises UserError if none do."""
    first = next((why for why in ledger.unwanted.values() if why.startswith(NO_IMAGE)), "")
    if not used:
        raise UserError(
            f"none of {entries:,} rows of {table} names an image ({first.removeprefix(f'{NO_IMAGE}: ') or 'it is empty'}); a path "
            f"is relative to {data}, or to the table, or absolute"
        )
    lost = f", {entries - used:,} rows without an image ({first})" if used < entries else ""
    accounts.say_once(f"{table.name}: {used:,} labeled images{lost}; {without:,} images without a row")
