"""Training speed: how near our loop comes to its arithmetic alone, and how it compares with LightlySSL.

Example: python bench/throughput.py (32 px, from memory); with --size 96 --batch 64 (larger images); with --folder
(decoded from JPEG files while training).

In turns it measures ours (loading, drawing two views, the step: the loop of `pretask pretrain simclr`), the limit of
the arithmetic (same encoder, head, precision and layout: forward, backward and update on two views that are ready),
the limit of decoding (our loader alone) and LightlySSL's documented SimCLR on the same images and encoder.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import Goal, alternate, flags, show, speed, trainer
from peer import lightly
from PIL import Image

from pretask import data as sources
from pretask import encoders, methods
from pretask.data import loader
from pretask.rng import Rng
from pretask.runtime import malloc
from pretask.train.plan import Plan
from pretask.train.trainer import Opaque, Trainer
from pretask.types import Source


@dataclass(frozen=True)
class Flags:
    data: str = "synthetic:512"
    """images: anything that pretask opens (made-up pictures)"""
    size: int = 32
    """side of the images, pixels"""
    batch: int = 256
    """images per step, of which two views each are drawn"""
    encoder: str = "resnet18"
    """any timm name, or a classic net"""
    folder: bool = False
    """decode JPEG files while training; --data that is no folder is written to one first"""
    steps: int = 8
    """of one turn"""
    rounds: int = 5
    """turns of each part"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""


@contextmanager
def opened(asked: Flags) -> Iterator[tuple[Source, Any]]:
    """Our source, and the same images for LightlySSL: an array, or the folder that both decode."""
    if not asked.folder:
        source = sources.open(asked.data, size=asked.size, channels=3)
        yield source, source.__getitems__(torch.arange(len(source))).image
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(asked.data)
        if not folder.is_dir():
            folder = written(sources.open(asked.data, size=asked.size, channels=3), Path(made))
        yield sources.open(folder, size=asked.size, channels=3, cache_mb=0), folder


def written(source: Source, folder: Path) -> Path:
    for i, image in enumerate(source.__getitems__(torch.arange(len(source))).image):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:06d}.jpg", quality=90)
    return folder


def trainer_of(asked: Flags, source: Source) -> Trainer:
    """SimCLR as `pretask pretrain` trains it, with views of full size as LightlySSL's are (default: 0.75)."""
    recipe = dataclasses.replace(methods.recipe("simclr")(), side=1.0)
    method = recipe.build(encoders.build(asked.encoder, 3, asked.size), source)
    return trainer(method, source, dataclasses.replace(recipe.train, batch=asked.batch))


def parts_of(asked: Flags, source: Source, images: Any) -> dict[str, Callable[[], object]]:
    """What takes turns; each part sees the same number of images in a turn."""
    trained = trainer_of(asked, source)
    order = torch.randperm(asked.steps * asked.batch) % len(source)
    plan = Plan.of(asked.steps, asked.steps)

    def loading() -> Iterator[Any]:
        return loader.epoch(source, order, asked.batch)

    @malloc.keep_freed_memory()
    def ours() -> None:
        for step, batch in enumerate(loading()):
            trained.step(batch, plan.at(step))

    with torch.no_grad():
        device = trained.fabric.device
        ready = trained.method.pretext(next(loading()).to(device), Rng(0, "bench", device=device))

    @malloc.keep_freed_memory()
    def arithmetic() -> None:
        for _ in range(asked.steps):
            total, *_ = trained.fabric_module(Opaque(ready))
            for optimizer in trained.optimizers:
                optimizer.zero_grad()
            trained.fabric.backward(total)
            for stepper in trained.fabric_optimizers:
                stepper.step()

    def decoding() -> None:
        for _ in loading():
            pass

    peer = lightly(images, encoders.build(asked.encoder, 3, asked.size), order, asked.batch)
    parts: dict[str, Callable[[], object]] = {"ours": ours, "arithmetic": arithmetic, "LightlySSL": peer}
    return parts | ({"decoding": decoding} if asked.folder else {})


def main() -> None:
    asked = flags(Flags, __doc__ or "")
    with opened(asked) as (source, images):
        taken = alternate(parts_of(asked, source, images), asked.rounds)
    limit = [
        max(pair)
        for pair in zip(taken["arithmetic"], taken.get("decoding", taken["arithmetic"]), strict=True)
    ]
    goals = [
        Goal("ours of its own limit", 100 * speed(taken["ours"], limit), 90 if asked.folder else 95, "%"),
        Goal(
            "ours of LightlySSL",
            speed(taken["ours"], taken["LightlySSL"]),
            2.1 if asked.size >= 96 else 1.4,
            "x",
        ),
    ]
    seen = asked.steps * asked.batch
    numbers = {f"{name}, images/s": seen / median(turns) for name, turns in taken.items()}
    where = "JPEG files" if asked.folder else "memory"
    title = f"SimCLR, {asked.encoder}, batch {asked.batch}, {asked.size} px, from {where}"
    show(title, numbers, goals, asked.json)


if __name__ == "__main__":
    main()
