"""COCO annotations as many tools write them: one JSON file of images, annotations and categories.

Lin et al. 2014 (arXiv:1405.0312). Differs: invalid image sizes are ignored; ids may be numbers or strings of digits; an
annotation may refer to a category by name; a polygon replaces a missing box. Records with other errors are skipped.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretask.data import decode
from pretask.data.annotations import (
    IMAGE_SKIPPED,
    IMAGES,
    MASK_FOLDERS,
    MASKS,
    NO_BOX,
    TWICE,
    BadAnnotation,
    BoxAnnotation,
    ImageAnnotation,
    ParsedAnnotations,
    Tree,
    brief,
    flag,
    number,
    size_of,
)
from pretask.data.ledger import Ledger
from pretask.types import UserError

OWN_NAMES = ("instances", "_annotations.coco")
"""beginnings of the usual names of COCO files; JSON files with other names may hold anything"""
NO_RECORD = "not a record"


@dataclass(frozen=True)
class Content:
    """A COCO file."""

    path: str  # relative
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]
    mask_classes: Mapping[str, Any]


def part_of(path: str) -> str:
    return Path(path).stem.removeprefix("instances_")


# ---- which file


def choose(tree: Tree, part: str) -> Content | dict[str, str]:
    """The annotation file of a split; if there is none, file -> reason why it cannot be used. Each file is read once."""
    paths = sorted(p for p in tree.paths if is_json(p))
    named = [p for p in paths if part_of(p) == part] or [p for p in paths if part and stem(p).endswith(part)]
    likely = named or paths
    own = [*filter(is_own, likely)]
    if len(own) > 1:
        raise ambiguous(tree, own, part)
    if own:
        try:
            return read(tree, own[0])
        except BadAnnotation as why:
            raise UserError(f"{tree.root / own[0]} is not a COCO file: {why}") from None
    found: list[Content] = []
    reasons: dict[str, str] = {}
    for path in likely:
        try:
            found.append(read(tree, path))
        except BadAnnotation as why:
            reasons[path] = str(why)
    if len(found) > 1:
        raise ambiguous(tree, [content.path for content in found], part)
    return found[0] if found else reasons


def is_json(path: str) -> bool:
    """Whether a path is a JSON file in a folder where annotations are expected."""
    return path.lower().endswith(".json") and folder_of(path) in ("", "annotations")


def is_own(path: str) -> bool:
    return is_json(path) and stem(path).startswith(OWN_NAMES)


def stem(path: str) -> str:
    return Path(path).stem


def folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def ambiguous(tree: Tree, paths: Sequence[str], part: str) -> UserError:
    """The error for several annotation files."""
    known = ", ".join(sorted(map(part_of, paths))[:10])
    if part:
        return UserError(f"{tree.root} has no split {part!r}; it has {known}")
    return UserError(f"{tree.root} has annotations of several splits; choose one: {tree.root}:PART ({known})")


def read(tree: Tree, path: str) -> Content:
    """Read a file in UTF-8, UTF-16 or UTF-32, with or without BOM. Raises BadAnnotation if it is not JSON or has no images."""
    try:
        content = json.loads((tree.root / path).read_bytes())
    except UnicodeDecodeError as wrong:
        raise BadAnnotation(f"byte {wrong.start} is not valid {wrong.encoding.upper()}") from None
    except RecursionError:
        raise BadAnnotation("not JSON: nested too deeply") from None
    except (OSError, ValueError) as wrong:
        raise BadAnnotation(f"not JSON: {decode.reason(wrong)}") from None
    if not isinstance(content, dict):
        raise BadAnnotation("expected an object with images, annotations and categories")
    images, annotations, categories = (
        rows(content.get(name)) for name in ("images", "annotations", "categories")
    )
    if not any(isinstance(row, dict) for row in images):
        raise BadAnnotation("it lists no images")
    named = content.get("mask_classes")
    return Content(path, images, annotations, categories, named if isinstance(named, dict) else {})


def rows(x: Any) -> list[Any]:
    """A list of records; any other value becomes a single, invalid record."""
    return x if isinstance(x, list) else [] if x is None else [x]


# ---- parsing


def parse(content: Content, tree: Tree, part: str, ledger: Ledger, objects: Ledger) -> ParsedAnnotations:
    images = [*enumerate(content.images)]
    splits = {split for _, row in images if (split := split_of(row))}
    if part and part not in splits and not stem(content.path).endswith(part):
        raise UserError(
            f"{tree.root} has no split {part!r}; it has {', '.join(sorted(splits)[:10]) or 'none'}"
        )
    unused = [row for _, row in images if part in splits and split_of(row) not in ("", part)]
    if part in splits:
        images = [(n, row) for n, row in images if split_of(row) in ("", part)]
    of_image, categories = by_image(content, objects), Categories(content.categories)
    records = []
    for n, row in of_own_id(content, images, ledger):
        try:
            file, exact = locate(tree, row, content)
        except BadAnnotation as why:
            ledger.skip(called(content, n, row), str(why))
            continue
        boxes = [*boxes_of(content, of_image.pop(key(row["id"]), []), categories, objects)]
        size = size_of(row.get("width"), row.get("height"))
        records.append(
            ImageAnnotation(called(content, n, row), file, size, boxes, mask_of(tree, file), exact)
        )
    listed = {key(row.get("id")) for _, row in images if isinstance(row, dict)}
    elsewhere = {key(row.get("id")) for row in unused}
    for image, numbers in of_image.items():
        for n in numbers:
            if image in listed:
                objects.exclude(place(content, n), IMAGE_SKIPPED)
            elif image not in elsewhere:
                objects.skip(place(content, n), f"its image is not listed: {brief(image)}")
    return ParsedAnnotations(
        records, categories.names, areas(content), known(content, tree, records, unused, part)
    )


def split_of(row: Any) -> str:
    split = row.get("split") if isinstance(row, dict) else None
    return split if isinstance(split, str) else ""


def of_own_id(
    content: Content, images: Sequence[tuple[int, Any]], ledger: Ledger
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Images with a unique id, among all splits, each once."""
    names: dict[str | None, list[Any]] = {}
    for row in content.images:
        if isinstance(row, dict):
            names.setdefault(key(row.get("id")), []).append(row.get("file_name"))
    seen: set[str] = set()
    for n, row in images:
        image = key(row.get("id")) if isinstance(row, dict) else None
        if image is None:
            ledger.skip(called(content, n, row), "has no id" if isinstance(row, dict) else NO_RECORD)
        elif any(name != names[image][0] for name in names[image][1:]):
            ledger.skip(called(content, n, row), f"several images have its id: {brief(image)}")
        elif image in seen:
            ledger.skip(called(content, n, row), TWICE)
        else:
            seen.add(image)
            yield n, row


