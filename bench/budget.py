"""Accuracy of `--budget` over the whole process, while another program uses a core for part of the time.

Example: python bench/budget.py --methods rotnet jule --loads none last

Each method is trained with a budget while a second process uses one core never, or during the first, the middle or the
last third of the budget. With the load "left", it is trained for as many steps as take two and a half times as long, and
the remaining time that it reports after the first minute is compared with the true remaining time. The whole benchmark
takes about forty minutes; results that exist in --out are not measured again. Nothing else should be running.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common import Goal, flags, show

Load = Literal["none", "first", "middle", "last", "left"]
THIRDS = {"first": 0, "middle": 1, "last": 2}
MINUTE = 60.0


@dataclass(frozen=True)
class Flags:
    methods: tuple[str, ...] = ("simclr", "rotnet", "swav", "jule", "sdae", "neighbourhood_discovery")
    """names or recipes"""
    loads: tuple[Load, ...] = ("none", "first", "middle", "last", "left")
    """when a second process uses one core: never, or in one third of the budget; left: check the reported remaining time"""
    data: str = "synthetic:2000:32"
    """images, in any form that pretask opens"""
    seconds: float = 60.0
    """budget of each run"""
    out: Path = Path("runs/bench-budget")
    """folder of the results"""
    json: bool = False
    """print only JSON to standard output"""


def trained(
    args: Flags, method: str, length: Sequence[str], on_line: Callable[[float, str], None]
) -> dict[str, Any]:
    """Seconds of a whole `pretask pretrain`, its steps and the entries of its plan; `on_line` gets each line that it prints."""
    folder = args.out / "run"
    shutil.rmtree(folder, ignore_errors=True)
    words = ["pretrain", method, "--data", args.data, "--out", str(folder), *length]
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "pretask", *words], stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stderr is not None
        for line in started.stderr:
            on_line(time.monotonic() - began, line)
    took = time.monotonic() - began
    if started.returncode:
        raise SystemExit(f"pretask {' '.join(words)} ended with {started.returncode}")
    card = json.loads((folder / "run.json").read_text())
    return {"seconds": took, "steps": card["steps"], "entries": len(card["plan"])}


def under_load(args: Flags, method: str, load: Load) -> dict[str, Any]:
    """Train with a second process in one third of the budget."""
    third, hog = args.seconds / 3, None
    if load in THIRDS:
        pause = f"import time; time.sleep({THIRDS[load] * third}); end = time.monotonic() + {third}"
        hog = subprocess.Popen([sys.executable, "-c", f"{pause}\nwhile time.monotonic() < end: pass"])
    try:
        return trained(args, method, ["--budget", f"{args.seconds:g}s"], lambda *_: None)
    finally:
        if hog is not None:
            hog.kill()
            hog.wait()


def time_left(args: Flags, method: str) -> dict[str, Any]:
    """Largest error of the reported remaining time, in percent of the true remaining time."""
    reported: list[tuple[float, float]] = []

    def on_line(now: float, line: str) -> None:
        if found := re.search(r"(\d+):(\d+) left", line):
            reported.append((now, 60.0 * int(found[1]) + int(found[2])))

    steps = round(2.5 * measured(args, method, "none")["steps"])
    whole = trained(args, method, ["--steps", str(steps)], on_line)
    after = [
        (now, seconds) for now, seconds in reported if now > MINUTE and whole["seconds"] - now > MINUTE / 2
    ]
    off = [abs(seconds / (whole["seconds"] - now) - 1) for now, seconds in after]
    return whole | {"off": 100 * max(off, default=0.0), "lines": len(off)}


def measured(args: Flags, method: str, load: Load) -> dict[str, Any]:
    """The stored result of a case, or a new one."""
    path = args.out / f"{method.replace(':', '-')}-{load}-{args.seconds:g}s.json"
    if not path.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        found = time_left(args, method) if load == "left" else under_load(args, method, load)
        path.write_text(json.dumps(found) + "\n")
    return json.loads(path.read_text())


def main() -> None:
    args = flags(Flags, __doc__ or "")
    numbers, goals = {}, []
    for method in args.methods:
        for load in args.loads:
            found = measured(args, method, load)
            name = f"{method}, {load}"
            numbers |= {f"{name}: {what}": value for what, value in found.items()}
            if load == "left":
                goals.append(Goal(f"{name}: off after a minute", found["off"], 20.0, "%", less=True))
            else:
                off = 100 * abs(found["seconds"] / args.seconds - 1)
                goals.append(Goal(f"{name}: off the budget", off, 10.0, "%", less=True))
    show(f"Budgets of {args.seconds:g} s", numbers, goals, args.json)


if __name__ == "__main__":
    main()
