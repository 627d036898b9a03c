#!/usr/bin/env python3
"""MoCo whose batch norms see a part of the batch: what a query and its key tell each other by sharing one.

    python docs/results/shuffling.py --data FOLDER [--runs runs/shuffling]

FOLDER holds cifar10/. Networks of 500 steps, three seeds, side by side: our defaults; the released head, whose batch norms are those of the
encoder alone; the same with batch norms that see eighths of the batch, among which keys are shuffled (v1, sec. 3.3); and v1, made small.
Then the loss of the same views with keys in the eighths of their queries, less the loss with keys shuffled: what sharing gives away. Runs
that are there, finished, are used again. Some minutes. What came out is kept in shuffling/cifar10.json, and `make.py` puts it on the page.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretask import data as sources
from pretask.encoders import Encoder
from pretask.evals import features, measure, protocol
from pretask.evals.confidence import interval
from pretask.evals.scores import Measurement
from pretask.methods import moco
from pretask.rng import Rng
from pretask.train.run import Run
from pretask.types import Source

HERE = Path(__file__).resolve().parent
TRAIN, TEST = "cifar10/cifar10_train.npz", "cifar10/cifar10_test.npz"
SEEDS, STEPS, PARTS, BATCHES = 3, 500, 8, 50


# ---- a method: released shuffling, on one device


@dataclass(frozen=True)
class Config(moco.Config):
    """v2 with the released head, on eight devices of which each has batch norms of its own."""

    hidden_bn: bool = False
    """a batch norm behind the hidden layer of the head"""

    def build(self, encoder: Encoder, source: Source) -> moco.MoCo:
        return Shuffled(self, encoder)


class Shuffled(moco.MoCo):
    def queries(self, image: Tensor) -> Tensor:
        return in_parts(super().queries, image)

    def keys(self, image: Tensor) -> Tensor:
        return shuffled(super().keys, image)


def in_parts(net: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """`net` of each eighth of a batch, by itself."""
    return torch.cat([net(part) for part in image.chunk(PARTS)])


def shuffled(net: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """The same with another eighth for every image, and the rows in their places."""
    order = torch.randperm(len(image), device=image.device)
    return in_parts(net, image[order])[order.argsort()]


# ---- the measurement

ARMS: Mapping[str, Sequence[str]] = {
    "by default: a batch norm in the head": ("moco",),
    "the released head": ("moco", "--no-hidden-bn"),
    "the released head, keys shuffled": ("docs/results/shuffling.py",),
    "v1, small": ("moco", "--hidden", "0", "--temperature", "0.07"),
}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", type=Path, required=True)
    words.add_argument("--runs", type=Path, default=Path("runs/shuffling"))
    asked = words.parse_args()
    with ThreadPoolExecutor(os.cpu_count()) as several:
        made = [
            [several.submit(pretrained, flags, number, seed, asked) for seed in range(SEEDS)]
            for number, flags in enumerate(ARMS.values())
        ]
        runs = [[one.result() for one in each] for each in made]
    rows, arms = [], []
    for (name, flags), each in zip(ARMS.items(), runs, strict=True):
        rows.append(torch.stack([named(run.encoder, asked.data) for run in each]))
        arms.append(
            {
                "arm": name,
                "command": shlex.join(["pretask", *command(flags), "--data", f"DATA/{TRAIN}"]),
                "kNN": asdict(interval(rows[-1])),
                "difference": asdict(interval(rows[-1] - rows[0])) if len(rows) > 1 else None,
                "leak": [batch_norm_leak(run, asked.data) for run in each],
            }
        )
        print(name, f"{rows[-1].mean():.1f} %", arms[-1]["leak"], flush=True)
    untrained = torch.stack([named(run.untrained, asked.data) for run in runs[0]])
    found = {"seeds": SEEDS, "n": rows[0].shape[1], "batches": BATCHES, "arms": arms}
    found["untrained"] = asdict(interval(untrained))
    (HERE / "shuffling").mkdir(exist_ok=True)
    (HERE / "shuffling" / "cifar10.json").write_text(json.dumps(found, indent=2) + "\n")


def command(flags: Sequence[str]) -> list[str]:
    method, *more = flags
    return ["pretrain", method, "--steps", str(STEPS), *more]


def pretrained(flags: Sequence[str], number: int, seed: int, asked: argparse.Namespace) -> Run:
    """One run on one core, unless it is there; one that was cut off is begun anew."""
    run = (asked.runs / f"arm-{number}-s{seed}").resolve()
    if not (run / "DONE").exists():
        shutil.rmtree(run, ignore_errors=True)
        words = [
            *command(flags),
            "--data",
            str((asked.data / TRAIN).resolve()),
            "--seed",
            str(seed),
            "--out",
            str(run),
        ]
        print("$", shlex.join(["pretask", *words]), flush=True)
        subprocess.run(
            [sys.executable, "-m", "pretask", *words],
            check=True,
            cwd=HERE.parents[1],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    return Run(run)


def named(encoder: Encoder, data: Path) -> Tensor:
    """(N,) which test images kNN names by pooled features, %."""
    train, test = (features.embed(encoder, sources.open_labeled(data / part)) for part in (TRAIN, TEST))
    chosen = measure.choose(train, len(train.classes), seed=0)
    return 100 * protocol.correct([[*measure.measure(train, test, chosen, 0)]], Measurement("knn", "pool"))[0]


@torch.no_grad()
def batch_norm_leak(run: Run, data: Path) -> dict[str, float]:
    """InfoNCE of the same views with keys in the eighths of their queries and with keys shuffled, and the difference."""
    method: Any = run.method.train()
    config, source = method.config, sources.open(data / TRAIN)
    torch.manual_seed(0)
    less = []
    for step in range(BATCHES):
        index = Rng(0, "images", step).permutation(len(source))[: config.train.batch]
        pretext = method.pretext(source.__getitems__(index), Rng(0, "views", step))
        # of a run that shuffled, MoCo's own, so that both kinds are measured alike
        query = in_parts(lambda x: moco.MoCo.queries(method, x), pretext.view1)
        keys = [way(lambda x: moco.MoCo.keys(method, x), pretext.view2) for way in (in_parts, shuffled)]
        same, apart = (
            moco.info_nce_queue(query, key, method.queue, config.temperature)[0].item() for key in keys
        )
        less.append((same, apart))
    both = torch.tensor(less, dtype=torch.float64)
    difference = both[:, 1] - both[:, 0]
    return {
        "together": both[:, 0].mean().item(),
        "shuffled": both[:, 1].mean().item(),
        "lower": difference.mean().item(),
        "error": (difference.std() / BATCHES**0.5).item(),
    }


if __name__ == "__main__":
    main()
