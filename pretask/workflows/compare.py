"""Should you pretrain on your images, and with which method? `pretask compare --data PATH --labels LABELED --out FOLDER`

All candidates train for a short time, the better half longer, and the finalists with several seeds (halving.py). They are chosen on
held-out labeled training images. The test set is used once, for the final table, which also has the published weights, the
untrained encoder, raw pixels and k-means patches. The decision in words is a function of that table (evals/decision.py).
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from pretask import data as sources
from pretask.config import InputConfig, RunConfig
from pretask.data.base import Images, OpenOptions, canvas_fields
from pretask import encoders
from pretask.encoders import Encoder
from pretask.evals import baselines, finetune, label_curve, protocol, ranking, stage_probe
from pretask.evals.decision import Decision, decide
from pretask.evals.features import Features, embed
from pretask.evals.label_curve import Curve, Worth
from pretask.evals.paired import verdicts
from pretask.evals.scores import Role
from pretask.evals.stage_probe import StageProbe
from pretask.limits import PositiveInt, Seed, checked
from pretask.methods import simclr
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime import files
from pretask.runtime.console import clock, say
from pretask.runtime.device import find_device
from pretask.train.logger import OnLog
from pretask.train.run import Run
from pretask.types import LabeledSource, UserError
from pretask.workflows import halving, subject
from pretask.workflows.candidates import Candidate, candidate, usual
from pretask.workflows.halving import Costs, Plan
from pretask.workflows.inputs import labeled_pair, split_paths
from pretask.workflows.length import parse_duration

RUNS, FEATURES, STATE, RESULT = "runs", "features", "state.json", "compare.json"
"""names in the folder that is made"""
START, CLOSING = 3.0, 20.0
"""estimated seconds to start a run, and to write tables and page"""
FIXED = 4
"""rows without pretraining"""
SUPERVISED = 0.08
"""fraction of the budget for training the encoder with the labels"""
TRAINED = "trained with the labels"
"""name of that curve"""


@dataclass(frozen=True)
class Line:
    """A row of the final table."""

    name: str
    role: Role
    accuracy: float
    """of a linear probe on the best stage, in %; stage and penalty are chosen on training images"""
    low: float
    high: float
    values: Sequence[float]
    """one per seed"""
    gap: ranking.Gap | None
    """how far the leader is ahead; None for the leader"""
    seconds: float
    """of training, one run"""
    images: int
    """seen by one run"""


@dataclass(frozen=True)
class Rung:
    """Candidates that trained for the same time, and what they reached."""

    seconds: float
    held_out: Mapping[str, float]
    """accuracy on held-out labeled training images, in %"""


@dataclass(frozen=True)
class Compared:
    """The result of `compare`."""

    folder: Path
    data: Mapping[str, Any]
    rungs: Sequence[Rung]
    lines: Sequence[Line]
    decision: Decision
    curves: Mapping[str, Curve]
    """accuracy over labels, of the rows that the decision is about"""
    worth: Worth | None
    """how many times as many labels the best row without pretraining needs"""
    left_out: Mapping[str, str]
    """candidates that could not be trained, and why"""
    seconds: float


@dataclass
class State:
    """What an interrupted comparison goes on with."""

    asked: dict[str, Any]
    spent: float = 0.0
    """seconds so far"""
    counts: list[int] = field(default_factory=list)
    """planned numbers of candidates in each rung"""
    rungs: list[tuple[float, list[str]]] = field(default_factory=list)
    """seconds of a run, and names, of each rung that has begun; the last one is that of the finalists"""

    @classmethod
    def of(cls, folder: Path, asked: dict[str, Any]) -> "State":
        """The state in a folder, or a new one. Raises UserError if the folder holds something else."""
        path = folder / STATE
        if path.is_file():
            found = cls(**json.loads(path.read_text()))
            if differs := [key for key in asked if found.asked.get(key) != asked[key]]:
                raise UserError(
                    f"{folder} is a comparison with other settings ({', '.join(differs)}); choose another --out"
                )
            return found
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} exists; choose another --out")
        return cls(asked)


class Search:
    """A comparison in progress."""

    def __init__(
        self,
        folder: Path,
        state: State,
        labeled: LabeledSource,
        test: LabeledSource,
        images: Images,
        shared: RunConfig,
        budget: float,
        seeds: int,
        on_log: OnLog | None,
        progress: bool,
    ):
        self.folder, self.state, self.labeled, self.test = folder, state, labeled, test
        self.images, self.shared, self.on_log = images, shared, on_log
        self.budget, self.seeds = budget, seeds
        self.rungs: list[Rung] = []
        self.options = {"device": find_device(), "progress": progress, "cache": folder / FEATURES}
        self.began = time.monotonic() - state.spent
        self.scoring: list[float] = []
        """seconds of each score on held-out images"""

    @property
    def spent(self) -> float:
        return time.monotonic() - self.began

    def save(self) -> None:
        self.state.spent = self.spent
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_text(self.folder / STATE, json.dumps(asdict(self.state), indent=2) + "\n")

    def run(self, each: Candidate, rung: int, seconds: float, seed: int = 0) -> Run:
        """The finished run of a candidate in a rung: a new one, a resumed one, or one that was finished before."""
        place = self.folder / RUNS / f"{each.name.replace(', ', '-')}-{rung}-s{seed}"
        settings = replace(self.shared, budget=f"{seconds:.0f}s", seed=self.shared.seed + seed)
        found = each.trial(place, settings).trained(self.images, self.on_log)
        self.save()
        return found

    def probe(self, net: nn.Module) -> StageProbe:
        """A probe fitted to the labeled images."""
        began = time.monotonic()
        probe = stage_probe.fit(embed(net, self.labeled, **self.options), self.shared.seed)
        self.scoring.append(time.monotonic() - began)
        return probe

    def correct(self, net: nn.Module, probe: StageProbe) -> Tensor:
        """(N,) whether the probe is right on each test image."""
        return probe.correct(embed(net, self.test, **self.options))

    def costs(self) -> Costs:
        """Estimated from the scores so far; a row of the final table needs its features on the test set, and its curve."""
        run = mean(self.scoring)
        rows = halving.FINALISTS * self.seeds + FIXED
        return Costs(self.spent, run + START, rows * run * len(self.test) / len(self.labeled) + CLOSING)

    def choose(self, alive: Sequence[Candidate]) -> list[Candidate]:
        """Train the candidates in rungs of increasing length, until only the finalists are left."""
        if not self.state.counts:
            plan = halving.plan(self.budget, len(alive), self.seeds, self.costs())
            say(plan.sentence)
            self.state.counts = list(plan.counts)
        counts = self.state.counts
        for number, count in enumerate(counts[1:]):
            seconds = self.begin(number, alive, halving.planned(self.budget, counts[number:], self.seeds, self.costs()).lengths[0])
            probes = {each.name: self.probe(self.run(each, number, seconds).encoder) for each in alive}
            self.rungs.append(Rung(seconds, {name: 100 * p.choice.score for name, p in probes.items()}))
            best = sorted(alive, key=lambda each: -probes[each.name].choice.score)
            last = number == len(counts) - 2
            alive = finalists(best, probes) if last else best[:count]
        return list(alive)

    def begin(self, number: int, alive: Sequence[Candidate], seconds: float) -> float:
        """The seconds of each run in a rung; if it has begun before, those that it began with."""
        names = [each.name for each in alive]
        if number == len(self.state.rungs):
            self.state.rungs.append((seconds, names))
            self.save()
        seconds, before = self.state.rungs[number]
        assert names == list(before), "a rung is decided by finished runs"
        say(f"rung {number + 1}: {', '.join(names)} for {clock(seconds)} each")
        return seconds

    def conclude(
        self,
        alive: Sequence[Candidate],
        fixed: Sequence["Fixed"],
        probes: Mapping[str, StageProbe],
        left_out: Mapping[str, str],
    ) -> Compared:
        """Train the finalists with all seeds, then use the test set."""
        number = len(self.state.counts) - 1
        length = halving.final_length(self.budget, len(alive), self.seeds, self.costs())
        seconds = self.begin(number, alive, length)
        runs = {
            each.name: [self.run(each, number, seconds, seed) for seed in range(self.seeds)] for each in alive
        }
        correct, lines, roles = {}, [], {}
        for name, family in runs.items():
            correct[name] = torch.stack([self.correct(each.encoder, self.probe(each.encoder)) for each in family])
        for row in fixed:
            correct[row.name] = self.correct(row.net, probes[row.name])[None]
        roles = {name: "run" for name in runs} | {row.name: row.role for row in fixed}
        ranked = ranking.rank(correct)
        lines = [
            Line(
                name, roles[name], *astuple(ranked.scores[name]), (100 * correct[name].double().mean(1)).tolist(),
                ranked.gaps.get(name), *cost_of(runs.get(name)),
            )
            for name in ranked.scores
        ]  # fmt: skip
        best = next(name for name in ranked.scores if name in runs)
        nets = {row.name: row.net for row in fixed} | {best: runs[best][0].encoder}
        shown = [best, *(row.name for row in fixed if row.role in ("published", "patches"))]
        curves = {name: self.curve(nets[name], probes.get(name) or self.probe(nets[name])) for name in shown}
        curves |= self.supervised(next(row.net for row in fixed if row.role == "untrained"))
        other = max(shown[1:], key=lambda name: ranked.scores[name].value)
        return Compared(
            self.folder, self.about(), self.rungs, lines, decide(ranked, roles), curves,
            label_curve.worth(curves[best], curves[other], other), left_out, self.spent,
        )  # fmt: skip

    def about(self) -> dict[str, Any]:
        return {
            "images": self.images.name, "n": len(self.images), "labeled": self.labeled.name, "n_labeled": len(self.labeled),
            "test": self.test.name, "n_test": len(self.test), "classes": list(self.labeled.classes),
        }  # fmt: skip

    def curve(self, net: nn.Module, probe: StageProbe) -> Curve:
        """Accuracy over labels, of a probe on the chosen stage."""
        train, test = (embed(net, source, **self.options) for source in (self.labeled, self.test))
        stages = train.stages[probe.stage], test.stages[probe.stage]
        return label_curve.curve(stages[0], train.label, stages[1], test.label, len(train.classes), self.shared.seed)

    def supervised(self, net: Encoder) -> dict[str, Curve]:
        """The untrained encoder trained with the labels, for as many steps as fit into SUPERVISED of the budget."""
        counts = len(finetune.shot_counts(self.labeled.label)) + 1
        per_step = finetune.seconds_per_step(net, self.labeled, finetune.TRAIN, self.options["device"])
        steps = min(finetune.STEPS, int(SUPERVISED * self.budget / counts / per_step))
        if not steps:
            return {}
        known = {key: self.options[key] for key in ("device", "progress")}
        return {TRAINED: label_curve.supervised(net, self.labeled, self.test, steps, self.shared.seed, **known)}


def cost_of(runs: Sequence[Run] | None) -> tuple[float, int]:
    """Seconds and images of a run."""
    if not runs:
        return 0.0, 0
    card = runs[0].card
    return runs[0].seconds, card["steps"] * card["train"]["batch"]


def finalists(best: Sequence[Candidate], probes: Mapping[str, StageProbe]) -> list[Candidate]:
    """The two best, and those that cannot be distinguished from the second of them on held-out samples, up to MOST_FINALISTS."""
    kept, others = list(best[:2]), best[2 : halving.MOST_FINALISTS]
    if not others:
        return kept
    second = probes[kept[1].name].held_out
    found = verdicts({each.name: 100 * (probes[each.name].held_out - second).numpy() for each in others})
    return kept + [each for each in others if not found[each.name].worse]


@checked
def compare(
    data: str | Path,
    labels: Any,
    test: Any = None,
    *,
    out: str | Path,
    budget: str = "1h",
    methods: Sequence[str] = (),
    init: str | None = None,
    encoder: str | None = None,
    seeds: PositiveInt = 3,
    size: PositiveInt | None = None,
    seed: Seed = 0,
    reading: Reading = DEFAULT_READING,
    progress: bool = True,
    on_log: OnLog | None = None,
) -> Compared:
    """Find out whether to pretrain on your images, and by which method, within a time budget.

        found = pretask.compare("photos/", "labeled/", budget="1h", init="timm:resnet18", out="compared")

    `data`, `labels` and `test` are as in `adapt`; without `test` a fifth of the labeled images is set aside. Candidates are `methods`, or
    a set that suits the data; with `init`, published weights as in `pretrain`, also methods that start or learn from
    them. All train the same architecture, `encoder`. The finalists train with `seeds` seeds. An interrupted comparison goes on when
    it is called again. Raises UserError.
    """
    folder, seconds = Path(out), parse_duration(budget)
    images = sources.open(str(data), size=size, reading=reading)
    published = subject.encoder_of(init, InputConfig(images.size)) if init else None
    architecture = encoder or (published.name if published else simclr.Config.encoder)
    options = OpenOptions(**canvas_fields(images), reading=reading)
    labeled, tested = open_labels(labels, test, options, seed)
    asked = {
        "data": str(data), "labels": labeled.name, "test": tested.name, "methods": list(methods), "init": init,
        "encoder": architecture, "seeds": seeds, "size": images.size, "seed": seed, "budget": seconds,
    }  # fmt: skip
    state = State.of(folder, asked)
    shared = RunConfig(str(data), size=images.size, seed=seed, reading=reading)
    search = Search(folder, state, labeled, tested, images, shared, seconds, seeds, on_log, progress)
    entries, left_out = candidates(methods, architecture, init, images)
    fixed = fixed_rows(architecture, init, published, labeled, seed)
    probes = {row.name: search.probe(row.net) for row in fixed}
    alive = search.choose(entries)
    return search.conclude(alive, fixed, probes, left_out)


@dataclass(frozen=True)
class Fixed:
    """A row that needs no pretraining."""

    name: str
    role: Role
    net: nn.Module


def open_labels(
    labels: Any, test: Any, options: OpenOptions, seed: int
) -> tuple[LabeledSource, LabeledSource]:
    """Labeled images to choose by, and test images with the same classes. Raises UserError."""
    labeled, tested = labeled_pair(*split_paths(labels, test), options)
    for source, flag in ((labeled, "--labels"), (tested, "--test")):
        if source is not None:
            sources.require_single_label(source, flag, "select one column of labels with --labels-from")
    train, unseen = protocol.split_off_test(labeled, seed) if tested is None else (labeled, tested)
    protocol.check([], train, unseen)
    train, unseen, _ = protocol.align_classes(train, unseen)
    return train, unseen


def candidates(
    methods: Sequence[str], architecture: str, init: str | None, images: Images
) -> tuple[list[Candidate], dict[str, str]]:
    """What is tried, and what cannot be, with the reason."""
    found, left_out = [], {}
    chosen = [(method, bool(init)) for method in methods] or usual(architecture, images, init)
    for method, from_weights in chosen:
        try:
            found.append(candidate(method, architecture, init if from_weights else None, images))
        except UserError as wrong:
            left_out[method] = str(wrong)
    if not found:
        raise UserError("none of the methods can be trained: " + "; ".join(left_out.values()))
    return found, left_out


def fixed_rows(
    architecture: str, init: str | None, published: Encoder | None, labeled: LabeledSource, seed: int
) -> list[Fixed]:
    net = published or encoders.build(architecture, labeled.channels, labeled.size)
    return [
        *([Fixed(f"{init}, frozen", "published", published)] if published else []),
        Fixed(f"untrained {architecture}", "untrained", baselines.untrained(net, seed)),
        Fixed(baselines.Pixels.name, "pixels", baselines.Pixels()),
        Fixed(baselines.Patches.name, "patches", baselines.patches(labeled, seed=seed)),
    ]
