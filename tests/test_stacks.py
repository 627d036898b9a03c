"""Fine-tuning of stacks (docs/results/stacks.py): the first step by hand, and the choice of the epoch."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pretask import encoders
from pretask.rng import Rng

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@pytest.fixture
def stacks(monkeypatch):
    monkeypatch.syspath_prepend(str(RESULTS))
    return importlib.import_module("stacks")


@pytest.fixture
def digits():
    x, label = Rng(1).uniform(12, 1, 28, 28), torch.arange(12) % 3
    return x, label


def test_the_first_step_moves_only_the_head_by_the_rate_times_the_gradient(stacks, digits, monkeypatch):
    monkeypatch.setattr(stacks, "EPOCHS", 1)
    monkeypatch.setattr(stacks, "BATCH", 12)
    encoder = encoders.build("mlp:width=8", 1, 28)
    before = {name: p.clone() for name, p in encoder.state_dict().items()}
    net = stacks.finetuned(encoder, digits, digits, seed=0)
    with torch.no_grad():
        code = encoder(digits[0])["pool"]
    gradient = sum(
        torch.outer(torch.eye(3)[int(y)] - 1 / 3, h) for h, y in zip(code, digits[1], strict=True)
    )  # of -log softmax at logits of 0
    assert_close(net.head.weight, stacks.RATE * gradient / 12)
    assert_close(net.head.bias, torch.zeros(3), atol=1e-6, rtol=0)  # balanced classes
    for name, p in net.encoder.state_dict().items():  # the head is 0, so there is no gradient yet
        assert_close(p, before[name])


def test_all_layers_are_trained_and_the_given_encoder_is_unchanged(stacks, digits, monkeypatch):
    monkeypatch.setattr(stacks, "EPOCHS", 3)
    encoder = encoders.build("mlp:width=8", 1, 28)
    before = {name: p.clone() for name, p in encoder.state_dict().items()}
    monkeypatch.setattr(stacks, "wrong", errors(0.3, 0.2, 0.1))
    net = stacks.finetuned(encoder, digits, digits, seed=0)
    for name, p in encoder.state_dict().items():
        assert torch.equal(p, before[name])
    moved = {
        name for name, p in net.encoder.net.state_dict().items() if not torch.equal(p, before[f"net.{name}"])
    }
    assert moved == set(encoder.net.state_dict())


def errors(*values: float):
    """Validation errors of successive epochs."""
    left = list(values)
    return lambda *_: torch.tensor([left.pop(0)])


def test_the_best_epoch_on_validation_images_is_returned(stacks, digits, monkeypatch):
    encoder = encoders.build("mlp:width=8", 1, 28)

    def finetuned_state(*values: float):
        monkeypatch.setattr(stacks, "EPOCHS", len(values))
        monkeypatch.setattr(stacks, "wrong", errors(*values))
        return stacks.finetuned(encoder, digits, digits, seed=0).state_dict()

    second = finetuned_state(0.5, 0.2)
    for name, p in finetuned_state(0.5, 0.2, 0.3, 0.2).items():
        assert torch.equal(p, second[name])
    assert not torch.equal(finetuned_state(0.5)["head.weight"], second["head.weight"])


def test_training_validation_and_test_images_are_disjoint(stacks, tmp_path, monkeypatch):
    monkeypatch.setattr(stacks, "SPLIT", {"train": 20, "valid": 10, "test": 30})
    images = np.arange(60, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    np.savez(tmp_path / "all.npz", images=images, labels=np.arange(60) % 3)
    stacks.write_split(tmp_path / "all.npz", tmp_path)
    parts = [stacks.load(tmp_path / f"{name}.npz") for name in stacks.SPLIT]
    assert [len(label) for _, label in parts] == [20, 10, 30]
    seen = torch.cat([(x[:, 0, 0, 0] * 255).round().long() for x, _ in parts])
    assert sorted(seen.tolist()) == list(range(60))
    assert torch.equal(torch.cat([label for _, label in parts]), seen % 3)
