"""Shared by all kinds of source: options for opening one, what opening returns, compact string arrays, a progress bar."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from torch import Tensor

from pretask.data.labels import read
from pretask.data.ledger import NO_LABEL, Ledger
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import bar as bar
from pretask.runtime.console import say
from pretask.transforms.ranges import UNKNOWN, Range
from pretask.types import Source, UserError

if TYPE_CHECKING:
    from pretask.data.fingerprint import Fingerprint

LABEL_NAMES = ("label", "labels", "cls", "class", "target", "fine_label")
"""usual names of a label column"""
SAMPLE = 100
"""evenly spaced images that are read first, to choose the size and the range and to estimate how many are unreadable"""
CONSTANT_FRACTION = 0.1
"""fraction of constant images above which a warning is printed"""


@dataclass(frozen=True)
class OpenOptions:
    """Options for opening a source."""

    size: int | None = None
    """side of the square images in pixels; none: arrays keep theirs, files get the median of a sample"""
    channels: int | None = None
    """1 or 3; none: 1 for gray arrays, else 3"""
    reading: Reading = DEFAULT_READING
    """how to read it, as set by the user"""
    split: str | None = None
    """split of a dataset that has splits; of a folder as in FOLDER:PART"""
    progress: bool = True
    """show a bar while images are decoded"""
    cache_mb: int = 2048
    """images that take at most this many MiB when decoded are decoded at opening and kept in memory"""
    labels: Literal["none", "any", "all"] = "none"
    """none: labels are not read; any: -1 where an image has none; all: images without a label are skipped"""
    stretch: bool = False
    """resize files to a square without keeping the aspect ratio, instead of cutting out the central square"""
    range: Range = UNKNOWN
    """range that maps values of more than 8 bits to 8 bits, as far as it is already known; `reading.range` wins"""

    def __post_init__(self) -> None:
        if self.reading.range is not None:
            object.__setattr__(self, "range", Range.fixed(self.reading.range))


DEFAULTS = OpenOptions()


class NamedSource(Source, Protocol):
    """A source that knows the name of each sample and what happened to every input record."""

    ledger: Ledger
    range: Range  # that mapped values of more than 8 bits

    def files(self, index: Tensor) -> list[str]: ...

    def readable(self, index: Tensor) -> Tensor:
        """(B,) positions -> (B,) bool: False where an image was found to be unreadable and is replaced by another."""
        ...


class Images(NamedSource, Protocol):
    """A source that can be reopened."""

    def fingerprint(self) -> "Fingerprint":
        """Identifies the images, to detect changes when the source is reopened."""
        ...


class Canvas(Protocol):
    """Anything with an image format: an encoder, a source, the images of a run."""

    @property
    def size(self) -> int | None: ...
    @property
    def channels(self) -> int | None: ...
    @property
    def range(self) -> Range: ...


def canvas_fields(of: Canvas) -> dict[str, Any]:
    """Options for opening images in the same format: `OpenOptions(**canvas_fields(encoder))`."""
    return {"size": of.size, "channels": of.channels, "range": of.range}


@dataclass(frozen=True)
class Opened:
    """Images and, separately, their labels."""

    images: Images
    label: Tensor | None = None
    """(N,) int64, -1: no label; or multi-label (N, K) int8 of 1 and 0, a row of -1: no label. None if no image has a
    label or none were requested"""
    classes: list[str] = field(default_factory=list)


class Texts:
    """N strings in two arrays, so that a million names need no Python objects and workers share them."""

    def __init__(self, blob: np.ndarray, ends: np.ndarray):
        self.blob, self.ends = blob, ends  # (bytes,) uint8, (N + 1,) int64, the first 0

    @classmethod
    def of(cls, texts: Iterable[str | bytes]) -> "Texts":
        parts = [t if isinstance(t, bytes) else os.fsencode(t) for t in texts]
        ends = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(p) for p in parts], out=ends[1:])
        return cls(np.frombuffer(b"".join(parts), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self.blob[self.ends[i] : self.ends[i + 1]].tobytes())

    def take(self, keep: Sequence[int]) -> "Texts":
        return Texts.of(self[i] for i in keep)


@dataclass(frozen=True)
class ResolvedLabels:
    """Labels of a source, and which images to keep."""

    kept: np.ndarray  # (M,) positions of the images to keep
    label: Tensor | None  # (M,), or multi-label (M, K)
    classes: list[str]


def resolve_labels(
    labels: Sequence[Any] | np.ndarray,
    options: OpenOptions,
    ledger: Ledger,
    name: Callable[[int], str],
    names: Sequence[str] | None = None,
    why: str = NO_LABEL,
) -> ResolvedLabels:
    """Stored labels -> the requested ones. Blank, None, NaN, and -1 among named classes count as missing.

    A tuple holds a 0/1 cell for each of `names`, a list holds the classes of an image (labels.py). `name` returns the
    name of an image. Skipped images are recorded in `ledger` with the reason `why`.
    """
    everything = np.arange(len(labels))
    if options.labels == "none":
        return ResolvedLabels(everything, None, [])
    found = read(labels, options.reading, names)
    there = found.there
    if not there.any():
        if found.wrong:
            i = min(found.wrong)
            raise UserError(f"no image has a valid label; {name(i)}: {found.wrong[i]}")
        return ResolvedLabels(everything, None, [])
    if options.labels == "any":
        return ResolvedLabels(everything, found.label, found.classes)
    for i in (~there).nonzero().flatten().tolist():
        ledger.exclude(name(i), found.wrong.get(i, why))
    return ResolvedLabels(everything[there.numpy()], found.label[there], found.classes)


def is_constant(pixels: np.ndarray) -> bool:
    """Whether all pixels are equal."""
    return bool((pixels == pixels.flat[0]).all())


def warn_constant(name: str, found: Sequence[bool], known: Range) -> None:
    """Warn if many sampled images are constant: the mapping from values to pixels may be wrong."""
    if sum(found) > CONSTANT_FRACTION * len(found):
        advice = "; set the values of black and white with --range LOW HIGH" if known.rescales() else ""
        say(f"{name}: {sum(found)} of {len(found)} sampled images are constant{advice}")
