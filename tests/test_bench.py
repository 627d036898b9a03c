"""Every benchmark runs from end to end on small inputs and reports its measurements; no test depends on their size."""

import importlib
import json
import math
import runpy
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from PIL import Image
from safetensors.torch import save_file

from pretask import methods
from pretask.data import annotated
from pretask.data.ledger import Ledger

BENCH = Path(__file__).parents[1] / "bench"
SMALL = [
    "--data",
    "synthetic:32",
    "--batch",
    "8",
    "--steps",
    "2",
    "--rounds",
    "1",
    "--encoder",
    "resnet_small",
]
PROBES = [
    "--no-commands",
    "--data",
    "synthetic:64",
    "--test",
    "synthetic:32",
    "--encoder",
    "mlp:width=16",
    "--epochs",
    "1",
]


class Bench:
    """Runs a benchmark in this process, as the command line would, and keeps what it prints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.syspath_prepend(str(BENCH))

    def page(self, name: str, *arguments: str) -> str:
        self.monkeypatch.setattr(sys, "argv", [f"bench/{name}.py", *arguments])
        runpy.run_path(str(BENCH / f"{name}.py"), run_name="__main__")
        return self.capsys.readouterr().out

    def measure(self, name: str, *arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        return parse(self.page(name, *arguments, "--json"))

    def measure_changed(self, changed: Any, *arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The same for a benchmark that is imported and was changed."""
        self.monkeypatch.setattr(sys, "argv", [f"bench/{changed.__name__}.py", *arguments, "--json"])
        changed.main()
        return parse(self.capsys.readouterr().out)


class Going(Forked):
    """A fork in place of a process that a benchmark starts, which would import everything again."""

    def __enter__(self) -> "Going":
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def returncode(self) -> int | None:
        return self.poll()

    @property
    def stderr(self) -> list[str]:
        return self.err.splitlines()

    def communicate(self) -> tuple[str, str]:
        self.wait()
        return "", self.err


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(monkeypatch, capsys)


