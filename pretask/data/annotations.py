"""Annotations of images as parsed from any format, and the file lookup by the names that annotations use.

Annotations come from many tools. Entries with a unique meaning are used; invalid or ambiguous ones are skipped with a
reason.
"""

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product, takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pretask.data.folder import SUFFIXES, ending, walk
from pretask.data.ledger import Ledger

IMAGES, MASKS = "JPEGImages", "SegmentationClass"
MASK_FOLDERS = (MASKS, "SegmentationObject")
"""folders whose image files are annotations"""
UNLISTED = "unlisted images"
"""images without annotations, counted among other files"""
LONE_MASK = "masks without an image"
TWICE = "listed twice"
IMAGE_SKIPPED = "its image is skipped"
"""why a valid object is not used"""
NO_BOX = "its box is not four numbers"


class BadAnnotation(ValueError):
    """An image or an object cannot be used; the message is the reason in a few words."""


@dataclass(frozen=True)
class BoxAnnotation:
    """An annotated object."""

    place: str  # its location in the annotations, for messages
    name: str
    corners: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels: edges, counted from 0
    hard: bool


@dataclass(frozen=True)
class ImageAnnotation:
    """The annotations of one image."""

    place: str  # location in the annotations, for messages
    file: str  # relative to the folder, or absolute
    size: tuple[float, float] | None  # width and height in pixels, if stated
    boxes: Sequence[BoxAnnotation]
    mask: str | None = None  # file
    exact: bool = True  # the file has exactly the annotated name, not a similar one


@dataclass(frozen=True)
class ParsedAnnotations:
    """All annotations of a folder; entries that cannot be used go into the ledgers."""

    records: Sequence[ImageAnnotation]
    classes: Sequence[str]  # of boxes
    areas: Mapping[int, str] = field(default_factory=dict)  # mask value -> class name
    known: frozenset[str] = frozenset()  # annotation files, and images of other splits
    need_masks: bool = False  # whether an image without a mask counts as bad


class Tree:
    """All files below a folder. Names are looked up here and not on disk, so any string is a safe name."""

    def __init__(self, root: Path, ledger: Ledger):
        self.root, self.base = root, os.path.join(os.path.abspath(root), "")
        self.paths = {os.fsdecode(path): None for path, _ in walk(os.fsencode(root), ledger)}

    def below(self, folder: str, suffix: str) -> dict[str, str]:
        """Files with a suffix in a folder: name without folder and suffix -> path."""
        inside = f"{folder}/" if folder else ""
        return {
            path[len(inside) : len(path) - len(suffix)]: path
            for path in self.paths
            if path.startswith(inside) and path.lower().endswith(suffix)
        }

    def find(self, filename: str, folders: Sequence[str]) -> tuple[str, bool]:
        """The file of an annotated name, in one of these folders or anywhere else; and whether the match is exact.

        Raises BadAnnotation if there is none, or several equally good ones.
        """
        names = spellings(filename)
        for name, folder in product(names, folders):
            path = os.path.normpath(os.path.join(self.base, folder, name))
            if path.startswith(self.base):
                if path.removeprefix(self.base) in self.paths:
                    return path.removeprefix(self.base), True
            elif os.path.isfile(path):  # absolute, or outside the folder
                return path, True
        for name in names:
            if (found := self.similar(name)) is not None:
                return found, False
        raise BadAnnotation("no such file")

    def similar(self, name: str) -> str | None:
        """The file with the longest common end of its path, ignoring case; None if the folder in `name` exists here."""
        parts = [folded(part) for part in name.split("/") if part not in ("", ".", "..")]
        files = self.named.get(parts[-1], []) if parts else []
        ends = {path: common_end(path, parts) for path in files}
        best = [path for path in files if ends[path] == max(ends.values())]
        best = [path for path in best if path.endswith(name.rpartition("/")[2])] or best
        if not best or (ends[best[0]] == 1 and len(parts) > 1 and parts[-2] in self.folders):
            return None
        if len(best) > 1:
            raise BadAnnotation(f"several files have this name: {', '.join(best[:3])}")
        return best[0]

    def picture(self, stem: str, folders: Sequence[str], filename: str = "") -> str | None:
        """The image with this stem in the first folder that has one; of several the one with the suffix of `filename`, or .jpg."""
        found = next(filter(None, (self.pictures.get(os.path.join(f, stem)) for f in folders)), [])
        ends = [os.path.splitext(filename)[1].lower(), ".jpg"]
        likely = [path for end in ends for path in found if os.path.splitext(path)[1].lower() == end]
        return next(iter([*likely, *found]), None)

    @cached_property
    def named(self) -> dict[str, list[str]]:
        """File name, case-folded -> paths of all such files except masks."""
        found: dict[str, list[str]] = {}
        for path in self.paths:
            if not path.startswith(tuple(f"{folder}/" for folder in MASK_FOLDERS)):
                found.setdefault(folded(path.rpartition("/")[2]), []).append(path)
        return found

    @cached_property
    def folders(self) -> set[str]:
        return {folded(part) for path in self.paths for part in path.split("/")[:-1]}

    @cached_property
    def pictures(self) -> dict[str, list[str]]:
        """Path without suffix -> the images that have it."""
        found: dict[str, list[str]] = {}
        for path in filter(is_picture, self.paths):
            found.setdefault(os.path.splitext(path)[0], []).append(path)
        return found

    def count_others(self, used: set[str], ledger: Ledger) -> None:
        """Count all files except these by kind."""
        for path in self.paths:
            if path not in used:
                ledger.other[kind_of(path)] += 1


