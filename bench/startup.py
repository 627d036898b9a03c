"""Startup time of commands, and peak memory with a large folder (Linux).

Example: python bench/startup.py

Measures the CPU time of `pretask --help`, of `pretask list`, and of `pretask evaluate` until it opens its images, and the
time to open a folder of 100,000 images. These are links to a hundred JPEG files; every tenth has an unknown extension, so
that its first bytes must be read. Then it trains on this folder and on one of a quarter of its size, for the same number of
steps and in separate processes, and compares their peak memory. Images are decoded during training, as in a folder that is
too large for memory.
"""

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from common import Goal, environment, flags, seconds, show
from PIL import Image

from pretask import data
from pretask.config import RunConfig, TrainConfig
from pretask.data.synthetic import draw
from pretask.rng import Rng
from pretask.workflows.job import fresh
from pretask.workflows.pretrain import pretrain

DISTINCT = 100


@dataclass(frozen=True)
class Flags:
    files: int = 100_000
    """images in the larger folder"""
    steps: int = 20
    """training steps on each folder"""
    repeats: int = 5
    """times that each command is started; the fastest counts"""
    json: bool = False
    """print only JSON to standard output"""


def make_folder(folder: Path, files: int) -> Path:
    """Folder of JPEG files of 32 px, a thousand per subfolder; all but a hundred are hard links."""
    pixels = draw(DISTINCT, 32, Rng(0, "startup"))[0].permute(0, 2, 3, 1).numpy()
    for i in range(files):
        odd = "_large" if i % 10 == 9 and i >= DISTINCT else ""
        path = folder / f"{i // 1000:03d}" / f"{i:06d}.jpg{odd}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < DISTINCT:
            Image.fromarray(pixels[i]).save(path)
        else:
            os.link(folder / "000" / f"{i % DISTINCT:06d}.jpg", path)
    return folder


READ_RUN = "from pretask.workflows import evaluate; from pretask.train import run; each = run.Run({!r}); each.encoder, each.untrained"


def cpu_seconds(repeats: int, *words: str) -> float:
    """User and system seconds of a Python command: the minimum of several, since other load only adds to it."""

    def once() -> float:
        before = os.times()
        subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment())
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    return min(once() for _ in range(repeats))


def start_of_evaluate(repeats: int) -> float:
    """CPU seconds of `pretask evaluate RUN` until it opens its images."""
    with tempfile.TemporaryDirectory() as folder:
        settings = RunConfig("synthetic:64:32", Path(folder, "run"), steps=1)
        pretrain(fresh("simclr", settings, train=TrainConfig(batch=32)))
        return cpu_seconds(repeats, "-c", READ_RUN.format(str(Path(folder, "run"))))


def peak(folder: Path, steps: int) -> int:
    """Peak memory in bytes of a process that trains on `folder`, without its workers."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(train_and_measure, folder, steps).result()


def train_and_measure(folder: Path, steps: int) -> int:
    source = data.open(folder, cache_mb=0, progress=False)
    with tempfile.TemporaryDirectory() as out:
        settings = RunConfig(str(folder), Path(out, "run"), encoder="resnet_small:width=8", steps=steps)
        pretrain(fresh("rotnet", settings, images=source))
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    args = flags(Flags, __doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        small, large = (make_folder(Path(folder, str(n)), n) for n in (args.files // 4, args.files))
        opening = seconds(lambda: data.open(large, cache_mb=0, progress=False))
        peaks = [peak(each, args.steps) for each in (small, large)]
    numbers = {"peak on a quarter, MB": peaks[0] / 1e6, "peak on all, MB": peaks[1] / 1e6}
    goals = [
        Goal(
            "pretask --help, processor",
            cpu_seconds(args.repeats, "-m", "pretask", "--help"),
            0.5,
            "s",
            less=True,
        ),
        Goal(
            "pretask list, processor", cpu_seconds(args.repeats, "-m", "pretask", "list"), 0.5, "s", less=True
        ),
        Goal(
            "pretask evaluate until it opens images, processor",
            start_of_evaluate(args.repeats),
            3.5,
            "s",
            less=True,
        ),
        Goal(f"opening {args.files:,} files", opening, 5.0, "s", less=True),
        Goal(
            "one more image, at the peak",
            (peaks[1] - peaks[0]) / (0.75 * args.files),
            1000,
            "bytes",
            less=True,
        ),
    ]
    show("Startup and memory", numbers, goals, args.json)


if __name__ == "__main__":
    main()
