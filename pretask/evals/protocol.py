"""From encoders to scores: every protocol for every row, with hyperparameters chosen on held-out training samples.

`evaluate` computes features, `measure` (in its own file) scores the training and test features of one encoder, and
`combine_runs` combines the results of several runs.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretask.data.subset import LabeledSubset
from pretask.encoders import Encoder
from pretask.evals import (
    baselines,
    fewshot,
    forecast,
    knn,
    label_free,
    linear_probe,
    measure,
    multilabel,
    nonlinear_probes,
    text_retrieval,
)
from pretask.evals import finetune as finetuning
from pretask.evals import leaks as leaking
from pretask.evals import svm as svms
from pretask.evals.confidence import (
    LEVEL,
    RESAMPLES,
    Interval,
    bootstrap_interval,
    interval,
    student_interval,
)
from pretask.evals.features import Features, embed, readable
from pretask.evals.forecast import announce
from pretask.evals.holdout import FOLDS, MAX_FIT, MAX_FOLDED, MAX_HELD_OUT, REPEATS, split, strata
from pretask.evals.measure import Result, feasible_shots
from pretask.evals.scores import Difference, Measurement, Role, Row, Scores
from pretask.ops import kmeans
from pretask.rng import Rng
from pretask.types import LabeledSource, Source, UserError

TEST_FRACTION = 0.2
"""fraction of each class set aside for testing if no test set is given"""
PROTOCOL = {
    "features": "computed once, in evaluation mode, without augmentation; maps are average-pooled to at most 4096 values",
    "knn": f"pooled features, cosine similarity s, votes weighted by exp(s/{knn.TEMPERATURE}), k from {list(knn.NEIGHBORS)}",
    "linear": "multinomial logistic regression on standardized features, solved to the optimum; penalty from "
    f"{list(linear_probe.PENALTIES)} (C = 1 / (penalty n))",
    "best linear": "linear at the stage that does best on held-out training samples",
    "few-shot": f"linear probe on pooled features, fixed penalty {fewshot.PENALTY}; mean over {fewshot.DRAWS} draws of training "
    "samples",
    "clustering": f"k-means on unit-length pooled test features, k = number of classes, best of {kmeans.RESTARTS} restarts; "
    "ACC under the best one-to-one map from clusters to classes",
    "recall@K": "fraction of test samples with one of the same class among the K nearest other test samples; cosine "
    "similarity, pooled features",
    "text@K, image@K": "for images with texts: text@K is the hit rate of a test image's own text among the K nearest of the "
    "distinct test texts, image@K that of a text's own images among the K nearest test images; the distance is KL(text ‖ image) "
    "of the topics, and an image's topics are predicted by the run's own head if it has one, else by a linear probe on pooled "
    "features",
    "track recall@K": "for tracks: hit rate of a track's later patch among the K later patches nearest to its first patch; "
    "cosine similarity, pooled features; other tracks of the same clip that overlap in time are not candidates; nothing is "
    "trained",
    "label-free": label_free.PROTOCOL,
    "finetune": f"on request: encoder and linear classifier trained on the labels with AdamW, lr {finetuning.TRAIN.lr}, layer "
    f"decay {finetuning.DECAY} (untrained encoder: 1), random shifts and flips, {finetuning.STEPS} steps of "
    f"{finetuning.TRAIN.batch} images for any number of labels; no hyperparameter or checkpoint is chosen, the last weights are "
    "scored; N-shot: one draw per run",
    "mlp, conv": "on request: RotNet's two non-linear probes, trained with SGD, lr 0.1 lowered at RotNet's fractions of the "
    f"training, {nonlinear_probes.STEPS} steps of {nonlinear_probes.SGD.batch} images; on a frozen map, without augmentation, "
    f"pooled to at most {nonlinear_probes.SIDE} x {nonlinear_probes.SIDE}; the map whose linear probe does best on held-out "
    "training samples",
    "svm": "on request: Exemplar-CNN's protocol, linear one-vs-rest SVMs with squared hinge loss on the maps of all stages, "
    f"max-pooled over each quadrant; each stage is divided by its {svms.PERCENTILE}th percentile on training samples; penalty as "
    "for linear",
    "chosen": f"k, penalty and stage, on held-out training samples: up to {MAX_FOLDED} samples by {FOLDS} stratified folds, "
    f"repeated up to {REPEATS} times; more samples on 20 % of them (at most {MAX_HELD_OUT}) after fitting to at most {MAX_FIT} of "
    "the others, with the penalty rescaled in proportion",
    "interval": f"{LEVEL:.0%}, bootstrap over test samples ({RESAMPLES} resamples); for NMI, ARI and several runs Student's t "
    "with the sum of the variances over runs and over test samples",
}

COMPARED = (
    *(Measurement(metric, "pool") for metric in ("knn", "linear")),
    *(Measurement(metric) for metric in ("best linear", "mlp", "conv", "svm")),
    *(Measurement(metric, "pool", k=k) for metric in ("text", "image") for k in text_retrieval.AT),
    *(Measurement("finetune", shots=shots) for shots in (*finetuning.SHOTS, None)),
    *(Measurement(metric, "pool") for metric in ("knn mAP", "linear mAP")),
    Measurement("best linear mAP"),
    *(Measurement("finetune mAP", shots=count) for count in (*finetuning.IMAGES, None)),
)
"""measurements whose differences are reported if both rows have them"""


OnFeatures = Callable[[LabeledSource, Tensor | None], None]
"""called with labeled images and their pooled features (N, D), or None if some images could not be read"""


@dataclass(frozen=True)
class Entry:
    """Networks of one kind whose features are scored, one network per run."""

    name: str
    role: Role
    seeds: Sequence[int]
    nets: Iterable[nn.Module]
    """may be built lazily"""


# ---- evaluation


def evaluate(
    encoders: Sequence[Encoder],
    train: LabeledSource,
    test: LabeledSource | None = None,
    *,
    name: str = "encoder",
    role: Role = "run",
    seeds: Sequence[int] = (0,),
    untrained: Sequence[Encoder] = (),
    published: Mapping[str, Encoder] = MappingProxyType({}),
    heads: Sequence[text_retrieval.Head] = (),
    seed: int = 0,
    supervised_steps: int | None = None,
    finetune: bool = False,
    nonlinear: bool = False,
    svm: bool = False,
    centers: int = baselines.CENTERS,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
    on_features: OnFeatures | None = None,
    progress: bool = True,
    leaks: bool = True,
) -> Scores:
    """Score the encoders of runs that differ only in their seed, and the baseline rows of every table.

    `untrained` are the encoders at the start of their runs, for the untrained row; by default they are initialized anew
    with `seeds`, the seeds of the runs, as the supervised encoders are (with `supervised_steps`). `published` are frozen encoders that the runs started or learned from, by the
    names of their rows. `heads` are the topic heads of runs that predict topics. `seed` is for the split, the few-shot draws and k-means. Without `test`, a fifth of
    each class is set aside; for multi-label images, which multilabel.py scores, a fifth of all images. `finetune`,
    `nonlinear` and `svm` add the scores of the modules of these names, for the encoders and the untrained ones.
    `on_features` is called with the images for the report (`test`, or all images without it) and their pooled features
    from the first encoder, so that they need not be computed again; with None in place of features if some images could
    not be read. `leaks` warns of test images that are in the training set too.
    """
    began = time.perf_counter()
    if len(encoders) != len(seeds):
        raise UserError(f"got {len(encoders)} encoders and {len(seeds)} seeds; expected one seed per encoder")
    report_source = train if test is None else test
    train, test = split_off_test(train, seed) if test is None else (train, test)
    check(encoders, train, test)
    train, test, skipped = align_classes(train, test)
    protocol = multilabel if train.multi_label else measure
    options = {"device": device, "progress": progress}
    announce(training_work(encoders, train, finetune, supervised_steps, device))

    pooled: list[Features] = []  # of the first encoder, for leaks
    own: list[list[Result]] = []

    def results(entry: Entry, net: nn.Module, run: int) -> Iterator[Result]:
        train_features, test_features = (
            embed(net, source, cache=cache, **options) for source in (train, test)
        )
        if on_features and net is encoders[0]:
            complete = readable(report_source) is None
            pool = in_source_order(train_features, test_features, train, test) if complete else None
            on_features(report_source, pool)
        if net is encoders[0]:
            pooled.extend(
                replace(each, stages={"pool": each.stages["pool"]})
                for each in (train_features, test_features)
            )
        chosen = protocol.choose(train_features, len(train.classes), seed)
        measured = protocol.measure(train_features, test_features, chosen, seed)
        if entry.role == role:
            own.append(measured)
        yield from measured
        head = heads[seeds.index(run)] if heads and entry.role == role else None
        yield from text_retrieval.score_text_retrieval(
            train_features, test_features, train, test, chosen, head
        )
        del train_features, test_features  # gigabytes, and the maps need as much
        if isinstance(net, Encoder):
            yield Result("lidar", "pool", value=label_free.lidar(label_free.views(net, test, seed, device)))
        if not isinstance(net, Encoder) or entry.role not in (role, "untrained"):
            return
        if nonlinear:
            yield from nonlinear_probes.score_probes(net, train, test, chosen, seed=run, **options)
        if svm:
            yield from svms.score_svm(net, train, test, seed=seed, **options)
        if finetune:
            decay = finetuning.DECAY if entry.role == role else 1.0
            yield from finetuning.score_finetuned(
                net, train, test, seed=seed, run=run, decay=decay, **options
            )

    def entries() -> Iterator[Entry]:
        first, pairs = encoders[0].name, list(zip(encoders, seeds, strict=True))
        yield Entry(name, role, seeds, encoders)
        for title, net in published.items():
            yield Entry(title, "published", [seed], [net])
        yield untrained_entry(encoders, seeds, untrained)
        yield Entry(baselines.Pixels.name, "pixels", [seed], [baselines.Pixels()])
        patches = (baselines.patches(train, centers, s) for s in [seed])
        yield Entry(baselines.Patches.name, "patches", [seed], patches)
        if (steps := supervised_steps) is not None:
            trained = (baselines.supervised(e, train, steps, s, device, progress) for e, s in pairs)
            yield Entry(f"supervised {first}", "supervised", seeds, trained)

    rows, differences, seconds = tabulate(entries(), results, test, seed)
    counted: Mapping[str, int] = {}
    if leaks:
        allowed = leaking.SHARE * (time.perf_counter() - began)
        train_pool, test_pool = pooled
        found = leaking.find(encoders[0], train, test, train_pool, test_pool, allowed, seed)
        counted = found.to_json()
        skipped = [*skipped, *([found.sentence(without(own, found))] if found.count else [])]
    data = {"train": train.name, "n_train": len(train), "test": test.name, "n_test": len(test)}
    data |= {"classes": list(train.classes)}
    if train.multi_label:
        data |= {"chance": multilabel.chance(test.label, seed)}
    return Scores(
        data,
        rows,
        differences,
        [*skipped, *missing_shots(train, finetune), *missing_probes(encoders[0], nonlinear)],
        seconds,
        multilabel.PROTOCOL if train.multi_label else PROTOCOL,
        records={"train": train.ledger.card(), "test": test.ledger.card()},
        leaks=counted,
    )


def without(runs: Sequence[Sequence[Result]], found: leaking.Leaks) -> dict[str, float]:
    """kNN and linear scores, in %, on test images that are not in the training set; for several labels per image there are none."""
    scores = {}
    for metric in ("knn", "best linear"):
        parts = [
            r.correct[found.clean]
            for run in runs
            for r in run
            if r.metric == metric and r.correct is not None
        ]
        if parts and len(parts[0]):
            scores[metric] = 100 * torch.stack(parts).double().mean().item()
    return scores


def untrained_entry(encoders: Sequence[Encoder], seeds: Sequence[int], untrained: Sequence[Encoder]) -> Entry:
    """The encoders at the start of their runs, `untrained`; initialized anew if there are none."""
    nets = untrained or [baselines.untrained(e, s) for e, s in zip(encoders, seeds, strict=True)]
    return Entry(f"untrained {encoders[0].name}", "untrained", seeds, nets)


def tabulate(
    entries: Iterable[Entry],
    results: Callable[[Entry, nn.Module, int], Iterable[Result]],
    test: Source,
    seed: int,
    compared: Sequence[Measurement] = COMPARED,
) -> tuple[list[Row], list[Difference], dict[str, float]]:
    """The rows of each entry, the first entry's differences from the others, and each entry's time in seconds.

    `results` takes an entry, one of its networks and the seed of its run.
    """
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    scored: list[tuple[Entry, list[list[Result]]]] = []
    for entry in entries:
        began = time.perf_counter()
        runs = [[*results(entry, net, run)] for net, run in zip(entry.nets, entry.seeds, strict=True)]
        about = {"name": entry.name, "role": entry.role, "data": test.name, "seeds": list(entry.seeds)}
        rows += combine_runs(runs, seed, count_readable(test), **about)
        seconds[entry.name] = round(time.perf_counter() - began, 1)
        scored.append((entry, runs))
    (first, own), *others = scored
    differences: list[Difference] = []
    for entry, other in others:
        about = {"name": first.name, "minus": entry.name, "minus_role": entry.role}
        differences += paired_differences(own, other, seed, compared, count_readable(test), **about)
    return rows, differences, seconds


def in_source_order(
    train_features: Features, test_features: Features, train: LabeledSource, test: LabeledSource
) -> Tensor:
    """(N, D) pooled features of the test set; of the whole source in its own order if both are parts of it."""
    pool = test_features.stages["pool"]
    if isinstance(train, LabeledSubset) and isinstance(test, LabeledSubset):
        order = torch.cat([train.index, test.index]).argsort()
        pool = torch.cat([train_features.stages["pool"], pool])[order]
    return pool


def training_work(
    encoders: Sequence[Encoder],
    train: LabeledSource,
    finetune: bool,
    supervised_steps: int | None,
    device: torch.device | str,
) -> Iterator[forecast.Work]:
    """The networks that are trained on the labels, with their times, estimated from a few timed steps."""
    if finetune:
        shots = 1 + len(finetuning.shot_counts(train.label))
        per_step = finetuning.seconds_per_step(encoders[0], train, finetuning.TRAIN, device)
        yield forecast.Work("fine-tuned networks", 2 * len(encoders) * shots, finetuning.STEPS * per_step)
    if supervised_steps is not None:
        per_step = finetuning.seconds_per_step(encoders[0], train, baselines.SUPERVISED, device)
        yield forecast.Work("supervised networks", len(encoders), supervised_steps * per_step)


def split_off_test(source: LabeledSource, seed: int) -> tuple[LabeledSubset, LabeledSubset]:
    """Training set and test set: a fifth of each class is set aside; for multi-label images, a fifth of all."""
    if isinstance(source, text_retrieval.TextLabeled):  # images with the same text stay together
        count = int(source.text_id.max()) + 1
        out = Rng(seed, "test").permutation(count) < TEST_FRACTION * count
        kept, out = (~out[source.text_id]).nonzero().flatten(), out[source.text_id].nonzero().flatten()
    else:
        kept, out = split(strata(source.label), Rng(seed, "test"), TEST_FRACTION)
    return LabeledSubset(source, kept, f"{source.name} (80 %)"), LabeledSubset(
        source, out, f"{source.name} (20 % set aside)"
    )


def align_classes(
    train: LabeledSource, test: LabeledSource
) -> tuple[LabeledSource, LabeledSource, list[str]]:
    """Both sets with the same classes in the same order, and sentences on what was left out."""
    return multilabel.align_classes(train, test) if train.multi_label else (train, renumber(test, train), [])


def count_readable(source: Source) -> int:
    """Number of samples that could be read; all of those not tried yet count."""
    index = readable(source)
    return len(source) if index is None else len(index)


def class_map(train: LabeledSource, test: LabeledSource) -> Tensor:
    """(K of test,) the training set's number of each class of the test set, by name; -1 for a class without images."""
    train_names, test_names = ([s.classes[k] for k in s.label.unique().tolist()] for s in (train, test))
    unknown = [c for c in test_names if c not in train_names]
    if unknown:
        raise UserError(
            f"{test.name} has classes that the training set lacks: {', '.join(unknown[:5])}; "
            f"expected only {', '.join(train_names[:10])}"
        )
    return torch.tensor([train.classes.index(c) if c in test_names else -1 for c in test.classes])


