"""Bit-identity of runs that are killed at a random moment and resumed.

Example: python bench/kills.py --kills 25

A small run on 64 files is ended by SIGKILL or SIGTERM shortly after a random step and resumed to its end; in half of the
cases its images are moved in between, and `--data` gives their new place. Its encoder and its last checkpoint are compared,
bit by bit, with those of an uninterrupted run. Checkpoints are written ten times per second, so that many kills hit the
writing of one. Each kill takes two processes, and all hundred take about half an hour on two cores. Results that exist in
--out are not measured again, so the script itself can be interrupted and repeated.
"""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from common import Goal, environment, flags, show
from PIL import Image
from torch import Tensor

from pretask.data.synthetic import draw
from pretask.encoders.saved import WEIGHTS
from pretask.rng import Rng
from pretask.runtime import files
from pretask.train import checkpoint, run

Kind = Literal["kill", "term", "kill-moved", "term-moved"]
KINDS: dict[Kind, tuple[signal.Signals, bool]] = {
    "kill": (signal.SIGKILL, False),
    "term": (signal.SIGTERM, False),
    "kill-moved": (signal.SIGKILL, True),
    "term-moved": (signal.SIGTERM, True),
}
LATEST = 0.8
"""share of the steps after which no run is killed, since it could end before"""
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143}
FREQUENT_CHECKPOINTS = """\
import sys
from pretask.cli.main import main
from pretask.train import trainer
trainer.SAVE_EVERY = 0.1
sys.exit(main(sys.argv[1:]))
"""
"""pretask, with a checkpoint ten times a second"""


@dataclass(frozen=True)
class Flags:
    kills: int = 25
    """kills of each kind"""
    kinds: tuple[Kind, ...] = tuple(KINDS)
    """the signal, and whether the images are moved before the run is resumed"""
    steps: int = 100
    """length of the run"""
    seed: int = 0
    """seed of the random moments"""
    out: Path = Path("runs/bench-kills")
    """folder of the results"""
    json: bool = False
    """print only JSON to standard output"""


def make_photos(folder: Path) -> Path:
    """64 PNG files of 16 px."""
    folder.mkdir(parents=True)
    for i, pixels in enumerate(draw(64, 16, Rng(0, "kills"))[0].permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def pretask(*words: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FREQUENT_CHECKPOINTS, "pretrain", *map(str, words)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment()
    )


def start(args: Flags, data: Path, out: Path) -> subprocess.Popen[str]:
    words = ("simclr", "--data", data, "--out", out, "--steps", str(args.steps), "--batch", "16")
    return pretask(*words, "--encoder", "resnet_small:width=4", "--precision", "32-true")


def wait(process: subprocess.Popen[str], code: int) -> None:
    """Wait for the process; SystemExit unless it ends with this code."""
    _, errors = process.communicate()
    if process.returncode != code:
        raise SystemExit(f"ended with {process.returncode}, not {code}: {errors}")


def uninterrupted(args: Flags) -> Path:
    """Folder of the run that the others are compared with."""
    made = args.out / f"uninterrupted-{args.steps}"
    if not (made / run.DONE).exists():
        shutil.rmtree(args.out / "photos", ignore_errors=True)
        shutil.rmtree(made, ignore_errors=True)
        wait(start(args, make_photos(args.out / "photos"), made), 0)
    return made


def kill_and_resume(args: Flags, kind: Kind, number: int) -> dict[str, Any]:
    """Row of one run: the step at which it was killed, the step of its checkpoint, and the differing bits."""
    how, moved = KINDS[kind]
    draws = np.random.default_rng([args.seed, number, *kind.encode()])
    work = args.out / "work"
    shutil.rmtree(work, ignore_errors=True)
    data, out = make_photos(work / "photos"), work / "run"
    process, target = start(args, data, out), int(draws.integers(round(LATEST * args.steps)))
    while process.poll() is None and last_step(out) < target:
        time.sleep(0.005)
    time.sleep(draws.uniform(0, 0.05))
    process.send_signal(how)
    wait(process, CODES[how])
    at, kept = last_step(out), checkpoint.load(out / checkpoint.LATEST)["step"]
    words = ["--resume", out]
    if moved:
        words += ["--data", data.rename(work / "elsewhere")]
    wait(pretask(*words), 0)
    lost = compare(uninterrupted(args), out)
    return {"kind": kind, "number": number, "step": at + 1, "kept": kept, "bits": lost}


def last_step(folder: Path) -> int:
    """The last step in the log; -1 before the first."""
    rows = files.read_rows(folder / run.LOG)
    return rows[-1]["step"] if rows else -1


def compare(one: Path, other: Path) -> int:
    """Bits in which the encoders and the last checkpoints of two runs differ."""
    weights = ((folder / WEIGHTS).read_bytes() for folder in (one, other))
    states = (checkpoint.load(folder / checkpoint.LATEST) for folder in (one, other))
    return differing_bits(*weights) + differing_bits(
        *({k: x for k, x in s.items() if k != "seconds"} for s in states)
    )


def differing_bits(one: Any, other: Any) -> int:
    """Number of differing bits of two nested values; all of them if shape or type differs."""
    if isinstance(one, Mapping) and isinstance(other, Mapping) and list(one) == list(other):
        return sum(differing_bits(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return sum(map(differing_bits, one, other))
    if (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and (one.shape, one.dtype) == (other.shape, other.dtype)
    ):
        return differing_bits(
            *(x.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for x in (one, other))
        )
    if isinstance(one, bytes) and isinstance(other, bytes) and len(one) == len(other):
        a, b = (np.frombuffer(x, np.uint8) for x in (one, other))
        return int(np.bitwise_count(a ^ b).sum())
    if isinstance(one, Tensor | bytes):
        return 8 * (one.nbytes if isinstance(one, Tensor) else len(one))
    return int(type(one) is not type(other) or one != other)


def collect(args: Flags) -> list[dict[str, Any]]:
    """A row per kill: stored results, and new ones where they are missing."""
    uninterrupted(args)
    kept = args.out / f"kills-{args.steps}-{args.seed}.jsonl"
    rows = {(row["kind"], row["number"]): row for row in files.read_rows(kept)}
    for number in range(args.kills):
        for kind in args.kinds:
            if (kind, number) not in rows:
                rows[kind, number] = kill_and_resume(args, kind, number)
                files.append_row(kept, rows[kind, number])
    return [row for row in rows.values() if row["kind"] in args.kinds and row["number"] < args.kills]


def main() -> None:
    args = flags(Flags, __doc__ or "")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = collect(args)
    numbers: dict[str, Any] = {"steps of the run": args.steps}
    goals = []
    for kind in args.kinds:
        own = [row for row in rows if row["kind"] == kind]
        numbers[f"{kind}: kills"] = len(own)
        numbers[f"{kind}: repeated steps, at most"] = max(
            (row["step"] - row["kept"] for row in own), default=0
        )
        goals.append(Goal(f"{kind}: bits lost", sum(row["bits"] for row in own), 1, "bits", less=True))
    show("Kills", numbers, goals, args.json)


if __name__ == "__main__":
    main()
