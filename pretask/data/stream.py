"""Images that come one after the other and cannot be addressed: `hf-stream:USER/DATA[:CONFIG][:SPLIT][#N]`.

A local pattern of parquet files or tar shards streams too. Each process reads its own shards (its own rows,
where there are fewer shards than processes), so a batch depends on how many processes there are; a run
repeats exactly on the same number. `len` is what the data states, or the N given after `#`. The
index of an image is its running position in the epoch, not its identity: methods that remember images need
addressable data.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch import Tensor

from pretask.data import decode
from pretask.data import parquet as table
from pretask.data import webdataset as tar
from pretask.data.base import Asked, Opened
from pretask.data.encoded import cores
from pretask.data.ledger import Ledger
from pretask.types import Batch, UserError

BUFFER = 2048
"""encoded images among which a shuffled stream draws the next"""
LARGEST = 160
"""canvas when none is asked for, pixels; a stream cannot be looked over first"""


def understands(spec: str) -> bool:
    return spec.startswith("hf-stream:")


def load(spec: str, asked: Asked) -> Opened:
    if asked.labels == "all":
        raise UserError(f"{spec}: a stream cannot be evaluated on; use hf:… or a prepared store")
    place, _, stated = spec.removeprefix("hf-stream:").partition("#")
    if stated and not stated.isdecimal():
        raise UserError(f"{spec}: expected a number after #, how many images there are")
    rows, name = table.fetched(place, asked, streaming=True)
    column = table.image_column(rows.features or next(iter(rows)), spec)
    n = int(stated) if stated else length(rows, place)
    if not n:
        raise UserError(f"{spec} does not say how many images it has; state it: {spec}#100000")
    rows = table.undecoded(rows, column)
    return Opened(Stream(name, rows, column, n, asked.size or LARGEST, asked.channels or 3, asked.max_bad))


def length(rows: Any, place: str) -> int:
    """Of a split, as its card states it, or counted in local files; 0 where neither can be."""
    split = (rows.info.splits or {}).get(str(rows.split))
    if split and split.num_examples:
        return split.num_examples
    from pyarrow.parquet import ParquetFile

    files = glob.glob(os.path.expanduser(place))
    if place.endswith(".tar"):
        return sum(len(tar.index(file)[0]) for file in files)
    return sum(ParquetFile(file).metadata.num_rows for file in files if file.endswith(".parquet"))


class Stream:
    """A source that is only read from its beginning."""

    provides: frozenset[str] = frozenset()

    def __init__(self, name: str, rows: Any, column: str, n: int, size: int, channels: int, max_bad: float):
        self.name, self.rows, self.column, self.n = name, rows, column, n
        self.size, self.channels, self.max_bad = size, channels, max_bad
        self.ledger = Ledger()  # of the current pass, whose order gives the rows their numbers
        self.ledger.opened(n, unread=True)

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, index: Tensor) -> Batch:
        raise UserError(
            f"{self.name} is a stream and has no positions; write it to disk first with pretask prepare"
        )

    def files(self, index: Tensor) -> list[str]:
        return [f"row {i}" for i in index.tolist()]

    def once(
        self, share: tuple[int, int] = (0, 1), seed: int | None = None
    ) -> Iterator[decode.Encoded | None]:
        """The encoded images of one process, each once; None where a row is empty.

        With a seed they come in an order of its own, drawn within a buffer of BUFFER images.
        """
        from datasets.distributed import split_dataset_by_node

        rows = self.rows if seed is None else self.rows.shuffle(seed=seed, buffer_size=BUFFER)
        for row in split_dataset_by_node(rows, *share):
            try:
                yield table.encoded(row[self.column])
            except decode.Unreadable:
                yield None

    def epoch(
        self, batch: int, first: int = 0, share: tuple[int, int] = (0, 1), seed: int | None = None
    ) -> Iterator[Batch]:
        """This process's rows of len // batch batches; begins anew where its own shards are fewer."""
        rank, world = share
        own = batch // world
        self.ledger.clear(self.n)
        endless = chain.from_iterable(self.once(share, seed) for _ in repeat(None))
        rows = islice(endless, first * own, None)
        with ThreadPoolExecutor(cores()) as threads:
            for k in range(first, len(self) // batch):
                index = (k * batch + rank * own + torch.arange(own)) % len(self)
                yield Batch(index, self.decoded(list(islice(rows, own)), index, threads))

    def note(self, index: Tensor, images: Sequence[Any]) -> None:
        """What became of some rows: an image, or the reason why there is none."""
        bad = {name: x for name, x in zip(self.files(index), images, strict=True) if isinstance(x, str)}
        self.ledger.bad.update(bad)
        self.ledger.see([i for i, x in zip(index.tolist(), images, strict=True) if not isinstance(x, str)])
        self.ledger.check(self.name, self.max_bad)

    def decoded(
        self, rows: list[decode.Encoded | None], index: Tensor, threads: ThreadPoolExecutor
    ) -> Tensor:
        """(B, C, size, size); in place of an unreadable image stands the next readable one of the batch."""

        def one(encoded: decode.Encoded | None) -> Tensor | str:
            if encoded is None:
                return "empty"
            try:
                return torch.from_numpy(decode.canvas(encoded, self.size, self.channels).copy())
            except decode.Unreadable as error:
                return str(error)

        images = list(threads.map(one, rows))
        self.note(index, images)
        readable = [x for x in images if not isinstance(x, str)]
        if not readable:
            why = images[0]
            raise UserError(f"{self.name}: none of {len(rows)} images in a row can be read ({why})")
        kept = torch.tensor([not isinstance(x, str) for x in images])
        place = (kept.cumsum(0) - kept.long()) % len(
            readable
        )  # of a bad image: the first readable one after it
        return torch.stack(readable)[place]