def renumber(test: LabeledSource, train: LabeledSource) -> LabeledSource:
    """The test set with the training set's class numbers."""
    other = copy.copy(test)
    other.label, other.classes = class_map(train, test)[test.label], train.classes
    return other


def check(encoders: Sequence[Encoder], train: LabeledSource, test: LabeledSource) -> None:
    if train.multi_label != test.multi_label:
        multi, single = (train, test) if train.multi_label else (test, train)
        raise UserError(
            f"{multi.name} has several labels per image, and {single.name} has one; give two sets of the same kind, "
            "such as two with lists of labels"
        )
    if not train.multi_label and len(train.label.unique()) < 2:
        raise UserError(f"{train.name} has {len(train.label.unique())} class; scores need at least 2")
    for encoder in encoders:
        for source in (train, test):
            if (source.channels, source.size) != (encoder.channels, encoder.size):
                raise UserError(
                    f"{source.name} has images of {source.channels} x {source.size} px, the encoder takes "
                    f"{encoder.channels} x {encoder.size}; open it with that size and number of channels"
                )


def missing_shots(train: LabeledSource, finetune: bool = False) -> list[str]:
    """Which few-shot scores are missing, and why; for multi-label images, which numbers of images."""
    if train.multi_label:
        lacking = [n for n in fewshot.IMAGES if n > len(train)]
        missing = [Measurement("few-shot mAP", shots=n) for n in lacking]
        missing += [
            Measurement("finetune mAP", shots=n) for n in lacking if finetune and n in finetuning.IMAGES
        ]
        return [f"no {titles(missing)}: there are {len(train)} training images"] if missing else []
    count = train.label.bincount(minlength=len(train.classes))
    least = int(torch.where(count > 0, count, count.max()).argmin())
    lacking = [shots for shots in fewshot.SHOTS if shots not in feasible_shots(train.label)]
    missing = [Measurement("few-shot", shots=n) for n in lacking]
    missing += [Measurement("finetune", shots=n) for n in lacking if finetune and n in finetuning.SHOTS]
    reason = f"no {titles(missing)}: class {train.classes[least]!r} has {count[least]} training images"
    return [reason] if missing else []