def called(content: Content, n: int, row: Any) -> str:
    name = row.get("file_name") if isinstance(row, dict) else None
    return writable(name) if isinstance(name, str) and name.strip() else f"{content.path}: images[{n}]"


def place(content: Content, n: int) -> str:
    return f"{content.path}: annotations[{n}]"


def locate(tree: Tree, row: Mapping[str, Any], content: Content) -> tuple[str, bool]:
    """The file of an image, and whether the match is exact: in a usual folder, the folder of its split, or elsewhere."""
    name, image, after = row.get("file_name"), key(row["id"]), part_of(content.path)
    if name is None and image and image.isdecimal():
        name = f"{int(image):012d}.jpg"
    if not isinstance(name, str) or not name.strip():
        raise BadAnnotation("has no file name")
    folders = (IMAGES, "images", f"images/{after}", after, split_of(row), "", folder_of(content.path))
    return tree.find(name, list(dict.fromkeys(folders)))


def mask_of(tree: Tree, file: str) -> str | None:
    """The mask with the name of the image, in the same subfolder or in none."""
    parts = os.path.splitext(file)[0].split("/")
    likely = ("/".join((MASKS, *parts[at:])) + ".png" for at in range(len(parts)))
    return next((path for path in likely if path in tree.paths), None)


def known(
    content: Content,
    tree: Tree,
    records: Sequence[ImageAnnotation],
    unused: Sequence[Mapping[str, Any]],
    part: str,
) -> frozenset[str]:
    """Annotation files, and the images of other splits."""
    mask_folders = tuple(f"{folder}/" for folder in MASK_FOLDERS)
    lone = set() if part else set(tree.below(MASKS, "").values()) - {record.mask for record in records}
    files = {path for path in tree.paths if path.startswith(mask_folders) or is_own(path)} - lone
    for row in unused:
        with suppress(BadAnnotation):
            files.add(locate(tree, {"id": None} | dict(row), content)[0])
    return frozenset(files | {content.path})


