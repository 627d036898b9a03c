"""Cost of a score: whole `pretask evaluate` commands, and the linear probe against the classic one of 90 epochs.

Example: python bench/evaluate.py --against 2a7ee8d
         python bench/evaluate.py --run runs/simclr-cifar10-s0 --data train.npz --test test.npz --full

The commands score a run on a few labeled letters with all default protocols and rows, report included. Measured is their CPU
time, user and system, relative to ten products of 4096 x 4096 matrices on the same machine. With --against, the same commands
of an older commit of this repository are timed as well, interleaved with these.

Our probe embeds both sets, chooses k, penalty and stage on held-out training images, and scores kNN and a linear probe at that
stage; all of this is counted. The classic probe (classic.py) is trained on the same stage with the same pooling. A few of its
epochs are timed between two measurements of ours; with --full, all of them, which are needed for its accuracy.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from classic import EPOCHS, Classic
from common import Goal, environment, flags, seconds, show
from torch import Tensor

from pretask import data as sources
from pretask import encoders
from pretask.config import RunConfig, TrainConfig
from pretask.encoders import Encoder
from pretask.evals import knn
from pretask.evals.features import embed
from pretask.evals.measure import choose
from pretask.rng import Rng
from pretask.runtime.device import find_device
from pretask.train.run import Run
from pretask.types import LabeledSource
from pretask.workflows.job import fresh
from pretask.workflows.pretrain import pretrain

HERE = Path(__file__).resolve().parents[1]
SIDE = 4096
REFERENCE = 7.3
"""seconds of ten products on the reference machine, for which the limits below hold"""


@dataclass(frozen=True)
class Command:
    """Numbers of labeled images, and the limit of the CPU seconds to score them."""

    train: int
    test: int
    size: int
    limit: float


COMMANDS = (Command(100, 325, 64, 20.0), Command(2000, 600, 96, 60.0))


@dataclass(frozen=True)
class Flags:
    data: str = "demo"
    """labeled training images of the probes, in any form that pretask opens"""
    test: str = "demo:test"
    """labeled test images"""
    run: Path | None = None
    """score the encoder of this run (default: an untrained one)"""
    encoder: str = "resnet_small"
    """the untrained encoder, without --run"""
    epochs: int = 2
    """timed epochs of the classic probe, extrapolated to 90"""
    full: bool = False
    """train the classic probe for all 90 epochs"""
    against: str | None = None
    """also time the commands of this commit"""
    commands: bool = True
    """time whole commands"""
    probes: bool = True
    """time the probes"""
    json: bool = False
    """print only JSON to standard output"""


# ---- whole commands


def whole_commands(against: str | None) -> tuple[dict[str, object], list[Goal]]:
    """Cost of each of COMMANDS with this checkout and with that of another commit."""
    products = products_seconds()
    scale = products / REFERENCE
    numbers: dict[str, object] = {"ten products, s": products}
    goals = []
    with tempfile.TemporaryDirectory() as made, checkout(against) as other:
        for command in COMMANDS:
            name = f"{command.train} + {command.test} images of {command.size} px"
            words = prepare(command, Path(made, str(command.size)))
            if command is COMMANDS[0]:  # warm up: Python compiles modules at their first import
                for tree in filter(None, (other, HERE)):
                    cost(words, tree)
            if other:
                took, peak = cost(words, other)
                numbers |= {f"{name}, {against}, s": took, f"{name}, {against}, peak MB": peak}
            took, peak = cost(words, HERE)
            numbers |= {f"{name}, s": took, f"{name}, peak MB": peak}
            goals.append(
                Goal(f"{name}: per ten products", took / products, command.limit / REFERENCE, "x", less=True)
            )
    return numbers | {"relative to the reference machine": scale}, goals


def products_seconds() -> float:
    """Wall-clock seconds of ten products of large matrices on all cores: the speed of this machine."""
    x = torch.randn(SIDE, SIDE)
    return median(seconds(lambda: [x @ x for _ in range(10)]) for _ in range(3))


def prepare(command: Command, folder: Path) -> list[str]:
    """Arguments of a command that scores a run of one step on letters."""
    folder.mkdir()
    for name, source, count in (("train", "demo", command.train), ("test", "demo:test", command.test)):
        letters = sources.open_labeled(source, size=command.size)
        index = Rng(0, "bench", name).permutation(len(letters))[:count]
        images = letters.__getitems__(index).image.permute(0, 2, 3, 1).numpy()
        np.savez(folder / f"{name}.npz", images=images, labels=letters.label[index].numpy())
    train = str(folder / "train.npz")
    settings = RunConfig(train, folder / "run", steps=1)
    pretrain(fresh("simclr", settings, train=TrainConfig(batch=32)))
    return ["evaluate", str(folder / "run"), "--data", train, "--test", str(folder / "test.npz")]


def cost(words: list[str], tree: Path) -> tuple[float, float]:
    """User and system seconds of a command, and its peak memory in MB."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pretask", *words],
        cwd=tree,
        env=environment(PYTHONPATH=str(tree)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"pretask {' '.join(words)} failed")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1000


