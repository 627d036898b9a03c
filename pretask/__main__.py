"""python -m pretask"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pretask.cli.main import main

IMPORTED = time.monotonic()
SPINS = 4000
"""number of times that a thread of GNU OpenMP polls the others before it sleeps (default 300,000). If another program uses the
cores, polling takes time from the thread that is waited for, and a step may take a hundred times as long"""


def began() -> float:
    """When this process began, by time.monotonic(): as reported by Linux; on other systems, when this file was imported."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(
            fields[19]
        )  # since the machine was started; field 22 of proc(5), the name before it may have spaces
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return IMPORTED
    return min(IMPORTED, time.monotonic() - age)


def run(arguments: Sequence[str] | None = None) -> None:
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(
            "GOMP_SPINCOUNT", str(SPINS)
        )  # read when torch is loaded, which main has not done yet
    code = main(arguments, began())
    if "torch" in sys.modules:
        from pretask.runtime import distributed

        if distributed.world() > 1:
            # an orderly end would be aborted by threads that are not done with the other processes
            if not code:
                distributed.final_barrier()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
