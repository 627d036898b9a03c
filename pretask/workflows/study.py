"""Ablations of a run: fewer images, fewer labels, feature drift in fine-tuning, and pretraining with labels instead.

`pretask study RUN --data LABELED`. Larsson, Maire and Shakhnarovich (CVPR 2017, arXiv:1703.04044, abstract) studied how
*pretraining with labels* depends on the number of images and labels, and how far features change in fine-tuning, and
compared it with colorization. Here "supervised" answers the first two questions as they did, with the labels given; "data",
"labels" and "change" are about the run itself. Their tables were not available: fractions, numbers of classes and the way
classes are merged are our own. Change is measured by CKA (evals/cka.py).
"""

import copy
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretask import data as sources
from pretask.config import InputConfig
from pretask.data.base import OpenOptions, canvas_fields
from pretask.data.ledger import BAD, write_all
from pretask.data.subset import LabeledSubset
from pretask.encoders import Encoder
from pretask.evals import baselines, fewshot, finetune, forecast, measure, protocol
from pretask.evals.cka import cka
from pretask.evals.features import Features, embed, readable
from pretask.evals.forecast import announce
from pretask.evals.holdout import ranks
from pretask.evals.measure import Result
from pretask.evals.protocol import OnFeatures
from pretask.evals.scores import SCHEMA, Role, Row, file_name, read_json
from pretask.limits import PositiveInt, checked
from pretask.reading import DEFAULT_READING, Reading
from pretask.rng import Rng
from pretask.runtime import files
from pretask.runtime.device import find_device
from pretask.train import run
from pretask.train.logger import OnLog
from pretask.train.plan import cautions
from pretask.train.run import Run
from pretask.types import LabeledSource, UserError
from pretask.workflows.inputs import labeled_pair, split_paths, with_labels
from pretask.workflows.reruns import budget, repeated, seed_runs
from pretask.workflows.subject import Candidate, Weights, is_run, load, require_run

FOLDER = "study"
Question = Literal["data", "labels", "change", "supervised"]
QUESTIONS: tuple[Question, ...] = ("data", "labels", "change", "supervised")
USUAL = QUESTIONS[:3]
"""the default questions"""
DATA = (0.1, 0.3)
"""fractions of the run's images, besides 0 and 1"""
LABELS = (0.01, 0.1, 1.0)
"""fractions of the labeled training images"""
SUPERVISED = (0.1, 0.3)
"""fractions of images and labels for supervised pretraining, besides all"""
CLASSES = (2, 5, 10, 100)
"""numbers of groups that the classes are merged into, if there are more classes"""
ENOUGH = 5
"""labeled images per class from which on the penalty is chosen on a held-out fifth"""
COMPARED = 2_000
"""maximum number of test images whose features are compared before and after fine-tuning"""
PROTOCOL = {
    "data": "the run repeated with the same steps, seed and recipe on a random fraction of its images; smaller fractions are subsets of "
    "larger ones; fraction 1 is the run itself, 0 the untrained encoder; kNN and linear probe on pooled features as in evaluate",
    "labels": "a fraction of the labeled training images of each class, at least one per class; linear: a probe on pooled features, "
    f"with the penalty chosen on a fifth of these images if each class has at least {ENOUGH}, otherwise {fewshot.PENALTY} on "
    f"standardized rows of about unit length; finetune: as in evaluate, {finetune.STEPS} steps for any number of labels, layer "
    f"decay {finetune.DECAY}, or 1 for the untrained encoder, which is trained from scratch",
    "change": "linear CKA of the features before and after fine-tuning on all labels, per stage, on at most "
    f"{COMPARED} test images; 1: equal up to rotation and scale",
    "supervised": "the run compared with the same encoder trained with labels from the same initial weights, for as many images as the run saw, "
    f"with AdamW (batch {baselines.SUPERVISED.batch}, lr {baselines.SUPERVISED.lr}, weight decay "
    f"{baselines.SUPERVISED.weight_decay}, shifts and flips), frozen and scored like the run on all labeled images; images: both "
    "on a fraction of their images; labels: a fraction of the labeled images of each class, compared with the run on all of its "
    "images; classes: all images, with the classes merged at random into groups of about equal size",
    "interval": "95 % as in evaluate; for CKA Student's t with the infinitesimal jackknife variance over test images",
}


