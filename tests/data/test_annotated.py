"""Annotated folders: box coordinates to the pixel, skipped images and objects, splits."""

import json
import math
import shutil
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretask.data import annotated, annotations
from pretask.data import voc as voc_form
from pretask.data.annotated import Annotated
from pretask.data.base import OpenOptions
from pretask.data.ledger import Ledger
from pretask.reading import Reading
from pretask.types import UserError

OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox>{}</bndbox></object>"


def corners(*four):
    return "".join(f"<{side}>{v}</{side}>" for side, v in zip(voc_form.CORNERS, four, strict=True))


def voc(root, images, parts=None):
    """images: {stem: [(name, difficult, corners)]} of 40 x 30 pixels."""
    for folder in (annotations.IMAGES, voc_form.XML, "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for stem, objects in images.items():
        Image.new("RGB", (40, 30)).save(root / annotations.IMAGES / f"{stem}.jpg")
        inner = "".join(OBJECT.format(name, hard, corners(*four)) for name, hard, four in objects)
        size = "<size><width>40</width><height>30</height></size>"
        (root / voc_form.XML / f"{stem}.xml").write_text(f"<annotation>{size}{inner}</annotation>")
    for part, stems in (parts or {}).items():
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(stems))
    return root


def coco(root, rows, objects, **more):
    (root / "images").mkdir(parents=True, exist_ok=True)
    for row in rows:
        Image.new("RGB", (row["width"], row["height"])).save(root / "images" / row["file_name"])
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    content = {"images": rows, "annotations": objects, "categories": categories} | more
    (root / "instances.json").write_text(json.dumps(content))
    return root


def test_voc_boxes_are_one_based_and_inclusive(tmp_path):
    """An object at pixels 1 … 3 across and 2 … 2 down, counted from 1, has its edges at 0, 3 and 1, 2."""
    found = annotated.load(voc(tmp_path, {"a": [("cat", 0, (1, 2, 3, 2)), ("cow", 1, (1, 1, 40, 30))]}))
    assert found.items[0].boxes.tolist() == [[0, 1, 3, 2], [0, 0, 40, 30]]
    assert found.classes == ["cat", "cow"] and found.items[0].hard.tolist() == [False, True]


def test_coco_boxes_are_corner_and_size(tmp_path):
    row = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}
    annotation = {"id": 5, "image_id": 1, "category_id": 7, "bbox": [2.5, 3, 10, 4], "iscrowd": 1}
    item = annotated.load(coco(tmp_path, [row], [annotation])).items[0]
    assert item.boxes.tolist() == [[2.5, 3, 12.5, 7]] and item.hard.tolist() == [True]
    assert annotated.load(tmp_path).classes == ["cat", "dog"] and item.label.tolist() == [1]


def test_class_with_only_hard_objects_is_neither_present_nor_absent(tmp_path):
    box = (1, 1, 9, 9)
    images = {"a": [("cat", 1, box), ("cow", 1, box), ("cow", 0, box)], "b": [("dog", 0, box)]}
    assert annotated.load(voc(tmp_path, images)).shown.tolist() == [[-1, 1, 0], [0, 0, 1]]


