"""A page to label images by hand: `pretask label selected.csv --data PATH --classes cat,dog --out label.html`"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretask import data as sources
from pretask.data import decode, label_file, originals
from pretask.data.base import Images, bar
from pretask.data.rows import Row
from pretask.limits import checked
from pretask.reading import DEFAULT_READING, Reading
from pretask.text import encodings
from pretask.types import UserError
from pretask.viz import labeling
from pretask.viz.labeling import Item

MOST_KEYS = 9 + 26
"""classes that have a key of their own"""
SMALL = 16
"""side in pixels at which the images are opened, to find them by their names; the pages show the stored images"""


@dataclass(frozen=True)
class Labeling:
    """The result of `label`."""

    pages: Sequence[Path]
    images: int
    missing: Sequence[str]
    """paths of the list that the data does not have, or that cannot be read"""


@checked
def label(
    images: str | Path,
    data: str | Path,
    *,
    classes: Sequence[str] = (),
    multi: bool = False,
    out: str | Path = "label.html",
    reading: Reading = DEFAULT_READING,
    progress: bool = True,
) -> Labeling:
    """Write a page on which the images of a list are labeled by hand, and which saves the answers as a table of path and label.

        pretask.label("selected.csv", "photos/", classes=["cat", "dog"], out="label.html")

    `images` is a table with a column `path`, as `select` writes it; its columns `reason` and `cluster` are kept. Without `classes`, the
    page begins with the clusters and asks for names. With `multi` an image may have several labels. More than 50 MB of images become
    several pages. Raises UserError.
    """
    path = Path(out)
    if path.suffix != ".html":
        raise UserError(f"--out {path} should end in .html")
    if twice := [
        name for k, name in enumerate(classes) if name in classes[:k] or not name.strip() or "|" in name
    ]:
        raise UserError(
            f"--classes has {twice[0]!r} twice, empty, or with a |, which separates several labels"
        )
    rows = [*entries(Path(images), reading)]
    source = sources.open(str(data), size=SMALL, reading=reading, progress=progress, cache_mb=0)
    position = {name: i for i, name in enumerate(source.files(torch.arange(len(source))))}
    missing: list[str] = []
    items = pictures(rows, source, position, missing, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = labeling.write(path, items, classes, multi, source.name)
    if not made:
        raise UserError(
            f"none of {len(rows):,} images in {images} is in {data} ({missing[0] if missing else 'it is empty'})"
        )
    return Labeling(made, len(rows) - len(missing), missing)


def entries(table: Path, reading: Reading) -> Iterator[Row]:
    """The rows of a table that have a path. Raises UserError if there is no such column."""
    content, _ = encodings.read(table, reading.encoding)
    found = [*label_file.parsed(table, content, label_file.NAMES)]
    if not any("path" in row.cells for row in found):
        raise UserError(f"{table} has no column path; expected a list as pretask select writes it")
    yield from (row for row in found if row.cells.get("path"))


def pictures(
    rows: Sequence[Row], source: Images, position: dict[str, int], missing: list[str], progress: bool
) -> Iterator[Item]:
    """The images of a list; paths that are missing or cannot be read are added to `missing`."""

    def src(number: int) -> str | None:
        at = position.get(str(rows[number].cells["path"]))
        if at is None:
            return None
        try:
            with decode.readable():
                return labeling.picture(decode.to_pil(originals.stored(source, at), 3, source.range))
        except decode.Unreadable:
            return None

    with bar(progress) as shown:
        task = shown.add_task(f"reading {source.name}", total=len(rows))
        for number, found in enumerate(originals.each(src, range(len(rows)))):
            cells: dict[str, Any] = dict(rows[number].cells)
            shown.advance(task)
            if found is None:
                missing.append(str(cells["path"]))
                continue
            yield Item(
                str(cells["path"]),
                whole(cells.get("rank"), number + 1),
                str(cells.get("reason") or ""),
                whole(cells.get("cluster"), 0),
                found,
            )


def whole(cell: Any, otherwise: int) -> int:
    try:
        return int(cell)
    except (TypeError, ValueError):
        return otherwise
