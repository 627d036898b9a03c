"""The rungs of a comparison: candidates train in run folders, and are chosen on held-out labeled images. Interrupted, it goes on."""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from torch import nn

from pretask.config import RunConfig
from pretask.data.base import Images
from pretask.evals.confidence import Interval, interval
from pretask.evals.paired import verdicts
from pretask.evals.stage_probe import StageProbe
from pretask.runtime import files
from pretask.runtime.console import clock, say
from pretask.train.logger import OnLog
from pretask.train.run import Run
from pretask.types import UserError
from pretask.workflows import effort, halving
from pretask.workflows.candidates import Candidate
from pretask.workflows.effort import Match, StepCost
from pretask.workflows.halving import Costs

RUNS, STATE = "runs", "state.json"
"""names in the folder that is made"""
START = 3.0
"""estimated seconds to start a run"""


@dataclass(frozen=True)
class Rung:
    """Candidates that trained for the same time, and what they reached."""

    seconds: float
    held_out: Mapping[str, Interval]
    """accuracy on held-out labeled training images, in %"""


@dataclass
class State:
    """What an interrupted comparison goes on with."""

    asked: dict[str, Any]
    """arguments, in JSON's types"""
    spent: float = 0.0
    """seconds so far"""
    counts: list[int] = field(default_factory=list)
    """planned numbers of candidates in each rung"""
    lengths: list[float] = field(default_factory=list)
    """seconds of a run in each rung that has begun"""
    amounts: list[float] = field(default_factory=list)
    """images or FLOPs of a run in these rungs, if runs are matched by them"""
    test: float = 0.0
    """estimated seconds of the features of a run on the test set"""
    scored: dict[str, float] = field(default_factory=dict)
    """seconds of each score on held-out images"""
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    """what a step of each candidate costs"""
    added: list[str] = field(default_factory=list)
    """methods that were added to a finished comparison"""

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / STATE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "State":
        """The state in a folder. Raises UserError if there is none."""
        try:
            return cls(**json.loads((folder / STATE).read_text()))
        except (OSError, ValueError, TypeError):
            raise UserError(f"{folder} is not a comparison: it has no readable {STATE}") from None

    @classmethod
    def begun(cls, folder: Path, asked: dict[str, Any]) -> "State":
        """The state in a folder, or a new one. Raises UserError if the folder holds something else."""
        if (folder / STATE).is_file():
            found = cls.read(folder)
            if differs := [key for key in asked if found.asked.get(key) != asked[key]]:
                raise UserError(
                    f"{folder} is a comparison with other settings ({', '.join(differs)}); choose another --out"
                )
            return found
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} exists; choose another --out")
        return cls(asked)


