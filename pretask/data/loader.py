"""One epoch of batches behind one iterator: sliced from memory, or decoded ahead of time by processes."""

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
from pretask.data.decode_workers import Team
from pretask.data.encoded import Encoded, cores
from pretask.data.stream import Stream
from pretask.rng import Rng
from pretask.types import Batch, Source

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

    Of the b rows of a batch, process r of W takes r·b/W … (r+1)·b/W; `share` is (r, W). The last batch may
    have fewer. A stream takes from `order` no more than a seed and a length (None: all of it, as stored).
    `workers` are processes that decode; none: one per core but one, at most eight. A source that decodes
    serves one epoch at a time: a new one ends the one before.
    """
    source = getattr(source, "images", source)  # labels play no part here
    if isinstance(source, Stream):
        return Ahead(streamed(source, order, batch, first, share))
    assert order is not None, "only a stream is read without an order"
    rows = [own(order[at : at + batch], share) for at in range(first * batch, len(order), batch)]
    if isinstance(source, Encoded):
        return decoded(source, rows, workers or max(1, min(cores() - 1, 8)))
    ready = (source.__getitems__(index) for index in rows)
    in_memory = isinstance(source, Arrays) and not source.mapped
    return map(pinned, ready) if in_memory else Ahead(ready)


def sample(source: Source, n: int, rng: Rng | None = None) -> Batch:
    """n images from all over a source: at even distances, or drawn by `rng`; of a stream its first n."""
    source, n = getattr(source, "images", source), min(n, len(source))
    if isinstance(source, Stream):
        return next(source.epoch(n))
    index = torch.linspace(0, len(source) - 1, n).round().long()
    return source.__getitems__(index if rng is None else rng.permutation(len(source))[:n].cpu())


def own(rows: Tensor, share: tuple[int, int]) -> Tensor:
    rank, world = share
    return rows[rank * len(rows) // world : (rank + 1) * len(rows) // world]


def streamed(
    source: Stream, order: Tensor | None, batch: int, first: int, share: tuple[int, int]
) -> Iterator[Batch]:
    """In an order of its own for every `order`, and as many batches as that has."""
    if order is None:
        return source.epoch(batch, first, share)
    seed = int((order[:1024] * torch.arange(1, len(order[:1024]) + 1)).sum())
    return islice(source.epoch(batch, first, share, seed), max(0, len(order) // batch - first))


_teams: WeakKeyDictionary[Encoded, Team] = WeakKeyDictionary()
_epochs: "WeakValueDictionary[int, Ahead]" = WeakValueDictionary()  # id of a team -> what it works on


def decoded(source: Encoded, rows: list[Tensor], workers: int) -> "Ahead":
    """Batches that the source's workers decode."""
    if source not in _teams or _teams[source].workers != workers:
        _teams[source] = Team(source.reader, workers, max(map(len, rows), default=1))
    team = _teams[source]
    if (former := _epochs.get(id(team))) is not None:
        former.close()
    _epochs[id(team)] = made = Ahead(team.batches(source, rows))
    return made


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
        self.thread = threading.Thread(
            target=work, args=(batches, self.ready, self.stop), name="ahead", daemon=True
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
        if not ending():  # at the end of the interpreter no thread can be waited for
            self.close()


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
