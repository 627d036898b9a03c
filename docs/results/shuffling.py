#!/usr/bin/env python3
"""MoCo with batch norms over parts of the batch: information that leaks between queries and keys through shared statistics.

    python docs/results/shuffling.py --data FOLDER [--runs runs/shuffling]

FOLDER holds cifar10/. The script trains networks for 500 steps with three seeds: our defaults; the released head, which has no
batch norm; the same with batch norms over eighths of the batch and keys shuffled among them (v1, sec. 3.3); and a small v1. Then
it compares the loss of the same views with keys in the same eighth as their queries and with shuffled keys: the difference is the
leak. Finished runs in --runs are reused. The script takes some minutes. The results are written to shuffling/cifar10.json, and
`make.py` writes their page.
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
    """v2 with the released head, as on eight devices with separate batch-norm statistics."""

    hidden_bn: bool = False
    """add a batch norm after the hidden layer of the projector"""

    def build(self, encoder: Encoder, source: Source) -> moco.MoCo:
        return Shuffled(self, encoder)


class Shuffled(moco.MoCo):
    def queries(self, image: Tensor) -> Tensor:
        return in_parts(super().queries, image)

    def keys(self, image: Tensor) -> Tensor:
        return shuffled(super().keys, image)


def in_parts(net: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """`net` applied separately to each eighth of a batch."""
    return torch.cat([net(part) for part in image.chunk(PARTS)])


def shuffled(net: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """The same with images shuffled among the eighths; rows are returned in their original order."""
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/shuffling"))
    args = parser.parse_args()
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        made = [
            [executor.submit(pretrain, flags, number, seed, args) for seed in range(SEEDS)]
            for number, flags in enumerate(ARMS.values())
        ]
        runs = [[one.result() for one in each] for each in made]
    rows, arms = [], []
    for (name, flags), each in zip(ARMS.items(), runs, strict=True):
        rows.append(torch.stack([knn_correct(run.encoder, args.data) for run in each]))
        arms.append(
            {
                "arm": name,
                "command": shlex.join(["pretask", *command(flags), "--data", f"DATA/{TRAIN}"]),
                "kNN": asdict(interval(rows[-1])),
                "difference": asdict(interval(rows[-1] - rows[0])) if len(rows) > 1 else None,
                "leak": [batch_norm_leak(run, args.data) for run in each],
            }
        )
        print(name, f"{rows[-1].mean():.1f} %", arms[-1]["leak"], flush=True)
    untrained = torch.stack([knn_correct(run.untrained, args.data) for run in runs[0]])
    found = {"seeds": SEEDS, "n": rows[0].shape[1], "batches": BATCHES, "arms": arms}
    found["untrained"] = asdict(interval(untrained))
    (HERE / "shuffling").mkdir(exist_ok=True)
    (HERE / "shuffling" / "cifar10.json").write_text(json.dumps(found, indent=2) + "\n")


def command(flags: Sequence[str]) -> list[str]:
    method, *more = flags
    return ["pretrain", method, "--steps", str(STEPS), *more]


def pretrain(flags: Sequence[str], number: int, seed: int, args: argparse.Namespace) -> Run:
    """Train one run on one core, unless it is finished; an interrupted run is restarted."""
    run = (args.runs / f"arm-{number}-s{seed}").resolve()
    if not (run / "DONE").exists():
        shutil.rmtree(run, ignore_errors=True)
        words = [
            *command(flags),
            "--data",
            str((args.data / TRAIN).resolve()),
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


def knn_correct(encoder: Encoder, data: Path) -> Tensor:
    """(N,) 100 for each test image that kNN on pooled features classifies correctly, else 0."""
    train, test = (features.embed(encoder, sources.open_labeled(data / part)) for part in (TRAIN, TEST))
    chosen = measure.choose(train, len(train.classes), seed=0)
    return 100 * protocol.correct([[*measure.measure(train, test, chosen, 0)]], Measurement("knn", "pool"))[0]


@torch.no_grad()
def batch_norm_leak(run: Run, data: Path) -> dict[str, float]:
    """InfoNCE of the same views with keys in the same eighth as their queries and with shuffled keys, and their difference."""
    method: Any = run.method.train()
    config, source = method.config, sources.open(data / TRAIN)
    torch.manual_seed(0)
    losses = []
    for step in range(BATCHES):
        index = Rng(0, "images", step).permutation(len(source))[: config.train.batch]
        pretext = method.pretext(source.__getitems__(index), Rng(0, "views", step))
        # MoCo's own methods also for runs with shuffling, so that all are measured alike
        query = in_parts(lambda x: moco.MoCo.queries(method, x), pretext.view1)
        keys = [way(lambda x: moco.MoCo.keys(method, x), pretext.view2) for way in (in_parts, shuffled)]
        same, separate = (
            moco.info_nce_queue(query, key, method.queue, config.temperature)[0].item() for key in keys
        )
        losses.append((same, separate))
    both = torch.tensor(losses, dtype=torch.float64)
    difference = both[:, 1] - both[:, 0]
    return {
        "together": both[:, 0].mean().item(),
        "shuffled": both[:, 1].mean().item(),
        "lower": difference.mean().item(),
        "error": (difference.std() / BATCHES**0.5).item(),
    }


if __name__ == "__main__":
    main()
