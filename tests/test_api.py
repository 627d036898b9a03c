"""The Python API gives the same results as the command line, and labels do not affect pretraining."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import pretask
from pretask import data as sources
from pretask.cli import main
from pretask.data import in_memory
from pretask.methods import simclr
from pretask.train import trainer
from pretask.transforms import augment
from pretask.types import UserError
from pretask.workflows import pretrain

SMALL = {"encoder": "resnet_small:width=16", "steps": 3, "batch": 16, "quiet": True}


@pytest.fixture(scope="module")
def photos():
    """(N, H, W, 3) uint8."""
    return sources.open("synthetic:48:32").image.permute(0, 2, 3, 1).numpy()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def weights(run):
    return pretask.load(run.folder).encoder.state_dict()


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_shuffled_or_missing_labels_give_identical_weights(photos, tmp_path):
    label = np.arange(len(photos)) % 4
    given = {"right": {"labels": label}, "shuffled": {"labels": label[::-1]}, "absent": {}}
    trained = {}
    for name, labels in given.items():
        np.savez(f"{name}.npz", images=photos, **labels)
        trained[name] = weights(pretask.pretrain("rotnet", f"{name}.npz", name, **SMALL))
    assert same(trained["right"], trained["shuffled"])
    assert same(trained["right"], trained["absent"])
    np.savez("others.npz", images=photos[::-1], labels=label)
    others = weights(pretask.pretrain("rotnet", "others.npz", "others", **SMALL))
    assert not same(trained["right"], others)  # the comparison detects differences


def test_arrays_files_and_the_command_line_give_the_same_weights(photos):
    np.savez("photos.npz", images=photos)
    forms = {
        "path": "photos.npz",
        "uint8": photos,
        "floats": photos / 255,
        "first": photos.transpose(0, 3, 1, 2),
        "tensor": torch.from_numpy(photos),
    }
    trained = {name: weights(pretask.pretrain("rotnet", data, name, **SMALL)) for name, data in forms.items()}
    words = [
        "pretrain",
        "rotnet",
        "--data",
        "photos.npz",
        "--out",
        "command",
        "--steps",
        "3",
        "--batch",
        "16",
    ]
    assert main.main([*words, "--encoder", "resnet_small:width=16"]) == 0
    trained["command"] = pretask.load("command").encoder.state_dict()
    assert [name for name in trained if not same(trained["path"], trained[name])] == []


def test_floats_are_rounded_to_the_nearest_of_256_tones():
    tones = np.repeat([0.0, 0.998, 0.999, 1.0], 16).reshape(4, 4, 4)  # 254.49 and 254.75 of 255
    assert in_memory.from_array(tones).image[:, 0, 0, 0].tolist() == [0, 254, 255, 255]


def test_gray_arrays_keep_one_channel_and_are_resized_to_size(photos):
    made = pretask.pretrain("rotnet", photos[..., 0], size=24, **SMALL)
    assert (made.card["channels"], made.card["size"], made.card["n"]) == (1, 24, 48)
    assert made.card["data"] == "array-in-memory"
    assert made.folder.name == "rotnet-array-in-memory-s0"


def test_method_and_training_hyperparameters_are_applied(photos):
    config = {"temperature": 0.5, "views": {"gray": 0.0}}
    made = pretask.pretrain("simclr", photos, "a", config=config, lr=0.01, cycles=1, **SMALL)
    assert made.card["config"]["temperature"] == 0.5
    assert made.card["config"]["views"]["gray"] == 0.0
    assert made.card["config"]["views"]["crop"] == list(simclr.Config().views.crop)
    assert made.card["train"]["lr"] == 0.01
    assert made.card["train"]["optimizer"] == simclr.Config.train.optimizer
    ready = pretask.pretrain("simclr", photos, "b", config=simclr.Config(temperature=0.5), **SMALL)
    assert ready.card["config"]["temperature"] == 0.5


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"learning_rate": 1}, "training has no hyperparameter 'learning_rate'"),
        ({"epoch": 3}, "training has no hyperparameter 'epoch'; did you mean epochs"),
        (
            {"config": {"temprature": 1}},
            "simclr has no hyperparameter 'temprature'; did you mean temperature",
        ),
        (
            {"config": {"views": {"blurr": 1}}},
            "simclr.views has no hyperparameter 'blurr'; did you mean blur",
        ),
        ({"method": "simclar"}, "did you mean simclr"),
        ({"data": "nowhere"}, "nowhere is neither"),
        ({"data": None}, "needs a method and data"),
        ({"data": np.zeros((4, 5))}, r"shape \(4, 5\)"),
        ({"data": np.array([["a"]])}, "type <U1; expected integers or floats"),
        ({"out": "."}, "exists; choose another --out"),
    ],
)
def test_user_errors_name_close_matches(photos, tmp_path, call, said):
    (tmp_path / "something").touch()
    with pytest.raises(UserError, match=said):
        pretask.pretrain(**{"method": "simclr", "data": photos, **SMALL, **call})
    assert [p.name for p in tmp_path.iterdir()] == ["something"]


def test_a_run_on_an_array_resumes_when_the_array_is_passed_again(photos, monkeypatch):
    whole = pretask.pretrain("rotnet", photos, "whole", **SMALL)
    step = trainer.Trainer.step

    def crash(self, batch, progress):
        if progress.step == 2:
            self.save(2)
            raise RuntimeError("power cut")
        return step(self, batch, progress)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            pretask.pretrain("rotnet", photos, "cut", **SMALL)
    with pytest.raises(UserError, match="pass them again"):
        pretask.pretrain(None, resume="cut", quiet=True)
    with pytest.raises(UserError, match="trained on 48 images, but the array holds 20"):
        pretask.pretrain(None, photos[:20], resume="cut", quiet=True)
    resumed = pretask.pretrain(None, photos, resume="cut", quiet=True)
    assert same(weights(whole), weights(resumed))


def test_a_run_on_a_path_resumes_without_data(monkeypatch):
    made = pretask.pretrain("rotnet", "synthetic:48:32", "a", **SMALL)
    before = weights(made)
    assert same(before, weights(pretask.pretrain(None, resume="a", quiet=True)))


def test_embed_equals_the_encoder_for_paths_arrays_and_any_form_of_run(photos):
    made = pretask.pretrain("rotnet", photos, **SMALL)
    with torch.no_grad():
        stages = made.encoder(augment.to_float(torch.from_numpy(photos).permute(0, 3, 1, 2)))
    for run in (made, made.folder, str(made.folder), made.encoder):
        for data in (photos, "synthetic:48:32"):
            rows = pretask.embed(run, data, batch=20)
            assert rows.dtype == np.float32
            np.testing.assert_allclose(rows, stages["pool"].numpy(), atol=1e-5)
    rows = pretask.embed(made, photos, stage="stage1", grid=1)
    np.testing.assert_allclose(rows, stages["stage1"].mean((2, 3)).numpy(), atol=1e-5)


def test_quiet_prints_nothing_and_otherwise_progress_is_shown(photos, capsys):
    pretask.pretrain("rotnet", photos, "a", **SMALL)
    assert capsys.readouterr() == ("", "")
    pretask.pretrain("rotnet", photos, "b", **{**SMALL, "quiet": False})
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "step 3/3" in shown.err


def test_a_run_from_python_has_a_json_card(photos):
    made = pretask.pretrain("rotnet", photos, init=None, seed=4, **SMALL)
    card = json.loads((made.folder / "run.json").read_text())
    assert card["seed"] == 4
    assert card["steps"] == 3
    assert card["settings"]["data"] == "array-in-memory"


def test_a_card_names_the_git_commit_and_marks_uncommitted_changes(tmp_path, monkeypatch):
    file = tmp_path / "pretraining.py"
    file.write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(pretrain, "__file__", str(file))
    named = pretrain.commit()
    assert re.fullmatch("[0-9a-f]{40}", named)
    file.write_text("changed")
    assert pretrain.commit() == f"{named}-dirty"


def test_every_public_name_is_on_the_page_of_the_api():
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    missing = [n for n in pretask.__all__ if not n.startswith("_") and f"::: pretask.{n}\n" not in page]
    assert missing == []
