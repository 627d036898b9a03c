"""Curves of a run: every number that its log and its watch hold, one small plot each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = Mapping[str, Any]

POINTS = 400
"""a curve keeps about as many; a phone shows fewer"""
SMOOTH = 40
"""the running mean of a noisy curve is over one part in so many of its length"""
ROUGH = 8
"""times its own range that a curve goes up and down in all before it counts as noisy: a schedule does not"""
SAID = {
    "loss": "Loss",
    "lr": "Learning rate",
    "images_per_s": "Images per second",
    "waiting": "Waiting for data (share)",
    "std": "Spread of features (std)",
    "cosine": "Cosine between images",
    "rank": "Effective rank of features",
    "relative": "Differing features (share)",
    "paid": "Loss on the same puzzles",
    "swapped": "Loss with puzzles mixed up",
    "knn": "Online kNN accuracy, %",
}
"""titles of the numbers every run has; a method's own parts keep their names"""
OURS = ("loss", "images_per_s", "waiting", "lr")
PLACES = {"step", "epoch", "round", "time", "lengthened"}
"""columns that say where a row belongs rather than what was measured"""


@dataclass(frozen=True)
class Plot:
    """One curve: title, last value, what it shows in words, what is wrong with it, the drawing."""

    title: str
    last: str
    words: str
    warning: str
    svg: str


def plots(log: Sequence[Row], watch: Sequence[Row] = ()) -> list[Plot]:
    """The loss and its parts, then the course of the run, then what the watch saw; only what was measured."""
    parts = [name for name in names(log) if name not in OURS]
    ordered = [*OURS[:1], *parts, *OURS[1:]]
    return [
        plot
        for rows, wanted in ((log, ordered), (watch, names(watch)))
        for plot in (drawn(name, rows) for name in wanted)
        if plot is not None
    ]


def names(rows: Sequence[Row]) -> list[str]:
    """Columns that hold numbers, in the order of their first appearance."""
    found = {name: None for row in rows for name, value in row.items() if is_number(value)}
    return [name for name in found if name not in PLACES]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def drawn(name: str, rows: Sequence[Row]) -> Plot | None:
    """The curve of one column, or None where it was never measured."""
    rows = [row for row in rows if name in row]
    if not rows:
        return None
    x = np.array([row["step"] for row in rows], float)
    y = np.array([row[name] if is_number(row[name]) else math.nan for row in rows], float)
    warning = gaps(x, y)
    words = "; ".join(filter(None, (in_words(x, y), warning)))
    return Plot(SAID.get(name, name), short(y[-1]), words, warning, picture(x, y))


def in_words(x: np.ndarray, y: np.ndarray) -> str:
    """The curve for those who do not see it."""
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(y) < 2:
        return "".join(f"{short(v)} at step {step:,.0f}" for step, v in zip(x, y, strict=True))
    course = f"{short(y[0])} at step {x[0]:,.0f}, {short(y[-1])} at step {x[-1]:,.0f}"
    return f"{course}; between {short(y.min())} and {short(y.max())}"


def gaps(x: np.ndarray, y: np.ndarray) -> str:
    """What a curve does not show: values that are no numbers."""
    bad = ~np.isfinite(y)
    many = f"at {bad.sum():,} of {len(y):,} logged steps, first at step {x[bad][0]:,.0f}" if bad.any() else ""
    return f"not a number {many}" if many else ""


def short(value: float) -> str:
    """Three digits that matter, and thousands set apart."""
    if not math.isfinite(value):
        return "not a number"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def thin(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """About `points` of a curve at most: the lowest and the highest of every stretch, so that spikes stay."""
    if len(x) <= points:
        return x, y
    keep = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), points // 2):
        good = stretch[np.isfinite(y[stretch])]
        keep |= {int(good[y[good].argmin()]), int(good[y[good].argmax()])} if len(good) else {int(stretch[0])}
    kept = np.array(sorted(keep))
    return x[kept], y[kept]


def smoothed(y: np.ndarray) -> np.ndarray:
    """Running mean over a window of the curve's own length, shrinking at the ends; gaps count as nothing."""
    half = max(1, len(y) // SMOOTH // 2)
    good = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(good, y, 0.0))])
    count = np.concatenate([[0.0], np.cumsum(good)])
    low = np.clip(np.arange(len(y)) - half, 0, None)
    high = np.clip(np.arange(len(y)) + half + 1, None, len(y))
    seen = count[high] - count[low]
    return np.where(seen > 0, (total[high] - total[low]) / np.maximum(seen, 1), math.nan)


def picture(x: np.ndarray, y: np.ndarray) -> str:
    """The curve as SVG: values pale, their running mean on top, a cross where they stopped being numbers."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    from pretask.viz import svg

    good = np.isfinite(y)
    y = np.where(good, y, math.nan)
    noisy = good.sum() > SMOOTH and np.abs(np.diff(y[good])).sum() > ROUGH * np.ptp(y[good])
    figure, axes = svg.blank(4.0, 2.1)
    axes.plot(*thin(x, y), color=svg.ACCENT, linewidth=1.0 if noisy else 1.8, alpha=0.35 if noisy else 1.0)
    if noisy:
        axes.plot(*thin(x, smoothed(y), POINTS // 2), color=svg.ACCENT, linewidth=1.8)
    if good.sum() == 1 or len(y) <= 12:
        axes.plot(x, y, "o", color=svg.ACCENT, markersize=4)
    for step in x[~good][:1]:
        axes.plot(step, 0.04, "X", color=svg.ALARM, markersize=8, transform=axes.get_xaxis_transform())
        axes.axvline(step, color=svg.ALARM, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.02, y=0.08)
    return svg.svg(figure)
