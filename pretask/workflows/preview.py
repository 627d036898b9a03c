"""Before training: draw a method's puzzles, and check its contract on the user's images."""

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from pretask import data as sources
from pretask.data import loader
from pretask.data.stream import Stream
from pretask.data.subset import Subset
from pretask.limits import PositiveInt, Seed, checked
from pretask.methods import MethodConfig
from pretask.methods.base.context import Context
from pretask.reading import DEFAULT_READING, Reading
from pretask.rng import Rng
from pretask.train import requirements
from pretask.train.plan import Plan
from pretask.train.trainer import check_provided
from pretask.types import UserError
from pretask.viz import sheet
from pretask.workflows import contract

BEGIN_IMAGES = 500
"""maximum number of images that a method's `begin` gets for a preview"""


def builtin_images(config: MethodConfig) -> str:
    """Built-in images on which a method can be previewed."""
    return "demo:test" if config.needs <= {"words"} else "synthetic:64:96"


@checked
def preview(
    data: str,
    config: MethodConfig,
    title: str,
    rows: PositiveInt = 8,
    size: PositiveInt | None = None,
    seed: Seed = 0,
    reading: Reading = DEFAULT_READING,
    bad: Path | None = None,
) -> Image.Image:
    """A contact sheet of puzzles with their answers; unreadable images are listed in the file `bad`."""
    source = sources.open(data, size=size, reading=reading)
    indexed = not isinstance(source, Stream)
    if indexed:
        source = Subset(source, torch.linspace(0, len(source) - 1, min(len(source), BEGIN_IMAGES)).long())
    torch.manual_seed(seed)
    encoder = config.build_encoder(config.spec(), source)
    requirements.check(config, encoder, source)
    method = config.build(encoder, source)
    check_provided(method, source)
    if indexed:  # a puzzle may depend on what `begin` computes from the images
        method.begin(Context(source, [], Plan.of(1, 1).at(0), Rng(seed, "begin", 0)))
    batch = loader.sample(source, rows, Rng(seed, "preview", "which"))
    puzzles = method.illustrate(batch, seed, "preview")
    if bad is not None:
        source.ledger.write(bad)
    heading, about = (method.pretext_task, title) if method.pretext_task else (title, "")
    return sheet.puzzles(puzzles, rows=rows, title=heading, about=about)


def check(
    data: str,
    config: MethodConfig,
    encoder: str | None = None,
    size: int | None = None,
    reading: Reading = DEFAULT_READING,
) -> Iterator[tuple[str, str | None]]:
    """Each sentence of the contract, with None if it is true, otherwise what was observed."""
    source = sources.open(data, size=size, reading=reading)
    if len(source) < 2:
        raise UserError(f"{source.name} has 1 image; the checks need 2 or more")
    case = contract.Case.of(config, source, encoder)
    requirements.check(config, config.build_encoder(case.encoder, source), source, len(case.batch))
    for each in contract.CHECKS:
        sentence = (each.__doc__ or each.__name__).strip().rstrip(".")
        yield sentence, contract.run_check(each, case)
