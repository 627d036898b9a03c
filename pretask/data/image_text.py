"""Images with text beside them: `pairs.jsonl`, `pairs.csv`, `text:TABLE.parquet`, or `text:FOLDER` of articles.

A row names its image, by a path from where its file lies, and has its text in a column; `FILE:context,captions` says
in which ones. Articles are Markdown or HTML, and give their whole text to every image that they show. A batch
carries the text itself as `words`: what words are, and which of them count, is decided by the method.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from pretask.data import parquet as table
from pretask.data.base import Asked, Opened, Texts, settle
from pretask.data.encoded import Chosen, Items, collect
from pretask.data.folder import Files
from pretask.data.ledger import Ledger
from pretask.text import words as text
from pretask.types import UserError

PREFIX = "text:"
ROWS = (".jsonl", ".csv", ".tsv")
ARTICLES = (".md", ".markdown", ".html", ".htm", ".xhtml")
IMAGE_NAMES = (*table.IMAGE_NAMES, "file", "file_name", "filename", "image_path", "path")
TEXT_NAMES = ("text", "article", "context", "content", "body", "captions", "caption", "description")
UNSHOWN = frozenset({"script", "style", "template", "noscript"})
"""tags whose content no reader sees"""


@dataclass(frozen=True)
class Found:
    """Images, the text of each, whatever stands in a label column, and the books."""

    items: Items
    texts: list[str]
    labels: list[Any]
    ledger: Ledger


def understands(spec: str) -> bool:
    return spec.startswith(PREFIX) or Path(split(spec)[0]).suffix in ROWS


def split(spec: str) -> tuple[str, list[str]]:
    """A path, and the columns that are named behind it."""
    path, _, columns = spec.removeprefix(PREFIX).rpartition(":")
    if not path or os.sep in columns:
        return spec.removeprefix(PREFIX), []
    return path, [c.strip() for c in columns.split(",")]


def load(spec: str, asked: Asked) -> Opened:
    path, columns = split(spec)
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a file of rows {', '.join(ROWS)}, or text:FOLDER")
    if path.is_dir() and not table.parquet(str(path)):
        found = articles(path)
    elif path.suffix in ROWS:
        found = of_rows(path, columns)
    else:
        found = of_table(path, columns, asked)
    settled = settle(found.labels, asked, found.ledger, found.items.name)
    kept = settled.kept
    words = {"words": text.pack([found.texts[i] for i in kept])}
    items = found.items if len(kept) == len(found.texts) else Chosen(found.items, kept)
    return collect(path.stem, items, asked, settled.label, settled.classes, found.ledger, words)


# ---- a row for each image


def of_rows(path: Path, columns: Sequence[str]) -> Found:
    ledger = Ledger()
    images, texts, labels = [], [], []
    for place, row in rows(path, ledger):
        image = next((row[name] for name in IMAGE_NAMES if row.get(name)), None)
        words = text_of(row, columns, path)
        why = amiss(path.parent, image) or ("" if words.strip() else "has no text")
        if why:
            ledger.leave(place, why)
            continue
        images.append(image)
        texts.append(words)
        labels.append(next((row[name] for name in table.LABEL_NAMES if row.get(name) is not None), None))
    check_any(path, images, ledger)
    return Found(Files(str(path.parent), Texts.of(images)), texts, labels, ledger)


def rows(path: Path, ledger: Ledger) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each row stands, and what it says; lines that are no rows are left out."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        if path.suffix != ".jsonl":
            csv.field_size_limit(2**27)  # a column may hold an article
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            try:
                yield from ((f"line {reader.line_num}", row) for row in reader)
            except csv.Error as error:
                raise UserError(f"{path} is no table, in line {reader.line_num}: {error}") from None
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                ledger.leave(f"line {number}", f"not JSON: {str(error).partition(':')[0].lower()}")
                continue
            if isinstance(row, dict):
                yield f"line {number}", row
            else:
                ledger.leave(f"line {number}", "not an object of names and values")


def text_of(row: Mapping[str, Any], columns: Sequence[str], path: Path) -> str:
    """Of the columns asked for, or of the first that usually holds it."""
    if missing := [name for name in columns if name not in row]:
        raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(map(str, row))}")
    values = [row[name] for name in columns or [n for n in TEXT_NAMES if row.get(n)][:1]]
    return "\n".join(str(line) for v in values for line in (v if isinstance(v, list) else [v]) if line)


def amiss(folder: Path, image: Any) -> str:
    """Why a path can name no image; "" if it can."""
    if not isinstance(image, str) or not image.strip():
        return "names no image"
    if "://" in image or image.startswith("//"):
        return "its image lies on the web; download it and give its path"
    return "" if (folder / image).is_file() else f"no such file: {image}"


def of_table(path: Path, columns: Sequence[str], asked: Asked) -> Found:
    data, _ = table.fetched(str(path), asked, streaming=False)
    column = next((name for name in IMAGE_NAMES if name in data.features), None)
    column = column or table.image_column(data.features, str(path))
    names = [name for name in data.column_names if name != column]
    stored = table.Rows(table.undecoded(data, column), column)
    where = path if path.is_dir() else path.parent
    ledger = Ledger()
    kept, images, texts, labels = [], [], [], []
    for i, row in enumerate(data.select_columns(names)):
        cell = stored.table[i][column]
        words = text_of(row, columns, path)
        why = (amiss(where, cell) if isinstance(cell, str) else "") or (
            "" if words.strip() else "has no text"
        )
        if why:
            ledger.leave(stored.name(i), why)
            continue
        kept.append(i)
        images.append(cell if isinstance(cell, str) else "")
        texts.append(words)
        labels.append(next((row[name] for name in table.LABEL_NAMES if row.get(name) is not None), None))
    check_any(path, kept, ledger)
    named = all(images)
    items = Files(str(where), Texts.of(images)) if named else Chosen(stored, np.array(kept))
    return Found(items, texts, labels, ledger)


def check_any(path: Path, kept: Sequence[Any], ledger: Ledger) -> None:
    if not kept:
        some = ledger.some() or "it is empty"
        raise UserError(
            f"{path} has no image with text ({some}); expected an image column, such as `image`, with "
            "paths from where the file lies, and a text column, such as `text`"
        )


# ---- articles


def articles(root: Path) -> Found:
    """Every image that an article below `root` shows, with all its text."""
    ledger = Ledger()
    images, texts = [], []
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in ARTICLES and p.is_file()):
        words, shown = parsed(path)
        for image in dict.fromkeys(shown):
            file, why = local(root, path.parent, image)
            why = why or ("" if words.strip() else "has no text")
            if why:
                ledger.leave(f"{path.relative_to(root)}: {image[:80]}", why)
                continue
            images.append(os.path.relpath(file, root))
            texts.append(words)
    if not images:
        some = ledger.some()
        raise UserError(
            f"{root} has no article with an image of its own{f' ({some})' if some else ''}; expected files "
            f"ending in {', '.join(ARTICLES)} that show images beside them"
        )
    return Found(Files(str(root), Texts.of(images)), texts, [None] * len(images), ledger)


def parsed(path: Path) -> tuple[str, list[str]]:
    """The text that a reader sees, and the images."""
    page = path.read_text(encoding="utf-8-sig", errors="replace")
    if path.suffix.lower() in (".md", ".markdown"):
        from markdown_it import MarkdownIt

        page = MarkdownIt("commonmark").enable("table").render(page)
    reading = Reading()
    reading.feed(page)
    reading.close()
    return " ".join(reading.text), reading.images


class Reading(HTMLParser):
    """Collects the text of a page, with what stands for its images, and where these lie."""

    def __init__(self):
        super().__init__()
        self.text: list[str] = []
        self.images: list[str] = []
        self.unshown = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.unshown += tag in UNSHOWN
        said = dict(attrs)
        if tag == "img" and said.get("src"):
            self.images.append(said["src"] or "")
            self.text.append(said.get("alt") or "")

    def handle_endtag(self, tag: str) -> None:
        self.unshown -= tag in UNSHOWN and self.unshown > 0

    def handle_data(self, data: str) -> None:
        if not self.unshown:
            self.text.append(data)


def local(root: Path, folder: Path, image: str) -> tuple[Path, str]:
    """The file that an article in `folder` means, or why there is none."""
    try:
        parts = urlsplit(image)
    except ValueError:
        return folder, "not an address"
    if parts.scheme == "data":
        return folder, "its image is written into the article; store it as a file"
    if parts.scheme or parts.netloc:
        return folder, "its image lies on the web; download it and give its path"
    path = unquote(parts.path)
    file = root / path.lstrip("/") if path.startswith("/") else folder / path
    return file, "" if file.is_file() else "no such file"
