"""The probe is the optimum: scikit-learn's solution, autograd's gradient, and no rival below it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.testing import assert_close

from pretask.evals import linear
from pretask.rng import Rng

GAP = 5e-4
"""nats that a fit may lie above the optimum: it stops where a step would gain 1e-5"""


def blobs(n: int, d: int, classes: int, *keys: int | str) -> tuple[Tensor, Tensor]:
    """Overlapping classes in columns of very different scale and mean, as networks have them."""
    rng = Rng(n, d, classes, *keys)
    label = rng.integers(n, high=classes)
    x = rng.normal(n, d) @ rng.normal(d, d) / d**0.5 + 0.3 * rng.normal(classes, d)[label]
    return x * 10 ** rng.uniform(d, low=-2, high=2) + 3 * rng.normal(d), label


def standardised(x: Tensor) -> Tensor:
    return (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)


def objective(z: Tensor, label: Tensor, weight: Tensor, bias: Tensor, penalty: float) -> Tensor:
    """As the module's first lines state it, on standardised rows."""
    return F.cross_entropy(z @ weight.T + bias, label) + penalty / 2 * weight.square().sum()


def of_probe(x: Tensor, label: Tensor, probe: linear.Probe, penalty: float) -> float:
    """The objective of a probe, read back in the units of standardised features."""
    x = x.double()
    weight = probe.weight.double() * x.std(0, correction=0)
    bias = probe.bias.double() + probe.weight.double() @ x.mean(0)
    return objective(standardised(x), label, weight, bias, penalty).item()


def lowest(z: Tensor, label: Tensor, classes: int, penalty: float) -> float:
    """The minimum by SciPy's L-BFGS in double precision, run until nothing moves."""
    d = z.shape[1]

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.from_numpy(flat).view(classes, d + 1).requires_grad_()
        found = objective(z, label, theta[:, :-1], theta[:, -1], penalty)
        (gradient,) = torch.autograd.grad(found, theta)
        return found.item(), gradient.flatten().numpy()

    found = minimize(value, np.zeros(classes * (d + 1)), jac=True, method="L-BFGS-B",
                     options={"maxiter": 5000, "maxfun": 10000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 50})  # fmt: skip
    return float(found.fun)


@pytest.mark.parametrize("penalty", [1.0, 0.01, 1e-3])
def test_the_probe_is_scikit_learns_logistic_regression(penalty):
    x, label = blobs(600, 12, 4)
    fitted = linear.Problem(x.double(), label, 4).solve(penalty, tolerance=1e-14)
    z = standardised(x).numpy()
    other = LogisticRegression(C=1 / (penalty * 600), tol=1e-10, max_iter=5000).fit(z, label.numpy())
    weight = fitted.weight * x.double().std(0, correction=0)
    assert_close(weight, torch.from_numpy(other.coef_), atol=2e-5, rtol=0)
    p = torch.from_numpy(other.predict_proba(z))
    assert_close(fitted.logits(x.double()).softmax(1), p, atol=1e-5, rtol=0)
    rough = linear.fit(x, label, 4, penalty)  # single precision, to the tolerance that evaluation uses
    assert_close(rough.logits(x).softmax(1).double(), p, atol=0.03, rtol=0)


@pytest.mark.parametrize("penalty", linear.PENALTIES)
@pytest.mark.parametrize(("n", "d", "classes"), [(400, 20, 5), (150, 60, 3)])  # the second can be separated
def test_no_rival_reaches_a_lower_objective(n, d, classes, penalty):
    x, label = blobs(n, d, classes)
    least = lowest(standardised(x), label, classes, penalty)
    exact = linear.Problem(x.double(), label, classes).solve(penalty, tolerance=1e-10)
    assert abs(of_probe(x, label, exact, penalty) - least) < 1e-6
    assert of_probe(x, label, linear.fit(x, label, classes, penalty), penalty) < least + GAP


def test_the_value_and_its_gradient_are_those_of_autograd(monkeypatch):
    x, label = blobs(300, 7, 4)
    x = x.double()
    problem = linear.Problem(x, label, 4)
    theta = Rng(0, "theta").normal(4, 8).double().requires_grad_()
    expected = objective(standardised(x), label, theta[:, :-1], theta[:, -1], 0.3)
    expected.backward()
    for block in (linear.BLOCK, 7 * 13):  # all at once, and in blocks that do not divide the rows
        monkeypatch.setattr(linear, "BLOCK", block)
        value, gradient = problem.value(theta.detach(), 0.3)
        assert value == pytest.approx(expected.item(), rel=1e-10)
        assert_close(gradient, theta.grad, atol=1e-10, rtol=1e-8)


def test_standard_is_the_mean_and_the_inverse_of_the_standard_deviation(monkeypatch):
    monkeypatch.setattr(linear, "BLOCK", 100)
    x, _ = blobs(300, 7, 4)
    mean, scale = linear.standard(x)
    assert_close(mean, x.double().mean(0))
    assert_close(scale, 1 / x.double().std(0, correction=0))


def test_a_start_anywhere_ends_at_the_same_optimum():
    x, label = blobs(400, 20, 5)
    least = lowest(standardised(x), label, 5, 0.01)
    problem = linear.Problem(x, label, 5)
    for start in (problem.solve(1.0), problem.solve(1e-5), problem.probe(Rng(0).normal(5, 21))):
        assert of_probe(x, label, problem.solve(0.01, start), 0.01) < least + GAP


