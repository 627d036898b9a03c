"""Images with boxes around the things in them, or a class for every pixel: for evaluation alone, never for pretraining.

    VOC form (Everingham et al. 2010)             COCO form (Lin et al. 2014, arXiv:1405.0312)
    FOLDER/JPEGImages/NAME.jpg                    FOLDER/instances.json, or FOLDER/annotations/instances_PART.json
    FOLDER/Annotations/NAME.xml                   images in FOLDER/JPEGImages, images, PART or FOLDER itself
    FOLDER/ImageSets/Main/PART.txt                a part is a file, or the field "split" of the images in it
    FOLDER/SegmentationClass/NAME.png             the same; "mask_classes" in the JSON names the numbers

A folder that has both is read as COCO's. `FOLDER:PART` is one part of it. The class of a pixel is its number in the PNG;
255 is none. What is broken is skipped and listed in `bad`: images as a whole, or a single object of one.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretask.data import decode
from pretask.data.base import Asked, Images, bar
from pretask.data.encoded import collect, cores
from pretask.data.ledger import stop
from pretask.rng import Rng
from pretask.types import UserError

IMAGES, XML, MASKS = "JPEGImages", "Annotations", "SegmentationClass"
LISTS = ("Main", "Segmentation")
"""folders below ImageSets that name the images of a part"""
NONE = 255
"""the class of a pixel that has none"""
UNNAMED = frozenset({"unlabeled", "unlabelled", "void", "ignore"})
"""names of such classes"""


class Amiss(ValueError):
    """An image or an object cannot be used; the message is the reason, in a few words."""


@dataclass(frozen=True)
class Item:
    """One image and what is in it."""

    file: Path
    width: int  # pixels
    height: int
    boxes: Tensor  # (M, 4) x1, y1, x2, y2 in pixels: edges, counted from 0, so that x2 - x1 is a width
    label: Tensor  # (M,) int64
    hard: Tensor  # (M,) VOC's "difficult", COCO's "crowd": need not be found
    mask: Path | None = None

    def image(self, channels: int) -> Tensor:
        """(C, H, W) uint8, as it is stored: annotations are about the stored pixels, so it is not turned upright."""
        pixels = np.array(decode.plain(decode.opened(self.file), channels))
        return torch.from_numpy(pixels.reshape(self.height, self.width, channels)).permute(2, 0, 1)


@dataclass(frozen=True)
class Annotated:
    """N images with their objects, and with masks where those were asked for."""

    name: str
    items: Sequence[Item]
    classes: Sequence[str]  # of boxes
    areas: Mapping[int, str]  # number in a mask -> its name, of those found
    bad: Mapping[str, str] = field(default_factory=dict)  # file or object -> why it was left out

    def __len__(self) -> int:
        return len(self.items)

    def some(self, index: Tensor, name: str) -> "Annotated":
        return replace(self, items=[self.items[i] for i in index.tolist()], name=name)

    def order(self, seed: int) -> Tensor:
        return Rng(seed, "test").permutation(len(self))

    def numbered_as(self, classes: Sequence[str]) -> "Annotated":
        """The same with its classes numbered as in `classes`, which has all of them."""
        number = torch.tensor([classes.index(c) for c in self.classes], dtype=torch.long)
        items = [replace(item, label=number[item.label]) for item in self.items]
        return replace(self, items=items, classes=list(classes))

    @property
    def shown(self) -> Tensor:
        """(N, K): 1 where an image shows a class, -1 where it shows hard ones of it alone, else 0."""
        found = torch.zeros(len(self), len(self.classes), dtype=torch.long)
        for row, item in zip(found, self.items, strict=True):
            row[item.label[item.hard]] = -1
            row[item.label[~item.hard]] = 1
        return found

    def mask(self, i: int) -> Tensor:
        """(H, W) uint8: the number of every pixel's class."""
        path = self.items[i].mask
        assert path is not None
        return torch.from_numpy(plain_mask(path))


class Paths:
    """Files as they are, for `collect`."""

    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        return str(self.files[i])

    def read(self, i: int) -> Path:
        return self.files[i]


def pictures(data: Annotated, size: int, channels: int, progress: bool = True) -> Images:
    """The images alone, as a source of squares of `size` pixels; all of them are known to be readable."""
    asked = Asked(size, channels, progress=progress)
    return collect(data.name, Paths([item.file for item in data.items]), asked).images


