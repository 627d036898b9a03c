"""A run that is asked to end saves first, and goes on to the same weights; nobody else writes to its folder meanwhile."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pretask.cli import main as cli
from pretask.runtime import files as checkpoint
from pretask.train import run
from pretask.train import trainer as loop

STEPS = 400
COMMAND = (sys.executable, "-m", "pretask", "pretrain")
FLAGS = ("simclr", "--data", "synthetic:64:16", "--encoder", "resnet_small:width=4", "--batch", "16",
         "--precision", "32-true")  # fmt: skip


def started(out: Path, *more: str, steps: int = STEPS) -> subprocess.Popen:
    words = [*COMMAND, *FLAGS, "--steps", str(steps), "--out", str(out), *more]
    going = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for(out / run.LOG, going)
    return going


def wait_for(path: Path, going: subprocess.Popen) -> None:
    for _ in range(1200):
        if path.exists() and path.stat().st_size:
            return
        assert going.poll() is None, going.stderr and going.stderr.read()
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def saved(out: Path) -> int:
    return checkpoint.load(out / checkpoint.LATEST)["step"]


def resumed(out: Path) -> dict[str, torch.Tensor]:
    subprocess.run([*COMMAND, "--resume", str(out)], check=True, capture_output=True)
    return run.Run(out).encoder.net.state_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("whole") / "run"
    words = [*COMMAND, *FLAGS, "--steps", str(STEPS), "--out", str(out)]
    subprocess.run(words, check=True, capture_output=True)
    return run.Run(out).encoder.net.state_dict()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_end_saves_first_and_loses_nothing(number, code, tmp_path, whole):
    going = started(tmp_path / "run")
    before = saved(tmp_path / "run")
    going.send_signal(number)
    _, told = going.communicate(timeout=60)
    assert going.returncode == code
    assert "which is saved; go on with: pretask pretrain --resume" in told.splitlines()[-1]
    assert before < saved(tmp_path / "run") < STEPS
    assert not (tmp_path / "run" / run.DONE).exists()
    after = resumed(tmp_path / "run")
    assert all(torch.equal(after[name], x) for name, x in whole.items())


def test_a_warning_saves_and_the_run_goes_on(tmp_path, whole):
    going = started(tmp_path / "run")
    before = saved(tmp_path / "run")
    going.send_signal(signal.SIGUSR1)
    for _ in range(600):
        if saved(tmp_path / "run") > before:
            break
        time.sleep(0.05)
    assert before < saved(tmp_path / "run")
    going.communicate(timeout=120)
    assert going.returncode == 0
    after = run.Run(tmp_path / "run").encoder.net.state_dict()
    assert all(torch.equal(after[name], x) for name, x in whole.items())


def test_a_second_interrupt_ends_at_once():
    script = (
        "import os, signal, time\n"
        "from pretask import signals\n"
        "with signals.heard() as ears:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(ears.asked == signals.INTERRUPT, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n" and "KeyboardInterrupt" in done.stderr
    assert "Ctrl-C once more ends at once" in done.stderr


def test_where_one_of_two_processes_is_told_both_save_the_same_step(tmp_path):
    going = started(tmp_path / "run", "--devices", "2", "--accelerator", "cpu")
    going.send_signal(signal.SIGTERM)
    _, told = going.communicate(timeout=120)
    assert going.returncode == 143, told
    assert told.count("which is saved") == 1
    assert saved(tmp_path / "run") < STEPS


def test_a_folder_belongs_to_one_run_at_a_time_and_is_free_again_after_a_kill(tmp_path):
    going, again = started(tmp_path / "run", steps=10**6), [*COMMAND, "--resume", str(tmp_path / "run")]
    second = subprocess.run(again, capture_output=True, text=True, timeout=120)
    assert second.returncode == 2
    assert f"in use by another process (process {going.pid} on " in second.stderr
    going.kill()
    going.wait()
    subprocess.run([*again, "--steps", "20"], check=True, capture_output=True)
    assert (tmp_path / "run" / run.DONE).exists()


@pytest.mark.parametrize("asked", ["torch.empty(2**44)", "bytearray(2**54)"])
def test_memory_that_is_not_there_is_one_line(asked, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(loop.Trainer, "step", lambda *_: eval(asked))
    words = [*FLAGS, "--steps", "4", "--out", str(tmp_path / "run")]
    assert cli.main(["pretrain", *words]) == 2
    told = capfd.readouterr().err.splitlines()
    assert told[-1].startswith("pretask: out of memory (") and "give a smaller --batch" in told[-1]
    assert (tmp_path / "run" / checkpoint.LATEST).exists()


def test_processes_that_cannot_share_a_batch_are_never_started(tmp_path, capfd):
    words = [
        *FLAGS,
        "--steps",
        "4",
        "--devices",
        "64",
        "--accelerator",
        "cpu",
        "--out",
        str(tmp_path / "run"),
    ]
    assert cli.main(["pretrain", *words]) == 2
    assert "a batch of 16 cannot be shared by 64 processes evenly" in capfd.readouterr().err