def titles(measurements: Sequence[Measurement]) -> str:
    return ", ".join(each.title for each in measurements)


def missing_probes(encoder: Encoder, nonlinear: bool) -> list[str]:
    """Why the requested non-linear probes are missing."""
    missing = nonlinear and not nonlinear_probes.map_stages(encoder)
    return [f"no mlp, conv: {encoder.name} has no map larger than 1 x 1"] if missing else []


# ---- several runs


def combine_runs(
    runs: Sequence[Sequence[Result]], seed: int, n: int | None = None, **about: Any
) -> Iterator[Row]:
    """Results of several runs -> a row with an interval for each measurement whose values are all finite.

    `n` is the number of test samples, needed if no result is per sample; `about` are the other fields of a row.
    """
    n = n or next(len(r.correct) for r in runs[0] if r.correct is not None)
    for first in runs[0]:
        group = matching_results(runs, first)
        values = [r.value for r in group]
        if not all(map(math.isfinite, values)):
            continue
        bounds = None
        if first.bootstrap is not None:
            bounds = bootstrap_interval(np.array(values), bootstraps(runs, first), n)
        elif first.correct is not None:
            bounds = interval(100 * correct(runs, first), seed)
        elif variances := [r.variance for r in group if r.variance is not None]:
            bounds = student_interval(np.array(values), float(np.mean(variances)), n)
        low, high = (bounds.low, bounds.high) if bounds else (None, None)
        chosen = [dict(r.notes) for r in group]
        numbers = {"value": float(np.mean(values)), "low": low, "high": high, "n": n, "values": values}
        yield Row(*first.key, **numbers, chosen=chosen, **about)


