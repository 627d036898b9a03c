"""pretask report RUN: write one offline HTML page."""

from dataclasses import dataclass

from pretask.cli.flags import subject
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Write one offline HTML page about a run: scores, puzzles with answers, nearest neighbors, a map of the features, curves."""

    data: str | None = None
    """labeled images for the nearest neighbors and the map (default: the run's images, without labels)"""
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    folder, chosen = subject(words, "report", "RUN", Flags)
    from pretask.reports.report import report

    page = report(folder, chosen.data, reading=chosen.reading)
    say(f"wrote {page}; open it in a browser (no network needed)")
