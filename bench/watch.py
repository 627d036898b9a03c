"""The fraction of a run's time that the collapse monitor takes.

Example: python bench/watch.py --steps 300

A run is checked before its first step, after its last step, and in between as often as its time budget allows. The
shorter the run, the more the first and last checks weigh.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import Goal, flags, seconds, show

from pretask import pretrain
from pretask.train.monitor import CollapseMonitor


@dataclass(frozen=True)
class Flags:
    data: str = "demo"
    """images: anything that pretask opens"""
    method: str = "simclr"
    """a method's name; its recipe decides encoder and batch"""
    steps: int = 100
    """length of the run"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""


def main() -> None:
    asked = flags(Flags, __doc__ or "")
    looks: list[float] = []
    check = CollapseMonitor.check

    def timed(monitor: CollapseMonitor, *arguments: Any, **options: Any) -> None:
        before = monitor.last["check"]
        took = seconds(lambda: check(monitor, *arguments, **options))
        if monitor.last["check"] != before:  # a check was due
            looks.append(took)

    with tempfile.TemporaryDirectory() as made, patch.object(CollapseMonitor, "check", timed):
        run = Path(made, "run")
        whole = seconds(lambda: pretrain(asked.method, asked.data, run, steps=asked.steps, quiet=True))
    numbers = {"run, s": whole, "looks": len(looks), "s a look": sum(looks) / len(looks)}
    goals = [Goal("looking, of the run's time", 100 * sum(looks) / whole, 2.0, "%", less=True)]
    show(f"{asked.method} on {asked.data}, {asked.steps} steps", numbers, goals, asked.json)


if __name__ == "__main__":
    main()
