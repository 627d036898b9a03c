"""Signals that stop a run or save it at the end of the current step, so that no work is lost.

SIGTERM, which job schedulers send, saves and exits with code 143. Ctrl-C saves and exits with code 130; a second Ctrl-C
exits at once. SIGUSR1, which Slurm can send minutes before a job ends (`--signal=USR1@300`), saves and continues.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NOTHING, SAVE, INTERRUPT, TERMINATE = range(4)
"""requests, in increasing urgency"""
CODES = {INTERRUPT: 130, TERMINATE: 143}
"""exit codes, as shells count them"""


class SignalRequests:
    """Keeps the most urgent request."""

    def __init__(self):
        self.pending = NOTHING

    def handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.pending == INTERRUPT:
                raise KeyboardInterrupt
            os.write(2, b"\npretask: saving after this step; press Ctrl-C again to exit immediately\n")
        kinds = {signal.SIGINT: INTERRUPT, signal.SIGTERM: TERMINATE}
        self.pending = max(self.pending, kinds.get(signal.Signals(number), SAVE))

    def clear(self) -> None:
        """Drop a request to save, after saving."""
        self.pending = NOTHING if self.pending == SAVE else self.pending


@contextmanager
def catch_signals() -> Iterator[SignalRequests]:
    """Within the block, signals wait for the end of a step. Outside of the main thread no signal is caught."""
    requests, before = SignalRequests(), {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, requests.handle) for number in handled_signals()}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def handled_signals() -> list[int]:
    also = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []  # Windows has none
    return [signal.SIGINT, signal.SIGTERM, *also]


def ignore_signals(*_: Any) -> None:
    """For worker processes, which the run stops itself: Ctrl-C in a terminal reaches them too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@contextmanager
def keep_sigchld_handler() -> Iterator[None]:
    """Within the block a DataLoader may start its workers; its SIGCHLD handler is then removed.

    That handler raises in the middle of whatever the main thread does when a worker dies. The DataLoader also notices a
    dead worker when it next waits for it.
    """
    main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    before = signal.getsignal(signal.SIGCHLD) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
