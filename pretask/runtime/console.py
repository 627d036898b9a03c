"""Messages and progress of long work on standard error."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

MINUTE = 60.0
"""seconds between two progress lines where standard error is not a terminal"""


def console(stderr: bool = False) -> Console:
    """A console that prints text literally: names of files and classes may contain brackets and colons."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def say(text: str | Text) -> None:
    """Print a message on standard error, which keeps standard output for results; only the first process prints."""
    from pretask.runtime import distributed  # torch takes seconds to import, and --help prints too

    if distributed.rank() == 0:
        console(stderr=True).print(text, soft_wrap=True)


def busy(what: str) -> AbstractContextManager[object]:
    """Show a spinner while the block runs; if standard error is not a terminal, print one line per minute instead."""
    shown = console(stderr=True)
    return shown.status(what) if shown.is_terminal else reminders(what)


@contextmanager
def reminders(what: str, every: float = MINUTE) -> Iterator[None]:
    """Print a line on standard error every `every` seconds."""
    done, began = threading.Event(), time.monotonic()

    def remind() -> None:
        while not done.wait(every):
            say(f"{what}, for {clock(time.monotonic() - began)} so far")

    thread = threading.Thread(target=remind, name="reminder", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def bar(show: bool) -> Progress:
    """A progress bar on standard error, which keeps standard output for --json; without a terminal, one line per minute."""
    shown = console(stderr=True)
    if show and not shown.is_terminal:
        return PlainBar()
    what = TextColumn("{task.description}", markup=False)
    columns = what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=shown, disable=not show, transient=True)


class PlainBar(Progress):
    """Progress for log files: a line per minute with what is done and the time left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, say: Callable[[str], None] = say):
        super().__init__(disable=True, auto_refresh=False)
        self.clock, self.say = clock, say
        self.began: dict[TaskID, tuple[float, float]] = {}  # each task's start time and progress at that time
        self.last = clock()

    def add_task(self, description: str, *args: Any, **known: Any) -> TaskID:
        task = super().add_task(description, *args, **known)
        self.began[task] = self.clock(), self.tasks[-1].completed
        return task

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        now = self.clock()
        if now - self.last >= MINUTE:
            self.last = now
            self.say(self.line(next(task for task in self.tasks if task.id == task_id), now))

    def line(self, task: Task, now: float) -> str:
        """ "embedding photos: 300 of 1,200 (25 %), 3:00 left" """
        began, before = self.began[task.id]
        if not task.total:
            return f"{task.description}: {task.completed:,.0f} done"
        done = f"{task.description}: {task.completed:,.0f} of {task.total:,.0f} ({task.percentage:.0f} %)"
        if task.completed == before:
            return done
        left = (now - began) / (task.completed - before) * (task.total - task.completed)
        return f"{done}, {clock(left)} left"


def clock(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def about(seconds: float) -> str:
    """750 -> "about 12 minutes"."""
    for unit, size in (("hour", 3600), ("minute", 60)):
        if seconds >= (1.5 if unit == "hour" else 0.75) * size:
            count = (
                f"{seconds / size:.2g}" if seconds < 10 * size and unit == "hour" else f"{seconds / size:.0f}"
            )
            return f"about {count} {unit}{'s' * (count != '1')}"
    return "less than a minute"