@dataclass(frozen=True)
class Thing:
    """An object as it is written down."""

    place: str  # what it is called where it is listed as bad
    name: str
    corners: tuple[float, float, float, float]  # as in Item.boxes
    hard: bool


@dataclass(frozen=True)
class Claim:
    """What is written down about one image."""

    file: Path
    size: tuple[int, int] | None  # width and height, where told
    things: Sequence[Thing]


# ---- opening


def load(spec: str | Path, *, masks: bool = False, max_bad: float = 0.1, progress: bool = True) -> Annotated:
    """Open `FOLDER` or `FOLDER:PART`; with `masks`, only images that have one. UserError where nothing is of use."""
    root, part = parted(str(spec))
    bad: dict[str, str] = {}  # objects
    lost: dict[str, str] = {}  # whole images
    told = tuple(root.glob("*.json")) or tuple((root / "annotations").glob("*.json"))
    if told:
        claims, classes, names = coco(root, told, part, bad)
    elif (root / XML).is_dir() or (masks and (root / MASKS).is_dir()):
        claims, classes, names = voc(root, part, masks, bad, lost)
    else:
        raise UserError(
            f"{root} is in neither VOC form ({XML}/*.xml) nor COCO form (instances.json or annotations/*.json)"
        )
    if masks:
        claims = [c for c in claims if mask_of(root, c.file).is_file()]
    total = len(claims) + len(lost)
    items: list[Item] = []
    values: set[int] = set()
    with ThreadPoolExecutor(cores()) as threads, bar(progress) as shown:
        looks = threads.map(lambda c: looked_at(c, mask_of(root, c.file) if masks else None), claims)
        looks = shown.track(looks, total=len(claims), description=f"reading {spec}")
        for claim, look in zip(claims, looks, strict=True):
            if isinstance(look, str):
                lost[called(root, claim.file)] = look
                continue
            size, there = look
            values |= there
            mask = mask_of(root, claim.file) if masks else None
            items.append(made(claim, size, classes, mask, bad))
    name = root.resolve().name + (f" {part}" if part else "")
    stop(name, lost, total, max_bad if items else 0.0)
    if not items:
        raise UserError(f"{spec} has no image {f'with a mask in {MASKS}/' if masks else 'of use'}")
    if not masks and not any(len(item.boxes) for item in items):
        some = "; ".join(f"{place}: {why}" for place, why in list(bad.items())[:3])
        raise UserError(f"{spec} has no object of use{f' ({some})' if some else ''}")
    areas = {v: names.get(v, str(v)) for v in sorted(values - {NONE})}
    areas = {v: name for v, name in areas.items() if name not in UNNAMED}
    return Annotated(name, items, classes, areas, lost | bad)


def parted(spec: str) -> tuple[Path, str]:
    """ "FOLDER:PART" -> the folder and the part; no part is ""."""
    root, part = Path(spec).expanduser(), ""
    if not root.is_dir():
        folder, _, part = spec.rpartition(":")
        root = Path(folder).expanduser()
        if not folder or not root.is_dir():
            raise UserError(f"{spec} is no folder; expected FOLDER or FOLDER:PART, in VOC or COCO form")
    return root, part


def called(root: Path, file: Path) -> str:
    return str(file.relative_to(root)) if file.is_relative_to(root) else str(file)


def mask_of(root: Path, image: Path) -> Path:
    return root / MASKS / f"{image.stem}.png"


def looked_at(claim: Claim, mask: Path | None) -> tuple[tuple[int, int], set[int]] | str:
    """An image's width and height and the numbers in its mask; or why it cannot be used."""
    if not claim.file.is_file():
        return "no such file"
    try:
        decode.canvas(claim.file, 32, 3)  # read to its end, at the cost of a thumbnail
        with decode.readable():
            size = decode.opened(claim.file).size
            if claim.size not in (None, size):
                raise Amiss(f"is {text(size)} pixels, its annotation says {text(claim.size)}")
            if mask is None:
                return size, set()
            pixels = plain_mask(mask)
            if pixels.shape[::-1] != size:
                raise Amiss(f"is {text(size)} pixels, its mask {text(pixels.shape[::-1])}")
            return size, set(np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist())
    except decode.Unreadable as wrong:
        return str(wrong)


