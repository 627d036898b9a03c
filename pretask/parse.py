"""Flags from frozen dataclasses, by tyro; what it complains of becomes one line."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import TypeVar

import tyro

from pretask.errors import UserError

T = TypeVar("T")


def parse(kind: type[T], arguments: Sequence[str], verb: str) -> T:
    """An instance of the dataclass `kind` from command-line words; its nested dataclasses share one set of flags.

    Prints the help and exits for --help; raises UserError, in one line, for anything it cannot read.
    """
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(
                kind,
                args=list(arguments),
                prog=f"pretask {verb}",
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(one_line(told.getvalue(), verb)) from None
    finally:
        sys.stdout.flush()


def one_line(box: str, verb: str) -> str:
    """tyro's framed message without its frame, its examples and its repetition."""
    lines = [re.sub(r"^[│╭╰\s]+|[│╮╯\s]+$", "", line) for line in box.splitlines()]
    lines = [line for line in lines if line and not set(line) <= set("─ ")]
    lines = [re.sub(r"^─+\s*(.*?)\s*─*$", r"\1:", line) for line in lines]
    text = " ".join(line for line in lines if not line.startswith(("For full helptext", f"pretask {verb}")))
    text = re.sub(r"^[\w ]+ ?(?:options|error):\s*", "", text)
    text = re.sub(r"\s*Argument helptext:.*", "", text)
    text = re.sub(r"\s*\((?:default|required)[^)]*\)", "", text)
    return f"{text.rstrip('. ')}; pretask {verb} --help lists the flags"
