"""Images that must be decoded: at opening where they fit into memory, else batch by batch."""

import copy
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pretask.data import decode
from pretask.data.arrays import Arrays
from pretask.data.base import Asked, Opened, Texts, bar
from pretask.data.dense_maps import Planes
from pretask.data.ledger import Ledger, check_sample
from pretask.types import Batch, UserError

CHUNK = 32
"""images that one thread decodes in a row"""
SAMPLE = 100
"""images spread over all of them that are looked at first: for the canvas, and for how many are unreadable"""
LARGEST = 160
"""canvas chosen without being asked for, pixels"""
SMALLEST = 16
TRIES = 100
"""unreadable images in a row after which no stand-in is looked for"""


class Items(Protocol):
    """N encoded images: what each is called and how to get at it."""

    def __len__(self) -> int: ...
    def name(self, i: int) -> str: ...
    def read(self, i: int) -> decode.Encoded: ...


class Packed:
    """Encoded images one after the other in one array."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray):
        self.data, self.offsets = data, offsets  # (bytes,) uint8, (N + 1,) int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def name(self, i: int) -> str:
        return str(i)

    def read(self, i: int) -> bytes:
        return self.data[self.offsets[i] : self.offsets[i + 1]].tobytes()


class Chosen:
    """Some of many encoded images, numbered from 0."""

    def __init__(self, items: Items, index: np.ndarray):
        self.items, self.index = items, index  # (M,) int64

    def __len__(self) -> int:
        return len(self.index)

    def name(self, i: int) -> str:
        return self.items.name(int(self.index[i]))

    def read(self, i: int) -> decode.Encoded:
        return self.items.read(int(self.index[i]))


class Reader:
    """Decodes positions; the part of a source that travels to the workers.

    In place of an unreadable image stands the next readable one, so that a batch is the same whoever decodes
    it; where `alike` (N,) is given, the next of an equal value.
    """

    def __init__(
        self,
        items: Items,
        size: int,
        channels: int,
        alike: np.ndarray | None = None,
        stretch: bool = False,
    ):
        self.items, self.size, self.alike, self.planes = items, size, alike, Planes(channels)
        self.stretch = stretch

    def chosen(self, index: Tensor) -> "Reader":
        """Of some positions alone."""
        made = copy.copy(self)
        made.items, made.alike = Chosen(self.items, index.numpy()), None
        return made

    def fill(self, image: np.ndarray, index: list[int]) -> tuple[list[int], dict[str, str]]:
        """Write the images of `index` to `image` (B, planes, H, W); return which these are, and the unreadable ones."""
        bad: dict[str, str] = {}
        read = []
        for row, i in zip(image, index, strict=True):
            j, row[:] = self.first_readable(i, bad)
            read.append(j)
        return read, bad

    def first_readable(self, i: int, bad: dict[str, str]) -> tuple[int, np.ndarray]:
        for j in self.candidates(i):
            try:
                return j, self.one(j)
            except decode.Unreadable as error:
                bad[self.items.name(j)] = str(error)
        raise UserError(f"{self.items.name(i)} and the {TRIES} images after it cannot be read")

    def one(self, i: int) -> np.ndarray:
        with decode.readable():
            return decode.canvas(self.items.read(i), self.size, self.planes.channels, self.stretch)

    def candidates(self, i: int) -> Iterator[int]:
        """i, then those that may stand in for it."""
        yield i
        if self.alike is None:
            later = np.arange(i + 1, i + min(TRIES, len(self.items))) % len(self.items)
        else:
            same = np.flatnonzero(self.alike == self.alike[i])
            later = np.roll(same, -int(np.searchsorted(same, i)))[1:TRIES]
        yield from later.tolist()


class Encoded:
    """A source that decodes what it is asked for; `rows` (N,) are its positions in the books, if it is a part of what they keep."""

    def __init__(
        self,
        name: str,
        reader: Reader,
        max_bad: float,
        ledger: Ledger,
        aux: Mapping[str, Tensor] | None = None,
        rows: Tensor | None = None,
    ):
        self.name, self.reader, self.max_bad = name, reader, max_bad
        self.size, self.channels = reader.size, reader.planes.channels
        self.ledger, self.aux, self.rows = ledger, dict(aux or {}), rows
        self.provides = frozenset(self.aux).union(reader.planes.maps)

    def __len__(self) -> int:
        return len(self.reader.items)

    @cached_property
    def threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(cores())

    def __getitems__(self, index: Tensor) -> Batch:
        image = torch.empty(len(index), self.reader.planes.count, self.size, self.size, dtype=torch.uint8)
        chunks = index.split(CHUNK)
        parts = [part.numpy() for part in image.split(CHUNK)]
        read: list[int] = []
        for some, bad in self.threads.map(self.reader.fill, parts, map(Tensor.tolist, chunks)):
            read += some
            self.note(bad)
        return self.batch(index, image, read)

    def batch(self, index: Tensor, image: Tensor, read: list[int]) -> Batch:
        """An image that stands in for an unreadable one brings along what is known about itself."""
        self.see(read)
        image, maps = self.reader.planes.unpack(image)
        return Batch(index, image, {name: rows[read] for name, rows in self.aux.items()} | maps)

    def see(self, read: list[int]) -> None:
        self.ledger.see(read if self.rows is None else self.rows[read].tolist())

    def note(self, bad: dict[str, str]) -> None:
        """Remember what a reader, here or in a worker, could not read."""
        self.ledger.bad.update(bad)
        self.ledger.check(self.name, self.max_bad)

    def survey(self) -> None:
        """Look at a sample first, so that most of a hopeless folder is not trained on before it is called so."""
        index = sample(len(self))
        found: dict[str, str] = {}
        with ThreadPoolExecutor(cores()) as threads:
            for i, why in zip(index, threads.map(self.unreadable, index), strict=True):
                if why is None:
                    self.see([i])
                else:
                    found[self.reader.items.name(i)] = why
        check_sample(self.name, found, len(index), self.max_bad)
        self.note(found)

    def unreadable(self, i: int) -> str | None:
        """Why an image cannot be read; None if it can."""
        try:
            self.reader.one(i)
        except decode.Unreadable as error:
            return str(error)
        return None

    def files(self, index: Tensor) -> list[str]:
        return [self.reader.items.name(i) for i in index.tolist()]

    def some(self, index: Tensor) -> "Encoded":
        """The images at `index` as a source of their own: none but they stand in for one that is unreadable."""
        aux = {name: rows[index] for name, rows in self.aux.items()}
        rows = index if self.rows is None else self.rows[index]
        return Encoded(self.name, self.reader.chosen(index), self.max_bad, self.ledger, aux, rows)


def collect(
    name: str,
    items: Items,
    asked: Asked,
    label: Tensor | None = None,
    classes: list[str] | None = None,
    ledger: Ledger | None = None,
    aux: Mapping[str, Tensor] | None = None,
) -> Opened:
    """A source of `items`, decoded now if they fit into memory; `ledger` has what was left out before.

    `aux` is what else is known about each, (N, …) under names of types.AUX.
    """
    channels, size = asked.channels or 3, asked.size or median_side(name, items)
    alike = None if label is None else label.numpy()
    reader = Reader(items, size, channels, alike, asked.stretch)
    return opened(name, reader, asked, label, classes, ledger, aux)


def opened(
    name: str,
    reader: Reader,
    asked: Asked,
    label: Tensor | None = None,
    classes: list[str] | None = None,
    ledger: Ledger | None = None,
    aux: Mapping[str, Tensor] | None = None,
) -> Opened:
    """The same of what any reader decodes."""
    ledger = ledger or Ledger()
    if len(reader.items) * reader.planes.count * reader.size**2 > asked.cache_mb * 2**20:
        ledger.opened(len(reader.items), unread=True)
        source = Encoded(name, reader, asked.max_bad, ledger, aux)
        source.survey()
        return Opened(source, label, classes or [])
    return decoded(name, reader, asked, label, classes or [], ledger, aux or {})


def decoded(
    name: str,
    reader: Reader,
    asked: Asked,
    label: Tensor | None,
    classes: list[str],
    ledger: Ledger,
    aux: Mapping[str, Tensor],
) -> Opened:
    """All of it, in memory; unreadable images are dropped, and their labels with them."""
    n = len(reader.items)
    image = np.empty((n, reader.planes.count, reader.size, reader.size), np.uint8)
    reasons: dict[int, str] = {}

    def fill(chunk: range) -> int:
        for i in chunk:
            try:
                image[i] = reader.one(i)
            except decode.Unreadable as error:
                reasons[i] = str(error)
        return len(chunk)

    chunks = [range(n)[at : at + CHUNK] for at in range(0, n, CHUNK)]
    pool = ThreadPoolExecutor(cores())
    try:
        with bar(asked.progress) as progress:
            task = progress.add_task(f"decoding {name}", total=n)
            for done in pool.map(fill, chunks):
                progress.advance(task, done)
    finally:
        pool.shutdown(cancel_futures=True)
    for i in sorted(reasons):
        ledger.leave(reader.items.name(i), reasons[i])
    keep = [i for i in range(n) if i not in reasons]
    ledger.opened(len(keep))
    ledger.check(name, asked.max_bad if keep else 0.0)
    if reasons:
        image, label = image[keep], None if label is None else label[keep]
        aux = {field: rows[keep] for field, rows in aux.items()}
    names = Texts.of(reader.items.name(i) for i in keep)
    held = Arrays(name, torch.from_numpy(image), names, ledger, aux, planes=reader.planes)
    return Opened(held, label, classes)


def median_side(name: str, items: Items) -> int:
    """Of a sample, within SMALLEST and LARGEST."""
    sides, why = [], ""
    for i in sample(len(items)):
        try:
            with decode.readable():
                sides.append(decode.short_side(items.read(i)))
        except decode.Unreadable as error:
            why = f"{items.name(i)}: {error}"
    if not sides:
        raise UserError(f"{name}: none of the images looked at first can be read ({why})")
    return int(np.clip(np.median(sides), SMALLEST, LARGEST))


def sample(n: int) -> list[int]:
    """At most SAMPLE of n positions, evenly spread."""
    return np.unique(np.linspace(0, n - 1, SAMPLE).round().astype(int)).tolist()


def cores() -> int:
    """Usable by this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
