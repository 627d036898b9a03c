"""Within the block the process keeps freed memory, and returns it afterwards."""

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
from pretask.runtime import malloc

def held():
    "Resident memory in megabytes."
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1]) >> 20

before = held()
try:
    with malloc.keep_freed_memory():
        bytearray({MB} << 20)
        within = held()
        raise ZeroDivisionError
except ZeroDivisionError:
    after = held()
large, above = bytearray({MB} << 20), bytearray(1 << 16)
del large
print(json.dumps([within - before, after - before, held() - before]))
"""


def test_freed_memory_is_kept_within_the_block_and_returned_after_it():
    """In a separate process with an empty heap, and with a block that ends with an error. Later arrays are mapped again:
    one is returned although another lies above it."""
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    within, after, later = json.loads(output)
    assert within > 0.9 * MB and after < 0.1 * MB and later < 0.1 * MB
