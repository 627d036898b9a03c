"""A tolerant reader of CSV, TSV and JSONL: each row is returned, or the reason why it cannot be used.

An unclosed quote would swallow all rows after it. So a line with unmatched quotes is read as a separate row, and so is a
line whose quoted text would extend over lines that are valid rows.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pretask.text import encodings
from pretask.types import UserError

DELIMITERS = ",;\t"
"""possible delimiters, detected from the header; `;` is common where the comma is the decimal separator"""
LINES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")

csv.field_size_limit(2**27)  # a cell may contain an article


@dataclass(frozen=True)
class Row:
    line: int  # number of its first line, from 1
    cells: Mapping[str, Any] = field(default_factory=dict)  # by column
    why: str = ""  # reason why it cannot be used


def of_jsonl(text: str) -> Iterator[Row]:
    for number, line in enumerate(LINES.findall(text), 1):
        if not line.strip():
            continue
        try:
            cells, why = json.loads(line), encodings.undecodable(line)
        except (ValueError, RecursionError) as error:
            yield Row(number, why=f"not JSON: {str(error).partition(':')[0].lower()}")
            continue
        if isinstance(cells, dict):
            yield Row(number, cells, why)
        else:
            yield Row(number, why="not a JSON object")


def of_csv(
    text: str,
    images: Collection[str],
    texts: Collection[str],
    others: Collection[str],
    names_file: Callable[[str], bool],
    tabs: bool = False,
) -> Iterator[Row]:
    """Rows below a header. `images`, `texts` and `others` are the possible names of the columns in use.

    `tabs`: prefer tabs if the delimiter is ambiguous. Raises UserError if the header cannot be used.
    """
    lines = LINES.findall(text)
    at = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    if at == len(lines):
        return
    delimiter, names, taken = header(lines, at, images, "\t,;" if tabs else DELIMITERS)
    at += taken
    if twice := [n for n, k in Counter(names).items() if k > 1 and n in {*images, *texts, *others}]:
        raise UserError(f"two columns are named {twice[0]!r}; rename one of them")

    def fitted(cells: list[str]) -> list[str] | str:
        """One cell per column, or the reason why not. Unquoted text with commas is accepted in the last column."""
        if len(cells) < len(names):
            there = names[: len(cells)]
            if any(n in images for n in there) and any(n in texts for n in there):
                return cells
            return f"fewer fields than the header: {len(cells)} instead of {len(names)}"
        own, more = cells[: len(names)], cells[len(names) :]
        if not any(cell.strip() for cell in more):
            return own
        prose = all(cell.startswith(" ") for cell in more) and not any(cell.startswith(" ") for cell in own)
        if delimiter == "," and names[-1] in texts and prose:
            return [*own[:-1], ",".join([own[-1], *more])]
        return f"more fields than the header: {len(cells)} instead of {len(names)}; quote text that contains {delimiter!r}"

    def is_row(line: str) -> bool:
        cells = fitted(plain(line, delimiter))
        return not isinstance(cells, str) and any(
            names_file(cell) for name, cell in zip(names, cells, strict=False) if name in images
        )

    while at < len(lines):
        cells, taken = record(lines, at, delimiter)
        if taken > 1 and any(map(is_row, lines[at + 1 : at + taken])):
            cells, taken = None, 1
        matched = cells is not None
        cells = cells if cells is not None else plain(lines[at], delimiter)
        if any(cell.strip() for cell in cells):
            fit = fitted(cells)
            if isinstance(fit, str):
                why = fit if matched else "unclosed quote, or a quote within quotes that is not doubled"
                yield Row(at + 1, why=why)
            else:
                whole = "".join(fit)
                why = encodings.undecodable(whole) or ("contains a NUL byte" if "\0" in whole else "")
                yield Row(at + 1, dict(zip(names, fit, strict=False)), why)
        at += taken


def header(
    lines: Sequence[str], at: int, images: Collection[str], delimiters: str
) -> tuple[str, list[str], int]:
    """The delimiter, the column names, and the number of header lines; detected from the header, since text has any character."""
    readings = []
    for delimiter in delimiters:
        cells, taken = record(lines, at, delimiter)
        names = [name.strip() for name in cells or plain(lines[at], delimiter)]
        readings.append((delimiter, names, taken))
    return max(readings, key=lambda reading: (any(n in images for n in reading[1]), len(reading[1])))


def record(lines: Sequence[str], at: int, delimiter: str) -> tuple[list[str] | None, int]:
    """The cells of the row that begins at a line and its number of lines; (None, 1) if its quotes do not match."""
    reader = csv.reader((lines[i] for i in range(at, len(lines))), delimiter=delimiter, strict=True)
    try:
        return next(reader), reader.line_num
    except csv.Error:
        return None, 1


def plain(line: str, delimiter: str) -> list[str]:
    """The cells of a line, without interpreting quotes."""
    return line.rstrip("\r\n").split(delimiter)
