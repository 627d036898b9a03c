"""Images with bounding boxes or segmentation masks, in VOC or COCO format; only for evaluation, never for pretraining.

    VOC format (Everingham et al. 2010)           COCO format (Lin et al. 2014, arXiv:1405.0312)
    FOLDER/JPEGImages/NAME.jpg                    FOLDER/instances.json, or FOLDER/annotations/instances_PART.json
    FOLDER/Annotations/NAME.xml                   images in FOLDER/JPEGImages, images, PART or FOLDER itself
    FOLDER/ImageSets/Main/PART.txt                a split is a file, or the field "split" of its images
    FOLDER/SegmentationClass/NAME.png             the same; "mask_classes" in the JSON names the values

A folder with both is read as COCO; JSON files of another structure are ignored. `FOLDER:PART` is a split or a subfolder.
The class of a pixel is its value in the PNG; 255 is unlabeled.

Images and objects have separate ledgers: each annotated image is used or skipped for a reason, and so is each object.
"""

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretask.data import coco, decode, voc
from pretask.data.annotations import (
    MASKS,
    NO_BOX,
    BadAnnotation,
    ImageAnnotation,
    ParsedAnnotations,
    Tree,
    drop_ambiguous,
    skip_image,
)
from pretask.data.base import DEFAULTS, Images, OpenOptions, bar
from pretask.data.encoded import collect, cores, range_of
from pretask.data.ledger import Ledger, first
from pretask.data.voc import XML
from pretask.rng import Rng
from pretask.runtime import accounts
from pretask.transforms.ranges import UNKNOWN, Range
from pretask.types import UserError

NONE = 255
"""mask value of unlabeled pixels"""
UNNAMED = frozenset({"unlabeled", "unlabelled", "void", "ignore"})
"""class names of unlabeled pixels"""
NO_MASK = "no mask"
NO_SIZE = "its box has no size"


@dataclass(frozen=True)
class Item:
    """One annotated image."""

    file: Path
    width: int  # pixels
    height: int
    boxes: Tensor  # (M, 4) x1, y1, x2, y2 in pixels: edges, counted from 0, so that x2 - x1 is the width
    label: Tensor  # (M,) int64
    hard: Tensor  # (M,) bool, VOC's "difficult", COCO's "crowd": need not be detected
    mask: Path | None = None
    range: Range = UNKNOWN

    def image(self, channels: int) -> Tensor:
        """(C, H, W) uint8 as stored, not rotated upright: annotations refer to the stored pixels."""
        pixels = np.array(decode.to_pil(self.file, channels, self.range, turn=False))
        return torch.from_numpy(pixels.reshape(self.height, self.width, channels)).permute(2, 0, 1)


@dataclass(frozen=True)
class Annotated:
    """N images with their objects, or with masks if these were requested."""

    name: str
    items: Sequence[Item]
    classes: Sequence[str]  # of boxes
    areas: Mapping[int, str]  # mask value -> class name, for the values found
    ledger: Ledger = field(default_factory=Ledger)
    objects: Ledger = field(default_factory=Ledger)  # of boxes, unless masks were requested
    range: Range = UNKNOWN

    def __len__(self) -> int:
        return len(self.items)

    @property
    def ledgers(self) -> Mapping[str, Ledger]:
        """The ledgers by what they count."""
        return {"images": self.ledger, "objects": self.objects}

    def subset(self, index: Tensor, name: str) -> "Annotated":
        return replace(self, items=[self.items[i] for i in index.tolist()], name=name)

    def order(self, seed: int) -> Tensor:
        return Rng(seed, "test").permutation(len(self))

    def numbered_as(self, classes: Sequence[str]) -> "Annotated":
        """The same with labels renumbered by the position in `classes`, which contains all of its classes."""
        number = torch.tensor([classes.index(c) for c in self.classes], dtype=torch.long)
        items = [replace(item, label=number[item.label]) for item in self.items]
        return replace(self, items=items, classes=list(classes))

    @property
    def shown(self) -> Tensor:
        """(N, K): 1 if an image shows a class, -1 if it shows only hard objects of it, else 0."""
        found = torch.zeros(len(self), len(self.classes), dtype=torch.long)
        for row, item in zip(found, self.items, strict=True):
            row[item.label[item.hard]] = -1
            row[item.label[~item.hard]] = 1
        return found

    def mask(self, i: int) -> Tensor:
        """(H, W) uint8: the class of every pixel."""
        item = self.items[i]
        assert item.mask is not None
        return torch.from_numpy(plain_mask(item.mask, (item.width, item.height)))


