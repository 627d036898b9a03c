"""Plots of a study: scores over images, labels or classes, and CKA over stages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pretask.reports.panels import Panel, sample
from pretask.reports.table import Grid, grids, measured
from pretask.viz import svg

if TYPE_CHECKING:
    from pretask.workflows.study import Study

STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
"""line styles, so that lines are distinguishable without color"""
COLORS = {False: svg.ACCENT, True: svg.INK}
"""color of the run (False) and of baselines (True)"""


@dataclass(frozen=True, kw_only=True)
class Answer(Panel):
    """One question in the report: a plot and its table."""

    first: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    notes: Sequence[str]


def answers(study: "Study") -> list[Answer]:
    axes = {
        "supervised images": "%, over pretraining images, without labels and with",
        "supervised labels": "%, over labels; the run used all images and no labels",
        "supervised classes": "%, over classes in supervised pretraining; the run uses none",
        "data": "%, over pretraining images; the last point is the run itself",
        "labels": "%, over labels",
        "change": "CKA before and after fine-tuning, from the first stage to the last",
    }
    return [plot_grid(grid, axes[key]) for key, grid in grids(study).items()]


def plot_grid(grid: Grid, axis: str) -> Answer:
    rows = [(name, [measured(cell, grid.decimals) for cell in cells]) for name, cells in grid.lines]
    words = "; ".join(
        f"{column}: " + ", ".join(f"{cells[i]} at {name}" for name, cells in rows)
        for i, column in enumerate(grid.columns)
    )
    legend = [
        (sample(*line_style(i, column in grid.baselines)), column) for i, column in enumerate(grid.columns)
    ]
    return Answer(
        grid.title, picture(grid), axis, words, legend,
        first=grid.first, columns=grid.columns, rows=rows, notes=grid.skipped,
    )  # fmt: skip


def line_style(number: int, is_baseline: bool) -> tuple[str, Any]:
    """Color and line style."""
    return COLORS[is_baseline], STYLES[number % len(STYLES)]


def picture(grid: Grid) -> str:
    """Values with intervals over a logarithmic number of images, labels or classes, or over stages or rounds from 1."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    figure, axes = svg.blank_figure(4.6, 2.8)
    at = positions(grid)
    for i, column in enumerate(grid.columns):
        color, dashes = line_style(i, column in grid.baselines)
        there = [(x, c) for x, (_, cells) in zip(at, grid.lines, strict=True) if (c := cells[i])]
        x, y, low, high = (
            [x for x, _ in there],
            *([getattr(c, v) for _, c in there] for v in ("value", "low", "high")),
        )
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(x, y, color=color, linestyle=dashes, linewidth=1.8, marker="o", markersize=3.5)
    axes.xaxis.set_major_locator(FixedLocator(at))
    axes.xaxis.set_minor_locator(NullLocator())
    names = dict(zip(at, labels(grid), strict=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: names.get(x, "")))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.06, y=0.08)
    return svg.to_svg(figure)


def positions(grid: Grid) -> list[float]:
    """Position of each row on the axis: log10 of its count, with 0 half a decade left of the smallest."""
    if not grid.counts:
        return [float(i + 1) for i in range(len(grid.lines))]
    least = min((math.log10(n) for n in grid.counts if n), default=0.0)
    return [math.log10(n) if n else least - 0.5 for n in grid.counts]


def labels(grid: Grid) -> list[str]:
    if grid.first == "round":
        return [name.partition(" ")[0] for name, _ in grid.lines]
    return [f"{n:,}" for n in grid.counts] or [str(i + 1) for i in range(len(grid.lines))]
