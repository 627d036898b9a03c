"""Classification of VOC form: which classes does an image show? A linear SVM for each class, on frozen features.

The protocol of FAIR's benchmark (Goyal et al. 2019, arXiv:1905.01235, sec. 5 and released code): rows divided by their
norm + 1e-5; squared hinge with an L2 penalty on weights and bias; a positive counts twice; the cost of each class by 3-fold
cross-validated average precision (all-point) on the training images; the stage that is best there. Differs:

- images that show hard ("difficult") objects of a class alone are left out for that class, at training and at test; FAIR's
  code drops them at test and lets them count as negatives in training;
- costs are the 11 of VISSL's code, not FAIR's 26; folds are drawn;
- every stage is a candidate, averaged to at most 9216 numbers, and it is chosen on training images; FAIR reports all of them
  and takes the best on test;
- all SVMs of all classes, costs and folds are solved at once, by Newton's method in the primal (Keerthi & DeCoste 2005), in
  the N dimensions that N images span where features are wider: the same optimum as liblinear's, in a fraction of its time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretask.encoders import Encoder
from pretask.evals import precision
from pretask.evals.features import embed
from pretask.evals.holdout import ranks
from pretask.evals.transfer import Found, Outcome, Plan, canvas, draws
from pretask.rng import Rng
from pretask.sources import annotated
from pretask.sources.annotated import Annotated
from pretask.sources.common import Images, bar
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
AT_ONCE = 512
"""SVMs solved side by side"""
NEWTON, INNER, HALVINGS = 60, 100, 12
"""steps, at most: of Newton's method, of conjugate gradients within one, of its line search"""
ENOUGH, ROUGHLY = 0.01, 0.05
"""norm of the gradient, as a share of that of the weights, at which a problem is solved, and is solved well enough to choose
a cost: the objective curves by at least 1 everywhere, so the weights are within as large a share of the optimum"""
CHANCE = 100
"""random orders of which the floor is the mean"""
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
            tried = choose(unit(x), label, plan.seed)
            if best is None or tried.score.mean() >= best.choice.score.mean():  # of equals the deepest
                best = Best(stage, tried)
    assert best is not None
    w = fit(unit(of_train[best.stage]), label, best.choice.cost)
    decision = with_bias(unit(of_test[best.stage])) @ w
    names = [train.classes[k] for k in chosen]
    costs = dict(zip(names, best.choice.cost.tolist(), strict=True))
    notes = {"stage": best.stage, "size": size, "cost": costs}
    return Outcome(scored(decision.double().numpy(), test.shown[:, chosen].numpy(), plan.seed, notes), said)


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
    choice: Choice


def unit(x: Tensor) -> Tensor:
    """(N, D) -> single precision rows of about unit length."""
    x = x.float()
    return x / (x.norm(dim=1, keepdim=True) + TINY)