def text(size: Sequence[int] | None) -> str:
    return "?" if size is None else f"{size[0]} x {size[1]}"


def plain_mask(path: Path) -> np.ndarray:
    """(H, W) uint8 of a PNG with a palette or of one channel."""
    image = Image.open(path)
    if image.mode not in ("P", "L"):
        raise Amiss(f"its mask is of mode {image.mode}, not one number of 8 bits for each pixel")
    return np.array(image)


def made(
    claim: Claim, size: tuple[int, int], classes: Sequence[str], mask: Path | None, bad: dict[str, str]
) -> Item:
    """The image with those of its objects that lie in it."""
    boxes, label, hard = [], [], []
    for thing in claim.things:
        try:
            boxes.append(clipped(thing.corners, *size))
        except Amiss as why:
            bad[thing.place] = str(why)
            continue
        label.append(classes.index(thing.name))
        hard.append(thing.hard)
    return Item(
        claim.file,
        *size,
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(label, dtype=torch.long),
        torch.tensor(hard, dtype=torch.bool),
        mask,
    )


def clipped(corners: tuple[float, float, float, float], width: int, height: int) -> list[float]:
    """A box, without what sticks out of the image."""
    x1, y1, x2, y2 = corners
    if not all(map(math.isfinite, corners)):
        raise Amiss("its box is not four numbers")
    if x2 <= x1 or y2 <= y1:
        raise Amiss("its box has no size")
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
    if x2 <= x1 or y2 <= y1:
        raise Amiss(f"its box lies outside of the image of {width} x {height} pixels")
    return [x1, y1, x2, y2]


# ---- VOC


def voc(
    root: Path, part: str, masks: bool, bad: dict[str, str], lost: dict[str, str]
) -> tuple[list[Claim], list[str], dict[int, str]]:
    """Images with what their XML says, the classes in order of the alphabet, and no names for the masks."""
    claims = []
    for stem in stems(root, part, masks):
        path = root / XML / f"{stem}.xml"
        try:
            claims.append(of_xml(root, path, bad) if path.is_file() or not masks else bare(root, stem))
        except (ElementTree.ParseError, OSError, ValueError) as wrong:
            lost[called(root, path)] = (
                f"not in VOC's form: {decode.reason(wrong)}" if path.is_file() else "no such file"
            )
    return claims, sorted({thing.name for claim in claims for thing in claim.things}), {}


def stems(root: Path, part: str, masks: bool) -> list[str]:
    """Names of the images, without their ending: those of a part, or all that are annotated."""
    if not part:
        there = {p.stem for p in (root / XML).glob("*.xml")}
        return sorted(there | {p.stem for p in (root / MASKS).glob("*.png")} if masks else there)
    lists = [root / "ImageSets" / kind for kind in (reversed(LISTS) if masks else LISTS)]
    found = next((folder / f"{part}.txt" for folder in lists if (folder / f"{part}.txt").is_file()), None)
    if found is None:
        known = sorted({p.stem for folder in lists for p in folder.glob("*.txt") if "_" not in p.stem})
        raise UserError(f"{root} has no part {part!r}; it has {', '.join(known[:10]) or 'no parts'}")
    return [line.split()[0] for line in found.read_text(errors="replace").splitlines() if line.strip()]


def bare(root: Path, stem: str) -> Claim:
    """An image of which nothing but its mask is known."""
    return Claim(image_of(root, stem), None, ())


def image_of(root: Path, stem: str, name: str | None = None) -> Path:
    folder = root / IMAGES
    likely = [folder / (name or f"{stem}.jpg"), folder / f"{stem}.jpg"]
    return next((p for p in likely if p.is_file()), None) or next(iter(folder.glob(f"{stem}.*")), likely[0])


