"""Memory that a process has freed, kept for its next step.

glibc gives every large array back to the system when it is freed and asks for the next one page by page. Training on
a CPU frees and asks for the same arrays at every step, which costs up to a tenth of its time and half of a puzzle's.
Large arrays of other threads than the main one are mapped as before.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # malloc.h


@contextmanager
def kept() -> Iterator[None]:
    """Within the block the process keeps what it frees, and gives it back at the end; nothing changes without glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(MMAP_MAX, 0)  # arrays lie in the heap,
    libc.mallopt(TRIM_THRESHOLD, -1)  # which does not shrink
    try:
        yield
    finally:
        libc.mallopt(MMAP_MAX, 65536)
        libc.mallopt(TRIM_THRESHOLD, 128 << 10)
        libc.mallopt(MMAP_THRESHOLD, 32 << 20)
        libc.malloc_trim(0)
