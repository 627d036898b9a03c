#!/usr/bin/env python3
"""Cross-validate text topics on the figures of a small textbook: five runs, each with another fifth of the sections held out.

    python docs/results/folds.py --data FOLDER [--runs runs/results]

FOLDER holds pairs/. One fifth has too few figures to distinguish encoders. The five folds cover all 669 figures, each scored
with a run that has seen no figure of its section. Finished runs in --runs are reused. The results are written to
text_topic-folds/, and `make.py` writes their page.
"""

import argparse
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import curves
import make
import torch

from pretask.data.base import OpenOptions
from pretask.evals import baselines, features, measure, protocol, text_retrieval
from pretask.evals.scores import Measurement, Role, Scores
from pretask.train.run import Run
from pretask.workflows import kinds
from pretask.workflows.kinds import Candidate, TextImages

NAME = "text_topic-folds"
FOLDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    args = parser.parse_args()
    folds = args.runs / NAME
    make.split_textbook(args.data, folds, FOLDS)
    found: dict[str, list[list[measure.Result]]] = {}
    for fold in range(FOLDS):
        train, run = folds / f"train-{fold}.jsonl", folds / f"s{fold}"
        if not (run / "DONE").exists():
            shutil.rmtree(run, ignore_errors=True)
            make.pretask(command(str(train), fold, str(run)), make.TEXTBOOK.threads)
        for row, results in score(Run(run), train, folds / f"test-{fold}.jsonl").items():
            found.setdefault(row, []).append(results)
    pooled = {row: [[*pool_folds(parts)]] for row, parts in found.items()}
    kept = make.HERE / NAME
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    (kept / "scores.json").write_text(scores(pooled).to_json() + "\n")
    shown = [shlex.join(["pretask", *command(f"RUNS/{NAME}/train-0.jsonl", 0, f"RUNS/{NAME}/s0")])]
    about = {
        "title": "TextTopicNet on all figures of the textbook, in five folds of its sections",
        "commands": [f"OMP_NUM_THREADS={make.TEXTBOOK.threads} {line}" for line in shown],
        "took": make.seconds(folds / "s0"),
        "remark": f"made by `python docs/results/folds.py`: {FOLDS} runs, each with another fifth of the sections held out, on whose figures it is scored; it retrieves texts with its own head, the others with a probe. With the text of a figure's section instead of its caption and description, text@10 was 3.9 [0.3, 7.3] above the untrained network, image@10 2.8 [−1.0, 6.9] and kNN 1.5 [−1.5, 4.3] (this page at commit 47c5501)",
    }
    (kept / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    for fold in range(FOLDS):
        make.keep(folds / f"s{fold}", kept, fold, args.data, args.runs)
    logs = [curves.read_log(folds / f"s{fold}" / "log.jsonl") for fold in range(FOLDS)]
    curves.write(kept, logs)


def command(train: str, seed: int, out: str) -> list[str]:
    flags = make.TEXTBOOK.flags
    return ["pretrain", "text_topic", "--data", train, "--seed", str(seed), "--out", out, *flags]


def score(run: Run, train: Path, test: Path) -> dict[str, list[measure.Result]]:
    """Name of the features -> results on the held-out figures."""
    options = OpenOptions(run.card["size"], run.card["channels"], progress=False)
    found = kinds.open_kind(str(train), str(test), options, run.folder)
    assert isinstance(found, TextImages) and found.test is not None
    train_set, test_set = found.train, found.test
    rows = {
        run.card["method"]: run.encoder,
        f"untrained {run.encoder.name}": run.untrained,
        baselines.Pixels.name: baselines.Pixels(),
    }
    (head,) = found.heads(Candidate.of_runs([run]))
    made = {}
    for row, net in rows.items():
        of_train, of_test = (features.embed(net, part, progress=False) for part in (train_set, test_set))
        chosen = measure.choose(of_train, len(train_set.classes), 0)
        results = [*measure.measure(of_train, of_test, chosen, 0)]
        own = head if net is run.encoder else None
        made[row] = [
            *results,
            *text_retrieval.score_text_retrieval(of_train, of_test, train_set, test_set, chosen, own),
        ]
    return made


def pool_folds(folds: Sequence[Sequence[measure.Result]]) -> Iterator[measure.Result]:
    """Results over the figures of all folds, for those measurements that every fold has per figure."""
    for first in folds[0]:
        same = [r for results in folds for r in protocol.matching_results([results], first)]
        right = [r.correct.double() for r in same if r.correct is not None]
        if len(right) == len(folds):
            whole = torch.cat(right)
            yield replace(first, correct=whole, value=100 * whole.mean().item(), notes={})


def scores(found: Mapping[str, Sequence[Sequence[measure.Result]]]) -> Scores:
    name, fresh, pixels = found
    roles: dict[str, Role] = {name: "run", fresh: "untrained", pixels: "pixels"}
    n = protocol.correct(found[name], Measurement("knn", "pool")).shape[1]
    rows, less = [], []
    about: dict[str, Any]
    for other, runs in found.items():
        about = {"name": other, "role": roles[other], "data": "all folds", "seeds": [*range(FOLDS)]}
        rows += protocol.combine_runs(runs, 0, **about)
        if other != name:
            about = {"name": name, "minus": other, "minus_role": roles[other]}
            less += protocol.paired_differences(found[name], runs, 0, **about)
    data = {
        "train": "four fifths",
        "n_train": 4 * n // FOLDS,
        "test": "all folds",
        "n_test": n,
        "classes": [],
    }
    return Scores(data, rows, less, [], {}, protocol.PROTOCOL)


if __name__ == "__main__":
    main()
