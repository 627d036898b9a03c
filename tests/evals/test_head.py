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


def test_predictions_of_a_fold_owe_nothing_to_its_labels(monkeypatch):
    """With other labels of one fold its out-of-fold predictions stay the same but for their temperature, which other folds give."""
    data = features()
    fold = torch.arange(120) // 3 % head.FOLDS
    monkeypatch.setattr(head, "folds", lambda *_: fold)
    label, mine = data.label.clone(), (fold == 3).nonzero().flatten()
    label[mine] = (label[mine] + 1) % 3
    one, other = (
        head.fit(Features(data.stages, each, data.classes, "made"), 0, progress=False)
        for each in (data.label, label)
    )
    logits, others = (each.out_of_fold[mine].log() for each in (one, other))
    gaps = [x - x[:, :1] for x in (logits, others)]  # of a softmax, proportional to the inverse temperature
    ratio = (gaps[0] * gaps[1]).sum() / gaps[0].square().sum()
    torch.testing.assert_close(gaps[1], ratio * gaps[0], atol=1e-2, rtol=1e-2)
    assert not torch.allclose(other.out_of_fold, one.out_of_fold, atol=1e-3)


def test_shuffled_labels_are_predicted_at_chance():
    data = features(150)
    shuffled = Features(data.stages, data.label[Rng(1, "x").permutation(150)], data.classes, "made")
    found = head.fit(shuffled, 0, progress=False)
    assert 0.2 < (found.out_of_fold.argmax(1) == shuffled.label).float().mean() < 0.47


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
