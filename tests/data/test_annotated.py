"""Folders with boxes and masks: where a box lies to the pixel, what is skipped, which part is read."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pretask.data import annotated
from pretask.types import UserError

OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox>{}</bndbox></object>"


def corners(*four):
    return "".join(f"<{side}>{v}</{side}>" for side, v in zip(annotated.CORNERS, four, strict=True))


def voc(root, images, parts=None):
    """images: {stem: [(name, difficult, corners)]} of 40 x 30 pixels."""
    for folder in (annotated.IMAGES, annotated.XML, "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for stem, objects in images.items():
        Image.new("RGB", (40, 30)).save(root / annotated.IMAGES / f"{stem}.jpg")
        inner = "".join(OBJECT.format(name, hard, corners(*four)) for name, hard, four in objects)
        size = "<size><width>40</width><height>30</height></size>"
        (root / annotated.XML / f"{stem}.xml").write_text(f"<annotation>{size}{inner}</annotation>")
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


def test_a_voc_box_counts_from_one_and_its_last_pixel_belongs_to_it(tmp_path):
    """The thing of the pixels 1 … 3 across and 2 … 2 down, from 1, has its edges at 0, 3 and 1, 2."""
    found = annotated.load(voc(tmp_path, {"a": [("cat", 0, (1, 2, 3, 2)), ("cow", 1, (1, 1, 40, 30))]}))
    assert found.items[0].boxes.tolist() == [[0, 1, 3, 2], [0, 0, 40, 30]]
    assert found.classes == ["cat", "cow"] and found.items[0].hard.tolist() == [False, True]


def test_a_coco_box_is_a_corner_and_a_size(tmp_path):
    row = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}
    thing = {"id": 5, "image_id": 1, "category_id": 7, "bbox": [2.5, 3, 10, 4], "iscrowd": 1}
    item = annotated.load(coco(tmp_path, [row], [thing])).items[0]
    assert item.boxes.tolist() == [[2.5, 3, 12.5, 7]] and item.hard.tolist() == [True]
    assert annotated.load(tmp_path).classes == ["cat", "dog"] and item.label.tolist() == [1]


def test_a_class_that_is_shown_by_hard_objects_alone_is_neither_there_nor_absent(tmp_path):
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
    assert {k: v.split(":")[0] for k, v in found.bad.items()} == {
        "Annotations/cut.xml": "not in VOC's form",
        "JPEGImages/gone.jpg": "no such file",
        "JPEGImages/half.jpg": found.bad["JPEGImages/half.jpg"],
        "JPEGImages/size.jpg": "is 41 x 30 pixels, its annotation says 40 x 30",
        "Annotations/objects.xml: object 1": "its box has no size",
        "Annotations/objects.xml: object 2": "its box lies outside of the image of 40 x 30 pixels",
        "Annotations/objects.xml: object 3": "has no name",
        "Annotations/objects.xml: object 4": "its box is not four numbers",
    }
    [last] = [item for item in found.items if item.file.stem == "objects"]
    assert last.boxes.tolist() == [[0, 0, 40, 9]]  # what sticks out is cut off


def test_too_many_broken_images_are_an_error(tmp_path):
    root = voc(tmp_path, {f"a{i}": [("cat", 0, (1, 1, 9, 9))] for i in range(5)})
    for i in range(2):
        (root / "JPEGImages" / f"a{i}.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="2 of 5 images cannot be read"):
        annotated.load(root)


def test_a_part_is_a_list_of_names_or_a_field_or_a_file(tmp_path):
    thing = [("cat", 0, (1, 1, 9, 9))]
    root = voc(tmp_path / "v", {"a": thing, "b": thing, "c": thing}, {"trainval": ["a", "c"], "test": ["b"]})
    assert [i.file.stem for i in annotated.load(f"{root}:trainval").items] == ["a", "c"]
    with pytest.raises(UserError, match="no part 'val'; it has test, trainval"):
        annotated.load(f"{root}:val")

    rows = [
        {"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9, "split": s} for i, s in enumerate("xyx")
    ]
    objects = [{"id": i, "image_id": i, "category_id": 3, "bbox": [0, 0, 5, 5]} for i in range(3)]
    root = coco(tmp_path / "c", rows, objects)
    assert [i.file.stem for i in annotated.load(f"{root}:x").items] == ["0", "2"]
    with pytest.raises(UserError, match="no part 'z'; it has x, y"):
        annotated.load(f"{root}:z")

    (root / "annotations").mkdir()
    for part in ("train", "val"):
        shutil.copy(root / "instances.json", root / "annotations" / f"instances_{part}.json")
    (root / "instances.json").unlink()
    assert len(annotated.load(f"{root}:val")) == 3
    with pytest.raises(UserError, match=r"several parts.*train, val"):
        annotated.load(root)


def test_masks_of_a_wrong_size_or_kind_are_skipped_and_unlabelled_pixels_have_no_class(tmp_path):
    rows = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 6} for i in range(44)]
    box = {"category_id": 3, "bbox": [0, 0, 5, 5]}
    objects = [{"id": i, "image_id": i} | box for i in range(44)]
    root = coco(tmp_path, rows, objects, mask_classes={"0": "unlabeled", "4": "sky"})
    (root / annotated.MASKS).mkdir()
    for i in range(43):
        mask = np.full((6, 9), 4, np.uint8)
        mask[0], mask[1], mask[2] = 0, 255, 6
        Image.fromarray(mask).save(root / annotated.MASKS / f"{i}.png")
    Image.new("L", (6, 9)).save(root / annotated.MASKS / "0.png")
    Image.new("RGB", (9, 6)).save(root / annotated.MASKS / "1.png")
    Image.new("L", (9, 7)).save(root / annotated.MASKS / "2.png")
    found = annotated.load(root, masks=True)
    assert found.areas == {4: "sky", 6: "6"} and len(found) == 40  # the last image has no mask
    assert found.bad == {
        "images/0.jpg": "is 9 x 6 pixels, its mask 6 x 9",
        "images/1.jpg": "its mask is of mode RGB, not one number of 8 bits for each pixel",
        "images/2.jpg": "is 9 x 6 pixels, its mask 9 x 7",
    }
    assert found.mask(0)[:4, 0].tolist() == [0, 255, 6, 4]


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "not in COCO's form"), ('{"images": []}', "it lacks 'categories'"), ("[]", "not in COCO's form")],
)
def test_json_of_another_form_is_one_line(tmp_path, content, said):
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(UserError, match=said):
        annotated.load(tmp_path)


def test_a_folder_of_neither_form_is_one_line(tmp_path):
    with pytest.raises(UserError, match="neither VOC form"):
        annotated.load(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        annotated.load(tmp_path / "gone")


def test_classes_are_renumbered_by_name(tmp_path):
    found = annotated.load(voc(tmp_path, {"a": [("cat", 0, (1, 1, 9, 9)), ("dog", 0, (1, 1, 9, 9))]}))
    assert found.numbered_as(["dog", "bird", "cat"]).items[0].label.tolist() == [2, 0]


def test_real_images_say_the_same_in_both_forms(shared_data, tmp_path):
    """The VOC form of the set is its COCO form rounded to whole pixels; crowds are its difficult objects."""
    root = shared_data("detection", "coco_mini")
    for folder in (annotated.IMAGES, annotated.XML):
        (tmp_path / folder).symlink_to(root / folder)
    one, other = annotated.load(root), annotated.load(tmp_path)
    assert len(one) == len(other) == 159 and not one.bad and not other.bad
    at = {item.file.stem: item for item in other.items}
    for item in one.items:
        same = at[item.file.stem]
        assert [one.classes[k] for k in item.label] == [other.classes[k] for k in same.label]
        assert torch.equal(item.hard, same.hard)
        assert (item.boxes - same.boxes).abs().max() <= 1.01


def test_real_parts_and_masks_open(shared_data):
    root = shared_data("detection", "coco_semantic")
    train, val = (annotated.load(f"{root}:{part}2017", masks=True) for part in ("train", "val"))
    assert len(train) == len(val) == 100 and not train.bad
    assert train.areas[1] == "person" and 0 not in train.areas
    assert train.mask(0).shape == (train.items[0].height, train.items[0].width)
    assert train.items[0].image(3).shape[1:] == train.mask(0).shape