def test_a_start_at_the_optimum_stays_there():
    x, label = blobs(400, 20, 5)
    problem = linear.Problem(x.double(), label, 5)
    best = problem.solve(0.01, tolerance=1e-13)
    again = problem.solve(0.01, best)
    assert_close(again.weight, best.weight, rtol=1e-9, atol=0)
    assert_close(again.bias, best.bias, rtol=1e-9, atol=1e-12)


def test_constant_columns_change_nothing():
    x, label = blobs(300, 6, 3)
    constant = torch.tensor([0.0, 7.3, -1e4]).expand(300, 3)
    unsure = 5 + 1e-7 * Rng(0).normal(300, 1)  # rounding errors of a constant
    probe = linear.fit(torch.cat([x, constant, unsure], 1), label, 3, 0.01)
    plain = linear.fit(x, label, 3, 0.01)
    assert probe.weight[:, 6:].abs().max() == 0
    assert_close(probe.logits(torch.cat([x, constant, unsure], 1)), plain.logits(x), atol=1e-4, rtol=1e-4)


def test_features_that_are_constant_are_scored_by_the_frequency_of_the_classes():
    label = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    p = linear.fit(torch.full((100, 5), 2.5), label, 3, 0.01).logits(torch.full((1, 5), 2.5)).softmax(1)
    assert_close(p[0], torch.tensor([0.5, 0.3, 0.2]), atol=5e-3, rtol=0)


@pytest.mark.parametrize("rank", [1, 3])
def test_columns_that_repeat_each_other_are_solved_like_one(rank):
    rng = Rng(rank, "collapsed")
    narrow, label = rng.normal(1000, rank), rng.integers(1000, high=3)
    narrow[:, 0] += 0.5 * label
    x = narrow @ rng.normal(rank, 512)  # a dimensional collapse
    probe = linear.fit(x, label, 3, 1e-5)
    free = lowest(standardised(narrow), label, 3, 0.0)
    assert F.cross_entropy(probe.logits(x), label).item() < free + 1e-3


def test_half_precision_is_read_as_it_is():
    x, label = blobs(300, 6, 3)
    half = x.half()
    one, other = linear.fit(half, label, 3, 0.01), linear.fit(half.float(), label, 3, 0.01)
    assert one.weight.dtype == torch.float32
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)
    assert torch.equal(one.predict(half), other.predict(half.float()))


@pytest.mark.parametrize(("n", "low", "high"), [(60, 0.1, 1.0), (4000, 1e-5, 0.01)])
def test_the_penalty_is_the_one_that_is_best_on_held_out_samples(n, low, high):
    """A strong one for few noisy samples, a weak one for many."""
    rng = Rng(0, "held out")
    label = rng.integers(n + 2000, high=3)
    x = rng.normal(n + 2000, 40)
    x[:, :2] += torch.tensor([[0.0, 0.0], [1.5, 0.3], [3.0, 0.0]])[label]
    x, held, label, truth = x[:n], x[n:], label[:n], label[n:]
    choice = linear.choose(x, label, held, truth, 3)
    assert low <= choice.penalty <= high
    assert choice.accuracy == (choice.probe.predict(held) == truth).double().mean().item()
    for penalty in linear.PENALTIES:
        right = (linear.fit(x, label, 3, penalty).predict(held) == truth).double().mean().item()
        assert right <= choice.accuracy + 0.01  # candidates are solved roughly


def searched(monkeypatch, accuracy: dict[float, float]) -> tuple[float, list[float]]:
    """What is chosen, and what is tried, where a penalty's held-out accuracy is known (elsewhere 0)."""
    tried = []

    def solve(self, penalty, start=None, tolerance=0.0):
        tried.append(penalty)
        right = torch.arange(100) < 100 * accuracy.get(penalty, 0.0)
        return linear.Probe(torch.zeros(2, 1), right)

    monkeypatch.setattr(linear.Problem, "solve", solve)
    monkeypatch.setattr(linear.Probe, "predict", lambda self, x: self.bias.long())
    x, label = torch.rand(4, 1), torch.tensor([0, 1, 0, 1])
    return linear.choose(x, label, torch.rand(100, 1), torch.ones(100).long(), 2).penalty, tried


def test_the_search_goes_uphill_to_weaker_penalties_over_one_dip(monkeypatch):
    hill = {0.1: 0.5, 0.03: 0.4, 0.01: 0.6, 3e-3: 0.7, 1e-5: 0.9}
    assert searched(monkeypatch, hill) == (3e-3, [0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4])


def test_the_search_turns_to_stronger_penalties_where_no_weaker_one_is_better(monkeypatch):
    assert searched(monkeypatch, {0.1: 0.5, 1.0: 0.6}) == (1.0, [0.1, 0.03, 0.01, 0.3, 1.0])
    assert searched(monkeypatch, {0.1: 0.5, 0.03: 0.5, 0.3: 0.5}) == (0.1, [0.1, 0.03, 0.01, 0.3, 1.0])


def test_the_search_may_end_at_the_weakest_penalty(monkeypatch):
    hill = {penalty: i / 20 for i, penalty in enumerate(linear.PENALTIES)}
    assert searched(monkeypatch, hill) == (1e-5, list(linear.PENALTIES[2:]))
