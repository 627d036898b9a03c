"""One epoch of batches: sliced from memory, or decoded ahead of time by worker processes, behind one iterator."""

import math
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pretask.sources.arrays import Arrays
from pretask.sources.encoded import Encoded, Reader, cores
from pretask.sources.stream import Stream
from pretask.types import Batch, Source

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

    Of the b rows of a batch, process r of W takes r·b/W … (r+1)·b/W. The last batch may be shorter. `share` is
    (r, W). A stream knows no order (None): see `Stream.rows`. `workers` are processes that decode (none: one per
    core but one, at most eight).
    """
    source = getattr(source, "images", source)  # labels play no part here
    if isinstance(source, Stream):
        return ahead(source.epoch(batch, first, share))
    assert order is not None, "only a stream is read without an order"
    rows = [own(rows, share) for rows in order[first * batch :].split(batch)]
    if isinstance(source, Encoded):
        return ahead(decoded(source, rows, workers or max(1, min(cores() - 1, 8))))
    ready = (source.__getitems__(index) for index in rows)
    in_memory = isinstance(source, Arrays) and not source.mapped
    return map(pinned, ready) if in_memory else ahead(ready)


def own(rows: Tensor, share: tuple[int, int]) -> Tensor:
    rank, world = share
    return rows[rank * len(rows) // world : (rank + 1) * len(rows) // world]


# ---- decoding in worker processes


class Chunks:
    """What the workers are to decode next; one object for all epochs, so that the workers stay alive."""

    todo: list[list[int]] = []

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

    def __getitems__(self, index: list[int]) -> tuple[Tensor, dict[str, str]]:
        return self.reader(index)


_workers: "WeakKeyDictionary[Encoded, tuple[int, DataLoader[Any], Chunks]]" = WeakKeyDictionary()


def decoded(source: Encoded, rows: list[Tensor], workers: int) -> Iterator[Batch]:
    """Batches whose chunks are decoded by `workers` processes, which live as long as the source."""
    if source not in _workers or _workers[source][0] != workers:
        _workers[source] = (workers, *started(source, workers, len(rows[0])))
    _, loader, chunks = _workers[source]
    parts = [list(index.split(CHUNK)) for index in rows]
    chunks.todo = [chunk.tolist() for batch in parts for chunk in batch]
    results = iter(loader)
    for index, batch in zip(rows, parts, strict=True):
        images = []
        for _ in batch:
            image, bad = next(results)
            source.note(bad, len(image))
            images.append(image)
        yield Batch(index, torch.cat(images))


def started(source: Encoded, workers: int, batch: int) -> tuple[DataLoader[Any], Chunks]:
    chunks = Chunks()
    loader = DataLoader(
        Decoding(source.reader),  # type: ignore[arg-type]
        batch_sampler=chunks,
        collate_fn=lambda part: part,
        num_workers=workers,
        prefetch_factor=max(2, math.ceil(AHEAD * batch / CHUNK / workers)),
        persistent_workers=True,
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )
    return loader, chunks


# ---- making ready ahead of time


def pinned(batch: Batch) -> Batch:
    """In memory from which a CUDA device can copy while it computes."""
    if not torch.cuda.is_available():
        return batch
    return Batch(batch.index, batch.image.pin_memory(), {k: v.pin_memory() for k, v in batch.aux.items()})


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, made by a thread that is up to AHEAD of them in front; its errors are raised here."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                if stop.is_set():
                    return
                put(pinned(batch))
            put(None)
        except BaseException as error:  # whatever it is, it belongs to the thread that asked
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
