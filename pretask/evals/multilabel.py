"""Multi-label evaluation: images with several labels each, scored by mean average precision (mAP).

kNN: a class's score is the fraction of the neighbors' votes that have it, with votes as in knn.py. Linear probe: a
logistic regression per class, all with the same penalty, solved as in linear_probe.py. Average precision is scikit-learn's
step-wise sum (average_precision.py). Only classes that some images have and others lack, both in the training set and in
the test set, are learned and scored. Splits and draws are random over all images, since they cannot be stratified by class.
"""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.evals import average_precision, fewshot, knn, label_free, linear_probe
from pretask.evals.confidence import LEVEL, RESAMPLES, bootstrap_counts
from pretask.evals.features import Features
from pretask.evals.holdout import FOLDS, MAX_FIT, MAX_FOLDED, MAX_HELD_OUT, REPEATS, Splits, splits, strata
from pretask.evals.measure import Chosen, Result, feasible_shots
from pretask.evals.scores import Measurement
from pretask.ops import neighbors
from pretask.rng import Rng
from pretask.types import LabeledSource, UserError

RANDOM_ORDERS = 100
"""number of random orders of the test images whose mean mAP is the chance level"""
MAX_LABELS = 1 << 24
"""neighbor labels gathered at once: 64 MB"""
MAX_LISTED = 8
"""maximum number of classes listed in a sentence"""
PROTOCOL = {
    "features": "computed once, in evaluation mode, without augmentation; maps are average-pooled to at most 4096 values",
    "mAP": "mean over classes of the average precision, scikit-learn's step-wise sum; of the classes that some images have and "
    "others lack, both in the training set and in the test set",
    "knn mAP": "pooled features, cosine similarity s; a class's score is the fraction of the neighbors' votes that have it, votes "
    f"weighted by exp(s/{knn.TEMPERATURE}), k from {list(knn.NEIGHBORS)}",
    "linear mAP": "a logistic regression per class on standardized features, solved to the optimum; one penalty for all classes, "
    f"from {list(linear_probe.PENALTIES)} (C = 1 / (penalty n))",
    "best linear mAP": "linear mAP at the stage that does best on held-out training images",
    "N images mAP": f"linear probe on pooled features, fixed penalty {fewshot.PENALTY}; mean over {fewshot.DRAWS} draws of N "
    "images, regardless of class",
    "label-free": label_free.PROTOCOL,
    "split": "without a test set, a fifth of all images is set aside at random",
    "chosen": f"k, penalty and stage, by mAP on held-out training images: up to {MAX_FOLDED} images by {FOLDS} random folds, "
    f"repeated up to {REPEATS} times; more images on 20 % of them (at most {MAX_HELD_OUT}) after fitting to at most {MAX_FIT} of "
    "the others, with the penalty rescaled in proportion",
    "interval": f"{LEVEL:.0%}, Student's t with the variance of a bootstrap over test images ({RESAMPLES} resamples, the same for "
    "every row); for several runs the variance over runs is added",
}


def loss(logits: Tensor, label: Tensor) -> Tensor:
    """(B, K), (B, K) of 1, 0 and -1 for unknown -> mean binary cross-entropy over the known labels."""
    known = label >= 0
    return F.binary_cross_entropy_with_logits(logits[known], label[known].float())


# ---- the classes


def align_classes(
    train: LabeledSource, test: LabeledSource
) -> tuple[LabeledSource, LabeledSource, list[str]]:
    """Both sets with the classes that can be scored, in the same order, and a sentence on the other classes."""
    every = list(dict.fromkeys([*train.classes, *test.classes]))
    labels = [labels_for(each, every) for each in (train, test)]
    kept = torch.stack([(x == 1).any(0) & (x == 0).any(0) for x in labels]).all(0)
    if not kept.any():
        raise UserError(
            f"{train.name} and {test.name} have no class in common that some of their images have and others lack, "
            "so nothing can be scored; give more images"
        )
    classes = [name for name, k in zip(every, kept.tolist(), strict=True) if k]
    left_out = [name for name in every if name not in classes]
    listed = f"{', '.join(left_out[:MAX_LISTED])}{', …' if len(left_out) > MAX_LISTED else ''}"
    reason = "not in the mean, since the training or test set lacks images with them or images without them"
    skipped = [f"{reason}: {listed} ({len(left_out)} of {len(every)} classes)"] if left_out else []
    aligned = [copy.copy(each) for each in (train, test)]
    for source, x in zip(aligned, labels, strict=True):
        source.label, source.classes = x[:, kept], classes
    return aligned[0], aligned[1], skipped


