"""Verified methods as lines in the terminal and as one HTML page with the bands of the reference."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pretask.reports.curves import short
from pretask.reports.panels import Panel
from pretask.runtime import files
from pretask.viz import svg
from pretask.viz.page import load_template
from pretask.workflows.recording import POINTS
from pretask.workflows.verify import CURVES, TITLES, Compared, Verification


def headline(found: Verification) -> str:
    """ "simclr is as expected" """
    if found.against == found.method:
        return f"{found.method} {'is as expected' if found.passed else 'differs from the reference'}"
    return f"{found.method} {'agrees with' if found.passed else 'differs from'} {found.against}"


def lines(found: Verification) -> Iterator[str]:
    """The result in words: where each quantity lies, what was not compared, and what the test's error is."""
    yield headline(found)
    width = max(len(each.title) for each in found.compared)
    for each in found.compared:
        yield f"  {each.title.ljust(width)}  {where(each)}"
    for name, why in found.left_out.items():
        yield f"  {TITLES[name].format('state').ljust(width)}  not compared: {why}"
    yield about(found)


def where(each: Compared) -> str:
    """ "inside at 20 of 20 points", or "47.1, expected 45.9 to 49.7" """
    if each.quantity in CURVES:
        first = next((k for k, x in enumerate(each.values) if not each.low[k] <= x <= each.high[k]), None)
        found = f"inside at {each.inside} of {len(each.values)} points"
        if first is None:
            return found
        expected = f"{short(each.low[first])} to {short(each.high[first])}"
        return (
            f"{found}; first outside at point {first + 1}: {short(each.values[first])}, expected {expected}"
        )
    verdict = "" if each.inside else "  outside"
    return f"{short(each.values[0])}, expected {short(each.low[0])} to {short(each.high[0])}{verdict}"


def about(found: Verification) -> str:
    far = found.farthest
    return (
        f"One run of {found.setup.steps} steps, seed {found.seed}, against those of five seeds. Farthest: "
        f"{far.title}, {far.distance:.2f} of the way to its limit. A correct run is outside once in "
        f"{round(1 / found.error):,}."
    )


def write(found: Sequence[Verification], page: Path) -> None:
    """One page with a section for each method."""
    sections = [(headline(each), each.passed, each, plots(each), rows(each), about(each)) for each in found]
    rendered = load_template("pretask.reports", "verification.html.j2").render(
        sections=sections, passed=sum(each.passed for each in found), count=len(found)
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(page, rendered)


def plots(found: Verification) -> list[Panel]:
    return [
        Panel(each.title, picture(each), f"{where(each)}; over the run, %", where(each))
        for each in found.compared
        if each.quantity in CURVES
    ]


def rows(found: Verification) -> list[tuple[str, str, str, bool]]:
    """Title, value, expected range and whether it is inside, of each number."""
    return [
        (
            each.title,
            short(each.values[0]),
            f"{short(each.low[0])} to {short(each.high[0])}",
            bool(each.inside),
        )
        for each in found.compared
        if each.quantity not in CURVES
    ]


def picture(each: Compared) -> str:
    """The band of the reference and the curve of the run, over the run."""
    figure, axes = svg.blank_figure(4.6, 2.6)
    x = [100 * (k + 0.5) / POINTS for k in range(len(each.values))]
    axes.fill_between(x, each.low, each.high, color=svg.INK, alpha=0.25, linewidth=0)
    axes.plot(x, each.values, color=svg.ACCENT, linewidth=1.8)
    outside = [k for k, v in enumerate(each.values) if not each.low[k] <= v <= each.high[k]]
    axes.plot(
        [x[k] for k in outside], [each.values[k] for k in outside], "o", color=svg.WARNING, markersize=5
    )
    axes.set_xlim(0, 100)
    axes.margins(y=0.08)
    return svg.to_svg(figure)
