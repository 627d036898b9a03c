"""VOC annotations as many tools write them: one XML file per image, and lists of the images in a split.

Everingham et al. 2010. An image has the same name as its XML file; the `filename` in the XML is used only if there is no
such image. Exponential entity expansion is refused by the XML parser (expat 2.4.1 and newer).
"""

import codecs
import os
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from pretask.data import decode
from pretask.data.annotations import (
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
    skip_image,
)
from pretask.data.ledger import Ledger
from pretask.types import UserError

XML, SETS = "Annotations", "ImageSets"
LISTS = ("Main", "Segmentation")
"""folders below ImageSets that list the images of a split"""
CORNERS = ("xmin", "ymin", "xmax", "ymax")
FOLDERS = (IMAGES, "images", "")
"""folders where images may be"""
CLASS_FLAG = re.compile(r"^(.*?)\s+(?:-?1|0)$")
"""a line of a list with a flag whether the image shows a class"""
BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
DECLARED = re.compile(rb"^\s*<\?xml[^>]*encoding\s*=\s*[\"']([\w.-]+)[\"']")


def files(tree: Tree) -> dict[str, str]:
    """Name of an image -> its XML, in the folder Annotations, or next to the images as some tools write it."""
    next_to_images = {os.path.splitext(path)[0]: path for path in tree.paths if is_xml(tree, path, path)}
    return tree.below(XML, ".xml") or next_to_images


def is_xml(tree: Tree, path: str, name: str) -> bool:
    """Whether a file is the XML of an image, where `name` is its path relative to the annotated folder."""
    if not name.lower().endswith(".xml"):
        return False
    return name.startswith(f"{XML}/") or ("/" not in name and os.path.splitext(path)[0] in tree.pictures)


def is_voc(tree: Tree, masks: bool) -> bool:
    """Whether a folder has VOC annotations."""
    return bool(files(tree)) or (masks and bool(tree.below(MASKS, ".png")))


def parse(tree: Tree, part: str, masks: bool, ledger: Ledger, objects: Ledger) -> ParsedAnnotations:
    """Parse the annotations of a folder; `masks`: including images that only have a mask."""
    xml, mask_files = files(tree), tree.below(MASKS, ".png")
    every = (mask_files if masks else {}) | xml
    listed = listing(tree, part, masks) if part else None
    names = sorted(every) if listed is None else names_in(tree, listed, every, ledger)
    records = []
    for name in names:
        try:
            if name in xml:
                written, boxes = of_xml(tree, xml[name], objects)
            elif name in every:
                written, boxes = ElementTree.Element("annotation"), []
            else:
                raise BadAnnotation("no such file")
        except BadAnnotation as why:
            ledger.skip(every.get(name, f"{XML}/{name}.xml"), str(why))
            continue
        try:
            file, exact = image_of(tree, name, written.findtext("filename") or "")
        except BadAnnotation as why:
            skip_image(f"{IMAGES}/{name}.jpg", str(why), boxes, ledger, objects)
            continue
        size = size_of(written.findtext("size/width"), written.findtext("size/height"))
        records.append(ImageAnnotation(every[name], file, size, boxes, mask_files.get(name), exact))
    classes = sorted({box.name for record in records for box in record.boxes})
    in_masks = listed is not None and listed.startswith(f"{SETS}/{LISTS[1]}/")
    return ParsedAnnotations(records, classes, {}, known(tree, xml, names), in_masks)


def known(tree: Tree, xml: Mapping[str, str], names: Sequence[str]) -> frozenset[str]:
    """Annotation files, and the images that they or the list of a split name."""
    folders = tuple(f"{folder}/" for folder in (*MASK_FOLDERS, SETS))
    own = {path for path in tree.paths if path.startswith(folders)}
    images = {image for name in (*xml, *names) if (image := tree.picture(name, FOLDERS))}
    return frozenset(own | images | set(xml.values()))


# ---- parts


