"""Matplotlib figures as inline SVG that take their colors and their type face from the page around them.

A figure is drawn in stand-in colors, which become CSS variables, so one drawing serves light and dark pages.
It carries no words, only numbers: words belong to the page, where they wrap and are read aloud.
"""

import io
import re

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, LINE, ACCENT, ALARM = "#010101", "#020202", "#030303", "#040404"
"""stand-ins: text, grid, curve, warning"""
VARIABLES = {INK: "var(--muted)", LINE: "var(--line)", ACCENT: "var(--accent)", ALARM: "var(--wrong)"}


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """A transparent figure of that many inches with one set of axes in the page's colors."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=LINE)
    axes.tick_params(colors=INK, labelsize=9, length=0, pad=5)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def svg(figure: Figure) -> str:
    """The figure as an <svg> element without prologue, metadata, fixed size or any address."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pretask", "path.simplify": True}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    opening, rest = buffer.getvalue().split("<svg", 1)[1].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    for gone in (
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",
        r'(?<=<g) id="[^"]*"',
        r" font-family: [^;\"]*;",
    ):
        rest = re.sub(gone, "", rest, flags=re.DOTALL)
    for stand_in, variable in {**VARIABLES, "xlink:href": "href"}.items():
        rest = rest.replace(stand_in, variable)
    return f'<svg {box[0]} aria-hidden="true" focusable="false">{rest.strip()}'
