"""One epoch of batches behind one iterator: sliced from memory, or decoded ahead of time by processes."""

import math
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pretask.sources.arrays import Arrays
from pretask.sources.encoded import Encoded, Reader, cores
from pretask.sources.stream import Stream
from pretask.types import Batch, Source, UserError

CHUNK = 64
"""images a worker decodes in a row; smaller than a batch, so that all workers begin with the first batch"""
AHEAD = 2
"""batches made ready while the current one trains"""


def epoch(
    source: Source,
    order: Tensor | None,
    batch: int,
    first: int = 0,
    share: tuple[int, int] = (0, 1),
    workers: int | None = None,
) -> Iterator[Batch]:
    """This process's rows of the global batches order[k·batch : (k+1)·batch], for k = first, first+1, …

    Of the b rows of a batch, process r of W takes r·b/W … (r+1)·b/W; `share` is (r, W). The last batch may be
    shorter. A stream has its own order (None). `workers` are processes that decode; none: one per core but
    one, at most eight. A source that decodes serves one epoch at a time: a new one ends the one before.
    """
    source = getattr(source, "images", source)  # labels play no part here
    if isinstance(source, Stream):
        return Ahead(source.epoch(batch, first, share))
    assert order is not None, "only a stream is read without an order"
    rows = [own(rows, share) for rows in order[first * batch :].split(batch)]
    if isinstance(source, Encoded):
        return decoded(source, rows, workers or max(1, min(cores() - 1, 8)))
    ready = (source.__getitems__(index) for index in rows)
    in_memory = isinstance(source, Arrays) and not source.mapped
    return map(pinned, ready) if in_memory else Ahead(ready)


def own(rows: Tensor, share: tuple[int, int]) -> Tensor:
    rank, world = share
    return rows[rank * len(rows) // world : (rank + 1) * len(rows) // world]


# ---- decoding in worker processes


class Chunks:
    """What the workers are to decode next; one object for all epochs, so that the workers stay alive."""

    def __init__(self):
        self.todo: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.todo)

    def __len__(self) -> int:
        return len(self.todo)


class Decoding:
    """The reader of a source, as DataLoader wants it."""

    def __init__(self, reader: Reader):
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader.items)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, dict[str, str]] | UserError:
        try:
            return self.reader(index)
        except UserError as error:  # raised, it would come back wrapped in the worker's traceback
            return error


@dataclass
class Team:
    """The workers of one source, kept for all its epochs."""

    workers: int
    chunks: Chunks
    loader: DataLoader[Any]
    busy: "ReferenceType[Ahead] | None" = None  # the epoch they work for


_teams: WeakKeyDictionary[Encoded, Team] = WeakKeyDictionary()


def decoded(source: Encoded, rows: list[Tensor], workers: int) -> "Ahead":
    """Batches whose chunks are decoded by `workers` processes."""
    if source not in _teams or _teams[source].workers != workers:
        _teams[source] = team(source, workers, max(map(len, rows), default=1))
    crew = _teams[source]
    if crew.busy is not None and (former := crew.busy()) is not None:
        former.close()
    parts = [list(index.split(CHUNK)) for index in rows]
    crew.chunks.todo = [chunk.tolist() for batch in parts for chunk in batch]
    results = iter(crew.loader)  # starts the workers, in the thread that asks
    made = Ahead(joined(source, rows, parts, results))
    crew.busy = ref(made)
    return made


def joined(
    source: Encoded, rows: list[Tensor], parts: list[list[Tensor]], results: Iterator[Any]
) -> Iterator[Batch]:
    """The workers' chunks, put together to batches."""
    for index, batch in zip(rows, parts, strict=True):
        images = []
        for _ in batch:
            result = next(results)
            if isinstance(result, UserError):
                raise result
            image, bad = result
            source.note(bad, len(image))
            images.append(image)
        yield Batch(index, torch.cat(images))


def team(source: Encoded, workers: int, batch: int) -> Team:
    chunks = Chunks()
    loader = DataLoader(
        Decoding(source.reader),  # type: ignore[arg-type]
        batch_sampler=chunks,  # type: ignore[arg-type]
        collate_fn=same,
        num_workers=workers,
        prefetch_factor=max(2, math.ceil(AHEAD * batch / CHUNK / workers)),
        persistent_workers=True,
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )
    return Team(workers, chunks, loader)


def same(part: Any) -> Any:
    """In place of DataLoader's own collation: a chunk comes out of its worker as it is."""
    return part


# ---- making ready ahead of time


def pinned(batch: Batch) -> Batch:
    """In memory from which a CUDA device can copy while it computes."""
    if not torch.cuda.is_available():
        return batch
    return Batch(batch.index, batch.image.pin_memory(), {k: v.pin_memory() for k, v in batch.aux.items()})


class Ahead:
    """The same batches, made by a thread that is up to AHEAD of them in front; its errors are raised here."""

    def __init__(self, batches: Iterator[Batch]):
        self.ready: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=work, args=(batches, self.ready, self.stop), daemon=True)
        self.thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        item = None if self.stop.is_set() else self.ready.get()
        if isinstance(item, Batch):
            return item
        self.close()
        if item is None:
            raise StopIteration
        raise item

    def close(self) -> None:
        self.stop.set()
        if self.thread is not threading.current_thread():
            self.thread.join()

    __del__ = close


def work(batches: Iterator[Batch], ready: "queue.Queue[Any]", stop: threading.Event) -> None:
    """What the thread does; it does not know its Ahead, which may go away."""

    def put(item: Batch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    try:
        for batch in batches:
            if stop.is_set():
                return
            put(pinned(batch))
        put(None)
    except BaseException as error:  # whatever it is, it belongs to the thread that asked
        put(error)
