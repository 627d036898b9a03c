"""pretask pretrain METHOD --data PATH: pretrain without labels; --resume RUN: continue a run."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretask.cli import commands
from pretask.cli.flags import method_flags, opening, parse
from pretask.config import Changes, RunConfig
from pretask.errors import UserError
from pretask.runtime.console import say
from pretask.train.progress import Display

if TYPE_CHECKING:
    from pretask.workflows.job import Job

HELP = """\
pretask pretrain METHOD --data PATH [--out RUN] [flags]     pretrain; pretask pretrain METHOD --help lists all flags
pretask pretrain --resume RUN                               continue an interrupted run
pretask pretrain --resume RUN --steps N | --budget TIME     make a run longer or shorter, even a finished one
pretask pretrain --resume RUN --data PATH                   continue a run whose images were moved to PATH

The length of a run is --epochs, --steps, --budget (10m: as many steps as fit in ten minutes, including the report) or
--plan RUN (as long as another run). METHOD is a name from `pretask list`, a recipe such as rotnet:paper, or your own file
./my_puzzle.py."""


def flags(method: str, continues: bool = False) -> type[Any]:
    """All flags of one method, with the defaults of its recipe; with `continues`, those for starting from weights."""
    from pretask import methods

    config = methods.recipe(method)
    train = config().train_for_continuing() if continues else config.train
    made = method_flags(method, RunConfig, train, continues)
    made.__doc__ = f"{methods.summary(config)} (encoder: {config.encoder})"
    return made


def run(words: list[str]) -> None:
    from pretask.reports.report import report
    from pretask.runtime import distributed
    from pretask.train.plan import cautions
    from pretask.train.run import parse_card
    from pretask.workflows.pretrain import pretrain

    job = resumed(words[1:]) if words[:1] == ["--resume"] else fresh(words)
    if job is None:
        print(HELP)
        return
    with Display() as display:
        made = pretrain(job, on_log=display, report=True)
    if distributed.rank() == 0:
        settings = parse_card(made.card)[1]
        page = report(made.folder, settings.monitor, reading=settings.reading)
        took = (made.folder / "DONE").read_text().strip()
        say(f"wrote {made.folder} ({made.card['steps']} steps, {took}) and {page}")
        say(f"Next: pretask evaluate {shlex.quote(str(made.folder))} --data LABELED")
        for caution in cautions(made.card):
            say(f"Caution: {caution}")


def resumed(words: list[str]) -> "Job":
    """The job for the words after --resume."""
    from pretask.workflows import job

    if not words:
        raise UserError("--resume needs the folder of a run")
    changes = parse(Changes, words[1:], "pretrain --resume RUN")
    return job.resumed(Path(words[0]), changes, began=commands.began)


def fresh(words: list[str]) -> "Job | None":
    """The job for METHOD and its flags; None for --help."""
    from pretask.workflows import job

    method, rest = opening(words, "pretrain", "METHOD (see pretask list)")
    if method is None:
        return None
    continues = any(word.split("=")[0] == "--init" for word in rest)
    chosen = parse(flags(method, continues), rest, f"pretrain {method}")
    if chosen.run.plan and any(word.startswith("--epochs") for word in rest):
        raise UserError("--plan uses the length of another run; remove --epochs")
    command = shlex.join(["pretask", "pretrain", *words])
    return job.fresh(method, chosen.run, chosen.method, chosen.train, command=command, began=commands.began)