@dataclass(frozen=True, kw_only=True)
class StudyRow(Row):
    """A score of an answer. Metrics are "knn", "linear" and "finetune", in %, and "cka"."""

    fraction: float | None = None
    """of the run's images for "data", of the labeled images for "labels" and "change\""""
    images: int | None = None
    """number of images in that fraction"""
    axis: str = ""
    """for "supervised", instead of fraction and images: "images", "labels" or "classes\""""
    at: int | None = None
    """number of images, labels or classes"""


@dataclass(frozen=True)
class Answer:
    """The answer to one question: scores, notes on what is missing and why, seeds of the runs, seconds taken."""

    rows: Sequence[StudyRow]
    skipped: Sequence[str]
    seeds: Sequence[int]
    seconds: float


@dataclass(frozen=True)
class Study:
    """The result of `study`, and its JSON form.

    {"schema": 2, "method", "data": {"train", "n_train", "test", "n_test", "classes"}, "protocol": {question: sentence},
     "answers": {question: {"rows": [row, …], "skipped": [sentence, …], "seeds", "seconds"}},
     "cautions": [sentence, …] about the run's length, "records": {"train": card, "test": card} as in evaluate}

    row: the fields of `StudyRow`, without empty ones.
    """

    method: str
    data: Mapping[str, Any]
    answers: Mapping[str, Answer] = field(default_factory=dict)
    cautions: Sequence[str] = ()
    records: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        whole = {"schema": SCHEMA, "method": self.method, "data": self.data, "protocol": PROTOCOL}
        found = {
            "answers": {
                question: vars(answer) | {"rows": [row.to_json() for row in answer.rows]}
                for question, answer in self.answers.items()
            },
            "cautions": list(self.cautions),
            "records": dict(self.records),
        }
        return json.dumps(whole | found, indent=2, allow_nan=False)

    def write(self, folder: Path) -> Path:
        """`study/TEST.json` in a run's folder."""
        path = folder / FOLDER / file_name(self.data["test"])
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, self.to_json() + "\n")
        return path


