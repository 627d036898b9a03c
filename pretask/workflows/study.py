"""Questions to a run of any method: how much data, how many labels, how much do features change in fine-tuning? And what
would pretraining with labels have given?

`pretask study RUN --data LABELLED`. Larsson, Maire and Shakhnarovich (CVPR 2017, arXiv:1703.04044, abstract) asked how
much data and how many labels *pretraining with labels* takes, and how far features change in fine-tuning, to see what
colorization is worth beside it. Here "supervised" asks the first two of them as they did, on the labels at hand; "data",
"labels" and "change" ask the run itself. Their tables could not be read: shares, numbers of classes and the way in which
classes are merged are pretask's. Change is measured by CKA (evals/cka.py).
"""

import copy
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretask.encoders import Encoder
from pretask.evals import baselines, fewshot, finetune, measure
from pretask.evals import protocol as evaluate
from pretask.evals.cka import cka
from pretask.evals.features import Features, embed, readable
from pretask.evals.holdout import Part, ranks
from pretask.evals.measure import Result
from pretask.rng import Rng
from pretask.runtime import files as checkpoint
from pretask.runtime.device import find_device
from pretask.train import run
from pretask.train.logger import Tell
from pretask.train.plan import cautions
from pretask.train.run import Run
from pretask.types import Labelled, UserError
from pretask.workflows.evaluate import budget, labelled, repeated, sisters

SCHEMA = 1
FOLDER = "study"
Question = Literal["data", "labels", "change", "supervised"]
QUESTIONS: tuple[Question, ...] = ("data", "labels", "change", "supervised")
USUAL = QUESTIONS[:3]
"""what is asked where nothing else is said"""
DATA = (0.1, 0.3)
"""shares of the run's images, beside 0 and 1"""
LABELS = (0.01, 0.1, 1.0)
"""shares of the labelled training images"""
SUPERVISED = (0.1, 0.3)
"""shares of images and of labels that a network is pretrained with, beside all of them"""
CLASSES = (2, 5, 10, 100)
"""into so many groups its classes are merged, as far as there are more"""
ENOUGH = 5
"""labelled images of each class with which a fifth of them can be held out to choose the penalty on"""
COMPARED = 2_000
"""test images, at most, whose features are compared before and after fine-tuning"""
PROTOCOL = {
    "data": "the run repeated with the same steps, seed and recipe on a share of its images, drawn at random, smaller shares "
    "within larger ones; share 1 is the run itself, 0 the untrained encoder; kNN and linear probe on pooled features as in "
    "evaluate",
    "labels": "a share of the labelled training images, drawn class by class, at least one of each; linear: a probe on pooled "
    f"features, its penalty chosen on a fifth of these images where each class has {ENOUGH} or more, else "
    f"{fewshot.PENALTY} on standardised rows of about unit length; finetune: as in evaluate, {finetune.STEPS} steps at any "
    f"number of labels, layer decay {finetune.DECAY}, and 1 for the untrained encoder, which is trained from scratch",
    "change": f"linear CKA of the features before and after fine-tuning on all labels, at each stage, on {COMPARED} test images "
    "at most; 1: the same up to rotation and scale",
    "supervised": "the run beside the same encoder trained with labels from its first weights, on as many images as the run saw, "
    f"with AdamW (batch {baselines.SUPERVISED.batch}, lr {baselines.SUPERVISED.lr}, weight decay "
    f"{baselines.SUPERVISED.weight_decay}, shifts and flips), frozen and scored like the run on all labelled images; images: both "
    "on a share of their images; labels: a share of the labelled images, drawn class by class, beside the run on all of its "
    "own; classes: all images, whose classes are merged at random into groups of about as many",
    "interval": "95 % as in evaluate; of CKA Student's t with the infinitesimal jackknife's variance over test images",
}


@dataclass(frozen=True)
class Answer:
    """To one question: its numbers, what is missing and why, the seeds of the runs that were asked, the time it took."""

    rows: Sequence[Mapping[str, Any]]
    skipped: Sequence[str]
    seeds: Sequence[int]
    seconds: float