def parse(page: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What --json prints, which must be all that is printed: the numbers and the goals."""
    found = json.loads(page)
    for goal in found["goals"]:
        assert math.isfinite(goal["value"])
        assert goal["met"] == (
            goal["value"] < goal["limit"] if goal["less"] else goal["value"] >= goal["limit"]
        )
    return found["numbers"], found["goals"]


def test_throughput_from_memory(bench: Bench):
    pytest.importorskip("lightly")
    numbers, (own, peer) = bench.measure("throughput", *SMALL)
    assert list(numbers) == ["ours, images/s", "arithmetic, images/s", "LightlySSL, images/s"]
    ours, limit, reference = (
        numbers.values()
    )  # of a single round, so that its ratios are those of the medians
    assert own["value"] == pytest.approx(100 * ours / limit) and own["limit"] == 95
    assert peer["value"] == pytest.approx(ours / reference) and peer["limit"] == 1.4


def test_throughput_from_files_is_held_to_the_slower_of_decoding_and_arithmetic(bench: Bench):
    pytest.importorskip("lightly")
    numbers, (own, peer) = bench.measure("throughput", *SMALL, "--size", "96", "--folder")
    slower = min(numbers["arithmetic, images/s"], numbers["decoding, images/s"])
    assert own["value"] == pytest.approx(100 * numbers["ours, images/s"] / slower) and own["limit"] == 90
    assert peer["limit"] == 2.1


def test_evaluation_against_the_classic_probe(bench: Bench):
    numbers, (faster,) = bench.measure("evaluate", *PROBES)
    assert numbers["images"] == "64 + 32" and numbers["stage"] in ("layer1", "layer2", "layer3", "pool")
    assert numbers["classic probe, s"] == pytest.approx(90 * numbers["classic probe, s per epoch"])
    assert faster["value"] == pytest.approx(numbers["classic probe, s"] / numbers["ours, s"])
    assert all(
        0 <= numbers[f"{name}, %"] <= 100 for name in ("kNN", "linear", "classic probe after 1 epochs")
    )


def test_whole_commands_are_timed_in_units_of_matrix_products(bench: Bench):
    evaluate = importlib.import_module("evaluate")
    bench.monkeypatch.setattr(evaluate, "COMMANDS", [evaluate.Command(40, 20, 16, 5.0)])
    bench.monkeypatch.setattr(evaluate, "SIDE", 64)
    cost = cache(lambda words, tree, real=evaluate.cost: real([*words], tree))
    bench.monkeypatch.setattr(evaluate, "cost", lambda words, tree: cost(tuple(words), tree))  # no warming up
    numbers, goals = evaluate.whole_commands(None)
    name = "40 + 20 images of 16 px"
    assert numbers[f"{name}, peak MB"] > 100
    assert goals[0].value == pytest.approx(numbers[f"{name}, s"] / numbers["ten products, s"])


def test_growth_is_drawn(bench: Bench, tmp_path: Path):
    small = ["--images", "40", "80", "--features", "16", "32", "--out", str(tmp_path / "growth.svg")]
    numbers, goals = bench.measure("growth", *small)
    assert "80 images: kNN, s" in numbers and "32 features: few labels, s" in numbers
    assert len(goals) == 2 and "<svg" in (tmp_path / "growth.svg").read_text()


def test_the_whole_classic_probe_is_compared_in_accuracy(bench: Bench):
    numbers, (_, accuracy) = bench.measure("evaluate", *PROBES, "--full")
    assert accuracy["value"] == numbers["linear, %"] - numbers["classic probe after 90 epochs, %"]


def test_startup_and_memory():
    small = ["--files", "400", "--steps", "2", "--repeats", "1"]
    command = [sys.executable, BENCH / "startup.py", *small, "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300
    )  # its children import its main
    assert done.returncode == 0, done.stderr
    numbers, (*_, opening, more) = parse(done.stdout)
    quarter, whole = numbers["peak on a quarter, MB"], numbers["peak on all, MB"]
    assert quarter > 100 and "400 files" in opening["what"]
    assert more["value"] == pytest.approx((whole - quarter) * 1e6 / 300)


def test_the_share_of_the_collapse_monitor_is_its_checks_over_the_run(bench: Bench):
    numbers, (share,) = bench.measure(
        "monitor", "--data", "synthetic:64", "--method", "rotnet", "--steps", "2"
    )
    assert numbers["checks"] >= 2
    assert share["value"] == pytest.approx(
        100 * numbers["checks"] * numbers["seconds per check"] / numbers["run, s"]
    )


def test_a_budget_is_compared_with_the_whole_process_and_not_measured_twice(bench: Bench, tmp_path: Path):
    budget = importlib.import_module("budget")
    started = []

    class Processes:
        PIPE = subprocess.PIPE

        @staticmethod
        def Popen(command: list[str], **known: Any) -> Any:
            started.append(command)
            if command[1:3] == ["-m", "pretask"]:
                return Going(tmp_path / "printed.txt", *command[3:])
            return subprocess.Popen(command, **known)

    bench.monkeypatch.setattr(budget, "subprocess", Processes)
    words = ("--methods", "rotnet", "--loads", "middle", "--data", "synthetic:300:16")
    words += ("--seconds", "6", "--out", str(tmp_path))
    numbers, (off,) = bench.measure_changed(budget, *words)
    took = numbers["rotnet, middle: seconds"]
    assert off["value"] == pytest.approx(100 * abs(took / 6 - 1)) and off["limit"] == 10
    assert numbers["rotnet, middle: steps"] > 3 and 1 <= numbers["rotnet, middle: entries"] <= 20
    assert bench.measure_changed(budget, *words)[0] == numbers and len(started) == 2


FUZZ = ("--images", "20", "--tables", "3", "--shards", "2", "--annotations", "2")


def test_damaged_data_is_used_or_listed(bench: Bench, photos: Path):
    numbers, goals = bench.measure("fuzz", "--data", str(photos), *FUZZ)
    assert numbers["images: used"] == 1 and numbers["tables: used"] + numbers["tables: refused"] == 3
    assert len(goals) == 12 and all(goal["met"] for goal in goals)


def test_crashes_and_records_that_are_lost_are_counted(bench: Bench, photos: Path, monkeypatch):
    def lost(self: Ledger, place: str, why: str) -> str:
        return place

    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("of a library")

    monkeypatch.setattr(Ledger, "skip", lost)
    monkeypatch.setattr(annotated, "load", crash)
    numbers, goals = bench.measure("fuzz", "--data", str(photos), *FUZZ, "--images", "40")
    found = {goal["what"]: goal["value"] for goal in goals}
    assert found["annotations: crash"] == 2 and "of a library" in numbers["annotations 0: crash"]
    assert found["images: unaccounted"] + found["images: crash"] == 2


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(3):
        Image.linear_gradient("L").rotate(30 * i).save(tmp_path / f"{i}.png")
    return tmp_path


def test_without_json_a_table_names_the_goals(bench: Bench):
    page = bench.page("evaluate", *PROBES)
    assert "ours of the classic probe" in page and "≥ 30 x" in page


@pytest.mark.parametrize(
    "name",
    [
        "throughput",
        "evaluate",
        "growth",
        "startup",
        "monitor",
        "puzzles",
        "seeds",
        "lab",
        "cluster",
        "budget",
        "kills",
        "fuzz",
        "lookup",
        "explorer",
    ],
)
def test_the_help_explains_what_is_measured(bench: Bench, name: str):
    with pytest.raises(SystemExit) as end:
        bench.page(name, "--help")
    page = bench.capsys.readouterr().out
    assert not end.value.code
    assert f"python bench/{name}.py" in page and "--json" in page


def test_images_that_are_sorted_come_again_where_there_are_too_few(bench):
    numbers, goals = bench.measure("cluster", "--data", "synthetic:60:16", "--images", "80")
    assert numbers["images"] == 80 and 0 <= numbers["NMI, %"] <= 100
    assert [goal["limit"] for goal in goals] == [10, 4]


def test_an_index_is_held_to_exact_search(bench):
    pytest.importorskip("faiss")
    few = ("--count", "3000", "--width", "16", "--clusters", "20")
    numbers, (recall, *others) = bench.measure("lookup", *few)
    assert numbers["vectors"] == 3000 and 0 < numbers["query, median ms"] <= numbers["query, 95 % ms"]
    assert 0.8 < recall["value"] <= 1 and [goal["limit"] for goal in others] == [30, 50, 4]


def test_frames_of_an_explorer_are_counted(bench):
    _, (frames, slow, paint, page, requests) = bench.measure("explorer", "--images", "500")
    assert frames["value"] > 0 < slow["value"] and paint["value"] > 0 < page["value"]
    assert requests["value"] == 0


def test_what_puzzles_cost_is_a_share_of_a_step(bench):
    for name in ("jigsaw", "damaged_jigsaw", "context_prediction", "exemplar_cnn"):
        kind = methods.recipe(name)
        bench.monkeypatch.setattr(kind, "train", replace(kind.train, batch=18))  # as many images are drawn
    numbers, goals = bench.measure(
        "puzzles", "--encoder", "resnet_small:width=16", "--tiles", "18", "--rounds", "1"
    )
    assert len(goals) == 4
    for goal in goals:
        name = goal["what"].split(":")[0]
        share = numbers[f"{name}: puzzle, ms"] / numbers[f"{name}: step, ms"]
        assert goal["value"] == pytest.approx(100 * share) and share < 1


def test_what_many_classes_cost_is_weights_gradients_and_two_moments_of_each(bench):
    few = ("--encoder", "resnet_small:width=16", "--batch", "8", "--rounds", "1", "--seeds", "64", "640")
    numbers, (share,) = bench.measure("seeds", *few)
    small, large = (numbers[f"{n} seeds: weights, gradients and AdamW, MB"] for n in (64, 640))
    assert large - small == pytest.approx(576 * 513 * 4 * 4 / 1e6)  # a row of 512 and its bias, four times
    assert share["value"] == pytest.approx(numbers["640 seeds: step, ms"] / numbers["64 seeds: step, ms"])


def test_what_lab_costs_is_a_share_of_a_step(bench):
    numbers, (share,) = bench.measure("lab", "--rounds", "1")
    assert share["value"] == pytest.approx(100 * numbers["Lab, ms"] / numbers["step, ms"])


def test_two_kills_lose_no_bit_and_are_not_made_again(bench: Bench, tmp_path: Path):
    kills = importlib.import_module("kills")

    def pretask(*words: str | Path) -> Going:
        def begin() -> None:
            sys.argv = ["pretask", "pretrain", *map(str, words)]
            exec(kills.FREQUENT_CHECKPOINTS, {})  # which ends the process

        return Going(tmp_path / "printed.txt", first=begin)

    bench.monkeypatch.setattr(kills, "pretask", pretask)
    words = ("--kills", "1", "--kinds", "kill", "term-moved", "--steps", "40", "--out", str(tmp_path))
    numbers, goals = bench.measure_changed(kills, *words)
    assert numbers["kill: kills"] == numbers["term-moved: kills"] == 1
    assert [goal["value"] for goal in goals] == [0, 0] and all(goal["met"] for goal in goals)
    (kept,) = tmp_path.glob("*.jsonl")
    kept.write_text(kept.read_text().replace('"bits": 0', '"bits": 7'))
    assert [goal["value"] for goal in bench.measure_changed(kills, *words)[1]] == [7, 7]


def test_every_bit_counts_in_whatever_it_is(bench: Bench):
    bits = importlib.import_module("kills").differing_bits
    one = {
        "step": 3,
        "method": {"w": torch.zeros(4), "n": torch.tensor(1)},
        "records": {"bad": {}, "seen": None},
    }
    other = {
        "step": 3,
        "method": {"w": torch.zeros(4), "n": torch.tensor(1)},
        "records": {"bad": {}, "seen": None},
    }
    assert bits(one, other) == 0
    other["method"]["w"][2] = 2**-126  # one bit of the exponent
    assert bits(one, other) == 1
    assert bits([one], [other, other]) == 1 and bits(one, {**other, "step": 4}) == 2
    assert bits(b"\1\2", b"\0\1") == 3 and bits(b"\1", b"\1\2") > 0
    assert bits(torch.zeros(3), torch.zeros(4)) > 0


def test_what_is_compared_with_another_commit_is_values_and_not_names(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    unchanged = importlib.import_module("unchanged")
    x, found = torch.arange(6.0).view(2, 3), []
    for i, tensors in enumerate(
        ({"a": x, "b": x + 1}, {"net.b": x + 1, "net.a": x}, {"a": x, "b": x + 1.001})
    ):
        (tmp_path / str(i)).mkdir()
        save_file(tensors, tmp_path / str(i) / "encoder.safetensors")
        found.append(unchanged.weights(tmp_path / str(i)))
    assert found[0] == found[1] and unchanged.first_difference(found[0], found[2])
    rows = [
        {"eval": "knn", "value": 1.5, "n": 9},
        {"metric": "kNN", "n": 9, "value": 1.5},
        {"eval": "knn", "value": 1.6, "n": 9},
    ]
    one, renamed, other = (unchanged.scores(json.dumps({"rows": [row]})) for row in rows)
    assert one == renamed and unchanged.first_difference(one, other)
    assert unchanged.first_difference(one, []) and not unchanged.first_difference(one, renamed)
    (swapped,) = unchanged.scores(json.dumps({"rows": [{"metric": "kNN", "n": 1.5, "value": 9}]}))
    assert [swapped] != one, "the same numbers under other keys"
    numbers = {
        "low": 1.0,
        "high": 2.0,
        "n": 9,
        "values": [1.5],
        "chosen": [{"k": 10}],
        "data": "x",
        "seeds": [0],
    }
    then = {"features": "rotnet", "own": True, "eval": "10-shot", "stage": "pool", "value": 1.5, **numbers}
    old = {"schema": 1, "data": {}, "protocol": {}, "rows": [then], "differences": []}
    now = {
        "metric": "few-shot",
        "stage": "pool",
        "shots": 10,
        "name": "rotnet",
        "role": "run",
        "value": 1.5,
        **numbers,
    }
    assert unchanged.scores(json.dumps(old)) == unchanged.scores(json.dumps({"schema": 2, "rows": [now]}))
