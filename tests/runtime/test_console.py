"""Progress messages during long work, and estimates before it."""

import io
import re
import threading

import pytest
from small import quick_scores

from pretask import api
from pretask.cli import main
from pretask.evals import finetune, forecast
from pretask.evals.forecast import Work
from pretask.runtime import console
from pretask.runtime.console import PlainBar, about, bar, clock
from pretask.tasks.dense import DenseTask


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_log_gets_a_line_per_minute_with_progress_and_time_left():
    time, lines = Clock(), []
    with PlainBar(time, lines.append) as shown:
        for _ in shown.track(range(1000), description="embedding photos"):
            time.now += 0.25  # a little over four minutes in total
    assert lines == [
        "embedding photos: 240 of 1,000 (24 %), 3:10 left",
        "embedding photos: 480 of 1,000 (48 %), 2:10 left",
        "embedding photos: 720 of 1,000 (72 %), 1:10 left",
        "embedding photos: 960 of 1,000 (96 %), 0:10 left",
    ]


def test_work_done_before_does_not_count_as_speed():
    time, lines = Clock(), []
    shown = PlainBar(time, lines.append)
    task = shown.add_task("rendering", total=100, completed=90)
    for _ in range(2):
        time.now += 40
        shown.advance(task)
    assert lines == ["rendering: 92 of 100 (92 %), 5:20 left"]


def test_unknown_total_has_no_time_left():
    time, lines = Clock(), []
    shown = PlainBar(time, lines.append)
    task = shown.add_task("reading", total=None)
    time.now = 61
    shown.advance(task, 7)
    assert lines == ["reading: 7 done"]


def test_work_of_under_a_minute_prints_nothing(capfd):
    with bar(True) as shown:  # test output is not a terminal
        assert isinstance(shown, PlainBar)
        assert list(shown.track([1, 2], description="x")) == [1, 2]
    with bar(False) as shown:
        list(shown.track([1, 2], description="x"))
    assert capfd.readouterr() == ("", "")


def test_lines_go_to_standard_error_without_wrapping(capfd):
    time = Clock()
    shown = PlainBar(time)
    task = shown.add_task("embedding " + 30 * "[long] name ", total=4)
    time.now = 90
    shown.advance(task)
    out, err = capfd.readouterr()
    assert not out
    assert err.count("\n") == 1 and "[long] name" in err and err.endswith("1 of 4 (25 %), 4:30 left\n")


def test_work_without_a_count_prints_reminders(monkeypatch):
    lines, enough = [], threading.Event()
    monkeypatch.setattr(console, "say", lambda line: (lines.append(line), enough.set()))
    with console.reminders("getting ready", every=0.01):
        assert enough.wait(30)
    assert lines[0] == "getting ready, for 0:00 so far"
    assert not any(thread.name == "reminder" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3, "less than a minute"), (50, "about 1 minute"), (750, "about 12 minutes"), (5000, "about 83 minutes"),
        (5400, "about 1.5 hours"), (3 * 3600, "about 3 hours"), (30 * 3600, "about 30 hours"),
    ],
)  # fmt: skip
def test_about_rounds_to_a_sensible_unit(seconds, text):
    assert about(seconds) == text


def test_clock():
    assert [clock(s) for s in (0, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]


def test_nothing_is_printed_without_standard_error(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", None)
    console.say("hello")
    assert not out.getvalue()


def test_step_time_excludes_setup(monkeypatch):
    time, seen = Clock(), []

    def train(steps):
        seen.append(steps)
        time.now += 100 + 0.5 * steps

    assert forecast.seconds_per_step(train, time) == 0.5
    assert seen == [1, 1, 3]


def test_a_step_takes_time_even_if_the_short_run_was_slowed():
    time, took = Clock(), iter([100.0, 100.0, 60.0])

    def train(steps):
        time.now += next(took)

    assert forecast.seconds_per_step(train, time) == 20.0


def test_training_time_is_estimated_on_standard_error_before_it_begins(capfd):
    parts = [
        Work("fine-tuned networks", 6, 100.0),
        Work("runs with other seeds", 1, 600.0),
        Work("others", 0, 1e9),
    ]
    forecast.announce(parts)
    forecast.announce([Work("others", 0, 1e9)])
    out, err = capfd.readouterr()
    assert not out
    assert err == "training takes about 20 minutes: 6 fine-tuned networks, 1 runs with other seeds\n"


def test_evaluate_transfer_and_study_estimate_their_training_time(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(finetune, "STEPS", 2)
    monkeypatch.setattr(DenseTask, "steps", 2)
    quick_scores(monkeypatch)
    run = api.pretrain(
        "rotnet",
        "synthetic:24:16",
        tmp_path / "run-s0",
        encoder="resnet_small:width=4",
        steps=2,
        batch=8,
        quiet=True,
    )
    for words, networks in (
        (
            ["evaluate", "--finetune", "--supervised", "--json"],
            "2 fine-tuned networks, 1 supervised networks",
        ),
        (["transfer", "--task", "depth", "--finetune", "--json"], "10 networks for fine-tuned depth"),
        (
            ["study", "--ask", "data", "change", "--fractions", "0.5", "--json"],
            "1 runs on fewer images, 2 fine-tuned networks",
        ),
    ):
        capfd.readouterr()
        assert main.main([words[0], str(run.folder), "--data", "synthetic:24:16", *words[1:]]) == 0
        out, err = capfd.readouterr()
        assert re.match(rf"training takes (less than a|about \d+) minutes?: {networks}\n", err)
        assert "training" not in out.splitlines()[0] and out.startswith("{")
