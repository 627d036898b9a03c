#!/usr/bin/env python3
"""Effect of aligning the default recipes with papers and released code: the same seeds before and after.

    python docs/results/changes.py [METHOD …] --data FOLDER [--runs runs/changes] [--seeds 3]

FOLDER holds imagenette224/, and pairs/ for text_topic; rooms for cross_domain are rendered. "Before" is an older commit of this
repository, checked out into a temporary folder. Runs have 300 steps (transformers: 1,500) at 96 px; one run per core is trained
in parallel. Finished runs in --runs are reused. The results are written to changes/METHOD.json, and `make.py` writes
their page.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import make
import torch
from orderings import COMMON, HERE, solved

from pretask import data as sources
from pretask import methods
from pretask.evals import features, measure, protocol
from pretask.evals.confidence import interval
from pretask.evals.scores import Measurement
from pretask.train.run import Run

BEFORE = "2a7ee8d"
TRAIN, TEST = "imagenette224/train", "imagenette224/val"
DATA = {"text_topic": f"{make.PAIRS}/train.jsonl", "cross_domain": f"scenes:{make.ROOMS}+{TRAIN}"}
"""training data of methods that need more than photographs; all are scored on photographs"""
TRANSFORMERS = ("mae", "ijepa", "ibot")
"""methods that are trained for 1,500 steps with patches of 12 px, since 300 steps are too few and patches of 4 px too many"""

COLORIZERS = ("color_proxy",)
"""methods that are also scored with `pretask colorize`, since their colors have changed"""

CHANGES = {
    "jigsaw": "permutations without near duplicates",
    "damaged_jigsaw": "permutations with random ties; the missing tile is predicted in L, a and b",
    "exemplar_cnn": "seeds of four sizes, from the whole image, from images that are not featureless",
    "context_prediction": "a grid with room for the jitter",
    "color_proxy": "colors are blended by the mean over bins",
    "swav": "the head gets all views at once; a queue; weight decay on the prototypes",
    "dino": "the head gets all views at once; weight decay on the prototypes",
    "ibot": "the head gets class and patch tokens at once; weight decay on the prototypes; the mask token starts at 0",
    "lejepa": "the head gets all views at once; centers are means of the global views",
    "ijepa": "the teacher's momentum increases linearly",
    "barlow_twins": "the loss is not divided by the width; separate batch-norm statistics for each view",
    "cross_domain": "the discriminator's replay buffers exchange maps one by one",
    "mae": "initial weights, epsilon, weight decay of the mask token and targets as released",
    "moco:v3": "heads as released; separate batch-norm statistics for each view",
    "text_topic": "words are lemmatized; topics from at least five passes",
}
"""method -> changes of its default recipe"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", nargs="*", help=", ".join(CHANGES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/changes"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    if unknown := set(args.method) - set(CHANGES):
        parser.error(f"no changes of {', '.join(sorted(unknown))}; known: {', '.join(CHANGES)}")
    (HERE / "changes").mkdir(exist_ok=True)
    for name in args.method or CHANGES:
        make.prepare(DATA.get(name, TRAIN), args.data, args.runs)
        with checkout(BEFORE) as older, ThreadPoolExecutor(os.cpu_count()) as executor:
            places = {"before": older, "after": HERE.parents[1]}
            made = {
                when: [executor.submit(pretrain, name, place, seed, when, args) for seed in range(args.seeds)]
                for when, place in places.items()
            }
            runs = {when: [one.result() for one in each] for when, each in made.items()}
            found = compare(name, runs, args.data)
            if name in COLORIZERS:
                found["painted"] = {
                    when: [score_colors(run, place, args.data) for run in runs[when]]
                    for when, place in places.items()
                }
        (HERE / "changes" / f"{plain(name)}.json").write_text(json.dumps(found, indent=2) + "\n")
        print(name, "done", flush=True)


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The files of a commit in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            ["git", "archive", commit], cwd=HERE.parents[1], check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
        yield Path(folder)


def command(name: str) -> list[str]:
    flags = COMMON
    if name in TRANSFORMERS:
        encoder = methods.recipe(name).encoder.replace("patch_size=4", "patch_size=12")
        flags = ("--size", "96", "--steps", "1500", "--encoder", encoder)
    return ["pretask", "pretrain", name, *flags]


def plain(name: str) -> str:
    """The name of a method as a part of a path."""
    return name.replace(":", "-")


def pretrain(name: str, code: Path, seed: int, when: str, args: argparse.Namespace) -> Path:
    """Train one run on one core with the code in a folder, unless it is finished; an interrupted run is restarted."""
    run = args.runs.resolve() / f"{plain(name)}-{when}-s{seed}"
    if not (run / "DONE").exists():
        shutil.rmtree(run, ignore_errors=True)
        data = make.place(DATA.get(name, TRAIN), args.data.resolve(), run)
        words = [*command(name), "--data", str(data), "--seed", str(seed), "--out", str(run)]
        print("$", shlex.join(words), "#", when, flush=True)
        # -m searches the working directory first
        subprocess.run(
            [sys.executable, "-m", *words], check=True, cwd=code, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    return run


def compare(name: str, runs: Mapping[str, Sequence[Path]], data: Path) -> dict[str, Any]:
    """kNN and linear probe before and after, and their paired difference."""
    right = {when: [score(Run(run), data) for run in each] for when, each in runs.items()}
    found: dict[str, Any] = {
        "method": name,
        "what": CHANGES[name],
        "before": BEFORE,
        "seeds": len(runs["after"]),
    }
    place = make.place(DATA.get(name, TRAIN), Path("DATA"), Path("RUNS/x"))
    found["command"] = shlex.join([*command(name), "--data", place])
    found["solved"] = {when: [solved(run) for run in each] for when, each in runs.items()}
    for kind in ("kNN", "linear"):
        rows = {when: torch.stack([one[kind] for one in each]) for when, each in right.items()}
        found[kind] = {when: asdict(interval(row)) for when, row in rows.items()}
        found[kind]["difference"] = asdict(interval(rows["after"] - rows["before"]))
    return found


def score_colors(run: Path, code: Path, data: Path) -> dict[str, dict[str, float]]:
    """Scores of `pretask colorize`, with the code in a folder, for the test images that a run colorizes and for gray ones."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "pretask",
            "colorize",
            str(run),
            "--data",
            str((data / TEST).resolve()),
            "--out",
            f"{folder}/out",
            "--json",
        ]
        output = subprocess.run(
            [sys.executable, "-m", *words], check=True, cwd=code, stdout=subprocess.PIPE, text=True
        ).stdout
    names = {"predicted": "painted", "gray": "none"}  # names in older code
    return {
        str(names.get(row["colors"], row["colors"])): {
            kind: row[kind]["value"] for kind in ("raw", "balanced", "chroma")
        }
        for row in json.loads(output)["scores"]
    }


def score(run: Run, data: Path) -> dict[str, torch.Tensor]:
    """Protocol -> (N,) 100 for each test image that it classifies correctly from pooled features, else 0."""
    train, test = (
        features.embed(run.encoder, sources.open_labeled(data / part, size=run.card["size"]))
        for part in (TRAIN, TEST)
    )
    chosen = measure.choose(train, len(train.classes), seed=0)
    found = [[*measure.measure(train, test, chosen, 0)]]
    return {
        kind: 100 * protocol.correct(found, Measurement(kind.lower(), "pool"))[0]
        for kind in ("kNN", "linear")
    }


if __name__ == "__main__":
    main()
