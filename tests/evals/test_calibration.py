"""Calibrated probabilities, exact intervals, thresholds that hold, and labels that may be wrong."""

import math

import numpy as np
import pytest
import torch

from pretask.evals import calibration
from pretask.rng import Rng


def samples(n: int, classes: int = 4, sharpness: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, K) whose softmax is the truth, and labels drawn from it; then the logits times `sharpness`."""
    rng = Rng(0, "samples", n)
    logits = 2 * rng.normal(n, classes)
    ends = logits.softmax(1).cumsum(1)
    label = (rng.uniform(n, 1) > ends).sum(1).clamp(max=classes - 1)
    return sharpness * logits, label


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("sharpness", [0.4, 1.0, 5.0])
def test_temperature_undoes_what_makes_logits_too_large(sharpness, classes):
    logits, label = samples(900, classes, sharpness)
    found = calibration.fit(logits, label)
    assert isinstance(found, calibration.Temperature)
    assert found.inverse.item() == pytest.approx(1 / sharpness, rel=0.15)
    torch.testing.assert_close(found(logits), (logits * found.inverse).softmax(1))


def test_isotonic_regression_is_that_of_scikit_learn():
    from sklearn.isotonic import IsotonicRegression

    logits, label = samples(3000, 3, 3.0)
    found = calibration.fit(logits, label)
    assert isinstance(found, calibration.Isotonic)
    p = logits.double().softmax(1)
    mapped = [
        IsotonicRegression(y_min=0, y_max=1)
        .fit(p[:, k].numpy(), (label == k).numpy())
        .predict(p[:, k].numpy())
        for k in range(3)
    ]
    expected = torch.tensor(np.stack(mapped, 1))
    expected = expected / expected.sum(1, keepdim=True)
    far = (found(logits).double() - expected).abs()
    assert (
        far.median() < 1e-5 and far.mean() < 1e-4 and far.max() < 0.02
    )  # at its steps single precision decides
    assert found(100 * torch.eye(3)).isfinite().all()


def test_many_labels_are_calibrated_isotonically():
    logits, label = samples(4000, 4, 4.0)
    surest = calibration.fit(logits[:2000], label[:2000])(logits[2000:])
    before, after = (
        calibration.calibration_error(calibration.reliability(p.amax(1), p.argmax(1) == label[2000:]))
        for p in (logits[2000:].softmax(1), surest)
    )
    assert after < 4 < 10 < before


def test_a_class_without_a_sample_and_a_single_class_are_calibrated():
    logits, label = samples(200, 4)
    label = label.clamp(max=2)
    assert calibration.fit(logits, label)(logits).shape == (200, 4)
    assert calibration.fit(logits, torch.zeros(200, dtype=torch.long))(logits).isfinite().all()


def test_intervals_are_those_of_clopper_and_pearson():
    assert calibration.binomial(0, 30)[1:] == pytest.approx((0, 1 - 0.025 ** (1 / 30)))
    assert calibration.binomial(30, 30)[1:] == pytest.approx((0.025 ** (1 / 30), 1))
    assert calibration.lower_bound(59, 59) == pytest.approx(0.05 ** (1 / 59))
    assert calibration.fewest(0.95) == 59 and calibration.lower_bound(
        58, 58
    ) < 0.95 < calibration.lower_bound(59, 59)


def test_a_threshold_holds_its_precision_in_all_but_few_cases():
    """Predictions whose accuracy rises with their probability; of 400 draws at most 5 % may choose a threshold that does not hold."""
    rng, failed, found = np.random.default_rng(0), 0, 0
    for _ in range(400):
        p = torch.tensor(rng.uniform(0.5, 1, 300))
        truth = 0.75 + 0.25 * p  # share of right predictions at this probability
        correct = torch.tensor(rng.uniform(size=300)) < truth
        sure = calibration.sure_from(p, correct, 0.95)
        if sure is not None:
            found += 1
            failed += 0.75 + 0.25 * (1 + sure) / 2 < 0.95  # of all predictions from this probability on
    assert failed / 400 <= 0.05 and found > 40


def test_without_enough_labels_nothing_is_sure():
    assert calibration.sure_from(torch.linspace(0.5, 1, 58), torch.ones(58, dtype=torch.bool), 0.95) is None
    assert (
        calibration.sure_from(torch.linspace(0.5, 1, 60), torch.ones(60, dtype=torch.bool), 0.95) is not None
    )
    assert calibration.sure_from(torch.linspace(0.5, 1, 200), torch.zeros(200, dtype=torch.bool), 0.5) is None


def suspected_by_loop(p: torch.Tensor, label: torch.Tensor) -> set[int]:
    classes = p.shape[1]
    threshold = [p[label == k, k].mean().item() if (label == k).any() else math.inf for k in range(classes)]
    found = set()
    for i in range(len(p)):
        confident = [k for k in range(classes) if p[i, k].item() >= threshold[k]]
        if confident:
            best = max(confident, key=lambda k: p[i, k].item())
            if best != int(label[i]) and p[i, best] > 0.5:
                found.add(i)
    return found


def test_suspected_labels_are_those_of_the_paper_in_loops():
    logits, label = samples(300, 4)
    wrong = torch.arange(0, 300, 20)
    given = label.clone()
    given[wrong] = (label[wrong] + 1) % 4
    p = (3 * torch.nn.functional.one_hot(label, 4) + logits).softmax(1)
    found = calibration.suspected(p, given)
    assert {row for row, _ in found} == suspected_by_loop(p, given)
    gaps = [float(p[row, other] - p[row, given[row]]) for row, other in found]
    assert gaps == sorted(gaps, reverse=True)
    assert len({row for row, _ in found} & {*wrong.tolist()}) >= 10
