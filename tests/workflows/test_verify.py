"""verify: correct runs are inside of the reference, planted faults are not, and a reference is that of today's method."""

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from pretask import faults, methods, reference
from pretask.cli.main import main
from pretask.errors import UserError
from pretask.reference import Reference
from pretask.reports import verification
from pretask.workflows import recording, verify
from pretask.workflows.recording import POINTS, Recording, Setup

ROOT = Path(__file__).parents[2]
SEEN = json.loads((ROOT / "docs" / "results" / "faults" / "faults.json").read_text())
"""method -> fault -> what saw it"""
SETUP = Setup("demo", 32, "resnet_small:width=16", 40)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", methods.names())
def test_the_reference_has_the_constants_of_the_method(name):
    """If this fails on purpose: python bench/reference.py NAME."""
    known = reference.load(name)
    with recording.constants(name) as config:
        assert verify.constants(config) == known.constants
    assert len(known.runs) == 5 and all(len(run["loss"]) == POINTS for run in known.runs)
    assert recording.setup(config, known.setup["steps"]) == Setup(**known.setup)


def in_turn() -> list[str]:
    """Three methods, others on another day."""
    names, day = methods.names(), datetime.now(UTC).date().toordinal()
    return [names[(3 * day + k) % len(names)] for k in range(3)]


@pytest.mark.parametrize("place", range(3))
def test_a_correct_run_is_inside_and_one_with_a_fault_is_not(place, one_thread):
    name = in_turn()[place]
    found = verify.verify(name)
    assert found.passed, "\n".join(verification.lines(found))
    fault = next(each for each in faults.of(name) if SEEN[name][each.name]["seen by"])
    assert not verify.verify_planted(name, fault).passed


def made_up(seeds: int = 5) -> tuple[Reference, list[Recording]]:
    """A reference with noise of known size around known means, and one more run."""
    rng = np.random.default_rng(0)
    runs = []
    for _ in range(seeds + 1):
        loss = np.linspace(3, 1, POINTS) + 0.02 * rng.normal(size=POINTS)
        accuracy = np.linspace(10, 60, POINTS) + rng.normal(size=POINTS)
        scores = (
            2 * np.exp(0.05 * rng.normal()),
            0.6 * np.exp(0.02 * rng.normal()),
            *(50 + rng.normal(size=2)),
        )
        moved = {"teacher": 0.3 * np.exp(0.02 * rng.normal()), "prior": 0.0}
        runs.append(Recording(tuple(loss), tuple(accuracy), *map(float, scores), moved))
    known = [
        {**dataclasses.asdict(run), "loss": list(run.loss), "accuracy": list(run.accuracy)} for run in runs
    ]
    return Reference("simclr", None, dataclasses.asdict(SETUP), {}, known[:seeds]), runs


def compared(run: Recording, known: Reference, **more) -> verify.Verification:
    return verify.compare(run, known, "mine", 9, 0.01, SETUP, **more)


def test_another_run_of_the_same_kind_is_inside_at_all_points():
    known, runs = made_up()
    found = compared(runs[-1], known)
    assert found.passed
    assert {each.title: each.inside for each in found.compared} == {
        "loss": 20, "pretext accuracy": 20, "gradient norm": 1, "feature spread": 1, "kNN accuracy, %": 1,
        "linear accuracy, %": 1, "change of teacher": 1, "change of prior": 1,
    }  # fmt: skip
    assert "inside at 20 of 20 points" in "\n".join(verification.lines(found))


@pytest.mark.parametrize(
    "change",
    [
        {"loss": tuple(np.linspace(3, 1, POINTS) + 0.3)},
        {"accuracy": (12.5,) * POINTS},
        {"gradient": 20.0},
        {"spread": 0.01},
        {"knn": 10.0},
        {"linear": 10.0},
        {"moved": {"teacher": 0.0, "prior": 0.0}},
        {"moved": {"teacher": 0.3, "prior": 0.1}},
        {"moved": {"prior": 0.0}},
        {"loss": (float("nan"),) * POINTS},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_run_that_differs_in_one_quantity_is_outside(change):
    known, runs = made_up()
    found = compared(dataclasses.replace(runs[-1], **change), known)
    assert not found.passed and found.farthest.quantity == next(iter(change))
    assert [each for each in found.compared if each.distance > 1] == [found.farthest]


def test_another_loss_is_not_compared_unless_the_file_says_that_it_is_the_same():
    known, runs = made_up()
    other = dataclasses.replace(
        runs[-1], loss=tuple(100 * x for x in runs[-1].loss), gradient=200.0, accuracy=()
    )
    found = compared(other, known, same_loss=False)
    assert found.passed
    assert set(found.left_out) == {"loss", "gradient", "moved", "accuracy"}
    assert "mine logs no accuracy" in "\n".join(verification.lines(found))
    assert not compared(other, known).passed


def test_the_page_shows_a_band_and_a_curve_for_each_quantity(tmp_path):
    known, runs = made_up()
    shifted = dataclasses.replace(runs[-1], loss=tuple(x + 0.3 for x in runs[-1].loss))
    found = [compared(runs[-1], known), compared(shifted, known)]
    verification.write(found, tmp_path / "new" / "page.html")
    page = (tmp_path / "new" / "page.html").read_text()
    assert page.count("<svg") == 4 and "1 of 2 methods are as expected" in page
    assert "inside at 0 of 20 points; first outside at point 1" in page


OWN = '''
from pretask.methods import simclr

same_loss = {same}


class Config(simclr.Config):
    """My SimCLR."""

    def build(self, encoder, source):
        return Mine(self, encoder)


class Mine(simclr.SimCLR):
    def loss(self, pretext):
        found = super().loss(pretext)
        return type(found)({scale} * found.total, found.parts)
'''


@pytest.mark.parametrize(("same", "scale", "code"), [(True, 1.0, 0), (True, 2.0, 1)])
def test_ones_own_implementation_is_compared_with_ours(
    same, scale, code, tmp_path, capsys, monkeypatch, one_thread
):
    """A loss of twice the size does not matter to AdamW."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN.format(same=same, scale=scale))
    assert main(["verify", "./mine.py", "--against", "simclr", "--seed", "7"]) == code
    out = capsys.readouterr().out
    assert ("./mine.py agrees with simclr" in out) == (code == 0)
    assert ("not compared: another loss" in out) == (not same)
    assert Path("runs/verify.html").is_file()


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["verify"]) == 2 and "takes a METHOD or --all" in capsys.readouterr().err
    assert main(["verify", "simclr", "--all"]) == 2 and "takes a METHOD or --all" in capsys.readouterr().err
    assert main(["verify", "./mine.py"]) == 2 and "give --against METHOD" in capsys.readouterr().err
    with pytest.raises(UserError, match="there is no reference for 'unknown'; there are barlow_twins"):
        verify.verify("unknown")
