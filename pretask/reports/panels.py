"""A plot on a page, with its title, legend and description; template: `panel` in parts.html.j2."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pretask.viz import svg


@dataclass(frozen=True)
class Panel:
    """A plot on a page."""

    title: str
    svg: str
    caption: str
    words: str
    """description for screen readers"""
    legend: Sequence[tuple[str, str]] = ()
    """samples of lines (SVG) and their names"""


def sample(color: str, dashes: Any = "-") -> str:
    """A short line for the legend."""
    dash = "" if dashes == "-" else f' stroke-dasharray="{" ".join(str(2 * d) for d in dashes[1])}"'
    return (
        '<svg viewBox="0 0 30 8" aria-hidden="true" focusable="false">'
        f'<path d="M0 4H30" stroke-width="2.5" style="stroke: {svg.CSS_VARIABLES[color]}"{dash}/></svg>'
    )
