"""Command-line arguments: the subject of a command, and flags from frozen dataclasses, parsed by tyro."""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from pretask import limits
from pretask.errors import UserError

T = TypeVar("T")
WEIGHTS = "RUN, timm:NAME or ARCH@FILE"
"""what the first word of a command that takes any weights may be"""


def subject(words: Sequence[str], verb: str, what: str, flags: type[T]) -> tuple[str, T]:
    """The first argument of a command and its flags; --help in place of the first argument prints the help."""
    first, rest = opening(words, verb, what)
    return first or "", parse(flags, rest if first else ["--help"], f"{verb} {first or what}")


def opening(words: Sequence[str], verb: str, what: str) -> tuple[str | None, list[str]]:
    """The first argument, None for --help, and the arguments after it."""
    if words and words[0] in ("-h", "--help"):
        return None, []
    if not words or words[0].startswith("-"):
        raise UserError(f"pretask {verb} needs a {what} first, then its flags; see pretask {verb} --help")
    return words[0], list(words[1:])


def method_flags(method: str, own: type, train: Any = None, continues: bool = False) -> type[Any]:
    """The flags of a command (`run`), a method's hyperparameters (`method`) and, given their defaults, those of training.

    With `continues`, the hyperparameters are those for continuing from given weights.
    """
    from pretask import methods
    from pretask.config import TrainConfig

    config = methods.recipe(method)
    defaults = config().for_continuing() if continues else config()
    fields: list[Any] = [("run", own), ("method", config, dataclasses.field(default=defaults))]
    if train is not None:
        fields.append(("train", TrainConfig, dataclasses.field(default=train)))
    made = dataclasses.make_dataclass("Flags", fields, frozen=True)
    made.__doc__ = own.__doc__
    return made


def parse(kind: type[T], arguments: Sequence[str], verb: str) -> T:
    """An instance of the dataclass `kind` from command-line arguments; nested dataclasses share one set of flags.

    Prints the help and exits for --help. Raises UserError, in one line, for arguments that cannot be parsed.
    """
    hide_none(kind)
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
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
        raise UserError(one_line(message.getvalue(), verb)) from None
    finally:
        sys.stdout.flush()


def hide_none(kind: type) -> None:
    """Show optional flags as `--size INT`, not as `--size {None}|INT … (default: None)`: their help says what the default means."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        options = [each for each in get_args(hint) if each is not type(None)]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            hide_none(hint)
        elif type(None) in get_args(hint) and all(map(metavar, options)):
            shown = tyro.conf.arg(metavar="|".join(map(metavar, options)), help_behavior_hint="")
            owner = next(each for each in kind.__mro__ if name in vars(each).get("__annotations__", {}))
            owner.__annotations__[name] = Annotated[hint, shown]


NAMES = {str: "STR", Path: "PATH", float: "FLOAT", bool: "{True,False}"}


def metavar(hint: Any) -> str:
    """What help shows for a value of this type; "" for a type that tyro shows in its own way."""
    inside = get_args(hint)
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, inside)) + "}"
    if get_origin(hint) is tuple:
        return " ".join(map(metavar, inside))
    if get_origin(hint) is Annotated:
        specs = [each for each in inside if isinstance(each, PrimitiveConstructorSpec)]
        return specs[0].metavar if specs else metavar(inside[0])
    return NAMES.get(hint, "")


def one_line(box: str, verb: str) -> str:
    """tyro's framed message without its frame (lines of hyphens where the output has no others), its examples and its
    repetition."""
    # tyro has no public way to say what was wrong: cli() prints a box and exits, extras.get_parser() checks no types, and
    # the hook with the events, tyro._errors.on_parse_error, is private and may change in any release
    lines = [re.sub(r"^[│╭╰\s]+|[│╮╯\s]+$", "", line) for line in box.splitlines()]
    lines = [line for line in lines if line and not set(line) <= set("─- ")]
    lines = [re.sub(r"^─+\s*(.*?)\s*─*$", r"\1:", line) for line in lines]
    text = " ".join(line for line in lines if not line.startswith(("For full helptext", f"pretask {verb}")))
    text = re.sub(r"^[\w ]+? (?:options|error):?\s*", "", text)
    text = re.sub(r"\s*Argument helptext:.*", "", text)
    text = re.sub(r"\s*\((?:default|required)[^)]*\)", "", text)
    text = re.sub(
        r"Error parsing (--[\w.-]+): no type matching \{None\}\|\{?(.*?)\}? could be instantiated from \[(.*?)\]\. .*",
        r"\1 got \3, expected \2",
        text,
    )
    text = re.sub(r"Missing from [^:]*:", "missing:", text)
    text = text.replace(" Unrecognized options:", "; unrecognized:").replace(
        " Perhaps you meant:", "; did you mean"
    )
    return f"{text.rstrip('. ')}; pretask {verb} --help lists the flags"
