"""How often an image and its neighbor are of one class, round by round, of a run of neighbourhood discovery.

A run keeps what each round began with, which knows of no class. Where its images have labels, they are opened here,
after training, and for this page alone.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pretask import data as sources
from pretask.data import subset as share
from pretask.methods.neighbourhood_discovery import FOUND
from pretask.reports.study_plots import Answer, drawn
from pretask.reports.table import Grid
from pretask.train import run as runs
from pretask.types import UserError

Rounds = Mapping[str, Mapping[str, Tensor]]


def read(folder: Path) -> Rounds:
    """Round -> anchor (N,) bool, neighbor (N, k), entropy (N,); nothing of other runs."""
    paths = {path.stem.rpartition("-")[2]: path for path in folder.glob(FOUND.format("*"))}
    return {number: load_file(paths[number]) for number in sorted(paths, key=int)}


def answers(folder: Path, card: Mapping[str, Any]) -> list[Answer]:
    """Drawings and tables for the page: consistency where the images have labels, entropy always."""
    rounds = read(folder)
    if not rounds:
        return []
    label = labels(card)
    equal = f"nats, against the round; {math.log(card['n']):.1f} of an image that is as like any other"
    undecided = drawn(entropies(rounds), equal)
    return (
        [undecided]
        if label is None
        else [drawn(consistencies(rounds, label), "%, against the round"), undecided]
    )


def labels(card: Mapping[str, Any]) -> Tensor | None:
    """(N,) the class of each image that the run was trained on; None if they have none, or are gone."""
    _, settings, _, _ = runs.revive(card)
    known = {"size": card["size"], "channels": card["channels"], "root": settings.root}
    try:
        label = sources.open_labelled(settings.data, max_bad=settings.max_bad, progress=False, **known).label
    except (UserError, OSError):
        return None
    if settings.share != 1:
        label = label[share.chosen(len(label), settings.share, settings.seed)]
    return label if len(label) == card["n"] else None


def consistencies(rounds: Rounds, label: Tensor) -> Grid:
    """The share of an image's neighbors that have its class: of the anchors, and of all, had they all been taken in at once."""
    lines = []
    for number, found in rounds.items():
        same = (label[found["neighbor"].long()] == label[:, None]).float().mean(1)  # (N,)
        cells = [cell(100 * some) for some in (same[found["anchor"]], same)]
        lines.append((named(number, found), cells))
    return Grid(
        "How many neighbors are of their image's class?", "round", ["anchors", "all images"], lines, []
    )


def entropies(rounds: Rounds) -> Grid:
    """How undecided an image is among all: anchors, and the others."""
    lines = []
    for number, found in rounds.items():
        entropy, anchor = found["entropy"], found["anchor"]
        cells = [cell(some) if len(some) else None for some in (entropy[anchor], entropy[~anchor])]
        lines.append((named(number, found), cells))
    return Grid("How undecided are the images among all?", "round", ["anchors", "the others"], lines, [])


def named(number: str, found: Mapping[str, Tensor]) -> str:
    return f"{int(number) + 1} ({int(found['anchor'].sum()):,} anchors)"


def cell(value: Tensor) -> dict[str, Any]:
    """(M,) numbers of images -> their mean with its 95 % interval."""
    mean = value.mean().item()
    reach = 1.96 * value.std().item() / len(value) ** 0.5 if len(value) > 1 else 0.0
    return {"eval": "neighbors", "value": mean, "low": mean - reach, "high": mean + reach}
