"""Logging of a run: rows of metrics, the collapse monitor, and rows for the progress display."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pretask.runtime import distributed, files
from pretask.train import checkpoint, run
from pretask.train.health import ADVICE, HEALTHY, NONFINITE
from pretask.train.monitor import CollapseMonitor
from pretask.train.pacing import Pace
from pretask.train.plan import Plan
from pretask.types import Progress, UserError

ROWS = 500
"""approximate number of rows in the log of a run"""

T = TypeVar("T")
OnLog = Callable[[Mapping[str, Any]], None]


class RunLogger:
    """Writes rows to log.jsonl, each a mean over processes and the steps since the last row, and runs the monitor.

    `on_log` receives every row as it is written, with further entries for a display. Only the first process writes.
    All processes enter `summon_full_params` before the monitor uses the encoder.
    """

    def __init__(
        self,
        folder: Path,
        batch: int,
        writes: bool,
        monitor: CollapseMonitor | None,
        on_log: OnLog | None = None,
        summon_full_params: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self.folder, self.batch, self.writes = folder, batch, writes
        self.summon_full_params = summon_full_params
        self.monitor, self.on_log = monitor, (on_log if writes else None) or (lambda row: None)
        self.losses: list[Tensor] = []
        self.parts: list[Mapping[str, Tensor]] = []
        self.data_wait = 0.0

    def start(self, progress: Progress, pace: Pace) -> None:
        """Remove rows of this step and later, left by an interrupted run, and check the features for the first time.

        `pace` estimates the remaining time for the display.
        """
        if self.writes:
            files.rewind_rows(self.folder / run.LOG, progress.step)
            files.rewind_rows(self.folder / run.MONITOR, progress.step)
        with self.summon_full_params():
            if self.monitor:
                self.monitor.check(progress, now=True)
        self.pace, self.since = pace, time.perf_counter()

    def time_data_wait(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the same items and measure the time spent waiting for them."""
        items = iter(items)
        while True:
            began = time.perf_counter()
            item = next(items, None)
            self.data_wait += time.perf_counter() - began
            if item is None:
                return
            yield item

    @property
    def checking(self) -> float:
        """Seconds of a full check by the monitor."""
        return sum(self.monitor.cost.values()) if self.monitor else 0.0

    def log_step(
        self, progress: Progress, plan: Plan, loss: Tensor, parts: Mapping[str, Tensor], lr: float
    ) -> bool:
        """Record one step. True if a row was written, in which case all its losses are finite."""
        self.losses.append(loss)
        self.parts.append(parts)
        last = progress.step == progress.steps - 1
        if len(self.losses) < progress.steps // ROWS and not last:
            return False
        losses, now = distributed.mean(torch.stack(self.losses)).tolist(), time.perf_counter()
        row = {
            "step": progress.step,
            "epoch": progress.epoch,
            "loss": sum(losses) / len(losses),
            "lr": lr,
            "images_per_s": len(losses) * self.batch / (now - self.since),
            "data_wait": self.data_wait / (now - self.since),
        }
        if progress.lengthened:
            row["lengthened"] = progress.lengthened
        for name in parts:
            row[name] = distributed.mean(torch.stack([p[name] for p in self.parts])).mean().item()
        first = progress.step + 1 - len(losses)
        self.losses.clear()
        self.parts.clear()
        self.data_wait, self.since = 0.0, now
        if self.writes:
            files.append_row(self.folder / run.LOG, row)
        self.stop_if_nonfinite(first, losses)
        with self.summon_full_params():
            self.check_features(progress, row, last)
        left = self.pace.eta(plan, progress.step + 1)
        self.on_log({**row, "steps": progress.steps, "epochs": progress.epochs, "eta": left})
        return True

    def check_finite(self, progress: Progress) -> None:
        """UserError if a loss since the last row is not finite, since such a step must not be saved."""
        if self.losses:
            losses = distributed.mean(torch.stack(self.losses)).tolist()
            self.stop_if_nonfinite(progress.step + 1 - len(losses), losses)

    def stop_if_nonfinite(self, first: int, losses: list[float]) -> None:
        bad = next((i for i, value in enumerate(losses) if not math.isfinite(value)), None)
        if bad is None:
            return
        if self.writes:
            files.append_row(self.folder / run.MONITOR, {"step": first + bad, "state": NONFINITE})
        raise UserError(
            f"{NONFINITE} since step {first + bad}; the last healthy weights are in "
            f"{self.folder / checkpoint.LATEST}. {ADVICE[NONFINITE]}"
        )

    def check_features(self, progress: Progress, row: dict[str, Any], last: bool) -> None:
        """Run the monitor if it is due. When the run turns unhealthy, keep the checkpoint from before."""
        if self.monitor is None:
            return
        was = self.monitor.state
        self.monitor.check(progress, now=last)
        row |= {"state": self.monitor.state, "since": self.monitor.since, "knn": self.monitor.knn}
        if was == HEALTHY != self.monitor.state:
            checkpoint.set_aside(self.folder)

    def end(self, progress: Progress) -> None:
        with self.summon_full_params():
            if self.monitor and progress.step < progress.steps:  # the method finished early
                self.monitor.check(progress, now=True)
