"""pretask check METHOD --data PATH: is the method sound on these images?"""

from dataclasses import dataclass
from shlex import quote

from pretask.cli.flags import method_flags, opening, parse
from pretask.limits import Count, Share
from pretask.train.progress import say


@dataclass(frozen=True)
class Flags:
    """Hold a method to the contract on your images: purity, gradients, chance, collapse, exact resume."""

    data: str
    """images to try it on"""
    encoder: str | None = None
    """the network to try it with (the recipe's)"""
    size: Count | None = None
    """side of the images, pixels"""
    max_bad: Share = 0.1
    """share of unreadable files at which it stops"""


def run(words: list[str]) -> int:
    method, rest = opening(words, "check", "METHOD")
    if method is None:
        parse(Flags, ["--help"], "check METHOD")
        return 0
    chosen = parse(method_flags(method, Flags), rest, f"check {method}")
    from rich.text import Text

    from pretask.workflows import preview as selfhelp

    asked: Flags = chosen.run
    failures = 0
    for sentence, failure in selfhelp.check(
        asked.data, chosen.method, asked.encoder, asked.size, asked.max_bad
    ):
        failures += failure is not None
        held = failure is None
        mark = Text("holds   " if held else "broken  ", "green" if held else "red")
        say(mark.append(sentence if held else f"{sentence}: {failure}", ""))
    if failures:
        say(f"{failures} of the contract's sentences do not hold for {method} on {asked.data}")
        return 1
    say(
        f"{method} is sound on {asked.data}. Next: pretask pretrain {quote(method)} --data {quote(asked.data)} --budget 10m"
    )
    return 0
