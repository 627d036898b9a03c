"""Corrected tests: few false gains, real ones found, and the formulas as they are written in the papers."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from pretask.errors import UserError
from pretask.evals import paired
from pretask.evals.paired import folds, overlap, verdicts


def accuracies(x, label, parts):
    """(T,) accuracy of the nearest class mean on each fold, in %."""
    found = []
    for part in parts:
        centers = torch.stack(
            [x[part.fit][label[part.fit] == k].mean(0) for k in range(int(label.max()) + 1)]
        )
        guess = torch.cdist(x[part.test], centers).argmin(1)
        found.append(100 * (guess == label[part.test]).double().mean().item())
    return np.array(found)


def draw(rng, label, shift=0.7):
    """Features that hold the class in their first numbers, as well as any other draw."""
    signal = torch.eye(int(label.max()) + 1, 8)[label]
    return shift * signal + torch.from_numpy(rng.normal(size=(len(label), 8))).float()


def false_gains(draws, overlapping, count=80, candidates=3):
    """Fraction of draws in which a candidate is called better than a reference to which all are equal."""
    label, wrong = torch.arange(count) % 4, 0
    for seed in range(draws):
        rng, parts = np.random.default_rng(seed), folds(label, seed)
        reference, *others = (accuracies(draw(rng, label), label, parts) for _ in range(candidates + 1))
        found = verdicts({str(i): other - reference for i, other in enumerate(others)}, overlapping(parts))
        wrong += any(verdict.better for verdict in found.values())
    return wrong / draws


def test_equal_candidates_are_rarely_called_better():
    """In 500 draws of four equal encoders; without the correction for overlap, often."""
    assert false_gains(500, overlap) <= 0.05
    assert false_gains(100, lambda parts: 0.0) > 0.15


def test_a_better_candidate_is_found_and_a_worse_one_is_named():
    label, rng = torch.arange(200) % 4, np.random.default_rng(0)
    parts = folds(label, 0)
    same, good, bad = (accuracies(draw(rng, label, shift), label, parts) for shift in (0.7, 2.0, 0.0))
    found = verdicts({"good": good - same, "bad": bad - same}, overlap(parts))
    assert found["good"].better and found["good"].low > 0 and not found["good"].worse
    assert found["bad"].worse and found["bad"].high < 0 and not found["bad"].better


def test_interval_is_nadeaus_and_bengios_at_holms_level():
    differences = {"a": np.array([3.0, 1.0, 2.0, 4.0]), "b": np.array([1.0, -1.0, 0.5, 0.0])}
    found = verdicts(differences, 0.25)
    for rank, name in enumerate(("a", "b")):
        values = differences[name].tolist()
        mean = sum(values) / 4
        variance = sum((v - mean) ** 2 for v in values) / 3
        error = math.sqrt((1 / 4 + 0.25) * variance)
        level = 1 - 0.05 / (2 - rank)
        margin = student.ppf((1 + level) / 2, 3) * error
        assert (found[name].low, found[name].high) == pytest.approx((mean - margin, mean + margin))
        assert found[name].smallest == pytest.approx(margin)
        p = 2 * student.sf(abs(mean) / error, 3)
        assert found[name].p == pytest.approx(min(1, (2 - rank) * p))


def test_corrected_p_never_falls_along_the_order():
    """Of 0.01, 0.02 and 0.021: 0.03, 0.04, and 0.04 instead of 0.021."""
    values = {}
    for name, p in (("x", 0.01), ("y", 0.02), ("z", 0.021)):
        wanted = student.isf(p / 2, 9)
        noise = np.resize([1.0, -1.0], 10)
        values[name] = noise + wanted * noise.std(ddof=1) / math.sqrt(10)
    found = verdicts(values)
    assert [round(found[name].p, 4) for name in "xyz"] == [0.03, 0.04, 0.04]


def test_equal_results_are_no_difference():
    """Of candidates with the reference's predictions on every fold."""
    found = verdicts({"same": np.zeros(10)}, 0.25)["same"]
    assert (found.gain, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert not found.better and not found.worse


def test_folds_hold_out_every_sample_once_in_each_repetition_and_every_class():
    label = torch.tensor([0] * 30 + [1] * 12 + [2] * 7)
    parts = folds(label, 3)
    assert len(parts) == paired.FOLDS * paired.REPEATS
    for first in range(0, len(parts), paired.FOLDS):
        tested = torch.cat([part.test for part in parts[first : first + paired.FOLDS]])
        assert torch.equal(tested.sort().values, torch.arange(len(label)))
    for part in parts:
        assert not set(part.fit.tolist()) & set(part.test.tolist())
        assert set(label[part.test].tolist()) == {0, 1, 2}
    assert overlap(parts) == pytest.approx(0.25)
    again, other = folds(label, 3), folds(label, 4)
    assert all(torch.equal(a.test, b.test) for a, b in zip(parts, again, strict=True))
    assert not all(torch.equal(a.test, b.test) for a, b in zip(parts, other, strict=True))


def test_small_classes_get_fewer_folds_and_large_sets_fewer_repetitions():
    assert len(folds(torch.tensor([0] * 9 + [1] * 4), 0)) == 4 * paired.REPEATS
    assert len(folds(torch.arange(6000) % 3, 0)) == paired.FOLDS


def test_too_few_samples_of_a_class_are_refused():
    with pytest.raises(UserError, match="a class has 3 labeled images; a comparison needs 4 or more"):
        folds(torch.tensor([0] * 9 + [1] * 3), 0)
