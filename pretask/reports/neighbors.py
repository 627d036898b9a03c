"""Neighborhood discovery, round by round: how often an image and its neighbor have the same class.

A run saves the neighborhoods at the start of each round, without labels. If its images have labels, they are read here,
after training, for the report only.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pretask import data
from pretask.data import fingerprint, subset
from pretask.data.base import canvas_fields
from pretask.evals.confidence import Interval
from pretask.methods.neighbourhood_discovery import FOUND
from pretask.reports.study_plots import Answer, plot_grid
from pretask.reports.table import Grid
from pretask.train import run as runs
from pretask.types import UserError

Rounds = Mapping[str, Mapping[str, Tensor]]


def read(folder: Path) -> Rounds:
    """Round -> anchor (N,) bool, neighbor (N, k), entropy (N,); empty for other methods."""
    paths = {path.stem.rpartition("-")[2]: path for path in folder.glob(FOUND.format("*"))}
    return {number: load_file(paths[number]) for number in sorted(paths, key=int)}


def answers(folder: Path, card: Mapping[str, Any]) -> list[Answer]:
    """Plots and tables for the report: entropy, and class consistency if the images have labels."""
    rounds = read(folder)
    if not rounds:
        return []
    label = labels(folder, card)
    axis = f"nats, over rounds; {math.log(card['n']):.1f} if all images are equally similar"
    entropy = plot_grid(entropies(rounds), axis)
    return (
        [entropy] if label is None else [plot_grid(consistencies(rounds, label), "%, over rounds"), entropy]
    )


def labels(folder: Path, card: Mapping[str, Any]) -> Tensor | None:
    """(N,) class of each training image; None if they have no or several labels, are missing, or have changed."""
    _, settings, _, _ = runs.parse_card(card)
    known = {**canvas_fields(runs.CardSource(card)), "reading": settings.reading}
    try:
        found = data.open_labeled(settings.data, progress=False, **known)
    except (UserError, OSError):
        return None
    if found.multi_label or fingerprint.describe_changes(folder, card, found):
        return None
    label = found.label
    if settings.fraction != 1:
        label = label[subset.subset_index(len(label), settings.fraction, settings.seed)]
    return label if len(label) == card["n"] else None


def consistencies(rounds: Rounds, label: Tensor) -> Grid:
    """Fraction of an image's neighbors with its class, over the anchors and over all images."""
    lines = []
    for number, found in rounds.items():
        same = (label[found["neighbor"].long()] == label[:, None]).float().mean(1)  # (N,)
        cells = [cell(100 * some) for some in (same[found["anchor"]], same)]
        lines.append((row_name(number, found), cells))
    return Grid(
        "How many neighbors have the class of their image?",
        "round",
        ["anchors", "all images"],
        lines,
        [],
        ["all images"],
    )


def entropies(rounds: Rounds) -> Grid:
    """Entropy of the similarity of an image to all others, over the anchors and over the other images."""
    lines = []
    for number, found in rounds.items():
        entropy, anchor = found["entropy"], found["anchor"]
        cells = [cell(some) if len(some) else None for some in (entropy[anchor], entropy[~anchor])]
        lines.append((row_name(number, found), cells))
    return Grid(
        "Entropy of the similarities",
        "round",
        ["anchors", "other images"],
        lines,
        [],
        ["other images"],
    )


def row_name(number: str, found: Mapping[str, Tensor]) -> str:
    return f"{int(number) + 1} ({int(found['anchor'].sum()):,} anchors)"


def cell(value: Tensor) -> Interval:
    """(M,) values per image -> their mean with a 95 % interval."""
    mean = value.mean().item()
    reach = 1.96 * value.std().item() / len(value) ** 0.5 if len(value) > 1 else 0.0
    return Interval(mean, mean - reach, mean + reach)
