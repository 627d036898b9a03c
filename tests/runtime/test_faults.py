"""System failures end with one line and an exit code, leave no partial files, and keep existing ones."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import moving
import pytest
import torch
from forked import Forked
from PIL import Image
from small import quick_scores

from pretask import api, data, methods
from pretask.cli import main
from pretask.encoders.readout import Readout
from pretask.errors import UserError, out_of_memory
from pretask.evals import finetune
from pretask.methods.rotnet import RotNet
from pretask.train import checkpoint
from pretask.types import Loss
from pretask.workflows import embed

ENCODER = ["--encoder", "resnet_small:width=4"]
DATA = ["--data", "synthetic:24:16"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of two methods."""
    folder, known = tmp_path_factory.mktemp("trained"), {"steps": 2, "batch": 8, "quiet": True}
    for method in ("rotnet", "colorization"):
        api.pretrain(method, "synthetic:24:16", folder / method, encoder="resnet_small:width=4", **known)
    return folder


def copied(trained: Path, to: Path) -> Path:
    """A copy of the runs that a test may write to."""
    for file in trained.rglob("*"):
        if file.is_file():
            place = to / file.relative_to(trained)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return to


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


WRITERS = {
    "pretrain": ["pretrain", "rotnet", *DATA, *ENCODER, "--steps", "1", "--batch", "8", "--out", "new"],
    "prepare": ["prepare", "synthetic:24:16", "--out", "store"],
    "embed": ["embed", "rotnet", *DATA, "--out", "features.parquet"],
    "evaluate": ["evaluate", "rotnet", *DATA],
    "cluster": ["cluster", "rotnet", *DATA, "--clusters", "2"],
    "report": ["report", "rotnet"],
    "export": ["export", "rotnet", "--to", "torch"],
    "colorize": ["colorize", "colorization", "--data", "synthetic:3:16"],
    "preview": ["preview", "rotnet", *DATA],
    "study": ["study", "rotnet", *DATA, "--ask", "change"],
    "transfer": ["transfer", "rotnet", "--data", "synthetic:24:16", "--task", "depth"],
    "audit": ["audit", "rotnet", "--count", "8"],
    "render": ["render", "--scenes", "1", "--size", "16", "--samples", "1", "--workers", "1", "--out", "rooms"],
    "track": ["track", "clips", "--out", "tracks", "--workers", "1", "--size", "32", "--height", "120", "--box", "0.5"],
}  # fmt: skip
IN_PARTS = {"render", "track"}
"""commands that keep finished parts, so that running them again continues"""


@pytest.mark.parametrize("verb", WRITERS)
def test_full_disk_is_one_line_and_leaves_no_partial_files(verb, trained, tmp_path, monkeypatch, capfd):
    """The disk is full at the first write, then at the second, and so on, until the command succeeds."""
    monkeypatch.setattr(finetune, "STEPS", 1)
    quick_scores(monkeypatch)
    here = copied(trained, tmp_path)
    monkeypatch.chdir(here)
    if verb == "track":
        moving.write_frames(here / "clips" / "square", [moving.scene(moving.position(k)) for k in range(45)])
    sync, calls, full_at = os.fsync, 0, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    before = contents(here)
    for full_at in (1, 2, 3):
        calls = 0
        code = main.main(WRITERS[verb])
        err = capfd.readouterr().err.strip().splitlines()
        after = contents(here)
        assert not [name for name in after if ".new" in name], after.keys()
        if code == 0:
            assert full_at > 1, "nothing was synced to the disk"
            break
        assert code == 2
        assert err[-1].startswith("pretask: could not write ") and "No space left on device" in err[-1]
        unchanged = {name: content for name, content in after.items() if before.get(name) == content}
        if verb in ("prepare", "embed", "cluster", "export", "colorize", "preview"):
            assert after == before  # all or nothing
        elif verb not in IN_PARTS:
            assert unchanged.keys() == before.keys() or full_at > 1
    else:
        assert calls >= 3


def limited(words: list[str], kind: str, value: int, folder: Path) -> Forked:
    """The command in a process with a limit in bytes: on file size (FSIZE), or on additional address space (AS)."""

    def limit() -> None:
        os.chdir(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = value + used * (kind == "AS")
        resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))

    return Forked(folder.with_suffix(".printed"), *words, first=limit)


@pytest.mark.parametrize("verb", ["prepare", "embed", "export"])
def test_file_size_limit_is_one_line(verb, trained, tmp_path):
    """These commands also write through other libraries: NumPy, Arrow, torch.export."""
    here = copied(trained, tmp_path)
    before = contents(here)
    done = limited(WRITERS[verb], "FSIZE", 2000, here)
    assert done.wait() == 2, done.err
    assert done.err.strip().splitlines()[-1].startswith("pretask: ")
    assert "Traceback" not in done.err
    assert contents(here) == before


