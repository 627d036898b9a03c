"""The command line: every command, and one-line messages for user errors."""

import json
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest

from pretask.cli import commands
from pretask.cli.main import main
from pretask.train import run
from pretask.workflows import pretrain as pretraining

FAST = ["--encoder", "resnet_small:width=8", "--batch", "16"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "rotnet"
    words = ["pretrain", "rotnet", "--data", "synthetic:64:16", "--out", str(folder), "--steps", "6", *FAST]
    assert main(words) == 0
    return folder


def test_help_is_fast():
    began = time.perf_counter()
    shown = subprocess.run([sys.executable, "-m", "pretask", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "pretrain METHOD --data PATH" in shown.stdout
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, pretask.cli.main; print('torch' in sys.modules or 'tyro' in sys.modules)",
        ],
        capture_output=True,
        text=True,
    )
    assert loaded.stdout.strip() == "False" and time.perf_counter() - began < 20


@pytest.mark.parametrize(
    "verb", ["evaluate", "embed", "cluster", "colorize", "export", "report", "study", "transfer"]
)
def test_help_of_commands_on_runs_loads_no_torch(verb):
    call = f"import sys; from pretask.cli.main import main; main(['{verb}', '--help'])"
    code = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {call}"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert shown.startswith("usage") and shown.split()[-1] == "False"


def test_a_run_writes_its_files(trained):
    left = {p.name for p in trained.iterdir()}
    assert left >= {
        "run.json", "log.jsonl", "monitor.jsonl", "preview.png", "checkpoint.pt", "encoder.safetensors",
        "encoder.json", "DONE",
    }  # fmt: skip
    card = run.load(trained).card
    assert card["method"] == "rotnet" and card["steps"] == 6


def test_the_command_of_a_run_is_in_its_card(trained):
    assert run.load(trained).card["command"].startswith("pretask pretrain rotnet --data synthetic:64:16")


def test_encoder_and_method_are_loaded_from_the_folder(trained):
    import torch

    loaded = run.load(trained)
    image = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded.encoder(image)["pool"], loaded.method.export()(image)["pool"])


def test_resuming_a_finished_run_changes_nothing(trained):
    before = (trained / "encoder.safetensors").read_bytes()
    assert main(["pretrain", "--resume", str(trained)]) == 0
    assert (trained / "encoder.safetensors").read_bytes() == before


def test_init_starts_from_the_weights_of_a_run(trained, tmp_path, capsys):
    words = [
        "pretrain",
        "simclr",
        "--data",
        "synthetic:64:16",
        "--out",
        str(tmp_path / "r"),
        "--steps",
        "1",
        *FAST,
    ]
    assert main([*words, "--lr", "0", "--init", str(trained)]) == 0
    one, other = (run.load(f).encoder.state_dict() for f in (trained, tmp_path / "r"))
    weights = [k for k in one if k.endswith("weight")]
    assert weights and all((one[k] == other[k]).all() for k in weights)
    wrong = ["--encoder", "resnet_small:width=16", "--init", str(trained), "--out", str(tmp_path / "s")]
    assert main([*words[:4], *wrong, "--batch", "16"]) == 2
    assert "do not fit" in capsys.readouterr().err and not (tmp_path / "s").exists()


def test_a_budget_fixes_the_number_of_steps(tmp_path):
    words = ["pretrain", "rotnet", "--data", "synthetic:64:16", "--out", str(tmp_path / "r"), *FAST]
    assert main([*words, "--budget", "4s"]) == 0
    took = float((tmp_path / "r" / "DONE").read_text().split()[0])
    assert run.load(tmp_path / "r").card["steps"] > 3 and took < 8


def test_the_budget_includes_the_report_and_counts_from_the_start(tmp_path, monkeypatch):
    given, made = {}, str(tmp_path / "made")
    assert (
        main(["pretrain", "rotnet", "--data", "synthetic:64:16", "--steps", "1", "--out", made, *FAST]) == 0
    )

    def pretrain(job, **known):
        given.update(known, began=job.began)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "pretrain", pretrain)
    words = ["pretrain", "rotnet", "--data", "synthetic:64:16", "--budget", "60s"]
    assert main(words, since=12.5) == 130
    assert given["began"] == 12.5 and given["report"] is True
    given.clear()
    before = time.monotonic()
    assert main(["pretrain", "--resume", made, "--budget", "60s"]) == 130
    assert given["began"] >= before and given["report"] is True


def test_report_time_is_estimated_from_the_preparation_time():
    assert pretraining.report_time(ready=12.0, opening=2.0, budget=None) == 7.0
    assert pretraining.report_time(ready=12.0, opening=2.0, budget=30.0) == 5.0


