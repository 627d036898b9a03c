"""The method in the tutorial works as the page describes."""

import re
from pathlib import Path

import pytest
import torch

from pretask import data, encoders, methods
from pretask.cli import main
from pretask.rng import Rng
from pretask.runtime import files
from pretask.train import run
from pretask.transforms import augment

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"


def blocks():
    """The Python code of the page: the method, and its test."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def method(tmp_path_factory):
    """./upside_down.py"""
    path = tmp_path_factory.mktemp("own") / "upside_down.py"
    path.write_text(blocks()[0])
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pretask(*words):
    return main.main([str(word) for word in words])


SMALL = ("--data", "synthetic:64:32", "--encoder", "resnet_small:width=8", "--batch", "16")


def test_the_page_shows_the_commands_in_the_order_of_use():
    commands = re.findall(r"^pretask (\w+)", PAGE.read_text(), re.MULTILINE)
    assert commands == ["preview", "check", "pretrain", "pretrain", "evaluate"]


def test_preview_draws_the_puzzle(method):
    assert pretask("preview", method, "--data", "synthetic:16:32", "--out", "puzzles.png") == 0
    assert Path("puzzles.png").read_bytes().startswith(b"\x89PNG")


def test_check_passes(method, capsys):
    words = ["check", method, "--data", "synthetic:64:32", "--encoder", "resnet_small:width=8"]
    assert pretask(*words) == 0, capsys.readouterr()


def test_help_shows_its_own_hyperparameter_with_its_description(method, capsys):
    with pytest.raises(SystemExit) as end:
        pretask("pretrain", method, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "--mirror" in shown
    assert "probability that the whole image is flipped" in shown
    assert "0.002" in shown


def test_training_with_its_own_flag_writes_a_complete_run(method):
    assert pretask("pretrain", method, *SMALL, "--steps", "4", "--mirror", "0.25", "--out", "own") == 0
    made = run.load("own")
    assert made.card["config"] == {"mirror": 0.25}
    assert made.card["method"] == str(method)
    assert (made.folder / "DONE").exists()
    assert (made.folder / "preview.png").exists()
    assert [row["step"] for row in files.read_rows(made.folder / run.LOG)] == [0, 1, 2, 3]
    assert made.encoder.dim == 32


def test_a_resumed_run_ends_with_the_same_weights(method, monkeypatch):
    from pretask.train import trainer

    assert pretask("pretrain", method, *SMALL, "--steps", "5", "--out", "whole") == 0

    step = trainer.Trainer.step

    def crash(self, batch, progress):
        if progress.step == 3:
            self.save(3)
            raise RuntimeError("power cut")
        return step(self, batch, progress)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            pretask("pretrain", method, *SMALL, "--steps", "5", "--out", "cut")
    assert pretask("pretrain", "--resume", "cut") == 0
    whole, cut = (run.load(name).encoder.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_the_test_on_the_page_passes_and_detects_swapped_answers(method, monkeypatch):
    monkeypatch.syspath_prepend(method.parent)
    page = {}
    exec(blocks()[1], page)
    undoing = page["test_turning_the_quarter_back_gives_the_image_back"]
    undoing()
    puzzle = page["Config"].build.__globals__["Puzzle"]

    def swapped(image, quarter):
        return puzzle(image, quarter.roll(1))

    monkeypatch.setitem(page["Config"].build.__globals__, "Puzzle", swapped)
    with pytest.raises(AssertionError):
        undoing()


def test_quarters_of_an_odd_side_do_not_overlap(method):
    source = data.open("synthetic:32:33")
    solver = methods.recipe(str(method))(mirror=0.0).build(
        encoders.build("resnet_small:width=8", 3, 33), source
    )
    batch = source.__getitems__(torch.arange(32))
    puzzle = solver.pretext(batch, Rng(0))
    halves = slice(0, 17), slice(17, 33)
    for image, k in zip(puzzle.image, puzzle.quarter.tolist(), strict=True):
        quarter = image[:, halves[k // 2], halves[k % 2]]
        quarter.copy_(quarter.flip(1))
    assert torch.equal(puzzle.image, augment.to_float(batch.image))
