"""What a person reads: sentences, and of a run that goes on one live line, or plain lines in a log file."""

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pretask.train.health import ADVICE, HEALTHY

KNOWN = {
    "step", "steps", "epoch", "epochs", "loss", "lr", "images_per_s", "waiting", "eta", "state", "since", "knn",
    "lengthened",
}  # fmt: skip
PLAIN_EVERY = 30.0
"""seconds between two lines where no person watches a terminal"""


def console(stderr: bool = False) -> Console:
    """Prints words as they are: names of files and classes have brackets and colons of their own."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def say(text: str | Text) -> None:
    """To a person, on standard error, so that standard output stays clean for results; one process speaks for all."""
    from pretask.runtime import distributed

    if distributed.rank() == 0:
        console(stderr=True).print(text, soft_wrap=True)


def busy(what: str) -> AbstractContextManager[object]:
    """Something moves on a terminal for as long as this goes on."""
    shown = console(stderr=True)
    return shown.status(what) if shown.is_terminal else nullcontext()


class Display:
    """Call it with each row of the journal; use it as a context so that the terminal is left tidy."""

    def __init__(self) -> None:
        self.console = console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.warned = HEALTHY
        self.last = -math.inf

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, row: Mapping[str, Any]) -> None:
        state = row.get("state", HEALTHY)
        if state not in (HEALTHY, self.warned):
            self.console.print(
                Text(state, "bold red").append(f" since step {row['since']}: {ADVICE[state]}", "")
            )
        self.warned = state
        last = row["step"] + 1 == row["steps"]
        if self.live:
            self.live.start()  # with the first row: only one of several processes gets any
            self.live.update(self.panel(row), refresh=True)
        elif last or time.monotonic() - self.last > PLAIN_EVERY:
            self.last = time.monotonic()
            self.console.print("  ".join(self.words(row)), soft_wrap=True)

    def words(self, row: Mapping[str, Any]) -> list[str]:
        parts = [f"{name} {value:.3g}" for name, value in row.items() if name not in KNOWN]
        knn = row.get("knn", math.nan)
        return [
            f"step {row['step'] + 1}/{row['steps']}",
            f"loss {row['loss']:.4f}",
            *parts,
            f"{row['images_per_s']:.0f} images/s",
            f"waiting {row['waiting']:.0%}",
            *([] if math.isnan(knn) else [f"kNN {knn:.1f} %"]),
            row.get("state", HEALTHY),
            f"{clock(row['eta'])} left",
        ]

    def panel(self, row: Mapping[str, Any]) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_row(ProgressBar(total=row["steps"], completed=row["step"] + 1, width=28), *self.words(row))
        return grid


def clock(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
