"""An ablation in the terminal and as one HTML page: both curves, what named the fault, the features' spectrum."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretask.reports.curves import short, smoothed
from pretask.reports.panels import Panel, sample
from pretask.reports.table import audited
from pretask.reports.verification import lines as verification_lines
from pretask.runtime import files
from pretask.train.health import HEALTHY
from pretask.viz import svg
from pretask.viz.page import load_template
from pretask.workflows.ablate import Ablated, Side

PAGE = "ablation.html"
COLUMNS = {"loss": "Loss", "knn": "kNN accuracy, %", "rank": "Effective rank of the features"}
"""columns of log or monitor that are shown, with their titles"""


def sentences(found: Ablated) -> Iterator[str]:
    """What was left out, what named it, and what it cost."""
    healthy, broken = found.healthy, found.broken
    yield f"{found.method} without {found.fault}: {found.about}"
    yield naming(found)
    if not math.isnan(broken.knn):
        yield f"kNN accuracy after {found.steps:,} steps: {broken.knn:.1f} %, with it {healthy.knn:.1f} %."


def naming(found: Ablated) -> str:
    healthy, broken = found.healthy, found.broken
    if found.named_by == "monitor":
        if healthy.state != HEALTHY:
            return f"The monitor finds both unhealthy: {broken.state}, and {healthy.state} with it. Train longer."
        if not found.named:
            return "The monitor does not name it: it finds healthy features."
        return f"The monitor names it at step {broken.named_at}: {broken.state}."
    quiet = (
        "the monitor finds healthy features"
        if broken.state == HEALTHY
        else f"the monitor finds: {broken.state}"
    )
    if found.named_by == "audit":
        if found.shortcut is None:
            return f"The audit does not name it, and {quiet}."
        return f"The audit names it: {found.shortcut} explains more of the accuracy than with it; {quiet}."
    assert found.verification is not None
    far = found.verification.farthest
    if found.verification.passed:
        return f"verify does not name it, and {quiet}."
    return f"verify names it: {far.title} is {far.distance:.1f} times as far from the reference as a correct run may be; {quiet}."


def write(found: Ablated, folder: Path) -> Path:
    """ablation.html and ablation.json."""
    folder.mkdir(parents=True, exist_ok=True)
    _, _, *costs = sentences(found)
    page = load_template("pretask.reports", "ablation.html.j2").render(
        title=f"{found.method} without {found.fault}",
        lead=naming(found),
        named=found.named,
        about=found.about,
        paper=found.paper,
        meaning=costs,
        data=found.data,
        steps=found.steps,
        plots=list(plots(found)),
        audits=[
            (name, audit_rows(side))
            for name, side in ((found.method, found.healthy), (f"without {found.fault}", found.broken))
            if side.audit
        ],
        verification=list(verification_lines(found.verification)) if found.verification else [],
    )
    files.write_text(folder / "ablation.json", found.to_json() + "\n")
    files.write_text(folder / PAGE, page)
    return folder / PAGE


def audit_rows(side: Side) -> list[tuple[str, str, str]]:
    """Accuracy without each shortcut, and the share that it explains."""
    assert side.audit is not None
    rows = [("(nothing)", f"{side.audit.accuracy:.1f}", "")]
    for found in side.audit.findings:
        share = (
            ""
            if found.explained_share is None
            else f"{found.explained_share:.0f} [{found.low:.0f}, {found.high:.0f}]"
        )
        rows.append((found.shortcut, f"{found.accuracy:.1f}", share))
    return rows


def plots(found: Ablated) -> Iterator[Panel]:
    legend = [(sample(svg.INK), found.method), (sample(svg.ACCENT), f"without {found.fault}")]
    for column, title in COLUMNS.items():
        pair = [points(side, column) for side in (found.healthy, found.broken)]
        if all(len(x) > 1 for x, _ in pair):
            marks = [found.broken.named_at] if found.broken.named_at is not None else []
            ends = f"at the end {', '.join(short(y[-1]) for _, y in pair)}"
            yield Panel(title, picture(pair, marks), f"over steps; {ends}", ends, legend)
    pair = [(range(1, 1 + len(side.spectrum)), side.spectrum) for side in (found.healthy, found.broken)]
    large = ", ".join(f"{sum(v > 0.01 for v in y)} above 1 %" for _, y in pair)
    about = f"singular values relative to the largest, in order; {large}"
    yield Panel("Spectrum of the features", picture(pair, [], logarithmic=True), about, large, legend)


def points(side: Side, column: str) -> tuple[Sequence[float], Sequence[float]]:
    """Steps and values; the loss is smoothed."""
    import numpy as np

    rows = [row for row in (side.log if column == "loss" else side.monitor) if column in row]
    y = np.array([row[column] for row in rows], float)
    return [row["step"] for row in rows], list(smoothed(y)) if column == "loss" else list(y)


def picture(
    pair: Sequence[tuple[Sequence[float], Sequence[float]]], marks: Sequence[int], logarithmic: bool = False
) -> str:
    """The healthy method in ink, its twin in color; a dashed line at each mark."""
    figure, axes = svg.blank_figure(4.6, 2.6)
    for mark in marks:
        axes.axvline(mark, color=svg.WARNING, linewidth=1.2, linestyle=(0, (4, 3)))
    for (x, y), color in zip(pair, (svg.INK, svg.ACCENT), strict=True):
        axes.plot(x, y, color=color, linewidth=1.8)
    if logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(1e-4, 1.5)
        axes.minorticks_off()
    axes.margins(x=0.02, y=0.08)
    return svg.to_svg(figure)


def tables(found: Ablated) -> Iterator[object]:
    """What the audits or verify found, for the terminal."""
    for name, side in (("", found.healthy), (f"without {found.fault}:", found.broken)):
        if side.audit:
            yield name or f"{found.method}:"
            yield audited(side.audit)
    if found.verification:
        yield "\n".join(verification_lines(found.verification))