@dataclass(frozen=True)
class Study:
    """What `study` found, and the JSON that it is kept as.

    {"schema": 1, "method", "data": {"train", "n_train", "test", "n_test", "classes"}, "protocol": {question: sentence},
     "answers": {question: {"rows": [row, …], "skipped": [sentence, …], "seeds", "seconds"}},
     "cautions": [sentence, …] about the run's length}

    row: {"share", "images": that the share is, "features": whose, "own": true for the run's, "eval": "knn" | "linear" |
    "finetune" | "cka", "value", "low", "high", "n": test images, "values": of each run, "chosen": settings of each run};
    and "stage" but for fine-tuning. Values are percentages, but for cka. The share of "data" is of the run's own images,
    that of "labels" of the labelled ones; "change" is of all labels, which are 1 and their number. Rows of "supervised" have
    "axis": "images" | "labels" | "classes", and "at", how many there are on it, in place of share and images.
    """

    method: str
    data: Mapping[str, Any]
    answers: Mapping[str, Answer] = field(default_factory=dict)
    cautions: Sequence[str] = ()

    def to_json(self) -> str:
        whole = {"schema": SCHEMA, "method": self.method, "data": self.data, "protocol": PROTOCOL}
        found = {"answers": asdict(self)["answers"], "cautions": list(self.cautions)}
        return json.dumps(whole | found, indent=2, allow_nan=False)

    def write(self, folder: Path) -> Path:
        """`study/TEST.json` in a run's folder."""
        path = folder / FOLDER / evaluate.file_name(self.data["test"])
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(path, self.to_json() + "\n")
        return path