def listing(tree: Tree, part: str, masks: bool) -> str:
    """The file that lists the images of a split."""
    lists = {kind: tree.below(f"{SETS}/{kind}", ".txt") for kind in (reversed(LISTS) if masks else LISTS)}
    for found in lists.values():
        if part in found:
            return found[part]
    parts = sorted({name for found in lists.values() for name in found if "_" not in name})
    raise UserError(f"{tree.root} has no split {part!r}; it has {', '.join(parts[:10]) or 'no parts'}")


def names_in(tree: Tree, path: str, every: Mapping[str, str], ledger: Ledger) -> list[str]:
    """The names in a list, each once; suffixes, quotes and class flags are removed if that gives a known name."""
    names: dict[str, None] = {}
    for line in lines(tree, path):
        bare = match[1] if line not in every and (match := CLASS_FLAG.match(line)) else line
        bare = bare.strip('"') if bare not in every else bare
        if bare not in every and (cut := os.path.splitext(bare)[0]) in every:
            bare = cut
        if bare in names:
            ledger.skip(f"{path}: {bare}", TWICE)
        names[bare] = None
    return list(names)


def lines(tree: Tree, path: str) -> list[str]:
    """Nonempty lines of a list; bytes that are not UTF-8 are kept as in file names."""
    try:
        data = (tree.root / path).read_bytes()
    except OSError as wrong:
        raise UserError(f"{tree.root / path}: {decode.reason(wrong)}") from None
    for bom, encoding in BOMS.items():
        if data.startswith(bom):
            text = data[len(bom) :].decode(encoding, "replace")
            break
    else:
        text = os.fsdecode(data)
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


# ---- one image


def of_xml(tree: Tree, path: str, objects: Ledger) -> tuple[ElementTree.Element, list[BoxAnnotation]]:
    """The content of an XML file, and its valid objects. Raises BadAnnotation."""
    try:
        written = parsed((tree.root / path).read_bytes())
    except OSError as wrong:
        raise BadAnnotation(decode.reason(wrong)) from None
    except (ElementTree.ParseError, ValueError, LookupError) as wrong:
        raise BadAnnotation(f"not a VOC file: {decode.reason(wrong)}") from None
    if written.tag != "annotation":
        raise BadAnnotation(f"not a VOC file: <{brief(written.tag)}> instead of <annotation>")
    boxes = []
    for n, each in enumerate(written.findall("object"), 1):
        place = f"{path}: object {n}"
        try:
            boxes.append(
                BoxAnnotation(place, class_of(each), corners(each), flag(each.findtext("difficult")))
            )
        except BadAnnotation as why:
            objects.skip(place, str(why))
    return written, boxes


def parsed(data: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(data)
    except ValueError:  # expat reads no multi-byte encodings except UTF-8 and UTF-16
        if (declared := DECLARED.match(data)) is None:
            raise
        return ElementTree.fromstring(data.decode(declared[1].decode()))


def image_of(tree: Tree, name: str, filename: str) -> tuple[str, bool]:
    """The image with the name of the XML, or else the `filename` in it; and whether the match is exact."""
    filename = filename.strip()
    if (image := tree.picture(name, FOLDERS, filename)) is not None:
        return image, True
    if not filename:
        raise BadAnnotation("no such file")
    return tree.find(filename, FOLDERS)[0], False


def class_of(each: ElementTree.Element) -> str:
    if not (name := (each.findtext("name") or "").strip()):
        raise BadAnnotation("has no name")
    return name


def corners(each: ElementTree.Element) -> tuple[float, float, float, float]:
    """Edges in pixels from 0. VOC counts pixels from 1, inclusive: pixels 1 … 3 are edges 0 and 3."""
    values = [number(each.findtext(f"bndbox/{side}")) for side in CORNERS]
    if None in values:
        raise BadAnnotation(NO_BOX)
    x1, y1, x2, y2 = (value or 0.0 for value in values)
    return x1 - 1, y1 - 1, x2, y2
