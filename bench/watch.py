"""The share of a run's time that looking for collapse takes.

Example: python bench/watch.py --steps 300

A run looks once before its first step and once after its last, and in between as often as its share allows; the
shorter the run, the more the first and the last weigh.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import Goal, flags, seconds, show

from pretask import pretrain
from pretask.train.monitor import Watch


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
    look = Watch.look

    def timed(watch: Watch, *arguments: Any, **options: Any) -> None:
        before = watch.last["look"]
        took = seconds(lambda: look(watch, *arguments, **options))
        if watch.last["look"] != before:  # it was time to look
            looks.append(took)

    with tempfile.TemporaryDirectory() as made, patch.object(Watch, "look", timed):
        run = Path(made, "run")
        whole = seconds(lambda: pretrain(asked.method, asked.data, run, steps=asked.steps, quiet=True))
    numbers = {"run, s": whole, "looks": len(looks), "s a look": sum(looks) / len(looks)}
    goals = [Goal("looking, of the run's time", 100 * sum(looks) / whole, 2.0, "%", less=True)]
    show(f"{asked.method} on {asked.data}, {asked.steps} steps", numbers, goals, asked.json)


if __name__ == "__main__":
    main()