def labels_for(source: LabeledSource, classes: Sequence[str]) -> Tensor:
    """(N, K) labels of a source for a list of classes that includes its own; 0 for a class that it lacks."""
    label = torch.zeros(len(source.label), len(classes), dtype=torch.int8)
    label[:, [classes.index(name) for name in source.classes]] = source.label
    return label


# ---- the protocol


def choose(train: Features, classes: int, seed: int) -> Chosen:
    """k and penalties with the best mean average precision on held-out training images."""
    label, held_out = train.label, splits(strata(train.label), seed)
    k = choose_k(train.stages["pool"], label, held_out)
    probes = {
        stage: linear_probe.choose(x, label, classes, held_out, BinaryProblem, metric=held_out_map)
        for stage, x in train.stages.items()
    }
    return Chosen(k, probes)


def measure(train: Features, test: Features, chosen: Chosen, seed: int = 0) -> list[Result]:
    """All scores of one encoder's features, with hyperparameters chosen without `test`."""
    weight = bootstrap_weights(len(test), seed)
    return [
        *score_knn(train, test, chosen.k, weight),
        *score_probes(test, chosen, weight),
        *score_fewshot(train, test, seed, weight),
        *(Result(metric, "pool", value=v) for metric, v in label_free.metrics(test.stages["pool"]).items()),
        Result("stability", "pool", value=label_free.stability(test.stages["pool"], seed)),
    ]


def score_knn(train: Features, test: Features, k: int, weight: np.ndarray) -> Iterator[Result]:
    similarity, index = neighbors.nearest(test.stages["pool"], train.stages["pool"], min(k, len(train)))
    score = vote_fractions(similarity, index, train.label)
    yield map_result(Measurement("knn mAP", "pool"), [score], test.label, weight, k=k)


def score_probes(test: Features, chosen: Chosen, weight: np.ndarray) -> Iterator[Result]:
    """A probe at each stage, fitted to all training images with the penalty chosen for it."""
    for stage, choice in chosen.probes.items():
        score, penalty = choice.probe.logits(test.stages[stage]), choice.penalty
        result = map_result(Measurement("linear mAP", stage), [score], test.label, weight, penalty=penalty)
        yield result
        if stage == chosen.stage:
            notes = {"stage": stage, "penalty": penalty}
            yield Result("best linear mAP", value=result.value, bootstrap=result.bootstrap, notes=notes)


def score_fewshot(train: Features, test: Features, seed: int, weight: np.ndarray) -> Iterator[Result]:
    x, label, x_test = train.stages["pool"], train.label, test.stages["pool"]
    for count in feasible_shots(label):
        draws = [fewshot.draw(strata(label), count, seed, number) for number in range(fewshot.DRAWS)]
        probes = fewshot.probes(x, label, label.shape[1], draws, BinaryProblem)
        what = Measurement("few-shot mAP", "pool", shots=count)
        yield map_result(what, [p.logits(x_test) for p in probes], test.label, weight)


# ---- its parts