def matching_results(runs: Sequence[Sequence[Result]], what: Measurement) -> list[Result]:
    """Each run's result for a measurement; its position differs between runs that choose different stages."""
    return [r for run in runs for r in run if r.key == what.key]


def paired_differences(
    own: Sequence[Sequence[Result]],
    other: Sequence[Sequence[Result]],
    seed: int,
    compared: Sequence[Measurement] = COMPARED,
    n: int = 0,
    **about: Any,
) -> Iterator[Difference]:
    """Differences of two rows, paired by test sample, or by resampled test set of `n` samples. A row of one run is compared
    with each of several runs. `about` are the other fields of a difference."""
    for what in compared:
        if not (matching_results(own, what) and matching_results(other, what)):
            continue
        if matching_results(own, what)[0].bootstrap is None:
            bounds = interval(100 * (correct(own, what) - correct(other, what)), seed)
        else:
            bounds = bootstrap_difference(own, other, what, n)
        yield Difference(*what.key, **asdict(bounds), **about)


def correct(runs: Sequence[Sequence[Result]], what: Measurement) -> Tensor:
    """(S, N): whether each of S runs predicts each test sample correctly."""
    return torch.stack([r.correct for r in matching_results(runs, what) if r.correct is not None])


def bootstraps(runs: Sequence[Sequence[Result]], what: Measurement) -> np.ndarray:
    """(S, RESAMPLES): scores of S runs on resampled test sets."""
    return np.stack([r.bootstrap for r in matching_results(runs, what) if r.bootstrap is not None])


def bootstrap_difference(
    own: Sequence[Sequence[Result]], other: Sequence[Sequence[Result]], what: Measurement, n: int
) -> Interval:
    """The difference of two rows on the same resampled test sets."""
    value, minus = (np.array([r.value for r in matching_results(runs, what)]) for runs in (own, other))
    return bootstrap_interval(value - minus, bootstraps(own, what) - bootstraps(other, what), n)
