"""Repeating a run with other seeds or another fraction; existing repetitions are used, missing ones are trained."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretask.config import RunConfig
from pretask.data import fingerprint, places
from pretask.evals import baselines
from pretask.evals.forecast import Work, announce
from pretask.train import run
from pretask.train.logger import OnLog
from pretask.train.plan import entries_of
from pretask.train.run import Run
from pretask.types import UserError
from pretask.workflows import pretrain
from pretask.workflows.job import fresh, resumed


def budget(of: Run) -> int:
    """Number of supervised training steps that see as many images as the run did."""
    return max(1, of.card["steps"] * of.card["train"]["batch"] // baselines.SUPERVISED.batch)


def seed_runs(of: Run, count: int, on_log: OnLog | None) -> list[Run]:
    """`count` runs with consecutive seeds, starting with the run itself."""
    seeds = range(of.card["seed"] + 1, of.card["seed"] + count)
    missing = sum(not (seed_folder(of, seed) / run.DONE).exists() for seed in seeds)
    announce([Work("runs with other seeds", missing, of.seconds)])
    return [of, *(seed_run(of, seed, on_log) for seed in seeds)]


def seed_run(of: Run, seed: int, on_log: OnLog | None) -> Run:
    """The same run with another seed: loaded if it exists, otherwise trained."""
    return repeated(of, seed_folder(of, seed), on_log, seed=seed)


def seed_folder(of: Run, seed: int) -> Path:
    """The folder of the same run with another seed."""
    plain = re.sub(rf"-s{of.card['seed']}$", "", of.folder.resolve().name)
    return of.folder.resolve().with_name(f"{plain}-s{seed}")


def repeated(of: Run, folder: Path, on_log: OnLog | None, **change: Any) -> Run:
    """The same run with a changed setting: loaded from `folder` if it exists there, otherwise trained."""
    method, settings, config, train = run.parse_card(of.card)
    again = dataclasses.replace(settings, out=folder, plan=of.folder, steps=None, budget=None, **change)
    if (folder / run.CARD).is_file():
        check_alike(of, Run(folder), again, " and ".join(change))
        if (folder / run.DONE).exists():
            return Run(folder)
        return pretrain.pretrain(resumed(folder), on_log=on_log)
    return pretrain.pretrain(fresh(method, again, config, train, images=of.images()), on_log=on_log)


def check_alike(one: Run, other: Run, expected: RunConfig, changed: str) -> None:
    """Raises UserError unless the two runs differ only in the changed setting."""
    decides = ("method", "recipe", "config", "train", "encoder", "size", "channels", "steps")
    different = [key for key in decides if one.card[key] != other.card[key]]
    if not same_data(one.card, other.card):
        different.append("data")
    if "steps" not in different and entries_of(one.card) != entries_of(other.card):
        different.append("plan")
    settings = run.parse_card(other.card)[1]
    different += [key for key in ("seed", "fraction") if getattr(settings, key) != getattr(expected, key)]
    if expected.fraction == run.parse_card(one.card)[1].fraction and one.card["n"] != other.card["n"]:
        different.append("n")
    if different:
        raise UserError(
            f"{other.folder} is not {one.folder} with another {changed}: they differ in {', '.join(different)}; move it away"
        )


def same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two cards have the same images, by their fingerprints; for runs without one, by their path."""
    prints = one.get(fingerprint.KEY), other.get(fingerprint.KEY)
    if all(prints):
        return prints[0] == prints[1]
    return places.absolute(one["data"]) == places.absolute(other["data"])
