"""What is freed stays with the process within the block, and is the system's after it."""

import ctypes
import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator"
)

MB = 256
SCRIPT = f"""
import json
from pathlib import Path
from pretask import memory

def held():
    "Megabytes that the process has."
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1]) >> 20

before = held()
try:
    with memory.kept():
        bytearray({MB} << 20)
        within = held()
        raise ZeroDivisionError
except ZeroDivisionError:
    after = held()
large, above = bytearray({MB} << 20), bytearray(1 << 16)
del large
print(json.dumps([within - before, after - before, held() - before]))
"""


def test_memory_is_kept_within_the_block_and_given_back_after_it():
    """In a process of its own, whose heap nothing else has filled; the block ends by an error. Later arrays are mapped
    again: one is given back although another lies above it."""
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    within, after, later = json.loads(told)
    assert within > 0.9 * MB and after < 0.1 * MB and later < 0.1 * MB
