#!/usr/bin/env python3
"""Model selection with few labels: choose k, penalty and stage on one split, on repeated folds, or by the one-standard-error rule.

    python docs/results/choices.py [SET …] --data FOLDER [--runs runs/choices]

FOLDER holds cifar10/, clustering/ and imagenette224/. For each dataset, the script uses the encoders of two short runs and an
untrained one. It draws 100, 250 and 1,000 training images 20 times, chooses k, penalty and stage from their labels by each
rule, and scores all candidates on the test images. Regret is the difference in test accuracy between the best candidate in
hindsight and the chosen one. Finished runs in --runs are reused, and encoders with results in choices/ are skipped; `make.py`
writes their page.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretask import data as sources
from pretask.data.subset import LabeledSubset
from pretask.evals import knn, linear_probe
from pretask.evals.features import Features, embed
from pretask.evals.holdout import Splits, split, splits
from pretask.rng import Rng
from pretask.train.run import Run

HERE = Path(__file__).resolve().parent
LABELS = (100, 250, 1000)
DRAWS = 20
POOL, TEST = 5000, 2000
"""largest number of training images to draw from, and of test images"""
RULES = ("one split", "folds", "folds, one standard error")


@dataclass(frozen=True)
class Images:
    train: str
    test: str
    steps: int
    """length of the run of each method"""
    flags: tuple[str, ...] = ()


SETS = {
    "cifar10": Images("cifar10/cifar10_train.npz", "cifar10/cifar10_test.npz", 600),
    "mnist": Images("clustering/mnist_train.npz", "clustering/mnist_test3k.npz", 400),
    "imagenette": Images("imagenette224/train", "imagenette224/val", 400, ("--size", "64")),
}
METHODS = ("simclr", "rotnet")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", nargs="*", help=", ".join(SETS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/choices"))
    args = parser.parse_args()
    if unknown := set(args.set) - set(SETS):
        parser.error(f"unknown dataset {', '.join(sorted(unknown))}; known: {', '.join(SETS)}")
    (HERE / "choices").mkdir(exist_ok=True)
    for name in args.set or SETS:
        for method in METHODS:
            run = pretrain(name, method, args.data, args.runs)
            write(name, method, run, args.data)
            if method == METHODS[0]:
                write(name, "untrained", run, args.data)


def pretrain(name: str, method: str, data: Path, runs: Path) -> Run:
    folder, images = runs / f"{method}-{name}", SETS[name]
    if not (folder / "DONE").exists():
        command = ["pretrain", method, "--data", str(data / images.train), "--out", str(folder)]
        command += ["--steps", str(images.steps), *images.flags]
        print("$", shlex.join(["pretask", *command]), flush=True)
        subprocess.run(
            [sys.executable, "-m", "pretask", *command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    return Run(folder)


def write(name: str, encoder: str, run: Run, data: Path) -> None:
    """Write the regret of every rule to choices/SET-ENCODER.json."""
    path = HERE / "choices" / f"{name}-{encoder}.json"
    if path.exists():
        return
    net = run.untrained if encoder == "untrained" else run.encoder
    train, test = (
        subset(
            sources.open_labeled(data / spec, size=net.size, channels=net.channels, progress=False),
            limit,
            name,
        )
        for spec, limit in ((SETS[name].train, POOL), (SETS[name].test, TEST))
    )
    of_train, of_test = (embed(net, part, progress=False) for part in (train, test))
    rows = [
        {"labels": n, "draw": draw, **regrets(of_train, of_test, n, draw)}
        for n in LABELS
        for draw in range(DRAWS)
    ]
    about = {"set": name, "encoder": encoder, "train": len(train), "test": len(test), "rows": rows}
    path.write_text(json.dumps(about) + "\n")
    print(name, encoder, "done", flush=True)


def subset(source: Any, limit: int, name: str) -> LabeledSubset:
    index = Rng(0, "choices", name).permutation(len(source))[:limit].sort().values
    return LabeledSubset(source, index, name)


def regrets(train: Features, test: Features, n: int, draw: int) -> dict[str, Any]:
    """Regret of each rule for one draw of n labels, in percentage points, for kNN and for the linear probe."""
    index = Rng(draw, "labels", n).permutation(len(train))[:n]
    label, classes = train.label[index], len(train.classes)
    ways = {"folds": splits(label, draw), "one split": one_split(label, draw)}
    pool = train.stages["pool"][index]
    near = neighbors(pool, label, test, ways)
    probes = {stage: path(x[index], label, classes, test, stage, ways) for stage, x in train.stages.items()}
    best = max(float(found["test"].max()) for found in probes.values())
    regret = {"knn": {}, "linear": {}}
    stages = {}
    for rule in RULES:
        way, one_error = rule.split(",")[0], "," in rule
        k = pick(near[way], near["error"], one_error)  # with the one-standard-error rule, the largest such k
        regret["knn"][rule] = 100 * float(near["test"].max() - near["test"][k])
        chosen = {stage: pick(found[way], found["error"], one_error) for stage, found in probes.items()}
        held = torch.tensor([float(probes[stage][way][i]) for stage, i in chosen.items()])
        error = torch.tensor([float(probes[stage]["error"][i]) for stage, i in chosen.items()])
        stage = [*chosen][
            pick(held.flip(0), error.flip(0), one_error) * -1 - 1
        ]  # with the one-standard-error rule, the deepest such stage
        regret["linear"][rule] = 100 * (best - float(probes[stage]["test"][chosen[stage]]))
        stages[rule] = stage
    return {"regret": regret, "stage": stages, "best": 100 * best}


def pick(accuracy: Tensor, error: Tensor, one_error: bool) -> int:
    """Index of the best candidate, or of the first within one standard error of it."""
    best = int(accuracy.argmax())
    if not one_error:
        return best
    return int((accuracy >= accuracy[best] - error[best]).nonzero()[0])


def one_split(label: Tensor, draw: int) -> Splits:
    """Hold out a fifth of each class once."""
    fit, held = split(label, Rng(draw, "holdout"))
    n = torch.arange(len(label))
    return Splits(n, torch.isin(n, fit)[None], n, torch.isin(n, held)[None])


def neighbors(x: Tensor, label: Tensor, test: Features, ways: Mapping[str, Splits]) -> dict[str, Tensor]:
    """For each k, from the largest to the smallest: held-out accuracy with each split, its standard error, and test accuracy."""
    counts, classes = sorted(knn.NEIGHBORS, reverse=True), len(test.classes)
    found: dict[str, Tensor] = {}
    for way, held in ways.items():
        right = torch.zeros(len(counts), *held.held_out_mask.shape, dtype=torch.bool)
        for b, (fit_mask, held_out_mask) in enumerate(zip(held.fit_mask, held.held_out_mask, strict=True)):
            fit, out = held.fit[fit_mask], held.held_out[held_out_mask]
            for i, k in enumerate(counts):
                right[i, b, held_out_mask] = knn.knn(x[fit], label[fit], x[out], classes, k) == label[out]
        found[way] = torch.tensor([held.accuracy(r) for r in right])
    correct = [knn.knn(x, label, test.stages["pool"], classes, k) == test.label for k in counts]
    return found | {"error": error(found["folds"], len(x)), "test": torch.stack(correct).double().mean(1)}


def path(
    x: Tensor, label: Tensor, classes: int, test: Features, stage: str, ways: Mapping[str, Splits]
) -> dict[str, Tensor]:
    """The same for each penalty, from the strongest to the weakest; the fits of all splits and of all samples are solved together."""
    design = linear_probe.Design(x)
    parts = [
        torch.zeros(len(held.fit_mask), len(x)).bool().index_copy(1, held.fit, held.fit_mask)
        for held in ways.values()
    ]
    problem = linear_probe.Problem(design, label, classes, torch.cat([*parts, torch.ones(1, len(x)).bool()]))
    found: dict[str, list[float]] = {way: [] for way in (*ways, "test")}
    theta = None
    for penalty in linear_probe.PENALTIES:
        theta = problem.solve(penalty, theta, linear_probe.SEARCH_TOLERANCE)
        right = (
            linear_probe.logits(design.rows.to(design.dtype), *design.fold(theta)).argmax(2) == label[:, None]
        ).T  # (B, N)
        first = 0
        for way, held in ways.items():
            last = first + len(held.held_out_mask)
            found[way].append(held.accuracy(right[first:last, held.held_out]))
            first = last
        predicted = design.probe(theta[-1]).predict(test.stages[stage])
        found["test"].append((predicted == test.label).double().mean().item())
    made = {way: torch.tensor(values) for way, values in found.items()}
    return made | {"error": error(made["folds"], len(x))}


def error(accuracy: Tensor, n: int) -> Tensor:
    """Standard error of the accuracy of n samples."""
    return (accuracy * (1 - accuracy) / n).sqrt()


if __name__ == "__main__":
    main()
