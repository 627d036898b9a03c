"""Exemplar-CNN with many classes: time and memory of a training step with up to 32,000 seeds.

Example: python bench/seeds.py --seeds 2000 32000

A step is one of `pretask pretrain`, on images in memory.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from common import FIRST, Goal, alternate, flags, make_trainer, show

from pretask import encoders
from pretask.data.arrays import Arrays
from pretask.methods.exemplar_cnn import Config
from pretask.rng import Rng
from pretask.runtime import malloc

SIZE = 32
"""pixels of the images"""


@dataclass(frozen=True)
class Flags:
    encoder: str = Config.encoder
    """the network that solves the puzzles"""
    seeds: tuple[int, ...] = (2000, 8000, 32000)
    """numbers of classes, one class per image"""
    batch: int = 256
    """images per step"""
    rounds: int = 5
    """timed rounds"""
    json: bool = False
    """print only JSON to standard output"""


def step_with(seeds: int, args: Flags) -> tuple[Callable[[], object], Callable[[], float]]:
    """A training step with `seeds` classes, and the MB of parameters, gradients and AdamW's state."""
    source = Arrays("noise", Rng(0, "noise").integers(seeds, 3, SIZE, SIZE, high=256).to(torch.uint8))
    recipe = Config(num_classes=seeds)
    method = recipe.build(encoders.build(args.encoder, 3, SIZE), source)
    trainer = make_trainer(method, source, dataclasses.replace(recipe.train, batch=args.batch))
    batch = source.__getitems__(torch.arange(args.batch))

    def megabytes() -> float:
        state = [x for o in trainer.optimizers for moments in o.state.values() for x in moments.values()]
        held = [x for p in method.parameters() for x in (p, p.grad)] + state
        return sum(x.numel() * x.element_size() for x in held if x is not None) / 1e6

    return lambda: trainer.step(batch, FIRST), megabytes


def main() -> None:
    args = flags(Flags, __doc__ or "")
    made = {seeds: step_with(seeds, args) for seeds in args.seeds}
    with malloc.keep_freed_memory():
        taken = alternate({f"{seeds}": step for seeds, (step, _) in made.items()}, args.rounds)
    numbers: dict[str, Any] = {}
    for seeds, (_, megabytes) in made.items():
        numbers[f"{seeds:,} seeds: step, ms"] = 1000 * median(taken[f"{seeds}"])
        numbers[f"{seeds:,} seeds: weights, gradients and AdamW, MB"] = megabytes()
    few, many = min(args.seeds), max(args.seeds)
    share = median(a / b for a, b in zip(taken[f"{many}"], taken[f"{few}"], strict=True))
    goal = Goal(f"a step with {many:,} seeds, of one with {few:,}", share, 2, "times", less=True)
    show(f"Exemplar-CNN with {args.encoder}, {args.batch} images of {SIZE} px", numbers, [goal], args.json)


if __name__ == "__main__":
    main()
