"""pretask select WEIGHTS --data PATH --count N: which images to label first."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretask.cli.flags import WEIGHTS, subject
from pretask.config import DEFAULT_INPUT, DEFAULT_READOUT, InputConfig, ReadoutConfig
from pretask.limits import PositiveInt, Seed, UnitInterval
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Choose which images to label first. Some are drawn at random: only these can say later how accurate predictions are. The others are
    typical images of clusters or, once there are labels, those that a first classifier is unsure of. Writes a table and a page."""

    data: str
    """images to choose from"""
    count: PositiveInt
    """number of images to label"""
    labeled: str | None = None
    """images that have a label already: class folders, or a table of path and label"""
    out: Path = Path("selected.csv")
    """table to write, in the order in which to label; features are kept in a folder next to it"""
    strategy: Literal["typical", "k-center", "margin"] | None = None
    """how images are chosen (default: margin with --labeled, else typical)"""
    random: UnitInterval = 0.3
    """fraction drawn at random"""
    seed: Seed = 0
    """random seed"""
    readout: ReadoutConfig = DEFAULT_READOUT
    input: InputConfig = DEFAULT_INPUT
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    what, chosen = subject(words, "select", WEIGHTS, Flags)
    from pretask.reports import selected as page
    from pretask.workflows.select import select, sentences

    found = select(
        what,
        chosen.data,
        chosen.count,
        chosen.labeled,
        out=chosen.out,
        strategy=chosen.strategy,
        random=chosen.random,
        stage=chosen.readout.stage,
        grid=chosen.readout.grid,
        size=chosen.input.size,
        mean=chosen.input.mean,
        std=chosen.input.std,
        seed=chosen.seed,
        reading=chosen.reading,
    )
    print("\n".join(sentences(found)))
    say(
        f"wrote {found.path} and {page.write(found)}; label them with pretask label {found.path} --data {chosen.data}"
    )
