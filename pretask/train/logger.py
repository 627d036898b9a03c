"""What a run writes down as it goes: rows of numbers, the state of its features, and what the display shows."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pretask.runtime import distributed
from pretask.runtime import files as checkpoint
from pretask.train import run
from pretask.train.health import ADVICE, BROKEN, HEALTHY
from pretask.train.monitor import Watch
from pretask.train.pacing import Pace
from pretask.train.plan import Plan
from pretask.types import Progress, UserError

ROWS = 500
"""about how many rows of numbers a run leaves in its log"""

T = TypeVar("T")
Tell = Callable[[Mapping[str, Any]], None]


class Journal:
    """Rows of log.jsonl, each the mean since the last one and over processes, and the run's state of health.

    `tell` gets every row as it is written, with what a display needs besides. Only the first process writes.
    """

    def __init__(
        self,
        folder: Path,
        batch: int,
        writes: bool,
        watch: Watch | None,
        tell: Tell | None = None,
        whole: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self.folder, self.batch, self.writes = folder, batch, writes
        self.whole = whole  # what all processes enter before the watch may use the encoder
        self.watch, self.tell = watch, (tell if writes else None) or (lambda row: None)
        self.losses: list[Tensor] = []
        self.parts: list[Mapping[str, Tensor]] = []
        self.waited = 0.0

    def start(self, progress: Progress, pace: Pace) -> None:
        """Rows of this step and later, left by a run that was cut off, are forgotten; the features get a first look.

        `pace` is what the display is told by how long the run still takes.
        """
        if self.writes:
            run.rewind(self.folder / run.LOG, progress.step)
            run.rewind(self.folder / run.SEEN, progress.step)
        with self.whole():
            if self.watch:
                self.watch.look(progress, now=True)
        self.pace, self.since = pace, time.perf_counter()

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time until each arrives is counted."""
        items = iter(items)
        while True:
            asked = time.perf_counter()
            item = next(items, None)
            self.waited += time.perf_counter() - asked
            if item is None:
                return
            yield item

    @property
    def looking(self) -> float:
        """Seconds that the watch takes when it looks at everything."""
        return sum(self.watch.cost.values()) if self.watch else 0.0

    def note(
        self, progress: Progress, plan: Plan, loss: Tensor, parts: Mapping[str, Tensor], lr: float
    ) -> bool:
        """Remember one step. True after a row was written and its losses were found finite."""
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
            "waiting": self.waited / (now - self.since),
        }
        if progress.lengthened:
            row["lengthened"] = progress.lengthened
        for name in parts:
            row[name] = distributed.mean(torch.stack([p[name] for p in self.parts])).mean().item()
        first = progress.step + 1 - len(losses)
        self.losses.clear()
        self.parts.clear()
        self.waited, self.since = 0.0, now
        if self.writes:
            run.append(self.folder / run.LOG, row)
        self.stop_if_broken(first, losses)
        with self.whole():
            self.look(progress, row, last)
        left = self.pace.to_the_end(plan, progress.step + 1)
        self.tell({**row, "steps": progress.steps, "epochs": progress.epochs, "eta": left})
        return True

    def check(self, progress: Progress) -> None:
        """UserError if a loss since the last row is not finite: such a step must not be saved."""
        if self.losses:
            losses = distributed.mean(torch.stack(self.losses)).tolist()
            self.stop_if_broken(progress.step + 1 - len(losses), losses)

    def stop_if_broken(self, first: int, losses: list[float]) -> None:
        broken = next((i for i, value in enumerate(losses) if not math.isfinite(value)), None)
        if broken is None:
            return
        if self.writes:
            run.append(self.folder / run.SEEN, {"step": first + broken, "state": BROKEN})
        raise UserError(
            f"{BROKEN} since step {first + broken}; the last healthy weights are in "
            f"{self.folder / checkpoint.LATEST}. {ADVICE[BROKEN]}"
        )

    def look(self, progress: Progress, row: dict[str, Any], last: bool) -> None:
        """Let the watch look if it is due; when health is lost, the checkpoint from before is set aside."""
        if self.watch is None:
            return
        was = self.watch.state
        self.watch.look(progress, now=last)
        row |= {"state": self.watch.state, "since": self.watch.since, "knn": self.watch.knn}
        if was == HEALTHY != self.watch.state:
            checkpoint.set_aside(self.folder)

    def end(self, progress: Progress) -> None:
        with self.whole():
            if self.watch and progress.step < progress.steps:  # the method finished early
                self.watch.look(progress, now=True)