def test_out_of_memory_on_a_cpu_is_one_line(tmp_path):
    words = ["pretrain", "rotnet", "--data", "synthetic:64:128", "--encoder", "resnet_small:width=512"]
    words += ["--steps", "1", "--batch", "64", "--out", "run"]
    done = limited(words, "AS", 500 << 20, tmp_path)
    assert done.wait() == 2, done.err
    (err,) = [line for line in done.err.splitlines() if line.startswith("pretask: ")]
    assert "out of memory (" in err and err.endswith("give a smaller --batch, --size or --encoder")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (
            torch.cuda.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which "
                "3.04 GiB is free.\nProcess 7 has 136 GiB memory in use."
            ),
            "tried to allocate 20.00 gib",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
                         "you tried to allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"),
            "tried to allocate 4000000000 bytes",
        ),
        (MemoryError(), "MemoryError"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
    ],
)  # fmt: skip
def test_allocation_failure_is_one_line(failure, reason, tmp_path, monkeypatch, capfd):
    def refused(*_):
        raise failure

    monkeypatch.setattr(RotNet, "loss", refused)
    monkeypatch.chdir(tmp_path)
    assert main.main(WRITERS["pretrain"]) == 2
    err = capfd.readouterr().err.splitlines()
    assert err[-1] == f"pretask: out of memory ({reason}); give a smaller --batch, --size or --encoder"
    assert out_of_memory(failure)


def test_program_errors_are_not_reported_as_system_failures(tmp_path, monkeypatch):
    def wrong(*_):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(RotNet, "loss", wrong)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        main.main(WRITERS["pretrain"])


def test_nonfinite_loss_ends_the_run_in_one_line(tmp_path, monkeypatch, capfd):
    loss = RotNet.loss

    def infinite(self, pretext):
        found = loss(self, pretext)
        return Loss(found.total / 0, found.parts)

    monkeypatch.setattr(RotNet, "loss", infinite)
    monkeypatch.chdir(tmp_path)
    assert main.main(WRITERS["pretrain"]) == 2
    err = capfd.readouterr().err.splitlines()[-1]
    assert err.startswith(
        "pretask: loss is not finite since step 0; the last healthy weights are in new/checkpoint.pt"
    )
    assert (tmp_path / "new" / checkpoint.LATEST).exists()


def test_file_that_vanishes_during_a_run_is_counted(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(folder / f"{i:02}.png")
    opened = data.open

    def vanishing(*args, **known):
        source = opened(*args, **{**known, "cache_mb": 0})
        (folder / "03.png").unlink(missing_ok=True)
        return source

    monkeypatch.setattr(data, "open", vanishing)
    monkeypatch.chdir(tmp_path)
    words = [
        "pretrain",
        "rotnet",
        "--data",
        str(folder),
        *ENCODER,
        "--size",
        "16",
        "--epochs",
        "1",
        "--batch",
        "12",
    ]
    assert main.main([*words, "--out", "run"]) == 0
    assert "03.png" in (tmp_path / "run" / "bad.csv").read_text()
    assert "1 skipped" in capfd.readouterr().err


@pytest.mark.parametrize("verb", ["prepare", "embed", "evaluate"])
def test_ctrl_c_exits_with_130_and_leaves_no_files(verb, trained, tmp_path, monkeypatch, capfd):
    here = copied(trained, tmp_path)
    monkeypatch.chdir(here)
    before = contents(here)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "pretask.data.ledger.Ledger.write" if verb != "evaluate" else "pretask.evals.knn.choose", interrupted
    )
    assert main.main(WRITERS[verb]) == 130
    assert capfd.readouterr().err.splitlines()[-1] == "pretask: interrupted"
    assert contents(here) == before


def test_closed_pipe_is_not_an_error():
    done = subprocess.run(
        f"{sys.executable} -m pretask list --json | head -c 1; exit ${{PIPESTATUS[0]}}", shell=True,
        executable="/bin/bash", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "[", "")


def test_without_standard_error_only_the_exit_code_reports_a_failure(tmp_path):
    def close() -> None:
        os.close(2)
        sys.stderr = None  # as Python sets it then

    done = Forked(tmp_path / "printed", "prepare", "/nowhere", "--out", "x", first=close)
    assert (done.wait(), done.err) == (2, "")


def test_works_without_home_temporary_folder_and_cpu_affinity(tmp_path, monkeypatch):
    """`sched_getaffinity` exists on Linux only."""
    from pretask.data import encoded

    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert encoded.cores() >= 1
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "TMPDIR": "/nowhere"}
    words = [sys.executable, "-m", "pretask", "embed", "timm:nothing", "--data", "~/photos"]
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


def test_features_need_a_writable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="could not write"):
        embed.write(
            Readout(methods.recipe("rotnet")().build_encoder("resnet_small:width=4", source := data.open("synthetic:4:16"))),
            source, tmp_path / "file" / "features.parquet",
        )  # fmt: skip
