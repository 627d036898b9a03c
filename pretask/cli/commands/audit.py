"""pretask audit METHOD --data PATH: how far is the puzzle solved by cheating?"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretask.cli.flags import method_flags, opening, parse
from pretask.limits import Count, Seed, Share
from pretask.train.progress import Display, console, say

if TYPE_CHECKING:
    from pretask.train.run import Run


@dataclass(frozen=True)
class OfRun:
    """Score a run's solver again with each known clue taken out of its images: fringes, shading, JPEG's grid, edges, …"""

    images: Count = 500
    """images whose puzzles are answered, at most"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""


@dataclass(frozen=True)
class OfMethod:
    """Train a small solver quickly, then score it again with each known clue taken out of the images: the colour fringes
    of lenses, light that falls off, JPEG's grid, edges that run on from tile to tile, and others. With the method's own
    flags its defences can be switched off and on."""

    data: str
    """images to try it on"""
    out: Path | None = None
    """keep the solver as a run, with its report, in this folder"""
    budget: str = "2m"
    """time in which the solver learns, such as 90s or 10m"""
    steps: Count | None = None
    """that the solver learns for, in the place of --budget"""
    encoder: str | None = None
    """the network of the solver (the recipe's)"""
    size: Count | None = None
    """side of the images, pixels"""
    seed: Seed = 0
    """of the weights, the order and the puzzles"""
    max_bad: Share = 0.1
    """share of unreadable files at which it stops"""
    images: Count = 500
    """images whose puzzles are answered, at most"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""


def run(words: list[str]) -> None:
    what, rest = opening(words, "audit", "METHOD or RUN")
    if what is None:
        parse(OfMethod, ["--help"], "audit METHOD")
    elif Path(what).is_dir() or ("/" in what and ".py" not in what):
        from pretask.train.run import Run

        asked = parse(OfRun, rest, f"audit {what}")
        show(Run(what), asked.images, asked.json, kept=True)
    else:
        chosen = parse(method_flags(what, OfMethod, trained=True), rest, f"audit {what}")
        with tempfile.TemporaryDirectory() as folder:
            solver = quickly_trained(what, chosen, chosen.run.out or Path(folder) / "solver")
            show(solver, chosen.run.images, chosen.run.json, kept=chosen.run.out is not None)


def quickly_trained(method: str, chosen: Any, out: Path) -> "Run":
    from pretask import data as sources
    from pretask.workflows import audit as auditing
    from pretask.workflows.pretrain import Settings, pretrain

    asked: OfMethod = chosen.run
    source = sources.open(asked.data, size=asked.size, max_bad=asked.max_bad)
    auditing.check_choice(chosen.method, source, asked.encoder)
    settings = Settings(
        asked.data,
        out,
        encoder=asked.encoder,
        size=asked.size,
        steps=asked.steps,
        budget=asked.budget,
        seed=asked.seed,
        max_bad=asked.max_bad,
    )
    with Display() as display:
        return pretrain(method, settings, chosen.method, chosen.train, source=source, tell=display)


def show(solver: "Run", images: int, json: bool, kept: bool) -> None:
    from pretask.reports import report, table
    from pretask.workflows.audit import audit

    found = audit(solver, images)
    if json:
        print(found.to_json())
    else:
        console().print(table.audited(found))
    if kept:
        say(f"wrote {solver.folder}/audit.json and {report(solver.folder)}")