class Paths:
    """Image files as items for `collect`."""

    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        return str(self.files[i])

    def read(self, i: int) -> Path:
        return self.files[i]


def pictures(data: Annotated, size: int, channels: int, progress: bool = True) -> Images:
    """The images without annotations, as a source of `size`; all of them are known to be readable."""
    options = OpenOptions(size, channels, progress=progress, range=data.range)
    return collect(data.name, Paths([item.file for item in data.items]), options).images


# ---- opening


def load(spec: str | Path, options: OpenOptions = DEFAULTS, *, masks: bool = False) -> Annotated:
    """Open `FOLDER` or `FOLDER:PART`; with `masks`, only images that have one. Raises UserError if nothing is usable."""
    root, part = split_spec(str(spec))
    name = root.resolve().name + (f" {part}" if part else "")
    ledger, objects = Ledger(), Ledger()
    tree = Tree(root, ledger)
    if part and part in parts_in_folders(tree):
        root, part, ledger = root / part, "", Ledger()
        tree = Tree(root, ledger)
    parsed = parse(tree, part, masks, ledger, objects)
    records = list(drop_ambiguous(parsed.records, ledger, objects))
    if masks:
        records, objects = with_masks(records, parsed.need_masks, ledger), Ledger()
    files = Paths([root / record.file for record in records])
    known = range_of(str(spec), files, options.range)
    items: list[Item] = []
    values: set[int] = set()
    class_index = {name: k for k, name in enumerate(parsed.classes)}
    with ThreadPoolExecutor(cores()) as threads, bar(options.progress) as progress:
        checks = threads.map(lambda record: check(root, record, masks, known), records)
        checks = progress.track(checks, total=len(records), description=f"reading {spec}")
        for record, result in zip(records, checks, strict=True):
            if isinstance(result, str):
                skip_image(record.file, result, record.boxes, ledger, objects)
                continue
            size, mask_values = result
            values |= mask_values
            items.append(replace(build_item(root, record, size, class_index, objects), range=known))
    used = {record.file for record in parsed.records}
    tree.count_others(used | parsed.known, ledger)
    ledger.set_size(len(items))
    objects.set_size(0 if masks else sum(len(item.boxes) for item in items))
    ledger.check(name, options.reading.max_bad if items else 0.0)
    if not items:
        raise UserError(f"{spec} has no {f'image with a mask in {MASKS}/' if masks else 'usable image'}")
    if not masks and not objects.used:
        raise UserError(f"{spec} has no usable object{f' ({objects.first_bad()})' if objects.bad else ''}")
    accounts.add(name, ledger, str(spec))
    if not masks:
        accounts.add(f"objects of {name}", objects, f"objects of {spec}")
    areas = {v: parsed.areas.get(v, str(v)) for v in sorted(values - {NONE})}
    areas = {v: name for v, name in areas.items() if name not in UNNAMED}
    return Annotated(name, items, parsed.classes, areas, ledger, objects, known)


def split_spec(spec: str) -> tuple[Path, str]:
    """ "FOLDER:PART" -> the folder and the split, "" if there is none."""
    if os.path.isdir(root := os.path.expanduser(spec)):
        return Path(root), ""
    folder, _, part = spec.rpartition(":")
    if folder and os.path.isdir(root := os.path.expanduser(folder)):
        return Path(root), part
    raise UserError(f"{spec} is not a folder; expected FOLDER or FOLDER:PART in VOC or COCO format")


def parse(tree: Tree, part: str, masks: bool, ledger: Ledger, objects: Ledger) -> ParsedAnnotations:
    """Parse the annotations of a folder in either format."""
    content = coco.choose(tree, part)
    if isinstance(content, coco.Content):
        return coco.parse(content, tree, part, ledger, objects)
    if voc.is_voc(tree, masks):
        return voc.parse(tree, part, masks, ledger, objects)
    parts = parts_in_folders(tree)
    if parts and part:
        raise UserError(f"{tree.root} has no split {part!r}; it has {', '.join(parts[:10])}")
    if parts:
        raise UserError(
            f"{tree.root} has annotations of several splits; choose one: {tree.root}:PART ({', '.join(parts[:10])})"
        )
    raise UserError(
        f"{tree.root} has neither VOC annotations ({XML}/*.xml) nor COCO annotations (instances.json, annotations/*.json)"
        + (f"; {first(content)}" if content else "")
    )


