"""Looking before training: draw a method's puzzles, and hold it to the contract on one's own images."""

from collections.abc import Iterator

import torch
from PIL import Image

from pretask import contract, encoders, loader, sources
from pretask.methods import MethodConfig
from pretask.reports import sheet
from pretask.rng import Rng


def preview(
    data: str, config: MethodConfig, title: str, rows: int = 8, size: int | None = None, seed: int = 0
) -> Image.Image:
    """A contact sheet of puzzles with their answers."""
    source = sources.open(data, size=size)
    torch.manual_seed(seed)
    method = config.build(encoders.build(config.spec(), source.channels, source.size), source)
    batch = loader.sample(source, rows, Rng(seed, "preview", "which"))
    return sheet.puzzles(method.puzzle(batch, seed, "preview"), rows=rows, title=title)


def check(
    data: str, config: MethodConfig, encoder: str | None = None, size: int | None = None
) -> Iterator[tuple[str, str | None]]:
    """Each sentence of the contract, and None or how it was seen to fail."""
    case = contract.Case.of(config, sources.open(data, size=size), encoder)
    for each in contract.CHECKS:
        sentence = (each.__doc__ or each.__name__).strip().rstrip(".")
        yield sentence, contract.outcome(each, case)
