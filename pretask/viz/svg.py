"""Matplotlib figures as inline SVG that uses the colors and the font of the page.

A figure is drawn in placeholder colors, which become CSS variables, so that one SVG fits light and dark pages.
It contains numbers only: text belongs in the page, where it wraps and screen readers find it.
"""

import io
import re

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID, ACCENT, WARNING = "#010101", "#020202", "#030303", "#040404"
"""placeholder colors: text, grid, curve, warning"""
CSS_VARIABLES = {INK: "var(--muted)", GRID: "var(--line)", ACCENT: "var(--accent)", WARNING: "var(--wrong)"}


def blank_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A transparent figure with axes in the page's colors; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=GRID)
    axes.tick_params(colors=INK, labelsize=9, length=0, pad=5)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element without prologue, metadata, fixed size and URLs."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pretask", "path.simplify": True}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    opening, rest = buffer.getvalue().split("<svg", 1)[1].split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', opening)
    assert view_box is not None
    for removed in (
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",
        r'(?<=<g) id="[^"]*"',
        r" font-family: [^;\"]*;",
    ):
        rest = re.sub(removed, "", rest, flags=re.DOTALL)
    for placeholder, variable in {**CSS_VARIABLES, "xlink:href": "href"}.items():
        rest = rest.replace(placeholder, variable)
    return f'<svg {view_box[0]} aria-hidden="true" focusable="false">{rest.strip()}'
