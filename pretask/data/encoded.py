"""Encoded images: decoded at opening if they fit into memory, else batch by batch."""

import copy
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pretask.data import decode, fingerprint
from pretask.data.arrays import Arrays
from pretask.data.base import SAMPLE, Opened, OpenOptions, Texts, bar, is_constant, warn_constant
from pretask.data.dense_maps import Planes
from pretask.data.fingerprint import Fingerprint
from pretask.data.ledger import Ledger, check_sample
from pretask.transforms.ranges import UNKNOWN, PixelStats, Range, resolve_range
from pretask.types import Batch, UserError

CHUNK = 32
"""images that a thread decodes at a time"""
LARGEST = 160
"""largest default size, pixels"""
SMALLEST = 16
"""smallest default size, pixels"""
TRIES = 100
"""consecutive unreadable images after which the search for a replacement ends"""


class Items(Protocol):
    """N encoded images, each with a name; some also have `sizes()`, (N,) int64 in bytes, and `stamps()`, (N, 2) int64 sizes and times."""

    def __len__(self) -> int: ...
    def name(self, i: int) -> str: ...
    def read(self, i: int) -> decode.Encoded: ...


class Packed:
    """Encoded images concatenated in one array."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray):
        self.data, self.offsets = data, offsets  # (bytes,) uint8, (N + 1,) int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def name(self, i: int) -> str:
        return str(i)

    def read(self, i: int) -> bytes:
        return self.data[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets.astype(np.int64))


class ItemSubset:
    """A subset of encoded images, numbered from 0."""

    def __init__(self, items: Items, index: np.ndarray):
        self.items, self.index = items, index  # (M,) int64

    def __len__(self) -> int:
        return len(self.index)

    def name(self, i: int) -> str:
        return self.items.name(int(self.index[i]))

    def read(self, i: int) -> decode.Encoded:
        return self.items.read(int(self.index[i]))

    def sizes(self) -> np.ndarray:
        return fingerprint.sizes(self.items)[self.index]

    def stamps(self) -> np.ndarray:
        return fingerprint.stamps_of(self.items)[self.index]


class Reader:
    """Decodes images by position; the part of a source that is sent to the workers.

    An unreadable image is replaced by the next readable one, so that a batch does not depend on who decodes it; if
    `groups` (N,) is given, by the next one of the same group if there is one.
    """

    def __init__(
        self,
        items: Items,
        size: int,
        channels: int,
        groups: np.ndarray | None = None,
        stretch: bool = False,
    ):
        self.items, self.size, self.groups, self.planes = items, size, groups, Planes(channels)
        self.stretch, self.range = stretch, UNKNOWN

    def subset(self, index: Tensor) -> "Reader":
        """A reader of only these positions (M,)."""
        reader = copy.copy(self)
        reader.items, reader.groups = ItemSubset(self.items, index.numpy()), None
        return reader

    def fill(self, image: np.ndarray, index: list[int]) -> tuple[list[int], dict[int, str]]:
        """Write the images of `index` to `image` (B, planes, H, W).

        Returns the positions that were decoded, and position -> reason of the unreadable images.
        """
        bad: dict[int, str] = {}
        read = []
        for row, i in zip(image, index, strict=True):
            j, row[:] = self.first_readable(i, bad)
            read.append(j)
        return read, bad

    def first_readable(self, i: int, bad: dict[int, str]) -> tuple[int, np.ndarray]:
        for j in self.candidates(i):
            try:
                return j, self.one(j)
            except decode.Unreadable as error:
                bad[j] = str(error)
        raise UserError(f"{self.items.name(i)} and the {TRIES} images after it cannot be read")

    def one(self, i: int) -> np.ndarray:
        with decode.readable():
            encoded = self.items.read(i)
            return decode.canvas(encoded, self.size, self.planes.channels, self.stretch, self.range)

    def candidates(self, i: int) -> Iterator[int]:
        """i, then its possible replacements: first those of its group, then all others."""
        yield i
        if self.groups is not None:
            same = np.flatnonzero(self.groups == self.groups[i])
            yield from np.roll(same, -int(np.searchsorted(same, i)))[1:TRIES].tolist()
        yield from (np.arange(i + 1, i + min(TRIES, len(self.items))) % len(self.items)).tolist()


class Encoded:
    """A source that decodes images on demand; `rows` (N,) are its positions in the ledger if it is a subset."""

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
        self.size, self.channels, self.range = reader.size, reader.planes.channels, reader.range
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
        """The images of `read`, each with its own auxiliary fields, also where it replaces an unreadable one."""
        self.ledger.mark_read(self.entries(read))
        image, maps = self.reader.planes.unpack(image)
        return Batch(index, image, {name: rows[read] for name, rows in self.aux.items()} | maps)

    def entries(self, positions: list[int]) -> list[int]:
        """Positions in the ledger."""
        return positions if self.rows is None else self.rows[positions].tolist()

    def note(self, bad: dict[int, str]) -> None:
        """Record images that a reader, here or in a worker, could not read: position -> reason."""
        for entry, (i, why) in zip(self.entries([*bad]), bad.items(), strict=True):
            self.ledger.mark_unreadable(entry, self.reader.items.name(i), why)
        self.ledger.check(self.name, self.max_bad)

    def readable(self, index: Tensor) -> Tensor:
        return self.ledger.readable(index if self.rows is None else self.rows[index])

    def survey(self) -> None:
        """Read a sample, so that a folder with too many unreadable images fails before training."""
        index = sample(len(self))
        with ThreadPoolExecutor(cores()) as threads:
            checks = dict(zip(index, threads.map(self.check, index), strict=True))
        bad = {i: why for i, why in checks.items() if isinstance(why, str)}
        self.ledger.mark_read(self.entries([i for i in index if i not in bad]))
        warn_constant(self.name, [x for x in checks.values() if not isinstance(x, str)], self.range)
        sampled = Ledger()
        for i, why in bad.items():
            sampled.skip(self.reader.items.name(i), why)
        check_sample(self.name, sampled.bad, len(index), self.max_bad)
        self.note(bad)

    def check(self, i: int) -> bool | str:
        """Whether an image is constant, or the reason why it cannot be read."""
        try:
            return is_constant(self.reader.one(i)[: self.channels])
        except decode.Unreadable as error:
            return str(error)

    def files(self, index: Tensor) -> list[str]:
        return [self.reader.items.name(i) for i in index.tolist()]

    def fingerprint(self) -> Fingerprint:
        return fingerprint.of_items(self.reader.items, self.aux)

    def subset(self, index: Tensor) -> "Encoded":
        """The images at `index` (M,) as a source of their own; only these replace unreadable ones."""
        aux = {name: rows[index] for name, rows in self.aux.items()}
        rows = index if self.rows is None else self.rows[index]
        return Encoded(self.name, self.reader.subset(index), self.max_bad, self.ledger, aux, rows)


def collect(
    name: str,
    items: Items,
    options: OpenOptions,
    label: Tensor | None = None,
    classes: list[str] | None = None,
    ledger: Ledger | None = None,
    aux: Mapping[str, Tensor] | None = None,
) -> Opened:
    """A source of `items`, decoded now if they fit into memory. `ledger` holds the records skipped so far.

    `aux` are further fields, (N, …) under names of types.AUX_FIELDS.
    """
    channels, size = options.channels or 3, options.size or median_side(name, items)
    one_of_each = label is not None and label.ndim == 1 and options.labels == "all"
    groups = label.numpy() if label is not None and one_of_each else None
    reader = Reader(items, size, channels, groups, options.stretch)
    return open_encoded(name, reader, options, label, classes, ledger, aux)


def open_encoded(
    name: str,
    reader: Reader,
    options: OpenOptions,
    label: Tensor | None = None,
    classes: list[str] | None = None,
    ledger: Ledger | None = None,
    aux: Mapping[str, Tensor] | None = None,
) -> Opened:
    """A source of what `reader` decodes."""
    ledger = ledger or Ledger()
    reader.range = range_of(name, reader.items, options.range)
    if len(reader.items) * reader.planes.count * reader.size**2 > options.cache_mb * 2**20:
        ledger.set_size(len(reader.items), unread=True)
        source = Encoded(name, reader, options.reading.max_bad, ledger, aux)
        source.survey()
        return Opened(source, label, classes or [])
    return decode_all(name, reader, options, label, classes or [], ledger, aux or {})


def decode_all(
    name: str,
    reader: Reader,
    options: OpenOptions,
    label: Tensor | None,
    classes: list[str],
    ledger: Ledger,
    aux: Mapping[str, Tensor],
) -> Opened:
    """Decode all images into memory; unreadable ones are dropped with their labels."""
    n, origin = len(reader.items), fingerprint.of_items(reader.items, aux)
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
        with bar(options.progress) as progress:
            task = progress.add_task(f"decoding {name}", total=n)
            for done in pool.map(fill, chunks):
                progress.advance(task, done)
    finally:
        pool.shutdown(cancel_futures=True)
    for i in sorted(reasons):
        ledger.skip(reader.items.name(i), reasons[i])
    keep = [i for i in range(n) if i not in reasons]
    ledger.set_size(len(keep))
    ledger.check(name, options.reading.max_bad if keep else 0.0)
    if reasons:
        image, label = image[keep], None if label is None else label[keep]
        aux = {field: rows[keep] for field, rows in aux.items()}
    names = Texts.of(reader.items.name(i) for i in keep)
    held = Arrays(
        name,
        torch.from_numpy(image),
        names,
        ledger,
        aux,
        planes=reader.planes,
        origin=origin,
        range=reader.range,
    )
    return Opened(held, label, classes)


def range_of(name: str, items: Items, known: Range) -> Range:
    """`known`, completed from a sample of the images; unreadable ones are ignored."""

    def look(i: int) -> PixelStats | None:
        try:
            with decode.readable():
                return decode.measure(items.read(i))
        except decode.Unreadable:
            return None

    with ThreadPoolExecutor(cores()) as threads:
        return resolve_range(name, known, [found for found in threads.map(look, sample(len(items))) if found])


def median_side(name: str, items: Items) -> int:
    """Median short side of a sample in pixels, within SMALLEST and LARGEST."""
    sides, why = [], ""
    for i in sample(len(items)):
        try:
            with decode.readable():
                sides.append(min(decode.size_of(items.read(i))))
        except decode.Unreadable as error:
            why = f"{items.name(i)}: {error}"
    if not sides:
        raise UserError(f"{name}: no image of a sample can be read ({why})")
    return int(np.clip(np.median(sides), SMALLEST, LARGEST))


def sample(n: int) -> list[int]:
    """At most SAMPLE of n positions, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).round().astype(int)).tolist()


def cores() -> int:
    """Number of CPU cores that this process can use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
