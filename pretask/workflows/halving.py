"""Successive halving within a time budget: all candidates train for a short time, the better half three times as long, and the
finalists, with several seeds, in the time that is left.

Jamieson and Talwalkar (Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS 2016, arXiv:1502.07943).
Every run has a complete schedule, since a run that is cut off says little about a finished one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pretask.runtime.console import about, clock
from pretask.types import UserError

FACTOR = 3
"""length of a run relative to one of the rung before"""
RUNGS = 3
FINALISTS = 3
"""finalists expected in a plan; the last runs are longer for fewer and shorter for more of them"""
MOST_FINALISTS = 4
SHORTEST = 10.0
"""seconds of the shortest run that is worth its start"""


@dataclass(frozen=True)
class Costs:
    """Seconds, measured or estimated."""

    spent: float
    """since the command began"""
    run: float
    """of everything that a run takes besides its training, such as its score on held-out images"""
    test: float
    """of the features of a run on the test set"""
    end: float
    """of everything after the last run: the table on the test set, the curves, the page"""


@dataclass(frozen=True)
class Plan:
    """How many candidates train in each rung, for how many seconds, with how many seeds."""

    counts: Sequence[int]
    lengths: Sequence[float]
    seeds: int
    """of the last rung; one in the others"""
    costs: Costs

    @property
    def sentence(self) -> str:
        """ "6 candidates · 3 rungs of 0:40, 2:00 and 6:00 · 3 finalists × 3 seeds · 9 minutes of evaluation" """
        evaluation = self.costs.end + scoring(runs_of(self.counts, self.seeds), self.costs)
        *first, last = map(clock, self.lengths)
        return (
            f"{self.counts[0]} candidates · {len(self.counts)} rungs of {', '.join(first)} and about {last} a run · "
            f"{self.counts[-1]} finalists × {self.seeds} seeds · {about(evaluation)} of evaluation"
        )


def plan(budget: float, candidates: int, seeds: int, costs: Costs) -> Plan:
    """The plan with most rungs whose shortest runs are no shorter than SHORTEST. Raises UserError if not even two rungs fit."""
    for rungs in range(RUNGS, 1, -1):
        found = planned(budget, rung_counts(candidates, rungs), seeds, costs)
        if found.lengths[0] >= SHORTEST:
            return found
    counts = rung_counts(candidates, 2)
    runs = runs_of(counts, seeds)
    needed = costs.spent + costs.end + scoring(runs, costs) + SHORTEST * units(runs)
    raise UserError(
        f"--budget {budget:.0f}s is too short for {candidates} candidates and {seeds} seeds of the finalists; "
        f"give {math.ceil(needed)}s or more, or fewer --methods"
    )


def rung_counts(candidates: int, rungs: int) -> list[int]:
    """Half of the candidates go on to the next rung, and FINALISTS to the last one, which few candidates reach at once."""
    counts = [candidates]
    while len(counts) < rungs - 1 and counts[-1] > FINALISTS:
        counts.append(max(FINALISTS, math.ceil(counts[-1] / 2)))
    return [*counts, min(FINALISTS, candidates)]


def planned(budget: float, counts: Sequence[int], seeds: int, costs: Costs) -> Plan:
    runs = runs_of(counts, seeds)
    unit = (budget - costs.spent - costs.end - scoring(runs, costs)) / units(runs)
    return Plan(counts, [unit * FACTOR**rung for rung in range(len(counts))], seeds, costs)


def units(runs: Sequence[int]) -> float:
    """Length of all runs together, relative to one of the first rung."""
    return sum(count * FACTOR**rung for rung, count in enumerate(runs))


def scoring(runs: Sequence[int], costs: Costs) -> float:
    """Seconds that all runs take besides their training."""
    return sum(runs) * costs.run + runs[-1] * costs.test


def runs_of(counts: Sequence[int], seeds: int) -> list[int]:
    return [*counts[:-1], counts[-1] * seeds]


def final_length(budget: float, finalists: int, seeds: int, costs: Costs) -> float:
    """Seconds of each of the last runs, which share all that is left."""
    return (budget - costs.spent - costs.end) / (finalists * seeds) - costs.run - costs.test
