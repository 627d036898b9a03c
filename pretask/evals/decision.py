"""The decision that a table of candidates supports, in words: which to use, whether to pretrain at all, or that it is not clear."""

from collections.abc import Mapping
from dataclasses import dataclass

from pretask.evals.ranking import Gap, Ranking
from pretask.evals.scores import Role

WITHOUT_TRAINING: tuple[Role, ...] = ("published", "patches", "pixels", "untrained")
"""rows that need no pretraining, the most useful first"""


@dataclass(frozen=True)
class Decision:
    """What to use, and why."""

    use: str
    """a row"""
    equal: tuple[str, ...]
    """rows that cannot be distinguished from the leader, apart from `use`"""
    sentence: str


def decide(ranking: Ranking, roles: Mapping[str, Role]) -> Decision:
    """Pretraining is worth its time if a run is better than every row that needs none."""
    leading, runs = ranking.leading, [name for name in ranking.scores if roles[name] == "run"]
    free = sorted(set(leading) - set(runs), key=lambda name: WITHOUT_TRAINING.index(roles[name]))
    if not free:
        return Decision(ranking.leader, tuple(leading[1:]), best_run(ranking))
    if set(leading).isdisjoint(runs):
        why, use = (
            f"{runs[0]}, the best run, {behind(ranking.gaps[runs[0]])} {ranking.leader}",
            ranking.leader,
        )
    else:
        why, use = f"with all labels {free[0]} and {runs[0]}, the best run, cannot be distinguished", free[0]
    return Decision(use, tuple(name for name in leading if name != use), f"Do not pretrain: {why}.")


def best_run(ranking: Ranking) -> str:
    """A run leads, and is better than everything without pretraining."""
    if equal := ranking.leading[1:]:
        return f"Use {ranking.leader}, or {' or '.join(equal)}, which cannot be distinguished from it."
    second, gap = next(iter(ranking.gaps.items()))
    return f"Use {ranking.leader}: {second}, the next best, {behind(gap)} it."


def behind(gap: Gap) -> str:
    """ "is 6.0 points [3.1, 8.9] behind" """
    return f"is {gap.value:.1f} points [{gap.low:.1f}, {gap.high:.1f}] behind"