@dataclass
class Search:
    """A comparison in progress."""

    folder: Path
    state: State
    images: Images
    shared: RunConfig
    """settings of all runs"""
    budget: float
    """seconds of the whole command"""
    seeds: int
    """of each finalist"""
    match: Match
    end: float
    """estimated seconds of everything after the last run"""
    probe: Callable[[nn.Module], StageProbe]
    on_log: OnLog | None
    began: float
    """time.monotonic() of the start"""
    rungs: list[Rung] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """candidates that failed, and why"""

    @property
    def spent(self) -> float:
        """Seconds since the comparison began, without those in which it was interrupted."""
        return self.state.spent

    def save(self) -> None:
        now = time.monotonic()
        self.state.spent, self.began = self.state.spent + now - self.began, now
        self.state.write(self.folder)

    def costs(self) -> Costs:
        self.save()
        return Costs(self.state.spent, mean(self.state.scored.values()) + START, self.state.test, self.end)

    def score(self, name: str, net: nn.Module) -> StageProbe:
        """A probe chosen on held-out images. Its time counts as it was at first: later the features are there already."""
        began = time.monotonic()
        found = self.probe(net)
        self.state.scored.setdefault(name, time.monotonic() - began)
        return found

    def train(self, each: Candidate, rung: int, seconds: float, seed: int = 0) -> Run:
        """The finished run of a candidate: a new one, a resumed one, or one that was finished before."""
        place = self.folder / RUNS / f"{folder_name(each.name)}-{rung + 1}-s{seed}"
        length: dict[str, Any] = {"budget": f"{seconds:.0f}s"}
        if self.match != "seconds":
            length = {"steps": effort.steps(self.match, self.state.amounts[rung], self.cost(each))}
        settings = replace(self.shared, seed=self.shared.seed + seed, **length)
        found = each.trial(place, settings).trained(self.images, self.on_log)
        self.save()
        return found

    def cost(self, each: Candidate) -> StepCost:
        """What a step costs; measured once, so that an interrupted comparison goes on with the same lengths."""
        if each.name not in self.state.costs:
            trial = each.trial(self.folder / RUNS / "timed", self.shared)
            self.state.costs[each.name] = asdict(effort.step_cost(trial, self.images))
            self.save()
        return StepCost(**self.state.costs[each.name])  # pyright: ignore[reportArgumentType]

    def train_all(
        self, candidates: Sequence[Candidate], rung: int, seconds: float, seeds: Sequence[int]
    ) -> dict[str, list[Run]]:
        """The runs of all candidates by their names; one that fails, since it diverges, is left out. Raises UserError if all fail."""
        runs: dict[str, list[Run]] = {}
        for each in candidates:
            try:
                runs[each.name] = [self.train(each, rung, seconds, seed) for seed in seeds]
            except UserError as wrong:
                say(f"{each.name} is left out: {wrong}")
                self.left_out[each.name] = str(wrong)
        if not runs:
            raise UserError(f"no candidate could be trained: {'; '.join(self.left_out.values())}")
        return runs

    def choose(self, alive: Sequence[Candidate]) -> list[Candidate]:
        """Train candidates in rungs of increasing length, until only the finalists are left."""
        if self.match != "seconds":
            say(f"timing a step of {', '.join(each.name for each in alive)}")
            for each in alive:
                self.cost(each)
        if not self.state.counts:
            plan = halving.plan(self.budget, len(alive), self.seeds, self.costs())
            say(plan.sentence)
            self.state.counts = list(plan.counts)
        *counts, _ = self.state.counts
        for number in range(len(counts)):
            left = self.state.counts[number:]
            plan = halving.planned(self.budget, left, self.seeds, self.costs())
            seconds = self.begin(number, alive, plan.lengths[0])
            runs = self.train_all(alive, number, seconds, [0])
            probes = {name: self.score(f"{name}, {number}", run.encoder) for name, (run,) in runs.items()}
            self.rungs.append(
                Rung(seconds, {name: interval(100 * probe.held_out) for name, probe in probes.items()})
            )
            trained = [each for each in alive if each.name in runs]
            best = sorted(trained, key=lambda each: -probes[each.name].choice.score)
            alive = finalists(best, probes) if len(left) == 2 else best[: left[1]]
        return list(alive)

    def finish(self, finalists: Sequence[Candidate]) -> dict[str, list[Run]]:
        """The runs of the finalists with all seeds, by their names; they share the time that is left."""
        rung = len(self.state.counts) - 1
        length = halving.final_length(self.budget, len(finalists), self.seeds, self.costs())
        seconds = self.begin(rung, finalists, length)
        return self.train_all(finalists, rung, seconds, range(self.seeds))

    def add(self, each: Candidate) -> list[Run]:
        """The runs of a candidate that was added later, as long as those of the finalists."""
        rung, seconds = len(self.state.counts) - 1, self.state.lengths[-1]
        say(f"{each.name}, {self.seeds} × {clock(seconds)}")
        return [self.train(each, rung, seconds, seed) for seed in range(self.seeds)]

    def begin(self, number: int, alive: Sequence[Candidate], seconds: float) -> float:
        """The seconds of each run in a rung; if it has begun before, those that it began with."""
        if number == len(self.state.lengths):
            self.state.lengths.append(seconds)
            if self.match != "seconds":
                costs = {each.name: self.cost(each) for each in alive}
                self.state.amounts.append(effort.amount(self.match, seconds, costs))
            self.save()
        seconds = self.state.lengths[number]
        about = "each" if self.match == "seconds" else f"on average, matched by {self.match}"
        say(
            f"rung {number + 1} of {len(self.state.counts)}: {', '.join(each.name for each in alive)}, {clock(seconds)} {about}"
        )
        return seconds


def folder_name(name: str) -> str:
    """A candidate's name without spaces and characters that not all file systems have."""
    return re.sub(r"[^\w.=-]+", "-", name)


def finalists(best: Sequence[Candidate], probes: Mapping[str, StageProbe]) -> list[Candidate]:
    """The two best, and those that cannot be distinguished from the second of them on held-out samples, up to MOST_FINALISTS."""
    kept, others = list(best[:2]), best[2 : halving.MOST_FINALISTS]
    if not others:
        return kept
    second = probes[kept[1].name].held_out
    found = verdicts({each.name: 100 * (probes[each.name].held_out - second).numpy() for each in others})
    return kept + [each for each in others if not found[each.name].worse]
