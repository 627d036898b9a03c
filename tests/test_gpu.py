"""On a GPU: the same losses as on the CPU, training in bfloat16, resuming, and every command.

All other tests use the CPU, also where there is a GPU: PRETASK_TEST_GPU=1 python3 dev.py test tests/test_gpu.py
"""

import copy
import dataclasses
import json

import pytest
import torch
from small import images_for, light, small
from torch import Tensor

import pretask
from pretask import data as sources
from pretask import encoders, methods
from pretask.cli.main import main
from pretask.config import RunConfig
from pretask.evals import finetune, nonlinear_probes
from pretask.methods import recipe
from pretask.tasks import linear_readout
from pretask.tasks.normals import Normals
from pretask.train import trainer
from pretask.workflows import contract, embed
from pretask.workflows.job import fresh, resumed
from pretask.workflows.pretrain import pretrain

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device and PRETASK_TEST_GPU=1"
)
NAMES = methods.names()


def settings(name, out, steps=6):
    encoder, source = small(recipe(name).encoder), images_for(name)
    return RunConfig(source.name, out=out, encoder=encoder, steps=steps, precision="32-true")


@pytest.fixture
def exact(monkeypatch):
    """No tf32: 10 bits of mantissa would hide a wrong term."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_gpu(puzzle):
    return dataclasses.replace(
        puzzle,
        **{
            f.name: value.cuda()
            for f in dataclasses.fields(puzzle)
            if isinstance(value := getattr(puzzle, f.name), Tensor)
        },
    )


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_match_the_cpu(name, exact):
    config = light(name)
    case = contract.Case.of(config, images_for(name), small(config.encoder))
    here = case.started()
    there, puzzle = copy.deepcopy(here).cuda(), case.puzzle(here)
    losses = [
        contract.with_same_dropout(m.loss, p).total for m, p in ((here, puzzle), (there, on_gpu(puzzle)))
    ]
    torch.testing.assert_close(losses[1].cpu(), losses[0], rtol=1e-4, atol=1e-5)
    gradients = []
    for method, loss in zip((here, there), losses, strict=True):
        loss.backward()
        gradients.append(
            torch.cat([p.grad.cpu().flatten() for p in method.parameters() if p.grad is not None])
        )
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert error < 1e-2, f"gradients differ by {error:.1%}"


@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_in_bfloat16(name, tmp_path):
    run_config = dataclasses.replace(settings(name, tmp_path / "run"), precision="auto")
    config = light(name)
    run = pretrain(fresh(name, run_config, config, dataclasses.replace(config.train, batch=16)))
    assert run.card["device"] == torch.cuda.get_device_name()
    assert run.card["precision"] == "bf16-mixed"
    rows = [json.loads(row) for row in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == run.card["steps"]
    x = pretask.embed(run, run.card["data"])
    assert x.shape[0] == 64
    assert torch.from_numpy(x).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_with_nearly_the_same_weights(name, tmp_path, monkeypatch):
    """Not to the bit: some of CUDA's sums have no fixed order. Adam turns a nearly zero gradient into a full step: with noise
    of 1e-5, six steps differ by up to 200 %, those of SGD by 0.1 %."""
    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
    config = light(name)
    train = dataclasses.replace(config.train, batch=16, optimizer="sgd", lr=0.01, clip=0.0)

    def cut(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    whole = pretrain(fresh(name, settings(name, tmp_path / "whole"), config, train))
    with pytest.raises(KeyboardInterrupt):
        pretrain(fresh(name, settings(name, tmp_path / "parts"), config, train), on_log=cut)
    parts = pretrain(resumed(tmp_path / "parts"))
    initial, end, other = (flat(e) for e in (whole.untrained, whole.encoder, parts.encoder))
    distance, deviation = (end - initial).norm(), (end - other).norm()
    assert deviation < 0.01 * distance, f"differs by {deviation:.2g} after moving by {distance:.2g}"


def flat(encoder):
    return torch.cat([p.detach().flatten() for p in encoder.parameters()])


def test_features_match_the_cpu(exact, monkeypatch, tmp_path):
    run = pretrain(fresh("rotnet", settings("rotnet", tmp_path / "run", steps=2)))
    there = pretask.embed(run, "synthetic:32:16")
    monkeypatch.setattr(embed, "find_device", lambda: "cpu")
    torch.testing.assert_close(there, pretask.embed(run, "synthetic:32:16"), rtol=1e-3, atol=1e-4)


def test_the_linear_readout_matches_the_cpu(exact):
    scenes = sources.open("synthetic:8:32")
    encoder = encoders.build("resnet_small:width=8", 3, 32)
    here, there = (
        linear_readout.fit(encoder, scenes, "normals", Normals().target, device=device, progress=False)
        for device in ("cpu", "cuda")
    )
    x = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(there(x.cuda()).cpu(), here(x), rtol=1e-2, atol=1e-2)


def test_every_command_runs(tmp_path, capsys, monkeypatch):
    for module in (finetune, nonlinear_probes):
        monkeypatch.setattr(module, "STEPS", 20)
    run, data = str(tmp_path / "run"), "demo"
    for words in (
        ["pretrain", "colorization", "--data", data, "--steps", "4", "--batch", "32", "--out", run],
        ["preview", "colorization", "--data", data, "--out", str(tmp_path / "puzzles.png")],
        ["evaluate", run, "--data", data, "--test", f"{data}:test", "--finetune", "--nonlinear", "--svm"],
        ["embed", run, "--data", data, "--out", str(tmp_path / "features")],
        ["colorize", run, "--data", data, "--out", str(tmp_path / "painted")],
        ["export", run, "--to", "torch", "--out", str(tmp_path / "net.pt")],
        ["report", run],
    ):
        assert not main(words), f"pretask {' '.join(words)}\n{capsys.readouterr()}"
