"""The linear probe is at the optimum: against scikit-learn, against autograd's gradient, and against other solvers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.testing import assert_close

from pretask.evals import linear_probe
from pretask.evals.holdout import Splits, splits
from pretask.rng import Rng

GAP = 5e-4
"""nats that a fit may lie above the optimum: it stops where a step would gain 1e-5"""


def blobs(n: int, d: int, classes: int, *keys: int | str) -> tuple[Tensor, Tensor]:
    """Overlapping classes in columns of very different scale and mean, as networks have them."""
    rng = Rng(n, d, classes, *keys)
    label = rng.integers(n, high=classes)
    x = rng.normal(n, d) @ rng.normal(d, d) / d**0.5 + 0.3 * rng.normal(classes, d)[label]
    return x * 10 ** rng.uniform(d, low=-2, high=2) + 3 * rng.normal(d), label


def solved(x: Tensor, label: Tensor, classes: int, penalty: float, tolerance: float) -> linear_probe.Probe:
    design = linear_probe.Design(x)
    return design.probe(linear_probe.Problem(design, label, classes).solve(penalty, tolerance=tolerance)[0])


def standardized(x: Tensor) -> Tensor:
    return (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)


def objective(z: Tensor, label: Tensor, weight: Tensor, bias: Tensor, penalty: float) -> Tensor:
    """The objective in the module's docstring, on standardized rows."""
    return F.cross_entropy(z @ weight.T + bias, label) + penalty / 2 * weight.square().sum()


def objective_of_probe(x: Tensor, label: Tensor, probe: linear_probe.Probe, penalty: float) -> float:
    """The objective of a probe, converted to standardized features."""
    x = x.double()
    weight = probe.weight.double() * x.std(0, correction=0)
    bias = probe.bias.double() + probe.weight.double() @ x.mean(0)
    return objective(standardized(x), label, weight, bias, penalty).item()


def lowest(z: Tensor, label: Tensor, classes: int, penalty: float) -> float:
    """The minimum by SciPy's L-BFGS in double precision, run to convergence."""
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
@pytest.mark.parametrize("d", [12, 900])  # fewer columns than rows, and more
def test_the_probe_matches_scikit_learns_logistic_regression(penalty, d):
    x, label = blobs(600, d, 4)
    fitted = solved(x.double(), label, 4, penalty, 1e-14)
    z = standardized(x).numpy()
    other = LogisticRegression(C=1 / (penalty * 600), tol=1e-10, max_iter=5000).fit(z, label.numpy())
    weight = fitted.weight * x.double().std(0, correction=0)
    assert_close(weight, torch.from_numpy(other.coef_), atol=2e-5, rtol=0)
    p = torch.from_numpy(other.predict_proba(z))
    assert_close(fitted.logits(x.double()).softmax(1), p, atol=1e-5, rtol=0)
    rough = linear_probe.fit(x, label, 4, penalty)  # single precision, to the tolerance that evaluation uses
    assert_close(rough.logits(x).softmax(1).double(), p, atol=0.03, rtol=0)
    unseen = blobs(600, d, 4, "unseen")[0].double()
    q = other.predict_proba(((unseen - x.double().mean(0)) / x.double().std(0, correction=0)).numpy())
    assert_close(fitted.logits(unseen).softmax(1), torch.from_numpy(q), atol=1e-3, rtol=0)


@pytest.mark.parametrize("penalty", linear_probe.PENALTIES)
@pytest.mark.parametrize(("n", "d", "classes"), [(400, 20, 5), (150, 60, 3), (60, 150, 3)])
def test_no_other_solver_reaches_a_lower_objective(n, d, classes, penalty):
    """The second and the third case are linearly separable."""
    x, label = blobs(n, d, classes)
    least = lowest(standardized(x), label, classes, penalty)
    exact = solved(x.double(), label, classes, penalty, 1e-10)
    assert abs(objective_of_probe(x, label, exact, penalty) - least) < 1e-6
    assert objective_of_probe(x, label, linear_probe.fit(x, label, classes, penalty), penalty) < least + GAP


