"""A run that gets a signal saves first and resumes to the same weights; meanwhile its folder is locked."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pretask.cli import main
from pretask.train import checkpoint, run, trainer

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
def test_terminated_run_saves_first_and_resumes_exactly(number, code, tmp_path, whole):
    going = started(tmp_path / "run")
    before = saved(tmp_path / "run")
    going.send_signal(number)
    _, err = going.communicate(timeout=60)
    assert going.returncode == code
    assert "which is saved; resume with: pretask pretrain --resume" in err.splitlines()[-1]
    assert before < saved(tmp_path / "run") < STEPS
    assert not (tmp_path / "run" / run.DONE).exists()
    after = resumed(tmp_path / "run")
    assert all(torch.equal(after[name], x) for name, x in whole.items())


def test_sigusr1_saves_and_the_run_continues(tmp_path, whole):
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
    going = started(tmp_path / "run", "--devices", "2", "--accelerator", "cpu")
    going.send_signal(signal.SIGTERM)
    _, err = going.communicate(timeout=120)
    assert going.returncode == 143, err
    assert err.count("which is saved") == 1
    assert saved(tmp_path / "run") < STEPS


def test_folder_is_locked_by_one_run_and_released_after_a_kill(tmp_path):
    going, again = started(tmp_path / "run", steps=10**5), [*COMMAND, "--resume", str(tmp_path / "run")]
    second = subprocess.run(again, capture_output=True, text=True, timeout=120)
    assert second.returncode == 2
    assert f"in use by another process (process {going.pid} on " in second.stderr
    going.kill()
    going.wait()
    subprocess.run([*again, "--steps", "20"], check=True, capture_output=True)
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
