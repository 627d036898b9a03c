"""The decision that a table of candidates supports, in words: which to use, whether to pretrain at all, or that it cannot be told."""

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
    """Of rows that cannot be distinguished from the leader, one that needs no pretraining is preferred."""
    leading = ranking.leading
    runs = [name for name in ranking.scores if roles[name] == "run"]
    free = sorted(
        (name for name in leading if roles[name] != "run"),
        key=lambda name: WITHOUT_TRAINING.index(roles[name]),
    )
    use = free[0] if free else ranking.leader
    equal = tuple(name for name in leading if name != use)
    if not runs:
        return Decision(use, equal, f"Nothing was pretrained; use {use}.")
    if not free:
        return Decision(use, equal, best_run(ranking, equal))
    if ranking.leader == use and all(name not in leading for name in runs):
        return Decision(use, equal, f"Do not pretrain: {use} {leads(ranking.gaps[runs[0]])} {every(runs)}.")
    return Decision(use, equal, f"Do not pretrain: {no_gain(ranking, use, runs[0])}.")


def best_run(ranking: Ranking, equal: tuple[str, ...]) -> str:
    """The leader is a run, and better than everything without pretraining."""
    if equal:
        return f"Use {ranking.leader}, or {' or '.join(equal)}, which cannot be distinguished from it."
    second, gap = next(iter(ranking.gaps.items()))
    return f"Use {ranking.leader}: it {leads(gap)} {second}, the next best."


def leads(gap: Gap) -> str:
    """ "leads by 6.0 points [3.1, 8.9]" """
    return f"leads by {gap.value:.1f} points [{gap.low:.1f}, {gap.high:.1f}] over"


def every(runs: list[str]) -> str:
    return f"{runs[0]}, the best run" if len(runs) > 1 else runs[0]


def no_gain(ranking: Ranking, use: str, run: str) -> str:
    """The best run and something without pretraining lead together."""
    return f"{use} and {run}, the best run, cannot be distinguished"
