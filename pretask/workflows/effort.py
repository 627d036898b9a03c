"""What candidates are given equally: seconds, images, or floating-point operations, of teachers and of all views too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch.utils.flop_counter import FlopCounterMode

from pretask.data.base import Images
from pretask.train.plan import Plan
from pretask.workflows import job as jobs
from pretask.workflows import pretrain
from pretask.workflows.length import LONG
from pretask.workflows.search import Trial

Match = Literal["seconds", "samples", "flops"]
TIMED = 10.0
"""maximum seconds of timing steps"""


@dataclass(frozen=True)
class StepCost:
    """The cost of a training step."""

    seconds: float
    images: int
    flops: float
    """of products and convolutions, forward and backward"""
    before: float
    """FLOPs before the first step, such as a teacher's stored features"""


def step_cost(trial: Trial, images: Images) -> StepCost:
    """Measured on real steps; nothing is written."""
    job = jobs.fresh(trial.method, trial.settings, trial.config, trial.train, images=images)
    _, _, trainer = pretrain.build_trainer(job)
    plan = Plan.of(LONG * trainer.per_pass, trainer.per_pass, trainer.train.cycles)
    with FlopCounterMode(display=False) as before:
        trainer.begin()
    seconds = trainer.fastest_step(plan, TIMED)
    with FlopCounterMode(display=False) as counter:
        trainer.step(next(iter(trainer.batches(plan.at(0)))), plan.at(0))
    return StepCost(seconds, job.train.batch, counter.get_total_flops(), before.get_total_flops())


def amount(match: Match, seconds: float, costs: Mapping[str, StepCost]) -> float:
    """Images or FLOPs of a run, the same for all candidates, so that their runs take `seconds` on average."""
    if match == "samples":
        return seconds * len(costs) / sum(cost.seconds / cost.images for cost in costs.values())
    fixed = sum(cost.before * cost.seconds / cost.flops for cost in costs.values())
    return (seconds * len(costs) + fixed) / sum(cost.seconds / cost.flops for cost in costs.values())


def steps(match: Match, amount: float, cost: StepCost) -> int:
    """Steps of a run that gets this amount of images or FLOPs."""
    if match == "samples":
        return max(1, round(amount / cost.images))
    return max(1, round((amount - cost.before) / cost.flops))
