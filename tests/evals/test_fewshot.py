"""Draws of exactly so many per class, and a shortcut through the span of the rows that loses nothing."""

import pytest
import torch
from torch.testing import assert_close

from pretask.evals import fewshot, linear
from pretask.rng import Rng

LABEL = Rng(0, "labels").integers(400, high=6).clamp(max=4)  # five classes, the last the largest


@pytest.mark.parametrize("shots", [1, 5, 10])
def test_a_draw_has_exactly_so_many_of_each_class(shots):
    draws = [fewshot.draw(LABEL, shots, seed=0, number=r) for r in range(5)]
    for few in draws:
        assert LABEL[few].bincount().tolist() == [shots] * 5
        assert len(few.unique()) == 5 * shots
    assert len({tuple(few.tolist()) for few in draws}) == 5


def test_the_same_seed_draws_the_same_and_another_another():
    assert torch.equal(fewshot.draw(LABEL, 5, 3, 1), fewshot.draw(LABEL, 5, 3, 1))
    assert not torch.equal(fewshot.draw(LABEL, 5, 3, 1), fewshot.draw(LABEL, 5, 4, 1))


def test_every_sample_of_a_class_is_drawn_equally_often():
    count = torch.stack(
        [torch.zeros(400).index_fill(0, fewshot.draw(LABEL, 10, s, 0), 1) for s in range(400)]
    ).sum(0)
    for c in range(5):
        own = count[c == LABEL]
        expected = 400 * 10 / len(own)
        assert (own - expected).abs().max() < 5 * expected**0.5


@pytest.mark.parametrize(("n", "d"), [(10, 200), (3, 17), (40, 40), (50, 20)])
def test_the_rows_lie_in_their_span(n, d):
    x = Rng(n, d).normal(n, d)
    z, basis = fewshot.span(x)
    assert z.shape == (n, min(n, d)) and basis.shape == (d, min(n, d))
    assert_close(basis.T @ basis, torch.eye(min(n, d)), atol=1e-5, rtol=0)
    assert_close(z @ basis.T, x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("repeated", [False, True])
def test_the_optimum_in_the_span_is_the_optimum_in_full_width(repeated):
    rng = Rng(1, "span")
    x, label = rng.normal(12, 60) / 60**0.5, torch.arange(12) % 3
    if repeated:
        x[5] = x[2]  # the rows span less than their number
    unseen = rng.normal(30, 60) / 60**0.5

    def solved(x: torch.Tensor) -> linear.Probe:
        still = (torch.zeros(x.shape[1]), torch.ones(x.shape[1]))
        return linear.Problem(x.double(), label, 3, still).solve(1e-3, tolerance=1e-12)

    z, basis = fewshot.span(x)
    narrow, full = solved(z), solved(x)
    assert_close((unseen @ basis).double() @ narrow.weight.T + narrow.bias,
                 unseen.double() @ full.weight.T + full.bias, atol=1e-3, rtol=0)  # fmt: skip


def test_each_draw_is_judged_by_a_probe_on_its_own_samples_alone():
    """In full width, on features standardised by all of the training set and divided by the root of their number."""
    rng = Rng(2, "fewshot")
    x = (rng.normal(400, 30) + 2 * torch.eye(5, 30)[LABEL]) * torch.linspace(0.1, 10, 30)
    test, truth = x[:150], LABEL[:150]
    right = fewshot.fewshot(x[150:], LABEL[150:], test, truth, 5, 5, seed=0)
    mean, std = x[150:].mean(0), x[150:].std(0, correction=0)
    z, unseen = ((rows - mean) / std / 30**0.5 for rows in (x[150:], test))
    for number in range(fewshot.DRAWS):
        few = fewshot.draw(LABEL[150:], 5, 0, number)
        still = (torch.zeros(30), torch.ones(30))
        probe = linear.Problem(z[few], LABEL[150:][few], 5, still).solve(fewshot.PENALTY, tolerance=1e-9)
        expected = probe.predict(unseen) == truth
        assert (right[number] != expected).sum() <= 2  # on the edge between two classes
    assert right.shape == (5, 150) and 0.3 < right.double().mean() < 0.9


def test_collapsed_features_score_like_a_guess():
    right = fewshot.fewshot(torch.ones(400, 8), LABEL, torch.ones(100, 8), LABEL[:100], 5, 5, 0)
    assert 0 <= right.double().mean() < 0.5
