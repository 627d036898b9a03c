#!/usr/bin/env python3
"""Measure orderings that the papers report, small: the same number of steps for every arm, three seeds, frozen features.

    python docs/results/orderings.py [STUDY …] --data FOLDER [--runs runs/orderings]

FOLDER holds imagenette224/. Runs lie side by side, one on each core; those that are there, finished, are used again.
Each takes some minutes. What came out is kept in orderings/STUDY.json, and `make.py` puts it on the page.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SEEDS = 3
COMMON = ("--size", "96", "--steps", "300")


@dataclass(frozen=True)
class Study:
    """One question: arms that differ in some flags of a method, the first of which the others are compared with."""

    paper: str
    """what it reports"""
    method: str
    arms: Mapping[str, Sequence[str]]


STUDIES = {
    "exemplar-copies": Study(
        "More copies of each seed give better features; beyond about 100 nothing is gained (PAMI, fig. 4).",
        "exemplar_cnn",
        {
            "a new copy every time": (),
            "16 copies of each seed": ("--copies", "16"),
            "4 copies": ("--copies", "4"),
            "1 copy": ("--copies", "1"),
        },
    ),
    "exemplar-clustered": Study(
        "Seeds that look alike as one class: up to 2.4 points more on STL-10 (PAMI, table 2).",
        "exemplar_cnn",
        {"every seed a class": (), "look-alikes merged after half": ("--merge", "0.9", "--rounds", "2")},
    ),
    "context-gap": Study(
        "Without gap and jitter the puzzle is solved by lines that run on, and teaches less (sec. 3.1).",
        "context_prediction",
        {"gap and jitter": (), "neither": ("--gap", "0", "--jitter", "0")},
    ),
    "context-colour": Study(
        "Dropping and projecting colours do about equally well (sec. 3.1).",
        "context_prediction",
        {"projected": (), "dropped": ("--colour", "drop"), "kept": ("--colour", "keep")},
    ),
    "jigsaw-orders": Study(
        "A larger list of orders is harder to solve and better for transfer (table 4).",
        "jigsaw",
        {"100 orders": (), "10 orders": ("--orders", "10"), "1,000 orders": ("--orders", "1000")},
    ),
    "jigsaw-shuffles": Study(
        "Not in the paper: how many orders the head is asked for each time.",
        "jigsaw",
        {"8 orders of an image": (), "1 order": ("--shuffles", "1")},
    ),
    "damaged-heads": Study(
        "The three tasks together beat each of them alone (abstract).",
        "damaged_jigsaw",
        {
            "all three": (),
            "order alone": ("--colour", "0", "--inpaint", "0"),
            "colour alone": ("--order", "0", "--inpaint", "0"),
            "missing tile alone": ("--order", "0", "--colour", "0"),
        },
    ),
    "colour-loss": Study(
        "Classification with rare colours weighed up paints better than without, and that better than regression; "
        "what it is worth as features is told of the first alone (sec. 3.1).",
        "colorization",
        {
            "rare colours weighed up, soft answers": (),
            "all colours alike": ("--uniform", "1"),
            "the nearest bin alone": ("--neighbours", "1"),
            "squared error of ab": ("--regress",),
        },
    ),
    "proxy-loss": Study(
        "The loss matters (abstract); histograms come first.",
        "color_proxy",
        {
            "histograms of hue and chroma": (),
            "histograms of a and b": ("--targets", "lab_histogram"),
            "squared error of a and b": ("--targets", "lab"),
        },
    ),
}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("study", nargs="*", help=", ".join(STUDIES))
    words.add_argument("--data", type=Path, required=True)
    words.add_argument("--runs", type=Path, default=Path("runs/orderings"))
    asked = words.parse_args()
    if unknown := set(asked.study) - set(STUDIES):
        words.error(f"there is no study {', '.join(sorted(unknown))}; there are {', '.join(STUDIES)}")
    train, test = (asked.data / "imagenette224" / part for part in ("train", "val"))
    for name in asked.study or STUDIES:
        study = STUDIES[name]
        runs = [
            [folder(asked.runs, study, flags, seed) for seed in range(SEEDS)] for flags in study.arms.values()
        ]
        with ThreadPoolExecutor(os.cpu_count()) as several:
            made = [
                several.submit(pretrained, study, flags, train, seed, run)
                for flags, arm in zip(study.arms.values(), runs, strict=True)
                for seed, run in enumerate(arm)
            ]
        for each in made:
            each.result()  # raises what went wrong in it
        found = compared(study, runs, train, test)
        (HERE / "orderings").mkdir(exist_ok=True)
        (HERE / "orderings" / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
        print(name, "done", flush=True)


def folder(runs: Path, study: Study, flags: Sequence[str], seed: int) -> Path:
    """Of one run; arms that several studies have in common are made once."""
    return runs / "-".join([study.method, *(flag.removeprefix("--") for flag in flags), f"s{seed}"])


def pretrained(study: Study, flags: Sequence[str], train: Path, seed: int, run: Path) -> None:
    """One run on one core, unless it is there; one that was cut off is begun anew."""
    if (run / "DONE").exists():
        return
    shutil.rmtree(run, ignore_errors=True)
    words = [*command(study, flags), "--data", str(train), "--seed", str(seed), "--out", str(run)]
    print("$", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", *words], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def command(study: Study, flags: Sequence[str]) -> list[str]:
    return ["pretask", "pretrain", study.method, *COMMON, *flags]


def compared(study: Study, runs: Sequence[Sequence[Path]], train: Path, test: Path) -> dict[str, Any]:
    """The linear probe on pooled features of every arm, and how far it is from the first arm's."""
    import torch

    from pretask import sources
    from pretask.evals import evaluate, features, measure
    from pretask.evals.interval import interval
    from pretask.run import Run

    labelled = [sources.open_labelled(part, size=Run(runs[0][0]).card["size"]) for part in (train, test)]

    def right(run: Path) -> torch.Tensor:
        """(N,) of the test samples."""
        of_train, of_test = (pooled(features.embed(Run(run).encoder, part)) for part in labelled)
        chosen = measure.choose(of_train, len(of_train.classes), seed=0)
        probed = measure.by_probes(of_train, of_test, len(of_train.classes), chosen)
        return evaluate.right([list(probed)], "linear", "pool")[0]

    def pooled(f: features.Features) -> features.Features:
        return features.Features({"pool": f.stages["pool"]}, f.label, f.classes, f.source)

    def solved(run: Path) -> float:
        """The share of puzzles solved in the last tenth of a run, %; NaN of puzzles that are not right or wrong."""
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        last = [row.get("accuracy", math.nan) for row in rows[-max(1, len(rows) // 10) :]]
        return 100 * sum(last) / len(last)

    scored = [torch.stack([right(run) for run in arm]) for arm in runs]
    arms = [
        {
            "arm": name,
            "command": shlex.join([*command(study, flags), "--data", "DATA/imagenette224/train"]),
            "solved": None if math.isnan(share := sum(map(solved, arm)) / len(arm)) else share,
            "linear": asdict(interval(100 * score)),
            "difference": asdict(interval(100 * (score - scored[0]))) if number else None,
        }
        for number, ((name, flags), arm, score) in enumerate(
            zip(study.arms.items(), runs, scored, strict=True)
        )
    ]
    return {"paper": study.paper, "method": study.method, "seeds": SEEDS, "n": len(labelled[1]), "arms": arms}


if __name__ == "__main__":
    main()
