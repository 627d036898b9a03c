"""What all kinds of source share: how one is asked for, what opening returns, compact names, a bar."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from pretask.data.ledger import NO_LABEL, Ledger
from pretask.train.progress import console
from pretask.types import Source, UserError


@dataclass(frozen=True)
class Asked:
    """How a source is wanted."""

    size: int | None = None
    """side of the square canvas in pixels; none: arrays keep theirs, files get the median of a sample"""
    channels: int | None = None
    """1 or 3; none: 1 for grey arrays, else 3"""
    root: Path | None = None
    """where named data sets lie or are downloaded to"""
    max_bad: float = 0.1
    """largest tolerated share of unreadable images"""
    split: str | None = None
    """part of a data set that has parts"""
    progress: bool = True
    """show a bar while images are decoded"""
    cache_mb: int = 2048
    """images that fit into this many MiB once decoded are decoded at opening and kept in memory"""
    labels: Literal["none", "any", "all"] = "none"
    """none: they are not read; any: -1 where an image has none; all: images without one are left out"""
    stretch: bool = False
    """files become square by being squeezed, in place of losing what is outside their central square"""


class Images(Source, Protocol):
    """A source that knows what each sample is called, and what became of all that came in."""

    ledger: Ledger

    def files(self, index: Tensor) -> list[str]: ...


@dataclass(frozen=True)
class Opened:
    """Images, and beside them, never in them, what is known about their classes."""

    images: Images
    label: Tensor | None = None  # (N,) int64, -1: none; None where no image has one, or none was asked for
    classes: list[str] = field(default_factory=list)


class Texts:
    """N strings in two arrays, so that a million names cost no Python objects and workers share them."""

    def __init__(self, blob: np.ndarray, ends: np.ndarray):
        self.blob, self.ends = blob, ends  # (bytes,) uint8, (N + 1,) int64, the first 0

    @classmethod
    def of(cls, texts: Iterable[str | bytes]) -> "Texts":
        parts = [t if isinstance(t, bytes) else os.fsencode(t) for t in texts]
        ends = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(p) for p in parts], out=ends[1:])
        return cls(np.frombuffer(b"".join(parts), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self.blob[self.ends[i] : self.ends[i + 1]].tobytes())

    def take(self, keep: Sequence[int]) -> "Texts":
        return Texts.of(self[i] for i in keep)


@dataclass(frozen=True)
class Settled:
    """What is known of the labels of a source's images."""

    kept: np.ndarray  # (M,) positions of the images that stay
    label: Tensor | None  # (M,)
    classes: list[str]


def settle(
    labels: Sequence[Any] | np.ndarray,
    asked: Asked,
    ledger: Ledger,
    name: Callable[[int], str],
    names: Sequence[str] | None = None,
    why: str = NO_LABEL,
) -> Settled:
    """Labels as they were stored -> those that are asked for. Blank ones, None, NaN, and -1 among named classes are none.

    `name` says what an image is called; those that are left out are noted in `ledger`, and `why`.
    """
    everything = np.arange(len(labels))
    if asked.labels == "none":
        return Settled(everything, None, [])
    there = known(labels, names)
    if not there.any():
        return Settled(everything, None, [])
    values = [labels[i] for i in np.flatnonzero(there).tolist()]
    if any(isinstance(value, list | tuple | dict | np.ndarray) for value in values):
        raise UserError("images have several labels; what is scored is one label of each")
    number, classes = numbered(np.array(values), names)
    if asked.labels == "all":
        for i in np.flatnonzero(~there).tolist():
            ledger.spare(name(i), why)
        return Settled(everything[there], number, classes)
    label = torch.full((len(labels),), -1)
    label[torch.from_numpy(there)] = number
    return Settled(everything, label, classes)


def known(labels: Sequence[Any] | np.ndarray, names: Sequence[str] | None) -> np.ndarray:
    """(N,) bool: which are labels."""

    def is_label(x: Any) -> bool:
        if isinstance(x, float | np.floating) and math.isnan(x):
            return False
        if isinstance(x, str | bytes):
            return bool(x.strip())
        return x is not None and not (names is not None and x == -1)

    return np.fromiter(map(is_label, labels), bool, len(labels))


def numbered(labels: np.ndarray, names: Sequence[str] | None = None) -> tuple[Tensor, list[str]]:
    """Labels of any kind, one of each image -> (N,) int64 and the class names they stand for."""
    if labels.ndim != 1 or labels.dtype.kind not in "iubfUS":
        raise UserError("the labels are no words or numbers, one for each image")
    if labels.dtype.kind == "f" and (labels == labels.round()).all():  # whole numbers beside blank cells
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "U" and all(text.isdecimal() and str(int(text)) == text for text in labels):
        labels = labels.astype(np.int64)  # so that 10 comes after 9
    if names is not None and labels.dtype.kind in "iu":
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(names)):
            raise UserError(
                f"labels run from {labels.min()} to {labels.max()}, but there are {len(names)} class names"
            )
        return torch.from_numpy(labels.astype(np.int64)), list(names)
    values, number = np.unique(labels, return_inverse=True)
    return torch.from_numpy(number.astype(np.int64)), [str(v) for v in values]


def bar(show: bool) -> Progress:
    """On standard error, so that standard output stays clean for --json; none where that is no terminal."""
    shown = console(stderr=True)
    what = TextColumn("{task.description}", markup=False)
    columns = what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=shown, disable=not (show and shown.is_terminal), transient=True)