def test_list_names_every_method_and_recipe(capsys):
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"rotnet", "rotnet:paper", "simclr", "sdae", "neighbourhood_discovery"} <= {
        r["method"] for r in rows
    }
    assert all(r["asks"].endswith(".") for r in rows)
    assert main(["list"]) == 0 and "rotnet" in capsys.readouterr().out


def test_preview_check_prepare_and_report_succeed(trained, tmp_path, capsys):
    drawn = tmp_path / "new" / "p.png"
    assert main(["preview", "simclr", "--data", "synthetic:64:16", "--out", str(drawn)]) == 0
    assert drawn.stat().st_size > 1000
    assert main(["check", "rotnet", "--data", "synthetic:32:16", "--encoder", "resnet_small:width=8"]) == 0
    assert "passed all checks" in capsys.readouterr().err
    assert main(["prepare", "synthetic:32:16", "--out", str(tmp_path / "store")]) == 0
    assert main(["report", str(trained)]) == 0
    assert "<html" in (trained / "report.html").read_text()


MISTAKES = {
    "verb": (["pretrian"], "did you mean pretrain"),
    "method": (["pretrain", "rotnt", "--data", "synthetic"], "did you mean rotnet"),
    "recipe": (
        ["pretrain", "rotnet:papr", "--data", "synthetic"],
        "no recipe 'papr'; there are default, paper",
    ),
    "flag": (["pretrain", "rotnet", "--data", "synthetic", "--epoch", "3"], "did you mean --epochs"),
    "value": (["pretrain", "rotnet", "--data", "synthetic", "--lr", "fast"], "'fast' is not a number"),
    "no data": (["pretrain", "rotnet"], "missing: --data"),
    "flag for data": (["pretrain", "rotnet", "--dta", "synthetic"], "; unrecognized: --dta synthetic;"),
    "path": (["pretrain", "rotnet", "--data", "no/such/folder"], "neither a file or folder"),
    "picture": (
        ["preview", "rotnet", "--data", "synthetic:8:16", "--out", "drawn.pgn"],
        "not an image format",
    ),
    "encoder": (
        ["pretrain", "rotnet", "--data", "synthetic:64:16", "--encoder", "resnt18"],
        "did you mean resnet18",
    ),
    "budget": (
        ["pretrain", "rotnet", "--data", "synthetic:64:16", "--budget", "soon"],
        "write 90s, 10m or 2h",
    ),
    "batch": (["pretrain", "rotnet", "--data", "synthetic:64:16", "--batch", "100"], "fewer than one batch"),
    "run": (["pretrain", "--resume", "no/such/run"], "is not a run"),
    "resume nothing": (["pretrain", "--resume"], "needs the folder of a run"),
    "own file": (["pretrain", "./no_such.py", "--data", "synthetic"], "no method file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_user_errors_are_one_line_with_exit_code_2_and_leave_no_files(mistake, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, hint = MISTAKES[mistake]
    assert main(words) == 2
    err = capsys.readouterr().err.strip()
    assert hint in err and len(err.splitlines()) == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_an_existing_out_folder_is_refused(trained, capsys):
    words = ["pretrain", "rotnet", "--data", "synthetic:64:16", "--out", str(trained), "--steps", "1"]
    assert main(words) == 2 and "continue it: pretask pretrain --resume" in capsys.readouterr().err


def test_an_empty_image_folder_is_a_user_error(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    assert main(["pretrain", "rotnet", "--data", str(tmp_path / "photos")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_shuffled_or_missing_labels_give_the_same_weights(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(40) % 4
    for name, more in {
        "with": {"labels": labels},
        "shuffled": {"labels": labels[::-1]},
        "without": {},
    }.items():
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "x.npz", images=images, **more)
        words = ["neighbourhood_discovery", "--data", str(tmp_path / name / "x.npz"), "--steps", "5"]
        out = tmp_path / name / "run"
        with monkeypatch.context() as patch:
            patch.setattr("pretask.reports.report.report", lambda *_, **__: None)  # which takes seconds
            assert main(["pretrain", *words, "--out", str(out), *FAST]) == 0
    weights = [
        (tmp_path / n / "run" / "encoder.safetensors").read_bytes() for n in ("with", "shuffled", "without")
    ]
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.parametrize("verb", commands.names())
def test_help_shows_no_none(verb, capsys):
    with suppress(SystemExit):
        main([verb, "rotnet" if verb in ("pretrain", "preview", "check", "audit") else "x", "--help"])
    shown = capsys.readouterr().out
    assert "usage" in shown and "None" not in shown


def test_the_error_for_an_invalid_value_names_the_expected_type(trained, capsys):
    assert main(["embed", str(trained), "--data", "synthetic:8:16", "--range", "1"]) == 2
    assert "--range got '1', expected FLOAT FLOAT" in capsys.readouterr().err
