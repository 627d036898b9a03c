"""Should you pretrain on your images, and with which method? `pretask compare --data PATH --labels LABELED --out FOLDER`

All candidates train for a short time, the better half longer, and the finalists with several seeds (halving.py, rungs.py). They are
chosen on held-out labeled training images. The test set is used once, for the final table, which also has the published weights,
the untrained encoder, raw pixels and k-means patches. The decision in words is a function of that table (evals/decision.py).
"""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretask import data as sources
from pretask.config import InputConfig, RunConfig
from pretask.data import places
from pretask.data.base import Images, OpenOptions, canvas_fields
from pretask.data.subset import LabeledSubset
from pretask.encoders import Encoder, build, origins
from pretask.evals import baselines, finetune, label_curve, protocol, ranking, stage_probe
from pretask.evals import leaks as leaking
from pretask.evals.confidence import interval
from pretask.evals.decision import Decision, decide
from pretask.evals.features import Features, embed
from pretask.evals.label_curve import Curve, Worth
from pretask.evals.leaks import Leaks
from pretask.evals.ranking import Gap
from pretask.evals.scores import Role
from pretask.evals.stage_probe import StageProbe
from pretask.limits import PositiveInt, Seed, checked
from pretask.methods import simclr
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime import files, formats
from pretask.runtime.device import find_device
from pretask.train.logger import OnLog
from pretask.train.run import Run
from pretask.types import LabeledSource, UserError
from pretask.workflows import subject
from pretask.workflows.candidates import Candidate, Choice, asked_for, candidate, usual
from pretask.workflows.effort import Match
from pretask.workflows.inputs import labeled_spec, single_labels
from pretask.workflows.length import parse_duration
from pretask.workflows.rungs import STATE, Rung, Search, State

FEATURES, RESULT = "features", "compare.json"
"""names in the folder that is made"""
CLOSING = 20.0
"""estimated seconds of the final tests, tables and pages"""
TIMED = 256
"""labeled images on which the time of features is measured"""
SUPERVISED = 0.08
"""fraction of the budget for training the encoder with the labels"""
IN_MEMORY = "in memory"
"""stands for labels without a path"""
LEAKS = 0.02
"""fraction of the budget in which near copies of test images are looked for"""
TRAINED = "trained with the labels"
"""name of its curve"""


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
    gap: Gap | None
    """how far the leader is ahead; None for the leader"""
    seconds: float
    """of training, one run"""
    images: int
    """seen by one run"""


@dataclass(frozen=True)
class Compared:
    """The result of `compare`."""

    folder: Path
    data: Mapping[str, Any]
    plan: Mapping[str, Any]
    """the budget in seconds, what runs are matched by, candidates and seconds of a run in each rung, seeds in the last"""
    rungs: Sequence[Rung]
    lines: Sequence[Line]
    """from the best to the worst"""
    decision: Decision
    curves: Mapping[str, Curve]
    """accuracy over labels, of the best run first, then of other rows"""
    other: str
    """the best row without pretraining"""
    worth: Worth | None
    """how many times as many labels it needs to equal the best run"""
    left_out: Mapping[str, str]
    """candidates that could not be trained, and why"""
    leaks: str
    """a warning, if test images are among the labeled ones too"""
    seconds: float
    best: Run
    """of the best method, with the first seed"""
    test: LabeledSource

    def to_json(self) -> str:
        """{"data", "plan", "use", "decision", "rows", "rungs", "curves", "other", "worth", "left_out", "seconds"}"""
        curves = {
            name: {"shots": list(curve.shots), "accuracy": curve.accuracy}
            for name, curve in self.curves.items()
        }
        worth = self.worth and {
            key: value if math.isfinite(value) else None for key, value in asdict(self.worth).items()
        }
        whole = {
            "data": dict(self.data), "plan": dict(self.plan), "use": self.decision.use, "decision": self.decision.sentence,
            "rows": [asdict(each) for each in self.lines], "rungs": [asdict(each) for each in self.rungs],
            "curves": curves, "other": self.other, "worth": worth, "left_out": dict(self.left_out), "leaks": self.leaks,
            "seconds": round(self.seconds, 1),
        }  # fmt: skip
        return json.dumps(whole, indent=2, allow_nan=False)


