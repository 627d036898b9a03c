"""The answers of a study as drawings: scores over images or labels, likeness over stages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pretask.reports.table import Grid, grids, measured
from pretask.viz import svg

if TYPE_CHECKING:
    from pretask.workflows.study import Study

STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
"""of the lines in one drawing, so that they are told apart without colour"""
NUMBERED = ("stage", "round")
"""rows that are no numbers of images"""
BESIDE = ("untrained", "from scratch", "with labels", "all images", "the others")
"""how columns begin that are not the run's own"""
COLOURS = {False: svg.ACCENT, True: svg.INK}
"""of the run, and of what it stands beside"""


@dataclass(frozen=True)
class Answer:
    """One question on the page: the drawing, a sample of each line with its name, the drawing in words, the table."""

    title: str
    axis: str
    svg: str
    legend: Sequence[tuple[str, str]]
    words: str
    first: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    notes: Sequence[str]


def answers(study: "Study") -> list[Answer]:
    axes = {
        "supervised images": "% against images that were seen, without labels and with",
        "supervised labels": "% against labels; the run has seen all of its images, and none of them",
        "supervised classes": "% against classes that are told apart in pretraining; the run tells none",
        "data": "% against images trained on, of which the run's own are the last",
        "labels": "% against labels",
        "change": "CKA before and after fine-tuning, from the first stage to the last",
    }
    return [drawn(grid, axes[key]) for key, grid in grids(study).items()]


def drawn(grid: Grid, axis: str) -> Answer:
    rows = [(name, [measured(cell) for cell in cells]) for name, cells in grid.lines]
    words = "; ".join(
        f"{column}: " + ", ".join(f"{cells[i]} at {name}" for name, cells in rows)
        for i, column in enumerate(grid.columns)
    )
    legend = [(sample(*look(i, column)), column) for i, column in enumerate(grid.columns)]
    return Answer(
        grid.question, axis, picture(grid), legend, words, grid.first, grid.columns, rows, grid.skipped
    )


def look(number: int, column: str) -> tuple[str, Any]:
    """Colour and dashes of a line."""
    return COLOURS[column.startswith(BESIDE)], STYLES[number % len(STYLES)]


def sample(colour: str, dashes: Any) -> str:
    """A short line, for the legend."""
    dash = "" if dashes == "-" else f' stroke-dasharray="{" ".join(str(2 * d) for d in dashes[1])}"'
    return (
        '<svg viewBox="0 0 30 8" aria-hidden="true" focusable="false">'
        f'<path d="M0 4H30" stroke-width="2.5" style="stroke: {svg.VARIABLES[colour]}"{dash}/></svg>'
    )


def picture(grid: Grid) -> str:
    """Values with their intervals, over images or labels on a logarithmic axis, or over stages or rounds numbered from 1."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    figure, axes = svg.blank(4.6, 2.8)
    at = places(grid)
    for i, column in enumerate(grid.columns):
        colour, dashes = look(i, column)
        there = [(x, c) for x, (_, cells) in zip(at, grid.lines, strict=True) if (c := cells[i])]
        x, y, low, high = (
            [x for x, _ in there],
            *([c[v] for _, c in there] for v in ("value", "low", "high")),
        )
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, y, color=colour, linestyle=dashes, linewidth=1.8, marker="o", markersize=3.5)
    axes.xaxis.set_major_locator(FixedLocator(at))
    axes.xaxis.set_minor_locator(NullLocator())
    names = dict(zip(at, labels(grid), strict=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: names.get(x, "")))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.06, y=0.08)
    return svg.svg(figure)


def count(cells: Sequence[Mapping[str, Any] | None]) -> int:
    """Images, labels or classes that a row is of."""
    first = next(cell for cell in cells if cell is not None)
    return first.get("at", first.get("images"))


def places(grid: Grid) -> list[float]:
    """Where the rows lie: by the logarithm of how many images they are; no images lie half a decade further left."""
    if grid.first in NUMBERED:
        return [float(i + 1) for i in range(len(grid.lines))]
    counts = [count(cells) for _, cells in grid.lines]
    least = min((math.log10(n) for n in counts if n), default=0.0)
    return [math.log10(n) if n else least - 0.5 for n in counts]


def labels(grid: Grid) -> list[str]:
    if grid.first == "round":
        return [name.partition(" ")[0] for name, _ in grid.lines]
    if grid.first == "stage":
        return [str(i + 1) for i in range(len(grid.lines))]
    return [f"{count(cells):,}" for _, cells in grid.lines]
