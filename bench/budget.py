"""Whether a budget is kept, from the start of the process to its end, while another program comes and goes.

Example: python bench/budget.py --methods rotnet jule --loads none last

Each method is trained with a budget while a second process takes one core for no time, or for the first, the middle or
the last third of it. With the load "left" it is trained for as many steps as take two and a half times as long, and what
is said to be left after the first minute is compared with what was. Everything takes about forty minutes; what is in
--out already is not made again. Nothing else should be running.
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
    """of one core: never, or in which third; left: how long is said to be left"""
    data: str = "synthetic:2000:32"
    """images: anything that pretask opens"""
    seconds: float = 60.0
    """budget of each run"""
    out: Path = Path("runs/bench-budget")
    """where what was measured is kept"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""


def trained(
    asked: Flags, method: str, length: Sequence[str], heard: Callable[[float, str], None]
) -> dict[str, Any]:
    """Seconds of a whole `pretask pretrain`, and the plan that it came to; `heard` gets its lines as they come."""
    folder = asked.out / "run"
    shutil.rmtree(folder, ignore_errors=True)
    words = ["pretrain", method, "--data", asked.data, "--out", str(folder), *length]
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "pretask", *words], stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stderr is not None
        for line in started.stderr:
            heard(time.monotonic() - began, line)
    took = time.monotonic() - began
    if started.returncode:
        raise SystemExit(f"pretask {' '.join(words)} ended with {started.returncode}")
    card = json.loads((folder / "run.json").read_text())
    return {"seconds": took, "steps": card["steps"], "entries": len(card["plan"])}


def under_load(asked: Flags, method: str, load: Load) -> dict[str, Any]:
    """With a second process in one third of the budget."""
    third, hog = asked.seconds / 3, None
    if load in THIRDS:
        pause = f"import time; time.sleep({THIRDS[load] * third}); end = time.monotonic() + {third}"
        hog = subprocess.Popen([sys.executable, "-c", f"{pause}\nwhile time.monotonic() < end: pass"])
    try:
        return trained(asked, method, ["--budget", f"{asked.seconds:g}s"], lambda *_: None)
    finally:
        if hog is not None:
            hog.kill()
            hog.wait()


def left(asked: Flags, method: str) -> dict[str, Any]:
    """How far off, at worst, what was said to be left was, as a share of what was left, %."""
    said: list[tuple[float, float]] = []

    def heard(now: float, line: str) -> None:
        if found := re.search(r"(\d+):(\d+) left", line):
            said.append((now, 60.0 * int(found[1]) + int(found[2])))

    steps = round(2.5 * measured(asked, method, "none")["steps"])
    whole = trained(asked, method, ["--steps", str(steps)], heard)
    after = [(now, seconds) for now, seconds in said if now > MINUTE and whole["seconds"] - now > MINUTE / 2]
    off = [abs(seconds / (whole["seconds"] - now) - 1) for now, seconds in after]
    return whole | {"off": 100 * max(off, default=0.0), "lines": len(off)}


def measured(asked: Flags, method: str, load: Load) -> dict[str, Any]:
    """What is kept of a case, or is measured now."""
    kept = asked.out / f"{method.replace(':', '-')}-{load}-{asked.seconds:g}s.json"
    if not kept.exists():
        asked.out.mkdir(parents=True, exist_ok=True)
        found = left(asked, method) if load == "left" else under_load(asked, method, load)
        kept.write_text(json.dumps(found) + "\n")
    return json.loads(kept.read_text())


def main() -> None:
    asked = flags(Flags, __doc__ or "")
    numbers, goals = {}, []
    for method in asked.methods:
        for load in asked.loads:
            found = measured(asked, method, load)
            name = f"{method}, {load}"
            numbers |= {f"{name}: {what}": value for what, value in found.items()}
            if load == "left":
                goals.append(Goal(f"{name}: off after a minute", found["off"], 20.0, "%", less=True))
            else:
                off = 100 * abs(found["seconds"] / asked.seconds - 1)
                goals.append(Goal(f"{name}: off the budget", off, 10.0, "%", less=True))
    show(f"Budgets of {asked.seconds:g} s", numbers, goals, asked.json)


if __name__ == "__main__":
    main()
