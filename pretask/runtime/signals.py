"""What a run does when it is asked to stop or to save: at the end of its step, so that nothing is lost.

SIGTERM, as a queue sends it, saves and ends the run with exit code 143; Ctrl-C with 130, and a second one ends it at once.
SIGUSR1, as Slurm sends it some minutes before the end (`--signal=USR1@300`), saves and goes on.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NOTHING, SAVE, INTERRUPT, TERMINATE = range(4)
"""what is asked for, the more urgent the larger"""
CODES = {INTERRUPT: 130, TERMINATE: 143}
"""of a process that ended for it, as shells count"""


class Ears:
    """Remembers the most urgent thing that was asked for."""

    def __init__(self):
        self.asked = NOTHING

    def on(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.asked == INTERRUPT:
                raise KeyboardInterrupt
            os.write(2, b"\npretask: saving after this step; Ctrl-C once more ends at once\n")
        kinds = {signal.SIGINT: INTERRUPT, signal.SIGTERM: TERMINATE}
        self.asked = max(self.asked, kinds.get(signal.Signals(number), SAVE))

    def done(self) -> None:
        """What was asked for is saved."""
        self.asked = NOTHING if self.asked == SAVE else self.asked


@contextmanager
def heard() -> Iterator[Ears]:
    """In here signals wait for the end of a step. Outside the main thread nothing is heard."""
    ears, before = Ears(), {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, ears.on) for number in numbers()}
    try:
        yield ears
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def numbers() -> list[int]:
    also = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []  # there is none on Windows
    return [signal.SIGINT, signal.SIGTERM, *also]


def deaf(*_: Any) -> None:
    """For processes that work for a run, which ends them itself: a Ctrl-C in a terminal reaches them as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@contextmanager
def children_unheard() -> Iterator[None]:
    """In here a DataLoader may start its workers. Its own answer to the death of one, an exception in the middle of whatever
    the main thread does, is taken back; it notices as well when it next waits for that one."""
    main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    before = signal.getsignal(signal.SIGCHLD) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
