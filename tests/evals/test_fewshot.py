"""Few-shot draws with an exact number of samples per class, and the probe of each draw."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pretask.evals import fewshot
from pretask.rng import Rng

LABEL = Rng(0, "labels").integers(400, high=6).clamp(max=4)  # five classes, the last the largest


@pytest.mark.parametrize("shots", [1, 5, 10])
def test_a_draw_has_the_exact_number_of_samples_of_each_class(shots):
    draws = [fewshot.draw(LABEL, shots, seed=0, number=r) for r in range(5)]
    for few in draws:
        assert LABEL[few].bincount().tolist() == [shots] * 5
        assert len(few.unique()) == 5 * shots
    assert len({tuple(few.tolist()) for few in draws}) == 5


def test_equal_seeds_give_equal_draws_and_other_seeds_do_not():
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


@pytest.mark.parametrize("d", [30, 200])  # fewer columns than samples in all draws, and more
def test_the_probe_of_each_draw_matches_scikit_learn(d):
    """On features standardized over the whole training set and divided by the square root of their number."""
    rng = Rng(2, "fewshot")
    x = (rng.normal(400, d) + (d / 8) ** 0.5 * torch.eye(5, d)[LABEL]) * torch.linspace(0.1, 10, d)
    test, truth = x[:150], LABEL[:150]
    right = fewshot.fewshot(x[150:], LABEL[150:], test, truth, 5, 5, seed=0)
    mean, std = x[150:].mean(0), x[150:].std(0, correction=0)
    z, unseen = (((rows - mean) / std / d**0.5).double().numpy() for rows in (x[150:], test))
    for number in range(fewshot.DRAWS):
        few = fewshot.draw(LABEL[150:], 5, 0, number)
        reference = LogisticRegression(C=1 / (fewshot.PENALTY * len(few)), tol=1e-8, max_iter=5000)
        predicted = reference.fit(z[few], LABEL[150:][few].numpy()).predict(unseen)
        assert (right[number] != (torch.from_numpy(predicted) == truth)).sum() <= 2  # on a decision boundary
    assert right.shape == (5, 150) and 0.3 < right.double().mean() < 0.9


def test_collapsed_features_score_at_chance():
    right = fewshot.fewshot(torch.ones(400, 8), LABEL, torch.ones(100, 8), LABEL[:100], 5, 5, 0)
    assert 0 <= right.double().mean() < 0.5
