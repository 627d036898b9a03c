"""Classification of VOC form: which classes does an image show? A linear SVM for each class, on frozen features.

The protocol of FAIR's benchmark (Goyal et al. 2019, arXiv:1905.01235, sec. 5 and released code): rows divided by their
norm + 1e-5; squared hinge with an L2 penalty on weights and bias; a positive counts twice; the cost of each class by 3-fold
cross-validated average precision (all-point) on the training images; the stage that is best there. Differs:

- images that show hard ("difficult") objects of a class alone are left out for that class, at training and at test; FAIR's
  code drops them at test and lets them count as negatives in training;
- costs are the 11 of VISSL's code, not FAIR's 26; folds are drawn;
- every stage is a candidate, averaged to at most 9216 numbers, and it is chosen on training images; FAIR reports all of them
  and takes the best on test;
- scikit-learn's liblinear solves in the primal, without luck, and in the N dimensions that N images span where features are
  wider, where the optimum is the same; costs are compared at a tolerance of 0.01.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretask.data import annotated
from pretask.data.annotated import Annotated
from pretask.data.base import Images, bar
from pretask.encoders import Encoder
from pretask.evals import average_precision as precision
from pretask.evals.features import embed
from pretask.evals.holdout import ranks
from pretask.ops.span import span
from pretask.rng import Rng
from pretask.tasks.base import Found, Outcome, Plan, canvas, draws
from pretask.types import UserError

WIDTH = 9216
"""numbers a stage may have (FAIR: about 9000)"""
COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
"""candidates for C (VISSL)"""
POSITIVE = 2.0
"""weight of a positive"""
FOLDS = 3
TINY = 1e-5
"""added to the norm of a row"""
ROUGHLY, EXACTLY = 1e-2, 1e-6
"""liblinear's tolerance: to compare costs, and of the machines that are scored"""
ITERATIONS = 2000
"""of liblinear, at most"""
CHANCE = 100
"""random orders of which the floor is the mean"""
TUNES = False
EVALS: Mapping[str, str] = {
    "mAP 11-point": "mean over classes of VOC 2007's average precision, at recalls 0, 0.1, …, 1",
    "mAP all-point": "the same by the area below the best precision at each recall, as FAIR's benchmark computes it",
    "mAP step": "the same by scikit-learn's sum of steps",
}
PROTOCOL = (
    f"a linear SVM for each class on frozen features of unit length (at most {WIDTH} numbers a stage), squared hinge, positives "
    f"count {POSITIVE:g} times; cost among {list(COSTS)} for each class and the stage by {FOLDS}-fold cross-validated average "
    "precision on training images; classes that both sets show"
)


# ---- the task


def load(spec: str, max_bad: float, progress: bool) -> Annotated:
    return annotated.load(spec, max_bad=max_bad, progress=progress)


def matched(train: Annotated, test: Annotated) -> tuple[Annotated, Annotated]:
    every = list(dict.fromkeys([*train.classes, *test.classes]))
    return train.numbered_as(every), test.numbered_as(every)


def check(encoder: Encoder, plan: Plan) -> None:
    canvas(encoder, plan, encoder.size)
    if plan.steps is not None:
        raise UserError(
            "--task classification solves its SVMs to the optimum and takes no --steps; leave it out"
        )


def classes(train: Annotated) -> list[str]:
    return list(train.classes)


def shown(train: Annotated, encoder: Encoder, plan: Plan) -> tuple[Images, Tensor]:
    return annotated.pictures(train, encoder.size, encoder.channels, plan.progress), train.shown


def judged(train: Annotated, test: Annotated) -> tuple[list[int], list[str]]:
    """Classes that both sets show, and a sentence on the others."""
    both = ((train.shown == 1).any(0) & (test.shown == 1).any(0)).tolist()
    chosen = [k for k, there in enumerate(both) if there]
    if not chosen:
        raise UserError(f"{train.name} and {test.name} show no class in common, so nothing can be scored")
    left = [c for c, there in zip(train.classes, both, strict=True) if not there]
    said = f"left out, as not both sets show them: {', '.join(left[:8])}{', …' if len(left) > 8 else ''}"
    return chosen, [f"{said} ({len(left)} of {len(both)} classes)"] if left else []


def apply(encoder: Encoder, train: Annotated, test: Annotated, plan: Plan) -> Outcome:
    chosen, said = judged(train, test)
    size = canvas(encoder, plan, encoder.size)
    known = {"device": plan.device, "progress": plan.progress, "width": WIDTH}
    of_train, of_test = (
        embed(encoder, annotated.pictures(data, size, encoder.channels, plan.progress), **known).stages
        for data in (train, test)
    )
    label = train.shown[:, chosen]
    best: Best | None = None
    with bar(plan.progress) as steps:
        for stage, x in steps.track([*of_train.items()], description="choosing costs"):
            shown, held = unit(x), unit(of_test[stage])
            rows, mix = span(shown)  # of fewer images than dimensions: decisions stay what they are
            held = held if mix is None else held @ shown.T @ mix
            tried = choose(rows, label, plan.seed)
            if best is None or tried.score.mean() >= best.choice.score.mean():  # of equals the deepest
                best = Best(stage, rows, held, tried)
    assert best is not None
    machines = zip(label.T, best.choice.cost.tolist(), strict=True)
    decision = np.stack([decide(best.rows, y, best.test, cost, EXACTLY) for y, cost in machines], 1)
    names = [train.classes[k] for k in chosen]
    costs = dict(zip(names, best.choice.cost.tolist(), strict=True))
    notes = {"stage": best.stage, "size": size, "cost": costs}
    return Outcome(scored(decision, test.shown[:, chosen].numpy(), plan.seed, notes), said)