def of_xml(root: Path, path: Path, bad: dict[str, str]) -> Claim:
    tree = ElementTree.parse(path).getroot()
    width, height = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    name = Path(tree.findtext("filename") or "").name or None
    things = []
    for number, each in enumerate(tree.findall("object"), 1):
        place = f"{called(root, path)}: object {number}"
        try:
            x1, y1, x2, y2 = (float(each.findtext(f"bndbox/{side}") or "nan") for side in CORNERS)
        except ValueError:
            x1 = y1 = x2 = y2 = math.nan
        kind = (each.findtext("name") or "").strip()
        if not kind:
            bad[place] = "has no name"
            continue
        # VOC counts pixels from 1 and the last one in: pixels 1 … 3 reach from edge 0 to edge 3
        edges = (x1 - 1, y1 - 1, x2, y2)
        things.append(Thing(place, kind, edges, (each.findtext("difficult") or "0").strip() == "1"))
    return Claim(image_of(root, path.stem, name), (width, height) if width and height else None, things)


CORNERS = ("xmin", "ymin", "xmax", "ymax")


# ---- COCO


def coco(
    root: Path, paths: Sequence[Path], part: str, bad: dict[str, str]
) -> tuple[list[Claim], list[str], dict[int, str]]:
    """Images with what the JSON says, the classes in order of their numbers, and the names for the masks."""
    path = annotations(root, paths, part)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = {c["id"]: str(c["name"]) for c in content["categories"]}
        rows = {row["id"]: row for row in content["images"]}
        objects: dict[Any, list[tuple[int, Any]]] = {number: [] for number in rows}
        for number, each in enumerate(content["annotations"]):
            objects.setdefault(each["image_id"], []).append((number, each))
        names = {int(v): str(name) for v, name in content.get("mask_classes", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as wrong:
        what = f"it lacks {wrong}" if isinstance(wrong, KeyError) else decode.reason(wrong)
        raise UserError(
            f"{path} is not in COCO's form ({what}); expected images, annotations, categories"
        ) from None
    for number, each in (pair for key in objects.keys() - rows.keys() for pair in objects[key]):
        bad[f"{path.name}: annotation {each.get('id', number)}"] = "is of an image that is not listed"
    splits = {row.get("split") for row in rows.values()} - {None}
    inside = part in splits
    if part and not inside and part not in path.stem:
        known = sorted(splits) or [p.stem for p in paths]
        raise UserError(f"{root} has no part {part!r}; it has {', '.join(known[:10])}")
    chosen = [row for row in rows.values() if not inside or row.get("split") == part]
    claims = [
        Claim(lying(root, row, path), told_size(row), [*things(path, objects[row["id"]], categories, bad)])
        for row in chosen
    ]
    order = sorted(categories, key=lambda c: (str(type(c)), c))
    return claims, list(dict.fromkeys(categories[c] for c in order)), names


def annotations(root: Path, paths: Sequence[Path], part: str) -> Path:
    """The one file that tells of the boxes of a part."""
    named = [p for p in paths if part and p.stem.endswith(part)]
    likely = named or [*paths]
    boxes = [p for p in likely if p.name.startswith("instances")] or likely
    if len(boxes) == 1:
        return boxes[0]
    known = ", ".join(sorted(p.stem.removeprefix("instances_") for p in boxes)[:10])
    raise UserError(f"{root} has annotations of several parts; give one of them as {root}:PART ({known})")


def lying(root: Path, row: Mapping[str, Any], path: Path) -> Path:
    """Where an image is: in any of the usual folders, or in the one that its annotations are named after."""
    name = str(row.get("file_name", f"{row['id']:012d}.jpg" if isinstance(row["id"], int) else row["id"]))
    after = path.stem.removeprefix("instances_")
    folders = (IMAGES, "images", f"images/{after}", after, str(row.get("split", "")), "")
    return next((p for f in folders if (p := root / f / name).is_file()), root / IMAGES / name)


def told_size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = row.get("width"), row.get("height")
    return (int(width), int(height)) if width and height else None


def things(
    path: Path, objects: Sequence[tuple[int, Any]], categories: Mapping[Any, str], bad: dict[str, str]
) -> Iterator[Thing]:
    for number, each in objects:
        place = f"{path.name}: annotation {each.get('id', number)}"
        kind = categories.get(each.get("category_id"))
        if kind is None:
            bad[place] = f"its category {each.get('category_id')} is not listed"
            continue
        try:
            x, y, w, h = map(float, each["bbox"])
        except (KeyError, TypeError, ValueError):
            x = y = w = h = math.nan
        yield Thing(place, kind, (x, y, x + w, y + h), bool(each.get("iscrowd")))