def test_value_and_gradient_match_autograd(monkeypatch):
    x, label = blobs(300, 7, 4)
    x = x.double()
    part = Rng(0, "part").uniform(2, 300) < 0.7
    problem = linear_probe.Problem(linear_probe.Design(x), label, 4, part)
    theta = Rng(0, "theta").normal(2, 4, 8).double().requires_grad_()
    expected = torch.stack(
        [
            objective(standardized(x)[own], label[own], t[:, :-1], t[:, -1], 0.3)
            for t, own in zip(theta, part, strict=True)
        ]
    )
    expected.sum().backward()
    for block in (linear_probe.BLOCK, 7 * 13):  # all at once, and in blocks that do not divide the rows
        monkeypatch.setattr(linear_probe, "BLOCK", block)
        value, gradient = problem.value(theta.detach(), 0.3)
        assert_close(value, expected.detach(), atol=0, rtol=1e-10)
        assert_close(gradient, theta.grad, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(300, 20), (100, 300)])
def test_probes_solved_together_equal_probes_solved_separately(n, d):
    """For random subsets, and one with a single class."""
    x, label = blobs(n, d, 3)
    x, part = x.double(), Rng(0, "part").uniform(4, n) < 0.6
    part[3] = label == 0
    design = linear_probe.Design(x)
    for penalty in (0.3, 1e-3):
        together = linear_probe.Problem(design, label, 3, part).solve(penalty, tolerance=1e-12)
        for b, own in enumerate(part):
            separate = linear_probe.Problem(design, label[own], 3, index=own.nonzero()[:, 0]).solve(
                penalty, tolerance=1e-12
            )
            assert_close(together[b, :, :-1], separate[0, :, :-1], atol=1e-4, rtol=0)


def test_standardization_is_the_mean_and_the_inverse_standard_deviation(monkeypatch):
    monkeypatch.setattr(linear_probe, "BLOCK", 100)
    x, _ = blobs(300, 7, 4)
    mean, scale = linear_probe.standardization(x)
    assert_close(mean, x.double().mean(0))
    assert_close(scale, 1 / x.double().std(0, correction=0))


def test_every_starting_point_ends_at_the_same_optimum():
    x, label = blobs(400, 20, 5)
    least = lowest(standardized(x), label, 5, 0.01)
    design = linear_probe.Design(x)
    problem = linear_probe.Problem(design, label, 5)
    for start in (problem.solve(1.0), problem.solve(1e-5), Rng(0).normal(1, 5, 21)):
        assert objective_of_probe(x, label, design.probe(problem.solve(0.01, start)[0]), 0.01) < least + GAP


def test_a_start_at_the_optimum_stays_there():
    x, label = blobs(400, 20, 5)
    problem = linear_probe.Problem(linear_probe.Design(x.double()), label, 5)
    best = problem.solve(0.01, tolerance=1e-13)
    assert_close(problem.solve(0.01, best), best, rtol=1e-9, atol=1e-12)


def test_constant_columns_have_no_effect():
    x, label = blobs(300, 6, 3)
    constant = torch.tensor([0.0, 7.3, -1e4]).expand(300, 3)
    nearly = 5 + 1e-7 * Rng(0).normal(300, 1)  # rounding errors of a constant
    probe = linear_probe.fit(torch.cat([x, constant, nearly], 1), label, 3, 0.01)
    plain = linear_probe.fit(x, label, 3, 0.01)
    assert probe.weight[:, 6:].abs().max() == 0
    assert_close(probe.logits(torch.cat([x, constant, nearly], 1)), plain.logits(x), atol=1e-4, rtol=1e-4)


def test_constant_features_predict_the_class_frequencies():
    label = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    p = linear_probe.fit(torch.full((100, 5), 2.5), label, 3, 0.01).logits(torch.full((1, 5), 2.5)).softmax(1)
    assert_close(p[0], torch.tensor([0.5, 0.3, 0.2]), atol=5e-3, rtol=0)


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_features_are_solved_as_well_as_their_factors(rank):
    rng = Rng(rank, "collapsed")
    narrow, label = rng.normal(1000, rank), rng.integers(1000, high=3)
    narrow[:, 0] += 0.5 * label
    x = narrow @ rng.normal(rank, 512)  # a dimensional collapse
    probe = linear_probe.fit(x, label, 3, 1e-5)
    free = lowest(standardized(narrow), label, 3, 0.0)
    assert F.cross_entropy(probe.logits(x), label).item() < free + 1e-3


