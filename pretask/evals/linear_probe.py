"""Linear probe: multinomial logistic regression on frozen, cached features.

Features are standardized, L-BFGS solves the problem to the optimum, and the penalty is chosen on held-out training
samples. The usual probe takes 28 to 100 epochs of SGD through the encoder (Goyal et al. 2019, arXiv:1905.01235; He et al.
2020, arXiv:1911.05722); the objective is convex, so it is solved directly here.

Features are factorized once for all penalties and folds, and all folds are solved together.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.evals.holdout import Splits
from pretask.ops.span import span

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""λ of mean cross-entropy + λ/2 ‖W‖², strong to weak; scikit-learn's C is 1 / (λ N)"""
START = 2
"""index of the penalty at which the search starts"""
BLOCK = 1 << 22
"""numbers in a block of rows: 16 MB of float32, much of which is still cached for the second of its two products"""
SEARCH_TOLERANCE = 1e-4
"""nats by which a candidate may miss its optimum; the chosen one is solved further"""
EIGENVECTORS = 512
"""maximum number of eigenvectors of the features' correlation used by the preconditioner; the rest counts as isotropic"""
RANGE = 1e-5
"""smallest eigenvalue that the preconditioner uses, relative to the largest; it works in single precision"""
EIGENVECTOR_ROWS = 8192
"""number of rows from which they are computed"""


@dataclass(frozen=True)
class Probe:
    """logits = x weightᵀ + bias, for features that are not standardized."""

    weight: Tensor  # (K, D)
    bias: Tensor  # (K,)

    def logits(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, K)."""
        return torch.cat([F.linear(rows.to(self.weight.dtype), self.weight, self.bias) for rows in blocks(x)])

    def predict(self, x: Tensor) -> Tensor:
        """(N, D) -> (N,) classes."""
        return self.logits(x).argmax(1)


@dataclass(frozen=True)
class Choice:
    """The penalty chosen on held-out training samples, and its score there."""

    penalty: float
    score: float  # 0 … 1, by the metric of `choose`
    solve: Callable[[], Probe]

    @cached_property
    def probe(self) -> Probe:
        """The probe fitted to all training samples; solved at first use."""
        return self.solve()


def blocks(x: Tensor) -> Sequence[Tensor]:
    return x.split(max(1, BLOCK // x.shape[1]))


def standardization(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> mean (D,) and 1 / standard deviation (D,), which is 0 for a constant column."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    shift = x[: BLOCK // x.shape[1] + 1].to(dtype).mean(0)  # subtracted first: one pass then loses no digits
    total, square = torch.zeros(2, x.shape[1], dtype=torch.float64)
    for rows in blocks(x):
        rows = rows.to(dtype) - shift
        total += rows.sum(0)
        square += rows.square_().sum(0)
    offset = total / len(x)
    mean, std = shift + offset, (square / len(x) - offset.square()).clamp(min=0).sqrt()
    varies = std > 1e-6 * mean.abs() + 1e-30  # a float32 column below that holds rounding errors only
    return mean, torch.where(varies, 1 / std.clamp(min=1e-30), 0)


class Design:
    """Design matrix: features (N, D), standardized and factorized once for all problems.

    Fewer rows than columns are replaced by their coordinates on their principal axes (ops/span.py). Otherwise rows are
    kept as they are, since they may be gigabytes in half precision, and the standardization is folded into the weights.
    """

    def __init__(self, x: Tensor, moments: tuple[Tensor, Tensor] | None = None):
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.mean, self.scale = (s.to(self.dtype) for s in moments or standardization(x))
        self.rows, self.basis = x, None
        if len(x) < x.shape[1]:
            standardized = (x.to(self.dtype) - self.mean) * self.scale
            self.rows, mix = span(standardized)
            assert mix is not None
            # the two factors of the basis: computing their product (D, R) would cost half as much as the span
            self.basis = standardized, mix
            # the correlation is diagonal in these coordinates
            self.values, self.vectors = self.rows.square().mean(0), None
        else:
            rows = (x[:: max(1, len(x) // EIGENVECTOR_ROWS)].to(self.dtype) - self.mean) * self.scale
            self.values, self.vectors = leading_eigenvectors(rows)

    @property
    def width(self) -> int:
        """R: the width of theta without the bias."""
        return self.rows.shape[1]

    def fold(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """theta (…, K, R + 1) for standardized features -> weight (…, K, R) and bias (…, K) for `rows` as stored."""
        weight, bias = theta[..., :-1], theta[..., -1]
        if self.basis is not None:
            return weight, bias
        weight = weight * self.scale
        return weight, bias - weight @ self.mean

    def unfold_gradient(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Gradients by the weight (…, K, R) and the bias (…, K) of `fold` -> gradient by theta (…, K, R + 1)."""
        if self.basis is None:
            weight = (weight - bias[..., None] * self.mean) * self.scale
        return torch.cat([weight, bias[..., None]], -1)

    def probe(self, theta: Tensor) -> Probe:
        """theta (K, R + 1) -> a probe for features that are not standardized."""
        weight, bias = theta[:, :-1], theta[:, -1]
        if self.basis is not None:
            standardized, mix = self.basis
            weight = weight @ mix.T @ standardized
        weight = weight * self.scale
        return Probe(weight, bias - weight @ self.mean)

    def preconditioner(self, flatness: float, penalty: float) -> Callable[[Tensor], Tensor]:
        """Gradient (…, K, R + 1) -> approximate Newton direction for a Hessian of XᵀX / (N flatness) + λI; L-BFGS corrects
        the rest."""
        # (R,), or one per eigenvector and one for the complement; with a wider range, rounding errors of the complement would
        # exceed what is left along the largest eigenvector, and the result would not be a descent direction
        values = self.values.clamp(min=RANGE * self.values.max())
        shrink = 1 / (values / flatness + penalty + 1e-6)

        def direction(g: Tensor) -> Tensor:
            weight = g[..., :-1]
            if self.vectors is None:
                weight = weight * shrink
            else:
                along = weight @ self.vectors * (shrink[:-1] - shrink[-1])
                weight = shrink[-1] * weight + along @ self.vectors.T
            return torch.cat([weight, flatness * g[..., -1:]], -1)

        return direction