@dataclass(frozen=True)
class Scorer:
    """Probes on labeled images, and their answers on test images. Features are kept in a folder."""

    labeled: LabeledSource
    test: LabeledSource
    cache: Path
    seed: int
    progress: bool

    def features(self, net: nn.Module, source: LabeledSource) -> Features:
        return embed(net, source, cache=self.cache, device=find_device(), progress=self.progress)

    def time_test(self, net: nn.Module) -> float:
        """Estimated seconds of an encoder's features on the test set, measured on a few labeled images."""
        few = LabeledSubset(self.labeled, torch.arange(min(TIMED, len(self.labeled))), self.labeled.name)
        began = time.monotonic()
        embed(net, few, device=find_device(), progress=False)
        return (time.monotonic() - began) * len(self.test) / len(few)

    def probe(self, net: nn.Module) -> StageProbe:
        return stage_probe.fit(self.features(net, self.labeled), self.seed)

    def correct(self, net: nn.Module, probe: StageProbe) -> Tensor:
        """(N,) whether the probe is right on each test image."""
        return probe.correct(self.features(net, self.test))

    def curve(self, net: nn.Module, stage: str) -> Curve:
        """Accuracy over labels, of probes on one stage."""
        train, test = (self.features(net, source) for source in (self.labeled, self.test))
        classes = len(train.classes)
        return label_curve.curve(
            train.stages[stage], train.label, test.stages[stage], test.label, classes, self.seed
        )

    def leaks(self, net: Encoder, seconds: float) -> Leaks:
        """Test images that are among the labeled ones too."""
        train, test = (self.features(net, source) for source in (self.labeled, self.test))
        return leaking.find(net, self.labeled, self.test, train, test, seconds, self.seed)

    def supervised(self, net: Encoder, seconds: float) -> Curve | None:
        """Accuracy over labels of the encoder trained with them, for so many seconds in all; None if they are too few."""
        options = {"device": find_device(), "progress": self.progress}
        counts = len(finetune.shot_counts(self.labeled.label)) + 1
        per_step = finetune.seconds_per_step(net, self.labeled, finetune.TRAIN, find_device())
        steps = min(finetune.STEPS, int(seconds / counts / per_step))
        if not steps:
            return None
        return label_curve.supervised(net, self.labeled, self.test, steps, self.seed, **options)


