"""Converts stored labels to class indices: one per image, or several (multi-label).

Multi-labels are stored as a list, as a string with a separator, or as a 0/1 cell per class. Sources pass what they found:
a tuple or a row of an array holds a cell per class, a list holds the classes of an image. Lists of numbers of equal
length that contain only 0 and 1 are read as cells too, unless the classes have names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretask.reading import Reading
from pretask.types import UserError

BLANK, WRONG = -1, -2
"""values of cells that are neither 0 nor 1"""
CELLS: Mapping[Any, int] = {0: 0, 1: 1, "0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
UNSET = "blank cells but no class set"
"""reason for skipping a row: a blank cell means 0 only if some class is set"""


@dataclass(frozen=True)
class Labels:
    """Labels of N images."""

    label: Tensor  # (N,) int64, -1: no label; or multi-label (N, K) int8 of 1 and 0, a row of -1: no label
    classes: list[str]
    wrong: Mapping[int, str] = field(default_factory=dict)
    """position of an image -> why its labels are invalid"""

    @property
    def there(self) -> Tensor:
        """(N,) bool: which images have a label."""
        return known(self.label)


def known(label: Tensor) -> Tensor:
    """(N,) or (N, K) -> (N,) bool: which images have a label."""
    return label >= 0 if label.ndim == 1 else (label >= 0).all(1)


class LabelColumns:
    """The label columns of a table: those given by --labels-from, or else the first with a usual name."""

    def __init__(self, reading: Reading, usual: Sequence[str] = ()):
        self.named, self.usual = reading.label_columns, usual
        self.missing = set(self.named)

    def of(self, row: Mapping[str, Any]) -> Any:
        """The label of a row; for several columns the tuple of their cells."""
        if not self.named:
            return next((row[name] for name in self.usual if row.get(name) is not None), None)
        self.missing.difference_update(row)
        if len(self.named) == 1:
            return row.get(self.named[0])
        return tuple(row.get(name) for name in self.named)

    def check(self, table: Any, there: Sequence[str] | None = None) -> None:
        """Raises UserError if a given column is neither in any row nor in `there`."""
        if missing := [name for name in self.named if name in self.missing.difference(there or ())]:
            has = f"; it has {', '.join(there)}" if there else ""
            raise UserError(f"{table} has no column {', '.join(missing)} (--labels-from){has}")


def read(labels: Sequence[Any] | np.ndarray, reading: Reading, names: Sequence[str] | None = None) -> Labels:
    """Convert the stored labels of N images; `names` are the class names if known."""
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        return of_cells(labels, names or [str(k) for k in range(labels.shape[1])])
    if any(isinstance(x, tuple) for x in labels):
        return of_cells(labels, names or reading.label_columns)
    if reading.label_separator is not None:
        labels = [split_labels(x, reading.label_separator) for x in labels]
    if any(isinstance(x, dict) for x in labels):
        raise UserError("labels are objects (key-value pairs); expected strings, numbers, or lists of them")
    if not any(isinstance(x, list | np.ndarray) for x in labels):
        return of_one(labels, names)
    lists = [as_list(x) for x in labels]
    if names is None and (width := cell_width(lists)):
        return of_cells([tuple(x) or None for x in lists], [str(k) for k in range(width)])
    return of_lists(lists, names)


def blank(x: Any) -> bool:
    """Whether a value is missing: None, NaN, or an empty string."""
    return (
        x is None
        or (isinstance(x, str | bytes) and not x.strip())
        or (isinstance(x, float | np.floating) and x != x)
    )


# ---- one label per image


def of_one(labels: Sequence[Any] | np.ndarray, names: Sequence[str] | None) -> Labels:
    """Labels of single-label images; blank ones, and -1 among named classes, are missing."""
    there = [i for i, x in enumerate(labels) if not (blank(x) or (names is not None and x == -1))]
    label = torch.full((len(labels),), -1)
    if not there:
        return Labels(label, [])
    label[there], classes = numbered(np.array([labels[i] for i in there]), names)
    return Labels(label, classes)


def numbered(labels: np.ndarray, names: Sequence[str] | None = None) -> tuple[Tensor, list[str]]:
    """Labels of any type, one per image -> (N,) int64 and class names."""
    if labels.ndim != 1 or labels.dtype.kind not in "iubfUS":
        raise UserError("labels have an unknown type; expected one string or number per image")
    if labels.dtype.kind == "f" and (labels == labels.round()).all():  # floats only because of blank cells
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "U" and all(text.isdecimal() and str(int(text)) == text for text in labels):
        labels = labels.astype(np.int64)  # so that 10 comes after 9
    if names is not None and labels.dtype.kind in "iu":
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(names)):
            raise UserError(
                f"labels range from {labels.min()} to {labels.max()}, but there are {len(names)} class names"
            )
        return torch.from_numpy(labels.astype(np.int64)), list(names)
    values, number = np.unique(labels, return_inverse=True)
    return torch.from_numpy(number.astype(np.int64)), [str(v) for v in values]


# ---- several labels per image


def split_labels(x: Any, separator: str) -> Any:
    """A string -> the list of labels in it; anything else unchanged."""
    if not separator:
        raise UserError("--label-separator is empty; expected a separator such as |")
    x = x.decode(errors="replace") if isinstance(x, bytes) else x
    return [part.strip() for part in x.split(separator)] if isinstance(x, str) else x


def as_list(x: Any) -> list[Any]:
    """The labels of an image without blank ones; a single label becomes a list."""
    return [each for each in (x if isinstance(x, list | np.ndarray) else [x]) if not blank(each)]


def cell_width(lists: Sequence[list[Any]]) -> int:
    """K if all nonempty lists hold K ≥ 2 numbers that are 0 or 1; else 0."""
    nonempty = [x for x in lists if x]
    width = len(nonempty[0]) if nonempty else 0
    binary = (isinstance(v, int | float | np.number) and v in (0, 1) for x in nonempty for v in x)
    return width if width > 1 and all(len(x) == width for x in nonempty) and all(binary) else 0


def of_lists(lists: Sequence[list[Any]], names: Sequence[str] | None) -> Labels:
    """Lists of the classes of each image."""
    if any(isinstance(v, list | tuple | dict | np.ndarray) for x in lists for v in x):
        raise UserError("lists of labels are nested; expected lists of strings or numbers")
    if names is not None:
        lists = [[v for v in x if v != -1] for x in lists]
    flat = [v for x in lists for v in x]
    if not flat:
        return of_one([None] * len(lists), names)
    number, classes = numbered(np.array(flat), names)
    image = torch.arange(len(lists)).repeat_interleave(torch.tensor([len(x) for x in lists]))
    label = torch.zeros(len(lists), len(classes), dtype=torch.int8)
    label[image, number] = 1
    label[label.sum(1) == 0] = -1
    return Labels(label, classes)


def of_cells(rows: Sequence[Any] | np.ndarray, classes: Sequence[str]) -> Labels:
    """N rows of K cells, or None for a missing row.

    A row with a cell other than 0, 1, true, false or blank is invalid. Raises UserError if most cells of a column are.
    """
    cells = np.full((len(rows), len(classes)), BLANK, np.int8)
    for i, row in enumerate(rows):
        if row is not None:
            cells[i] = [cell(x) for x in row]
    wrong, filled = (cells == WRONG).sum(0), (cells != BLANK).sum(0)
    if (full := 2 * wrong > filled).any():
        k = int(full.argmax())
        values = dict.fromkeys(str(rows[i][k]) for i in np.flatnonzero(cells[:, k] == WRONG)[:3].tolist())
        raise UserError(
            f"the labels of class {classes[k]!r} are {', '.join(values)}; expected 0, 1, true, false or a blank cell"
        )
    invalid, empty = (cells == WRONG).any(1), (cells == BLANK).all(1)
    unset = (cells == BLANK).any(1) & ~(cells == 1).any(1) & ~empty
    why: dict[int, str] = dict.fromkeys(np.flatnonzero(unset).tolist(), UNSET)
    for i in np.flatnonzero(invalid).tolist():
        k = int((cells[i] == WRONG).argmax())
        why[i] = f"label neither 0 nor 1: {rows[i][k]} for {classes[k]}"
    label = np.where((invalid | unset | empty)[:, None], -1, cells == 1).astype(np.int8)
    return Labels(torch.from_numpy(label), list(classes), why)


def cell(x: Any) -> int:
    """1, 0, BLANK or WRONG."""
    if blank(x):
        return BLANK
    if isinstance(x, str | bytes):
        x = (x.decode(errors="replace") if isinstance(x, bytes) else x).strip().lower()
    return WRONG if isinstance(x, list | dict) else CELLS.get(x, WRONG)