def read(folder: Path) -> list[Study]:
    """The studies that a run's folder holds, one for each test set."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        content = json.loads(path.read_text())
        answers = {question: Answer(**answer) for question, answer in content["answers"].items()}
        found.append(Study(content["method"], content["data"], answers, content.get("cautions", ())))
    return found


# ---- the whole


def study(
    what: Run | str | Path,
    data: Any,
    test: Any = None,
    *,
    ask: Sequence[Question] = USUAL,
    shares: Sequence[float] = (),
    seeds: int = 1,
    root: Path | None = None,
    max_bad: float = 0.1,
    progress: bool = True,
    tell: Tell | None = None,
) -> Study:
    """Ask a run some questions, by default the first three; kept in RUN/study, where answers to others on the same data stay.

        found = pretask.study("runs/rotnet-photos-s0", "labelled/", test="held_out/", ask=["labels"])

    `what` is a run or its folder; `data` and `test` are what `evaluate` takes. `shares` are of the run's images for
    "data", of the labelled images for "labels" and of both for "supervised", in the place of DATA, LABELS and SUPERVISED.
    """
    if not isinstance(what, Run) and str(what).startswith("timm:"):
        raise UserError(f"{what} is no run, so it cannot be repeated; give the folder of a run")
    check(ask, shares)
    family = sisters(what if isinstance(what, Run) else Run(what), seeds, tell)
    first = family[0]
    known = {"size": first.encoder.size, "channels": first.encoder.channels, "root": root, "max_bad": max_bad}
    train, unseen = (None if d is None else labelled(d, progress=progress, **known) for d in (data, test))
    assert train is not None
    train, unseen = evaluate.parts(train, 0) if unseen is None else (train, unseen)
    evaluate.check([each.encoder for each in family], train, unseen)
    bench = Bench(train, evaluate.renumbered(unseen, train), progress)
    about = {"train": train.name, "n_train": len(train), "test": unseen.name, "n_test": len(unseen)}
    about |= {"classes": list(train.classes)}
    answers = next((s.answers for s in read(first.folder) if s.data == about), {})

    pairs = [(Subject.of(each, bench), Subject.untrained(each, bench)) for each in family]
    questions = {
        "data": lambda: how_much_data(family, pairs, bench, shares or DATA, tell),
        "labels": lambda: how_many_labels(pairs, bench, shares or LABELS),
        "change": lambda: how_much_change(pairs, bench),
        "supervised": lambda: how_much_supervision(family, pairs, bench, shares or SUPERVISED, tell),
    }
    found = Study(run.title(first.card), about, answers, cautions(first.card))
    for question in QUESTIONS:
        if question in ask:
            began = time.perf_counter()
            said = list(questions[question]())
            rows, skipped = (
                [s for s in said if not isinstance(s, str)],
                [s for s in said if isinstance(s, str)],
            )
            took = round(time.perf_counter() - began, 1)
            answer = Answer(rows, skipped, [each.card["seed"] for each in family], took)
            found = replace(found, answers={**found.answers, question: answer})
            found.write(first.folder)
    return found


def check(ask: Sequence[str], shares: Sequence[float]) -> None:
    unknown = [question for question in ask if question not in QUESTIONS]
    if unknown or not ask:
        raise UserError(f"--ask {' '.join(unknown)} is no question; give some of {', '.join(QUESTIONS)}")
    for share in shares:
        if not 0 < share <= 1:
            raise UserError(f"--shares {share:g} is no share; give numbers above 0, up to 1")


@dataclass(frozen=True)
class Bench:
    """The labelled images that all networks are judged on."""

    train: Labelled
    test: Labelled
    progress: bool

    @property
    def known(self) -> dict[str, Any]:
        return {"device": find_device(), "progress": self.progress}

    @property
    def positions(self) -> Tensor:
        """Of the training images that can be read, as far as that is known."""
        there = readable(self.train)
        return torch.arange(len(self.train)) if there is None else there


class Subject:
    """A network that is asked about, as a run left it or untrained; what costs time is made once."""

    def __init__(self, name: str, encoder: Encoder, seed: int, own: bool, bench: Bench):
        self.name, self.encoder, self.seed, self.own, self.bench = name, encoder, seed, own, bench
        self.decay = finetune.DECAY if own else 1.0
        self.latest: dict[
            int, finetune.Classified
        ] = {}  # number of labels -> the network trained on with them

    @classmethod
    def of(cls, trained: Run, bench: Bench) -> "Subject":
        return cls(run.title(trained.card), trained.encoder, trained.card["seed"], True, bench)

    @classmethod
    def untrained(cls, trained: Run, bench: Bench) -> "Subject":
        net = trained.untrained
        return cls(f"untrained {net.name}", net, trained.card["seed"], False, bench)

    @cached_property
    def features(self) -> tuple[Features, Features]:
        """Pooled, of the training and the test images."""
        pool = finetune.Classified(self.encoder, nn.Identity()).eval()
        train, test = (
            embed(pool, source, **self.bench.known) for source in (self.bench.train, self.bench.test)
        )
        return train, test

    def tuned(self, index: Tensor) -> finetune.Classified:
        """A copy trained on, with a new classifier, from the labelled images at `index`."""
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
"""a run and, with its seed, the untrained network"""
Said = Iterator[dict[str, Any] | str]
"""rows, and sentences about what is missing"""


def rows(
    subjects: Sequence[Subject], results: Sequence[Sequence[Result]], **about: Any
) -> Iterator[dict[str, Any]]:
    """The results of each run -> rows with intervals."""
    whose = {"features": subjects[0].name, "own": subjects[0].own}
    yield from (about | whose | row for row in evaluate.combined(results, 0, about.get("n")))


# ---- how much data?


def how_much_data(
    family: Sequence[Run], pairs: Sequence[Pair], bench: Bench, shares: Sequence[float], tell: Tell | None
) -> Said:
    """Scores of the run repeated on shares of its images."""
    n = family[0].card["n"]
    yield from scored([untrained for _, untrained in pairs], share=0.0, images=0)
    for share in sorted({*shares} - {1.0}):
        if lacking := too_few(family[0], share):
            yield lacking
            continue
        fewer = [part(each, share, tell) for each in family]
        yield from scored([Subject.of(f, bench) for f in fewer], share=share, images=fewer[0].card["n"])
    yield from scored([trained for trained, _ in pairs], share=1.0, images=n)


def too_few(of: Run, share: float) -> str:
    """Why a run on that share of its images would not even have one batch; "" if it has."""
    count, batch = round(share * of.card["n"]), of.card["train"]["batch"]
    if count >= batch:
        return ""
    return f"no run on {share:g} of the images: {count} are fewer than one batch of {batch}"


def part(of: Run, share: float, tell: Tell | None) -> Run:
    """The run on that share of its images: found in its folder, finished, or trained now."""
    own = run.revive(of.card)[1].share
    return repeated(of, of.folder / FOLDER / f"share-{share:g}", tell, share=share * own)


def scored(subjects: Sequence[Subject], **about: Any) -> Iterator[dict[str, Any]]:
    results = []
    for subject in subjects:
        train, test = subject.features
        chosen = measure.choose(train, len(train.classes), 0)
        near = measure.by_neighbours(train, test, len(train.classes), chosen.k)
        results.append([*near, probed(test, chosen)])
    yield from rows(subjects, results, **about)


def probed(test: Features, chosen: measure.Chosen) -> Result:
    """The linear probe on pooled features."""
    return next(measure.by_probes(test, chosen))


# ---- how many labels?


def how_many_labels(pairs: Sequence[Pair], bench: Bench, shares: Sequence[float]) -> Said:
    """Frozen and trained on, with shares of the labels."""
    for each in (subject for pair in pairs for subject in pair):
        _ = each.features  # unreadable images are known from here on
    label, former = bench.train.label[bench.positions], torch.tensor(-1)
    for share in sorted({*shares}):
        counts = per_class(label, share)
        if torch.equal(counts, former):
            yield f"no {share:g} of the labels: they are the same images as of the share before"
            continue
        former = counts
        for subjects in zip(*pairs, strict=True):
            drawn = [labels(label, share, subject.seed) for subject in subjects]
            results = [
                [few_probed(subject.features, few), tuned(subject, bench.positions[few])]
                for subject, few in zip(subjects, drawn, strict=True)
            ]
            yield from rows(subjects, results, share=share, images=len(drawn[0]))


def per_class(label: Tensor, share: float) -> Tensor:
    """(N,) -> (K,): that share of each class, at least one image of those that have any."""
    count = label.bincount()
    return torch.minimum((share * count).round().long().clamp(min=1), count)


def labels(label: Tensor, share: float, seed: int) -> Tensor:
    """Positions of a share of each class; of one seed a smaller share lies within a larger one."""
    return (ranks(label, Rng(seed, "labels")) < per_class(label, share)[label]).nonzero().flatten()


def few_probed(features: tuple[Features, Features], few: Tensor) -> Result:
    """The linear probe of the samples `few`; its penalty is chosen on some of them, or is that of few shots."""
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


def how_much_change(pairs: Sequence[Pair], bench: Bench) -> Said:
    """Stage by stage, how like themselves features stay when the network is fine-tuned on all labels."""
    every = bench.positions
    some = Rng(0, "change").permutation(len(bench.test))[:COMPARED].sort().values
    few = Part(bench.test, some, bench.test.name)
    for subjects in zip(*pairs, strict=True):
        results = [change(subject, every, few) for subject in subjects]
        for row in rows(subjects, results, share=1.0, images=len(every), n=len(few)):
            yield row | {"low": max(0.0, row["low"]), "high": min(1.0, row["high"])}


def change(subject: Subject, index: Tensor, few: Labelled) -> list[Result]:
    nets = subject.encoder, subject.tuned(index).encoder
    before, after = (embed(net, few, **subject.bench.known).stages for net in nets)
    found = {stage: cka(before[stage], after[stage]) for stage in before}
    return [Result("cka", stage, f.value, variance=f.variance) for stage, f in found.items()]


# ---- what would pretraining with labels have given?


def how_much_supervision(
    family: Sequence[Run], pairs: Sequence[Pair], bench: Bench, shares: Sequence[float], tell: Tell | None
) -> Said:
    """Scores of the run, and of the same encoder pretrained with labels: fewer images, fewer labels, fewer classes.

    An image without a label teaches the latter nothing, so that fewer labels are fewer images to it, but not to the run.
    """
    own, steps = [trained for trained, _ in pairs], budget(family[0])
    whole = list(scored(own))  # first of all, since unreadable images are known from here on
    label, classes, found = bench.train.label[bench.positions], len(bench.train.classes), whole
    for share in sorted({*shares, 1.0}):
        if lacking := too_few(family[0], share):
            yield lacking
            continue
        fewer = [part(each, share, tell) for each in family] if share < 1 else family
        images = scored([Subject.of(each, bench) for each in fewer]) if share < 1 else whole
        found = list(scored([supervised(each, share, classes, steps) for each in own]))
        count = int(per_class(label, share).sum())
        yield from at("images", fewer[0].card["n"], images)
        yield from at("images", count, found)
        yield from at("labels", count, [*whole, *found])
    for groups in (k for k in CLASSES if k < classes):
        merged = scored([supervised(each, 1.0, groups, steps) for each in own])
        yield from at("classes", groups, [*whole, *merged])
    yield from at("classes", classes, [*whole, *found])


def at(axis: str, count: int, rows: Iterable[dict[str, Any]]) -> Said:
    yield from ({"axis": axis, "at": count} | row for row in rows)


def supervised(of: Subject, share: float, groups: int, steps: int) -> Subject:
    """The encoder trained with that share of the labels, of classes that are merged into so many groups."""
    bench, there = of.bench, of.bench.positions
    few = there[labels(bench.train.label[there], share, of.seed)]
    part = Part(bench.train, few, bench.train.name)
    if groups < len(part.classes):
        part.label = Rng(of.seed, "classes").permutation(len(part.classes))[part.label] % groups
        part.classes = [str(group) for group in range(groups)]
    name = f"supervised, {len(few):,} labels of {groups} classes"
    net = baselines.supervised(of.encoder, part, steps, of.seed, name=name, **bench.known)
    return Subject(f"supervised {net.name}", net, of.seed, False, bench)