def read(folder: Path) -> list[Study]:
    """The studies in a run's folder, one per test set."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        content = read_json(path)
        answers = {question: parse_answer(**answer) for question, answer in content["answers"].items()}
        more = content.get("cautions", ()), content.get("records", {})
        found.append(Study(content["method"], content["data"], answers, *more))
    return found


def parse_answer(rows: Sequence[Mapping[str, Any]], **rest: Any) -> Answer:
    """An answer from its JSON form."""
    return Answer([StudyRow(**row) for row in rows], **rest)


# ---- the study


@checked
def study(
    what: Weights,
    data: Any,
    test: Any = None,
    *,
    labels: str | Path | None = None,
    ask: Sequence[Question] = USUAL,
    fractions: Sequence[float] = (),
    seeds: PositiveInt = 1,
    size: PositiveInt | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    out: str | Path | None = None,
    reading: Reading = DEFAULT_READING,
    progress: bool = True,
    on_log: OnLog | None = None,
    look: OnFeatures | None = None,
) -> Study:
    """Answer questions about a run, by default the first three; saved in RUN/study with earlier answers on the same data.

        found = pretask.study("runs/rotnet-photos-s0", "labeled/", test="held_out/", ask=["labels"])

    `what` is a run or its folder; `data`, `test` and `labels` are as in `evaluate`. `fractions` are of the run's images for "data", of
    the labeled images for "labels", and of both for "supervised"; the defaults are DATA, LABELS and SUPERVISED. `look` is
    called with the labeled images that a report shows.
    """
    check(ask, fractions)
    if not is_run(what):
        ask = without_runs(ask, seeds, what)
    loaded = load(what, InputConfig(size, mean, std))
    candidate = (
        Candidate.of_runs(seed_runs(loaded, seeds, on_log))
        if isinstance(loaded, Run)
        else Candidate.of_encoder(what, loaded)
    )
    folder = Path(out) if out else loaded.folder if isinstance(loaded, Run) else None
    family = candidate.runs
    options = OpenOptions(**canvas_fields(candidate.encoders[0]), reading=reading, progress=progress)
    train, unseen = labeled_pair(*split_paths(with_labels(data, labels), test), options)
    sources.require_single_label(
        train, "study", "name one column of labels by --labels-from, or use pretask evaluate"
    )
    shown = train if unseen is None else unseen
    train, unseen = protocol.split_off_test(train, 0) if unseen is None else (train, unseen)
    protocol.check(candidate.encoders, train, unseen)
    bench = Bench(train, protocol.renumber(unseen, train), progress)
    about = {"train": train.name, "n_train": len(train), "test": unseen.name, "n_test": len(unseen)}
    about |= {"classes": list(train.classes)}
    answers = next((s.answers for s in read(folder) if s.data == about), {}) if folder else {}

    pairs = [*Subject.pairs(candidate, bench)]
    questions = {
        "data": lambda: how_much_data(family, pairs, bench, fractions or DATA, on_log),
        "labels": lambda: how_many_labels(pairs, bench, fractions or LABELS),
        "change": lambda: how_much_change(pairs, bench),
        "supervised": lambda: how_much_supervision(family, pairs, bench, fractions or SUPERVISED, on_log),
    }
    announce(trainings(candidate, bench, ask, fractions))
    found = Study(candidate.name, about, answers, cautions(loaded.card) if isinstance(loaded, Run) else ())
    for question in QUESTIONS:
        if question in ask:
            began = time.perf_counter()
            items = list(questions[question]())
            rows = [item for item in items if not isinstance(item, str)]
            skipped = [item for item in items if isinstance(item, str)]
            took = round(time.perf_counter() - began, 1)
            answer = Answer(rows, skipped, [*candidate.seeds], took)
            found = replace(found, answers={**found.answers, question: answer})
            cards = {"train": train.ledger.card(), "test": unseen.ledger.card()}
            found = replace(found, records=cards)
            if folder is not None:
                path = found.write(folder)
                write_all(path.with_suffix(f".{BAD}"), [(each.name, each.ledger) for each in (train, unseen)])
    if look is not None:
        look(shown, None)
    return found


def without_runs(ask: Sequence[Question], seeds: int, what: Weights) -> Sequence[Question]:
    """The questions about published weights: those that need no run to repeat. Raises UserError for others that were asked."""
    if seeds > 1:
        require_run(what, "--seeds")
    possible: list[Question] = [question for question in ask if question in ("labels", "change")]
    if tuple(ask) != USUAL and len(possible) < len(ask):
        require_run(what, "--ask data and --ask supervised")
    return possible


def trainings(
    candidate: Candidate, bench: "Bench", ask: Sequence[str], fractions: Sequence[float]
) -> Iterator[forecast.Work]:
    """The trainings that the answers need, with their estimated durations, from the run's duration and from timed steps."""
    family, encoder, device = candidate.runs, candidate.encoders[0], bench.known["device"]
    fewer = {
        fraction
        for question, usual in (("data", DATA), ("supervised", SUPERVISED))
        if question in ask
        for fraction in fractions or usual
    }
    missing = [
        each
        for fraction in fewer - {1.0}
        for each in family
        if not too_few(each, fraction) and not (part_folder(each, fraction) / run.DONE).exists()
    ]
    yield forecast.Work("runs on fewer images", len(missing), family[0].seconds if family else 0.0)
    of_labels = len({*(fractions or LABELS)}) if "labels" in ask else 0
    tuned = 2 * len(candidate.encoders) * max(of_labels, int("change" in ask))
    if tuned:
        took = finetune.seconds_per_step(encoder, bench.train, finetune.TRAIN, device)
        yield forecast.Work("fine-tuned networks", tuned, finetune.STEPS * took)
    if "supervised" in ask:
        groups = sum(k < len(bench.train.classes) for k in CLASSES)
        count = len(family) * (len({*(fractions or SUPERVISED), 1.0}) + groups)
        took = finetune.seconds_per_step(encoder, bench.train, baselines.SUPERVISED, device)
        yield forecast.Work("supervised networks", count, budget(family[0]) * took)


