"""Whether a run that is killed at any moment and resumed ends with the very bits of one that was not.

Example: python bench/kills.py --kills 25

A small run on 64 files is killed by SIGKILL or asked to end by SIGTERM at a random step and a random moment after it, and
resumed to its end; in half of the cases its images are moved to another place in between, and `--data` says where. Its
encoder and its last checkpoint are compared, bit by bit, with those of a run that nobody disturbed. Checkpoints are
written many times a second, so that many kills come in the middle of one. Each kill takes two processes, and all hundred
about half an hour of two cores; what is in --out already is not made again, so the script itself may be killed as well.
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
from pretask.rng import Rng
from pretask.runtime import files
from pretask.train import checkpoint, run
from pretask.train.weights import WEIGHTS

Kind = Literal["kill", "term", "kill-moved", "term-moved"]
KINDS: dict[Kind, tuple[signal.Signals, bool]] = {
    "kill": (signal.SIGKILL, False),
    "term": (signal.SIGTERM, False),
    "kill-moved": (signal.SIGKILL, True),
    "term-moved": (signal.SIGTERM, True),
}
LATEST = 0.8
"""of its steps, after which a run may be over before it is killed"""
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143}
OFTEN = """\
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
    """of each kind"""
    kinds: tuple[Kind, ...] = tuple(KINDS)
    """by which signal, and whether the images are moved before the run goes on"""
    steps: int = 100
    """of the run"""
    seed: int = 0
    """of the moments"""
    out: Path = Path("runs/bench-kills")
    """where what was found is kept"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""


def photos(folder: Path) -> Path:
    """64 PNG files of 16 px."""
    folder.mkdir(parents=True)
    for i, pixels in enumerate(draw(64, 16, Rng(0, "kills"))[0].permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def pretask(*words: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OFTEN, "pretrain", *map(str, words)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment()
    )


def begun(asked: Flags, data: Path, out: Path) -> subprocess.Popen[str]:
    words = ("simclr", "--data", data, "--out", out, "--steps", str(asked.steps), "--batch", "16")
    return pretask(*words, "--encoder", "resnet_small:width=4", "--precision", "32-true")


def ended(process: subprocess.Popen[str], code: int) -> None:
    """SystemExit unless it ends with this code."""
    _, told = process.communicate()
    if process.returncode != code:
        raise SystemExit(f"ended with {process.returncode}, not {code}: {told}")


def undisturbed(asked: Flags) -> Path:
    """The run that the others are compared with."""
    made = asked.out / f"undisturbed-{asked.steps}"
    if not (made / run.DONE).exists():
        shutil.rmtree(asked.out / "photos", ignore_errors=True)
        shutil.rmtree(made, ignore_errors=True)
        ended(begun(asked, photos(asked.out / "photos"), made), 0)
    return made


def killed(asked: Flags, kind: Kind, number: int) -> dict[str, Any]:
    """What became of one run: the step that it was killed after, the one that was saved, the bits that were lost."""
    how, moved = KINDS[kind]
    draws = np.random.default_rng([asked.seed, number, *kind.encode()])
    work = asked.out / "work"
    shutil.rmtree(work, ignore_errors=True)
    data, out = photos(work / "photos"), work / "run"
    process, target = begun(asked, data, out), int(draws.integers(round(LATEST * asked.steps)))
    while process.poll() is None and reached(out) < target:
        time.sleep(0.005)
    time.sleep(draws.uniform(0, 0.05))
    process.send_signal(how)
    ended(process, CODES[how])
    at, kept = reached(out), checkpoint.load(out / checkpoint.LATEST)["step"]
    words = ["--resume", out]
    if moved:
        words += ["--data", data.rename(work / "elsewhere")]
    ended(pretask(*words), 0)
    lost = differing(undisturbed(asked), out)
    return {"kind": kind, "number": number, "step": at + 1, "kept": kept, "bits": lost}


def reached(folder: Path) -> int:
    """The last step in the log; -1 before the first."""
    rows = files.read_rows(folder / run.LOG)
    return rows[-1]["step"] if rows else -1


def differing(one: Path, other: Path) -> int:
    """Bits in which the encoders and the last checkpoints of two runs differ."""
    weights = ((folder / WEIGHTS).read_bytes() for folder in (one, other))
    states = (checkpoint.load(folder / checkpoint.LATEST) for folder in (one, other))
    return bits(*weights) + bits(*({k: x for k, x in s.items() if k != "seconds"} for s in states))


def bits(one: Any, other: Any) -> int:
    """That differ in two nested values; all of them where shape or type does."""
    if isinstance(one, Mapping) and isinstance(other, Mapping) and list(one) == list(other):
        return sum(bits(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return sum(map(bits, one, other))
    if (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and (one.shape, one.dtype) == (other.shape, other.dtype)
    ):
        return bits(*(x.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for x in (one, other)))
    if isinstance(one, bytes) and isinstance(other, bytes) and len(one) == len(other):
        a, b = (np.frombuffer(x, np.uint8) for x in (one, other))
        return int(np.bitwise_count(a ^ b).sum())
    if isinstance(one, Tensor | bytes):
        return 8 * (one.nbytes if isinstance(one, Tensor) else len(one))
    return int(type(one) is not type(other) or one != other)


def found(asked: Flags) -> list[dict[str, Any]]:
    """A row of each kill: those that are kept, and those that are missing now."""
    undisturbed(asked)
    kept = asked.out / f"kills-{asked.steps}-{asked.seed}.jsonl"
    rows = {(row["kind"], row["number"]): row for row in files.read_rows(kept)}
    for number in range(asked.kills):
        for kind in asked.kinds:
            if (kind, number) not in rows:
                rows[kind, number] = killed(asked, kind, number)
                files.append_row(kept, rows[kind, number])
    return [row for row in rows.values() if row["kind"] in asked.kinds and row["number"] < asked.kills]


def main() -> None:
    asked = flags(Flags, __doc__ or "")
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = found(asked)
    numbers: dict[str, Any] = {"steps of the run": asked.steps}
    goals = []
    for kind in asked.kinds:
        own = [row for row in rows if row["kind"] == kind]
        numbers[f"{kind}: kills"] = len(own)
        numbers[f"{kind}: steps made again, at most"] = max(
            (row["step"] - row["kept"] for row in own), default=0
        )
        goals.append(Goal(f"{kind}: bits lost", sum(row["bits"] for row in own), 1, "bits", less=True))
    show("Kills", numbers, goals, asked.json)


if __name__ == "__main__":
    main()