@dataclass(frozen=True)
class Fixed:
    """A row that needs no pretraining."""

    name: str
    role: Role
    net: nn.Module


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
    encoders: Sequence[str] = (),
    seeds: PositiveInt = 3,
    match: Match = "seconds",
    size: PositiveInt | None = None,
    seed: Seed = 0,
    leaks: bool = True,
    reading: Reading = DEFAULT_READING,
    progress: bool = True,
    on_log: OnLog | None = None,
    began: float | None = None,
) -> Compared:
    """Find out whether to pretrain on your images, and by which method, within a time budget.

        found = pretask.compare("photos/", "labeled/", budget="1h", init="timm:resnet18", out="compared")

    `data`, `labels` and `test` are as in `adapt`; without `test` a fifth of the labeled images is set aside. Candidates are
    `methods`, or a set that suits the data; with `init`, published weights as in `pretrain`, methods that start or learn
    from them too. All train for the same seconds, samples or FLOPs (`match`); the finalists train with `seeds` seeds. Those that do not
    continue the weights train each of `encoders`, by default the architecture of the weights or a small ResNet. An interrupted comparison
    goes on when it is called again. `leaks` warns of test images that are among the labeled ones. The budget counts from `began`, by time.monotonic(), or else from the call. Raises UserError.
    """
    began = time.monotonic() if began is None else began
    labels = labeled_spec(labels, data)
    folder, seconds = Path(out), parse_duration(budget)
    init = init and origins.absolute(init)
    asked = {
        "data": places.absolute(str(data)), "labels": named(labels), "test": named(test), "budget": budget,
        "methods": list(methods), "init": init, "encoders": list(encoders), "seeds": seeds, "match": match, "size": size, "seed": seed,
        "leaks": leaks,
        "reading": json.loads(json.dumps(asdict(reading), default=str)),
    }  # fmt: skip
    state = State.begun(folder, asked)
    images = sources.open(str(data), size=size, reading=reading)
    options = OpenOptions(**canvas_fields(images), reading=reading)
    labeled, tested = open_labels(labels, test, options, seed)
    given = subject.encoder_of(init, InputConfig(images.size)) if init else None
    nets = [build(spec, images.channels, images.size) for spec in encoders]
    nets = nets or [given or build(simclr.Config.encoder, images.channels, images.size)]
    chosen = asked_for(methods, nets, given) if methods else usual(nets, given, images)
    entries, left_out = candidates(chosen, init, images, len(nets) > 1)
    added, refused = candidates(asked_for(state.added, nets, given), init, images, len(nets) > 1)
    left_out |= refused
    if len(entries) < 2:
        raise UserError(
            f"a comparison needs two methods, and {len(entries)} can be trained: {'; '.join(left_out.values())}"
        )
    shared = RunConfig(str(data), size=images.size, seed=seed, reading=reading)
    scorer = Scorer(labeled, tested, folder / FEATURES, seed, progress)
    fixed = fixed_rows(nets, given, labeled, seed)
    state.test = state.test or scorer.time_test(fixed[0].net)
    end = CLOSING + (SUPERVISED + LEAKS * leaks) * seconds + len(fixed) * state.test
    search = Search(folder, state, images, shared, seconds, seeds, match, end, scorer.probe, on_log, began)
    probes = {fixed[0].name: search.score(fixed[0].name, fixed[0].net)}
    probes |= {row.name: scorer.probe(row.net) for row in fixed[1:]}
    runs = search.finish(search.choose(entries)) | {each.name: search.add(each) for each in added}
    return conclude(search, scorer, runs, fixed, probes, left_out | search.left_out, leaks)


def resume(folder: str | Path, add: Sequence[str] = (), **known: Any) -> Compared:
    """Go on with an interrupted comparison, or add methods to a finished one. `known` are `progress`, `on_log` and `began`."""
    state = State.read(Path(folder))
    asked, wrong = dict(state.asked), []
    if asked["labels"] == IN_MEMORY:
        raise UserError(f"the labels of {folder} were in memory; call pretask.compare with them again")
    if new := [method for method in add if method not in state.added]:
        if not (Path(folder) / RESULT).is_file():
            raise UserError(f"{folder} is not finished; resume it first, then add methods")
        state.added += new
        state.write(Path(folder))
    reading = formats.instance(Reading, asked.pop("reading"), "reading", wrong)
    formats.refuse(Path(folder) / STATE, wrong)
    return compare(**asked, out=folder, reading=reading, **known)


def named(labels: Any) -> str | None:
    """The absolute path of labeled images, to find them again."""
    if labels is None:
        return None
    return places.absolute(str(labels)) if isinstance(labels, str | Path) else IN_MEMORY


def open_labels(
    labels: Any, test: Any, options: OpenOptions, seed: int
) -> tuple[LabeledSource, LabeledSource]:
    """Labeled images to choose by, and test images with the same classes. Raises UserError."""
    labeled, tested = single_labels(labels, test, options)
    train, unseen = protocol.split_off_test(labeled, seed) if tested is None else (labeled, tested)
    protocol.check([], train, unseen)
    train, unseen, _ = protocol.align_classes(train, unseen)
    return train, unseen


def candidates(
    chosen: Iterable[Choice], init: str | None, images: Images, several: bool
) -> tuple[list[Candidate], dict[str, str]]:
    """Of the choices, those that can be trained, and why others cannot; with `several` encoders names say which."""
    found, left_out = [], {}
    for each in chosen:
        try:
            found.append(candidate(each, init, images, several))
        except UserError as wrong:
            left_out[f"{each.method}, {each.net.name}" if several else each.method] = str(wrong)
    return found, left_out


