"""pretask check METHOD --data PATH: sanity-check a method on your images."""

from dataclasses import dataclass
from shlex import quote

from pretask.cli.flags import method_flags, opening, parse
from pretask.limits import PositiveInt
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Sanity-check a method on your images: reproducible puzzles, gradients, chance level, collapse, exact resume. Takes about
    a minute."""

    data: str
    """images to check it on"""
    encoder: str | None = None
    """architecture of the encoder (default: the recipe's)"""
    size: PositiveInt | None = None
    """image side in pixels"""
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> int:
    method, rest = opening(words, "check", "METHOD")
    if method is None:
        parse(Flags, ["--help"], "check METHOD")
        return 0
    chosen = parse(method_flags(method, Flags), rest, f"check {method}")
    from rich.text import Text

    from pretask.workflows import preview

    flags: Flags = chosen.run
    failures = 0
    for sentence, failure in preview.check(
        flags.data, chosen.method, flags.encoder, flags.size, flags.reading
    ):
        failures += failure is not None
        held = failure is None
        mark = Text("passed  " if held else "failed  ", "green" if held else "red")
        say(mark.append(sentence if held else f"{sentence}: {failure}", ""))
    if failures:
        say(f"{failures} check{'s' * (failures > 1)} failed for {method} on {flags.data}")
        return 1
    say(
        f"{method} passed all checks on {flags.data}. Next: pretask pretrain {quote(method)} --data {quote(flags.data)} --budget 10m"
    )
    return 0
