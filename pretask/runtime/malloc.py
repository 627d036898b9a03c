"""Keep freed memory in the process for the next step.

glibc returns every large array to the system when it is freed and maps the next one page by page. Training on a CPU
frees and allocates the same arrays at every step, which costs up to 10 % of a step and half of the time that making a
puzzle takes. Large arrays of threads other than the main one are still mapped.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # malloc.h


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within the block the process keeps freed memory, and returns it at the end. Does nothing without glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(MMAP_MAX, 0)  # large arrays go to the heap,
    libc.mallopt(TRIM_THRESHOLD, -1)  # which does not shrink
    try:
        yield
    finally:
        libc.mallopt(MMAP_MAX, 65536)
        libc.mallopt(TRIM_THRESHOLD, 128 << 10)
        libc.mallopt(MMAP_THRESHOLD, 32 << 20)
        libc.malloc_trim(0)
