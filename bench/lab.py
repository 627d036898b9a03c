"""What it costs to turn images into CIELab, lightness everywhere and colors where they are asked for: the share of a
training step of colorization.

Example: python bench/lab.py --size 32

A step is what `pretask pretrain` does for one, on images that are at hand; the conversion is made alone, in turns with
it.
"""

from dataclasses import dataclass
from statistics import median

import torch
from common import FIRST, Goal, alternate, flags, show, trainer

from pretask import data, encoders
from pretask.methods.colorization import Config
from pretask.runtime import malloc
from pretask.transforms import augment
from pretask.transforms.color import rgb_to_lightness


@dataclass(frozen=True)
class Flags:
    size: int = 32
    """side of the images, pixels"""
    rounds: int = 25
    """in which both have their turn"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""


def main() -> None:
    asked, config = flags(Flags, __doc__ or ""), Config()
    source = data.open("synthetic:512", size=asked.size)
    encoder = config.spec(None)
    method = config.build(encoders.build(encoder, source.channels, source.size), source)
    trained = trainer(method, source, config.train)
    batch = source.__getitems__(torch.arange(config.train.batch))
    x = augment.to_float(batch.image)[:, :, : method.side, : method.side].contiguous()

    def convert() -> None:
        rgb_to_lightness(x)
        method.target_ab(x)

    with malloc.keep_freed_memory():
        taken = alternate({"Lab": convert, "step": lambda: trained.step(batch, FIRST)}, asked.rounds)
    share = median(a / b for a, b in zip(taken["Lab"], taken["step"], strict=True))
    numbers = {f"{part}, ms": 1000 * median(times) for part, times in taken.items()}
    goal = Goal("Lab, of a step", 100 * share, 3, "%", less=True)
    show(f"Colorization with {encoder}, {len(x)} images of {asked.size} px", numbers, [goal], asked.json)


if __name__ == "__main__":
    main()