def test_half_precision_features_give_the_probe_of_their_values():
    x, label = blobs(300, 6, 3)
    half = x.half()
    one, other = linear_probe.fit(half, label, 3, 0.01), linear_probe.fit(half.float(), label, 3, 0.01)
    assert one.weight.dtype == torch.float32
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)
    assert torch.equal(one.predict(half), other.predict(half.float()))


def one_split(n: int, held: int) -> Splits:
    """The last `held` of n samples are held out."""
    index = torch.arange(n)
    return Splits(index[:-held], torch.ones(1, n - held).bool(), index[-held:], torch.ones(1, held).bool())


@pytest.mark.parametrize(("n", "low", "high"), [(60, 0.1, 1.0), (4000, 1e-5, 0.01)])
def test_the_chosen_penalty_is_best_on_held_out_samples(n, low, high):
    """A strong penalty for few noisy samples, a weak one for many."""
    rng = Rng(0, "held out")
    label = rng.integers(n + 2000, high=3)
    x = rng.normal(n + 2000, 40)
    x[:, :2] += torch.tensor([[0.0, 0.0], [1.5, 0.3], [3.0, 0.0]])[label]
    choice = linear_probe.choose(x, label, 3, one_split(n + 2000, 2000))
    assert low <= choice.penalty <= high
    x, held, seen, truth = x[:n], x[n:], label[:n], label[n:]
    for penalty in linear_probe.PENALTIES:
        right = (linear_probe.fit(x, seen, 3, penalty).predict(held) == truth).double().mean().item()
        assert right <= choice.score + 0.01  # candidates are solved to a low accuracy


def test_the_probe_of_the_chosen_penalty_is_fitted_to_all_samples():
    x, label = blobs(200, 30, 4)
    choice = linear_probe.choose(x, label, 4, splits(label, 0))
    least = lowest(standardized(x), label, 4, choice.penalty)
    assert objective_of_probe(x, label, choice.probe, choice.penalty) < least + GAP


def test_the_penalty_is_rescaled_by_the_fraction_of_samples_fitted_to():
    """scikit-learn's C stays the same."""
    x, label = blobs(300, 30, 4)
    of_some = replace(one_split(300, 100), fit_fraction=0.25)
    whole, choice = (linear_probe.choose(x, label, 4, ways) for ways in (one_split(300, 100), of_some))
    assert choice.penalty == 0.25 * whole.penalty and choice.score == whole.score
    least = lowest(standardized(x), label, 4, choice.penalty)
    assert objective_of_probe(x, label, choice.probe, choice.penalty) < least + GAP


def test_leading_eigenvectors_of_the_correlation_are_exact():
    rng = Rng(0, "leading")
    x = (rng.normal(900, 700) * torch.arange(1, 701) ** -1.0) @ torch.linalg.qr(rng.normal(700, 700))[0]
    values, vectors = linear_probe.leading_eigenvectors(x)
    exact = torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0)
    assert_close(values[:50], exact[:50], rtol=1e-3, atol=0)
    assert_close(vectors.T @ vectors, torch.eye(linear_probe.EIGENVECTORS), atol=1e-4, rtol=0)
    assert values[:-1].sum() + (700 - linear_probe.EIGENVECTORS) * values[-1] == pytest.approx(
        exact.sum().item(), rel=1e-4
    )


