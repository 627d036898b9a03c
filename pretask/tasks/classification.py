"""VOC-style multi-label image classification: a linear SVM per class on frozen features.

The protocol of FAIR's benchmark (Goyal et al. 2019, arXiv:1905.01235, sec. 5 and released code): features are divided by
their norm + 1e-5; squared hinge loss with an L2 penalty on weights and bias; positives have weight 2; the cost of each
class is chosen by 3-fold cross-validated average precision (all-point) on the training images, and so is the stage.
**Differs:**

- images in which all objects of a class are hard ("difficult") are left out for that class, in training and testing; FAIR's
  code drops them in testing and counts them as negatives in training;
- costs are the 11 of VISSL's code, not FAIR's 26; folds are random;
- every stage is a candidate, average-pooled to at most 9216 values, and is chosen on training images; FAIR reports all stages
  and takes the best on the test set;
- scikit-learn's liblinear solves the primal problem, deterministically, and in the N dimensions spanned by N images if
  features are wider, which has the same optimum; costs are compared at a tolerance of 0.01.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pretask.data import annotated
from pretask.data.annotated import Annotated
from pretask.data.base import bar
from pretask.encoders import Encoder
from pretask.evals import average_precision
from pretask.evals.features import embed
from pretask.evals.holdout import ranks
from pretask.ops.span import span
from pretask.rng import Rng
from pretask.tasks.base import Plan, TaskResult, TaskScore, bootstrap_weights, image_side
from pretask.tasks.objects import ObjectTask, scored_classes
from pretask.types import UserError

WIDTH = 9216
"""maximum number of values per stage (FAIR: about 9000)"""
COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
"""candidates for C (VISSL)"""
POSITIVE = 2.0
"""weight of positives"""
FOLDS = 3
EPSILON = 1e-5
"""added to the norm of the features"""
SEARCH_TOLERANCE, FINAL_TOLERANCE = 1e-2, 1e-6
"""liblinear's tolerance when costs are compared, and for the final SVMs"""
MAX_ITERATIONS = 2000
"""maximum number of liblinear's iterations"""
RANDOM_ORDERS = 100
"""number of random orders whose mean score is the floor"""


# ---- the task


class Classification(ObjectTask):
    name = "classification"
    metrics: ClassVar[Mapping[str, str]] = {
        "mAP 11-point": "mean over classes of VOC 2007's average precision, at recalls 0, 0.1, …, 1",
        "mAP all-point": "mean over classes of the area under the interpolated precision-recall curve, as in FAIR's benchmark",
        "mAP step": "mean over classes of scikit-learn's average precision, a step-wise sum",
    }
    protocol = (
        f"a linear SVM per class on frozen unit-length features (at most {WIDTH} values per stage), squared hinge loss, positives "
        f"weighted by {POSITIVE:g}; the cost of each class, from {list(COSTS)}, and the stage are chosen by {FOLDS}-fold "
        "cross-validated average precision on training images; classes that appear in both sets"
    )

    def check(self, encoder: Encoder, plan: Plan) -> None:
        image_side(encoder, plan, encoder.size)
        if plan.steps is not None:
            raise UserError(
                "--task classification solves its SVMs to the optimum and takes no --steps; leave it out"
            )

    def evaluate(self, encoder: Encoder, train: Annotated, test: Annotated, plan: Plan) -> TaskResult:
        classes, skipped = scored_classes(train, test)
        size = image_side(encoder, plan, encoder.size)
        options = {"device": plan.device, "progress": plan.progress, "width": WIDTH}
        train_stages, test_stages = (
            embed(encoder, annotated.pictures(data, size, encoder.channels, plan.progress), **options).stages
            for data in (train, test)
        )
        label = train.shown[:, classes]
        best: Best | None = None
        with bar(plan.progress) as steps:
            for stage, x in steps.track([*train_stages.items()], description="choosing costs"):
                x, x_test = unit(x), unit(test_stages[stage])
                rows, mix = span(x)  # fewer columns for fewer images than dimensions, with the same decisions
                x_test = x_test if mix is None else x_test @ x.T @ mix
                choice = choose(rows, label, plan.seed)
                if best is None or choice.score.mean() >= best.choice.score.mean():  # the deepest of equals
                    best = Best(stage, rows, x_test, choice)
        assert best is not None
        svms = zip(label.T, best.choice.cost.tolist(), strict=True)
        decision = np.stack([decide(best.rows, y, best.test, cost, FINAL_TOLERANCE) for y, cost in svms], 1)
        names = [train.classes[k] for k in classes]
        costs = dict(zip(names, best.choice.cost.tolist(), strict=True))
        notes = {"stage": best.stage, "size": size, "cost": costs}
        scores = score_decisions(decision, test.shown[:, classes].numpy(), plan.seed, notes)
        return TaskResult(scores, skipped)

    def floor(self, train: Annotated, test: Annotated, plan: Plan) -> tuple[str, TaskResult]:
        """The mean over random orders of the test images."""
        label = test.shown[:, scored_classes(train, test)[0]].numpy()
        rng = Rng(plan.seed, "chance")
        values: dict[str, list[float]] = {name: [] for name in average_precision.DEFINITIONS}
        for _ in range(RANDOM_ORDERS):
            order = rng.permutation(len(label)).double().numpy()
            curves = [
                average_precision.curve(order[known], label[known, k] == 1)
                for k, known in known_labels(label)
            ]
            for name, ap in average_precision.DEFINITIONS.items():
                values[name].append(float(np.mean([ap(c)[0] for c in curves])))
        scores = [TaskScore(f"mAP {name}", 100 * float(np.mean(each))) for name, each in values.items()]
        return "random order", TaskResult(scores)


