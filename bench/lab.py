"""Cost of the conversion to CIELab, as a share of a training step of colorization.

Example: python bench/lab.py --size 32

Lightness is computed for every pixel, colors only for the target locations. A step is one of `pretask pretrain`, on
images in memory; the conversion is timed separately, interleaved with the steps.
"""

from dataclasses import dataclass
from statistics import median

import torch
from common import FIRST, Goal, alternate, flags, make_trainer, show

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
    """timed rounds"""
    json: bool = False
    """print only JSON to standard output"""


def main() -> None:
    args, config = flags(Flags, __doc__ or ""), Config()
    source = data.open("synthetic:512", size=args.size)
    encoder = config.spec(None)
    method = config.build(encoders.build(encoder, source.channels, source.size), source)
    trainer = make_trainer(method, source, config.train)
    batch = source.__getitems__(torch.arange(config.train.batch))
    x = augment.to_float(batch.image)[:, :, : method.side, : method.side].contiguous()

    def convert() -> None:
        rgb_to_lightness(x)
        method.target_ab(x)

    with malloc.keep_freed_memory():
        taken = alternate({"Lab": convert, "step": lambda: trainer.step(batch, FIRST)}, args.rounds)
    share = median(a / b for a, b in zip(taken["Lab"], taken["step"], strict=True))
    numbers = {f"{part}, ms": 1000 * median(times) for part, times in taken.items()}
    goal = Goal("Lab, of a step", 100 * share, 3, "%", less=True)
    show(f"Colorization with {encoder}, {len(x)} images of {args.size} px", numbers, [goal], args.json)


if __name__ == "__main__":
    main()