def test_the_callers_random_state_is_unchanged():
    x, _ = blobs(700, 600, 2)
    before = torch.get_rng_state()
    linear_probe.leading_eigenvectors(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_backtracking_of_one_problem_does_not_stop_the_others():
    """c/2 |θ - 1|²: one step of the same length solves the first problem and is 64 times too long for the second."""
    curvature = torch.tensor([1.0, 64.0])[:, None, None]

    def bowls(theta: Tensor) -> tuple[Tensor, Tensor]:
        return (curvature / 2 * (theta - 1).square()).sum((1, 2)).double(), curvature * (theta - 1)

    assert_close(
        linear_probe.minimize(bowls, torch.zeros(2, 1, 3), lambda g: g, 1e-9, steps=1), torch.ones(2, 1, 3)
    )


def test_the_solver_stops_when_rounding_errors_exceed_the_possible_gain():
    x, label = blobs(200, 20, 3)
    problem, passes = linear_probe.Problem(linear_probe.Design(x), label, 3), 0

    def counted(theta: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal passes
        passes += 1
        value, gradient = problem.value(theta, 0.01)
        return value, gradient

    linear_probe.minimize(counted, problem.start(), problem.design.preconditioner(3, 0.01), tolerance=0.0)
    assert passes < 100


def test_every_fold_is_scored_by_a_probe_not_fitted_to_it():
    """Random labels are memorized if there are more columns than rows."""
    rng = Rng(0, "by heart")
    x, label = rng.normal(100, 300), torch.arange(100) % 2
    assert linear_probe.choose(x, label, 2, splits(label, 0)).score < 0.65


def searched(monkeypatch, accuracy: dict[float, float]) -> tuple[float, list[float]]:
    """The chosen penalty and those tried, given the held-out accuracy of some penalties; that of the others is 0."""
    tried = []

    def solve(self, penalty, start=None, tolerance=0.0):
        if tolerance:  # the fit to all samples, after the choice, has tolerance 0
            tried.append(penalty)
        theta = torch.zeros(1, 2, 2)
        theta[0, 1, 0], theta[0, 1, 1] = (
            1.0,
            100 * accuracy.get(penalty, 0.0) - 99.5,
        )  # predicts class 1 where x > 99.5 - bias
        return theta

    monkeypatch.setattr(linear_probe.Problem, "solve", solve)
    monkeypatch.setattr(linear_probe.Design, "fold", lambda self, theta: (theta[..., :-1], theta[..., -1]))
    x = torch.cat([torch.zeros(4), torch.arange(100.0)])[:, None]
    return linear_probe.choose(
        x, torch.tensor([0, 1, 0, 1] + 100 * [1]), 2, one_split(104, 100)
    ).penalty, tried


def test_the_search_goes_uphill_to_weaker_penalties_over_one_dip(monkeypatch):
    hill = {0.1: 0.5, 0.03: 0.4, 0.01: 0.6, 3e-3: 0.7, 1e-5: 0.9}
    assert searched(monkeypatch, hill) == (3e-3, [0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4])


def test_the_search_turns_to_stronger_penalties_where_no_weaker_one_is_better(monkeypatch):
    assert searched(monkeypatch, {0.1: 0.5, 1.0: 0.6}) == (1.0, [0.1, 0.03, 0.01, 0.3, 1.0])
    assert searched(monkeypatch, {0.1: 0.5, 0.03: 0.5, 0.3: 0.5}) == (0.1, [0.1, 0.03, 0.01, 0.3, 1.0])


def test_the_search_may_end_at_the_weakest_penalty(monkeypatch):
    hill = {penalty: i / 20 for i, penalty in enumerate(linear_probe.PENALTIES)}
    assert searched(monkeypatch, hill) == (1e-5, list(linear_probe.PENALTIES[2:]))


@pytest.mark.parametrize("rank", [1, 3])
def test_the_preconditioner_of_collapsed_features_is_right_along_the_largest_axis(rank):
    """There it shrinks most; rounding errors of all other axes, where it shrinks least, must not exceed what is left."""
    x = Rng(rank, "collapsed").normal(1000, rank) @ Rng(rank, "axes").normal(rank, 512)
    design = linear_probe.Design(x)
    assert design.vectors is not None
    largest = design.values[:-1].argmax()
    axis, value = design.vectors[:, largest], design.values[largest].item()
    g = torch.cat([axis, torch.zeros(1)])[None, None]
    along = (design.preconditioner(3.0, 1e-5)(g) * g).sum().item()
    assert along == pytest.approx(1 / (value / 3 + 1.1e-5), rel=0.1)