def check(ask: Sequence[str], fractions: Sequence[float]) -> None:
    unknown = [question for question in ask if question not in QUESTIONS]
    if unknown or not ask:
        raise UserError(f"--ask {' '.join(unknown)}: unknown question; choose from {', '.join(QUESTIONS)}")
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise UserError(f"--fractions {fraction:g} is out of range; give numbers above 0, up to 1")


@dataclass(frozen=True)
class Bench:
    """The labeled images that all networks are scored on."""

    train: LabeledSource
    test: LabeledSource
    progress: bool

    @property
    def known(self) -> dict[str, Any]:
        return {"device": find_device(), "progress": self.progress}

    @property
    def positions(self) -> Tensor:
        """Positions of the readable training images, as far as known."""
        there = readable(self.train)
        return torch.arange(len(self.train)) if there is None else there


class Subject:
    """A trained or untrained network; features and the latest fine-tuned copy are cached."""

    def __init__(self, name: str, encoder: Encoder, seed: int, role: Role, bench: Bench):
        self.name, self.encoder, self.seed, self.role, self.bench = name, encoder, seed, role, bench
        self.decay = 1.0 if role == "untrained" else finetune.DECAY
        self.latest: dict[int, finetune.Classifier] = {}  # number of labels -> network fine-tuned on them

    @classmethod
    def of(cls, trained: Run, bench: Bench) -> "Subject":
        return cls(run.title(trained.card), trained.encoder, trained.card["seed"], "run", bench)

    @classmethod
    def pairs(cls, candidate: Candidate, bench: Bench) -> Iterator["Pair"]:
        """Each encoder and the untrained one of the same seed."""
        rows = zip(candidate.encoders, candidate.untrained, candidate.seeds, strict=True)
        for own, untrained, seed in rows:
            yield (
                cls(candidate.name, own, seed, candidate.role, bench),
                cls(f"untrained {untrained.name}", untrained, seed, "untrained", bench),
            )

    @cached_property
    def features(self) -> tuple[Features, Features]:
        """Pooled features of the training and test images."""
        pool = finetune.Classifier(self.encoder, nn.Identity()).eval()
        train, test = (
            embed(pool, source, **self.bench.known) for source in (self.bench.train, self.bench.test)
        )
        return train, test

    def tuned(self, index: Tensor) -> finetune.Classifier:
        """A copy fine-tuned with a new classifier on the labeled images at `index`."""
        if len(index) not in self.latest:
            self.latest.clear()
            net = copy.deepcopy(self.encoder).requires_grad_()
            self.latest[len(index)] = finetune.fit(
                net,
                self.bench.train,
                index,
                finetune.TRAIN,
                finetune.STEPS,
                self.seed,
                self.decay,
                name=f"{self.name}, {len(index):,} labels",
                **self.bench.known,
            )
        return self.latest[len(index)]


Pair = tuple[Subject, Subject]
"""a run, and the untrained network with the same seed"""
RowsAndNotes = Iterator[StudyRow | str]
"""rows, and notes on what is missing"""


def rows(
    subjects: Sequence[Subject], results: Sequence[Sequence[Result]], n: int | None = None, **about: Any
) -> Iterator[StudyRow]:
    """The results of each run -> rows with intervals; `about` holds further fields of the rows."""
    first = subjects[0]
    whose = {"name": first.name, "role": first.role, "seeds": [each.seed for each in subjects]}
    for row in protocol.combine_runs(results, 0, n, data=first.bench.test.name, **whose):
        yield StudyRow(**vars(row), **about)


# ---- how much data?


