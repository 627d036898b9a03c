#!/usr/bin/env python3
"""Judge text topics on every figure of a small textbook: a fifth of its sections is held out in turn, one run for each.

    python docs/results/folds.py --data FOLDER [--runs runs/results]

FOLDER holds pairs/. One fifth alone has too few figures to tell an encoder from another; the five together are all 669,
each judged by a run that has seen neither it nor one of its section. Runs that are there, finished, are used again. What came out is
kept in text_topic-folds/, and `make.py` puts it on the page.
"""

import argparse
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import make
import torch

from pretask.evals import baselines, features, measure
from pretask.evals import protocol as evaluate
from pretask.evals import text_retrieval as crossmodal
from pretask.train.run import Run
from pretask.workflows import evaluate as evaluating

NAME = "text_topic-folds"
FOLDS = 5


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", type=Path, required=True)
    words.add_argument("--runs", type=Path, default=Path("runs/results"))
    asked = words.parse_args()
    folds = asked.runs / NAME
    make.cut(asked.data, folds, FOLDS)
    found: dict[str, list[list[measure.Result]]] = {}
    for fold in range(FOLDS):
        train, run = folds / f"train-{fold}.jsonl", folds / f"s{fold}"
        if not (run / "DONE").exists():
            shutil.rmtree(run, ignore_errors=True)
            make.pretask(command(str(train), fold, str(run)), make.TEXTBOOK.threads)
        for row, results in judged(Run(run), train, folds / f"test-{fold}.jsonl").items():
            found.setdefault(row, []).append(results)
    pooled = {row: [[*together(parts)]] for row, parts in found.items()}
    kept = make.HERE / NAME
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    (kept / "scores.json").write_text(scores(pooled).to_json() + "\n")
    shown = [shlex.join(["pretask", *command(f"RUNS/{NAME}/train-0.jsonl", 0, f"RUNS/{NAME}/s0")])]
    about = {
        "title": "TextTopicNet on every figure of the textbook, its sections held out fifth by fifth",
        "commands": [f"OMP_NUM_THREADS={make.TEXTBOOK.threads} {line}" for line in shown],
        "took": make.seconds(folds / "s0"),
        "remark": f"made by `python docs/results/folds.py`: {FOLDS} runs, each with another fifth of the sections held out, whose figures it is judged on; it finds texts by its own head, the others by a probe. With the text of a figure's section in place of its caption and description, text@10 was 3.9 [0.3, 7.3] above the untrained network, image@10 2.8 [−1.0, 6.9] and kNN 1.5 [−1.5, 4.3] (this page at commit 47c5501)",
    }
    (kept / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    for fold in range(FOLDS):
        make.keep(folds / f"s{fold}", kept, fold, asked.data, asked.runs)


def command(train: str, seed: int, out: str) -> list[str]:
    flags = make.TEXTBOOK.flags
    return ["pretrain", "text_topic", "--data", train, "--seed", str(seed), "--out", out, *flags]


def judged(run: Run, train: Path, test: Path) -> dict[str, list[measure.Result]]:
    """Whose features -> what they got right of the figures that were held out."""
    known = {"size": run.card["size"], "channels": run.card["channels"], "root": None, "max_bad": 0.1}
    learned, unseen = evaluating.told(str(train), str(test), run.folder, progress=False, **known) or (
        None,
        None,
    )
    assert learned is not None and unseen is not None
    rows = {
        run.card["method"]: run.encoder,
        f"untrained {run.encoder.name}": run.untrained,
        baselines.Pixels.name: baselines.Pixels(),
    }
    (head,) = evaluating.heads([run])
    made = {}
    for row, net in rows.items():
        of_train, of_test = (features.embed(net, part, progress=False) for part in (learned, unseen))
        chosen = measure.choose(of_train, len(learned.classes), 0)
        results = [*measure.measure(of_train, of_test, chosen, 0)]
        own = head if net is run.encoder else None
        made[row] = [*results, *crossmodal.by_text(of_train, of_test, learned, unseen, chosen, own)]
    return made


def together(folds: Sequence[Sequence[measure.Result]]) -> Iterator[measure.Result]:
    """What every fold has of each figure, of all figures in a row."""
    for first in folds[0]:
        same = [r for results in folds for r in evaluate.alike([results], first.eval, first.stage)]
        right = [r.right.double() for r in same if r.right is not None]
        if len(right) == len(folds):
            whole = torch.cat(right)
            yield replace(first, right=whole, value=100 * whole.mean().item(), notes={})


def scores(found: Mapping[str, Sequence[Sequence[measure.Result]]]) -> evaluate.Scores:
    own = next(iter(found))
    n = evaluate.right(found[own], "knn", "pool").shape[1]
    rows = [
        {"features": row, "own": row == own, **one, "data": "all folds", "seeds": [*range(FOLDS)]}
        for row, runs in found.items()
        for one in evaluate.combined(runs, 0)
    ]
    less = [
        d for row in found if row != own for d in evaluate.differences(own, found[own], row, found[row], 0)
    ]
    data = {
        "train": "four fifths",
        "n_train": 4 * n // FOLDS,
        "test": "all folds",
        "n_test": n,
        "classes": [],
    }
    return evaluate.Scores(data, rows, less, [], {})


if __name__ == "__main__":
    main()
