"""Curves of a run: one small plot for each column of its log and of its monitor."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = Mapping[str, Any]

POINTS = 400
"""approximate maximum number of points per curve"""
SMOOTH = 40
"""the running mean of a noisy curve covers 1/SMOOTH of its length"""
ROUGH = 8
"""a curve is noisy if its total variation exceeds its range this many times; schedules do not"""
TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "images_per_s": "Images per second",
    "data_wait": "Data wait (fraction of time)",
    "std": "Feature std",
    "cosine": "Mean cosine between images",
    "rank": "Effective rank of the features",
    "relative_variance": "Variance between images (fraction)",
    "probe_loss": "Loss on the monitor's puzzles",
    "shuffled_loss": "Loss on shuffled puzzles",
    "knn": "Online kNN accuracy, %",
}
"""titles of the columns that every run has; loss parts of a method keep their names"""
GENERAL = ("loss", "images_per_s", "data_wait", "lr")
POSITION = {"step", "epoch", "cycle", "time", "lengthened"}
"""columns that locate a row in the run and are not plotted"""


@dataclass(frozen=True)
class Plot:
    """One curve: title, last value, description, warning, SVG."""

    title: str
    last: str
    words: str
    warning: str
    svg: str


def plots(log: Sequence[Row], monitor: Sequence[Row] = ()) -> list[Plot]:
    """The loss and its parts, then speed and learning rate, then the monitor; only columns with values."""
    parts = [name for name in names(log) if name not in GENERAL]
    ordered = [*GENERAL[:1], *parts, *GENERAL[1:]]
    return [
        plot
        for rows, columns in ((log, ordered), (monitor, names(monitor)))
        for plot in (plot_column(name, rows) for name in columns)
        if plot is not None
    ]


def names(rows: Sequence[Row]) -> list[str]:
    """Numeric columns, in order of first appearance."""
    found = {name: None for row in rows for name, value in row.items() if is_number(value)}
    return [name for name in found if name not in POSITION]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plot_column(name: str, rows: Sequence[Row]) -> Plot | None:
    """The plot of one column; None if the column does not occur."""
    rows = [row for row in rows if name in row]
    if not rows:
        return None
    x = np.array([row["step"] for row in rows], float)
    y = np.array([row[name] if is_number(row[name]) else math.nan for row in rows], float)
    warning = gaps(x, y)
    words = "; ".join(filter(None, (describe(x, y), warning)))
    return Plot(TITLES.get(name, name), short(y[-1]), words, warning, picture(x, y))


def describe(x: np.ndarray, y: np.ndarray) -> str:
    """A description of the curve for screen readers."""
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(y) < 2:
        return "".join(f"{short(v)} at step {step:,.0f}" for step, v in zip(x, y, strict=True))
    course = f"{short(y[0])} at step {x[0]:,.0f}, {short(y[-1])} at step {x[-1]:,.0f}"
    return f"{course}; between {short(y.min())} and {short(y.max())}"


def gaps(x: np.ndarray, y: np.ndarray) -> str:
    """A note on values that are not finite."""
    bad = ~np.isfinite(y)
    many = f"at {bad.sum():,} of {len(y):,} logged steps, first at step {x[bad][0]:,.0f}" if bad.any() else ""
    return f"not a number {many}" if many else ""


def short(value: float) -> str:
    """Three significant digits, or whole numbers with thousands separators."""
    if not math.isfinite(value):
        return "not a number"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def thin(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `points` points of a curve: minimum and maximum of each section, which keeps spikes."""
    if len(x) <= points:
        return x, y
    keep = {0, len(x) - 1}
    for section in np.array_split(np.arange(len(x)), points // 2):
        good = section[np.isfinite(y[section])]
        keep |= {int(good[y[good].argmin()]), int(good[y[good].argmax()])} if len(good) else {int(section[0])}
    kept = np.array(sorted(keep))
    return x[kept], y[kept]


def smoothed(y: np.ndarray) -> np.ndarray:
    """Running mean over 1/SMOOTH of the curve, over fewer values at the ends; values that are not finite are ignored."""
    half = max(1, len(y) // SMOOTH // 2)
    good = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(good, y, 0.0))])
    count = np.concatenate([[0.0], np.cumsum(good)])
    low = np.clip(np.arange(len(y)) - half, 0, None)
    high = np.clip(np.arange(len(y)) + half + 1, None, len(y))
    seen = count[high] - count[low]
    return np.where(seen > 0, (total[high] - total[low]) / np.maximum(seen, 1), math.nan)


def picture(x: np.ndarray, y: np.ndarray) -> str:
    """The curve as SVG: pale values, their running mean if noisy, a cross at the first value that is not finite."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    from pretask.viz import svg

    good = np.isfinite(y)
    y = np.where(good, y, math.nan)
    noisy = good.sum() > SMOOTH and np.abs(np.diff(y[good])).sum() > ROUGH * np.ptp(y[good])
    figure, axes = svg.blank_figure(4.0, 2.1)
    axes.plot(*thin(x, y), color=svg.ACCENT, linewidth=1.0 if noisy else 1.8, alpha=0.35 if noisy else 1.0)
    if noisy:
        axes.plot(*thin(x, smoothed(y), POINTS // 2), color=svg.ACCENT, linewidth=1.8)
    if good.sum() == 1 or len(y) <= 12:
        axes.plot(x, y, "o", color=svg.ACCENT, markersize=4)
    for step in x[~good][:1]:
        axes.plot(step, 0.04, "X", color=svg.WARNING, markersize=8, transform=axes.get_xaxis_transform())
        axes.axvline(step, color=svg.WARNING, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.02, y=0.08)
    return svg.to_svg(figure)