class BinaryProblem(linear_probe.Problem):
    """The sum over classes of binary cross-entropies, averaged over samples."""

    @property
    def flatness(self) -> float:
        """The Hessian is at most XᵀX / 4N + λI, which it reaches at p = 1/2."""
        return 4.0

    def cost(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return (F.softplus(logits) - target * logits).sum(-1), logits.sigmoid().sub_(target)


def vote_fractions(similarity: Tensor, index: Tensor, label: Tensor) -> Tensor:
    """(Q, k) similarities and positions of neighbors, (N, K) -> (Q, K) the fraction of votes for each class."""
    vote = (similarity / knn.TEMPERATURE).softmax(1)
    rows = max(1, MAX_LABELS // (index.shape[1] * label.shape[1]))
    return torch.cat(
        [
            (v[:, None] @ label[i].float())[:, 0]
            for v, i in zip(vote.split(rows), index.split(rows), strict=True)
        ]
    )


def choose_k(x: Tensor, label: Tensor, splits: Splits, neighbors: Sequence[int] = knn.NEIGHBORS) -> int:
    """(N, D), (N, K) -> the k with the best mAP on held-out training images; the smaller of equals."""
    ks = knn.candidates(splits, neighbors)
    per_split = [
        [
            average_precisions(vote_fractions(similarity[:, :k], index[:, :k], label), label[held_out])
            for k in ks
        ]
        for held_out, similarity, index in knn.held_out_neighbors(x, splits, ks[-1])
    ]  # splits, values of k, (K,)
    means = [mean_precision(np.stack(each)) for each in zip(*per_split, strict=True)]
    return ks[int(np.argmax(means))]


def held_out_map(logits: Tensor, label: Tensor, splits: Splits) -> float:
    """(H, B, K), (H, K) -> mean average precision, 0 … 1, on the held-out samples of B splits."""
    pairs = zip(logits.unbind(1), splits.held_out_mask, strict=True)
    return mean_precision(np.stack([average_precisions(score[mask], label[mask]) for score, mask in pairs]))


def mean_precision(precision: np.ndarray) -> float:
    """(B, K) -> the mean over classes of the mean over splits; a class's NaN, for a split without positives, is ignored."""
    defined = np.isfinite(precision)
    per_class = np.where(defined, precision, 0.0).sum(0) / np.maximum(defined.sum(0), 1)
    return float(per_class[defined.any(0)].mean()) if defined.any() else 0.0


def average_precisions(score: Tensor, label: Tensor, weight: np.ndarray | None = None) -> np.ndarray:
    """Scores and labels (N, K) -> (K,) average precisions, 0 … 1, NaN for a class without positives; (R, K) with `weight`
    (R, N), the number of times that each sample is in each of R sets."""
    pairs = zip(score.double().numpy().T, (label == 1).numpy().T, strict=True)
    precision = np.stack(
        [average_precision.step(average_precision.curve(s, y, weight=weight)) for s, y in pairs], 1
    )
    return precision[0] if weight is None else precision


def bootstrap_weights(n: int, seed: int) -> np.ndarray:
    """(1 + RESAMPLES, n): the number of times that each of n images is in the test set, and in each resampled one."""
    return np.concatenate([np.ones((1, n)), bootstrap_counts(np.ones(n), seed)]).astype(np.float32)


def map_result(
    what: Measurement, scores: Sequence[Tensor], label: Tensor, weight: np.ndarray, **notes: object
) -> Result:
    """Scores (N, K) of one or several probes -> their mean mAP in %, on the test set and on resampled ones."""
    per_probe = [
        average_precision.mean_over_classes([*average_precisions(s, label, weight).T]) for s in scores
    ]  # (1 + RESAMPLES,) each
    mean = 100 * np.mean(per_probe, axis=0)
    if len(scores) > 1:
        notes["draws"] = [round(100 * float(m[0]), 3) for m in per_probe]
    return Result(*what.key, value=float(mean[0]), bootstrap=mean[1:], notes=notes)


def chance(label: Tensor, seed: int) -> float:
    """(N, K) -> mAP in % of random orders of the test images."""
    rng = Rng(seed, "chance")
    orders = (rng.permutation(len(label)).double()[:, None].expand(label.shape) for _ in range(RANDOM_ORDERS))
    return 100 * mean_precision(np.stack([average_precisions(order, label) for order in orders]))
