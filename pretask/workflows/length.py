"""How long a run is: so many steps, what fits into a budget, the plan of another run, or longer than it was at first."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretask.runtime import files as checkpoint
from pretask.train import run
from pretask.train.pacing import Budget
from pretask.train.plan import Plan, entries_of
from pretask.types import UserError

if TYPE_CHECKING:
    from pretask.train.trainer import Trainer
    from pretask.workflows.pretrain import Settings

TIMING = 0.03
"""share of a budget, at most, in which first steps are timed"""
LONG = 1000
"""passes over the source of a run whose length is not known yet: a method that has a last epoch does not begin with it"""
RESULTS = ("scores", "study", "audit.json", "report.html", run.WEIGHTS, run.SHAPE)
"""what a run's folder holds of a finished run alone"""


def seconds(budget: str) -> float:
    """ "90s", "10m", "2h" or plain seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", budget)
    if not found or not float(found[1]):
        raise UserError(f"--budget {budget!r} is not a time; write 90s, 10m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def planned(settings: "Settings", trainer: "Trainer", budget: Budget | None) -> Plan:
    """The plan of a new run. Raises UserError for a length that is none."""
    per_pass, rounds = trainer.per_pass, trainer.train.rounds
    if settings.plan is not None:
        if settings.steps is not None or settings.budget is not None:
            raise UserError("--plan takes the length of another run; leave out --steps and --budget")
        return Plan(entries_of(run.Run(settings.plan).card), per_pass, rounds)
    if settings.steps is not None and settings.steps < 1:
        raise UserError(f"--steps {settings.steps} is not a number of steps; give 1 or more")
    long = Plan.of(LONG * per_pass, per_pass, rounds)
    if settings.steps is None and budget is not None:
        return long.changed(0, first_guess(trainer, long, 0, budget))
    return long.changed(0, settings.steps or trainer.train.epochs * per_pass)


def resumed(settings: "Settings", trainer: "Trainer", card: Mapping[str, Any], budget: Budget | None) -> Plan:
    """The plan in the card of a run that goes on, changed from the last checkpoint on where another length is asked for.

    Raises UserError if the run cannot have that length.
    """
    plan = Plan(entries_of(card), trainer.per_pass, trainer.train.rounds)
    if settings.steps is None and budget is None:
        return plan
    step = trainer.begin()
    done = (trainer.folder / run.DONE).exists()
    if (done and step < plan.steps) or (step == plan.steps and trainer.method.terminal):
        raise UserError(
            f"{trainer.folder} has learned all that {run.title(card)} can learn on it, so it cannot be made longer; "
            "start a new run with more steps"
        )
    if settings.steps is not None:
        if settings.steps <= step:
            raise UserError(
                f"--steps {settings.steps}: {trainer.folder} has done {step:,} already; give more"
            )
        return plan.changed(step, settings.steps)
    assert budget is not None
    long = plan.changed(step, step + LONG * trainer.per_pass)
    return plan.changed(step, first_guess(trainer, long, step, budget))


def first_guess(trainer: "Trainer", plan: Plan, step: int, budget: Budget) -> int:
    """Steps of the whole run, of which those from `step` on fit into the budget if all are as fast as the fastest of some."""
    per_step = trainer.fastest_step(plan, TIMING * budget.seconds)
    left = trainer.fabric.broadcast(budget.left())
    if (
        left < per_step
    ):  # a machine that is slow just now may let more steps fit later, so one is enough to begin
        gone = budget.seconds - left
        raise UserError(
            f"--budget {budget.seconds:g}s is too short: a step takes {per_step:.2f} s and all but the steps {gone:.0f} s; "
            f"give {math.ceil(gone + 30 * per_step)}s or more"
        )
    return step + int(left / per_step)


def extend(folder: Path, card: Mapping[str, Any], plan: Plan) -> None:
    """Write down the plan of a run that goes on; what was found out about it, were it finished, is set aside first."""
    before = entries_of(card)
    if plan.entries == before:
        return
    if plan.entries[-1][0] == before[-1][1]:
        set_aside(folder, card["steps"])
    run.record(folder, card, plan)


def set_aside(folder: Path, steps: int) -> None:
    """What was found out about a finished run goes to its own folder in there, as a run of `steps`, and is not finished any more.

    Stopped anywhere in between, the run can be resumed as it was.
    """
    kept = folder / f"at-{steps}-steps"
    kept.mkdir(exist_ok=True)
    checkpoint.write_text(kept / run.CARD, (folder / run.CARD).read_text())
    for name in (run.DONE, *RESULTS):
        if (folder / name).exists():
            move(folder / name, kept / name)


def move(path: Path, to: Path) -> None:
    """A file or folder, into what there is of the same name."""
    if not path.is_dir():
        path.replace(to)
        return
    to.mkdir(exist_ok=True)
    for each in path.iterdir():
        move(each, to / each.name)
    path.rmdir()
