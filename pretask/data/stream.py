"""Streams of images, read in order without random access: `hf-stream:USER/DATA[:CONFIG][:SPLIT][#N]`.

Local patterns of Parquet files or tar shards can be streamed too. Each process reads its own shards (its own rows if
there are fewer shards than processes), so batches depend on the number of processes; with the same number a run is
reproducible. `len` is the length stated by the data, or the N after `#`. The index of an image is its position in the
epoch and does not identify it: methods that remember images need data with random access.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretask.data import decode, fingerprint, parquet, patterns, webdataset
from pretask.data.base import SAMPLE, Opened, OpenOptions, Texts, is_constant, resolve_labels, warn_constant
from pretask.data.encoded import LARGEST, cores
from pretask.data.fingerprint import Fingerprint
from pretask.data.folder import Files
from pretask.data.ledger import Ledger
from pretask.types import Batch, UserError

BUFFER = 2048
"""size of the shuffle buffer, in encoded images"""
PREFIX = "hf-stream:"


def understands(spec: str) -> bool:
    return spec.startswith(PREFIX)


def load(spec: str, options: OpenOptions) -> Opened:
    if options.labels == "all":
        raise UserError(f"{spec}: streams cannot be used for evaluation; use hf:… or a prepared store")
    place, stated = parted(spec.removeprefix(PREFIX))
    if stated and not stated.isdecimal():
        raise UserError(f"{spec}: expected the number of images after #, got {stated!r}")
    if webdataset.understands(place):
        found = of_shards(place, options, counted=not stated or options.labels != "none")
    elif parquet.is_local(place):
        found = of_tables(place, options)
    else:
        found = of_hub(place, options)
    n = int(stated) if stated else found.n
    if not n:
        raise UserError(f"{spec} does not state its number of images; add it, for example {spec}#100000")
    source = Stream(found, n, options)
    resolved = resolve_labels(found.labels, options, source.ledger, str)
    return Opened(source, resolved.label, resolved.classes)


def parted(place: str) -> tuple[str, str]:
    """PLACE#N -> the place and its stated number of images; an existing path may contain a #."""
    if os.path.exists(os.path.expanduser(place)):
        return place, ""
    before, _, stated = place.rpartition("#")
    return (before, stated) if before else (place, "")


@dataclass(frozen=True)
class Rows:
    """The rows of a stream."""

    name: str
    rows: Any  # an IterableDataset
    n: int  # number of rows; 0: unknown
    folder: Path = Path()
    """base of relative paths"""
    other: Counter[str] = field(default_factory=Counter)
    """other files, by suffix"""
    labels: Sequence[Any] = ()
    files: Sequence[str] = ()
    """local files of the stream"""


def of_shards(place: str, options: OpenOptions, counted: bool) -> Rows:
    shards = webdataset.shards_of_split(place, options)
    called = dict(zip(shards, patterns.relative_names(shards), strict=True))
    suffix, labels = webdataset.survey(place, shards, called, options, counted)
    rows = generated(
        webdataset.stream, shards=shards, called=called, suffix=suffix, labels=options.labels != "none"
    )
    other = patterns.other_files(place, webdataset.ENDINGS)
    n = len(labels) if counted else 0
    return Rows(webdataset.title(place), rows, n, other=other, labels=labels, files=shards)


def of_tables(place: str, options: OpenOptions) -> Rows:
    files, name = parquet.files_of_split(place, options), parquet.title(place)
    if files[0].is_dir():
        data = parquet.table_of(files)
        column = parquet.image_column(data.features, place, options.reading.column)
        rows = one_column(data.to_iterable_dataset(), column)
        return Rows(name, rows, len(data), files[0], files=arrow_files(files[0]))
    column, n = parquet.survey(place, files, options.reading.column)
    paths = list(map(str, files))
    called = dict(zip(paths, patterns.relative_names(paths), strict=True))
    rows = generated(parquet.stream, files=paths, called=called, column=column)
    return Rows(name, rows, n, parquet.base(place), parquet.other_files(place), files=paths)


def arrow_files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.arrow"))


def of_hub(place: str, options: OpenOptions) -> Rows:
    rows, name = parquet.open_hub(place, options, streaming=True)
    column = parquet.image_column(rows.features or next(iter(rows)), place, options.reading.column)
    split = (rows.info.splits or {}).get(str(rows.split))  # as stated by the dataset card
    return Rows(name, one_column(rows, column), split.num_examples or 0 if split else 0)


def generated(rows: Callable[..., Iterator[dict[str, Any]]], **arguments: Any) -> Any:
    """An IterableDataset of a generator; `datasets` shuffles and shards it by the one list among the `arguments`."""
    return parquet.import_datasets().IterableDataset.from_generator(rows, gen_kwargs=arguments)


def one_column(rows: Any, column: str) -> Any:
    rows = parquet.encoded_column(rows, column)
    return rows if column == "image" else rows.rename_column(column, "image")


@dataclass(frozen=True)
class Row:
    """One row that a stream has read."""

    image: decode.Encoded | str  # or the reason why it cannot be read
    name: str  # "" if it has none