def known_labels(label: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(N, K) of 1, 0, -1 -> each class with a mask (N,) of the samples that are scored for it."""
    return [(k, label[:, k] != -1) for k in range(label.shape[1])]


def score_decisions(
    decision: np.ndarray, label: np.ndarray, seed: int, notes: Mapping[str, Any] | None = None
) -> list[TaskScore]:
    """(N, K) decision values and labels (N, K), -1 to ignore an image -> mAP by each definition."""
    weight = np.concatenate([np.ones((1, len(label))), bootstrap_weights(len(label), seed)])
    values: dict[str, list[np.ndarray]] = {name: [] for name in average_precision.DEFINITIONS}
    for k, known in known_labels(label):
        curve = average_precision.curve(decision[known, k], label[known, k] == 1, weight=weight[:, known])
        for name, ap in average_precision.DEFINITIONS.items():
            values[name].append(100 * ap(curve))
    means = {name: average_precision.mean_over_classes(each) for name, each in values.items()}
    return [TaskScore(f"mAP {name}", float(m[0]), m[1:], notes or {}) for name, m in means.items()]


# ---- the SVMs


@dataclass(frozen=True)
class Choice:
    """The best cost of each of K classes and its cross-validated average precision."""

    cost: Tensor  # (K,)
    score: Tensor  # (K,) 0 … 1


@dataclass(frozen=True)
class Best:
    stage: str
    rows: Tensor  # (N, D) of training images
    test: Tensor  # (M, D)
    choice: Choice


def unit(x: Tensor) -> Tensor:
    """(N, D) -> rows of about unit length, in single precision."""
    x = x.float()
    return x / (x.norm(dim=1, keepdim=True) + EPSILON)


def choose(x: Tensor, label: Tensor, seed: int) -> Choice:
    """(N, D) and (N, K) of 1, 0, -1 -> costs by cross-validation; the smallest of equals."""
    labels = label.T
    rngs = [Rng(seed, "fold", c) for c in range(len(labels))]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # liblinear releases the GIL
        score = torch.stack([*threads.map(cross_validate, [x] * len(labels), labels, rngs)])
    best = score.argmax(1)
    return Choice(torch.tensor(COSTS)[best], score[torch.arange(len(score)), best])


def cross_validate(x: Tensor, label: Tensor, rng: Rng) -> Tensor:
    """(N, D) and (N,) of 1, 0, -1 -> the average precision (C,) of each cost on held-out images."""
    fold = ranks((label == 1).long(), rng) % FOLDS
    score = torch.full((len(COSTS), FOLDS), torch.nan)
    for f in range(FOLDS):
        fit, held_out = fold != f, (fold == f) & (label != -1)
        truth = (label[held_out] == 1).numpy()
        for i, cost in enumerate(COSTS):
            decision = decide(x[fit], label[fit], x[held_out], cost, SEARCH_TOLERANCE)
            score[i, f] = float(average_precision.all_point(average_precision.curve(decision, truth))[0])
    return score.nanmean(1).nan_to_num()  # folds without positives are ignored


def decide(x: Tensor, label: Tensor, test: Tensor, cost: float, tolerance: float) -> np.ndarray:
    """(N, D), (N,) of 1, 0, -1 and (M, D) -> decision values (M,) of an SVM trained without the images of -1."""
    from sklearn.svm import LinearSVC

    known = label != -1
    if len(label[known].unique()) < 2:
        return np.zeros(len(test))
    svm = LinearSVC(
        C=cost,
        class_weight={1: POSITIVE, 0: 1.0},
        dual=False,  # pyright: ignore[reportArgumentType]
        tol=tolerance,
        max_iter=MAX_ITERATIONS,
    )
    svm.fit(x[known].double().numpy(), label[known].numpy())
    return svm.decision_function(test.double().numpy())
