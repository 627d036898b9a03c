"""ablate: two runs that differ in one part, and what names the difference."""

import dataclasses
import json
import math

import pytest
import torch
from small import undrawn

from pretask.cli.main import main
from pretask.reports import ablation
from pretask.rng import Rng
from pretask.train.pacing import Budget
from pretask.train.plan import Plan
from pretask.workflows import ablate as ablating
from pretask.workflows import length, pretrain
from pretask.workflows.ablate import Ablated, Side, spectrum
from pretask.workflows.audit import Audit, Finding


class Endless(Budget):
    """Never replans."""

    def is_due(self, step, single):
        return False


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Runs of four steps."""
    undrawn(monkeypatch)
    monkeypatch.setattr(pretrain, "Budget", Endless)
    monkeypatch.setattr(
        length, "new_plan", lambda _, trainer, __: Plan.of(4, trainer.per_pass, trainer.train.cycles)
    )


def test_both_runs_begin_alike_and_the_page_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", "vicreg", "--without", "variance", "--data", "synthetic:256:16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    healthy, broken = found["healthy"], found["broken"]
    assert [len(side["log"]) for side in (healthy, broken)] == [4, 4]
    first, other = healthy["log"][0], broken["log"][0]
    assert first["invariance"] == other["invariance"] and first["variance"] > 0 == other["variance"]
    assert found["steps"] == 4 and found["named_by"] == "monitor" and not found["named"]
    page = (tmp_path / "runs/ablate/vicreg-without-variance/ablation.html").read_text()
    assert page.count("<figure") == 3  # loss, rank, spectrum; no labels, no kNN
    assert "does not name it" in page and "Bardes" in page


def side(state: str, step: int = 40, audit: Audit | None = None) -> Side:
    monitor = [
        {"step": 0, "state": "healthy", "knn": 10.0, "rank": 9.0},
        {"step": step, "state": state, "knn": 30.0, "rank": 5.0},
    ]
    return Side([{"step": k, "loss": 1.0} for k in range(3)], monitor, (1.0, 0.1), audit)


def ablated(named_by, healthy: Side, broken: Side, **more) -> Ablated:
    return Ablated(
        "m", "part", "About.", "Paper.", named_by, "demo", 100, healthy, broken, more.get("verification")
    )


def test_the_monitor_names_a_collapse_at_its_first_unhealthy_check():
    found = ablated("monitor", side("healthy"), side("dimensional collapse"))
    assert found.named and found.broken.named_at == 40
    assert ablation.naming(found) == "The monitor names it at step 40: dimensional collapse."
    assert not ablated("monitor", side("dimensional collapse"), side("dimensional collapse")).named
    assert not ablated("monitor", side("healthy"), side("healthy")).named
    assert "30.0 %" in list(ablation.sentences(found))[2]


def audit(share: float) -> Audit:
    found = Finding("continuing edges", "", 40.0, share, share - 5, share + 5)
    return Audit("m", "demo", "position", 100, 60.0, 58.0, 62.0, 12.5, [found])


def test_the_audit_names_a_shortcut_that_explains_more_than_in_the_healthy_run():
    found = ablated("audit", side("healthy", audit=audit(10.0)), side("healthy", audit=audit(50.0)))
    assert found.named and found.shortcut == "continuing edges"
    assert "The audit names it: continuing edges" in ablation.naming(found)
    assert not ablated("audit", side("healthy", audit=audit(45.0)), side("healthy", audit=audit(50.0))).named
    assert len(list(ablation.tables(found))) == 4


def test_labels_are_not_needed():
    bare = dataclasses.replace(side("healthy"), monitor=[{"step": 0, "state": "healthy", "rank": 3.0}])
    assert math.isnan(bare.knn)
    found = ablated("monitor", bare, dataclasses.replace(bare, log=[{"step": 0, "loss": math.nan}]))
    assert len(list(ablation.sentences(found))) == 2
    assert "NaN" not in found.to_json() and json.loads(found.to_json())["broken"]["log"][0]["loss"] is None


def test_the_spectrum_of_equal_variances_is_flat_and_that_of_one_direction_is_not():
    ball = spectrum(Rng(0).normal(4000, 8))
    assert ball[0] == 1 and ball[-1] > 0.9 and len(ball) == 8
    line = spectrum(Rng(0).normal(100, 1) * torch.ones(1, 8) + 3)
    assert line[0] == 1 and max(line[1:]) < 1e-3


def test_the_list_names_every_ablation_and_mistakes_are_one_line(capsys):
    assert main(["ablate", "--list"]) == 0
    out = capsys.readouterr().out
    assert "simsiam --without stop-gradient  (named by monitor)" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert main(["ablate"]) == 2 and "pretask ablate --list shows both" in capsys.readouterr().err
    assert main(["ablate", "simsiam", "--without", "x"]) == 2
    assert "give --without stop-gradient" in capsys.readouterr().err


def test_time_is_shared_between_two_runs_and_what_names_the_fault():
    assert all(2 * share < 1 for share in ablating.SHARES.values())
