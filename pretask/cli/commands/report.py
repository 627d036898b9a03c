"""pretask report WEIGHTS: write one offline HTML page."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import WEIGHTS, subject
from pretask.config import DEFAULT_INPUT, InputConfig
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Write one offline HTML page about a run: scores, puzzles with answers, nearest neighbors, a map of the features, curves.
    For published weights: scores, neighbors and map, with --data and --out."""

    data: str | None = None
    """labeled images for the nearest neighbors and the map (default: the run's images, without labels)"""
    labels: Path | None = None
    """table of path and label for the images of --data, in place of class folders"""
    out: Path | None = None
    """folder of the page for published weights; scores in it are shown (a run's page is in its own folder)"""
    input: InputConfig = DEFAULT_INPUT
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    what, chosen = subject(words, "report", WEIGHTS, Flags)
    from pretask.reports.report import report

    shape = chosen.input
    page = report(
        what,
        chosen.data,
        labels=chosen.labels,
        out=chosen.out,
        size=shape.size,
        mean=shape.mean,
        std=shape.std,
        reading=chosen.reading,
    )
    say(f"wrote {page}; open it in a browser (no network needed)")
