"""A comparison as a table in the terminal, as CSV, LaTeX and one HTML page."""

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pretask.evals.confidence import interval
from pretask.evals.label_curve import Worth
from pretask.reports import study_plots
from pretask.reports.html import hits
from pretask.reports.report import LabeledImages, look
from pretask.reports.table import Grid, brief
from pretask.runtime import files
from pretask.runtime.console import clock
from pretask.viz.page import load_template
from pretask.workflows.compare import Compared, Line

PAGE = "compare.html"
GAPS = (2, 5, 10)
"""points for which the table says how often such a gap is found"""
NOTE = (
    "Accuracy on {test}, n = {n_test:,}, of a linear probe on the best stage; stage and penalty are chosen on held-out samples of "
    "{labeled}, n = {n_labeled:,}. ± is half of the 95 % interval over seeds and test images. Brackets and p are corrected for the number "
    "of pairs of rows (Holm). Seconds and images are those of training one run."
)


def table(found: Compared) -> Group:
    """The final table, the decision, and notes."""
    shown = Table(box=None, pad_edge=False, padding=(0, 1))
    shown.add_column("candidate")
    for heading in ("accuracy, %", "behind the leader", "p", "time"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for line in found.lines:
        shown.add_row(*cells(line), style="bold" if line.name == found.decision.use else "")
    return Group(
        shown, Text(), *map(Text, sentences(found)), Text(), Text(NOTE.format(**found.data), style="dim")
    )


def cells(line: Line) -> list[str]:
    """Name, accuracy, gap, p, time."""
    half = (line.high - line.low) / 2
    gap, p = ("", "") if line.gap is None else (behind(line), f"{line.gap.p:.2g}")
    return [
        brief(line.name),
        f"{line.accuracy:.1f} ±{half:.1f}",
        gap,
        p,
        clock(line.seconds) if line.seconds else "",
    ]


def behind(line: Line) -> str:
    """ "-2.8 [-4.9, -0.7]" """
    assert line.gap is not None
    return f"{-line.gap.value:+.1f} [{-line.gap.high:+.1f}, {-line.gap.low:+.1f}]"


def sentences(found: Compared) -> Iterator[str]:
    """The decision, what the labels are worth, and what this table could have shown."""
    yield found.decision.sentence
    if found.worth:
        best = next(iter(found.curves))
        yield (
            f"With fewer labels, {best} is worth {times(found.worth)} the labels of {found.other} (measured with "
            f"{found.worth.shots} a class)."
        )
    if gaps := [line.gap for line in found.lines if line.gap]:
        chances = [f"{gap} points {100 * min(each.power(gap) for each in gaps):.0f} %" for gap in GAPS]
        yield f"How often a gap of so many points is found in a table like this: {', '.join(chances)}."
    if found.leaks:
        yield f"Caution: {found.leaks}."
    for name, why in found.left_out.items():
        yield f"{name} was not tried: {why}"


def times(worth: Worth) -> str:
    """ "3.4 times [2.1, 5.0]"; "more than 10 times" if the other features do not get there."""
    if math.isinf(worth.times):
        return f"more than {worth.low:.2g} times" if math.isfinite(worth.low) else "any number of times"
    high = "∞" if math.isinf(worth.high) else f"{worth.high:.2g}"
    return f"{worth.times:.2g} times [{worth.low:.2g}, {high}]"


def write(found: Compared) -> Path:
    """compare.csv, compare.tex and compare.html in the folder; the page shows what the best run finds alike in the test images."""
    shown = look(found.best.encoder, found.test, LabeledImages(found.test), 0)
    files.write_text(found.folder / "compare.csv", as_csv(found))
    files.write_text(found.folder / "compare.tex", as_tex(found))
    page = load_template("pretask.reports", "comparison.html.j2").render(
        title=found.folder.resolve().name,
        lead=found.decision.sentence,
        meaning=[*sentences(found)][1:],
        note=NOTE.format(**found.data),
        use=found.decision.use,
        rows=[
            (line.name, cells(line)[1:], f"{line.images:,}" if line.images else "") for line in found.lines
        ],
        plots=[study_plots.plot_grid(*each) for each in (over_time(found), over_labels(found))],
        data=found.data,
        took=clock(found.seconds),
        best=found.best.folder.name,
        neighbors=shown.get("neighbors", ()),
        hits=hits(shown.get("neighbors", ())),
        map=shown.get("map"),
    )
    files.write_text(found.folder / PAGE, page)
    return found.folder / PAGE


def over_time(found: Compared) -> tuple[Grid, str]:
    """Held-out accuracy of every candidate over the length of its runs."""
    names = list(found.rungs[0].held_out)
    lines = [(clock(rung.seconds), [rung.held_out.get(name) for name in names]) for rung in found.rungs]
    counts = [round(rung.seconds) for rung in found.rungs]
    grid = Grid("Longer runs", "time of a run", names, lines, (), counts=counts)
    return grid, "% on held-out labeled training images, over the seconds of a run"


def over_labels(found: Compared) -> tuple[Grid, str]:
    """Test accuracy over labels."""
    at = {
        (name, shots): interval(100 * correct)
        for name, curve in found.curves.items()
        for shots, correct in zip(curve.shots, curve.correct, strict=True)
    }
    names, shots = list(found.curves), sorted({n for _, n in at})
    lines = [(f"{n:,}", [at.get((name, n)) for name in names]) for n in shots]
    grid = Grid("Fewer labels", "labels a class", names, lines, (), baselines=names[1:], counts=shots)
    return grid, "% on test images, over labels a class"


COLUMNS = (
    "name",
    "role",
    "accuracy",
    "low",
    "high",
    "behind",
    "behind_low",
    "behind_high",
    "p",
    "seconds",
    "images",
    "seeds",
)


def as_csv(found: Compared) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in found.lines:
        gap = ["", "", "", ""]
        if line.gap:
            gap = [f"{x:.6g}" for x in (-line.gap.value, -line.gap.high, -line.gap.low, line.gap.p)]
        numbers = [f"{x:.6g}" for x in (line.accuracy, line.low, line.high)]
        writer.writerow(
            [line.name, line.role, *numbers, *gap, f"{line.seconds:.1f}", line.images, len(line.values)]
        )
    return out.getvalue()


def as_tex(found: Compared) -> str:
    """A table for booktabs."""
    rows = [" & ".join(map(tex, cells(line)[:3])) + r" \\" for line in found.lines]
    head = r"candidate & accuracy, \% & behind the leader \\"
    lines = [r"\begin{tabular}{lrr}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


SPECIAL = {"\\": r"\textbackslash{}", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def tex(text: str) -> str:
    """With LaTeX's special characters escaped."""
    return "".join(SPECIAL.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
