"""Processes that decode ahead of time, for sources too large to be kept decoded.

A batch is cut into chunks, so that all workers begin with the first batch. They write pixels straight into a
ring of chunks in memory shared with this process, which copies each once, into its batch; only what was
unreadable travels through a queue.
"""

import math
import mmap
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pretask.data import decode
from pretask.data.encoded import Encoded, Reader
from pretask.runtime import signals
from pretask.train.progress import say
from pretask.types import Batch, UserError

CHUNK = 64
"""images that a worker decodes in a row"""
AHEAD = 2
"""batches worth of chunks that are decoded before they are asked for"""
TAKEOVERS = 3
"""times that new workers go on where one was killed"""

Todo = tuple[int, list[int]]  # place in the ring, positions in the source


class Team:
    """The workers of one source; they live as long as it does and do one epoch at a time."""

    def __init__(self, reader: Reader, workers: int, batch: int):
        self.reader, self.workers = reader, workers
        self.ahead = max(2, math.ceil(AHEAD * batch / CHUNK / workers))
        slots = self.ahead * workers + 1  # the loader asks for so many chunks beyond the one it hands out
        shape = slots, CHUNK, reader.planes.count, reader.size, reader.size
        self.ring, self.todo, self.losses = shared(shape), Chunks(), 0
        self.loader = self.hired()

    def hired(self) -> DataLoader[Any]:
        return DataLoader(
            Decoding(self.reader, self.ring),  # type: ignore[arg-type]
            batch_sampler=self.todo,  # type: ignore[arg-type]
            collate_fn=same,
            num_workers=self.workers,
            prefetch_factor=self.ahead,
            persistent_workers=True,
            worker_init_fn=signals.deaf,
            multiprocessing_context="fork" if sys.platform == "linux" else None,
        )

    def batches(self, source: Encoded, rows: list[Tensor]) -> Iterator[Batch]:
        """Start on the batches of positions `rows`; `source` hears what was unreadable."""
        chunks = [chunk.tolist() for index in rows for chunk in index.split(CHUNK)]
        self.todo.fill(chunks, len(self.ring))
        with signals.children_unheard():
            results = iter(self.loader)  # forks here, in the thread that asks
        return self.joined(source, rows, self.results(results, chunks))

    def joined(self, source: Encoded, rows: list[Tensor], results: Iterator[Any]) -> Iterator[Batch]:
        for index in rows:
            shape = len(index), *self.ring.shape[2:]
            image = torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            read: list[int] = []
            for part in image.split(CHUNK):
                slot, some, bad = next(results)
                part.copy_(self.ring[slot, : len(part)])
                read += some
                source.note(bad)
            yield source.batch(index, image, read)

    def results(
        self, results: Iterator[Any], chunks: list[list[int]]
    ) -> Iterator[tuple[int, list[int], dict[str, str]]]:
        """Chunk after chunk; where a worker was killed, new ones go on with the chunk that is wanted next."""
        for done in range(len(chunks)):
            while True:
                try:
                    result = next(results)
                    break
                except RuntimeError as lost:  # DataLoader's, a few seconds after the fact
                    results = self.taken_over(results, chunks[done:], lost)
            if isinstance(result, UserError):
                raise result
            yield result

    def taken_over(self, results: Any, chunks: list[list[int]], lost: RuntimeError) -> Iterator[Any]:
        self.losses += 1
        if self.losses > TAKEOVERS:
            raise UserError(
                f"processes that decode images were killed {self.losses} times, most likely for lack of memory "
                f"({decode.reason(lost)}); give fewer --workers or a smaller --batch"
            ) from None
        say(
            "a process that decodes images was killed, most likely for lack of memory; another one takes over"
        )
        results._shutdown_workers()  # the others would go on writing to the ring
        self.todo.fill(chunks, len(self.ring))
        self.loader = self.hired()
        return iter(self.loader)


class Chunks:
    """What is to be decoded in this epoch; one object for all epochs, since DataLoader keeps it."""

    def __init__(self):
        self.items: list[Todo] = []

    def fill(self, chunks: list[list[int]], slots: int) -> None:
        self.items = [(k % slots, chunk) for k, chunk in enumerate(chunks)]

    def __iter__(self) -> Iterator[Todo]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Decoding:
    """What a worker does; the shape of it is DataLoader's."""

    def __init__(self, reader: Reader, ring: Tensor):
        self.reader, self.ring = reader, ring

    def __len__(self) -> int:
        return len(self.reader.items)

    def __getitems__(self, todo: Todo) -> tuple[int, list[int], dict[str, str]] | UserError:
        slot, index = todo
        try:
            return slot, *self.reader.fill(self.ring[slot, : len(index)].numpy(), index)
        except UserError as error:  # raised, it would come back wrapped in the worker's traceback
            return error


def same(part: Any) -> Any:
    """In place of DataLoader's own collation."""
    return part


def shared(shape: tuple[int, ...]) -> Tensor:
    """Memory that parent and workers share; where it can be, not in /dev/shm, which containers keep small."""
    if sys.platform == "linux":
        return torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)
    return torch.zeros(shape, dtype=torch.uint8).share_memory_()
