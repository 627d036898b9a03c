"""A comparison in the terminal, as CSV and LaTeX, and as a page."""

import csv
import dataclasses
import io
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pretask import data, encoders
from pretask.evals import ranking
from pretask.evals.confidence import Interval
from pretask.evals.decision import decide
from pretask.evals.label_curve import Curve, Worth
from pretask.reports import comparison
from pretask.runtime.console import console
from pretask.workflows.compare import Compared, Line
from pretask.workflows.rungs import Rung

ROLES: Any = {
    "simclr": "run",
    "diet, continued": "run",
    "a_b@c.safetensors, frozen": "published",
    "k-means patches": "patches",
}
ACCURACY = {"simclr": 0.8, "diet, continued": 0.75, "a_b@c.safetensors, frozen": 0.7, "k-means patches": 0.5}


@pytest.fixture
def found(tmp_path) -> Compared:
    rng, count = np.random.default_rng(0), 2000
    correct = {
        name: torch.from_numpy(rng.random((3 if ROLES[name] == "run" else 1, count)) < p)
        for name, p in ACCURACY.items()
    }
    ranked = ranking.rank(correct)
    lines = [
        Line(name, ROLES[name], *dataclasses.astuple(ranked.scores[name]), [1.0], ranked.gaps.get(name), 90.0, 12800)
        for name in ranked.scores
    ]  # fmt: skip
    test = data.open_labeled("synthetic:60:16")
    best: Any = SimpleNamespace(
        encoder=encoders.build("resnet_small:width=8", 3, 16).eval(), folder=tmp_path / "simclr-3-s0"
    )
    curves = {
        "simclr": Curve((1, 10), torch.tensor([[1.0, 0.0], [1.0, 1.0]])),
        "k-means patches": Curve((1, 10), torch.tensor([[0.0, 0.0], [1.0, 0.0]])),
    }
    about = {
        "images": "photos",
        "n": 5000,
        "labeled": "labeled (80 %)",
        "n_labeled": 400,
        "test": "held",
        "n_test": count,
        "classes": ["a", "b"],
    }
    rungs = [
        Rung(
            20.0,
            {
                "simclr": Interval(60, 58, 62),
                "diet, continued": Interval(50, 48, 52),
                "rotnet": Interval(40, 38, 42),
            },
        )
    ]
    return Compared(
        tmp_path, about, {"budget": 3600.0}, rungs, lines, decide(ranked, ROLES), curves, "k-means patches", Worth(10, 3.4, 2.1, 5.0),
        {"mae": "mae masks patches"}, "", 3500.0, best, test,
    )  # fmt: skip


def printed(found: Compared) -> str:
    shown = console()
    with shown.capture() as text:
        shown.print(comparison.table(found))
    return text.get()


def test_terminal_shows_rows_decision_labels_and_power(found, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(found)
    assert all(len(line) <= 80 for line in text.splitlines())
    first = next(line for line in text.splitlines() if line.startswith("simclr"))
    assert (
        first.split()[1].startswith(f"{found.lines[0].accuracy:.1f}") and "1:30" in first and "[" not in first
    )
    flat = " ".join(text.split())
    assert "Use simclr: diet, continued, the next best, is" in flat
    assert (
        "With fewer labels, simclr is worth 3.4 times [2.1, 5] the labels of k-means patches (measured with 10 a class)."
        in flat
    )
    assert "mae was not tried: mae masks patches" in flat
    assert "a gap of so many points is found in a table like this: 2 points" in flat


@pytest.mark.parametrize(
    ("worth", "said"),
    [
        (Worth(5, 3.44, 2.12, 5.01), "3.4 times [2.1, 5]"),
        (Worth(5, 3.4, 2.1, math.inf), "3.4 times [2.1, ∞]"),
        (Worth(5, math.inf, 20.0, math.inf), "more than 20 times"),
    ],
)
def test_label_equivalents_in_words(worth, said):
    assert comparison.times(worth) == said


def test_csv_and_latex_hold_the_same_rows(found):
    comparison.write(found)
    rows = [*csv.DictReader(io.StringIO((found.folder / "compare.csv").read_text()))]
    assert [row["name"] for row in rows] == [line.name for line in found.lines]
    for row, line in zip(rows, found.lines, strict=True):
        assert float(row["accuracy"]) == pytest.approx(line.accuracy, rel=1e-5)
        assert (row["behind"] == "") == (line.gap is None)
        assert line.gap is None or float(row["behind_low"]) == pytest.approx(-line.gap.high, rel=1e-5)
    text = (found.folder / "compare.tex").read_text()
    assert r"a\_b@c.safetensors, frozen & 70" in text and r"$\pm$" in text
    assert text.count(r" \\") == len(found.lines) + 1


def test_page_holds_everything_and_loads_nothing(found):
    page = comparison.write(found).read_text()
    for said in (
        "Use simclr:",
        "k-means patches",
        "Nearest neighbors",
        "Feature map",
        "simclr-3-s0",
        "Fewer labels",
        "Longer runs",
    ):
        assert said in page
    assert "http" not in page.replace("http://www.w3.org/", "") and "<script" not in page