def with_bias(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def spanned(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """(N, D) rows in the at most N dimensions that they span, and the way back (D, N); inner products stay what they are."""
    if x.shape[1] <= len(x):
        return x, None
    basis, rows = torch.linalg.qr(x.T)
    return rows.T.contiguous(), basis


def choose(x: Tensor, label: Tensor, seed: int) -> Choice:
    """(N, D) and (N, K) of 1, 0, -1: costs by cross-validation; a class of equal scores gets the smallest."""
    z = with_bias(spanned(x)[0])
    k = label.shape[1]
    fold = torch.stack(
        [ranks((label[:, c] == 1).long(), Rng(seed, "fold", c)) % FOLDS for c in range(k)], 1
    )  # (N, K)
    problems = [(c, f) for c in range(k) for f in range(FOLDS)]
    score = torch.full((k, len(COSTS), FOLDS), torch.nan)
    for at in range(0, len(problems), AT_ONCE):
        some = problems[at : at + AT_ONCE]
        c, f = torch.tensor(some).T
        kept = fold[:, c] != f  # (N, P)
        w = None
        for i, cost in enumerate(COSTS):  # each starts from the last
            weight = importance(label[:, c], torch.tensor(cost)) * kept
            w = solve(z, sign(label[:, c]), weight, w, ROUGHLY)
            decision = (z @ w).double().numpy()
            for p, (one, two) in enumerate(some):
                held = (~kept[:, p] & (label[:, one] != -1)).numpy()
                found = precision.curve(decision[held, p], (label[:, one] == 1).numpy()[held])
                score[one, i, two] = float(precision.all_point(found)[0])
    mean = score.nanmean(2).nan_to_num()  # a fold without positives says nothing
    best = mean.argmax(1)
    return Choice(torch.tensor(COSTS)[best], mean[torch.arange(k), best])


def fit(x: Tensor, label: Tensor, cost: Tensor) -> Tensor:
    """(N, D), (N, K), (K,) -> (D + 1, K) weights, the bias last."""
    z, basis = spanned(x)
    w = solve(with_bias(z), sign(label), importance(label, cost))
    return w if basis is None else torch.cat([basis @ w[:-1], w[-1:]])


def sign(label: Tensor) -> Tensor:
    return torch.where(label == 1, 1.0, -1.0)


def importance(label: Tensor, cost: Tensor) -> Tensor:
    """(N, P), (P,) -> what an error of each sample costs."""
    return cost * torch.where(label == 1, POSITIVE, 1.0) * (label != -1)


def solve(
    x: Tensor, sign: Tensor, weight: Tensor, start: Tensor | None = None, enough: float = ENOUGH
) -> Tensor:
    """P SVMs on the same rows (N, D): argmin over w (D, P) of ½ ‖w‖² + Σ_i weight_i max(0, 1 - sign_i w·x_i)²."""
    w = x.new_zeros(x.shape[1], sign.shape[1]) if start is None else start.clone()
    left = torch.arange(sign.shape[1])  # problems that are not solved yet
    for _ in range(NEWTON):
        s, c, now = sign[:, left], weight[:, left], w[:, left]
        out = x @ now
        slope = gradient(x, s, c, now, out)
        going = slope.norm(dim=0) > enough * now.norm(dim=0)
        if not going.any():
            break
        left, s, c, now, out, slope = (
            left[going], s[:, going], c[:, going], now[:, going], out[:, going], slope[:, going],
        )  # fmt: skip
        way = conjugate_gradients(x, 2 * c * (s * out < 1), -slope)
        w[:, left] = now + descent(s, c, now, out, way, x @ way, slope) * way
    return w


def gradient(x: Tensor, sign: Tensor, weight: Tensor, w: Tensor, out: Tensor) -> Tensor:
    return w - 2 * x.T @ (weight * sign * (1 - sign * out).clamp(min=0))


def conjugate_gradients(x: Tensor, curvature: Tensor, b: Tensor) -> Tensor:
    """(I + xᵀ diag(curvature_p) x) d_p = b_p for each column p, to a tenth."""
    d, r = torch.zeros_like(b), b.clone()
    p, rr = r.clone(), r.square().sum(0)
    enough = 0.01 * rr
    for _ in range(INNER):
        if not (rr > enough).any():
            break
        hp = p + x.T @ (curvature * (x @ p))
        a = torch.where(rr > enough, rr / (p * hp).sum(0), 0.0)
        d, r = d + a * p, r - a * hp
        rest = r.square().sum(0)
        p, rr = r + torch.where(rr > 0, rest / rr, 0.0) * p, rest
    return d


def descent(
    sign: Tensor, weight: Tensor, w: Tensor, out: Tensor, way: Tensor, along: Tensor, slope: Tensor
) -> Tensor:
    """(P,): how far to go along `way`, the whole of it or a half, a quarter, …, so that the objective falls enough."""

    def objective(t: Tensor) -> Tensor:
        error = (1 - sign * (out + t * along)).clamp(min=0).square()
        return (w + t * way).square().sum(0) / 2 + (weight * error).sum(0)

    t, gain = torch.ones(w.shape[1]), (slope * way).sum(0)
    before = objective(torch.zeros_like(t))
    for _ in range(HALVINGS):
        short = objective(t) > before + 1e-4 * t * gain
        if not short.any():
            break
        t = torch.where(short, t / 2, t)
    return t
