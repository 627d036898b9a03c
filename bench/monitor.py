"""The fraction of a run's time that the collapse monitor takes.

Example: python bench/monitor.py --steps 300

The monitor checks a run before its first step, after its last step, and in between as often as its time budget allows. The
shorter the run, the larger the share of the first and last checks.
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
    """images, in any form that pretask opens"""
    method: str = "simclr"
    """method or recipe; it sets the encoder and the batch size"""
    steps: int = 100
    """length of the run"""
    json: bool = False
    """print only JSON to standard output"""


def main() -> None:
    args = flags(Flags, __doc__ or "")
    checks: list[float] = []
    check = CollapseMonitor.check

    def timed(monitor: CollapseMonitor, *arguments: Any, **options: Any) -> None:
        before = monitor.last["check"]
        took = seconds(lambda: check(monitor, *arguments, **options))
        if monitor.last["check"] != before:  # a check was due
            checks.append(took)

    with tempfile.TemporaryDirectory() as made, patch.object(CollapseMonitor, "check", timed):
        run = Path(made, "run")
        whole = seconds(lambda: pretrain(args.method, args.data, run, steps=args.steps, quiet=True))
    numbers = {"run, s": whole, "checks": len(checks), "seconds per check": sum(checks) / len(checks)}
    goals = [Goal("monitoring, share of the run's time", 100 * sum(checks) / whole, 2.0, "%", less=True)]
    show(f"{args.method} on {args.data}, {args.steps} steps", numbers, goals, args.json)


if __name__ == "__main__":
    main()