def fixed_rows(
    nets: Sequence[Encoder], given: Encoder | None, labeled: LabeledSource, seed: int
) -> list[Fixed]:
    """Encoders first; `given` has the published weights."""
    return [
        *([Fixed(subject.INITIAL, "published", given)] if given else []),
        *(Fixed(f"untrained {net.name}", "untrained", baselines.untrained(net, seed)) for net in nets),
        Fixed(baselines.Pixels.name, "pixels", baselines.Pixels()),
        Fixed(baselines.Patches.name, "patches", baselines.patches(labeled, seed=seed)),
    ]


def conclude(
    search: Search,
    scorer: Scorer,
    runs: Mapping[str, Sequence[Run]],
    fixed: Sequence[Fixed],
    probes: Mapping[str, StageProbe],
    left_out: Mapping[str, str],
    leaks: bool,
) -> Compared:
    """The final table on the test set, the decision, and accuracy over labels."""
    chosen = {name: [scorer.probe(run.encoder) for run in family] for name, family in runs.items()}
    correct = {
        name: torch.stack(
            [scorer.correct(run.encoder, probe) for run, probe in zip(family, chosen[name], strict=True)]
        )
        for name, family in runs.items()
    }
    correct |= {row.name: scorer.correct(row.net, probes[row.name])[None] for row in fixed}
    held_out = {
        name: interval(100 * torch.stack([probe.held_out for probe in family]))
        for name, family in chosen.items()
    }
    rungs = [*search.rungs, Rung(search.state.lengths[-1], held_out)]
    roles: dict[str, Role] = dict.fromkeys(runs, "run")
    roles |= {row.name: row.role for row in fixed}
    ranked = ranking.rank(correct)
    lines = [line(name, roles[name], correct[name], ranked, runs.get(name)) for name in ranked.scores]
    best = next(name for name in ranked.scores if name in runs)
    curves = {best: scorer.curve(runs[best][0].encoder, chosen[best][0].stage)}
    other = max((row.name for row in fixed), key=lambda name: ranked.scores[name].value)
    curves |= {
        row.name: scorer.curve(row.net, probes[row.name].stage)
        for row in fixed
        if row.role == "published" or row.name == other
    }
    trained = scorer.supervised(runs[best][0].untrained, SUPERVISED * search.budget)
    curves |= {TRAINED: trained} if trained else {}
    about = {
        "images": search.images.name, "n": len(search.images), "labeled": scorer.labeled.name,
        "n_labeled": len(scorer.labeled), "test": scorer.test.name, "n_test": len(scorer.test),
        "classes": list(scorer.labeled.classes),
    }  # fmt: skip
    leaked = scorer.leaks(runs[best][0].encoder, LEAKS * search.budget) if leaks else None
    worth = label_curve.worth(curves[best], curves[other], scorer.seed)
    search.save()
    decision = decide(ranked, roles)
    found = Compared(
        search.folder, about, plan_of(search), rungs, lines, decision, curves, other, worth, left_out, warning(leaked, correct), search.spent,
        runs[best][0], scorer.test,
    )  # fmt: skip
    files.write_text(search.folder / RESULT, found.to_json() + "\n")
    return found


def warning(leaks: Leaks | None, correct: Mapping[str, Tensor]) -> str:
    """What leaks were found, with the accuracy of all rows without them."""
    if not leaks or not leaks.count:
        return ""
    return leaks.sentence(
        {name: 100 * rows[:, leaks.clean].double().mean().item() for name, rows in correct.items()}
    )


def plan_of(search: Search) -> dict[str, Any]:
    """How long the candidates trained."""
    lengths = [round(seconds, 1) for seconds in search.state.lengths]
    return {
        "budget": search.budget, "match": search.match, "candidates": search.state.counts, "seconds": lengths, "seeds": search.seeds,
    }  # fmt: skip


def line(name: str, role: Role, correct: Tensor, ranked: ranking.Ranking, runs: Sequence[Run] | None) -> Line:
    score, values = ranked.scores[name], (100 * correct.double().mean(1)).tolist()
    card = runs[0].card if runs else {"steps": 0, "train": {"batch": 0}}
    images, seconds = card["steps"] * card["train"]["batch"], runs[0].seconds if runs else 0.0
    gap = ranked.gaps.get(name)
    return Line(name, role, score.value, score.low, score.high, values, gap, seconds, images)
