#!/usr/bin/env python3
"""What default recipes gain and lose by being held against papers and released code: the same seed before and after.

    python docs/results/changes.py [METHOD …] --data FOLDER [--runs runs/changes] [--seeds 3]

FOLDER holds imagenette224/, and pairs/ for text_topic; rooms for cross_domain are rendered. Before is a checkout of an older commit of this repository, made in a temporary folder. Runs
are 300 steps (of transformers 1,500) on 96 px, on one core, two at a time; those that are there, finished, are used again. What came out is kept in
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
"""what is learned from where photographs do not do; the scores are those of photographs all the same"""
TRANSFORMERS = ("mae", "ijepa", "ibot")
"""to which 300 steps are few, and patches of 4 px too many: they have 1,500 steps and patches of 12 px"""

PAINTERS = ("color_proxy",)
"""of which `pretask colorize` is scored as well, since what they paint has changed"""

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
"""what was changed in recipes that small machines run"""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("method", nargs="*", help=", ".join(CHANGES))
    words.add_argument("--data", type=Path, required=True)
    words.add_argument("--runs", type=Path, default=Path("runs/changes"))
    words.add_argument("--seeds", type=int, default=3)
    asked = words.parse_args()
    if unknown := set(asked.method) - set(CHANGES):
        words.error(f"no change of {', '.join(sorted(unknown))}; there are {', '.join(CHANGES)}")
    (HERE / "changes").mkdir(exist_ok=True)
    for name in asked.method or CHANGES:
        make.prepare(DATA.get(name, TRAIN), asked.data, asked.runs)
        with checkout(BEFORE) as older, ThreadPoolExecutor(os.cpu_count()) as several:
            places = {"before": older, "after": HERE.parents[1]}
            made = {
                when: [
                    several.submit(pretrained, name, place, seed, when, asked) for seed in range(asked.seeds)
                ]
                for when, place in places.items()
            }
            runs = {when: [one.result() for one in each] for when, each in made.items()}
            found = compared(name, runs, asked.data)
            if name in PAINTERS:
                found["painted"] = {
                    when: [painted(run, place, asked.data) for run in runs[when]]
                    for when, place in places.items()
                }
        (HERE / "changes" / f"{plain(name)}.json").write_text(json.dumps(found, indent=2) + "\n")
        print(name, "done", flush=True)


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The files of an older commit."""
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
    """For a path."""
    return name.replace(":", "-")


def pretrained(name: str, code: Path, seed: int, when: str, asked: argparse.Namespace) -> Path:
    """One run on one core by the code of a folder, unless it is there; one that was cut off is begun anew."""
    run = asked.runs.resolve() / f"{plain(name)}-{when}-s{seed}"
    if not (run / "DONE").exists():
        shutil.rmtree(run, ignore_errors=True)
        data = make.place(DATA.get(name, TRAIN), asked.data.resolve(), run)
        words = [*command(name), "--data", str(data), "--seed", str(seed), "--out", str(run)]
        print("$", shlex.join(words), "#", when, flush=True)
        # -m looks in the folder where it is started first
        subprocess.run(
            [sys.executable, "-m", *words], check=True, cwd=code, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    return run


def compared(name: str, runs: Mapping[str, Sequence[Path]], data: Path) -> dict[str, Any]:
    """kNN and linear probe of both, and the paired difference after - before."""
    right = {when: [scored(Run(run), data) for run in each] for when, each in runs.items()}
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


def painted(run: Path, code: Path, data: Path) -> dict[str, dict[str, float]]:
    """What `pretask colorize`, by the code of a folder, says of the test images that a run paints, and of gray ones."""
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
    names = {"predicted": "painted", "gray": "none"}  # as older code calls them
    return {
        str(names.get(row["colors"], row["colors"])): {
            kind: row[kind]["value"] for kind in ("raw", "balanced", "chroma")
        }
        for row in json.loads(output)["scores"]
    }


def scored(run: Run, data: Path) -> dict[str, torch.Tensor]:
    """Which test images each protocol names by pooled features, %."""
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
