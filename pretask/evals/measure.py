"""Scores of one encoder's features by every protocol; hyperparameters are chosen on held-out training samples.

Test labels are used for scoring only: no k, penalty or stage depends on them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from pretask.evals import cluster_metrics, fewshot, knn, label_free, linear_probe, retrieval
from pretask.evals.confidence import bootstrap_counts
from pretask.evals.features import Features
from pretask.evals.holdout import splits, strata
from pretask.evals.scores import Measurement
from pretask.ops import kmeans


@dataclass(frozen=True, kw_only=True)
class Result(Measurement):
    """One number for one set of features in one run, without an interval."""

    value: float  # %, except for the label-free metrics
    correct: Tensor | None = None  # (N,) per test sample, 0 … 1; the value is its mean
    variance: float | None = None  # of the value over test sets, if it is no mean over samples
    bootstrap: np.ndarray | None = (
        None  # or (RESAMPLES,) values on resampled test sets, the same for all rows
    )
    notes: Mapping[str, Any] = field(default_factory=dict)


def measure(train: Features, test: Features, chosen: "Chosen", seed: int = 0) -> list[Result]:
    """All scores of one encoder's features, with hyperparameters chosen without `test`."""
    classes = len(train.classes)
    return [
        *score_knn(train, test, classes, chosen.k),
        *score_probes(test, chosen),
        *score_fewshot(train, test, classes, seed),
        *score_clusters(test, seed),
        *score_retrieval(test),
        *(Result(metric, "pool", value=v) for metric, v in label_free.metrics(test.stages["pool"]).items()),
        Result("stability", "pool", value=label_free.stability(test.stages["pool"], seed)),
    ]


@dataclass(frozen=True)
class Chosen:
    """k, and the linear probe's penalty at each stage."""

    k: int
    probes: Mapping[str, linear_probe.Choice]

    @property
    def stage(self) -> str:
        """The stage whose probe does best on held-out samples."""
        return self.best([*self.probes])

    def best(self, stages: Sequence[str]) -> str:
        """The best of these stages, which go from shallow to deep; the deepest of equals."""
        return max(reversed(stages), key=lambda stage: self.probes[stage].score)


def choose(train: Features, classes: int, seed: int) -> Chosen:
    label, held_out = train.label, splits(train.label, seed)
    k = knn.choose(train.stages["pool"], label, classes, held_out)
    return Chosen(
        k, {stage: linear_probe.choose(x, label, classes, held_out) for stage, x in train.stages.items()}
    )


def accuracy(
    metric: str,
    stage: str,
    correct: Tensor,
    notes: Mapping[str, Any],
    *,
    shots: int | None = None,
    k: int | None = None,
) -> Result:
    """(N,) 1 for a correct prediction, 0 for a wrong one, or in between -> accuracy in %."""
    value = 100 * correct.double().mean().item()
    return Result(metric, stage, shots, k, value=value, correct=correct.double(), notes=notes)


def score_knn(train: Features, test: Features, classes: int, k: int) -> Iterator[Result]:
    predicted = knn.knn(train.stages["pool"], train.label, test.stages["pool"], classes, k)
    yield accuracy("knn", "pool", predicted == test.label, {"k": k})


def score_probes(test: Features, chosen: Chosen) -> Iterator[Result]:
    """A probe at each stage, fitted to all training samples with the penalty chosen for it."""
    for stage, choice in chosen.probes.items():
        correct, penalty = choice.probe.predict(test.stages[stage]) == test.label, choice.penalty
        yield accuracy("linear", stage, correct, {"penalty": penalty})
        if stage == chosen.stage:
            yield accuracy("best linear", "", correct, {"stage": stage, "penalty": penalty})


def score_fewshot(train: Features, test: Features, classes: int, seed: int) -> Iterator[Result]:
    x, label, x_test = train.stages["pool"], train.label, test.stages["pool"]
    for shots in feasible_shots(label):
        correct = fewshot.fewshot(x, label, x_test, test.label, classes, shots, seed).double()
        draws = (100 * correct.mean(1)).tolist()
        notes = {"draws": [round(d, 3) for d in draws]}
        yield accuracy("few-shot", "pool", correct.mean(0), notes, shots=shots)


def feasible_shots(label: Tensor) -> list[int]:
    """The numbers of shots that each class present has samples for; for multi-label images, numbers of images."""
    count = strata(label).bincount()
    return [n for n in (fewshot.SHOTS if label.ndim == 1 else fewshot.IMAGES) if n <= count[count > 0].min()]


def score_clusters(test: Features, seed: int) -> Iterator[Result]:
    label = test.label.unique(return_inverse=True)[1]  # numbers of the classes that are present
    cluster = kmeans.cluster(test.stages["pool"], int(label.max()) + 1, seed)
    table = cluster_metrics.contingency_table(label, cluster)
    resampled = bootstrap_counts(table.ravel(), seed).reshape(-1, *table.shape)
    for metric, agreement in (("nmi", cluster_metrics.nmi), ("ari", cluster_metrics.ari)):
        # no percentiles: duplicates in resampled sets raise the agreement
        variance = float((100 * agreement(resampled)).var())
        yield Result(metric, "pool", value=100 * float(agreement(table)), variance=variance)
    correct = cluster_metrics.hungarian_correct(label, cluster)
    yield accuracy("acc", "pool", correct, {"clusters": int(label.max()) + 1})


def score_retrieval(test: Features) -> Iterator[Result]:
    if len(test) > 1:
        for k, hit in retrieval.hits(test.stages["pool"], test.label).items():
            yield accuracy("recall", "pool", hit, {}, k=k)
