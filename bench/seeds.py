"""What many classes cost Exemplar-CNN: time and memory of a training step as the seeds grow to 32,000.

Example: python bench/seeds.py --seeds 2000 32000

A step is what `pretask pretrain` does for one, on images that are at hand.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from common import FIRST, Goal, alternate, flags, show, trainer

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
    """classes, one for each image"""
    batch: int = 256
    """images of a step"""
    rounds: int = 5
    """in which every number has its turn"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""


def step_with(seeds: int, asked: Flags) -> tuple[Callable[[], object], Callable[[], float]]:
    """A training step with so many classes; and the MB of what is trained, with gradients and what AdamW remembers."""
    source = Arrays("noise", Rng(0, "noise").integers(seeds, 3, SIZE, SIZE, high=256).to(torch.uint8))
    recipe = Config(num_classes=seeds)
    method = recipe.build(encoders.build(asked.encoder, 3, SIZE), source)
    trained = trainer(method, source, dataclasses.replace(recipe.train, batch=asked.batch))
    batch = source.__getitems__(torch.arange(asked.batch))

    def megabytes() -> float:
        remembered = [x for o in trained.optimizers for kept in o.state.values() for x in kept.values()]
        held = [x for p in method.parameters() for x in (p, p.grad)] + remembered
        return sum(x.numel() * x.element_size() for x in held if x is not None) / 1e6

    return lambda: trained.step(batch, FIRST), megabytes


def main() -> None:
    asked = flags(Flags, __doc__ or "")
    made = {seeds: step_with(seeds, asked) for seeds in asked.seeds}
    with malloc.keep_freed_memory():
        taken = alternate({f"{seeds}": step for seeds, (step, _) in made.items()}, asked.rounds)
    numbers: dict[str, Any] = {}
    for seeds, (_, megabytes) in made.items():
        numbers[f"{seeds:,} seeds: step, ms"] = 1000 * median(taken[f"{seeds}"])
        numbers[f"{seeds:,} seeds: weights, gradients and AdamW, MB"] = megabytes()
    few, many = min(asked.seeds), max(asked.seeds)
    share = median(a / b for a, b in zip(taken[f"{many}"], taken[f"{few}"], strict=True))
    goal = Goal(f"a step with {many:,} seeds, of one with {few:,}", share, 2, "times", less=True)
    show(f"Exemplar-CNN with {asked.encoder}, {asked.batch} images of {SIZE} px", numbers, [goal], asked.json)


if __name__ == "__main__":
    main()
