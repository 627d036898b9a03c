#!/usr/bin/env python3
"""What default recipes gain and lose by being held against papers and released code: the same seed before and after.

    python docs/results/changes.py [METHOD …] --data FOLDER [--runs runs/changes]

FOLDER holds imagenette224/ and pairs/. Before is a checkout of an older commit of this repository, made in a temporary folder. Every
run is 300 steps on 96 px, on one core, two at a time; those that are there, finished, are used again. What came out is kept in
changes/METHOD.json, and `make.py` puts it on the page.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from orderings import COMMON, HERE, solved

from pretask import sources
from pretask.evals import evaluate, features, measure
from pretask.evals.interval import interval
from pretask.run import Run

BEFORE = "2a7ee8d"
SEEDS = 3
TRAIN, TEST = "imagenette224/train", "imagenette224/val"


@dataclass(frozen=True)
class Change:
    """Of one method: what was changed, and what it is trained on."""

    what: str
    train: str = TRAIN


CHANGES = {
    "jigsaw": Change("orders without near twins"),
    "damaged_jigsaw": Change("the missing tile is painted in L, a and b"),
}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("method", nargs="*", help=", ".join(CHANGES))
    words.add_argument("--data", type=Path, required=True)
    words.add_argument("--runs", type=Path, default=Path("runs/changes"))
    asked = words.parse_args()
    if unknown := set(asked.method) - set(CHANGES):
        words.error(f"no change of {', '.join(sorted(unknown))}; there are {', '.join(CHANGES)}")
    (HERE / "changes").mkdir(exist_ok=True)
    for name in asked.method or CHANGES:
        with checkout(BEFORE) as older, ThreadPoolExecutor(os.cpu_count()) as several:
            places = {"before": older, "after": HERE.parents[1]}
            made = {
                when: [several.submit(pretrained, name, place, seed, when, asked) for seed in range(SEEDS)]
                for when, place in places.items()
            }
            runs = {when: [one.result() for one in each] for when, each in made.items()}
        found = compared(name, runs, asked.data)
        (HERE / "changes" / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
        print(name, "done", flush=True)


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The files of an older commit."""
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["git", "archive", commit], cwd=HERE, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
        yield Path(folder)


def command(name: str) -> list[str]:
    return ["pretask", "pretrain", name, *COMMON]


def pretrained(name: str, code: Path, seed: int, when: str, asked: argparse.Namespace) -> Path:
    """One run on one core by the code of a folder, unless it is there; one that was cut off is begun anew."""
    run = asked.runs / f"{name}-{when}-s{seed}"
    if not (run / "DONE").exists():
        shutil.rmtree(run, ignore_errors=True)
        data = asked.data / CHANGES[name].train
        words = [*command(name), "--data", str(data), "--seed", str(seed), "--out", str(run)]
        print("$", shlex.join(words), "#", when, flush=True)
        known = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(code)}
        subprocess.run([sys.executable, "-m", *words], check=True, env=known)
    return run


def compared(name: str, runs: Mapping[str, Sequence[Path]], data: Path) -> dict[str, Any]:
    """kNN and linear probe of both, and the paired difference after - before."""
    right = {when: [scored(Run(run), data) for run in each] for when, each in runs.items()}
    found: dict[str, Any] = {"method": name, "what": CHANGES[name].what, "before": BEFORE, "seeds": SEEDS}
    found["command"] = shlex.join([*command(name), "--data", str(Path("DATA") / CHANGES[name].train)])
    found["solved"] = {when: [solved(run) for run in each] for when, each in runs.items()}
    for kind in ("kNN", "linear"):
        rows = {when: torch.stack([one[kind] for one in each]) for when, each in right.items()}
        found[kind] = {when: asdict(interval(row)) for when, row in rows.items()}
        found[kind]["difference"] = asdict(interval(rows["after"] - rows["before"]))
    return found


def scored(run: Run, data: Path) -> dict[str, torch.Tensor]:
    """Which test images each protocol names by pooled features, %."""
    train, test = (
        features.embed(run.encoder, sources.open_labelled(data / part, size=run.card["size"]))
        for part in (TRAIN, TEST)
    )
    chosen = measure.choose(train, len(train.classes), seed=0)
    found = [[*measure.measure(train, test, chosen, 0)]]
    return {kind: 100 * evaluate.right(found, kind.lower(), "pool")[0] for kind in ("kNN", "linear")}


if __name__ == "__main__":
    main()