def parts_in_folders(tree: Tree) -> list[str]:
    """Subfolders with annotations, if the folder itself has none."""
    if any(is_annotation(tree, path, path) for path in tree.paths):
        return []
    inside = ((path, *path.partition("/")) for path in tree.paths)
    return sorted({top for path, top, _, rest in inside if rest and is_annotation(tree, path, rest)})


def is_annotation(tree: Tree, path: str, name: str) -> bool:
    """Whether a file holds annotations, where `name` is its path relative to the annotated folder."""
    return coco.is_own(name) or voc.is_xml(tree, path, name)


def with_masks(records: Sequence[ImageAnnotation], needed: bool, ledger: Ledger) -> list[ImageAnnotation]:
    """Records with a mask. The others are bad if a list of masks names them (`needed`), else excluded."""
    for record in records:
        if record.mask is None:
            (ledger.skip if needed else ledger.exclude)(record.file, NO_MASK)
    return [record for record in records if record.mask is not None]


def check(
    root: Path, record: ImageAnnotation, masks: bool, known: Range
) -> tuple[tuple[int, int], set[int]] | str:
    """The width and height of an image and the values in its mask; or why it cannot be used."""
    file = root / record.file
    if not os.path.isfile(file):
        return "no such file"
    try:
        decode.canvas(file, 32, 3, known=known)  # decodes the whole file to a thumbnail
        with decode.readable():
            size = decode.size_of(file)
            if record.size not in (None, size):
                raise BadAnnotation(
                    f"size differs from its annotation: {text(size)} pixels, not {text(record.size)}"
                )
            if not masks or record.mask is None:
                return size, set()
            pixels = plain_mask(root / record.mask, size)
            return size, set(np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist())
    except decode.Unreadable as wrong:
        return str(wrong)


def text(size: Sequence[float] | None) -> str:
    return "?" if size is None else f"{size[0]:g} x {size[1]:g}"


def plain_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 values of a palette or gray PNG of the size of its image. Raises BadAnnotation."""
    try:
        with decode.readable():
            image = decode.pillow(decode.read(path))
            pixels = np.array(image) if image.size == size and image.mode in ("P", "L") else None
    except decode.Unreadable as wrong:
        raise BadAnnotation(f"its mask cannot be read: {wrong}") from None
    if image.mode not in ("P", "L"):
        raise BadAnnotation(f"its mask is not 8-bit gray or palette: its mode is {image.mode}")
    if pixels is None:
        raise BadAnnotation(f"its mask has a different size: {text(image.size)} pixels, not {text(size)}")
    return pixels


def build_item(
    root: Path,
    record: ImageAnnotation,
    size: tuple[int, int],
    class_index: Mapping[str, int],
    objects: Ledger,
) -> Item:
    """The image with its valid objects; the others are skipped."""
    boxes, label, hard = [], [], []
    for box in record.boxes:
        try:
            boxes.append(clipped(box.corners, *size))
        except BadAnnotation as why:
            objects.skip(box.place, str(why))
            continue
        label.append(class_index[box.name])
        hard.append(box.hard)
    return Item(
        root / record.file,
        *size,
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(label, dtype=torch.long),
        torch.tensor(hard, dtype=torch.bool),
        None if record.mask is None else root / record.mask,
    )


def clipped(corners: tuple[float, float, float, float], width: int, height: int) -> list[float]:
    """A box clipped to the image. Raises BadAnnotation if nothing is left."""
    x1, y1, x2, y2 = corners
    if not all(map(math.isfinite, corners)):
        raise BadAnnotation(NO_BOX)
    if x2 <= x1 or y2 <= y1:
        raise BadAnnotation(NO_SIZE)
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
    if x2 <= x1 or y2 <= y1:
        raise BadAnnotation(f"its box is outside the image: of {width} x {height} pixels")
    x1, y1, x2, y2 = np.array([x1, y1, x2, y2], np.float32).tolist()
    if x2 <= x1 or y2 <= y1:
        raise BadAnnotation(NO_SIZE)
    return [x1, y1, x2, y2]
