"""All protocols on one encoder's features; every setting is chosen on held-out training samples.

The test labels are read for the score alone: no k, penalty or stage depends on them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pretask.evals import cluster_metrics as clustering
from pretask.evals import fewshot, knn, retrieval
from pretask.evals import label_free as spread
from pretask.evals import linear_probe as linear
from pretask.evals.confidence import resampled
from pretask.evals.features import Features
from pretask.evals.holdout import splits


@dataclass(frozen=True)
class Result:
    """One number on one set of features in one run, before intervals."""

    eval: str
    stage: str
    value: float  # %, but for the label-free numbers
    right: Tensor | None = None  # (N,) of every test sample, 0 … 1: its mean is the value
    variance: float | None = None  # of the value over test sets, where it is no mean over samples
    notes: Mapping[str, Any] = field(default_factory=dict)


def measure(train: Features, test: Features, chosen: "Chosen", seed: int = 0) -> list[Result]:
    """All evaluations of one encoder's features. What was chosen has seen nothing of `test`."""
    classes = len(train.classes)
    return [
        *by_neighbours(train, test, classes, chosen.k),
        *by_probes(test, chosen),
        *by_few(train, test, classes, seed),
        *by_clusters(test, seed),
        *by_retrieval(test),
        *(Result(e, "pool", v) for e, v in spread.spread(test.stages["pool"]).items()),
    ]


@dataclass(frozen=True)
class Chosen:
    """k, and for every stage its penalty; the best stage is the one most accurate on held-out samples."""

    k: int
    probes: Mapping[str, linear.Choice]

    @property
    def stage(self) -> str:
        return self.best([*self.probes])

    def best(self, stages: Sequence[str]) -> str:
        """Of some stages, from shallow to deep; of equals the deepest."""
        return max(reversed(stages), key=lambda stage: self.probes[stage].accuracy)


def choose(train: Features, classes: int, seed: int) -> Chosen:
    label, ways = train.label, splits(train.label, seed)
    k = knn.choose(train.stages["pool"], label, classes, ways)
    return Chosen(k, {stage: linear.choose(x, label, classes, ways) for stage, x in train.stages.items()})


def accuracy(eval: str, stage: str, right: Tensor, notes: Mapping[str, Any]) -> Result:
    return Result(eval, stage, 100 * right.double().mean().item(), right.double(), notes=notes)


def by_neighbours(train: Features, test: Features, classes: int, k: int) -> Iterator[Result]:
    predicted = knn.knn(train.stages["pool"], train.label, test.stages["pool"], classes, k)
    yield accuracy("knn", "pool", predicted == test.label, {"k": k})


def by_probes(test: Features, chosen: Chosen) -> Iterator[Result]:
    """A probe at every stage, on all training samples, with the penalty chosen for it."""
    for stage, choice in chosen.probes.items():
        right, penalty = choice.probe.predict(test.stages[stage]) == test.label, choice.penalty
        yield accuracy("linear", stage, right, {"penalty": penalty})
        if stage == chosen.stage:
            yield accuracy("best linear", "", right, {"stage": stage, "penalty": penalty})


def by_few(train: Features, test: Features, classes: int, seed: int) -> Iterator[Result]:
    x, label, unseen = train.stages["pool"], train.label, test.stages["pool"]
    for shots in feasible(label):
        right = fewshot.fewshot(x, label, unseen, test.label, classes, shots, seed).double()
        draws = (100 * right.mean(1)).tolist()
        yield accuracy(f"{shots}-shot", "pool", right.mean(0), {"draws": [round(d, 3) for d in draws]})


def feasible(label: Tensor) -> list[int]:
    """How many shots every class that is there has samples for."""
    count = label.bincount()
    return [shots for shots in fewshot.SHOTS if shots <= count[count > 0].min()]


def by_clusters(test: Features, seed: int) -> Iterator[Result]:
    label = test.label.unique(return_inverse=True)[1]  # numbers of the classes that are there
    found = clustering.cluster(test.stages["pool"], int(label.max()) + 1, seed)
    table = clustering.table(label, found)
    again = resampled(table.ravel(), seed).reshape(-1, *table.shape)
    for eval, agreement in (("nmi", clustering.nmi), ("ari", clustering.ari)):
        variance = float(
            (100 * agreement(again)).var()
        )  # not the quantiles: sets drawn anew seem to agree more
        yield Result(eval, "pool", 100 * float(agreement(table)), variance=variance)
    yield accuracy("acc", "pool", clustering.matched(label, found), {"clusters": int(label.max()) + 1})


def by_retrieval(test: Features) -> Iterator[Result]:
    if len(test) > 1:
        for k, hit in retrieval.hits(test.stages["pool"], test.label).items():
            yield accuracy(f"recall@{k}", "pool", hit, {})
