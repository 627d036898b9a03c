"""Linear probe: multinomial logistic regression on frozen, cached features.

Standardised features and L-BFGS to the optimum, the penalty chosen on held-out training samples. The classic probe
takes 28 to 100 epochs of SGD through the encoder (Goyal et al. 2019, arXiv:1905.01235; He et al. 2020,
arXiv:1911.05722); its objective is convex, so here it is simply solved.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""λ of mean cross-entropy + λ/2 ‖W‖², strong to weak; scikit-learn's C is 1 / (λ N)"""
FIRST = 2
"""position of the penalty that the search starts from"""
BLOCK = 1 << 21
"""numbers of a block of rows: 8 MB of float32, which stays in the cache between its two products"""
ROUGHLY = 1e-3
"""nats that a candidate may be above its optimum; the chosen one is brought to it"""
WORK = 1.5e11
"""multiplications worth spending on how the columns correlate: a second or two"""


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
    probe: Probe


def blocks(x: Tensor) -> Sequence[Tensor]:
    return x.split(max(1, BLOCK // x.shape[1]))


def standard(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> mean (D,) and 1 / standard deviation (D,), which is 0 for a column that does not vary."""
    total = torch.stack([rows.double().sum(0) for rows in blocks(x)]).sum(0)
    mean = total / len(x)
    square = torch.stack([(rows.double() - mean).square_().sum(0) for rows in blocks(x)]).sum(0)
    std = (square / len(x)).sqrt()
    varies = std > 1e-6 * mean.abs() + 1e-30  # below that a float32 column holds rounding errors only
    return mean, torch.where(varies, 1 / std.clamp(min=1e-30), 0)


class Problem:
    """Mean cross-entropy + penalty/2 ‖W‖² over the standardised rows of x, as a function of theta (K, D + 1).

    `label` is (N,) the class of each row, or (N, K) its share of each class.
    The standardisation is folded into theta and x is read in blocks, as it is: it may be a half-precision array
    on disk.
    """

    def __init__(self, x: Tensor, label: Tensor, classes: int, moments: tuple[Tensor, Tensor] | None = None):
        self.x, self.label, self.classes = x, label, classes
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.mean, self.scale = (s.to(self.dtype) for s in moments or standard(x))
        every = max(1, round(len(x) * x.shape[1] ** 2 / WORK))
        rows = (x[::every].to(self.dtype) - self.mean) * self.scale
        self.correlation = rows.T @ rows / len(rows)  # (D, D), of all rows where that is cheap

    def probe(self, theta: Tensor) -> Probe:
        weight = theta[:, :-1] * self.scale
        return Probe(weight, theta[:, -1] - weight @ self.mean)

    def theta(self, probe: Probe | None) -> Tensor:
        if probe is None:
            return torch.zeros(self.classes, self.x.shape[1] + 1, dtype=self.dtype, device=self.x.device)
        weight = torch.where(self.scale > 0, probe.weight / self.scale.clamp(min=1e-30), 0)
        return torch.cat([weight, (probe.bias + probe.weight @ self.mean)[:, None]], 1)

    def value(self, theta: Tensor, penalty: float) -> tuple[float, Tensor]:
        """The objective and its gradient (K, D + 1), in one pass over x."""
        probe, n = self.probe(theta), len(self.x)
        total, weight, bias = 0.0, torch.zeros_like(probe.weight), torch.zeros_like(probe.bias)
        rows_of = blocks(self.x)
        for rows, target in zip(rows_of, self.label.split(len(rows_of[0])), strict=True):
            rows = rows.to(self.dtype)
            log_p = F.linear(rows, probe.weight, probe.bias).log_softmax(1)
            if target.ndim == 2:  # shares of the classes
                total -= (log_p * target).sum().item()
                error = log_p.exp_().mul_(target.sum(1, keepdim=True)).sub_(target)
            else:
                total -= log_p.gather(1, target[:, None]).sum().item()
                error = log_p.exp_().scatter_add_(1, target[:, None], -torch.ones_like(log_p[:, :1]))
            weight.addmm_(error.T, rows)
            bias += error.sum(0)
        w = theta[:, :-1]
        gradient = (weight - bias[:, None] * self.mean) * self.scale / n + penalty * w
        value = total / n + penalty / 2 * w.square().sum().item()
        return value, torch.cat([gradient, bias[:, None] / n], 1)

    def newton(self, penalty: float) -> Callable[[Tensor], Tensor]:
        """Gradient -> roughly Newton's direction.

        At p = 1/K the Hessian is (1/K)(I - 11ᵀ/K) ⊗ XᵀX/N + λI (Böhning 1992 bounds it alike everywhere);
        L-BFGS learns the rest.
        """
        hessian, shift = self.correlation / self.classes, penalty + 1e-6
        hessian.diagonal().add_(shift)
        root, failed = torch.linalg.cholesky_ex(hessian)
        while failed:  # columns repeat each other, and rounding errors decide the sign of what is left
            hessian.diagonal().add_(9 * shift)
            shift *= 10
            root, failed = torch.linalg.cholesky_ex(hessian)

        def direction(g: Tensor) -> Tensor:
            return torch.cat([torch.cholesky_solve(g[:, :-1].T, root).T, self.classes * g[:, -1:]], 1)

        return direction

    def solve(self, penalty: float, start: Probe | None = None, tolerance: float = 1e-5) -> Probe:
        """The minimum, up to what another step would gain: less than `tolerance` nats."""
        theta = minimise(
            lambda theta: self.value(theta, penalty), self.theta(start), self.newton(penalty), tolerance
        )
        return self.probe(theta)


def fit(x: Tensor, label: Tensor, classes: int, penalty: float, start: Probe | None = None) -> Probe:
    """(N, D), (N,) classes or (N, K) shares -> the probe at the optimum."""
    return Problem(x, label, classes).solve(penalty, start)


def minimise(
    objective: Callable[[Tensor], tuple[float, Tensor]],
    theta: Tensor,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
    steps: int = 300,
) -> Tensor:
    """Preconditioned L-BFGS (Nocedal, Wright, Numerical Optimization, alg. 7.4), with backtracking."""
    memory: deque[Move] = deque(maxlen=10)
    value, gradient = objective(theta)
    scaled = precondition(gradient)
    for _ in range(steps):
        direction = -towards(gradient, scaled, memory)
        slope = (gradient * direction).sum().item()
        if -slope / 2 < tolerance:
            break
        length = 1.0
        while True:
            step = length * direction
            reached, new = objective(theta + step)
            if reached <= value + 1e-4 * length * slope:
                break
            length /= 2
            if length < 1e-4:  # no gain beyond rounding errors is left
                return theta
        change, new_scaled = new - gradient, precondition(new)
        if (step * change).sum() > 1e-10 * step.norm() * change.norm():
            memory.append(Move(step, change, new_scaled - scaled))
        theta, value, gradient, scaled = theta + step, reached, new, new_scaled
    return theta


@dataclass(frozen=True)
class Move:
    """One step of theta, how it changed the gradient, and that change after the preconditioner, which is linear."""

    step: Tensor
    change: Tensor
    scaled: Tensor

    @property
    def curvature(self) -> Tensor:
        return (self.step * self.change).sum()


def towards(gradient: Tensor, scaled: Tensor, memory: Sequence[Move]) -> Tensor:
    """The inverse Hessian, as the last moves show it, times the gradient: the two loops of L-BFGS.

    `scaled` is the gradient after the preconditioner: applied once a step, it costs as much as the objective.
    """
    q, r, weights = gradient, scaled, []
    for move in reversed(memory):
        a = (move.step * q).sum() / move.curvature
        q, r = q - a * move.change, r - a * move.scaled
        weights.append(a)
    if memory:
        r = r * memory[-1].curvature / (memory[-1].change * memory[-1].scaled).sum()
    for move, a in zip(memory, reversed(weights), strict=True):
        r = r + (a - (move.change * r).sum() / move.curvature) * move.step
    return r


def choose(x: Tensor, label: Tensor, held: Tensor, held_label: Tensor, classes: int) -> Choice:
    """Fit on one part of the training samples; the penalty that does best on the held-out part wins.

    Uphill from a middling penalty: to weaker ones, and to stronger ones if none of those was better. Each fit starts
    from the last, and two in a row that are no better than the best end the way.
    """
    problem = Problem(x, label, classes)

    def tried(penalty: float, start: Probe | None) -> Choice:
        probe = problem.solve(penalty, start, ROUGHLY)
        return Choice(penalty, (probe.predict(held) == held_label).double().mean().item(), probe)

    best = tried(PENALTIES[FIRST], None)
    for way in (PENALTIES[FIRST + 1 :], PENALTIES[FIRST - 1 :: -1]):
        latest, behind = best, 0
        for penalty in way:
            latest = tried(penalty, latest.probe)
            best, behind = (latest, 0) if latest.accuracy > best.accuracy else (best, behind + 1)
            if behind == 2:
                break
        if best.penalty != PENALTIES[FIRST]:
            break
    return best
