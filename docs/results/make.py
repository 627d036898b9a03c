#!/usr/bin/env python3
"""Make the measured results of this folder again: train, score, keep cards and numbers, write the page.

    python docs/results/make.py EXPERIMENT … --data FOLDER [--runs runs/results]
    python docs/results/make.py                              only the page, from what is here

FOLDER holds cifar10/, clustering/ and imagenette224/. An experiment that is here is made anew; runs that lie in
--runs, finished, are used again. Each takes about ten minutes a run on two cores, with nothing else running.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CURVE = 100
"""rows of a run's log that are kept, for a reader to compare a loss curve with"""


@dataclass(frozen=True)
class Experiment:
    """Runs of one method that differ in their seed, and what they are scored on; paths below the data folder."""

    title: str
    method: str
    train: str
    labelled: str
    test: str
    seeds: int = 3
    flags: Sequence[str] = ("--budget", "10m")
    more: Callable[["Experiment", Path, Path], dict[str, Any]] | None = None
    """what else is measured, from the data and the first run's folder"""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("experiment", nargs="*", help=", ".join(EXPERIMENTS))
    words.add_argument("--data", type=Path)
    words.add_argument("--runs", type=Path, default=Path("runs/results"))
    chosen = words.parse_args()
    if unknown := set(chosen.experiment) - set(EXPERIMENTS):
        words.error(
            f"there is no experiment {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}"
        )
    if chosen.experiment and not chosen.data:
        words.error("--data is missing: the folder that holds cifar10/, clustering/ and imagenette224/")
    for name in chosen.experiment:
        make(name, EXPERIMENTS[name], chosen.data, chosen.runs)
    (HERE / "index.md").write_text(page())


