"""The stage that does best on held-out samples, and its answers there."""

import pytest
import torch

from pretask.evals import linear_probe, stage_probe
from pretask.evals.features import Features
from pretask.evals.holdout import splits


def features(n: int, seed: int) -> Features:
    """The class is in the middle stage, in part in the last one, and not in the first."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 3
    signal = torch.eye(3)[label]
    noise = [torch.randn(n, 3, generator=rng) for _ in range(3)]
    return Features(
        {"stem": noise[0], "middle": 4 * signal + noise[1], "pool": signal + noise[2]},
        label,
        ["a", "b", "c"],
        "made",
    )


def test_the_best_stage_on_held_out_samples_is_chosen_and_used_on_the_test_set():
    train, test = features(120, 0), features(90, 1)
    found = stage_probe.fit(train, 0)
    assert found.stage == "middle"
    choice = linear_probe.choose(train.stages["middle"], train.label, 3, splits(train.label, 0))
    assert found.choice.penalty == choice.penalty and found.choice.score == choice.score
    assert found.held_out.mean().item() == pytest.approx(choice.score)
    right = choice.probe.predict(test.stages["middle"]) == test.label
    assert torch.equal(found.correct(test), right) and right.double().mean() > 0.9


def test_of_equal_stages_the_deepest_is_chosen():
    train = features(60, 2)
    same = Features(
        {"stem": train.stages["middle"], "pool": train.stages["middle"]}, train.label, train.classes, "made"
    )
    assert stage_probe.fit(same, 0).stage == "pool"