def test_broken_images_and_objects_are_skipped_and_listed(tmp_path):
    good = ("cat", 0, (1, 1, 9, 9))
    root = voc(tmp_path, {f"good{i}": [good] for i in range(60)})
    voc(root, {"cut": [good], "gone": [good], "noxml": [good], "size": [good], "half": [good]})
    wrong = [("cat", 0, (9, 9, 4, 4)), ("cat", 0, (50, 1, 60, 9)), ("", 0, (1, 1, 2, 2)), ("cat", 0, "abcd")]
    voc(root, {"objects": [*wrong, ("cat", 0, (-5, 1, 100, 9))]})
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    noise.save(root / "JPEGImages" / "half.jpg")
    data = (root / "JPEGImages" / "half.jpg").read_bytes()
    (root / "JPEGImages" / "half.jpg").write_bytes(data[: len(data) // 2])
    (root / "Annotations" / "cut.xml").write_text("<annotation><object>")
    (root / "JPEGImages" / "gone.jpg").unlink()
    Image.new("RGB", (41, 30)).save(root / "JPEGImages" / "size.jpg")
    found = annotated.load(root)
    assert len(found) == 62
    assert found.ledger.bad["JPEGImages/size.jpg"].endswith(": 41 x 30 pixels, not 40 x 30")
    assert listed(found) == {
        "Annotations/cut.xml": "not a VOC file",
        "JPEGImages/gone.jpg": "no such file",
        "JPEGImages/half.jpg": found.ledger.bad["JPEGImages/half.jpg"],
        "JPEGImages/size.jpg": "size differs from its annotation",
        "Annotations/gone.xml: object 1": "its image is skipped",
        "Annotations/half.xml: object 1": "its image is skipped",
        "Annotations/size.xml: object 1": "its image is skipped",
        "Annotations/objects.xml: object 1": "its box has no size",
        "Annotations/objects.xml: object 2": "its box is outside the image",
        "Annotations/objects.xml: object 3": "has no name",
        "Annotations/objects.xml: object 4": "its box is not four numbers",
    }
    check_ledgers(found, images=66, objects=60 + 1 + 3 + 5)  # those of cut.xml cannot be counted
    [last] = [item for item in found.items if item.file.stem == "objects"]
    assert last.boxes.tolist() == [[0, 0, 40, 9]]  # clipped to the image


def test_too_many_broken_images_are_an_error(tmp_path):
    root = voc(tmp_path, {f"a{i}": [("cat", 0, (1, 1, 9, 9))] for i in range(5)})
    for i in range(2):
        (root / "JPEGImages" / f"a{i}.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="2 of 5 images cannot be read"):
        annotated.load(root)


def test_split_is_a_list_of_names_or_a_field_or_a_file(tmp_path):
    objects = [("cat", 0, (1, 1, 9, 9))]
    root = voc(
        tmp_path / "v", {"a": objects, "b": objects, "c": objects}, {"trainval": ["a", "c"], "test": ["b"]}
    )
    assert [i.file.stem for i in annotated.load(f"{root}:trainval").items] == ["a", "c"]
    with pytest.raises(UserError, match="no split 'val'; it has test, trainval"):
        annotated.load(f"{root}:val")

    rows = [
        {"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9, "split": s} for i, s in enumerate("xyx")
    ]
    objects = [{"id": i, "image_id": i, "category_id": 3, "bbox": [0, 0, 5, 5]} for i in range(3)]
    root = coco(tmp_path / "c", rows, objects)
    assert [i.file.stem for i in annotated.load(f"{root}:x").items] == ["0", "2"]
    with pytest.raises(UserError, match="no split 'z'; it has x, y"):
        annotated.load(f"{root}:z")

    (root / "annotations").mkdir()
    for part in ("train", "val"):
        shutil.copy(root / "instances.json", root / "annotations" / f"instances_{part}.json")
    (root / "instances.json").unlink()
    assert len(annotated.load(f"{root}:val")) == 3
    with pytest.raises(UserError, match=r"several splits.*train, val"):
        annotated.load(root)


@pytest.mark.parametrize("unlabeled", ["unlabeled", "unlabelled"])
def test_masks_of_wrong_size_or_mode_are_skipped_and_unlabeled_pixels_have_no_class(tmp_path, unlabeled):
    rows = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 6} for i in range(44)]
    box = {"category_id": 3, "bbox": [0, 0, 5, 5]}
    objects = [{"id": i, "image_id": i} | box for i in range(44)]
    root = coco(tmp_path, rows, objects, mask_classes={"0": unlabeled, "4": "sky"})
    (root / annotations.MASKS).mkdir()
    for i in range(43):
        mask = np.full((6, 9), 4, np.uint8)
        mask[0], mask[1], mask[2] = 0, 255, 6
        Image.fromarray(mask).save(root / annotations.MASKS / f"{i}.png")
    Image.new("L", (6, 9)).save(root / annotations.MASKS / "0.png")
    Image.new("RGB", (9, 6)).save(root / annotations.MASKS / "1.png")
    Image.new("L", (9, 7)).save(root / annotations.MASKS / "2.png")
    found = annotated.load(root, masks=True)
    assert found.areas == {4: "sky", 6: "6"} and len(found) == 40  # the last image has no mask
    assert found.ledger.bad == {
        "images/0.jpg": "its mask has a different size: 6 x 9 pixels, not 9 x 6",
        "images/1.jpg": "its mask is not 8-bit gray or palette: its mode is RGB",
        "images/2.jpg": "its mask has a different size: 9 x 7 pixels, not 9 x 6",
    }
    assert found.ledger.unwanted == {"images/43.jpg": "no mask"}
    assert found.mask(0)[:4, 0].tolist() == [0, 255, 6, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a COCO file: not JSON"),
        ('{"images": [], "annotations": []}', "it lists no images"),
        ("[]", "expected an object with images"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_of_another_structure_is_a_one_line_error(tmp_path, content, message):
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(UserError, match=message):
        annotated.load(tmp_path)


def test_folder_in_neither_format_is_a_one_line_error(tmp_path):
    with pytest.raises(UserError, match="neither VOC annotations"):
        annotated.load(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        annotated.load(tmp_path / "gone")


def test_classes_are_renumbered_by_name(tmp_path):
    found = annotated.load(voc(tmp_path, {"a": [("cat", 0, (1, 1, 9, 9)), ("dog", 0, (1, 1, 9, 9))]}))
    assert found.numbered_as(["dog", "bird", "cat"]).items[0].label.tolist() == [2, 0]


def test_real_images_have_the_same_annotations_in_both_formats(shared_data, tmp_path):
    """The VOC version of the dataset is its COCO version rounded to pixels; crowds are difficult objects."""
    root = shared_data("detection", "coco_mini")
    for folder in (annotations.IMAGES, voc_form.XML):
        (tmp_path / folder).symlink_to(root / folder)
    one, other = annotated.load(root), annotated.load(tmp_path)
    assert len(one) == len(other) == 159 and not listed(one) and not listed(other)
    at = {item.file.stem: item for item in other.items}
    for item in one.items:
        same = at[item.file.stem]
        assert [one.classes[k] for k in item.label] == [other.classes[k] for k in same.label]
        assert torch.equal(item.hard, same.hard)
        assert (item.boxes - same.boxes).abs().max() <= 1.01


def test_real_splits_and_masks_open(shared_data):
    root = shared_data("detection", "coco_semantic")
    train, val = (annotated.load(f"{root}:{part}2017", masks=True) for part in ("train", "val"))
    assert len(train) == len(val) == 100 and not listed(train)
    assert train.areas[1] == "person" and 0 not in train.areas
    assert train.mask(0).shape == (train.items[0].height, train.items[0].width)
    assert train.items[0].image(3).shape[1:] == train.mask(0).shape


# ---- the ledger


def listed(data: Annotated) -> dict[str, str]:
    """All skipped entries with their reasons, without details."""
    ledgers = (data.ledger.bad, data.ledger.unwanted, data.objects.bad, data.objects.unwanted)
    return {place: why.partition(":")[0] for entries in ledgers for place, why in entries.items()}


def check_ledgers(data: Annotated, images: int, objects: int | None = None) -> None:
    """`images` and `objects` are the numbers of input records, counted by the test."""
    for ledger, found, used in (
        (data.ledger, images, len(data)),
        (data.objects, objects, sum(len(item.boxes) for item in data.items)),
    ):
        assert found is None or (ledger.found, ledger.used, ledger.unread) == (found, used, 0)
        assert ledger.found == ledger.used + len(ledger.bad) + len(ledger.unwanted) + ledger.other.total()


def square(i=0, **more):
    return {"id": i, "image_id": i, "category_id": 3, "bbox": [1, 1, 4, 4]} | more


def row(i=0, **more):
    return {"id": i, "file_name": f"{i}.jpg", "width": 8, "height": 8} | more


def many(root, rows, objects, n=12, encoding="utf-8", **more):
    """COCO format with `n` valid images and objects in addition to those given; all images are 8 x 8 pixels."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    rows = [row(100 + i) for i in range(n)] + rows
    objects = [square(100 + i) for i in range(n)] + objects
    for name in {f"{i}.jpg" for i in range(9)} | {f"{100 + i}.jpg" for i in range(n)}:
        Image.new("RGB", (8, 8)).save(root / "images" / name)
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    content = {"images": rows, "annotations": objects, "categories": categories} | more
    (root / "instances.json").write_text(json.dumps(content), encoding=encoding)
    return root


@pytest.mark.parametrize(
    "change",
    [
        {"width": "unknown"},
        {"width": float("nan"), "height": float("inf")},
        {"width": None, "height": []},
        {"width": float("inf"), "height": 8},
        {"width": -8, "height": 0},
        {"width": "8", "height": 8.0},
        {"file_name": "images\\0.jpg"},
        {"file_name": "C:\\me\\photos\\0.jpg"},
        {"file_name": "/home/me/photos/0.jpg"},
        {"file_name": "./images/../images/0.jpg"},
        {"file_name": "images//0.jpg"},
        {"file_name": "0%2Ejpg"},
        {"file_name": "0.JPG"},
        {"file_name": " 0.jpg\n"},
        {"id": "0"},
        {"id": 0.0},
    ],
)
def test_image_with_unambiguous_annotations_is_used(tmp_path, change):
    found = annotated.load(many(tmp_path, [row() | change], [square()]))
    check_ledgers(found, images=12 + 1 + 8, objects=13)
    assert len(found) == 13 and not listed(found) and found.ledger.other == {"unlisted images": 8}
    assert found.items[-1].boxes.tolist() == [[1, 1, 5, 5]] and found.items[-1].file.name == "0.jpg"


@pytest.mark.parametrize(
    ("change", "place", "why"),
    [
        ({"file_name": "x" * 300 + ".jpg"}, "x" * 300 + ".jpg", "no such file"),
        ({"file_name": "0.jpg\0"}, "0.jpg\0", "no such file"),
        ({"file_name": "\ud800.jpg"}, "\\ud800.jpg", "no such file"),
        ({"file_name": "images/50.jpg"}, "images/50.jpg", "no such file"),
        ({"file_name": "*.jpg"}, "*.jpg", "no such file"),
        ({"file_name": None, "id": "a"}, "instances.json: images[12]", "has no file name"),
        ({"file_name": 7}, "instances.json: images[12]", "has no file name"),
        ({"file_name": [1]}, "instances.json: images[12]", "has no file name"),
        ({"id": None}, "0.jpg", "has no id"),
        ({"id": {}}, "0.jpg", "has no id"),
        ({"id": True}, "0.jpg", "has no id"),
        ({"width": 9}, "images/0.jpg", "size differs from its annotation"),
    ],
)
def test_unusable_image_is_listed(tmp_path, change, place, why):
    found = annotated.load(many(tmp_path, [row() | change], [square()]))
    check_ledgers(found, images=12 + 1 + found.ledger.other.total(), objects=13)
    assert len(found) == 12 and found.ledger.other["unlisted images"] in (8, 9)
    [(where, reason)] = found.ledger.bad.items()
    assert (where, reason.partition(":")[0]) == (place, why)
    assert len(found.objects.bad | found.objects.unwanted) == 1
    Ledger(found.ledger.bad).csv().encode(errors="surrogateescape")


def test_colliding_images_are_listed_and_none_is_overwritten(tmp_path):
    rows = [
        row(0),
        row(0),  # duplicate
        row(1),
        row(1, file_name="2.jpg"),  # whose are the annotations of id 1?
        row(3),
        row(4, file_name="3.jpg"),  # same file
        row(5, file_name="a/5.jpg"),
        row(6, file_name="b/5.jpg"),  # ambiguous: 5.jpg
        row(7, file_name="c/8.jpg"),  # 8.jpg belongs to another image
        row(8),
        "text",
        None,
    ]
    found = annotated.load(
        many(tmp_path, rows, [square(i) for i in range(9)], n=60), OpenOptions(reading=Reading(max_bad=0.5))
    )
    assert listed(found) == {
        "0.jpg": "listed twice",
        "1.jpg": "several images have its id",
        "2.jpg": "several images have its id",
        "3.jpg": "listed twice",
        "a/5.jpg": "its file name is ambiguous",
        "b/5.jpg": "its file name is ambiguous",
        "c/8.jpg": "its file name is ambiguous",
        "instances.json: images[70]": "not a record",
        "instances.json: images[71]": "not a record",
    } | {f"instances.json: annotations[{60 + i}]": "its image is skipped" for i in (1, 4, 5, 6, 7)} | {
        "instances.json: annotations[62]": "its image is not listed"
    }
    assert [item.file.name for item in found.items[60:]] == ["0.jpg", "3.jpg", "8.jpg"]
    unlisted = 9 - len({0, 3, 5, 8})
    check_ledgers(found, images=60 + len(rows) + unlisted, objects=69)


def test_file_in_another_folder_does_not_match_if_the_named_folder_exists(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "50.jpg")
    found = annotated.load(
        many(tmp_path, [row(0, file_name="images/50.jpg"), row(1, file_name="img/50.jpg")], [])
    )
    assert (
        found.ledger.bad == {"images/50.jpg": "no such file"} and found.items[-1].file == tmp_path / "50.jpg"
    )


def test_ambiguous_name_in_several_folders_is_skipped(tmp_path):
    root = many(
        tmp_path, [row(0, file_name="x/there.jpg"), row(1, file_name="y/b/there.jpg")], [square(0), square(1)]
    )
    for folder in "ab":
        (root / folder).mkdir()
        Image.new("RGB", (8, 8)).save(root / folder / "there.jpg")
    found = annotated.load(root)
    assert listed(found) == {
        "x/there.jpg": "several files have this name",
        "instances.json: annotations[12]": "its image is skipped",
    }
    assert found.items[-1].file == root / "b" / "there.jpg"  # longer common path


@pytest.mark.parametrize(
    ("change", "boxes"),
    [
        ({"id": None}, [1, 1, 5, 5]),
        ({"bbox": ["1", "1", "4.0", 4]}, [1, 1, 5, 5]),
        ({"image_id": "0", "category_id": "3"}, [1, 1, 5, 5]),
        ({"category_id": "cat"}, [1, 1, 5, 5]),
        ({"segmentation": {"counts": "abc", "size": [8, 8]}}, [1, 1, 5, 5]),
        ({"bbox": None, "segmentation": [[1, 2, 6, 2, 6, 7], [0, 3, 1, 3, 1, 4]]}, [0, 2, 6, 7]),
        ({"bbox": [], "segmentation": [1, 2, 6, 2, 6, 7]}, [1, 2, 6, 7]),
    ],
)
def test_object_with_unambiguous_annotation_is_used(tmp_path, change, boxes):
    found = annotated.load(many(tmp_path, [row()], [square() | change]))
    check_ledgers(found, images=21, objects=13)
    assert found.items[-1].boxes.tolist() == [boxes] and found.classes[found.items[-1].label[0]] == "cat"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"image_id": None}, "has no image id"),
        ({"image_id": 77}, "its image is not listed"),
        ({"category_id": [1]}, "has no category"),
        ({"category_id": 4}, "its category is not listed"),
        ({"bbox": [1, 1, float("nan"), 4]}, "its box is not four numbers"),
        ({"bbox": [1, 1, 10**400, 4]}, "its box is not four numbers"),
        ({"bbox": [1, 1, True, 4]}, "its box is not four numbers"),
        ({"bbox": {"x": 1}}, "its box is not four numbers"),
        ({"bbox": None, "segmentation": {"counts": [3], "size": [8, 8]}}, "its box is not four numbers"),
        ({"bbox": None, "segmentation": [[1, 2, 3]]}, "its box is not four numbers"),
        ({"bbox": [4, 4, -3, 2]}, "its box has no size"),
        ({"bbox": [4, 4, 0, 2]}, "its box has no size"),
        ({"bbox": [4, 4, 1e-12, 2]}, "its box has no size"),
        ({"bbox": [9, 9, 2, 2]}, "its box is outside the image"),
        ({"bbox": [1e308, 1, 1e308, 2]}, "its box is not four numbers"),
    ],
)
def test_unusable_object_is_listed(tmp_path, change, why):
    found = annotated.load(many(tmp_path, [row()], [square() | change]))
    check_ledgers(found, images=21, objects=13)
    assert listed(found) == {"instances.json: annotations[12]": why} and len(found.items[-1].boxes) == 0


def test_all_spellings_of_crowd_are_read_and_duplicate_objects_count_once(tmp_path):
    crowds = [square(0, id=n, iscrowd=x) for n, x in enumerate([0, "0", None, 1, "1", True, "true"])]
    again = [
        square(0, id=0, iscrowd=0),
        square(0, id=0, bbox=[0, 0, 2, 2]),
    ]  # with its id; one is a different object
    found = annotated.load(many(tmp_path, [row()], [*crowds, *again, 7]))
    assert found.items[-1].hard.tolist() == [False, False, False, True, True, True, True, False]
    assert listed(found) == {
        "instances.json: annotations[19]": "listed twice",
        "instances.json: annotations[21]": "not a record",
    }
    check_ledgers(found, images=21, objects=12 + 10)


def test_all_forms_of_category_names_are_read(tmp_path):
    named = [
        {"id": "10", "name": "ten"},
        {"id": 9.0, "name": " nine "},
        {"id": 8, "name": "a"},
        {"id": 8, "name": "b"},
    ]
    named += ["text", {"name": "cat"}, {"id": 5}, {"id": 3, "name": 3}, None]
    objects = [square(0, id=n, category_id=c) for n, c in enumerate([10, "9", 8, "text", "cat", 5])]
    found = annotated.load(many(tmp_path, [row()], objects, categories=named))
    assert found.classes == ["3", "a", "b", "nine", "ten", "text", "cat"]
    assert [found.classes[k] for k in found.items[-1].label] == ["ten", "nine", "text", "cat"]
    assert listed(found) == {
        "instances.json: annotations[14]": "its category has several names",
        "instances.json: annotations[17]": "its category is not listed",
    }


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_json_in_any_unicode_encoding_is_read(tmp_path, encoding):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "äpfel.jpg")
    found = annotated.load(many(tmp_path, [row(0, file_name="äpfel.jpg")], [square()], encoding=encoding))
    check_ledgers(found, images=12 + 1 + 9, objects=13)
    assert len(found) == 13


def test_splits_in_separate_folders_open(tmp_path):
    """As Roboflow exports them: the JSON next to the images."""
    for part, n in (("train", 5), ("valid", 3)):
        root = many(tmp_path / part, [], [], n=n)
        (root / "instances.json").rename(root / "_annotations.coco.json")
        for file in (root / "images").iterdir():
            file.rename(root / file.name)
    (tmp_path / "README.roboflow.txt").write_text("exported")
    assert len(annotated.load(f"{tmp_path}:train")) == 5
    found = annotated.load(f"{tmp_path}:valid")
    assert found.name == f"{tmp_path.name} valid" and len(found) == 3
    check_ledgers(found, images=3 + 9, objects=3)
    with pytest.raises(UserError, match=r"several splits.*:PART \(train, valid\)"):
        annotated.load(tmp_path)
    with pytest.raises(UserError, match="no split 'test'; it has train, valid"):
        annotated.load(f"{tmp_path}:test")


def test_images_of_other_splits_are_not_counted(tmp_path):
    rows = [row(i, split="xy"[i % 2]) for i in range(9)]
    objects = [square(i) for i in range(9)] + [square(55)]
    found = annotated.load(
        f"{many(tmp_path, rows, objects, n=0)}:x", OpenOptions(reading=Reading(max_bad=0.5))
    )
    check_ledgers(found, images=5, objects=6)
    assert len(found) == 5 and listed(found) == {"instances.json: annotations[9]": "its image is not listed"}
    rows[1]["id"] = 0  # an id of the other split
    found = annotated.load(
        f"{many(tmp_path, rows, objects, n=0)}:x", OpenOptions(reading=Reading(max_bad=0.5))
    )
    assert len(found) == 4 and found.ledger.bad == {"0.jpg": "several images have its id: 0"}


def test_unrelated_files_do_not_change_the_format(tmp_path):
    box = ("cat", 0, (1, 1, 9, 9))
    root = voc(tmp_path / "v", {"a": [box], "b": [box]})
    for name in ("labelmap.json", "notes.txt", "part.parquet", ".DS_Store"):
        (root / name).write_text('{"labels": ["a"]}')
    found = annotated.load(root)
    check_ledgers(found, images=2 + 4, objects=2)
    assert found.ledger.other == {".json": 1, ".txt": 1, ".parquet": 1, "hidden": 1}

    root = many(tmp_path / "c", [], [])
    (root / "annotations").mkdir()
    (root / "instances.json").rename(root / "annotations" / "instances_train.json")
    (root / "about.json").write_text('{"license": "CC0"}')
    (root / "annotations" / "other.json").write_text("{")
    found = annotated.load(root)
    assert len(found) == 12 and found.ledger.other == {".json": 2, "unlisted images": 9}
    (root / "annotations" / "instances_train.json").unlink()
    with pytest.raises(UserError, match=r"neither VOC.*about.json: it lists no images.*other.json: not JSON"):
        annotated.load(root)


def test_damaged_file_with_a_coco_name_is_an_error(tmp_path):
    root = voc(tmp_path, {"a": [("cat", 0, (1, 1, 9, 9))]})
    (root / "instances.json").write_text('{"images": [{"id')
    with pytest.raises(UserError, match=r"instances.json is not a COCO file: not JSON"):
        annotated.load(root)
    (root / "instances.json").write_bytes('{"images": "é"}'.encode("cp1252"))
    with pytest.raises(UserError, match="byte 12 is not valid UTF-8"):
        annotated.load(root)


# ---- VOC as written by various tools


def xml(root, name, text, encoding="utf-8"):
    (root / voc_form.XML / f"{name}.xml").write_bytes(text.encode(encoding))


BOX = OBJECT.format("cat", 0, corners(1, 1, 9, 9))


@pytest.mark.parametrize("name", ["im [0]", "a b", "*", "{a,b}", "ä", "a.b", "caf\udce9", "im 1", "%20"])
def test_odd_file_names_work(tmp_path, name):
    other = ("cat", 0, (1, 1, 9, 9))
    root = voc(tmp_path, {name: [other], "im": [other], "x": [other]})
    lines = (f"{name}  1", "im -1", f'"{"x"}"')
    (root / "ImageSets/Main/train.txt").write_bytes("\r\n".join(lines).encode(errors="surrogateescape"))
    for spec in (root, f"{root}:train"):
        found = annotated.load(spec)
        check_ledgers(found, images=3, objects=3)
        assert {item.file.stem for item in found.items} == {name, "im", "x"} and not listed(found)


@pytest.mark.parametrize(
    "text",
    [
        f"<annotation>{BOX}</annotation>",
        f"<annotation><filename>gone.png</filename>{BOX}</annotation>",
        f"<annotation><filename>C:\\me\\0.jpg</filename>{BOX}</annotation>",
        f"<annotation><filename>other.jpg</filename>{BOX}</annotation>",
        f"<annotation><size><width>0</width><height>0</height></size>{BOX}</annotation>",
        f"<annotation><size><width>?</width></size>{BOX}</annotation>",
        f"<annotation><size><width>40.0</width><height>30</height></size>{BOX}</annotation>",
        f"<annotation>{OBJECT.format(' cat ', 'Unspecified', corners('1.0', '1e0', ' 9 ', '9.0'))}</annotation>",
        f'<!DOCTYPE annotation [<!ENTITY c "cat">]><annotation>{BOX.replace("cat", "&c;")}</annotation>',
    ],
)
def test_unambiguous_xml_is_used(tmp_path, text):
    root = voc(tmp_path, {f"{i}": [] for i in range(12)} | {"other": []})
    xml(root, "0", text)
    found = annotated.load(root)
    check_ledgers(found, images=13, objects=1)
    assert found.items[0].file.name == "0.jpg" and found.items[0].boxes.tolist() == [[0, 0, 9, 9]]
    assert found.classes == ["cat"] and found.items[0].hard.tolist() == [False]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252", "gb2312", "iso-8859-15"])
def test_xml_in_its_declared_encoding_is_read(tmp_path, encoding):
    name = "猫" if encoding == "gb2312" else "é"
    root = voc(tmp_path, {"0": []})
    declared = encoding.removesuffix("-sig")
    body = f"<annotation>{BOX.replace('cat', name)}</annotation>"
    xml(root, "0", f'<?xml version="1.0" encoding="{declared}"?>{body}', encoding)
    assert annotated.load(root).classes == [name]


def bomb() -> str:
    entities = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))
    return f'<!DOCTYPE x [<!ENTITY a0 "ha">{entities}]><annotation><filename>&a9;</filename></annotation>'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<annotation><object>", "not a VOC file"),
        ("", "not a VOC file"),
        ("<annotations/>", "not a VOC file"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not a VOC file"),
        ("<annotation>&gone;</annotation>", "not a VOC file"),
        (bomb(), "not a VOC file"),
        ("<annotation><size><width>41</width><height>30</height></size></annotation>", "size differs"),
    ],
)
def test_unusable_xml_is_listed(tmp_path, text, why):
    root = voc(tmp_path, {f"{i}": [("cat", 0, (1, 1, 9, 9))] for i in range(12)})
    xml(root, "0", text)
    found = annotated.load(root)
    check_ledgers(found, images=12, objects=11)
    [reason] = found.ledger.bad.values()
    assert reason.startswith(why) and len(found) == 11


def test_no_image_is_used_twice(tmp_path):
    """Copies of an XML under other names, and images with equal names but different suffixes."""
    box = ("cat", 0, (1, 1, 9, 9))
    root = voc(tmp_path, {f"{i}": [box] for i in range(40)})
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / "1.png")
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / "alone.jpg")
    for name, filename in (("copy", "0.jpg"), ("twin1", "alone.jpg"), ("twin2", "alone.jpg")):
        xml(root, name, f"<annotation><filename>{filename}</filename>{BOX}</annotation>")
    found = annotated.load(root)
    check_ledgers(found, images=43 + 1, objects=43)
    assert found.ledger.other == {"unlisted images": 1}  # 1.png; two annotations claim alone.jpg
    assert {place: why.partition(":")[0] for place, why in found.ledger.bad.items()} == dict.fromkeys(
        (f"Annotations/{name}.xml" for name in ("copy", "twin1", "twin2")),
        "its file name is ambiguous",
    )
    assert len(found) == 40 and len(found.objects.unwanted) == 3


def test_split_that_lists_missing_images(tmp_path):
    box = ("cat", 0, (1, 1, 9, 9))
    root = voc(tmp_path, {f"{i}": [box] for i in range(40)})
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / "noxml.jpg")
    (root / "JPEGImages" / "1.jpg").unlink()
    (root / "JPEGImages" / "2.jpg").unlink()
    (root / "JPEGImages" / "2.jpg").symlink_to("nowhere.jpg")
    names = [*(f"{i}.jpg" for i in range(39)), "0", "gone", "x" * 300, "noxml"]
    (root / "ImageSets/Main/train.txt").write_text("\n".join(names), encoding="utf-16")
    found = annotated.load(f"{root}:train", OpenOptions(reading=Reading(max_bad=0.5)))
    check_ledgers(found, images=len(names), objects=39)
    assert found.ledger.bad == {
        "ImageSets/Main/train.txt: 0": "listed twice",
        "Annotations/gone.xml": "no such file",
        f"Annotations/{'x' * 300}.xml": "no such file",
        "Annotations/noxml.xml": "no such file",
        "JPEGImages/1.jpg": "no such file",
        "JPEGImages/2.jpg": "no such file",
    }


def test_xml_next_to_images_and_in_subfolders_is_read(tmp_path):
    root = voc(tmp_path / "v", {"a": [], "b": []})
    (root / "Annotations/day").mkdir()
    (root / "JPEGImages/day").mkdir()
    xml(root, "day/a", f"<annotation>{BOX}</annotation>")
    Image.new("RGB", (40, 30)).save(root / "JPEGImages/day/a.png")
    found = annotated.load(root)
    check_ledgers(found, images=3, objects=1)
    assert found.items[-1].file == root / "JPEGImages/day/a.png"
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (*(root / "JPEGImages").glob("*.jpg"), *(root / "Annotations").glob("*.xml")):
        shutil.copy(file, flat)
    (flat / "a.xml").write_text(f"<annotation>{BOX}</annotation>")
    check_ledgers(annotated.load(flat), images=2, objects=1)


# ---- masks


def masked(root, n=12):
    root = voc(root, {f"{i}": [] for i in range(n)})
    (root / annotations.MASKS).mkdir()
    for i in range(n):
        Image.new("L", (40, 30), 1).save(root / annotations.MASKS / f"{i}.png")
    return root


def test_masks_without_image_and_images_without_mask(tmp_path):
    root = masked(tmp_path, n=40)
    (root / annotations.MASKS / "0.png").unlink()
    (root / "JPEGImages/1.jpg").unlink()
    (root / voc_form.XML / "1.xml").unlink()
    (root / annotations.MASKS / "2.png").write_bytes(b"no image")
    (root / voc_form.XML / "3.xml").write_text("<annotation>")
    found = annotated.load(root, masks=True)
    check_ledgers(found, images=40)
    assert listed(found) == {
        "JPEGImages/0.jpg": "no mask",
        "JPEGImages/1.jpg": "no such file",
        "JPEGImages/2.jpg": "its mask cannot be read",
        "Annotations/3.xml": "not a VOC file",
    }
    assert found.ledger.unwanted.keys() == {"JPEGImages/0.jpg"}  # excluded, as no list requires a mask
    (root / "ImageSets/Segmentation").mkdir()
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(map(str, range(40))))
    assert annotated.load(f"{root}:val", masks=True).ledger.bad["JPEGImages/0.jpg"] == "no mask"


def test_shared_masks_are_skipped_and_masks_without_image_are_counted(tmp_path):
    rows = [row(0, file_name="a/0.jpg"), row(1, file_name="b/0.jpg"), row(2)]
    root = many(tmp_path, rows, [], n=30)
    (root / annotations.MASKS).mkdir()
    for i in [0, 2, 77, *range(100, 130)]:
        Image.new("L", (8, 8), 1).save(root / annotations.MASKS / f"{i}.png")
    for folder in "ab":
        (root / folder).mkdir()
        shutil.copy(root / "images/0.jpg", root / folder)
    found = annotated.load(root, masks=True)
    assert found.ledger.other == {"unlisted images": 8, "masks without an image": 1}
    assert set(listed(found).values()) == {"several images have its mask"} and len(found) == 31
    check_ledgers(found, images=33 + 9)


# ---- random damage

JUNK = st.sampled_from(
    [
        None,
        "",
        "x",
        "\ud800",
        "\0",
        -1,
        0,
        0.5,
        10**400,
        math.nan,
        math.inf,
        True,
        [],
        {},
        [None],
        [[]],
        {"id": 0},
    ]
)
SEEDED = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def places(x: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in a JSON."""
    for key, inner in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ():
        yield (*at, key)
        yield from places(inner, (*at, key))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    rows = [{"id": i, "file_name": f"{i}.jpg", "width": 8, "height": 8} for i in range(3)]
    polygon = [[1, 1, 4, 1, 4, 4]]
    objects = [square(i, id=i, iscrowd=0, segmentation=polygon) for i in range(3)]
    return coco(root / "coco", rows, objects), voc(
        root / "voc", {"a": [("cat", 0, (1, 1, 9, 9))] * 2, "b": []}
    )


@SEEDED
@given(st.data())
def test_every_record_of_a_damaged_json_is_counted(good, data):
    content = json.loads((good[0] / "instances.json").read_text())
    path = good[0] / "annotations" / "instances_damaged.json"
    path.parent.mkdir(exist_ok=True)
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from([*places(content)]))
        holder = content
        for step in way:
            holder = holder[step]
        if data.draw(st.booleans()):
            holder[last] = data.draw(JUNK)
        else:
            del holder[last]
        if not content:
            break
    path.write_text(json.dumps(content))
    try:
        found = annotated.load(
            f"{good[0]}:damaged", OpenOptions(reading=Reading(max_bad=1.0), progress=False)
        )
    except UserError:
        return
    images, objects = (content.get(name) for name in ("images", "annotations"))
    assert found.ledger.found - found.ledger.other.total() == len(images)
    check_ledgers(found, images=found.ledger.found, objects=records(objects))
    assert len({item.file for item in found.items}) == len(found)
    Ledger(found.ledger.bad | found.objects.bad).csv().encode(errors="surrogateescape")


def records(x: Any) -> int:
    return len(x) if isinstance(x, list) else int(x is not None)


@SEEDED
@given(st.data())
def test_every_record_of_a_damaged_xml_is_counted(good, data):
    sound = good[1] / voc_form.XML / "a.xml"
    tree = ElementTree.fromstring(sound.read_text())
    parents = [each for each in tree.iter() if len(each)]
    for _ in range(data.draw(st.integers(1, 3))):
        parent = data.draw(st.sampled_from(parents))
        n = data.draw(st.integers(0, len(parent) - 1)) if len(parent) else None
        if n is None:
            continue
        match data.draw(st.sampled_from(["remove", "twice", "text", "tag"])):
            case "remove":
                del parent[n]
            case "twice":
                parent.append(parent[n])
            case "text":
                parent[n].text = data.draw(st.sampled_from(["", " ", "-1", "nan", "1e400", "x", "9" * 500]))
            case "tag":
                parent[n].tag = data.draw(st.sampled_from(["object", "bndbox", "x"]))
    text = ElementTree.tostring(tree)
    cut = data.draw(st.sampled_from([len(text)] * 3 + [len(text) // 2]))
    (good[1] / voc_form.XML / "b.xml").write_bytes(text[:cut])
    found = annotated.load(good[1], OpenOptions(reading=Reading(max_bad=1.0), progress=False))
    check_ledgers(found, images=2, objects=2 + (len(tree.findall("object")) if cut == len(text) else 0))