def make(name: str, experiment: Experiment, data: Path, runs: Path) -> None:
    """Train what is missing, score it, and keep what a reader needs in a folder of its own."""
    first = runs / f"{name}-s0"
    if not (first / "run.json").exists():
        words = ["pretrain", experiment.method, "--data", data / experiment.train, "--out", first]
        pretask([*words, *experiment.flags])
    sets = ["--data", data / experiment.labelled, "--test", data / experiment.test]
    scores = pretask(["evaluate", first, *sets, "--seeds", experiment.seeds, "--json"])
    more: dict[str, Any] = {"took": seconds(first)}
    if experiment.more:
        more |= experiment.more(experiment, data, first)
    kept = HERE / name
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    (kept / "scores.json").write_text(plain(scores, data, runs))
    (kept / "more.json").write_text(json.dumps(more, indent=2) + "\n")
    for seed in range(experiment.seeds):
        run = runs / f"{name}-s{seed}"
        (kept / f"run-s{seed}.json").write_text(plain((run / "run.json").read_text(), data, runs))
        rows = (run / "log.jsonl").read_text().splitlines(keepends=True)
        (kept / f"log-s{seed}.jsonl").write_text("".join(rows[:: max(1, len(rows) // CURVE)]))


def pretask(words: Sequence[object]) -> str:
    """Run a command line; what it printed on standard output."""
    command = [sys.executable, "-m", "pretask", *map(str, words)]
    print("$", shlex.join(["pretask", *command[3:]]), flush=True)
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def seconds(run: Path) -> float:
    """From the first to the last moment of a finished run."""
    return float((run / "DONE").read_text().split()[0])


def plain(text: str, data: Path, runs: Path) -> str:
    """Without this machine's paths."""
    for folder, name in ((data, "DATA"), (runs, "RUNS")):
        text = text.replace(f"{folder}/", f"{name}/").replace(f"{folder.resolve()}/", f"{name}/")
    return text


# ---- what else is measured


def patches_at_equal_time(experiment: Experiment, data: Path, run: Path) -> dict[str, Any]:
    """k-means patches with as many centres as fit into the time that the run took, embedding included."""
    from pretask import sources
    from pretask.evals import baselines, features, measure

    took = seconds(run)
    train, test = (
        sources.open_labelled(data / part, size=32) for part in (experiment.labelled, experiment.test)
    )

    def made(centres: int) -> tuple[list[features.Features], float]:
        began = time.perf_counter()
        net = baselines.patches(train, centres)
        return [features.embed(net, part) for part in (train, test)], time.perf_counter() - began

    _, few = made(baselines.CENTRES)
    centres = int(baselines.CENTRES * took / few)  # the time grows with the centres, all but some seconds
    found, needed = made(centres)
    scores = {(r.eval, r.stage): r.value for r in measure.measure(*found)}
    return {
        "centres": centres,
        "seconds": round(needed),
        "linear": scores["linear", "pool"],
        "knn": scores["knn", "pool"],
    }


def rounds_of(experiment: Experiment, data: Path, run: Path) -> dict[str, Any]:
    """At the end of every round, on the bank: kNN among the others, and how often a neighbour has the class of its
    image, among the anchors that the next round begins with and among all. The run is made once more to look at it."""
    from pretask import pretraining, sources
    from pretask.methods import neighbourhood_discovery as nd
    from pretask.run import Run, revive

    label = sources.open_labelled(data / experiment.labelled).label
    method, settings, config, train = revive(Run(run).card)
    rounds: list[dict[str, Any]] = []
    discover = nd.discover

    def heard(bank: Any, *knobs: Any) -> Any:
        entropy, neighbour = discover(bank, *knobs)
        pure = (label[neighbour[:, 0]] == label).float()
        anchors = entropy.argsort(stable=True)[: len(label) * (len(rounds) + 1) // (train.rounds - 1)]
        row = {"knn": share(bank_knn(bank, label)), "anchors": len(anchors)}
        rounds.append(row | {"pure": share(pure[anchors]), "of all": share(pure)})
        return entropy, neighbour

    nd.discover = heard
    again = run.with_name(f"{run.name}-again")
    shutil.rmtree(again, ignore_errors=True)
    settings = replace(settings, out=again, steps=Run(run).card["steps"], budget=None)
    pretraining.pretrain(method, settings, config, train)
    nd.discover = discover
    return {"rounds": [*rounds, {"knn": share(bank_knn(Run(again).method.bank, label))}]}


def bank_knn(bank: Any, label: Any) -> Any:
    """(N,) whether the weighted vote of a row's 20 nearest others is for its class."""
    from pretask.evals import knn

    similarity, index = knn.nearest(bank, bank, 20, exclude_self=True)
    return (knn.vote(similarity, label[index], int(label.max()) + 1) == label).float()


def share(right: Any) -> tuple[float, float]:
    """(N,) of 0 and 1 -> the mean and half of its 95 % interval, %."""
    mean = right.mean().item()
    return 100 * mean, 196 * (mean * (1 - mean) / len(right)) ** 0.5


EXPERIMENTS: dict[str, Experiment] = {
    "rotnet-cifar10": Experiment(
        "RotNet on CIFAR-10",
        "rotnet",
        "cifar10/cifar10_train_full_jpeg.npz",
        "cifar10/cifar10_train_full_jpeg.npz",
        "cifar10/cifar10_test_full_jpeg.npz",
    ),
    "simclr-cifar10": Experiment(
        "SimCLR on CIFAR-10",
        "simclr",
        "cifar10/cifar10_train_full_jpeg.npz",
        "cifar10/cifar10_train_full_jpeg.npz",
        "cifar10/cifar10_test_full_jpeg.npz",
        more=patches_at_equal_time,
    ),
    "and-cifar10": Experiment(
        "Neighbourhood discovery on 8,000 images of CIFAR-10",
        "neighbourhood_discovery",
        "cifar10/cifar10_train.npz",
        "cifar10/cifar10_train.npz",
        "cifar10/cifar10_test.npz",
        more=rounds_of,
    ),
    "sdae-mnist": Experiment(
        "Stacked denoising autoencoder on MNIST",
        "sdae",
        "clustering/mnist_train.npz",
        "clustering/mnist_train.npz",
        "clustering/mnist_test3k.npz",
        flags=("--budget", "3m"),
    ),
    "rotnet-imagenette": Experiment(
        "RotNet on Imagenette, from JPEG files",
        "rotnet",
        "imagenette224/train",
        "imagenette224/train",
        "imagenette224/val",
        flags=("--budget", "10m", "--size", "64"),
        seeds=1,
    ),
}


# ---- the page


def page() -> str:
    """Every experiment that is here, as Markdown."""
    parts = [
        "# Measured results\n",
        "Made by `python docs/results/make.py`, which runs the commands below. Each folder beside this page holds "
        "the scores, the cards of the runs (settings, versions, device) and a thinned log of each, to compare a "
        "loss curve with. Values are %, on test images that no choice has seen; ± is half of the 95 % interval.\n",
    ]
    for name, experiment in EXPERIMENTS.items():
        if (HERE / name / "scores.json").exists():
            parts.append(section(name, experiment))
    return "\n".join(parts)


def section(name: str, experiment: Experiment) -> str:
    kept = HERE / name
    scores, card = (json.loads((kept / f).read_text()) for f in ("scores.json", "run-s0.json"))
    more = json.loads((kept / "more.json").read_text())
    flags = " ".join(experiment.flags)
    sets = f"--data DATA/{experiment.labelled} --test DATA/{experiment.test}"
    lines = [
        f"\n## {experiment.title}\n",
        "```",
        f"pretask pretrain {experiment.method} --data DATA/{experiment.train} --out RUNS/{name}-s0 {flags}",
        f"pretask evaluate RUNS/{name}-s0 {sets} --seeds {experiment.seeds}",
        "```\n",
        f"{card['steps']:,} steps of {card['train']['batch']} images of {card['size']} px with {card['encoder']}, "
        f"{experiment.seeds} seed{'s' * (experiment.seeds > 1)}; the first run took {more['took']:.0f} s on "
        f"{card['device']}, {card['threads']} threads, {card['precision']}, torch {card['versions']['torch']}.\n",
        *table(scores),
        "",
        *(f"- {said}" for said in differences(scores)),
        *(f"- {said}" for said in extras(more)),
    ]
    return "\n".join(lines) + "\n"


SHOWN = (
    ("knn", "kNN"),
    ("linear", "linear"),
    ("best linear", "best stage"),
    ("10-shot", "10-shot"),
    ("nmi", "NMI"),
)


def table(scores: dict[str, Any]) -> list[str]:
    names = dict.fromkeys(r["features"] for r in scores["rows"])
    lines = [f"| features | {' | '.join(heading for _, heading in SHOWN)} |", "|---|" + "---:|" * len(SHOWN)]
    return [
        *lines,
        *(f"| {name} | {' | '.join(cell(scores, name, e) for e, _ in SHOWN)} |" for name in names),
    ]


def cell(scores: dict[str, Any], name: str, eval: str) -> str:
    stage = "pool" if eval == "linear" else None
    rows = [r for r in scores["rows"] if (r["features"], r["eval"]) == (name, eval)]
    row = next((r for r in rows if stage in (None, r.get("stage"))), None)
    if row is None:
        return "–"
    stages = dict.fromkeys(c["stage"] for c in row["chosen"] if "stage" in c)
    where = f" ({', '.join(stages)})" if stages else ""
    return f"{row['value']:.1f} ±{(row['high'] - row['low']) / 2:.1f}{where}"


def differences(scores: dict[str, Any]) -> list[str]:
    return [
        f"{d['eval']}: {d['value']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}] against {d['minus']}"
        for d in scores["differences"]
    ]


def plus_minus(found: Sequence[float]) -> str:
    return f"{found[0]:.1f} ±{found[1]:.1f}"


def extras(more: dict[str, Any]) -> list[str]:
    """Sentences for what only this experiment measured."""
    said = []
    if "centres" in more:
        said.append(
            f"k-means patches at equal time: {more['centres']:,} centres, learned and embedded in "
            f"{more['seconds']} s: linear {more['linear']:.1f}, "
            f"kNN {more['knn']:.1f}"
        )
    for number, row in enumerate(more.get("rounds", ())):
        text = f"after round {number}: kNN of the bank {plus_minus(row['knn'])}"
        if "anchors" in row:
            text += (
                f"; of the {row['anchors']:,} anchors {plus_minus(row['pure'])} have a neighbour of their class, "
                f"of all images {plus_minus(row['of all'])}"
            )
        said.append(text)
    return said


if __name__ == "__main__":
    main()
