"""Linear probe: multinomial logistic regression on frozen, cached features.

Standardized features and L-BFGS to the optimum, the penalty chosen on held-out training samples. The classic probe
takes 28 to 100 epochs of SGD through the encoder (Goyal et al. 2019, arXiv:1905.01235; He et al. 2020,
arXiv:1911.05722); its objective is convex, so here it is simply solved.

One factorization of the features serves every penalty and every fold, and the folds are solved together.
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
FIRST = 2
"""position of the penalty that the search starts from"""
BLOCK = 1 << 22
"""numbers of a block of rows: 16 MB of float32, much of which is still in a cache at the second of its two products"""
ROUGHLY = 1e-4
"""nats that a candidate may be above its optimum; the chosen one is brought to it"""
LEADING = 512
"""eigenvectors of the features' correlation that the solver is told, at most; what they leave it takes for round"""
SAMPLE = 8192
"""rows that they are those of"""


@dataclass(frozen=True)
class Probe:
    """logits = x weightᵀ + bias, in the units of the features themselves."""

    weight: Tensor  # (K, D)
    bias: Tensor  # (K,)

    def logits(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, K)."""
        return torch.cat([F.linear(rows.to(self.weight.dtype), self.weight, self.bias) for rows in blocks(x)])

    def predict(self, x: Tensor) -> Tensor:
        """(N, D) -> (N,) class numbers."""
        return self.logits(x).argmax(1)


@dataclass(frozen=True)
class Choice:
    """What was chosen on held-out training samples, and how well it did there."""

    penalty: float
    accuracy: float  # share of the held-out samples
    solve: Callable[[], Probe]

    @cached_property
    def probe(self) -> Probe:
        """What the choice makes of all training samples; solved when it is first asked for."""
        return self.solve()


def blocks(x: Tensor) -> Sequence[Tensor]:
    return x.split(max(1, BLOCK // x.shape[1]))


def standard(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> mean (D,) and 1 / standard deviation (D,), which is 0 for a column that does not vary."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    near = x[: BLOCK // x.shape[1] + 1].to(dtype).mean(0)  # taken off first: one pass then loses no digits
    total, square = torch.zeros(2, x.shape[1], dtype=torch.float64)
    for rows in blocks(x):
        rows = rows.to(dtype) - near
        total += rows.sum(0)
        square += rows.square_().sum(0)
    off = total / len(x)
    mean, std = near + off, (square / len(x) - off.square()).clamp(min=0).sqrt()
    varies = std > 1e-6 * mean.abs() + 1e-30  # below that a float32 column holds rounding errors only
    return mean, torch.where(varies, 1 / std.clamp(min=1e-30), 0)


class Design:
    """Features (N, D), standardized and factorized once for all that is fitted to them.

    Fewer rows than columns are replaced by their coordinates on their principal axes (span.py). Others stay as they
    are, since they may be gigabytes in half precision; their standardization is folded into the weights.
    """

    def __init__(self, x: Tensor, moments: tuple[Tensor, Tensor] | None = None):
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.mean, self.scale = (s.to(self.dtype) for s in moments or standard(x))
        self.rows, self.basis = x, None
        if len(x) < x.shape[1]:
            given = (x.to(self.dtype) - self.mean) * self.scale
            self.rows, mix = span(given)
            assert mix is not None
            # the two factors of the basis: their product (D, R) would cost half of what the span did
            self.basis = given, mix
            # the correlation is diagonal in these coordinates
            self.values, self.vectors = self.rows.square().mean(0), None
        else:
            rows = (x[:: max(1, len(x) // SAMPLE)].to(self.dtype) - self.mean) * self.scale
            self.values, self.vectors = leading(rows)

    @property
    def width(self) -> int:
        """R: of theta, but for the bias."""
        return self.rows.shape[1]

    def folded(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """theta (…, K, R + 1) of standardized features -> weight (…, K, R) and bias (…, K) for `rows` as they are."""
        weight, bias = theta[..., :-1], theta[..., -1]
        if self.basis is not None:
            return weight, bias
        weight = weight * self.scale
        return weight, bias - weight @ self.mean

    def unfolded(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Gradients of the weight (…, K, R) and the bias (…, K) that `folded` made -> of theta (…, K, R + 1)."""
        if self.basis is None:
            weight = (weight - bias[..., None] * self.mean) * self.scale
        return torch.cat([weight, bias[..., None]], -1)

    def probe(self, theta: Tensor) -> Probe:
        """theta (K, R + 1) -> the probe of the features themselves."""
        weight, bias = theta[:, :-1], theta[:, -1]
        if self.basis is not None:
            given, mix = self.basis
            weight = weight @ mix.T @ given
        weight = weight * self.scale
        return Probe(weight, bias - weight @ self.mean)

    def newton(self, flatness: float, penalty: float) -> Callable[[Tensor], Tensor]:
        """Gradient (…, K, R + 1) -> roughly Newton's direction, where the Hessian is about XᵀX / (N flatness) + λI; L-BFGS
        learns the rest."""
        # (R,), or those of the vectors and of what they leave
        shrink = 1 / (self.values / flatness + penalty + 1e-6)

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
def leading(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Standardized (N, D) -> eigenvalues (Q + 1,) of their correlation, the last one the mean of those that are left out,
    and the first Q eigenvectors (D, Q)."""
    torch.manual_seed(0)
    n, d = rows.shape
    if d <= LEADING:
        values, vectors = torch.linalg.eigh(rows.T @ rows / n)
    else:
        _, singular, vectors = torch.svd_lowrank(rows, LEADING, niter=1)
        values = singular.square() / n
    rest = (rows.square().sum() / n - values.sum()) / max(1, d - len(values))
    return torch.cat([values, rest[None]]).clamp(min=0), vectors


class Problem:
    """Mean cross-entropy + penalty/2 ‖W‖² of B probes on the same features, as a function of theta (B, K, R + 1).

    `label` is (N,) the class of each row, or (N, K) its share of each class, which need not add up to 1. `part` (B, N)
    says to which rows each probe is fitted; without it there is one probe, of all rows. `index` (N,) are the rows of
    the design that are meant, where they are not all.
    """

    def __init__(
        self,
        design: Design,
        label: Tensor,
        classes: int,
        part: Tensor | None = None,
        index: Tensor | None = None,
    ):
        self.design, self.classes, self.label = design, classes, label
        self.rows = design.rows if index is None else design.rows[index]
        part = (torch.ones(1, len(self.rows)) if part is None else part).to(design.dtype)
        self.share = (part / part.sum(1, keepdim=True)).T.contiguous()  # (N, B), columns sum to 1

    @property
    def flatness(self) -> float:
        """K: at p = 1/K the Hessian is (1/K)(I - 11ᵀ/K) ⊗ XᵀX/N + λI (Böhning 1992 bounds it alike everywhere)."""
        return self.classes

    def cost(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(n, B, K), (n, 1, K) -> the cross-entropy of each row (n, B) and its gradient by the logits (n, B, K)."""
        log_p = logits.log_softmax(-1)
        cost = -(log_p * target).sum(-1)
        return cost, log_p.exp_().mul_(target.sum(-1, keepdim=True)).sub_(target)

    def start(self) -> Tensor:
        return torch.zeros(self.share.shape[1], self.classes, self.design.width + 1, dtype=self.design.dtype)

    def value(self, theta: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        """The objectives (B,) and their gradients (B, K, R + 1), in one pass over the rows."""
        weight, bias = self.design.folded(theta)
        total = torch.zeros(len(theta), dtype=torch.float64)
        by_weight, by_bias = torch.zeros_like(weight).flatten(0, 1), torch.zeros_like(bias)
        rows_of = blocks(self.rows)
        size = len(rows_of[0])
        for rows, label, share in zip(rows_of, self.label.split(size), self.share.split(size), strict=True):
            rows = rows.to(self.design.dtype)
            target = F.one_hot(label, self.classes) if label.ndim == 1 else label
            target = target.to(rows.dtype)[:, None]  # (n, 1, K)
            cost, error = self.cost(logits(rows, weight, bias), target)
            total += (cost * share).sum(0, dtype=torch.float64)
            error = error.mul_(share[..., None])
            by_weight.addmm_(error.flatten(1).T, rows)
            by_bias += error.sum(0)
        w = theta[..., :-1]
        gradient = self.design.unfolded(by_weight.view_as(weight), by_bias)
        gradient[..., :-1] += penalty * w
        return total + penalty / 2 * w.double().square().sum((1, 2)), gradient

    def solve(self, penalty: float, start: Tensor | None = None, tolerance: float = 1e-5) -> Tensor:
        """The minima (B, K, R + 1), up to what another step would gain: less than `tolerance` nats each."""
        return minimize(
            lambda theta: self.value(theta, penalty),
            self.start() if start is None else start,
            self.design.newton(self.flatness, penalty),
            tolerance,
        )


def logits(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, R), (B, K, R), (B, K) -> (N, B, K), in one product."""
    return F.linear(rows, weight.flatten(0, 1), bias.flatten()).view(len(rows), *bias.shape)


def fit(x: Tensor, label: Tensor, classes: int, penalty: float) -> Probe:
    """(N, D), (N,) classes or (N, K) shares -> the probe at the optimum."""
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
    """Preconditioned L-BFGS (Nocedal, Wright, Numerical Optimization, alg. 7.4) of B problems, with backtracking.

    Each problem has its own curvature and step length; one that has arrived waits for the others.
    """
    memory: deque[Move] = deque(maxlen=10)
    value, gradient = objective(theta)
    scaled = precondition(gradient)
    going = torch.ones(len(theta), dtype=torch.bool)
    for _ in range(steps):
        direction = -towards(gradient, scaled, memory)
        slope = dot(gradient, direction).flatten().double()  # (B,)
        going &= -slope / 2 >= tolerance
        if not going.any():
            break
        length = going.double()
        while True:
            step = length.to(theta.dtype)[:, None, None] * direction
            reached, new = objective(theta + step)
            short = reached > value + 1e-4 * length * slope
            if not short.any():
                break
            length = torch.where(short, length / 2, length)
            stuck = short & (length < 1e-4)  # no gain beyond rounding errors is left
            going, length = going & ~stuck, length.masked_fill(stuck, 0.0)
        new_scaled = precondition(new)
        memory.append(Move.of(step, new - gradient, new_scaled - scaled))
        theta, value, gradient, scaled = theta + step, reached, new, new_scaled
    return theta


@dataclass(frozen=True)
class Move:
    """One step of theta, how it changed the gradient, and that change after the preconditioner, which is linear."""

    step: Tensor  # (B, K, R)
    change: Tensor
    scaled: Tensor
    weight: Tensor  # (B, 1, 1) 1 / curvature; 0 for a problem whose step tells nothing of it

    @classmethod
    def of(cls, step: Tensor, change: Tensor, scaled: Tensor) -> "Move":
        curvature = dot(step, change)
        tells = curvature > 1e-10 * (dot(step, step) * dot(change, change)).sqrt()
        return cls(step, change, scaled, torch.where(tells, 1 / curvature.where(tells, 1), 0))


def towards(gradient: Tensor, scaled: Tensor, memory: Sequence[Move]) -> Tensor:
    """The inverse Hessians, as the last moves show them, times the gradients: the two loops of L-BFGS.

    `scaled` are the gradients after the preconditioner, which is applied once a step.
    """
    q, r, weights = gradient, scaled, []
    for move in reversed(memory):
        a = dot(move.step, q) * move.weight
        q, r = q - a * move.change, r - a * move.scaled
        weights.append(a)
    if memory:
        last = memory[-1]
        length = dot(last.change, last.scaled).clamp(min=torch.finfo(r.dtype).tiny)
        r = r * torch.where(last.weight > 0, dot(last.step, last.change) / length, 1)
    for move, a in zip(memory, reversed(weights), strict=True):
        r = r + (a - dot(move.change, r) * move.weight) * move.step
    return r


# ---- the penalty


def choose(
    x: Tensor,
    label: Tensor,
    classes: int,
    splits: Splits,
    kind: type[Problem] = Problem,
    moments: tuple[Tensor, Tensor] | None = None,
) -> Choice:
    """(N, D), (N,) -> the penalty that does best on held-out samples.

    Uphill from a middling penalty: to weaker ones, and to stronger ones if none of those was better. Each fit starts
    from the last, and two in a row that are no better than the best end the way. Fitted to a share of the samples, the
    best one is multiplied by that share for all of them: λN, scikit-learn's 1/C, stays what it is. Columns are
    standardized by their `moments`, their own by default, and `kind` is the objective.
    """
    design = Design(x, moments)
    problem = kind(design, label[splits.fit], classes, splits.fitted, splits.fit)
    held, truth = design.rows[splits.held], label[splits.held]

    def tried(penalty: float, start: Tensor | None) -> tuple[float, Tensor, Tensor]:
        theta = problem.solve(penalty, start, ROUGHLY)
        weight, bias = design.folded(theta)
        found = [logits(rows.to(design.dtype), weight, bias).argmax(2) for rows in blocks(held)]
        return penalty, theta, (torch.cat(found) == truth[:, None]).T  # (B, H)

    best = latest = tried(PENALTIES[FIRST], None)
    for way in (PENALTIES[FIRST + 1 :], PENALTIES[FIRST - 1 :: -1]):
        latest, behind = best, 0
        for penalty in way:
            latest = tried(penalty, latest[1])
            better = splits.accuracy(latest[2]) > splits.accuracy(best[2])
            best, behind = (latest, 0) if better else (best, behind + 1)
            if behind == 2:
                break
        if best[0] != PENALTIES[FIRST]:
            break
    penalty, theta, right = best[0] * splits.share, *best[1:]

    def solve() -> Probe:
        return design.probe(kind(design, label, classes).solve(penalty, theta.mean(0, keepdim=True))[0])

    return Choice(penalty, splits.accuracy(right), solve)
