#!/usr/bin/env python3
"""Small-scale ablations of the papers: the same number of steps for every arm, at least three seeds, frozen features.

    python docs/results/orderings.py [STUDY …] --data FOLDER [--runs runs/orderings]

FOLDER holds cifar10/, detection/ and imagenette224/. One run per core is trained in parallel, for some minutes each. Finished
runs in --runs are reused. The results are written to orderings/STUDY.json, and `make.py` writes their page.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import make
import torch

from pretask import data as sources
from pretask.evals import features, measure, protocol
from pretask.evals.confidence import interval
from pretask.evals.scores import Measurement
from pretask.train.run import Run
from pretask.transforms import augment

HERE = Path(__file__).resolve().parent
COMMON = ("--size", "96", "--steps", "300")


@dataclass(frozen=True)
class Study:
    """An ablation: arms that differ in some flags of a method and are compared with the first arm."""

    paper: str
    """the claim of the paper"""
    method: str
    arms: Mapping[str, Sequence[str]]
    train: str = "imagenette224/train"
    """relative to the data folder, or to that of the runs if it is made for them"""
    common: Sequence[str] = COMMON
    seeds: int = 3
    more: Mapping[str, Callable[[Run, Path, Path], torch.Tensor]] = field(default_factory=dict)
    """additional measurements: (run, data folder, folder of runs) -> a number per test image"""


# ---- measurements


def solved(run: Path) -> float:
    """Accuracy on the pretext task in the last tenth of a run, %; NaN if the method logs none."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = [row.get("accuracy", math.nan) for row in rows[-max(1, len(rows) // 10) :]]
    return 100 * sum(last) / len(last)


def linear(
    run: Run, data: Path, runs: Path, train: str = "imagenette224/train", test: str = "imagenette224/val"
) -> torch.Tensor:
    """(N,) 100 for each image that the linear probe on pooled features classifies correctly, else 0."""
    labeled = (sources.open_labeled(data / part, size=run.card["size"]) for part in (train, test))
    return probe(*(features.embed(run.encoder, part) for part in labeled))


def domain_accuracy(run: Run, data: Path, runs: Path) -> torch.Tensor:
    """(N,) 100 for each image that a new linear probe classifies correctly as rendered or photographed, else 0. Its input is
    the mean of the discriminator's input map. It is fitted on one half of the images and tested on the other, and vice versa.
    The run was neither trained nor tuned on any of them."""
    kinds = [
        mean_map(run, sources.open(path, size=run.card["size"]))
        for path in (runs / make.OTHER_ROOMS / "color", data / "detection/coco_semantic/JPEGImages")
    ]
    one, other = (
        features.Features(
            {"pool": torch.cat([kind[half::2] for kind in kinds])},
            torch.repeat_interleave(torch.tensor([len(kind[half::2]) for kind in kinds])),
            ["rendered", "photograph"],
            "kinds",
        )
        for half in (0, 1)
    )
    return torch.cat([probe(one, other), probe(other, one)])


@torch.no_grad()
def mean_map(run: Run, source: sources.Images) -> torch.Tensor:
    """(N, C) mean of the discriminator's input map over locations, for images of one channel as in training."""
    made = []
    for index in torch.arange(len(source)).split(128):
        x = augment.to_float(source.__getitems__(index).image)[:, 1:2].expand(-1, 3, -1, -1)
        made.append(run.encoder(x)[run.method.tap].float().mean((2, 3)))
    return torch.cat(made)


def probe(of_train: features.Features, of_test: features.Features) -> torch.Tensor:
    """(N,) 100 for each test sample that a linear probe on "pool" classifies correctly, else 0."""
    train, test = (replace(f, stages={"pool": f.stages["pool"]}) for f in (of_train, of_test))
    chosen = measure.choose(train, len(train.classes), seed=0)
    found = measure.score_probes(test, chosen)
    return 100 * protocol.correct([[*found]], Measurement("linear", "pool"))[0]


