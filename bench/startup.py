"""What a user waits for before anything happens, and what a large folder costs in memory (Linux).

Example: python bench/startup.py

It takes the processor's time of `pretask --help`, of `pretask list` and of all that `pretask evaluate` does before it opens its
images, times the opening of a folder of 100,000 images (links to a hundred JPEG files, every tenth of them called as no image
is, so that its first bytes must be read), and trains on it and on a folder of a quarter of its size for as many steps, each in a process of its own, to compare
their peak memory. Images are decoded while training, as those of a folder too large for memory are.
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
    """of training on each folder"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""


def made(folder: Path, files: int) -> Path:
    """JPEG files of 32 px, a thousand in each subfolder, which take the space of a hundred."""
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


READING = "from pretask.workflows import evaluate; from pretask.train import run; each = run.Run({!r}); each.encoder, each.untrained"


def spent(*words: str) -> float:
    """User and system seconds of a Python command, the least of five: other work on the machine only adds to it."""

    def once() -> float:
        before = os.times()
        subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment())
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    return min(once() for _ in range(5))


def start_of_evaluate() -> float:
    """Of what `pretask evaluate RUN` does before it opens its images."""
    with tempfile.TemporaryDirectory() as folder:
        settings = RunConfig("synthetic:64:32", Path(folder, "run"), steps=1)
        pretrain(fresh("simclr", settings, train=TrainConfig(batch=32)))
        return spent("-c", READING.format(str(Path(folder, "run"))))


def peak(folder: Path, steps: int) -> int:
    """Bytes at most in use by a process that trains on `folder`, without its workers."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(trained, folder, steps).result()


def trained(folder: Path, steps: int) -> int:
    source = data.open(folder, cache_mb=0, progress=False)
    with tempfile.TemporaryDirectory() as out:
        settings = RunConfig(str(folder), Path(out, "run"), encoder="resnet_small:width=8", steps=steps)
        pretrain(fresh("rotnet", settings, images=source))
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    asked = flags(Flags, __doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        small, large = (made(Path(folder, str(n)), n) for n in (asked.files // 4, asked.files))
        opening = seconds(lambda: data.open(large, cache_mb=0, progress=False))
        peaks = [peak(each, asked.steps) for each in (small, large)]
    numbers = {"peak on a quarter, MB": peaks[0] / 1e6, "peak on all, MB": peaks[1] / 1e6}
    goals = [
        Goal("pretask --help, processor", spent("-m", "pretask", "--help"), 0.5, "s", less=True),
        Goal("pretask list, processor", spent("-m", "pretask", "list"), 0.5, "s", less=True),
        Goal("pretask evaluate until it opens images, processor", start_of_evaluate(), 3.5, "s", less=True),
        Goal(f"opening {asked.files:,} files", opening, 5.0, "s", less=True),
        Goal(
            "one more image, at the peak",
            (peaks[1] - peaks[0]) / (0.75 * asked.files),
            1000,
            "bytes",
            less=True,
        ),
    ]
    show("Startup and memory", numbers, goals, asked.json)


if __name__ == "__main__":
    main()
