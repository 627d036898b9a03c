"""Iterates over the batches of an epoch: sliced from memory, or decoded in advance by worker processes."""

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor

from pretask.data.arrays import Arrays
from pretask.data.decode_workers import WorkerPool
from pretask.data.encoded import Encoded, cores
from pretask.data.stream import Stream
from pretask.rng import Rng
from pretask.types import Batch, Source

PREFETCH = 2
"""batches prepared while the current one trains"""


def epoch(
    source: Source,
    order: Tensor | None,
    batch: int,
    first: int = 0,
    shard: tuple[int, int] = (0, 1),
    workers: int | None = None,
) -> Iterator[Batch]:
    """This process's rows of the global batches order[k·batch : (k+1)·batch], for k = first, first+1, …

    Of the b rows of a batch, process r of W gets rows r·b/W … (r+1)·b/W; `shard` is (r, W). The last batch may be
    smaller. A stream uses `order` only for a seed and a length (None: all images, as stored). `workers` is the number
    of decoding processes; None: one less than the number of cores, from 1 to 8. A source with workers serves one epoch
    at a time: starting an epoch ends the previous one.
    """
    source = getattr(source, "images", source)  # drops labels
    if isinstance(source, Stream):
        return Prefetcher(stream_batches(source, order, batch, first, shard))
    assert order is not None, "only a stream can be read without an order"
    rows = [shard_rows(order[at : at + batch], shard) for at in range(first * batch, len(order), batch)]
    if isinstance(source, Encoded):
        return decode_batches(source, rows, workers or max(1, min(cores() - 1, 8)))
    ready = (source.__getitems__(index) for index in rows)
    in_memory = isinstance(source, Arrays) and not source.mapped
    return map(pinned, ready) if in_memory else Prefetcher(ready)


def sample(source: Source, n: int, rng: Rng | None = None) -> Batch:
    """n images of a source: evenly spaced, or drawn at random by `rng`; of a stream the first n."""
    source, n = getattr(source, "images", source), min(n, len(source))
    if isinstance(source, Stream):
        return next(source.epoch(n))
    index = torch.linspace(0, len(source) - 1, n).round().long()
    return source.__getitems__(index if rng is None else rng.permutation(len(source))[:n].cpu())


def shard_rows(rows: Tensor, shard: tuple[int, int]) -> Tensor:
    """(B,) rows of a global batch -> those of process `shard` = (rank, world)."""
    rank, world = shard
    return rows[rank * len(rows) // world : (rank + 1) * len(rows) // world]


def stream_batches(
    source: Stream, order: Tensor | None, batch: int, first: int, shard: tuple[int, int]
) -> Iterator[Batch]:
    """As many batches as `order` has, in an order that the stream derives from it."""
    if order is None:
        return source.epoch(batch, first, shard)
    seed = int((order[:1024] * torch.arange(1, len(order[:1024]) + 1)).sum())
    return islice(source.epoch(batch, first, shard, seed), max(0, len(order) // batch - first))


_pools: WeakKeyDictionary[Encoded, WorkerPool] = WeakKeyDictionary()
_epochs: "WeakValueDictionary[int, Prefetcher]" = WeakValueDictionary()  # id of a pool -> its current epoch


def decode_batches(source: Encoded, rows: list[Tensor], workers: int) -> "Prefetcher":
    """Batches decoded by the worker pool of the source, which is created on first use."""
    if source not in _pools or _pools[source].workers != workers:
        _pools[source] = WorkerPool(source.reader, workers, max(map(len, rows), default=1))
    pool = _pools[source]
    if (previous := _epochs.get(id(pool))) is not None:
        previous.close()
    _epochs[id(pool)] = batches = Prefetcher(pool.batches(source, rows))
    return batches


# ---- prefetching


def pinned(batch: Batch) -> Batch:
    """The batch in pinned memory, from which a CUDA device copies asynchronously."""
    if not torch.cuda.is_available():
        return batch
    return Batch(batch.index, batch.image.pin_memory(), {k: v.pin_memory() for k, v in batch.aux.items()})


class Prefetcher:
    """Iterates over `batches` in a thread, up to PREFETCH of them in advance; errors of the thread are raised here."""

    def __init__(self, batches: Iterator[Batch]):
        self.ready: queue.Queue[Batch | BaseException | None] = queue.Queue(PREFETCH)
        self.stop = threading.Event()
        self.thread = threading.Thread(
            target=work, args=(batches, self.ready, self.stop), name="prefetcher", daemon=True
        )
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

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if not ending():  # threads cannot be joined while the interpreter shuts down
            self.close()


def work(batches: Iterator[Batch], ready: "queue.Queue[Any]", stop: threading.Event) -> None:
    """Body of the thread. It holds no reference to its Prefetcher, so that this can be garbage-collected."""

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
    except BaseException as error:  # of any kind: raised in the consuming thread
        put(error)