class Stream:
    """A source without random access."""

    provides: frozenset[str] = frozenset()

    def __init__(self, found: Rows, n: int, options: OpenOptions):
        self.name, self.rows, self.folder, self.n = found.name, found.rows, found.folder, n
        self.size = options.size or LARGEST  # a stream cannot be sampled first
        self.channels = options.channels or 3
        self.max_bad, self.range, self.from_files = options.reading.max_bad, options.range, found.files
        self.ledger = Ledger()  # of the current pass; positions follow its order
        self.ledger.other += found.other
        self.ledger.set_size(n, unread=True)
        self.read: dict[int, str] = {}  # names in the last batch
        self.entered: set[str] = set()  # shards whose other members are in the ledger
        self.constant: list[bool] = []  # which of the first SAMPLE images are constant

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, index: Tensor) -> Batch:
        raise UserError(
            f"{self.name} is a stream without random access; write it to disk first with pretask prepare"
        )

    def files(self, index: Tensor) -> list[str]:
        """Names of the images of the last batch; numbers for all others."""
        return [self.read.get(i) or f"row {i}" for i in index.tolist()]

    def readable(self, index: Tensor) -> Tensor:
        return self.ledger.readable(index)

    def fingerprint(self) -> Fingerprint:
        """Of its files; of a hub dataset only what its card states."""
        if self.from_files:
            files = Texts.of(map(os.path.abspath, self.from_files))
            return fingerprint.of_items(Files("", files), {})
        return fingerprint.of_card(self.name, self.rows.info)

    def once(self, shard: tuple[int, int] = (0, 1), seed: int | None = None) -> Iterator[Row]:
        """The rows of one process, each once; shuffled within a buffer of BUFFER images if a seed is given."""
        from datasets.distributed import split_dataset_by_node

        rows = self.rows if seed is None else self.rows.shuffle(seed=seed, buffer_size=BUFFER)
        for row in split_dataset_by_node(rows, *shard):
            self.enter(row.get("other", ()))
            if "why" in row:
                yield Row(row["why"], row["name"])
            elif "image" in row:
                yield Row(self.encoded(row["image"]), row.get("name", ""))

    def encoded(self, cell: Any) -> decode.Encoded | str:
        try:
            return parquet.encoded(cell, self.folder)
        except decode.Unreadable as error:
            return str(error)

    def enter(self, other: Sequence[tuple[str, Counter[str]]]) -> None:
        """Count the other members of shards when a shard is first read."""
        for shard, counts in other:
            if shard not in self.entered:
                self.entered.add(shard)
                self.ledger.other.update(counts)
                self.ledger.found += counts.total()

    def epoch(
        self, batch: int, first: int = 0, shard: tuple[int, int] = (0, 1), seed: int | None = None
    ) -> Iterator[Batch]:
        """This process's rows of len // batch batches; starts over if its own shards have fewer rows."""
        rank, world = shard
        own = batch // world
        self.ledger.clear(self.n)
        endless = chain.from_iterable(self.once(shard, seed) for _ in repeat(None))
        rows = islice(endless, first * own, None)
        with ThreadPoolExecutor(cores()) as threads:
            for k in range(first, len(self) // batch):
                index = (k * batch + rank * own + torch.arange(own)) % len(self)
                yield Batch(index, self.filled(list(islice(rows, own)), index, threads))

    def whole(self, batch: int, most: int | None = None) -> Iterator[Batch]:
        """All rows once, in order, up to the end or the first `most`. Unreadable images are black and go into the ledger."""
        self.ledger.clear(self.n)
        rest, start = islice(self.once(), most), 0
        black = np.zeros((self.channels, self.size, self.size), np.uint8)
        with ThreadPoolExecutor(cores()) as threads:
            while rows := list(islice(rest, batch)):
                index = start + torch.arange(len(rows))
                images = self.decoded(rows, index, threads)
                start += len(rows)
                yield Batch(
                    index, torch.from_numpy(np.stack([black if isinstance(x, str) else x for x in images]))
                )
        self.ledger.found = start + self.ledger.other.total()

    def decoded(self, rows: list[Row], index: Tensor, threads: ThreadPoolExecutor) -> list[np.ndarray | str]:
        """Each image, or the reason why it cannot be read; both go into the ledger."""

        def one(row: Row) -> np.ndarray | str:
            if isinstance(row.image, str):
                return row.image
            try:
                return decode.canvas(row.image, self.size, self.channels, known=self.range)
            except decode.NoRange as unknown:
                raise UserError(
                    f"{self.name} is a stream, whose range cannot be measured first, and contains {unknown}"
                ) from None
            except decode.Unreadable as error:
                return str(error)

        images = list(threads.map(one, rows))
        self.read = {i: row.name for i, row in zip(index.tolist(), rows, strict=True)}
        self.note(index, images)
        return images

    def note(self, index: Tensor, images: Sequence[np.ndarray | str]) -> None:
        """Record which images of a batch were read."""
        if len(self.constant) < SAMPLE:
            self.constant += [is_constant(x) for x in images if not isinstance(x, str)]
            if len(self.constant) >= min(SAMPLE, self.n):
                warn_constant(self.name, self.constant, self.range)
        for i, name, x in zip(index.tolist(), self.files(index), images, strict=True):
            if isinstance(x, str):
                self.ledger.mark_unreadable(i, name, x)
        self.ledger.mark_read(
            [i for i, x in zip(index.tolist(), images, strict=True) if not isinstance(x, str)]
        )
        self.ledger.check(self.name, self.max_bad)

    def filled(self, rows: list[Row], index: Tensor, threads: ThreadPoolExecutor) -> Tensor:
        """(B, C, size, size); an unreadable image is replaced by the next readable one of the batch."""
        images = self.decoded(rows, index, threads)
        readable = [torch.from_numpy(x.copy()) for x in images if not isinstance(x, str)]
        if not readable:
            why = images[0]
            raise UserError(f"{self.name}: {len(rows)} consecutive images cannot be read ({why})")
        kept = torch.tensor([not isinstance(x, str) for x in images])
        # position of the next readable image
        return torch.stack(readable)[(kept.cumsum(0) - kept.long()) % len(readable)]
