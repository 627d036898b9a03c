"""pretask demo: the whole path without any data of your own."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import parse
from pretask.errors import UserError
from pretask.runtime.console import console, say
from pretask.train.progress import Display


@dataclass(frozen=True)
class Flags:
    """Pretrain without labels on drawings of ten kinds of objects, freeze the encoder, score it, write a report: about four minutes."""

    out: Path = Path("runs/demo")
    """folder of the run; it must not exist"""
    budget: str = "90s"
    """training time"""


def run(words: list[str]) -> None:
    chosen = parse(Flags, words, "demo")

    from pretask.config import RunConfig
    from pretask.reports import table
    from pretask.reports.report import LabeledImages, report
    from pretask.workflows.evaluate import evaluate
    from pretask.workflows.job import fresh
    from pretask.workflows.pretrain import pretrain

    if chosen.out.exists():
        raise UserError(f"{chosen.out} exists; remove it or choose another --out")
    say("Pretraining RotNet without labels on 6,000 drawings of ten kinds of objects:")
    words = ["rotnet", "--data", "demo", "--budget", chosen.budget, "--out", str(chosen.out)]
    command = shlex.join(["pretask", "pretrain", *words])
    settings = RunConfig("demo", out=chosen.out, budget=chosen.budget, monitor="demo:test")
    job = fresh("rotnet", settings, command=command)
    with Display() as display:
        made = pretrain(job, on_log=display)
    say("\nScoring the frozen encoder on 2,000 other drawings, with the labels:")
    opened: list[LabeledImages] = []
    scores = evaluate(
        made, "demo", "demo:test", look=lambda source, pool: opened.append(LabeledImages(source, pool))
    )
    console().print(table.render(scores))
    page = report(made.folder, labeled=opened[0])
    say(
        f"\nwrote {page}; open it in a browser: scores, puzzles with answers, nearest neighbors, a map, curves"
    )
    say(
        f"The same by hand: {command}, then pretask evaluate {shlex.quote(str(made.folder))} --data demo --test demo:test"
    )
    say("Next, on your own images: pretask pretrain rotnet --data FOLDER --budget 10m")