def areas(content: Content) -> dict[int, str]:
    """Mask value -> class name."""
    named = {number(value): class_name(name) for value, name in content.mask_classes.items()}
    return {
        int(value): name
        for value, name in named.items()
        if value is not None and value.is_integer() and name is not None
    }


# ---- objects


def by_image(content: Content, objects: Ledger) -> dict[str | None, list[int]]:
    """Id of an image -> positions of its annotations."""
    found: dict[str | None, list[int]] = {}
    for n, each in enumerate(content.annotations):
        if not isinstance(each, dict):
            objects.skip(place(content, n), NO_RECORD)
        elif (image := key(each.get("image_id"))) is None:
            objects.skip(place(content, n), "has no image id")
        else:
            found.setdefault(image, []).append(n)
    return found


def boxes_of(
    content: Content, numbers: Sequence[int], categories: "Categories", objects: Ledger
) -> Iterator[BoxAnnotation]:
    """The valid objects of one image; duplicates with the same id count once."""
    seen: dict[str, Any] = {}
    for n in numbers:
        each = content.annotations[n]
        own = key(each.get("id"))
        if own is not None and seen.setdefault(own, each) is not each and seen[own] == each:
            objects.skip(place(content, n), TWICE)
            continue
        try:
            yield BoxAnnotation(
                place(content, n), categories.of(each), corners(each), flag(each.get("iscrowd"))
            )
        except BadAnnotation as why:
            objects.skip(place(content, n), str(why))


class Categories:
    """Names of the classes, by id."""

    def __init__(self, records: Sequence[Any]):
        self.of_id: dict[str, set[str]] = {}
        self.without_id: dict[str, None] = {}
        for each in records:
            own, name = (each.get("id"), each.get("name")) if isinstance(each, dict) else (None, each)
            if (name := class_name(name)) is None:
                continue
            if (own := key(own)) is None:
                self.without_id[name] = None
            else:
                self.of_id.setdefault(own, set()).add(name)

    @property
    def names(self) -> list[str]:
        """Class names in order of their ids."""
        ids = sorted(self.of_id, key=lambda own: (number(own) is None, number(own) or 0.0, own))
        return list(
            dict.fromkeys([*(name for own in ids for name in sorted(self.of_id[own])), *self.without_id])
        )

    def of(self, annotation: Mapping[str, Any]) -> str:
        own = key(annotation.get("category_id"))
        if own is None:
            raise BadAnnotation("has no category")
        names = self.of_id.get(own) or ({own} if own in self.names else set())
        if len(names) != 1:
            raise BadAnnotation(
                f"its category {'has several names' if names else 'is not listed'}: {brief(own)}"
            )
        return next(iter(names))


def corners(annotation: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of the box, or of the polygon if there is no box. Raises BadAnnotation."""
    box = annotation.get("bbox")
    numbers = [*map(number, box)] if isinstance(box, list) else []
    if len(numbers) == 4 and None not in numbers:
        x, y, w, h = (value or 0.0 for value in numbers)
        return x, y, x + w, y + h
    across, down = polygon(annotation.get("segmentation"))
    return min(across), min(down), max(across), max(down)


def polygon(segmentation: Any) -> tuple[list[float], list[float]]:
    """All x and all y of the polygons of an object: lists of x, y, x, y, …"""
    lists = segmentation if isinstance(segmentation, list) else []
    if lists and not any(isinstance(each, list) for each in lists):
        lists = [lists]
    numbers = [[*map(number, each)] if isinstance(each, list) else [None] for each in lists]
    values = [value for each in numbers for value in each if value is not None]
    if not values or any(len(each) % 2 or None in each for each in numbers):
        raise BadAnnotation(NO_BOX)
    return values[::2], values[1::2]


# ---- values


def key(x: Any) -> str | None:
    """An id as a string, so that 7, 7.0 and "7" are equal; None if invalid."""
    if isinstance(x, float) and x.is_integer():
        x = int(x)
    if isinstance(x, bool) or not isinstance(x, int | str):
        return None
    return str(x).strip() or None


def class_name(x: Any) -> str | None:
    """A class name from a string or a number; None if invalid. Unprintable characters become question marks."""
    text = key(x)
    return None if text is None else text.encode(errors="replace").decode()


def writable(name: str) -> str:
    """A file name that can be written to bad.csv: unpaired UTF-16 surrogates are escaped."""
    try:
        name.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return name.encode(errors="backslashreplace").decode()
    return name
