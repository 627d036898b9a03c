"""Progress display of a run: a live line on a terminal, or plain lines in a log file."""

import math
import time
from collections.abc import Mapping
from typing import Any

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pretask.runtime.console import clock, console
from pretask.train.health import ADVICE, HEALTHY

FIXED = {
    "step", "steps", "epoch", "epochs", "loss", "lr", "images_per_s", "data_wait", "eta", "state", "since", "knn",
    "lengthened",
}  # fmt: skip
"""entries of a row with a fixed place on the line; all others are parts of the loss"""
PLAIN_EVERY = 30.0
"""seconds between two lines if standard error is not a terminal"""


class Display:
    """A context manager, which restores the terminal at the end. Call it with each row of the log."""

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
            self.live.start()  # at the first row, since only one of several processes gets rows
            self.live.update(self.panel(row), refresh=True)
        elif last or time.monotonic() - self.last > PLAIN_EVERY:
            self.last = time.monotonic()
            self.console.print("  ".join(self.columns(row)), soft_wrap=True)

    def columns(self, row: Mapping[str, Any]) -> list[str]:
        parts = [f"{name} {value:.3g}" for name, value in row.items() if name not in FIXED]
        knn = row.get("knn", math.nan)
        return [
            f"step {row['step'] + 1}/{row['steps']}",
            f"loss {row['loss']:.4f}",
            *parts,
            f"{row['images_per_s']:.0f} images/s",
            f"data wait {row['data_wait']:.0%}",
            *([] if math.isnan(knn) else [f"kNN {knn:.1f} %"]),
            row.get("state", HEALTHY),
            f"{clock(row['eta'])} left",
        ]

    def panel(self, row: Mapping[str, Any]) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_row(ProgressBar(total=row["steps"], completed=row["step"] + 1, width=28), *self.columns(row))
        return grid
