#!/usr/bin/env python3
"""Cluster COIL-20 and a part of MNIST: JULE, agglomerative clustering of raw pixels, and k-means of raw pixels.

    python docs/results/clusters.py [SET …] --data FOLDER [--runs runs/clusters]

FOLDER holds clustering/. Each run of JULE takes some minutes on one core. Finished runs in --runs are reused. The results
are written to clusters/SET.json, and `make.py` writes their page.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Images:
    """A dataset, its number of clusters, and the published results."""

    title: str
    clusters: int
    published: str
    seeds: int = 3


SETS = {
    "coil20": Images(
        "COIL-20: 1,440 views of 20 objects",
        20,
        "A fork of the released code reports NMI 98.3 and ACC 97.6 for JULE, on images of 128 px; these are of 32 px.",
    ),
    "mnist_test3k": Images(
        "MNIST: 3,000 of its test images",
        10,
        "Published: JULE NMI 91.5 and ACC 96.1, the same merging of raw pixels 86.4 and 93.3, on all 10,000 test images.",
        seeds=10,  # the results of single runs vary widely
    ),
}

LINKS = "10"
"""neighbors of an image in the graph of raw pixels, as in JULE (the default is the published number)"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", nargs="*", help=", ".join(SETS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/clusters"))
    args = parser.parse_args()
    if unknown := set(args.set) - set(SETS):
        parser.error(f"unknown dataset {', '.join(sorted(unknown))}; known: {', '.join(SETS)}")
    (HERE / "clusters").mkdir(exist_ok=True)
    for name in args.set or SETS:
        path = HERE / "clusters" / f"{name}.json"
        path.write_text(json.dumps(cluster_all(name, args.data, args.runs), indent=2) + "\n")
        print(name, "done", flush=True)


def cluster_all(name: str, data: Path, runs: Path) -> dict[str, Any]:
    """Scores and command of each method."""
    images, place = SETS[name], f"clustering/{name}.npz"
    count = ["--clusters", str(images.clusters)]
    rows = []
    for way in (["pixels", "--by", "kmeans"], ["pixels"], ["pixels", "--neighbors", LINKS]):
        rows.append(row([*way, *count], data, place, runs / f"{name}-{'-'.join(way)}"))
    for seed in range(images.seeds):
        run = runs / f"{name}-s{seed}"
        train = ["pretrain", "jule", *count, "--seed", str(seed)]
        if not (run / "DONE").exists():
            shutil.rmtree(run, ignore_errors=True)
            pretask([*train, "--data", str(data / place), "--out", str(run)])
        found = row([str(run), *count], data, place, run.with_name(f"{run.name}-clusters"))
        rows.append(found | {"command": shlex.join(["pretask", *train, "--data", f"DATA/{place}"])})
    return {"title": images.title, "published": images.published, "rows": rows}


def row(words: Sequence[str], data: Path, place: str, out: Path) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    made = json.loads(pretask(["cluster", *words, "--data", str(data / place), "--out", str(out), "--json"]))
    command = shlex.join(["pretask", "cluster", *words, "--data", f"DATA/{place}"])
    return {"command": command, "n": made["n"], "nmi": made["nmi"], "acc": made["acc"]}


def pretask(words: Sequence[str]) -> str:
    print("$", shlex.join(["pretask", *words]), flush=True)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pretask", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env).stdout


if __name__ == "__main__":
    main()
