"""pretask report RUN: one offline page."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import subject
from pretask.limits import Share
from pretask.train.progress import say


@dataclass(frozen=True)
class Flags:
    """Write a run's page: curves, puzzles and answers, neighbours, a map of the features, scores."""

    data: str | None = None
    """labelled images for the neighbours and the map (the images of the run, without labels)"""
    root: Path | None = None
    """where a torchvision data set is"""
    max_bad: Share = 0.1
    """share of unreadable files at which it stops"""


def run(words: list[str]) -> None:
    folder, chosen = subject(words, "report", "RUN", Flags)
    from pretask.reports import report

    page = report(folder, chosen.data, root=chosen.root, max_bad=chosen.max_bad)
    say(f"wrote {page}; open it in a browser, it needs no network")
