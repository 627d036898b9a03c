"""pretask pretrain METHOD --data PATH: train without labels; --resume RUN: go on after a crash."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pretask.display import Display, say
from pretask.errors import UserError
from pretask.parse import method_flags, opening, parse

HELP = """\
pretask pretrain METHOD --data PATH [--out RUN] [flags]     pretask pretrain METHOD --help lists every flag
pretask pretrain --resume RUN                               goes on where a run was cut off

The length is --epochs, --steps or --budget (10m: as many steps as fit into ten minutes). METHOD is a name from
`pretask list`, a recipe such as rotnet:paper, or your own file ./my_puzzle.py."""


@dataclass(frozen=True)
class Resume:
    """Go on with a run by its own settings."""

    devices: int | Literal["auto"] = "auto"
    """processes to go on with"""


def flags(method: str) -> type[Any]:
    """All flags of one method, with its recipe's defaults."""
    from pretask import methods
    from pretask.pretraining import Settings

    config, made = methods.recipe(method), method_flags(method, Settings, trained=True)
    made.__doc__ = f"{methods.asks(config)} (encoder: {config.encoder})"
    return made


def run(words: list[str]) -> None:
    from pretask import distributed
    from pretask.pretraining import Settings, pretrain
    from pretask.reports import report
    from pretask.run import revive

    if words[:1] == ["--resume"]:
        if len(words) < 2:
            raise UserError("--resume needs the folder of a run")
        more = parse(Resume, words[2:], "pretrain --resume RUN")
        with Display() as display:
            made = pretrain(None, Settings("", devices=more.devices), resume=Path(words[1]), tell=display)
    else:
        method, rest = opening(words, "pretrain", "METHOD (pretask list shows them)")
        if method is None:
            print(HELP)
            return
        chosen = parse(flags(method), rest, f"pretrain {method}")
        command = [shlex.join(["pretask", "pretrain", *words])]
        with Display() as display:
            made = pretrain(method, chosen.run, chosen.method, chosen.train, command=command, tell=display)
    if distributed.rank() == 0:
        asked = revive(made.card)[1]
        page = report(made.folder, asked.watch, root=asked.root)
        took = (made.folder / "DONE").read_text().strip()
        say(f"wrote {made.folder} ({made.card['steps']} steps, {took}) and {page}")
        say(f"Next: pretask evaluate {made.folder} --data LABELLED")