@torch.random.fork_rng(devices=[])
def leading_eigenvectors(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Standardized (N, D) -> (Q + 1,) the largest Q eigenvalues of their correlation and the mean of all others, and the
    first Q eigenvectors (D, Q)."""
    torch.manual_seed(0)
    n, d = rows.shape
    if d <= EIGENVECTORS:
        values, vectors = torch.linalg.eigh(rows.T @ rows / n)
    else:
        _, singular, vectors = torch.svd_lowrank(rows, EIGENVECTORS, niter=1)
        values = singular.square() / n
    rest = (rows.square().sum() / n - values.sum()) / max(1, d - len(values))
    return torch.cat([values, rest[None]]).clamp(min=0), vectors


class Problem:
    """Mean cross-entropy + penalty/2 ‖W‖² of B probes on the same features, as a function of theta (B, K, R + 1).

    `label` is (N,) the class of each row, or (N, K) soft labels, which need not sum to 1. `mask` (B, N) selects the rows
    that each probe is fitted to; the default is one probe and all rows. `index` (N,) selects rows of the design; the
    default is all of them.
    """

    def __init__(
        self,
        design: Design,
        label: Tensor,
        classes: int,
        mask: Tensor | None = None,
        index: Tensor | None = None,
    ):
        self.design, self.classes, self.label = design, classes, label
        self.rows = design.rows if index is None else design.rows[index]
        mask = (torch.ones(1, len(self.rows)) if mask is None else mask).to(design.dtype)
        self.row_weight = (mask / mask.sum(1, keepdim=True)).T.contiguous()  # (N, B), columns sum to 1

    @property
    def flatness(self) -> float:
        """K: at p = 1/K the Hessian is (1/K)(I - 11ᵀ/K) ⊗ XᵀX/N + λI (Böhning 1992 has a similar bound for any p)."""
        return self.classes

    def cost(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(n, B, K), (n, 1, K) -> cross-entropy of each row (n, B) and its gradient by the logits (n, B, K)."""
        log_p = logits.log_softmax(-1)
        cost = -(log_p * target).sum(-1)
        return cost, log_p.exp_().mul_(target.sum(-1, keepdim=True)).sub_(target)

    def start(self) -> Tensor:
        return torch.zeros(
            self.row_weight.shape[1], self.classes, self.design.width + 1, dtype=self.design.dtype
        )

    def value(self, theta: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        """The objectives (B,) and their gradients (B, K, R + 1), in one pass over the rows."""
        weight, bias = self.design.fold(theta)
        total = torch.zeros(len(theta), dtype=torch.float64)
        weight_grad, bias_grad = torch.zeros_like(weight).flatten(0, 1), torch.zeros_like(bias)
        row_blocks = blocks(self.rows)
        size = len(row_blocks[0])
        parts = zip(row_blocks, self.label.split(size), self.row_weight.split(size), strict=True)
        for rows, label, row_weight in parts:
            rows = rows.to(self.design.dtype)
            target = F.one_hot(label, self.classes) if label.ndim == 1 else label
            target = target.to(rows.dtype)[:, None]  # (n, 1, K)
            cost, error = self.cost(logits(rows, weight, bias), target)
            total += (cost * row_weight).sum(0, dtype=torch.float64)
            error = error.mul_(row_weight[..., None])
            weight_grad.addmm_(error.flatten(1).T, rows)
            bias_grad += error.sum(0)
        w = theta[..., :-1]
        gradient = self.design.unfold_gradient(weight_grad.view_as(weight), bias_grad)
        gradient[..., :-1] += penalty * w
        return total + penalty / 2 * w.double().square().sum((1, 2)), gradient

    def solve(self, penalty: float, start: Tensor | None = None, tolerance: float = 1e-5) -> Tensor:
        """The minima (B, K, R + 1), until another step is expected to gain less than `tolerance` nats for each."""
        return minimize(
            lambda theta: self.value(theta, penalty),
            self.start() if start is None else start,
            self.design.preconditioner(self.flatness, penalty),
            tolerance,
        )


def logits(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, R), (B, K, R), (B, K) -> (N, B, K), in one product."""
    return F.linear(rows, weight.flatten(0, 1), bias.flatten()).view(len(rows), *bias.shape)


def fit(x: Tensor, label: Tensor, classes: int, penalty: float) -> Probe:
    """(N, D), (N,) classes or (N, K) soft labels -> the probe at the optimum."""
    design = Design(x)
    return design.probe(Problem(design, label, classes).solve(penalty)[0])


# ---- the solver


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(B, K, R), (B, K, R) -> (B, 1, 1)."""
    return (a * b).sum((1, 2), keepdim=True)


def minimize(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    theta: Tensor,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
    steps: int = 300,
) -> Tensor:
    """Preconditioned L-BFGS (Nocedal, Wright, Numerical Optimization, alg. 7.4) for B problems, with backtracking.

    Each problem has its own curvature and step length; a problem that has converged waits for the others.
    """
    memory: deque[Update] = deque(maxlen=10)
    value, gradient = objective(theta)
    preconditioned = precondition(gradient)
    active = torch.ones(len(theta), dtype=torch.bool)
    for _ in range(steps):
        direction = -lbfgs_product(gradient, preconditioned, memory)
        slope = dot(gradient, direction).flatten().double()  # (B,)
        active &= -slope / 2 >= tolerance
        if not active.any():
            break
        length = active.double()
        while True:
            step = length.to(theta.dtype)[:, None, None] * direction
            new_value, new_gradient = objective(theta + step)
            too_long = new_value > value + 1e-4 * length * slope
            if not too_long.any():
                break
            length = torch.where(too_long, length / 2, length)
            stuck = too_long & (length < 1e-4)  # no gain beyond rounding errors is left
            active, length = active & ~stuck, length.masked_fill(stuck, 0.0)
        new_preconditioned = precondition(new_gradient)
        memory.append(Update.of(step, new_gradient - gradient, new_preconditioned - preconditioned))
        theta, value = theta + step, new_value
        gradient, preconditioned = new_gradient, new_preconditioned
    return theta


@dataclass(frozen=True)
class Update:
    """A step of theta, the change of the gradient, and that change after the preconditioner, which is linear."""

    step: Tensor  # (B, K, R)
    change: Tensor
    preconditioned: Tensor
    weight: Tensor  # (B, 1, 1) 1 / curvature; 0 for a problem whose step does not show its curvature

    @classmethod
    def of(cls, step: Tensor, change: Tensor, preconditioned: Tensor) -> "Update":
        curvature = dot(step, change)
        positive = curvature > 1e-10 * (dot(step, step) * dot(change, change)).sqrt()
        return cls(step, change, preconditioned, torch.where(positive, 1 / curvature.where(positive, 1), 0))


def lbfgs_product(gradient: Tensor, preconditioned: Tensor, memory: Sequence[Update]) -> Tensor:
    """The inverse Hessians, estimated from the last updates, times the gradients: L-BFGS's two-loop recursion.

    `preconditioned` are the gradients after the preconditioner, which is applied once per step.
    """
    q, r, weights = gradient, preconditioned, []
    for update in reversed(memory):
        a = dot(update.step, q) * update.weight
        q, r = q - a * update.change, r - a * update.preconditioned
        weights.append(a)
    if memory:
        last = memory[-1]
        length = dot(last.change, last.preconditioned).clamp(min=torch.finfo(r.dtype).tiny)
        r = r * torch.where(last.weight > 0, dot(last.step, last.change) / length, 1)
    for update, a in zip(memory, reversed(weights), strict=True):
        r = r + (a - dot(update.change, r) * update.weight) * update.step
    return r


# ---- the penalty


def accuracy(logits: Tensor, label: Tensor, splits: Splits) -> float:
    """(H, B, K), (H,) -> accuracy on held-out samples, 0 … 1."""
    return splits.accuracy((logits.argmax(2) == label[:, None]).T)


def choose(
    x: Tensor,
    label: Tensor,
    classes: int,
    splits: Splits,
    problem: type[Problem] = Problem,
    moments: tuple[Tensor, Tensor] | None = None,
    metric: Callable[[Tensor, Tensor, Splits], float] = accuracy,
) -> Choice:
    """(N, D), (N,) or other labels that `problem` and `metric` take -> the penalty that does best on held-out samples.

    The search starts at a middle penalty and goes to weaker ones, then to stronger ones if no weaker one was better. Each
    fit starts from the last one, and a direction ends after two fits in a row that are not better than the best. If only
    a fraction of the samples is fitted to, the best penalty is multiplied by that fraction for all of them: λN,
    scikit-learn's 1/C, stays the same. Columns are standardized by `moments`, by default their own. `metric` scores logits
    (H, B, K) of H samples held out in B splits against their labels.
    """
    design = Design(x, moments)
    fitting = problem(design, label[splits.fit], classes, splits.fit_mask, splits.fit)
    held_out, truth = design.rows[splits.held_out], label[splits.held_out]

    def evaluate(penalty: float, start: Tensor | None) -> tuple[float, Tensor, float]:
        theta = fitting.solve(penalty, start, SEARCH_TOLERANCE)
        weight, bias = design.fold(theta)
        predicted = torch.cat(
            [logits(rows.to(design.dtype), weight, bias) for rows in blocks(held_out)]
        )  # (H, B, K)
        return penalty, theta, metric(predicted, truth, splits)

    best = latest = evaluate(PENALTIES[START], None)
    for penalties in (PENALTIES[START + 1 :], PENALTIES[START - 1 :: -1]):
        latest, behind = best, 0
        for penalty in penalties:
            latest = evaluate(penalty, latest[1])
            better = latest[2] > best[2]
            best, behind = (latest, 0) if better else (best, behind + 1)
            if behind == 2:
                break
        if best[0] != PENALTIES[START]:
            break
    penalty, theta, score = best[0] * splits.fit_fraction, *best[1:]

    def solve() -> Probe:
        return design.probe(problem(design, label, classes).solve(penalty, theta.mean(0, keepdim=True))[0])

    return Choice(penalty, score, solve)
