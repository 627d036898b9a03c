"""A run that gets a signal saves first and resumes to the same weights; meanwhile its folder is locked."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import Forked, wait_for

from pretask.cli import main
from pretask.train import checkpoint, run, trainer

STEPS = 200
"""enough that a signal after the first row of the log comes in time"""
FLAGS = ("simclr", "--data", "synthetic:64:16", "--encoder", "resnet_small:width=4", "--batch", "16",
         "--precision", "32-true")  # fmt: skip


def started(out: Path, *more: str, steps: int = STEPS) -> Forked:
    words = ("pretrain", *FLAGS, "--steps", steps, "--out", out, *more)
    going = Forked(out.parent / "printed.txt", *words)
    wait_for(out / run.LOG, going)
    return going


def saved(out: Path) -> int:
    return checkpoint.load(out / checkpoint.LATEST)["step"]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return run.Run(out).encoder.net.state_dict()


def resumed(out: Path) -> dict[str, torch.Tensor]:
    assert main.main(["pretrain", "--resume", str(out)]) == 0
    return weights(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main.main(["pretrain", *FLAGS, "--steps", str(STEPS), "--out", str(out)]) == 0
    return weights(out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_terminated_run_saves_first_and_resumes_exactly(number, code, tmp_path, whole):
    going = started(tmp_path / "run")
    before = saved(tmp_path / "run")
    going.send_signal(number)
    assert going.wait() == code
    assert "which is saved; resume with: pretask pretrain --resume" in going.err.splitlines()[-1]
    assert before < saved(tmp_path / "run") < STEPS
    assert not (tmp_path / "run" / run.DONE).exists()
    after = resumed(tmp_path / "run")
    assert all(torch.equal(after[name], x) for name, x in whole.items())


def test_sigusr1_saves_and_the_run_continues(tmp_path, whole):
    going = started(tmp_path / "run")
    before = saved(tmp_path / "run")
    going.send_signal(signal.SIGUSR1)
    for _ in range(3000):
        if (now := saved(tmp_path / "run")) > before:
            break
        time.sleep(0.01)
    assert before < now < STEPS, "saved on request, not at the end"
    assert going.wait() == 0
    after = weights(tmp_path / "run")
    assert all(torch.equal(after[name], x) for name, x in whole.items())


def test_second_interrupt_exits_at_once():
    script = (
        "import os, signal, time\n"
        "from pretask.runtime import signals\n"
        "with signals.catch_signals() as requests:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(requests.pending == signals.INTERRUPT, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n" and "KeyboardInterrupt" in done.stderr
    assert "press Ctrl-C again to exit immediately" in done.stderr


def test_signal_to_one_of_two_processes_saves_the_same_step_in_both(tmp_path):
    """Started as users do: the second process is a copy of the command."""
    out = tmp_path / "run"
    words = (*FLAGS, "--steps", str(STEPS), "--out", str(out), "--devices", "2", "--accelerator", "cpu")
    command = [sys.executable, "-m", "pretask", "pretrain", *words]
    going = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for(out / run.LOG, going)
    going.send_signal(signal.SIGTERM)
    _, err = going.communicate(timeout=120)
    assert going.returncode == 143, err
    assert err.count("which is saved") == 1
    assert saved(out) < STEPS


def test_folder_is_locked_by_one_run_and_released_after_a_kill(tmp_path, capfd):
    going, again = started(tmp_path / "run", steps=10**5), ["pretrain", "--resume", str(tmp_path / "run")]
    assert main.main(again) == 2
    assert f"in use by another process (process {going.pid} on " in capfd.readouterr().err
    going.send_signal(signal.SIGKILL)
    going.wait()
    assert main.main([*again, "--steps", "20"]) == 0
    assert (tmp_path / "run" / run.DONE).exists()


@pytest.mark.parametrize("allocate", ["torch.empty(2**44)", "bytearray(2**54)"])
def test_out_of_memory_is_one_line(allocate, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(trainer.Trainer, "step", lambda *_: eval(allocate))
    words = [*FLAGS, "--steps", "4", "--out", str(tmp_path / "run")]
    assert main.main(["pretrain", *words]) == 2
    err = capfd.readouterr().err.splitlines()
    assert err[-1].startswith("pretask: out of memory (") and "give a smaller --batch" in err[-1]
    assert (tmp_path / "run" / checkpoint.LATEST).exists()


def test_batch_that_processes_do_not_divide_is_refused_before_launch(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("lightning_fabric.Fabric.launch", lambda self: pytest.fail("processes were launched"))
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
    assert main.main(["pretrain", *words]) == 2
    assert "a batch of 16 cannot be split evenly among 64 processes" in capfd.readouterr().err
