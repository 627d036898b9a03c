"""The strip of six puzzles at the top of README.md, drawn as `pretask preview` draws them: `python docs/poster.py`.

The photographs lie in the package scikit-image, and its documentation (skimage/data/_fetchers.py) gives their terms:
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
"""pixels of the photographs, which are cut to squares"""
WIDTH, MARGIN, POINTER, GAP = 1440, 24, 46, 8
"""pixels of the strip; around it; between question and answer; between other panels"""
ABOVE, BESIDE, BELOW = 84, 60, 36
"""pixels of the text above the panels; between two puzzles of a row; between rows"""


@dataclass(frozen=True)
class Shown:
    """A puzzle of the strip: a method by some values of its config, on a photograph, by a seed that makes it telling."""

    method: str
    photograph: str
    seed: int
    config: Mapping[str, Any]
    encoder: str | None = None


STRIP = (
    Shown("rotnet", "rocket", 0, {"crop": 0.9, "side": 1.0, "angles": (0, 90)}),
    Shown("colorization", "coffee", 0, {"side": 1.0}),
    Shown("jigsaw", "astronaut", 0, {"gray": 0.0, "channel_shift": 0, "flip": 0.0, "tile": 0.9}),
    Shown("context_prediction", "chelsea", 2, {"crop": 1.0, "color": "keep", "downsample": 0.0}),
    Shown("simclr", "coffee", 3, {"side": 1.0}),
    Shown("mae", "astronaut", 0, {"crop": 0.9}, "vit_tiny_patch16_224:patch_size=16,embed_dim=48,depth=1"),
)
"""row by row, two in each"""


def photograph(name: str) -> torch.Tensor:
    """(1, 3, SIZE, SIZE) uint8: the central square."""
    from skimage import data

    image = Image.fromarray(getattr(data, name)())
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def puzzle(shown: Shown) -> tuple[str, Puzzle]:
    """The pretext task and its puzzle."""
    config = methods.recipe(shown.method)(**shown.config)
    image = photograph(shown.photograph)
    source = from_array(image.repeat(2, 1, 1, 1))
    torch.manual_seed(0)
    method = config.build(config.build_encoder(config.spec(shown.encoder), source), source)
    method.begin(Context(source, [], Plan.of(1, 1).at(0), Rng(0, "begin")))
    return method.pretext_task, method.illustrate(Batch(torch.tensor([0]), image), shown.seed, "strip")[-1]


def strip() -> Image.Image:
    """Two puzzles in a row, their panels as large as the row takes."""
    rows = [row(*pair) for pair in zip(*[map(puzzle, STRIP)] * 2, strict=True)]
    made = Image.new("RGB", (WIDTH, 2 * MARGIN - BELOW + sum(one.height + BELOW for one in rows)), PAPER)
    y = MARGIN
    for one in rows:
        made.paste(one, (MARGIN, y))
        y += one.height + BELOW
    return made


def row(*puzzles: tuple[str, Puzzle]) -> Image.Image:
    """Each puzzle below its pretext task, its question and the answer."""
    count = sum(len(one.question) + len(one.answer) for _, one in puzzles)
    between = BESIDE * (len(puzzles) - 1) + POINTER * len(puzzles) + GAP * (count - 2 * len(puzzles))
    side = (WIDTH - 2 * MARGIN - between) // count
    made = Image.new("RGB", (WIDTH - 2 * MARGIN, ABOVE + side), PAPER)
    pen, x = ImageDraw.Draw(made), 0
    for task, one in puzzles:
        caption, question = one.captions[0], f"{one.captions[0].question} "
        pen.text((x, 0), task, MUTED, font(25))
        pen.text((x, 35), question, INK, font(28))
        pen.text((x + font(28).getlength(question), 35), caption.answer, INK, font(28, True))
        for panel in one.question:
            made.paste(draw.panel(panel, side), (x, ABOVE))
            x += side + GAP
        pen.text((x - GAP + POINTER / 2, ABOVE + side / 2), "→", MUTED, font(36), anchor="mm")
        x += POINTER - GAP
        for panel in one.answer:
            made.paste(draw.panel(panel, side), (x, ABOVE))
            x += side + GAP
        x += BESIDE - GAP
    return made


if __name__ == "__main__":
    strip().save(HERE, quality=88, method=6)
    print(f"wrote {HERE} ({HERE.stat().st_size / 1000:.0f} kB)")