def how_much_data(
    family: Sequence[Run],
    pairs: Sequence[Pair],
    bench: Bench,
    fractions: Sequence[float],
    on_log: OnLog | None,
) -> RowsAndNotes:
    """Scores of the run, repeated on fractions of its images."""
    n = family[0].card["n"]
    yield from scored([untrained for _, untrained in pairs], fraction=0.0, images=0)
    for fraction in sorted({*fractions} - {1.0}):
        if note := too_few(family[0], fraction):
            yield note
            continue
        fewer = [part(each, fraction, on_log) for each in family]
        yield from scored([Subject.of(f, bench) for f in fewer], fraction=fraction, images=fewer[0].card["n"])
    yield from scored([trained for trained, _ in pairs], fraction=1.0, images=n)


def too_few(of: Run, fraction: float) -> str:
    """A note if that fraction of the images is less than one batch, otherwise an empty string."""
    count, batch = round(fraction * of.card["n"]), of.card["train"]["batch"]
    if count >= batch:
        return ""
    return f"no run on {fraction:g} of the images: {count} is less than one batch of {batch}"


def part(of: Run, fraction: float, on_log: OnLog | None) -> Run:
    """The run on that fraction of its images: loaded from its folder, or trained now."""
    own = run.parse_card(of.card)[1].fraction
    return repeated(of, part_folder(of, fraction), on_log, fraction=fraction * own)


def part_folder(of: Run, fraction: float) -> Path:
    return of.folder / FOLDER / f"fraction-{fraction:g}"


def scored(subjects: Sequence[Subject], **about: Any) -> Iterator[StudyRow]:
    results = []
    for subject in subjects:
        train, test = subject.features
        chosen = measure.choose(train, len(train.classes), 0)
        near = measure.score_knn(train, test, len(train.classes), chosen.k)
        results.append([*near, probed(test, chosen)])
    yield from rows(subjects, results, **about)


def probed(test: Features, chosen: measure.Chosen) -> Result:
    """The linear probe on pooled features."""
    return next(measure.score_probes(test, chosen))


# ---- how many labels?


def how_many_labels(pairs: Sequence[Pair], bench: Bench, fractions: Sequence[float]) -> RowsAndNotes:
    """Linear probe and fine-tuning on fractions of the labels."""
    for each in (subject for pair in pairs for subject in pair):
        _ = each.features  # finds the unreadable images
    label, former = bench.train.label[bench.positions], torch.tensor(-1)
    for fraction in sorted({*fractions}):
        counts = per_class(label, fraction)
        if torch.equal(counts, former):
            yield f"no row for {fraction:g} of the labels: these are the same images as for the previous fraction"
            continue
        former = counts
        for subjects in zip(*pairs, strict=True):
            drawn = [labels(label, fraction, subject.seed) for subject in subjects]
            results = [
                [few_probed(subject.features, few), tuned(subject, bench.positions[few])]
                for subject, few in zip(subjects, drawn, strict=True)
            ]
            yield from rows(subjects, results, fraction=fraction, images=len(drawn[0]))


def per_class(label: Tensor, fraction: float) -> Tensor:
    """(N,) -> (K,): number of images in that fraction of each class, at least one if there are any."""
    count = label.bincount()
    return torch.minimum((fraction * count).round().long().clamp(min=1), count)


def labels(label: Tensor, fraction: float, seed: int) -> Tensor:
    """Positions of a fraction of each class; for the same seed, smaller fractions are subsets of larger ones."""
    return (ranks(label, Rng(seed, "labels")) < per_class(label, fraction)[label]).nonzero().flatten()


def few_probed(features: tuple[Features, Features], few: Tensor) -> Result:
    """The linear probe on the samples `few`; its penalty is chosen on some of them, or is that of the few-shot probe."""
    train, test = features
    x, label = train.stages["pool"], train.label[few]
    count = label.bincount()
    if count[count > 0].min() >= ENOUGH:
        part = Features({"pool": x[few]}, label, train.classes, train.source)
        return probed(test, measure.choose(part, len(train.classes), 0))
    (probe,) = fewshot.probes(x, train.label, len(train.classes), [few])
    right = probe.predict(test.stages["pool"]) == test.label
    return measure.accuracy("linear", "pool", right, {"penalty": fewshot.PENALTY})


