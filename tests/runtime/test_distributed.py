"""Two processes, started as users do: they draw the same puzzles as one process and end with the same weights."""

import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import torchrun
from torch.distributed import DistBackendError
from torch.testing import assert_close

from pretask.cli.main import main
from pretask.runtime import distributed, files
from pretask.train import checkpoint, run, trainer
from pretask.types import Batch, Progress, UserError

WORDS = [
    "pretrain", "simclr", "--data", "synthetic:64:16", "--steps", "6", "--batch", "16", "--encoder",
    "resnet_small:width=8", "--optimizer", "sgd", "--lr", "0.02", "--accelerator", "cpu", "--precision",
    "32-true", "--out",
]  # fmt: skip
TWO = ["--devices", "2"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pretask"]

HOSTILE = """
import atexit, os, sys, time
from pretask import __main__
from pretask.runtime import distributed
from pretask.train import trainer
from pretask.types import UserError

atexit.register(os.abort)  # as unfinished communication threads do
plain, main, _exit = trainer.Trainer.step, __main__.main, os._exit

def delayed(words, since):
    code = main(words, since)
    if sys.argv[1] == "undisturbed" and distributed.rank() == 0:
        time.sleep(2)
        print("the first is done", file=sys.stderr, flush=True)
    return code

def reported(code):
    print(f"process {distributed.rank()} leaves", file=sys.stderr, flush=True)
    _exit(code)

def step(self, batch, progress):
    if progress.step == 0:
        weights = list(self.method.parameters())
        held = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in weights)
        print(f"each holds {held / sum(p.numel() for p in weights):.2f}", file=sys.stderr)
    if progress.step == 4 and sys.argv[1] == "mistaken" and distributed.rank() == 1:
        raise UserError("an error in the second process")
    return plain(self, batch, progress)

trainer.Trainer.step, __main__.main, os._exit = step, delayed, reported
__main__.run(sys.argv[2:])
"""


def python(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run to the end. A hang is a failure and leaves no process behind."""
    started = subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        start_new_session=True,
    )
    try:
        out, err = started.communicate(timeout=300)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, 9)
            started.wait()
    return subprocess.CompletedProcess(words, started.returncode, out, err)


def die_in_step_4() -> None:
    """This process is to die there, after a checkpoint."""
    plain, trainer.SAVE_EVERY = trainer.Trainer.step, 0.0

    def step(self: trainer.Trainer, batch: Batch, progress: Progress) -> Any:
        if progress.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, batch, progress)

    trainer.Trainer.step = step


def killed(folder: Path, *words: str | Path) -> None:
    """Two processes, whose run dies in step 4."""
    first, second = torchrun(folder, *words, first=die_in_step_4)
    assert first.wait() == -signal.SIGKILL, first.err
    second.wait()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / checkpoint.LATEST)["method"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    ended = python("-m", "pretask", *WORDS, folder, *TWO)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("step 6/6") == 1, "only one process prints"
    assert "Warning" not in ended.stderr
    return folder


def test_two_processes_end_with_the_weights_of_one(two: Path, tmp_path: Path):
    assert main([*WORDS, str(tmp_path / "one")]) == 0
    one, both = weights(tmp_path / "one"), weights(two)
    for key, value in one.items():
        assert_close(both[key].float(), value.float(), atol=3e-4, rtol=3e-3, msg=lambda m, k=key: f"{k}: {m}")
    losses = [[row["loss"] for row in files.read_rows(at / run.LOG)] for at in (tmp_path / "one", two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3), "log rows are means over processes"
    assert run.load(two).card["processes"] == 2


def test_killed_run_resumed_by_torchrun_ends_with_the_same_weights(two: Path, tmp_path: Path):
    folder = tmp_path / "run"
    killed(tmp_path, *WORDS, folder, *TWO)
    assert checkpoint.load(folder / checkpoint.LATEST)["step"] == 4
    ended = python(*TORCHRUN, "pretrain", "--resume", folder)
    assert ended.returncode == 0, ended.stderr
    assert all(torch.equal(value, weights(two)[key]) for key, value in weights(folder).items())


def test_fsdp_ends_with_the_weights_of_ddp_killed_or_not(two: Path, tmp_path: Path):
    script, undisturbed, cut = tmp_path / "hostile.py", tmp_path / "undisturbed", tmp_path / "cut"
    script.write_text(HOSTILE)
    ended = python(script, "undisturbed", *WORDS, undisturbed, *TWO, "--strategy", "fsdp")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("each holds 0.5") == 2
    first, second = ended.stderr.split("the first is done")
    assert "leaves" not in first and second.count("leaves") == 2, "no process exits before all are done"
    for key, value in weights(two).items():
        assert_close(weights(undisturbed)[key], value, atol=1e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    killed(tmp_path, *WORDS, cut, *TWO, "--strategy", "fsdp")
    assert checkpoint.load(cut / checkpoint.LATEST)["step"] == 4
    resumed = torchrun(tmp_path, "pretrain", "--resume", cut)
    assert [process.wait() for process in resumed] == [0, 0], resumed[0].err
    assert all(torch.equal(value, weights(undisturbed)[key]) for key, value in weights(cut).items())
    assert run.load(cut).encoder.net.state_dict().keys() == run.load(two).encoder.net.state_dict().keys()


HALVED = """
import torch
from pretask.methods import rotnet

class Halved(rotnet.RotNet):
    def begin(self, context):
        with torch.no_grad():
            for weight in self.parameters():
                weight.mul_(0.5)

class Config(rotnet.Config):
    def build(self, encoder, source):
        return Halved(self, encoder)
"""


@pytest.mark.parametrize(
    ("method", "encoder"),
    [
        ("neighbourhood_discovery", "resnet_small:width=8"),
        ("sdae", "mlp:width=16"),
        ("halved.py", "nin3:width=12"),
    ],
)
def test_methods_that_use_the_encoder_between_steps_work_with_fsdp(method: str, encoder: str, tmp_path: Path):
    (tmp_path / "halved.py").write_text(HALVED)
    words = ["pretrain", str(tmp_path / method) if method.endswith(".py") else method, *WORDS[2:]]
    words[words.index("--encoder") + 1] = encoder
    started = torchrun(tmp_path, *words, tmp_path / "two", *TWO, "--strategy", "fsdp")
    assert [process.wait() for process in started] == [0, 0], started[0].err
    assert run.load(tmp_path / "two").card["processes"] == 2
    assert main([*words, str(tmp_path / "one")]) == 0
    one, both = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in one.items():
        assert_close(both[key].float(), value.float(), atol=3e-4, rtol=3e-3, msg=lambda m, k=key: f"{k}: {m}")


def test_fsdp_needs_two_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*WORDS, str(tmp_path / "run"), "--strategy", "fsdp"]) == 2
    assert "--devices 2" in capsys.readouterr().err


def test_user_error_in_one_process_ends_both(tmp_path: Path):
    script = tmp_path / "hostile.py"
    script.write_text(HOSTILE)
    ended = python(script, "mistaken", *WORDS, tmp_path / "run", *TWO)
    assert ended.returncode == 2
    assert "pretask: an error in the second process" in ended.stderr
    assert "Traceback" not in ended.stderr


def left(rank: int, how: str, place: str, said: Path) -> None:
    """One of two processes: the first, which holds the store, ends, and the second writes what it reports."""
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    x = torch.ones(10)
    dist.all_reduce(x)
    if rank == 0:
        time.sleep(0.5)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    try:
        with distributed.report_lost_peer():
            if how == "with its store":
                dist.new_group(backend="gloo")
            while True:
                dist.all_reduce(x)
    except UserError as mistake:
        said.write_text(f"{type(mistake.__context__).__name__} {mistake}")
    os._exit(0)


@pytest.mark.parametrize(
    ("how", "error"),
    [("killed", "RuntimeError"), ("ended", "RuntimeError"), ("with its store", "DistNetworkError")],
)
def test_a_lost_process_is_recognized_by_the_errors_of_gloo_and_the_store(
    how: str, error: str, tmp_path: Path
):
    """The process that waits reports it in one line."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    said = tmp_path / "said"
    both = [get_context("fork").Process(target=left, args=(k, how, place, said)) for k in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        process.kill()
    assert said.read_text() == f"{error} process 1 lost another process, whose error is printed above"


@pytest.mark.parametrize(
    "error", [RuntimeError("a mistake in a connection"), DistBackendError("ncclInvalidUsage")]
)
def test_other_errors_do_not_count_as_a_lost_process(error: RuntimeError):
    assert not distributed.lost_peer(error)
    assert distributed.lost_peer(
        DistBackendError("ncclRemoteError: A call failed possibly due to a network error")
    )
