"""pretask report RUN: one offline page."""

from dataclasses import dataclass
from pathlib import Path

from pretask.display import say
from pretask.parse import subject


@dataclass(frozen=True)
class Flags:
    """Write a run's page: curves, puzzles and answers, neighbours, a map of the features, scores."""

    data: str | None = None
    """labelled images for the neighbours and the map (the images of the run, without labels)"""


def run(words: list[str]) -> None:
    folder, chosen = subject(words, "report", "RUN", Flags)
    from pretask.reports import report

    say(f"wrote {report(Path(folder), chosen.data)}; open it in a browser, it needs no network")
