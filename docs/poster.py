"""The picture of six puzzles at the top of README.md, rendered like `pretask preview`: `python docs/poster.py`

The photographs are from the package scikit-image; their licenses are listed in skimage/data/_fetchers.py:
    astronaut   Eileen Collins, by NASA; no known copyright restrictions, released into the public domain
    chelsea     a cat, by Stefan van der Walt; CC0
    coffee      by Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0
    rocket      launch of DSCOVR, by SpaceX; released into the public domain
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from pretask import methods
from pretask.data.in_memory import from_array
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.types import Batch
from pretask.viz import draw
from pretask.viz.draw import INK, MUTED, PAPER, font
from pretask.viz.puzzle import Puzzle

HERE = Path(__file__).parent / "assets" / "puzzles.webp"
SIZE = 256
"""side of the photographs, cropped to squares, pixels"""
WIDTH, MARGIN, ARROW_GAP, GAP = 1440, 24, 46, 8
"""width, margin, gap between question and answer, gap between other panels, pixels"""
TEXT_HEIGHT, COLUMN_GAP, ROW_GAP = 84, 60, 36
"""height of the text above the panels, gap between the puzzles of a row, gap between rows, pixels"""


@dataclass(frozen=True)
class Example:
    """A puzzle on the poster: a method and its config, a photograph, and a seed that gives a clear example."""

    method: str
    photograph: str
    seed: int
    config: Mapping[str, Any]
    encoder: str | None = None


EXAMPLES = (
    Example("rotnet", "rocket", 0, {"crop": 0.9, "side": 1.0, "angles": (0, 90)}),
    Example("colorization", "coffee", 0, {"side": 1.0}),
    Example("jigsaw", "astronaut", 0, {"gray": 0.0, "channel_shift": 0, "flip": 0.0, "tile": 0.9}),
    Example("context_prediction", "chelsea", 2, {"crop": 1.0, "color": "keep", "downsample": 0.0}),
    Example("simclr", "coffee", 3, {"side": 1.0}),
    Example("mae", "astronaut", 0, {"crop": 0.9}, "vit_tiny_patch16_224:patch_size=16,embed_dim=48,depth=1"),
)
"""in row-major order, two per row"""


def photograph(name: str) -> torch.Tensor:
    """(1, 3, SIZE, SIZE) uint8: the central square of a photograph."""
    from skimage import data

    image = Image.fromarray(getattr(data, name)())
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def make_puzzle(example: Example) -> tuple[str, Puzzle]:
    """Name of the pretext task, and a puzzle."""
    config = methods.recipe(example.method)(**example.config)
    image = photograph(example.photograph)
    source = from_array(image.repeat(2, 1, 1, 1))
    torch.manual_seed(0)
    method = config.build(config.build_encoder(config.spec(example.encoder), source), source)
    method.begin(Context(source, [], Plan.of(1, 1).at(0), Rng(0, "begin")))
    return method.pretext_task, method.illustrate(Batch(torch.tensor([0]), image), example.seed, "strip")[-1]


def render_poster() -> Image.Image:
    """All examples, two per row."""
    rows = [render_row(*pair) for pair in zip(*[map(make_puzzle, EXAMPLES)] * 2, strict=True)]
    picture = Image.new(
        "RGB", (WIDTH, 2 * MARGIN - ROW_GAP + sum(one.height + ROW_GAP for one in rows)), PAPER
    )
    y = MARGIN
    for one in rows:
        picture.paste(one, (MARGIN, y))
        y += one.height + ROW_GAP
    return picture


def render_row(*puzzles: tuple[str, Puzzle]) -> Image.Image:
    """Puzzles side by side, with panels as large as possible, each below its pretext task, question and answer."""
    count = sum(len(one.question) + len(one.answer) for _, one in puzzles)
    between = COLUMN_GAP * (len(puzzles) - 1) + ARROW_GAP * len(puzzles) + GAP * (count - 2 * len(puzzles))
    side = (WIDTH - 2 * MARGIN - between) // count
    picture = Image.new("RGB", (WIDTH - 2 * MARGIN, TEXT_HEIGHT + side), PAPER)
    pen, x = ImageDraw.Draw(picture), 0
    for task, one in puzzles:
        caption, question = one.captions[0], f"{one.captions[0].question} "
        pen.text((x, 0), task, MUTED, font(25))
        pen.text((x, 35), question, INK, font(28))
        pen.text((x + font(28).getlength(question), 35), caption.answer, INK, font(28, True))
        for panel in one.question:
            picture.paste(draw.render_panel(panel, side), (x, TEXT_HEIGHT))
            x += side + GAP
        pen.text((x - GAP + ARROW_GAP / 2, TEXT_HEIGHT + side / 2), "→", MUTED, font(36), anchor="mm")
        x += ARROW_GAP - GAP
        for panel in one.answer:
            picture.paste(draw.render_panel(panel, side), (x, TEXT_HEIGHT))
            x += side + GAP
        x += COLUMN_GAP - GAP
    return picture


if __name__ == "__main__":
    render_poster().save(HERE, quality=88, method=6)
    print(f"wrote {HERE} ({HERE.stat().st_size / 1000:.0f} kB)")
