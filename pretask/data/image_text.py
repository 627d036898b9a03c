"""Images paired with text or labels: `pairs.jsonl`, `pairs.csv`, `text:TABLE.parquet`, or `text:FOLDER` of articles.

A row has the path of its image, relative to the table, and its text in one or more columns, which
`FILE:context,captions` selects. Articles are Markdown or HTML; every image of an article gets its whole text. A batch
contains the raw text as `words`; the method tokenizes it and chooses the vocabulary.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from pretask.data import decode, parquet, rows
from pretask.data.annotations import is_picture
from pretask.data.base import LABEL_NAMES, Opened, OpenOptions, Texts, resolve_labels
from pretask.data.encoded import Items, ItemSubset, collect
from pretask.data.folder import Files
from pretask.data.labels import LabelColumns
from pretask.data.ledger import Ledger
from pretask.data.paths import resolve
from pretask.reading import Reading
from pretask.runtime.console import say
from pretask.text import encodings as written
from pretask.text import words as text
from pretask.types import UserError

PREFIX = "text:"
ROWS = (".jsonl", ".csv", ".tsv")
ARTICLES = (".md", ".markdown", ".html", ".htm", ".xhtml")
IMAGE_NAMES = (*parquet.IMAGE_NAMES, "file", "file_name", "filename", "image_path", "path")
TEXT_NAMES = ("text", "article", "context", "content", "body", "captions", "caption", "description")
HIDDEN = frozenset({"script", "style", "template", "noscript"})
"""tags whose content is not displayed"""


@dataclass(frozen=True)
class Found:
    """Images, their texts if there are any, the cells of their label columns, and the ledger."""

    items: Items
    texts: list[str] | None
    labels: list[Any]
    ledger: Ledger


def understands(spec: str) -> bool:
    return spec.startswith(PREFIX) or Path(split(spec)[0]).suffix.lower() in ROWS


def split(spec: str) -> tuple[str, list[str]]:
    """A path, and the text columns after its colon."""
    path, _, columns = spec.removeprefix(PREFIX).rpartition(":")
    if not path or os.sep in columns:
        return spec.removeprefix(PREFIX), []
    return path, [c.strip() for c in columns.split(",")]


def load(spec: str, options: OpenOptions) -> Opened:
    path, columns = split(spec)
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a table ({', '.join(ROWS)}) or text:FOLDER")
    if path.is_dir() and not parquet.is_parquet(str(path)):
        found = read_articles(path, options.reading)
    elif path.suffix.lower() in ROWS:
        found = read_rows(path, columns, options)
    else:
        found = read_table(path, columns, options)
    resolved = resolve_labels(found.labels, options, found.ledger, found.items.name)
    kept, texts = resolved.kept, found.texts
    words = {} if texts is None else {"words": text.pack([texts[i] for i in kept])}
    items = found.items if len(kept) == len(found.items) else ItemSubset(found.items, kept)
    return collect(path.stem, items, options, resolved.label, resolved.classes, found.ledger, words)


# ---- tables with a row per image


def read_rows(path: Path, columns: Sequence[str], options: OpenOptions) -> Found:
    content, detected = written.read(path, options.reading.encoding)
    if detected:
        say(f"{path} is read as {detected}")
    ledger = Ledger()
    images, texts, labels, label = [], [], [], LabelColumns(options.reading, LABEL_NAMES)
    pictures = image_names(options.reading)
    found = list(rows_of(path, content, pictures, columns))
    seen = dict.fromkeys(name for row in found for name in row.cells)  # columns, in order
    with_text = has_text(seen, columns)
    for row in found:
        image, words, why = pair(path.parent, row.cells, pictures, columns, with_text)
        if row.why or why:
            ledger.skip(f"line {row.line}", row.why or why)
            continue
        images.append(image)
        texts.append(words)
        labels.append(label.of(row.cells))
    check_columns(path, [*columns, *(pictures if options.reading.column else ())], list(seen))
    check_any(path, images, ledger)
    if options.labels != "none":
        label.check(path)
    return Found(Files(str(path.parent), Texts.of(images)), texts if with_text else None, labels, ledger)


def image_names(reading: Reading) -> Sequence[str]:
    """Possible names of the image column."""
    return IMAGE_NAMES if reading.column is None else (reading.column,)


def has_text(there: Collection[str], columns: Sequence[str]) -> bool:
    """Whether there is a text column; a table of only labels has none."""
    return bool(columns) or any(name in there for name in TEXT_NAMES)


def rows_of(path: Path, content: str, pictures: Sequence[str], columns: Sequence[str]) -> Iterator[rows.Row]:
    if path.suffix.lower() == ".jsonl":
        yield from rows.of_jsonl(content)
        return
    texts = columns or TEXT_NAMES
    tabs = path.suffix.lower() == ".tsv"
    try:
        yield from rows.of_csv(
            content, pictures, texts, LABEL_NAMES, lambda name: not resolve(path.parent, name)[1], tabs
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def pair(
    folder: Path, row: Mapping[str, Any], pictures: Sequence[str], columns: Sequence[str], with_text: bool
) -> tuple[str, str, str]:
    """The image of a row, relative to `folder`, its text, and why the row cannot be used ("" if it can)."""
    image, why = resolve(folder, next((row[name] for name in pictures if row.get(name)), None))
    words, no_text = text_of(row, columns) if with_text else ("", "")
    return image, words, why or no_text


def text_of(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, str]:
    """The text of the given columns, or of the first usual column that has any; and why there is none."""
    cells = [lines for name in columns or TEXT_NAMES if (lines := cell_lines(row.get(name)))]
    if not columns:
        cells = cells[:1]
    if cells:
        return "\n".join(line for lines in cells for line in lines), ""
    objects = [name for name in columns or TEXT_NAMES if holds_object(row.get(name))]
    if objects:
        return "", f"its text is a JSON object: {objects[0]}"
    return "", "has no text" + (f": {', '.join(columns)}" if columns else "")


def cell_lines(value: Any) -> list[str]:
    """The lines of text in a cell: a number becomes a string, a list its elements; None, NaN and objects have none."""
    if isinstance(value, list | tuple):
        return [line for each in value for line in cell_lines(each)]
    if value is None or value != value or isinstance(value, dict):
        return []
    return [str(value)] if str(value).strip() else []


def holds_object(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(holds_object, value)))


def read_table(path: Path, columns: Sequence[str], options: OpenOptions) -> Found:
    ledger = Ledger()
    data, _ = parquet.open_table(str(path), options, streaming=False, ledger=ledger)
    column = options.reading.column or next((name for name in IMAGE_NAMES if name in data.features), None)
    column = parquet.image_column(data.features, str(path), column)
    names = [name for name in data.column_names if name != column]
    check_columns(path, columns, names)
    with_text = has_text(names, columns)
    stored = parquet.Rows(parquet.encoded_column(data, column), column)
    where = path if path.is_dir() else path.parent
    kept, images, texts, labels, label = [], [], [], [], LabelColumns(options.reading, LABEL_NAMES)
    for i, row in enumerate(data.select_columns(names)):
        cell = stored.table[i][column]
        image, missing = resolve(where, cell) if isinstance(cell, str) else ("", "")
        words, no_text = text_of(row, columns) if with_text else ("", "")
        if missing or no_text:
            ledger.skip(stored.name(i), missing or no_text)
            continue
        kept.append(i)
        images.append(image)
        texts.append(words)
        labels.append(label.of(row))
    check_any(path, kept, ledger)
    if options.labels != "none":
        label.check(path)
    items = Files(str(where), Texts.of(images)) if all(images) else ItemSubset(stored, np.array(kept))
    return Found(items, texts if with_text else None, labels, ledger)


def check_columns(path: Path, columns: Sequence[str], there: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in there]:
        raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(there) or 'none'}")


def check_any(path: Path, kept: Sequence[Any], ledger: Ledger) -> None:
    if not kept:
        reasons = ledger.first_bad() or "it is empty"
        raise UserError(
            f"{path} has no usable image ({reasons}); expected an image column such as `image`, with paths relative to "
            "the file, and optionally a text column such as `text`"
        )


# ---- articles


def read_articles(root: Path, reading: Reading) -> Found:
    """Every image that an article below `root` shows, with the whole text; unreadable articles are skipped.

    Articles without images, and files that no article shows, are counted as other files.
    """
    ledger = Ledger()
    images, texts = [], []
    encodings: Counter[str] = Counter()
    files = {*below(root, ledger)}
    for path in sorted(path for path in files if path.name.lower().endswith(ARTICLES)):
        files.remove(path)
        called = str(path.relative_to(root))
        try:
            content, detected = written.read(path, reading.encoding, page=is_html(path))
        except OSError as error:
            content, detected, why = "", "", decode.reason(error)
        except UserError as error:
            content, detected, why = "", "", f"unknown encoding: {error}"
        else:
            why = written.undecodable(content)
        if why:
            ledger.skip(called, why)
            continue
        encodings[detected] += 1
        words, shown = parsed(content, is_html(path))
        ledger.other["articles without images"] += not shown
        for image in dict.fromkeys(shown):
            file, why = local(root, path.parent, image)
            files.discard(Path(os.path.normpath(file)))
            why = why or ("" if words.strip() else "has no text")
            if why:
                ledger.skip(f"{called}: {image[:80]}", why)
                continue
            images.append(os.path.relpath(file, root))
            texts.append(words)
    ledger.other = +(ledger.other + Counter(map(kind_of, files)))
    for detected, n in encodings.items():
        if detected:
            say(f"{root}: {n} {'article is' if n == 1 else 'articles are'} read as {detected}")
    if not images:
        reasons = ledger.first_bad()
        raise UserError(
            f"{root} has no article with an image{f' ({reasons})' if reasons else ''}; expected "
            f"{', '.join(ARTICLES)} files that show image files next to them"
        )
    return Found(Files(str(root), Texts.of(images)), texts, [None] * len(images), ledger)


def below(root: Path, ledger: Ledger) -> Iterator[Path]:
    """The files below `root`; no folder is entered twice, and unreadable folders are skipped."""
    entered: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        ledger.skip(os.path.relpath(error.filename, root), decode.reason(error))

    for folder, inner, files in os.walk(root, onerror=unreadable, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            inner.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        inner.sort(key=lambda name, folder=folder: (os.path.islink(os.path.join(folder, name)), name))
        yield from (Path(folder, name) for name in files)


def kind_of(path: Path) -> str:
    """How a file that is not an article, nor shown by one, is counted."""
    return "images of no article" if is_picture(path.name) else path.suffix.lower() or "without suffix"


def is_html(path: Path) -> bool:
    return path.suffix.lower() not in (".md", ".markdown")


def parsed(content: str, html: bool) -> tuple[str, list[str]]:
    """The displayed text and the images."""
    if not html:
        from markdown_it import MarkdownIt

        content = MarkdownIt("commonmark").enable("table").render(content)
    page = Page()
    page.feed(content)
    page.close()
    return " ".join(page.text), page.images


class Page(HTMLParser):
    """Collects the displayed text of a page, with the alt texts of its images, and the sources of these."""

    def __init__(self):
        super().__init__()
        self.text: list[str] = []
        self.images: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in HIDDEN
        attributes = dict(attrs)
        if tag == "img" and attributes.get("src"):
            self.images.append(attributes["src"] or "")
            self.text.append(attributes.get("alt") or "")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in HIDDEN and self.hidden > 0

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.text.append(data)


def local(root: Path, folder: Path, image: str) -> tuple[Path, str]:
    """The file that an article in `folder` refers to, and why there is none; ignores ?query and #fragment."""
    path = image if ":" in image else re.split("[?#]", image)[0]
    base = root if path.startswith("/") and not path.startswith("//") else folder
    name, why = resolve(base, path.removeprefix("/") if base is root else path)
    return base / name, why
