"""pretask pretrain METHOD --data PATH: train without labels; --resume RUN: go on after a crash, or for longer."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pretask.cli import main as cli
from pretask.cli.flags import method_flags, opening, parse
from pretask.errors import UserError
from pretask.limits import Count
from pretask.train.progress import Display, say

HELP = """\
pretask pretrain METHOD --data PATH [--out RUN] [flags]     pretask pretrain METHOD --help lists every flag
pretask pretrain --resume RUN                               goes on where a run was cut off
pretask pretrain --resume RUN --steps N | --budget TIME     makes a run longer or shorter, also one that is finished

The length is --epochs, --steps, --plan RUN (as another run) or --budget (10m: as many steps as fit into ten minutes, from
the start to the report; the speed is measured all along). METHOD is a name from `pretask list`, a recipe such as
rotnet:paper, or your own file ./my_puzzle.py."""


@dataclass(frozen=True)
class Resume:
    """Go on with a run by its own settings."""

    steps: Count | None = None
    """of the whole run, those that are done included, in the place of what was planned"""
    budget: str | None = None
    """time from now on, such as 90s, 10m or 2h, in the place of what was planned"""
    devices: Count | Literal["auto"] = "auto"
    """processes to go on with"""


def flags(method: str) -> type[Any]:
    """All flags of one method, with its recipe's defaults."""
    from pretask import methods
    from pretask.workflows.pretrain import Settings

    config, made = methods.recipe(method), method_flags(method, Settings, trained=True)
    made.__doc__ = f"{methods.asks(config)} (encoder: {config.encoder})"
    return made


def run(words: list[str]) -> None:
    from pretask.reports import report
    from pretask.runtime import distributed
    from pretask.train.plan import cautions
    from pretask.train.run import revive
    from pretask.workflows.pretrain import Settings, pretrain

    known: dict[str, Any] = {"began": cli.began, "report": True}

    if words[:1] == ["--resume"]:
        if len(words) < 2:
            raise UserError("--resume needs the folder of a run")
        more = parse(Resume, words[2:], "pretrain --resume RUN")
        with Display() as display:
            settings = Settings("", steps=more.steps, budget=more.budget, devices=more.devices)
            made = pretrain(None, settings, resume=Path(words[1]), tell=display, **known)
    else:
        method, rest = opening(words, "pretrain", "METHOD (pretask list shows them)")
        if method is None:
            print(HELP)
            return
        chosen = parse(flags(method), rest, f"pretrain {method}")
        if chosen.run.plan and any(word.startswith("--epochs") for word in rest):
            raise UserError("--plan takes the length of another run; leave out --epochs")
        command = [shlex.join(["pretask", "pretrain", *words])]
        with Display() as display:
            made = pretrain(
                method, chosen.run, chosen.method, chosen.train, command=command, tell=display, **known
            )
    if distributed.rank() == 0:
        asked = revive(made.card)[1]
        page = report(made.folder, asked.watch, root=asked.root)
        took = (made.folder / "DONE").read_text().strip()
        say(f"wrote {made.folder} ({made.card['steps']} steps, {took}) and {page}")
        say(f"Next: pretask evaluate {shlex.quote(str(made.folder))} --data LABELLED")
        for caution in cautions(made.card):
            say(f"Caution: {caution}")