def kind_of(path: str) -> str:
    """How a file without annotations is counted."""
    if path.startswith(f"{MASKS}/"):
        return LONE_MASK
    return UNLISTED if is_picture(path) else os.fsdecode(ending(os.fsencode(path))) or "without suffix"


def is_picture(path: str) -> bool:
    """Whether a file is an image, by its suffix."""
    return ending(os.fsencode(path))[1:] in SUFFIXES


def spellings(filename: str) -> list[str]:
    """Possible readings of a file name: as it is, with Windows separators, with escapes such as %20."""
    slashes = filename.strip().replace("\\", "/")
    names = dict.fromkeys((filename, slashes, unquote(slashes)))
    return [name for name in names if "\0" not in name]


def folded(name: str) -> str:
    """The name without case and with normalized accents, as on case-insensitive file systems."""
    return unicodedata.normalize("NFC", name).casefold()


def common_end(path: str, parts: Sequence[str]) -> int:
    """Number of path components in common, counted from the end."""
    pairs = zip(map(folded, reversed(path.split("/"))), reversed(parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def drop_ambiguous(
    records: Sequence[ImageAnnotation], ledger: Ledger, objects: Ledger
) -> Iterator[ImageAnnotation]:
    """Records with a file and a mask of their own; the others are skipped."""
    exact = {record.file for record in records if record.exact}
    similar = Counter(record.file for record in records if not record.exact)
    masks = Counter(record.mask for record in records)
    seen: set[str] = set()
    for record in records:
        why = ""
        if not record.exact and (record.file in exact or similar[record.file] > 1):
            why = f"its file name is ambiguous: {record.file}"
        elif record.file in seen:
            why = TWICE
        elif record.mask is not None and masks[record.mask] > 1:
            why = f"several images have its mask: {record.mask}"
        if why:
            skip_image(record.place, why, record.boxes, ledger, objects)
        else:
            seen.add(record.file)
            yield record


def skip_image(place: str, why: str, boxes: Sequence[BoxAnnotation], ledger: Ledger, objects: Ledger) -> None:
    """Record an image that cannot be used, and its objects."""
    ledger.skip(place, why)
    for box in boxes:
        objects.exclude(box.place, IMAGE_SKIPPED)


# ---- values of any type


def number(x: Any) -> float | None:
    """A number or a string of one -> float; None if it is invalid or not finite."""
    if isinstance(x, bool) or not isinstance(x, int | float | str):
        return None
    try:
        value = float(x)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def flag(x: Any) -> bool:
    """Whether a value is true, nonzero, or a string of these."""
    return x is True or bool(number(x)) or (isinstance(x, str) and x.strip().lower() == "true")


def size_of(width: Any, height: Any) -> tuple[float, float] | None:
    """Width and height in pixels; None if invalid."""
    w, h = number(width) or 0.0, number(height) or 0.0
    return (w, h) if w > 0 and h > 0 else None


def brief(x: Any) -> str:
    """At most 40 characters of a value, for a reason."""
    text = str(x)
    return text if len(text) <= 40 else f"{text[:40]}…"
