"""A replanned run can be replayed bit for bit without a clock, and a finished run can be extended."""

import json
import re
import shutil
import time
from functools import cache

import pytest
import torch
from small import quick_scores, undrawn

import pretask
from pretask.__main__ import began
from pretask.cli.main import main
from pretask.config import RunConfig
from pretask.encoders.saved import SHAPE, WEIGHTS
from pretask.evals import finetune
from pretask.runtime import files
from pretask.train import checkpoint, logger, run, trainer
from pretask.train.pacing import Budget
from pretask.train.plan import entries_of
from pretask.train.run import Run
from pretask.types import UserError
from pretask.workflows import length, pretrain
from pretask.workflows.reruns import repeated, seed_runs

METHODS = {
    "rotnet": "resnet_small:width=8",
    "neighbourhood_discovery": "resnet_small:width=8",  # cycles
    "sdae": "mlp:width=24,depth=3",  # layer by layer
    "jule": "jule:width=8",  # merges clusters
}
FIRST = 20
"""first estimate of the number of steps"""
ENTRIES = {3: 45, 13: 32, 22: 41, 30: 35}
"""step -> new total number of steps"""


class Scripted(Budget):
    """Replans at the steps of ENTRIES, independent of the clock."""

    def left(self):
        return float(FIRST)

    def is_due(self, step, single):
        return step in ENTRIES

    def replan(self, plan, step):
        return ENTRIES[step], 0


def script(patch):
    patch.setattr(pretrain, "Budget", Scripted)
    patch.setattr(trainer.Trainer, "fastest_step", lambda *_: 1.0)


@pytest.fixture
def scripted(monkeypatch):
    script(monkeypatch)


@pytest.fixture(scope="module")
def replanned(tmp_path_factory):
    """The uninterrupted run of a method whose plan changes at ENTRIES, trained once."""

    @cache
    def made(name):
        with pytest.MonkeyPatch.context() as patch:
            script(patch)
            return trained(name, tmp_path_factory.mktemp(name) / "whole", budget="60s")

    return made


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    undrawn(monkeypatch)


@pytest.fixture
def no_clock(monkeypatch):
    """A function after whose call any use of the clock fails."""

    def never(*_):
        raise AssertionError("the clock was used")

    def arm():
        monkeypatch.setattr(pretrain, "Budget", never)
        monkeypatch.setattr(trainer.Trainer, "fastest_step", never)

    return arm


def trained(name, out, **more):
    return pretask.pretrain(
        name, "synthetic:64:16", out, encoder=METHODS[name], batch=16, quiet=True, **more
    )  # fmt: skip


def weights(made):
    return checkpoint.load(made.folder / checkpoint.LATEST)["method"]


def alike(one, other):
    return all(torch.equal(value, weights(other)[key]) for key, value in weights(one).items())


def rows(made):
    """Rows of the log without speeds."""
    return [
        {k: v for k, v in row.items() if k not in ("images_per_s", "data_wait")}
        for row in files.read_rows(made.folder / run.LOG)
    ]


PLANNED = ((0, FIRST), *ENTRIES.items())


@pytest.mark.parametrize("name", METHODS)
def test_replanned_run_is_replayed_bit_for_bit_by_its_plan(name, tmp_path, scripted, no_clock, monkeypatch):
    monkeypatch.setattr(logger, "ROWS", 8)  # so that rows cover several steps, as the plan decides
    made = trained(name, tmp_path / "one", budget="60s")
    assert entries_of(made.card) == PLANNED and made.card["steps"] == 35
    no_clock()
    again = trained(name, tmp_path / "two", plan=made.folder)
    assert entries_of(again.card) == PLANNED and again.card["epochs"] == made.card["epochs"]
    assert alike(made, again) and rows(made) == rows(again)
    other = trained(name, tmp_path / "three", steps=35)
    assert not alike(made, other), "the entries matter"


