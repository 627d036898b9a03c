"""pretask ablate METHOD --without PART: what happens to a method when one of its parts is missing?"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import parse
from pretask.errors import UserError
from pretask.limits import Seed
from pretask.runtime.console import console, say
from pretask.train.progress import Display

WIDTH = 80


@dataclass(frozen=True)
class Flags:
    """Train a method and its twin without one part, with the same seed and steps, and see what names the difference: the collapse monitor,
    the audit, or verify. pretask ablate --list shows the parts that can be left out."""

    without: str
    """the part to leave out"""
    data: str = ""
    """images to train on (default: the demo's drawings, for color-dropping through a lens with color fringes)"""
    budget: str = "3m"
    """time for both runs and for what names the fault"""
    out: Path | None = None
    """folder for the page and the numbers (default: runs/ablate/METHOD-without-PART)"""
    seed: Seed = 0
    """random seed of both runs"""
    json: bool = False
    """print only JSON on standard output"""


def run(words: list[str]) -> None:
    if words[:1] == ["--list"]:
        print("\n".join(listed()))
        return
    named = bool(words) and not words[0].startswith("-")
    if not named and words[:1] not in (["-h"], ["--help"]):
        raise UserError(
            "pretask ablate needs a METHOD first, then --without; pretask ablate --list shows both"
        )
    method = words[0] if named else "METHOD"
    chosen = parse(Flags, words[1:] if named else ["--help"], f"ablate {method}")

    from pretask.reports import ablation
    from pretask.workflows.ablate import ablate

    with Display() as display:
        found = ablate(
            method, chosen.without, chosen.data, budget=chosen.budget, seed=chosen.seed, on_log=display
        )
    page = ablation.write(found, chosen.out or Path("runs/ablate") / f"{method}-without-{chosen.without}")
    if chosen.json:
        print(found.to_json())
    else:
        print("\n".join(ablation.sentences(found)))
        for table in ablation.tables(found):
            console().print(table)
        print(f"Paper: {found.paper}")
    say(f"wrote {page}")


def listed() -> list[str]:
    """A line for each ablation, with what names it."""
    from pretask import faults

    rows = [(f"{method} --without {fault.name}", fault) for method, fault in faults.ablations()]
    lines = []
    for words, fault in rows:
        lines += [
            f"{words}  (named by {fault.named_by})",
            *textwrap.wrap(fault.about, WIDTH - 4, initial_indent="    ", subsequent_indent="    "),
        ]
    return lines
