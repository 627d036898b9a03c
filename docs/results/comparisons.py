#!/usr/bin/env python3
"""Does pretraining pay? `pretask compare` on three sets of images, with and without published weights, for one hour each.

    python docs/results/comparisons.py NAME … --data FOLDER [--runs runs/comparisons]

FOLDER holds cifar10/, imagenette224/, clustering/ and weights/. An interrupted comparison goes on. Its result is written to
comparisons/NAME.json, with label-free metrics of the runs of its first rung, and `make.py` writes the page.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import make
import torch
from experiments import read
from label_free import COMPARISONS

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Setting:
    """Images, how many of them have labels, and the test set."""

    title: str
    data: str
    labeled: str
    count: int
    """labels; 0: all"""
    test: str = ""
    flags: tuple[str, ...] = ()


SETTINGS = {
    "cifar10": Setting(
        "CIFAR-10, 2,000 labels",
        "cifar10/cifar10_train_full_jpeg.npz",
        "cifar10/cifar10_train.npz",
        2000,
        "cifar10/cifar10_test.npz",
    ),
    "imagenette": Setting(
        "Imagenette at 64 px, 500 labels",
        "imagenette224/train",
        "imagenette224/train",
        500,
        "imagenette224/val",
        ("--size", "64"),
    ),
    "coil20": Setting("COIL-20, all labels", "clustering/coil20.npz", "clustering/coil20.npz", 0),
}
NAMES = {f"{name}{with_weights}": name for name in SETTINGS for with_weights in ("", "-lite0")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", help=", ".join(NAMES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/comparisons"))
    args = parser.parse_args()
    if unknown := set(args.name) - set(NAMES):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    for name in args.name or NAMES:
        compare(name, SETTINGS[NAMES[name]], args.data, args.runs)


def compare(name: str, setting: Setting, data: Path, runs: Path) -> None:
    out = runs / name
    runs.mkdir(parents=True, exist_ok=True)
    words = [
        "compare",
        "--data",
        str(data / setting.data),
        "--labels",
        labels(name, setting, data, runs),
        *setting.flags,
    ]
    words += ["--test", str(data / setting.test)] if setting.test else []
    words += ["--init", make.PUBLISHED.replace("DATA", str(data))] if name.endswith("lite0") else []
    words += ["--budget", "1h", "--out", str(out)]
    going = ["compare", "--resume", str(out)] if (out / "state.json").exists() else words
    subprocess.run([sys.executable, "-m", "pretask", *going], check=True)
    found = {
        "title": setting.title,
        "command": make.plain(shlex.join(["pretask", *words]), data, runs),
        "compare": json.loads(make.plain((out / "compare.json").read_text(), data, runs)),
        "label_free": [*label_free(out)],
    }
    (HERE / COMPARISONS).mkdir(exist_ok=True)
    (HERE / COMPARISONS / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


def labels(name: str, setting: Setting, data: Path, runs: Path) -> str:
    """The labeled images: all, or as many of each class as make up `count`, in a table."""
    if not setting.count:
        return str(data / setting.labeled)
    from pretask import data as sources

    source = sources.open_labeled(str(data / setting.labeled), size=8, progress=False)
    names = source.files(torch.arange(len(source)))
    each = setting.count // len(source.classes)
    table = runs / f"{name}.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for k, kind in enumerate(source.classes):
            mine = (source.label == k).nonzero().flatten()[:each].tolist()
            rows.writerows([names[i], kind] for i in mine)
    # a table is relative to the unlabeled images, which here are others
    return f"labels:{table}@{data / setting.labeled}"


def label_free(out: Path) -> Iterator[Mapping[str, Any]]:
    """Label-free metrics of the runs of the first rung, on the images that they trained on, and their held-out accuracy."""
    from pretask.data.loader import sample
    from pretask.evals import label_free
    from pretask.rng import Rng
    from pretask.train.run import Run
    from pretask.workflows.rungs import folder_name

    first = read(out / "compare.json")["rungs"][0]["held_out"]
    for name, accuracy in first.items():
        folder = out / "runs" / f"{folder_name(name)}-1-s0"
        if not (folder / "DONE").exists():  # the rows that need no training
            continue
        run = Run(folder)
        source = run.images(progress=False)
        x = torch.cat(
            [
                run.encoder(part.float() / 255)["pool"].detach()
                for part in sample(source, 2000, Rng(0)).image.split(64)
            ]
        )
        metrics = label_free.metrics(x) | {
            "lidar": label_free.lidar(label_free.views(run.encoder, source, 0, "cpu")),
            "stability": label_free.stability(x, 0),
        }
        yield {
            "name": name,
            "method": run.card["method"],
            "encoder": run.card["encoder"],
            "accuracy": accuracy["value"],
            **metrics,
        }


def body(folder: Path) -> str:
    """The page: a table and the decision of each comparison."""
    lines = [
        "Generated by `python docs/results/comparisons.py`: `pretask compare` for one hour on two cores, with everything, as in [Does pretraining "
        "pay?](../../compare.md) Accuracy in % of a linear probe on the best stage, on test images; behind: how far the leader is ahead, with "
        "an interval that is corrected for the number of pairs of rows.\n",
    ]
    for path in sorted(folder.glob("*.json")):
        found = read(path)
        result = found["compare"]
        plan, data = result["plan"], result["data"]
        command = found["command"].replace(" --", " \\\n    --")
        weights = " and EfficientNet-Lite0's weights" if path.stem.endswith("lite0") else ""
        lines += [
            f"## {found['title']}{weights}\n",
            f"```sh\n{command}\n```\n",
            f"**{result['decision']}** {data['n']:,} images, {data['n_labeled']:,} labels, {data['n_test']:,} test images; rungs of "
            f"{', '.join(map(str, plan['candidates']))} candidates, {', '.join(f'{s:.0f} s' for s in plan['seconds'])} a run; "
            f"{result['seconds'] / 60:.0f} minutes in all.\n",
            "| | accuracy | behind | p | seconds |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in result["rows"]:
            gap = row["gap"]
            behind = f"{-gap['value']:+.1f} [{-gap['high']:+.1f}, {-gap['low']:+.1f}]" if gap else ""
            p = f"{gap['p']:.2g}" if gap else ""
            half = (row["high"] - row["low"]) / 2
            lines.append(
                f"| {row['name']} | {row['accuracy']:.1f} ±{half:.1f} | {behind} | {p} | {row['seconds']:.0f} |"
            )
        lines += ["", *left_out(result)]
    return "\n".join([*lines, ""])


def left_out(result: Mapping[str, Any]) -> Iterator[str]:
    for name, why in result["left_out"].items():
        yield f"- {name} was not tried: {why}"
    if worth := result["worth"]:
        high = "∞" if worth["high"] is None else f"{worth['high']:.2g}"
        times = "more" if worth["times"] is None else f"{worth['times']:.2g}"
        yield f"- the best run is worth {times} [{worth['low']:.2g}, {high}] times the labels of {result['other']} ({worth['shots']} a class)"
    yield ""


if __name__ == "__main__":
    main()