def test_number_of_log_rows_follows_the_current_plan(tmp_path, scripted, monkeypatch):
    monkeypatch.setattr(logger, "ROWS", 10)
    monkeypatch.setitem(globals(), "ENTRIES", {3: 10})
    made = trained("rotnet", tmp_path / "r", budget="60s")
    assert [row["step"] for row in rows(made)] == [1, 3, 4, 5, 6, 7, 8, 9]


class Cut(Exception):
    pass


@pytest.mark.parametrize("step", [2, 3, 4, 14, 25, 33])
@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_run_ends_with_the_same_weights(
    name, step, replanned, tmp_path, scripted, no_clock, monkeypatch
):
    """Killed before several steps, one of which is the first of a new plan that the last checkpoint does not have."""
    whole = replanned(name)
    plain = trainer.Trainer.step

    def dies(self, batch, progress):
        if progress.step == step:
            raise Cut
        return plain(self, batch, progress)

    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0 if step > 10 else 60.0)
    monkeypatch.setattr(trainer.Trainer, "step", dies)
    with pytest.raises(Cut):
        trained(name, tmp_path / "cut", budget="60s")
    known = entries_of(Run(tmp_path / "cut").card)
    assert known == tuple(entry for entry in PLANNED if entry[0] <= step)
    monkeypatch.setattr(trainer.Trainer, "step", plain)
    run.record(tmp_path / "cut", Run(tmp_path / "cut").card, plan_of(whole))  # as if it had continued
    no_clock()
    resumed = pretask.pretrain(None, resume=tmp_path / "cut", quiet=True)
    assert alike(whole, resumed) and rows(whole) == rows(resumed)


def plan_of(made):
    return pretrain.Plan(entries_of(made.card), 4, made.card["train"]["cycles"])


def test_other_seeds_and_fractions_replay_the_plan(tmp_path, scripted, no_clock):
    made = trained("rotnet", tmp_path / "rotnet-s0", budget="60s")
    no_clock()
    _, other = seed_runs(made, 2, None)
    assert other.card["seed"] == 1 and entries_of(other.card) == PLANNED
    part = repeated(made, tmp_path / "part", None, fraction=0.5)
    assert part.card["n"] == 32 and entries_of(part.card) == PLANNED
    assert seed_runs(made, 2, None)[1].folder == other.folder, "a finished run is reused"
    card = json.loads((other.folder / run.CARD).read_text())
    (other.folder / run.CARD).write_text(json.dumps(card | {"plan": [[0, 35]]}))
    with pytest.raises(UserError, match="differ in plan"):
        seed_runs(made, 2, None)


def test_card_stores_a_plan_before_its_first_step(tmp_path, scripted, monkeypatch):
    plain, seen = trainer.Trainer.step, []

    def step(self, batch, progress):
        if (self.folder / run.CARD).exists():
            seen.append((progress.step, entries_of(Run(self.folder).card)))
        return plain(self, batch, progress)

    monkeypatch.setattr(trainer.Trainer, "step", step)
    trained("rotnet", tmp_path / "r", budget="60s")
    assert all(known == tuple(e for e in PLANNED if e[0] <= step) for step, known in seen)


def test_plan_excludes_other_length_flags(tmp_path, capsys):
    made = trained("rotnet", tmp_path / "one", steps=3)
    words = ["pretrain", "rotnet", "--data", "synthetic:64:16", "--plan", str(made.folder), "--out"]
    for flag in (["--steps", "4"], ["--budget", "9s"], ["--epochs", "2"], ["--epochs=2"]):
        assert main([*words, str(tmp_path / "two"), "--batch", "16", *flag]) == 2
        assert "--plan uses the length of another run; remove" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()
    words[5] = str(tmp_path / "none")
    assert main([*words, str(tmp_path / "two")]) == 2 and "is not a run" in capsys.readouterr().err


# ---- extending and shortening


def test_unfinished_run_is_stretched_in_place(tmp_path, monkeypatch):
    cut_off(tmp_path / "r", 8, monkeypatch)
    made = pretask.pretrain(None, resume=tmp_path / "r", steps=30, quiet=True)
    assert entries_of(made.card) == ((0, 20), (8, 30)) and made.card["steps"] == 30
    assert (made.folder / run.DONE).exists() and not list(made.folder.glob("at-*"))
    assert [row["step"] for row in rows(made)] == list(range(30))
    assert "lengthened" not in rows(made)[-1]


