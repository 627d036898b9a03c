"""Accuracy over labels, and label equivalents where they are known."""

import math

import numpy as np
import pytest
import torch

from pretask.evals import label_curve
from pretask.evals.label_curve import Curve, curve, worth


def planted(accuracy: dict[int, float], images: int = 4000) -> Curve:
    """Right on a fixed fraction of the images, for each number of labels."""
    order = torch.linspace(0, 1, images)
    return Curve(tuple(accuracy), torch.stack([(order < value).double() for value in accuracy.values()]))


def test_curve_has_the_numbers_of_labels_that_every_class_has():
    rng = torch.Generator().manual_seed(0)
    label = torch.tensor([0] * 30 + [1] * 12)
    x = torch.randn(42, 5, generator=rng) + 3 * label[:, None]
    found = curve(x, label, x, label, 2, 0)
    assert found.shots == (1, 2, 5, 10) and found.correct.shape == (4, 42)
    assert found.accuracy == pytest.approx((100 * found.correct.mean(1)).tolist())
    assert found.accuracy[-1] > 95


def test_features_that_need_a_quarter_of_the_labels_are_worth_four_times_the_labels():
    """Accuracy grows with the logarithm of the labels, so interpolation is exact."""
    shots = (1, 2, 5, 10, 20, 50, 100)
    other = planted({n: 0.2 + 0.1 * math.log(n) for n in shots})
    better = planted({n: 0.2 + 0.1 * math.log(4 * n) for n in shots})
    found = worth(better, other)
    assert found is not None and found.shots == 20
    assert found.times == pytest.approx(4, rel=0.02) and found.low < 4 < found.high < 6


def test_interval_covers_the_label_equivalent_over_draws_of_test_images():
    rng, hits = np.random.default_rng(0), 0
    shots = (1, 10, 100)
    for _ in range(60):
        draw = rng.random(500)
        curves = [
            Curve(
                shots,
                torch.stack([torch.from_numpy(draw < p + 0.1 * math.log10(n) * 2).double() for n in shots]),
            )
            for p in (0.4, 0.3)
        ]
        found = worth(*curves, seed=1)
        hits += found is not None and found.low <= 10**0.5 <= found.high
    assert hits >= 52


def test_out_of_reach_is_infinite_and_one_point_gives_nothing():
    better, other = planted({1: 0.8, 10: 0.9}), planted({1: 0.2, 10: 0.4})
    found = worth(better, other)
    assert found is not None and found.shots == 1 and found.times == found.high == math.inf
    assert worth(planted({1: 0.5}), planted({1: 0.4})) is None


def test_training_with_labels_gives_a_point_for_each_number_of_labels(monkeypatch):
    from pretask import data, encoders

    source = data.open_labeled("synthetic:60:16")
    net = encoders.build("resnet_small:width=8", 3, 16)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = label_curve.supervised(net, source, source, 3, 0, device="cpu", progress=False)
    assert len(found.shots) == len(found.correct) and found.correct.shape[1] == len(source)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
