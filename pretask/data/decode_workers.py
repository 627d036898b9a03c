"""Worker processes that decode in advance, for sources too large to keep decoded.

A batch is split into chunks, so that all workers start on the first batch. Workers write pixels directly into a ring
buffer of chunks in shared memory; this process copies each chunk once, into its batch. Only the reasons of unreadable
images pass through a queue.
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
from pretask.runtime.console import say
from pretask.types import Batch, UserError

CHUNK = 64
"""images per chunk"""
PREFETCH = 2
"""chunks decoded in advance, in batches"""
MAX_RESTARTS = 3
"""how often workers are restarted after one was killed"""

Job = tuple[int, list[int]]  # slot in the ring buffer, positions in the source


class WorkerPool:
    """The workers of one source. They live as long as the source and serve one epoch at a time."""

    def __init__(self, reader: Reader, workers: int, batch: int):
        self.reader, self.workers = reader, workers
        self.prefetch = max(2, math.ceil(PREFETCH * batch / CHUNK / workers))
        slots = self.prefetch * workers + 1  # the chunks that DataLoader prefetches, and the one it returns
        shape = slots, CHUNK, reader.planes.count, reader.size, reader.size
        self.ring, self.jobs, self.restarts = shared(shape), Jobs(), 0
        self.loader = self.start()

    def start(self) -> DataLoader[Any]:
        return DataLoader(
            Decoder(self.reader, self.ring),  # type: ignore[arg-type]
            batch_sampler=self.jobs,  # type: ignore[arg-type]
            collate_fn=identity,
            num_workers=self.workers,
            prefetch_factor=self.prefetch,
            persistent_workers=True,
            worker_init_fn=signals.ignore_signals,
            multiprocessing_context="fork" if sys.platform == "linux" else None,
        )

    def batches(self, source: Encoded, rows: list[Tensor]) -> Iterator[Batch]:
        """Start decoding the batches of positions `rows`. Unreadable images are reported to `source.note`."""
        chunks = [chunk.tolist() for index in rows for chunk in index.split(CHUNK)]
        self.jobs.fill(chunks, len(self.ring))
        with signals.keep_sigchld_handler():
            results = iter(self.loader)  # forks here, in the calling thread
        return self.assemble(source, rows, self.results(results, chunks))

    def assemble(self, source: Encoded, rows: list[Tensor], results: Iterator[Any]) -> Iterator[Batch]:
        """Copy decoded chunks into batches."""
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
    ) -> Iterator[tuple[int, list[int], dict[int, str]]]:
        """Results of the chunks in order. If a worker was killed, restarted workers continue with the next chunk."""
        for done in range(len(chunks)):
            while True:
                try:
                    result = next(results)
                    break
                except (
                    RuntimeError
                ) as error:  # raised by DataLoader a few seconds after the worker was killed
                    results = self.restart(results, chunks[done:], error)
            if isinstance(result, UserError):
                raise result
            yield result

    def restart(self, results: Any, chunks: list[list[int]], error: RuntimeError) -> Iterator[Any]:
        self.restarts += 1
        if self.restarts > MAX_RESTARTS:
            raise UserError(
                f"decoding workers were killed {self.restarts} times, probably out of memory "
                f"({decode.reason(error)}); use fewer --workers or a smaller --batch"
            ) from None
        say("a decoding worker was killed, probably out of memory; restarting the workers")
        results._shutdown_workers()  # the others would keep writing to the ring buffer
        self.jobs.fill(chunks, len(self.ring))
        self.loader = self.start()
        return iter(self.loader)


class Jobs:
    """Chunks to decode in this epoch; one object for all epochs, since DataLoader keeps it."""

    def __init__(self):
        self.items: list[Job] = []

    def fill(self, chunks: list[list[int]], slots: int) -> None:
        self.items = [(k % slots, chunk) for k, chunk in enumerate(chunks)]

    def __iter__(self) -> Iterator[Job]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Decoder:
    """What a worker runs, in the form of a dataset for DataLoader."""

    def __init__(self, reader: Reader, ring: Tensor):
        self.reader, self.ring = reader, ring

    def __len__(self) -> int:
        return len(self.reader.items)

    def __getitems__(self, job: Job) -> tuple[int, list[int], dict[int, str]] | UserError:
        slot, index = job
        try:
            return slot, *self.reader.fill(self.ring[slot, : len(index)].numpy(), index)
        except UserError as error:  # if raised, it would arrive wrapped in the worker's traceback
            return error


def identity(part: Any) -> Any:
    """Replaces DataLoader's collation."""
    return part


def shared(shape: tuple[int, ...]) -> Tensor:
    """uint8 memory shared with the workers; on Linux not in /dev/shm, which is small in containers."""
    if sys.platform == "linux":
        return torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)
    return torch.zeros(shape, dtype=torch.uint8).share_memory_()