def cut_off(folder, step, monkeypatch):
    """Leave a run of 20 steps, interrupted at `step`."""
    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
    log_step = logger.RunLogger.log_step

    def stop(self, progress, *rest):
        if progress.step == step:
            raise Cut
        return log_step(self, progress, *rest)

    monkeypatch.setattr(logger.RunLogger, "log_step", stop)
    with pytest.raises(Cut):
        trained("rotnet", folder, steps=20)
    monkeypatch.setattr(logger.RunLogger, "log_step", log_step)


def test_budget_of_a_resumed_run_counts_from_now(tmp_path, scripted, monkeypatch):
    cut_off(tmp_path / "r", 8, monkeypatch)
    monkeypatch.setitem(globals(), "ENTRIES", {})
    made = pretask.pretrain(None, resume=tmp_path / "r", budget="60s", quiet=True)
    assert entries_of(made.card) == ((0, 20), (8, 8 + FIRST))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Folder of a run with a score and a report; tests change copies of it."""
    made = trained("rotnet", tmp_path_factory.mktemp("original") / "r", steps=20)
    (made.folder / "scores").mkdir()
    (made.folder / "scores" / "x.json").write_text("[]")
    (made.folder / "report.html").write_text("of 20 steps")
    return made.folder


@pytest.fixture
def finished(original, tmp_path):
    return Run(shutil.copytree(original, tmp_path / "r"))


@pytest.fixture(scope="module")
def calm(original, tmp_path_factory):
    """The same run, extended without a kill."""
    folder = shutil.copytree(original, tmp_path_factory.mktemp("calm") / "r")
    return pretask.pretrain(None, resume=folder, steps=50, quiet=True)


def test_extending_a_finished_run_prints_a_caution(finished, tmp_path, capsys):
    before = weights(finished)
    assert main(["pretrain", "--resume", str(finished.folder), "--steps", "50"]) == 0
    err = " ".join(capsys.readouterr().err.split())
    made = Run(finished.folder)
    caution = "extended at step 20 from a finished run, which differs from 50 steps from the start"
    assert entries_of(made.card) == ((0, 20), (20, 50)) and caution in err
    assert caution in " ".join((made.folder / "report.html").read_text().split())
    assert [row.get("lengthened") for row in rows(made)] == [None] * 20 + [20] * 30
    assert rows(made)[20]["lr"] == 0 and rows(made)[21]["lr"] > 0
    whole = trained("rotnet", tmp_path / "whole", steps=50)
    assert rows(made)[-1]["lr"] == rows(whole)[-1]["lr"], "it ends with the schedule of 50 steps"
    assert not alike(made, whole)
    assert any(not torch.equal(value, weights(made)[key]) for key, value in before.items())
    replayed = trained("rotnet", tmp_path / "replayed", plan=made.folder)
    assert alike(made, replayed) and rows(made) == rows(replayed)


def test_results_of_the_shorter_run_move_to_their_own_folder(finished):
    encoder = (finished.folder / WEIGHTS).read_bytes()
    pretask.pretrain(None, resume=finished.folder, steps=50, quiet=True)
    kept = finished.folder / "at-20-steps"
    assert not (finished.folder / "scores").exists() and (kept / "scores" / "x.json").read_text() == "[]"
    assert (kept / "report.html").read_text() == "of 20 steps" and (kept / run.DONE).exists()
    assert (kept / WEIGHTS).read_bytes() == encoder != (finished.folder / WEIGHTS).read_bytes()
    assert Run(kept).card["steps"] == 20 and Run(kept).encoder is not None


@pytest.mark.parametrize("moment", range(8))
def test_extension_killed_between_any_two_writes_leaves_the_shorter_or_the_longer_run(
    moment, finished, calm, monkeypatch
):
    """A resumed run finishes with the length in its card and can be extended again; nothing is lost."""
    left = moment
    for where, what in ((length, "merge_into"), (files, "write_text")):
        plain = getattr(where, what)

        def dies(*given, plain=plain):
            nonlocal left
            left -= 1
            if left < 0:
                raise Cut
            return plain(*given)

        monkeypatch.setattr(where, what, dies)
    monkeypatch.setattr(trainer.Trainer, "fit", dies_at_once)
    with pytest.raises(Cut):
        pretask.pretrain(None, resume=finished.folder, steps=50, quiet=True)
    monkeypatch.undo()
    steps = Run(finished.folder).card["steps"]
    assert not (steps == 50 and (finished.folder / run.DONE).exists())
    if (finished.folder / run.DONE).exists():
        assert all((finished.folder / name).exists() for name in ("scores/x.json", WEIGHTS, SHAPE))
    resumed = pretask.pretrain(None, resume=finished.folder, quiet=True)
    assert resumed.card["steps"] == steps and (resumed.folder / run.DONE).exists()
    if steps == 20:
        resumed = pretask.pretrain(None, resume=finished.folder, steps=50, quiet=True)
    assert alike(calm, resumed)
    kept = [p.read_text() for p in finished.folder.rglob("x.json")]
    assert kept == ["[]"]
    assert not (finished.folder / "scores").exists() or steps == 20


def dies_at_once(*_):
    raise Cut


@pytest.mark.parametrize("steps", ["20", "7"])
def test_run_cannot_become_shorter_than_the_steps_done(steps, finished, capsys):
    card = (finished.folder / run.CARD).read_text()
    assert main(["pretrain", "--resume", str(finished.folder), "--steps", steps]) == 2
    assert "has already done 20 steps; give more" in capsys.readouterr().err
    assert (finished.folder / run.CARD).read_text() == card and (finished.folder / run.DONE).exists()


def test_finished_jule_run_cannot_be_extended(tmp_path):
    made = trained("jule", tmp_path / "r", steps=12)
    with pytest.raises(UserError, match="jule has a fixed end"):
        pretask.pretrain(None, resume=made.folder, steps=30, quiet=True)
    assert made.card["steps"] == Run(made.folder).card["steps"] == 12 and (made.folder / run.DONE).exists()


def test_shortened_jule_run_still_reaches_its_number_of_clusters(tmp_path, scripted, monkeypatch):
    monkeypatch.setitem(globals(), "ENTRIES", {3: 200, 41: 43})
    made = trained("jule", tmp_path / "r", budget="60s", config={"clusters": 4})
    assert int(weights(made)["label"].max()) + 1 == 4


# ---- messages


def test_short_run_has_a_caution_in_output_report_and_scores(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(finetune, "STEPS", 1)
    quick_scores(monkeypatch)
    folder = tmp_path / "r"
    words = ["--data", "synthetic:64:16", "--steps", "6", "--batch", "16", "--encoder", METHODS["rotnet"]]
    assert main(["pretrain", "rotnet", "--out", str(folder), *words]) == 0
    caution = "too short to be meaningful: 6 steps, 1.5 passes over the images"
    assert caution in " ".join(capsys.readouterr().err.splitlines()[-2:])
    assert caution in (folder / "report.html").read_text()
    scores = pretask.evaluate(folder, "synthetic:120:16", "synthetic:60:16", progress=False)
    assert any(caution in sentence for sentence in scores.skipped)
    studied = pretask.study(folder, "synthetic:120:16", "synthetic:60:16", ask=["change"], progress=False)
    assert [caution in sentence for sentence in json.loads(studied.to_json())["cautions"]] == [True]


def test_budget_counts_from_the_start_of_the_process():
    """pytest has been running for a while at this point."""
    assert began() < time.monotonic() - 0.1
    assert re.match(r"\d+\.\d", f"{time.monotonic() - began():.1f}")


def test_budget_units():
    assert [length.parse_duration(text) for text in ("90s", "10m", "2h", "45", "1.5m")] == [
        90,
        600,
        7200,
        45,
        90,
    ]
    with pytest.raises(UserError, match="write 90s, 10m or 2h"):
        RunConfig("", budget="soon") and length.parse_duration("soon")