@contextmanager
def checkout(commit: str | None) -> Iterator[Path | None]:
    """A commit of this repository in a temporary folder."""
    if commit is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", HERE, "archive", commit, "pretask"], check=True, capture_output=True
        )
        subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


# ---- the probes


class Ours:
    """Our evaluation; a call sets `stage` (the chosen one), `knn` and `linear` (accuracy in %) and `embedding` (seconds)."""

    def __init__(self, encoder: Encoder, train: LabeledSource, test: LabeledSource):
        self.encoder, self.train, self.test = encoder, train, test

    def __call__(self) -> None:
        started = perf_counter()
        train, test = (
            embed(self.encoder, s, device=find_device(), progress=False) for s in (self.train, self.test)
        )
        self.embedding = perf_counter() - started
        classes = len(train.classes)
        chosen = choose(train, classes, seed=0)
        self.stage = chosen.stage
        voted = knn.knn(train.stages["pool"], train.label, test.stages["pool"], classes, chosen.k)
        probe = chosen.probes[self.stage].probe
        self.knn = percent(voted, test.label)
        self.linear = percent(probe.predict(test.stages[self.stage]), test.label)


def percent(predicted: Tensor, label: Tensor) -> float:
    return 100 * (predicted == label).double().mean().item()


def probes(args: Flags) -> tuple[dict[str, object], list[Goal]]:
    given = Run(args.run).encoder if args.run else None
    train = sources.open_labeled(args.data, size=given and given.size, channels=given and given.channels)
    test = sources.open_labeled(args.test, size=train.size, channels=train.channels)
    torch.manual_seed(0)
    encoder = given or encoders.build(args.encoder, train.channels, train.size)

    ours = Ours(encoder, train, test)
    before = seconds(ours)
    epochs = EPOCHS if args.full else args.epochs
    classic = Classic(encoder, ours.stage, train, epochs)
    per_epoch = median(seconds(classic.epoch) for _ in range(epochs))
    took = (before + seconds(ours)) / 2  # the load of the machine may have changed in between
    accuracy = classic.accuracy(test)
    numbers: dict[str, object] = {
        "encoder": encoder.name,
        "images": f"{len(train)} + {len(test)}",
        "stage": ours.stage,
        "ours, s": took,
        "of which computing the features, s": ours.embedding,
        "classic probe, s per epoch": per_epoch,
        "classic probe, s": EPOCHS * per_epoch,
        "kNN, %": ours.knn,
        "linear, %": ours.linear,
        f"classic probe after {epochs} epochs, %": accuracy,
    }
    goals = [Goal("ours of the classic probe", EPOCHS * per_epoch / took, 30, "x")]
    if args.full:
        goals.append(Goal("accuracy above the classic probe's", ours.linear - accuracy, 0, "points"))
    return numbers, goals


def main() -> None:
    args = flags(Flags, __doc__ or "")
    numbers: dict[str, object] = {}
    goals: list[Goal] = []
    if args.commands:
        found = whole_commands(args.against)
        numbers, goals = numbers | found[0], goals + found[1]
    if args.probes:
        found = probes(args)
        numbers, goals = numbers | found[0], goals + found[1]
    show("Evaluation", numbers, goals, args.json)


if __name__ == "__main__":
    main()
