"""pretask demo: the whole path, with nothing prepared."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import parse
from pretask.errors import UserError
from pretask.train.progress import Display, console, say


@dataclass(frozen=True)
class Flags:
    """Learn without labels on pictures made on the spot, freeze, score, and write a page: the whole path in minutes."""

    out: Path = Path("runs/demo")
    """the run's folder, which must not exist"""
    budget: str = "90s"
    """how long to train"""


def run(words: list[str]) -> None:
    chosen = parse(Flags, words, "demo")

    from pretask.reports import report, table
    from pretask.workflows.evaluate import evaluate
    from pretask.workflows.pretrain import Settings, pretrain

    if chosen.out.exists():
        raise UserError(f"{chosen.out} exists; remove it or choose another --out")
    say("6,000 pictures of letters, drawn on the spot. No label is read while this trains:")
    words = ["rotnet", "--data", "demo", "--budget", chosen.budget, "--out", str(chosen.out)]
    command = ["pretask pretrain", shlex.join(words)]
    with Display() as display:
        settings = Settings("demo", out=chosen.out, budget=chosen.budget, watch="demo:test")
        made = pretrain("rotnet", settings, command=command, tell=display)
    say("\nFrozen. What are the features worth for telling the letters apart?")
    scores = evaluate(made, "demo", "demo:test")
    console().print(table.render(scores))
    page = report(made.folder, "demo:test")
    say(f"\nwrote {page}; open it in a browser: puzzles, answers, curves, neighbours, scores")
    say(
        f"This was: {' '.join(command)}, then pretask evaluate {shlex.quote(str(made.folder))} --data demo --test demo:test"
    )
    say("Next, on your own images: pretask pretrain rotnet --data FOLDER --budget 10m")
