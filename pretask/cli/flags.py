"""The words of a command: what it is about, and flags from frozen dataclasses, by tyro."""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from pretask import limits
from pretask.errors import UserError

T = TypeVar("T")


def subject(words: Sequence[str], verb: str, what: str, flags: type[T]) -> tuple[str, T]:
    """A verb's first word, which is no flag, and its flags; --help instead of the first word is answered."""
    first, rest = opening(words, verb, what)
    return first or "", parse(flags, rest if first else ["--help"], f"{verb} {first or what}")


def opening(words: Sequence[str], verb: str, what: str) -> tuple[str | None, list[str]]:
    """The first word, None where help is asked for instead, and the words after it."""
    if words and words[0] in ("-h", "--help"):
        return None, []
    if not words or words[0].startswith("-"):
        raise UserError(f"pretask {verb} needs a {what} first, then its flags; see pretask {verb} --help")
    return words[0], list(words[1:])


def method_flags(method: str, own: type, trained: bool = False) -> type[Any]:
    """The flags of a verb (`run`), the knobs of a method (`method`), and how it is `train`ed, as one dataclass."""
    from pretask import methods
    from pretask.config import TrainConfig

    config = methods.recipe(method)
    fields: list[Any] = [("run", own), ("method", config, dataclasses.field(default_factory=config))]
    if trained:
        fields.append(("train", TrainConfig, dataclasses.field(default=config.train)))
    made = dataclasses.make_dataclass("Flags", fields, frozen=True)
    made.__doc__ = own.__doc__
    return made


def parse(kind: type[T], arguments: Sequence[str], verb: str) -> T:
    """An instance of the dataclass `kind` from command-line words; its nested dataclasses share one set of flags.

    Prints the help and exits for --help; raises UserError, in one line, for anything it cannot read.
    """
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            made = tyro.cli(
                kind,
                args=list(arguments),
                prog=f"pretask {verb}",
                config=(tyro.conf.OmitArgPrefixes,),
            )
        limits.check(made)
        return made
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(one_line(told.getvalue(), verb)) from None
    finally:
        sys.stdout.flush()


def one_line(box: str, verb: str) -> str:
    """tyro's framed message without its frame (lines of hyphens where the output has no others), its examples and its
    repetition."""
    lines = [re.sub(r"^[│╭╰\s]+|[│╮╯\s]+$", "", line) for line in box.splitlines()]
    lines = [line for line in lines if line and not set(line) <= set("─- ")]
    lines = [re.sub(r"^─+\s*(.*?)\s*─*$", r"\1:", line) for line in lines]
    text = " ".join(line for line in lines if not line.startswith(("For full helptext", f"pretask {verb}")))
    text = re.sub(r"^[\w ]+? (?:options|error):?\s*", "", text)
    text = re.sub(r"\s*Argument helptext:.*", "", text)
    text = re.sub(r"\s*\((?:default|required)[^)]*\)", "", text)
    text = re.sub(r"Missing from [^:]*:", "missing:", text)
    text = text.replace(" Unrecognized options:", "; unrecognized:").replace(
        " Perhaps you meant:", "; did you mean"
    )
    return f"{text.rstrip('. ')}; pretask {verb} --help lists the flags"
