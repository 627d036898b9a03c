"""Cost of making puzzles of patches, as a share of a training step with tiles of 64 pixels.

Example: python bench/puzzles.py --encoder resnet18

A step is one of `pretask pretrain`, on images in memory; making the puzzle is also timed separately, interleaved with
the steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from common import FIRST, Goal, alternate, flags, make_trainer, show

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
"""method -> size of the images and changes of the recipe, for tiles of 64 pixels"""


@dataclass(frozen=True)
class Flags:
    encoder: str = "resnet18"
    """the network that solves the puzzles"""
    tiles: int = 288
    """tiles in a batch, the same for every method"""
    rounds: int = 5
    """timed rounds"""
    json: bool = False
    """print only JSON to standard output"""


def parts(name: str, args: Flags) -> tuple[Callable[[], object], Callable[[], object]]:
    """Functions that make a puzzle and that do a whole training step of one method."""
    size, changes = CASES[name]
    config = methods.recipe(name)(**changes)
    source = data.open(f"synthetic:{max(args.tiles, config.train.batch)}", size=size)
    method: Method[Any] = config.build(encoders.build(args.encoder, source.channels, source.size), source)
    method.begin(Context(source, [], FIRST, Rng(0, "begin")))
    puzzle = method.pretext(source.__getitems__(torch.arange(2)), Rng(0))
    per_image = (
        next(v.shape[1] for v in vars(puzzle).values() if v.ndim == 5) if name != "exemplar_cnn" else 1
    )
    batch: Batch = source.__getitems__(torch.arange(args.tiles // per_image))
    trainer = make_trainer(method, source, config.train)

    @torch.no_grad()
    def make() -> object:
        return method.pretext(batch, Rng(0, "puzzle"))

    return make, lambda: trainer.step(batch, FIRST)


def main() -> None:
    args = flags(Flags, __doc__ or "")
    numbers: dict[str, Any] = {}
    goals = []
    for name in CASES:
        make, step = parts(name, args)
        with malloc.keep_freed_memory():
            taken = alternate({"puzzle": make, "step": step}, args.rounds)
        numbers |= {f"{name}: {part}, ms": 1000 * median(times) for part, times in taken.items()}
        share = median(a / b for a, b in zip(taken["puzzle"], taken["step"], strict=True))
        goals.append(Goal(f"{name}: making the puzzle, of a step", 100 * share, 10, "%", less=True))
    show(f"Puzzles of patches with {args.encoder}, {args.tiles} tiles of 64 px", numbers, goals, args.json)


if __name__ == "__main__":
    main()
