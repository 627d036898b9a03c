"""The length of a run: a number of steps, what fits in a time budget, another run's plan, or an extension."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretask.encoders.saved import SHAPE, WEIGHTS
from pretask.runtime import files
from pretask.train import run
from pretask.train.pacing import Budget
from pretask.train.plan import Plan, entries_of
from pretask.types import UserError

if TYPE_CHECKING:
    from pretask.config import Changes, RunConfig
    from pretask.train.trainer import Trainer

TIMING = 0.03
"""maximum fraction of a budget used for timing the first steps"""
LONG = 1000
"""assumed number of epochs while the length is unknown, so that a method with a special last epoch does not start with it"""
RESULTS = ("scores", "study", "audit.json", "report.html", WEIGHTS, SHAPE)
"""files and folders that only a finished run has"""


def parse_duration(budget: str) -> float:
    """Seconds of "90s", "10m", "2h" or a plain number of seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", budget)
    if not found or not float(found[1]):
        raise UserError(f"--budget {budget!r} is not a time; write 90s, 10m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def new_plan(settings: "RunConfig", trainer: "Trainer", budget: Budget | None) -> Plan:
    """The plan of a new run. Raises UserError for contradictory or invalid lengths."""
    per_pass, cycles = trainer.per_pass, trainer.train.cycles
    if settings.plan is not None:
        if settings.steps is not None or settings.budget is not None:
            raise UserError("--plan uses the length of another run; remove --steps and --budget")
        return Plan(entries_of(run.Run(settings.plan).card), per_pass, cycles)
    if settings.steps is not None and settings.steps < 1:
        raise UserError(f"--steps {settings.steps} is out of range; give 1 or more")
    long = Plan.of(LONG * per_pass, per_pass, cycles)
    if settings.steps is None and budget is not None:
        return long.changed(0, estimate_steps(trainer, long, 0, budget))
    return long.changed(0, settings.steps or trainer.train.epochs * per_pass)


def resumed_plan(
    changes: "Changes", trainer: "Trainer", card: Mapping[str, Any], budget: Budget | None
) -> Plan:
    """The plan of a resumed run: the one in its card, changed from the last checkpoint on if `changes` sets another length.

    Raises UserError if the run cannot have that length.
    """
    plan = Plan(entries_of(card), trainer.per_pass, trainer.train.cycles)
    if changes.steps is None and budget is None:
        return plan
    step = trainer.begin()
    done = (trainer.folder / run.DONE).exists()
    if (done and step < plan.steps) or (step == plan.steps and trainer.method.terminal):
        raise UserError(
            f"{run.title(card)} has a fixed end, which {trainer.folder} has reached, so it cannot be extended; "
            "start a new run with more steps"
        )
    if changes.steps is not None:
        if changes.steps <= step:
            raise UserError(
                f"--steps {changes.steps}: {trainer.folder} has already done {step:,} steps; give more"
            )
        return plan.changed(step, changes.steps)
    assert budget is not None
    long = plan.changed(step, step + LONG * trainer.per_pass)
    return plan.changed(step, estimate_steps(trainer, long, step, budget))


def estimate_steps(trainer: "Trainer", plan: Plan, step: int, budget: Budget) -> int:
    """Total number of steps that fit in the budget, given `step` steps done, if all are as fast as the fastest of some."""
    per_step = trainer.fastest_step(plan, TIMING * budget.seconds)
    left = trainer.fabric.broadcast(budget.left())
    if left < per_step:  # more may fit later if the machine is slow only now, so one step is enough
        gone = budget.seconds - left
        raise UserError(
            f"--budget {budget.seconds:g}s is too short: a step takes {per_step:.2f} s and everything else {gone:.0f} s; "
            f"give {math.ceil(gone + 30 * per_step)}s or more"
        )
    return step + int(left / per_step)


def update_plan(folder: Path, card: Mapping[str, Any], plan: Plan) -> None:
    """Record the plan of a resumed run; if the run was finished, its results are archived first."""
    before = entries_of(card)
    if plan.entries == before:
        return
    if plan.entries[-1][0] == before[-1][1]:
        archive_results(folder, card["steps"])
    run.record(folder, card, plan)


def archive_results(folder: Path, steps: int) -> None:
    """Move the results of a finished run to at-STEPS-steps in its folder; the run is then unfinished.

    If interrupted, the run can still be resumed.
    """
    kept = folder / f"at-{steps}-steps"
    kept.mkdir(exist_ok=True)
    files.write_text(kept / run.CARD, (folder / run.CARD).read_text())
    for name in (run.DONE, *RESULTS):
        if (folder / name).exists():
            merge_into(folder / name, kept / name)


def merge_into(path: Path, to: Path) -> None:
    """Move a file or folder to `to`; folders are merged."""
    if not path.is_dir():
        path.replace(to)
        return
    to.mkdir(exist_ok=True)
    for each in path.iterdir():
        merge_into(each, to / each.name)
    path.rmdir()
