"""Two processes, started as a user starts them: they draw the puzzles of one, and end where it does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from pretask.cli.main import main
from pretask.runtime import files as checkpoint
from pretask.train import run

WORDS = [
    "pretrain", "simclr", "--data", "synthetic:64:16", "--steps", "6", "--batch", "16", "--encoder",
    "resnet_small:width=8", "--optimizer", "sgd", "--lr", "0.02", "--accelerator", "cpu", "--precision",
    "32-true", "--out",
]  # fmt: skip
TWO = ["--devices", "2"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pretask"]

HOSTILE = """
import atexit, os, signal, sys, time
from pretask import __main__, distributed, loop
from pretask.types import UserError

atexit.register(os.abort)  # as threads do that are not done with a message
loop.SAVE_EVERY = 0.0  # a checkpoint after every row
plain, main, leave = loop.Trainer.step, __main__.main, os._exit

def slowly(words, since):
    code = main(words, since)
    if sys.argv[1] == "calm" and distributed.rank() == 0:
        time.sleep(2)
        print("the first is done", file=sys.stderr, flush=True)
    return code

def told(code):
    print(f"process {distributed.rank()} leaves", file=sys.stderr, flush=True)
    leave(code)

def step(self, batch, progress):
    if progress.step == 0:
        weights = list(self.method.parameters())
        held = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in weights)
        print(f"each holds {held / sum(p.numel() for p in weights):.2f}", file=sys.stderr)
    if progress.step == 4 and sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if progress.step == 4 and sys.argv[1] == "mistaken" and distributed.rank() == 1:
        raise UserError("the second process has something to say")
    return plain(self, batch, progress)

loop.Trainer.step, __main__.main, os._exit = step, slowly, told
__main__.run(sys.argv[2:])
"""


def python(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run to the end; a hang is a failure, and leaves no process behind."""
    started = subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        start_new_session=True,
    )
    try:
        out, told = started.communicate(timeout=120)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, 9)
            started.wait()
    return subprocess.CompletedProcess(words, started.returncode, out, told)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / checkpoint.LATEST)["method"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nobody disturbed."""
    folder = tmp_path_factory.mktemp("two") / "run"
    ended = python("-m", "pretask", *WORDS, folder, *TWO)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("step 6/6") == 1, "one process speaks for both"
    assert "Warning" not in ended.stderr
    return folder


def test_two_processes_end_where_one_does(two: Path, tmp_path: Path):
    assert main([*WORDS, str(tmp_path / "one")]) == 0
    one, both = weights(tmp_path / "one"), weights(two)
    for key, value in one.items():
        assert_close(both[key].float(), value.float(), atol=3e-4, rtol=3e-3, msg=lambda m, k=key: f"{k}: {m}")
    losses = [[row["loss"] for row in run.read(at / run.LOG)] for at in (tmp_path / "one", two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3), "the log tells the mean over processes"
    assert run.load(two).card["processes"] == 2


def test_both_killed_and_resumed_by_torchrun_end_with_the_same_weights(two: Path, tmp_path: Path):
    script, folder = tmp_path / "hostile.py", tmp_path / "run"
    script.write_text(HOSTILE)
    assert python(script, "killed", *WORDS, folder, *TWO).returncode == -9
    assert checkpoint.load(folder / checkpoint.LATEST)["step"] == 4
    ended = python(*TORCHRUN, "pretrain", "--resume", folder)
    assert ended.returncode == 0, ended.stderr
    assert all(torch.equal(value, weights(two)[key]) for key, value in weights(folder).items())


def test_weights_that_are_shared_out_end_where_whole_ones_do_killed_or_not(two: Path, tmp_path: Path):
    script, calm, cut = tmp_path / "hostile.py", tmp_path / "calm", tmp_path / "cut"
    script.write_text(HOSTILE)
    ended = python(script, "calm", *WORDS, calm, *TWO, "--strategy", "fsdp")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("each holds 0.5") == 2
    first, second = ended.stderr.split("the first is done")
    assert "leaves" not in first and second.count("leaves") == 2, "nobody leaves before all are done"
    for key, value in weights(two).items():
        assert_close(weights(calm)[key], value, atol=1e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    assert python(script, "killed", *WORDS, cut, *TWO, "--strategy", "fsdp").returncode == -9
    ended = python(*TORCHRUN, "pretrain", "--resume", cut)
    assert ended.returncode == 0, ended.stderr
    assert all(torch.equal(value, weights(calm)[key]) for key, value in weights(cut).items())
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
def test_methods_that_use_the_encoder_between_steps_may_share_it_out(
    method: str, encoder: str, tmp_path: Path
):
    (tmp_path / "halved.py").write_text(HALVED)
    words = ["pretrain", str(tmp_path / method) if method.endswith(".py") else method, *WORDS[2:]]
    words[words.index("--encoder") + 1] = encoder
    ended = python("-m", "pretask", *words, tmp_path / "two", *TWO, "--strategy", "fsdp")
    assert ended.returncode == 0, ended.stderr
    assert main([*words, str(tmp_path / "one")]) == 0
    one, both = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in one.items():
        assert_close(both[key].float(), value.float(), atol=3e-4, rtol=3e-3, msg=lambda m, k=key: f"{k}: {m}")


def test_one_process_has_nobody_to_share_a_network_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*WORDS, str(tmp_path / "run"), "--strategy", "fsdp"]) == 2
    assert "--devices 2" in capsys.readouterr().err


def test_a_mistake_in_one_process_ends_both(tmp_path: Path):
    script = tmp_path / "hostile.py"
    script.write_text(HOSTILE)
    ended = python(script, "mistaken", *WORDS, tmp_path / "run", *TWO)
    assert ended.returncode == 2
    assert "pretask: the second process has something to say" in ended.stderr
    assert "Traceback" not in ended.stderr
