"""Looking before training: draw a method's puzzles, and hold it to the contract on one's own images."""

from collections.abc import Iterator

import torch
from PIL import Image

from pretask import data as sources
from pretask.data import loader
from pretask.data.stream import Stream
from pretask.data.subset import Some
from pretask.methods import MethodConfig
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.train.trainer import check_provided
from pretask.viz import puzzle as sheet
from pretask.workflows import contract

LOOKED_AT = 500
"""images from which a preview learns what a method needs to know first"""


def made_up(config: MethodConfig) -> str:
    """Built-in images that a method's puzzle can be made of."""
    return "demo:test" if config.needs <= {"words"} else "synthetic:64:96"


def preview(
    data: str,
    config: MethodConfig,
    title: str,
    rows: int = 8,
    size: int | None = None,
    seed: int = 0,
    max_bad: float = 0.1,
) -> Image.Image:
    """A contact sheet of puzzles with their answers."""
    source = sources.open(data, size=size, max_bad=max_bad)
    addressed = not isinstance(source, Stream)
    if addressed:
        source = Some(source, torch.linspace(0, len(source) - 1, min(len(source), LOOKED_AT)).long())
    torch.manual_seed(seed)
    method = config.build(config.draw(config.spec(), source), source)
    check_provided(method, source)
    if addressed:  # the puzzle may be made of what a method learns of the images first
        method.begin(Context(source, [], Plan.of(1, 1).at(0), Rng(seed, "begin", 0)))
    batch = loader.sample(source, rows, Rng(seed, "preview", "which"))
    puzzle = method.puzzle(batch, seed, "preview")
    return sheet.puzzles(puzzle, rows=rows, title=title, names=method.meanings())


def check(
    data: str,
    config: MethodConfig,
    encoder: str | None = None,
    size: int | None = None,
    max_bad: float = 0.1,
) -> Iterator[tuple[str, str | None]]:
    """Each sentence of the contract, and None or how it was seen to fail."""
    case = contract.Case.of(config, sources.open(data, size=size, max_bad=max_bad), encoder)
    for each in contract.CHECKS:
        sentence = (each.__doc__ or each.__name__).strip().rstrip(".")
        yield sentence, contract.outcome(each, case)
