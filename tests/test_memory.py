"""What is freed stays with the process within the block, and is the system's after it."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from pretask import memory

BYTES = 256 << 20

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator"
)


def held() -> int:
    """Bytes of memory that the process has after it made a large array and freed it."""
    torch.empty(BYTES, dtype=torch.uint8).fill_(1)
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def test_memory_is_kept_within_the_block_and_given_back_after_it():
    before = held()
    with memory.kept():
        assert held() > before + BYTES / 2
    assert held() < before + BYTES / 2


def test_an_error_ends_the_block_as_well():
    before = held()
    with pytest.raises(ZeroDivisionError), memory.kept():
        raise ZeroDivisionError
    assert held() < before + BYTES / 2