def floor(train: Annotated, test: Annotated, plan: Plan) -> tuple[str, Outcome]:
    """The mean over random orders of the test images."""
    label = test.shown[:, judged(train, test)[0]].numpy()
    rng = Rng(plan.seed, "chance")
    each: dict[str, list[float]] = {name: [] for name in precision.DEFINITIONS}
    for _ in range(CHANCE):
        order = rng.permutation(len(label)).double().numpy()
        curves = [precision.curve(order[there], label[there, k] == 1) for k, there in seen(label)]
        for name, ap in precision.DEFINITIONS.items():
            each[name].append(float(np.mean([ap(c)[0] for c in curves])))
    found = [Found(f"mAP {name}", 100 * float(np.mean(values))) for name, values in each.items()]
    return "random order", Outcome(found)


def seen(label: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(N, K) of 1, 0, -1 -> each class with the samples (N,) that it is judged on."""
    return [(k, label[:, k] != -1) for k in range(label.shape[1])]


def scored(
    decision: np.ndarray, label: np.ndarray, seed: int, notes: Mapping[str, Any] | None = None
) -> list[Found]:
    """(N, K) decisions and labels (N, K), -1 where an image is not judged -> mAP by each definition."""
    weight = draws(len(label), seed)
    once = np.ones((1, len(label)))
    each: dict[str, list[np.ndarray]] = {name: [] for name in precision.DEFINITIONS}
    for k, there in seen(label):
        rows = np.concatenate([once, weight])[:, there]
        found = precision.curve(decision[there, k], label[there, k] == 1, weight=rows)
        for name, ap in precision.DEFINITIONS.items():
            each[name].append(100 * ap(found))
    means = {name: precision.mean_over_classes(rows) for name, rows in each.items()}
    return [Found(f"mAP {name}", float(m[0]), m[1:], notes or {}) for name, m in means.items()]


# ---- the machines


@dataclass(frozen=True)
class Choice:
    """For each of K classes the best cost and its cross-validated average precision."""

    cost: Tensor  # (K,)
    score: Tensor  # (K,) 0 … 1


@dataclass(frozen=True)
class Best:
    stage: str
    rows: Tensor  # (N, D) of training images
    test: Tensor  # (M, D)
    choice: Choice


def unit(x: Tensor) -> Tensor:
    """(N, D) -> single precision rows of about unit length."""
    x = x.float()
    return x / (x.norm(dim=1, keepdim=True) + TINY)


def choose(x: Tensor, label: Tensor, seed: int) -> Choice:
    """(N, D) and (N, K) of 1, 0, -1: costs by cross-validation; a class of equal scores gets the smallest."""
    labels = label.T
    rngs = [Rng(seed, "fold", c) for c in range(len(labels))]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # liblinear lets go of the interpreter
        score = torch.stack([*threads.map(validated, [x] * len(labels), labels, rngs)])
    best = score.argmax(1)
    return Choice(torch.tensor(COSTS)[best], score[torch.arange(len(score)), best])


def validated(x: Tensor, label: Tensor, rng: Rng) -> Tensor:
    """(N, D) and (N,) of 1, 0, -1 -> the average precision (C,) of each cost on images that were set aside."""
    fold = ranks((label == 1).long(), rng) % FOLDS
    score = torch.full((len(COSTS), FOLDS), torch.nan)
    for f in range(FOLDS):
        kept, held = fold != f, (fold == f) & (label != -1)
        truth = (label[held] == 1).numpy()
        for i, cost in enumerate(COSTS):
            found = precision.curve(decide(x[kept], label[kept], x[held], cost, ROUGHLY), truth)
            score[i, f] = float(precision.all_point(found)[0])
    return score.nanmean(1).nan_to_num()  # a fold without positives says nothing


def decide(x: Tensor, label: Tensor, test: Tensor, cost: float, tolerance: float) -> np.ndarray:
    """(N, D), (N,) of 1, 0, -1 and (M, D) -> decisions (M,) of the machine that is trained without images of -1."""
    from sklearn.svm import LinearSVC

    known = label != -1
    if len(label[known].unique()) < 2:  # nothing to tell apart
        return np.zeros(len(test))
    machine = LinearSVC(
        C=cost,
        class_weight={1: POSITIVE, 0: 1.0},
        dual=False,  # pyright: ignore[reportArgumentType]
        tol=tolerance,
        max_iter=ITERATIONS,
    )
    machine.fit(x[known].double().numpy(), label[known].numpy())
    return machine.decision_function(test.double().numpy())