STUDIES = {
    "exemplar-copies": Study(
        "More copies of each seed give better features, up to about 100 (PAMI, fig. 4).",
        "exemplar_cnn",
        {
            "a new copy every time": (),
            "16 copies of each seed": ("--copies", "16"),
            "4 copies": ("--copies", "4"),
            "1 copy": ("--copies", "1"),
        },
    ),
    "exemplar-clustered": Study(
        "Merging similar seeds into one class: up to 2.4 points more on STL-10 (PAMI, table 2).",
        "exemplar_cnn",
        {
            "every seed a class": (),
            "similar seeds merged after half of the run": ("--merge-threshold", "0.9", "--cycles", "2"),
        },
    ),
    "context-gap": Study(
        "Without gap and jitter, the task is solved by continuing lines, and features are worse (sec. 3.1).",
        "context_prediction",
        {"gap and jitter": (), "neither": ("--gap", "0", "--jitter", "0")},
    ),
    "context-color": Study(
        "Dropping and projecting colors do about equally well (sec. 3.1).",
        "context_prediction",
        {"projected": (), "dropped": ("--color", "drop"), "kept": ("--color", "keep")},
    ),
    "jigsaw-orders": Study(
        "More permutations are harder to solve and transfer better (table 4).",
        "jigsaw",
        {
            "100 permutations": (),
            "10 permutations": ("--num-permutations", "10"),
            "1,000 permutations": ("--num-permutations", "1000"),
        },
    ),
    "jigsaw-distance": Study(
        "The larger the mean distance between the permutations, the higher the accuracy and the better the transfer (table 4).",
        "jigsaw",
        {
            "maximal distance": (),
            "random": ("--distance", "middle"),
            "minimal distance": ("--distance", "minimal"),
        },
    ),
    "jigsaw-shuffles": Study(
        "Not in the paper: number of permutations per image and step.",
        "jigsaw",
        {"8 permutations": (), "1 permutation": ("--shuffles", "1")},
    ),
    "rotnet-directions": Study(
        "Four rotations are better than eight or two; of two, the pair with the upright image is better (table 2: 89.1 % on CIFAR-10; "
        "88.5; 87.5 and 85.5). An image gives one view per rotation, so a step with eight takes twice as long.",
        "rotnet",
        {
            "4 directions": (),
            "8 directions": ("--angles", *(str(angle) for angle in range(0, 360, 45))),
            "0° and 180°": ("--angles", "0", "180"),
            "90° and 270°": ("--angles", "90", "270"),
        },
    ),
    "damaged-heads": Study(
        "The three tasks together beat each single task (abstract).",
        "damaged_jigsaw",
        {
            "all three": (),
            "order only": ("--color", "0", "--inpaint", "0"),
            "color only": ("--order", "0", "--inpaint", "0"),
            "missing tile only": ("--order", "0", "--color", "0"),
        },
    ),
    "mae-masks": Study(
        "Linear probe: 73.5 % with random masking; 72.3 with half masked in blocks, 63.9 with three quarters in blocks, "
        "66.0 with all but a grid (table 1f).",
        "mae",
        {
            "three quarters, random": (),
            "half, in blocks": ("--mask-sampling", "block", "--mask-ratio", "0.5"),
            "three quarters, in blocks": ("--mask-sampling", "block"),
            "all but a grid": ("--mask-sampling", "grid"),
        },
        common=(
            "--size",
            "96",
            "--steps",
            "1500",
            "--encoder",
            make.MAE_96,
        ),  # it needs more than 300
    ),
    "color-loss": Study(
        "Classification with rebalanced rare colors gives better colors than without, and that better ones than regression; "
        "features are reported only for the first (sec. 3.1).",
        "colorization",
        {
            "rare colors rebalanced, soft targets": (),
            "all colors weighted equally": ("--uniform", "1"),
            "only the nearest bin": ("--num-neighbors", "1"),
            "squared error of ab": ("--regression",),
        },
    ),
    "proxy-loss": Study(
        "The loss matters (abstract); histograms are best.",
        "color_proxy",
        {
            "histograms of hue and chroma": (),
            "histograms of a and b": ("--targets", "lab_histogram"),
            "squared error of a and b": ("--targets", "lab"),
        },
    ),
    "scene-tasks": Study(
        "The three tasks together transfer better than each single task (table 2).",
        "cross_domain",
        {
            "three tasks and the adversary": (),
            "no adversary": ("--adversarial", "0"),
            "contours only": ("--normals", "0", "--depth", "0"),
            "depth only": ("--contours", "0", "--normals", "0"),
            "normals only": ("--contours", "0", "--depth", "0"),
        },
        train=f"scenes:{make.ROOMS}+imagenette224/train",
        common=("--size", "64", "--steps", "300"),
        more={
            "CIFAR-10": partial(linear, train="cifar10/cifar10_train.npz", test="cifar10/cifar10_test.npz"),
            "domain accuracy": domain_accuracy,
        },
    ),
    "scene-adversary": Study(
        "The adversary should make features of rendered and of real images harder to distinguish.",
        "cross_domain",
        {
            "without the adversary": ("--adversarial", "0"),
            "with it": (),
            "with twenty times its weight": ("--adversarial", "1"),
        },
        train=f"scenes:{make.ROOMS}+imagenette224/train",
        common=("--size", "64", "--steps", "1500"),
        seeds=6,  # with three, the difference was not significant
        more={"domain accuracy": domain_accuracy},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="*", help=", ".join(STUDIES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/orderings"))
    args = parser.parse_args()
    if unknown := set(args.study) - set(STUDIES):
        parser.error(f"unknown study {', '.join(sorted(unknown))}; known: {', '.join(STUDIES)}")
    for name in args.study or STUDIES:
        study = STUDIES[name]
        make.prepare(f"{study.train}+{make.OTHER_ROOMS}" if study.more else study.train, args.data, args.runs)
        runs = [
            [folder(args.runs, study, flags, seed) for seed in range(study.seeds)]
            for flags in study.arms.values()
        ]
        with ThreadPoolExecutor(os.cpu_count()) as executor:
            made = [
                executor.submit(pretrain, study, flags, args.data, seed, run)
                for flags, arm in zip(study.arms.values(), runs, strict=True)
                for seed, run in enumerate(arm)
            ]
        for each in made:
            each.result()  # raises its exception, if any
        found = compare(study, runs, args.data, args.runs)
        (HERE / "orderings").mkdir(exist_ok=True)
        (HERE / "orderings" / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
        print(name, "done", flush=True)


def folder(runs: Path, study: Study, flags: Sequence[str], seed: int) -> Path:
    """Folder of one run; studies share the runs that they have in common."""
    words = [flag.removeprefix("--") for flag in (*study.common, *flags)]
    return runs / "-".join([study.method, *words, f"s{seed}"])


def pretrain(study: Study, flags: Sequence[str], data: Path, seed: int, run: Path) -> None:
    """Train one run on one core, unless it is finished; an interrupted run is restarted."""
    if (run / "DONE").exists():
        return
    shutil.rmtree(run, ignore_errors=True)
    train = make.place(study.train, data, run)
    words = [*command(study, flags), "--data", train, "--seed", str(seed), "--out", str(run)]
    print("$", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", *words], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def command(study: Study, flags: Sequence[str]) -> list[str]:
    return ["pretask", "pretrain", study.method, *study.common, *flags]


def compare(study: Study, runs: Sequence[Sequence[Path]], data: Path, runs_folder: Path) -> dict[str, Any]:
    """The scores of every arm, and their differences from the first arm."""
    scores = {"linear": linear, **study.more}
    made = {
        name: [torch.stack([score(Run(run), data, runs_folder) for run in arm]) for arm in runs]
        for name, score in scores.items()
    }
    train = make.plain(make.place(study.train, Path("DATA"), Path("RUNS/x")), data, runs_folder)
    arms = []
    for number, (name, flags) in enumerate(study.arms.items()):
        share = sum(map(solved, runs[number])) / study.seeds
        found = {
            score: {
                **asdict(interval(of[number])),
                "difference": asdict(interval(of[number] - of[0])) if number else None,
            }
            for score, of in made.items()
        }
        words = shlex.join([*command(study, flags), "--data", train])
        arms.append({"arm": name, "command": words, "solved": None if math.isnan(share) else share} | found)
    test = {score: of[0].shape[1] for score, of in made.items()}
    return {"paper": study.paper, "method": study.method, "seeds": study.seeds, "n": test, "arms": arms}


if __name__ == "__main__":
    main()
