"""Shared by the benchmarks: flags, interleaved timing, and a table or JSON at the end.

The load on a machine varies. Parts that are compared therefore run interleaved, A B C A B C …, and the benchmarks compare
ratios within one round: a slow minute slows both sides of a ratio.
"""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
import tyro
from rich.console import Console
from rich.table import Table

from pretask.config import RunConfig, TrainConfig
from pretask.methods import Method
from pretask.train.plan import Plan
from pretask.train.trainer import Trainer
from pretask.types import Source
from pretask.workflows.pretrain import build_fabric, precision_of, versions

T = TypeVar("T")


def flags(kind: type[T], doc: str) -> T:
    """Parse the command line of a benchmark into its dataclass; `--help` begins with the docstring of the benchmark."""
    return tyro.cli(kind, description=doc)


@dataclass(frozen=True)
class Goal:
    """A measured number and its target: at least `limit`, or below it if `less`."""

    what: str
    value: float
    limit: float
    unit: str
    less: bool = False

    @property
    def met(self) -> bool:
        return self.value < self.limit if self.less else self.value >= self.limit


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def environment(**more: str) -> dict[str, str]:
    """The environment of this process, but Python writes its bytecode cache, as it does for most users."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | more


def alternate(parts: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every part in every round, after one warm-up round."""
    times = [{name: seconds(work) for name, work in parts.items()} for _ in range(rounds + 1)]
    return {name: [each[name] for each in times[1:]] for name in parts}


FIRST = Plan.of(1, 1).at(0)
"""progress of a run of one step"""


def make_trainer(method: Method[Any], source: Source, train: TrainConfig) -> Trainer:
    """The trainer of `pretask pretrain`, with its precision, memory layout and optimizer."""
    return Trainer(
        build_fabric(RunConfig(source.name), method.has_unused_params, train.batch),
        method,
        source,
        train,
        Path(),
    )


def speed(one: Sequence[float], other: Sequence[float]) -> float:
    """Speed of `one` relative to `other`: seconds in each round -> the median ratio."""
    return median(b / a for a, b in zip(one, other, strict=True))


def show(title: str, numbers: Mapping[str, Any], goals: Sequence[Goal], as_json: bool) -> None:
    """Print a table, or only one JSON object."""
    if as_json:
        checked = [asdict(goal) | {"met": goal.met} for goal in goals]
        document = {"title": title, "command": command(), "numbers": numbers, "goals": checked}
        print(json.dumps(document | {"machine": machine()}, indent=2))
        return
    table = Table("", "measured", "goal", title=title, title_justify="left")
    for name, value in numbers.items():
        table.add_row(name, f"{value:,.1f}" if isinstance(value, float) else str(value))
    table.add_section()
    for goal in goals:
        color, sign = ("green" if goal.met else "red"), ("<" if goal.less else "≥")
        measured = f"[{color}]{goal.value:.3g} {goal.unit}[/]"
        table.add_row(goal.what, measured, f"{sign} {goal.limit:g} {goal.unit}")
    console = Console()
    console.print(table)
    console.print("  ".join(f"{name} {value}" for name, value in machine().items()), highlight=False)


def command() -> str:
    """The command line, as typed from the root of the repository."""
    return shlex.join(
        ["python", f"bench/{Path(sys.argv[0]).name}", *(w for w in sys.argv[1:] if w != "--json")]
    )


def machine() -> dict[str, Any]:
    """Hardware and software that the numbers come from."""
    return {
        "processor": platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "precision": precision_of(RunConfig("")),
        **{name: found for name, found in versions().items() if name in ("python", "torch", "pretask")},
    }
