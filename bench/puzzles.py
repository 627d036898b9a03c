"""What it costs to make the puzzles of patches: the share of a training step with tiles of 64 pixels.

Example: python bench/puzzles.py --encoder resnet18

A step is what `pretask pretrain` does for one, on images that are at hand; the puzzle is also made alone, in turns with
it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from common import FIRST, Goal, alternate, flags, show, trainer

from pretask import data, encoders, methods
from pretask.methods import Method
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.runtime import malloc
from pretask.types import Batch

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "jigsaw": (255, {}),
    "damaged_jigsaw": (255, {}),
    "context_prediction": (256, {}),
    "exemplar_cnn": (192, {"patch": 64}),
}
"""sides of images, and what differs from the method's own recipe, for tiles of 64 pixels"""


@dataclass(frozen=True)
class Flags:
    encoder: str = "resnet18"
    """the network that solves the puzzles"""
    tiles: int = 288
    """in a batch, so that every method trains on as many"""
    rounds: int = 5
    """in which every part has its turn"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""


def parts(name: str, asked: Flags) -> tuple[Callable[[], object], Callable[[], object]]:
    """Making a puzzle, and a whole training step, of one method."""
    size, differs = CASES[name]
    config = methods.recipe(name)(**differs)
    source = data.open(f"synthetic:{max(asked.tiles, config.train.batch)}", size=size)
    method: Method[Any] = config.build(encoders.build(asked.encoder, source.channels, source.size), source)
    method.begin(Context(source, [], FIRST, Rng(0, "begin")))
    puzzle = method.pretext(source.__getitems__(torch.arange(2)), Rng(0))
    per_image = (
        next(v.shape[1] for v in vars(puzzle).values() if v.ndim == 5) if name != "exemplar_cnn" else 1
    )
    batch: Batch = source.__getitems__(torch.arange(asked.tiles // per_image))
    trained = trainer(method, source, config.train)

    @torch.no_grad()
    def make() -> object:
        return method.pretext(batch, Rng(0, "puzzle"))

    return make, lambda: trained.step(batch, FIRST)


def main() -> None:
    asked = flags(Flags, __doc__ or "")
    numbers: dict[str, Any] = {}
    goals = []
    for name in CASES:
        make, step = parts(name, asked)
        with malloc.keep_freed_memory():
            taken = alternate({"puzzle": make, "step": step}, asked.rounds)
        numbers |= {f"{name}: {part}, ms": 1000 * median(times) for part, times in taken.items()}
        share = median(a / b for a, b in zip(taken["puzzle"], taken["step"], strict=True))
        goals.append(Goal(f"{name}: making the puzzle, of a step", 100 * share, 10, "%", less=True))
    show(f"Puzzles of patches with {asked.encoder}, {asked.tiles} tiles of 64 px", numbers, goals, asked.json)


if __name__ == "__main__":
    main()