def tuned(subject: Subject, index: Tensor) -> Result:
    found = embed(subject.tuned(index), subject.bench.test, **subject.bench.known)
    right = found.stages["pool"].argmax(1) == found.label
    return measure.accuracy("finetune", "", right, {"decay": subject.decay})


# ---- how much do features change in fine-tuning?


def how_much_change(pairs: Sequence[Pair], bench: Bench) -> RowsAndNotes:
    """CKA per stage between features before and after fine-tuning on all labels."""
    every = bench.positions
    some = Rng(0, "change").permutation(len(bench.test))[:COMPARED].sort().values
    few = LabeledSubset(bench.test, some, bench.test.name)
    for subjects in zip(*pairs, strict=True):
        results = [change(subject, every, few) for subject in subjects]
        for row in rows(subjects, results, fraction=1.0, images=len(every), n=len(few)):
            assert row.low is not None and row.high is not None
            yield replace(row, low=max(0.0, row.low), high=min(1.0, row.high))


def change(subject: Subject, index: Tensor, few: LabeledSource) -> list[Result]:
    nets = subject.encoder, subject.tuned(index).encoder
    before, after = (embed(net, few, **subject.bench.known).stages for net in nets)
    found = {stage: cka(before[stage], after[stage]) for stage in before}
    return [Result("cka", stage, value=f.value, variance=f.variance) for stage, f in found.items()]


# ---- what if the encoder were pretrained with labels?


def how_much_supervision(
    family: Sequence[Run],
    pairs: Sequence[Pair],
    bench: Bench,
    fractions: Sequence[float],
    on_log: OnLog | None,
) -> RowsAndNotes:
    """Scores of the run and of the same encoder pretrained with labels, on fewer images, labels or classes.

    Supervised pretraining cannot use unlabeled images, so fewer labels mean fewer images for it, but not for the run.
    """
    own, steps = [trained for trained, _ in pairs], budget(family[0])
    whole = list(scored(own))  # first, since it finds the unreadable images
    label, classes, found = bench.train.label[bench.positions], len(bench.train.classes), whole
    for fraction in sorted({*fractions, 1.0}):
        if note := too_few(family[0], fraction):
            yield note
            continue
        fewer = [part(each, fraction, on_log) for each in family] if fraction < 1 else family
        images = scored([Subject.of(each, bench) for each in fewer]) if fraction < 1 else whole
        found = list(scored([supervised(each, fraction, classes, steps) for each in own]))
        count = int(per_class(label, fraction).sum())
        yield from at("images", fewer[0].card["n"], images)
        yield from at("images", count, found)
        yield from at("labels", count, [*whole, *found])
    for groups in (k for k in CLASSES if k < classes):
        merged = scored([supervised(each, 1.0, groups, steps) for each in own])
        yield from at("classes", groups, [*whole, *merged])
    yield from at("classes", classes, [*whole, *found])


def at(axis: str, count: int, rows: Iterable[StudyRow]) -> RowsAndNotes:
    yield from (replace(row, axis=axis, at=count) for row in rows)


def supervised(of: Subject, fraction: float, groups: int, steps: int) -> Subject:
    """The encoder trained with that fraction of the labels, with the classes merged into `groups` groups."""
    bench, there = of.bench, of.bench.positions
    few = there[labels(bench.train.label[there], fraction, of.seed)]
    part = LabeledSubset(bench.train, few, bench.train.name)
    if groups < len(part.classes):
        part.label = Rng(of.seed, "classes").permutation(len(part.classes))[part.label] % groups
        part.classes = [str(group) for group in range(groups)]
    name = f"supervised, {len(few):,} labels of {groups} classes"
    net = baselines.supervised(of.encoder, part, steps, of.seed, name=name, **bench.known)
    return Subject(f"supervised {net.name}", net, of.seed, "supervised", bench)
