"""torchvision datasets by name: `cifar10`, `stl10:unlabeled`, …; downloaded if missing."""

import contextlib
import inspect
import io
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pretask.data import decode
from pretask.data.arrays import Arrays
from pretask.data.base import Opened, OpenOptions
from pretask.data.encoded import collect
from pretask.data.labels import numbered
from pretask.data.npz import fit, range_of
from pretask.types import UserError


def load(spec: str, options: OpenOptions) -> Opened:
    name, _, split = spec.partition(":")
    data = build(name.lower(), options.reading.root or default_root(), options.split or split or "train")
    label, classes = labels(data) if options.labels != "none" else (None, [])
    pixels = getattr(data, "data", None)
    if isinstance(pixels, torch.Tensor | np.ndarray) and len(pixels) == len(data):
        pixels = np.asarray(pixels)
        if pixels.ndim == 4 and pixels.shape[1] == 3:  # SVHN and STL-10 keep channels first
            pixels = pixels.transpose(0, 2, 3, 1)
        known = range_of(name.lower(), pixels, options.range)
        return Opened(Arrays(name.lower(), fit(pixels, options, name, known), range=known), label, classes)
    return collect(name.lower(), Samples(data), options, label, classes)


class Samples:
    """The images of a torchvision dataset that opens its files one by one."""

    def __init__(self, data: Any):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def name(self, i: int) -> str:
        return str(i)

    def read(self, i: int) -> Image.Image:
        with decode.readable():
            image = self.data[i][0]
        if not isinstance(image, Image.Image):
            raise decode.Unreadable(f"not an image: {type(image).__name__}")
        return image


@cache
def names() -> list[str]:
    return sorted(kinds())


def is_known(spec: str) -> bool:
    return spec.partition(":")[0].lower() in kinds()


@cache
def kinds() -> dict[str, Any]:
    """Name in lower case -> class, for all datasets of images."""
    from torchvision import datasets

    bases = datasets.VisionDataset, datasets.DatasetFolder, datasets.ImageFolder
    classes = {name.lower(): getattr(datasets, name) for name in datasets.__all__}
    return {
        name: kind
        for name, kind in classes.items()
        if {"root", "transform"} <= set(inspect.signature(kind).parameters) and kind not in bases
    }


def default_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pretask" / "torchvision"


def build(name: str, root: Path, split: str) -> Any:
    """The dataset in `root`; downloaded if it is missing."""
    kind = kinds()[name]
    takes = inspect.signature(kind).parameters
    part: dict[str, Any] = {}
    if "train" in takes:
        if split not in ("train", "test"):
            raise UserError(f"{name} has no split {split!r}; it has train and test")
        part = {"train": split == "train"}
    elif "split" in takes:
        part = {"split": split}
    elif split != "train":
        raise UserError(f"{name} has no splits; got {split!r}")
    attempts = [{"download": False}, {"download": True}] if "download" in takes else [{}]
    reason = ""
    for attempt in attempts:
        try:
            if attempt.get("download"):
                root.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(io.StringIO()):
                return kind(root=str(root), **part, **attempt)
        except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
            reason = decode.reason(error)
            if "split" in reason:  # torchvision lists the valid splits
                break
    raise UserError(
        f"{name} ({split}) is not in {root} and could not be downloaded: {reason}. Set its folder with --root"
    )


def labels(data: Any) -> tuple[torch.Tensor | None, list[str]]:
    """Labels and class names, under whichever attribute the dataset stores them."""
    for field in ("targets", "labels", "_labels", "y"):
        values = getattr(data, field, None)
        if isinstance(values, list | np.ndarray | torch.Tensor) and len(values) == len(data):
            values = np.asarray(values)
            if values.ndim == 1:
                return numbered(values, class_names(data, values))
    return None, []


def class_names(data: Any, values: np.ndarray) -> list[str] | None:
    names = getattr(data, "classes", None)
    if not isinstance(names, list | tuple) or values.dtype.kind not in "iu" or values.max() >= len(names):
        return None
    return [name if isinstance(name, str) else str(name[0]) for name in names]
