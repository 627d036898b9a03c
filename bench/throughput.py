"""Training speed: our loop against the limit of its own arithmetic, and against LightlySSL.

Examples: python bench/throughput.py (32 px, from memory)
          python bench/throughput.py --size 96 --batch 64 (larger images)
          python bench/throughput.py --folder (decoded from JPEG files during training)

Interleaved measurements of our loop (loading, two views, training step, as in `pretask pretrain simclr`), of the arithmetic
limit (forward, backward and update on two prepared views, with the same encoder, projector, precision and memory layout), of
the decoding limit (only our loader), and of LightlySSL's documented SimCLR on the same images with the same encoder.
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
from common import Goal, alternate, flags, make_trainer, show, speed
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
    """images, in any form that pretask opens (default: synthetic)"""
    size: int = 32
    """side of the images, pixels"""
    batch: int = 256
    """images per step; each gives two views"""
    encoder: str = "resnet18"
    """a timm name or a classic network"""
    folder: bool = False
    """decode JPEG files during training; other --data is written to a folder first"""
    steps: int = 8
    """steps per round"""
    rounds: int = 5
    """timed rounds"""
    json: bool = False
    """print only JSON to standard output"""


@contextmanager
def open_images(args: Flags) -> Iterator[tuple[Source, Any]]:
    """Our source, and the same images for LightlySSL: an array, or a folder that both decode."""
    if not args.folder:
        source = sources.open(args.data, size=args.size, channels=3)
        yield source, source.__getitems__(torch.arange(len(source))).image
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(args.data)
        if not folder.is_dir():
            folder = write_jpegs(sources.open(args.data, size=args.size, channels=3), Path(made))
        yield sources.open(folder, size=args.size, channels=3, cache_mb=0), folder


def write_jpegs(source: Source, folder: Path) -> Path:
    for i, image in enumerate(source.__getitems__(torch.arange(len(source))).image):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:06d}.jpg", quality=90)
    return folder


def build_trainer(args: Flags, source: Source) -> Trainer:
    """SimCLR as in `pretask pretrain`, with views of full size as in LightlySSL (default: 0.75)."""
    recipe = dataclasses.replace(methods.recipe("simclr")(), side=1.0)
    method = recipe.build(encoders.build(args.encoder, 3, args.size), source)
    return make_trainer(method, source, dataclasses.replace(recipe.train, batch=args.batch))


def build_parts(args: Flags, source: Source, images: Any) -> dict[str, Callable[[], object]]:
    """Name -> function that processes the same number of images per call."""
    trainer = build_trainer(args, source)
    order = torch.randperm(args.steps * args.batch) % len(source)
    plan = Plan.of(args.steps, args.steps)

    def loading() -> Iterator[Any]:
        return loader.epoch(source, order, args.batch)

    @malloc.keep_freed_memory()
    def ours() -> None:
        for step, batch in enumerate(loading()):
            trainer.step(batch, plan.at(step))

    with torch.no_grad():
        device = trainer.fabric.device
        ready = trainer.method.pretext(next(loading()).to(device), Rng(0, "bench", device=device))

    @malloc.keep_freed_memory()
    def arithmetic() -> None:
        for _ in range(args.steps):
            total, *_ = trainer.fabric_module(Opaque(ready))
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()
            trainer.fabric.backward(total)
            for stepper in trainer.fabric_optimizers:
                stepper.step()

    def decoding() -> None:
        for _ in loading():
            pass

    peer = lightly(images, encoders.build(args.encoder, 3, args.size), order, args.batch)
    parts: dict[str, Callable[[], object]] = {"ours": ours, "arithmetic": arithmetic, "LightlySSL": peer}
    return parts | ({"decoding": decoding} if args.folder else {})


def main() -> None:
    args = flags(Flags, __doc__ or "")
    with open_images(args) as (source, images):
        taken = alternate(build_parts(args, source, images), args.rounds)
    limit = [
        max(pair)
        for pair in zip(taken["arithmetic"], taken.get("decoding", taken["arithmetic"]), strict=True)
    ]
    goals = [
        Goal("ours of its own limit", 100 * speed(taken["ours"], limit), 90 if args.folder else 95, "%"),
        Goal(
            "ours of LightlySSL",
            speed(taken["ours"], taken["LightlySSL"]),
            2.1 if args.size >= 96 else 1.4,
            "x",
        ),
    ]
    seen = args.steps * args.batch
    numbers = {f"{name}, images/s": seen / median(times) for name, times in taken.items()}
    where = "JPEG files" if args.folder else "memory"
    title = f"SimCLR, {args.encoder}, batch {args.batch}, {args.size} px, from {where}"
    show(title, numbers, goals, args.json)


if __name__ == "__main__":
    main()
