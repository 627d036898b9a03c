"""A head: what it predicts of samples that it did not see owes nothing to their labels; it is saved and loaded."""

import pytest
import torch

from pretask.evals import head, stage_probe
from pretask.evals.features import Features
from pretask.rng import Rng


def features(n: int = 120, noise: float = 1.0) -> Features:
    """Three classes; the deeper stage separates them better."""
    rng = Rng(0, "features")
    label = torch.arange(n) % 3
    centers = 2 * rng.normal(3, 12)
    stages = {
        name: centers[label] + scale * noise * rng.child(name).normal(n, 12)
        for name, scale in (("stage1", 4.0), ("pool", 1.0))
    }
    return Features(stages, label, ["a", "b", "c"], "made")


@pytest.fixture(scope="module")
def fitted() -> head.Fitted:
    return head.fit(features(), 0, progress=False)


def test_the_head_is_the_probe_of_the_best_stage(fitted):
    expected = stage_probe.fit(features(), 0)
    assert (
        (fitted.stage, fitted.penalty)
        == (expected.stage, expected.choice.penalty)
        == ("pool", fitted.penalty)
    )
    x = features().stages["pool"]
    logits = expected.choice.probe.logits(x)
    torch.testing.assert_close(fitted.head(x), fitted.head.calibration(logits.float()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fitted.head.rows(x).sum(1), torch.ones(120))


def test_predictions_of_a_fold_owe_nothing_to_its_labels(fitted):
    """With other labels of one fold its out-of-fold predictions stay the same, and those of the others change."""
    from pretask.evals.holdout import folds

    data = features()
    fold = folds(data.label, Rng(0, "head"), head.FOLDS)
    label = data.label.clone()
    mine = (fold == 3).nonzero().flatten()
    label[mine] = label[mine.roll(1)]  # the same number of each class, so that the folds are the same
    assert (label != data.label).any() and torch.equal(
        folds(label, Rng(0, "head"), head.FOLDS)[mine].unique(), torch.tensor([3])
    )
    other = head.fit(Features(data.stages, label, data.classes, "made"), 0, progress=False)
    torch.testing.assert_close(other.out_of_fold[mine], fitted.out_of_fold[mine], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(other.out_of_fold, fitted.out_of_fold, atol=1e-3)


def test_shuffled_labels_are_predicted_at_chance():
    data = features(150)
    shuffled = Features(data.stages, data.label[Rng(1, "x").permutation(150)], data.classes, "made")
    found = head.fit(shuffled, 0, progress=False)
    assert (found.out_of_fold.argmax(1) == shuffled.label).float().mean() < 0.5
    assert (
        found.head.rows(data.stages[found.stage]).argmax(1) == shuffled.label
    ).float().mean() > 0.5 or found.penalty >= 0.3


@pytest.mark.parametrize("n", [120, 1200])  # temperature, isotonic
def test_a_head_is_saved_and_loaded(tmp_path, n):
    from safetensors.torch import load_file, save_file

    data = features(n, noise=3.0)
    found = head.fit(data, 0, progress=False).head if n < 1000 else head_of(data)
    save_file(
        {name: value.contiguous() for name, value in found.state_dict().items()},
        tmp_path / "head.safetensors",
    )
    again = head.from_state(load_file(tmp_path / "head.safetensors"))
    x = data.stages["pool"]
    torch.testing.assert_close(again(x), found(x))


def head_of(data: Features) -> head.Head:
    from pretask.evals import calibration

    probe = stage_probe.fit(data, 0).choice.probe
    logits = probe.logits(data.stages["pool"])
    return head.Head(probe.weight.float(), probe.bias.float(), calibration.fit(logits, data.label))
