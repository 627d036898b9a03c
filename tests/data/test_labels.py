"""Unlabeled images are skipped, counted and listed where labels are scored, and kept everywhere else."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pretask import data
from pretask.cli import main
from pretask.data import OpenOptions
from pretask.data.labels import UNSET
from pretask.data.ledger import NO_LABEL
from pretask.reading import Reading
from pretask.types import UserError

LABELS = ["a", "", "b", "a", None, "b", "  ", "a"]
KEPT, NUMBERS = [0, 2, 3, 5, 7], [0, 1, 0, 1, 0]


def encoded(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (i * 20, 0, 0)).save(file, "PNG")
    return file.getvalue()


def as_csv(at: Path, labels: list) -> str:
    with (at / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption", "label"])
        for i, label in enumerate(labels):
            (at / f"{i}.png").write_bytes(encoded(i))
            writer.writerow([f"{i}.png", "words", label])
    return str(at / "rows.csv")


def as_jsonl(at: Path, labels: list) -> str:
    rows = [{"file": f"{i}.png", "caption": "words", "label": label} for i, label in enumerate(labels)]
    for i in range(len(labels)):
        (at / f"{i}.png").write_bytes(encoded(i))
    (at / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(at / "rows.jsonl")


def as_parquet(at: Path, labels: list) -> str:
    cells = [{"bytes": encoded(i), "path": None} for i in range(len(labels))]
    pq.write_table(pa.table({"image": cells, "label": labels}), at / "rows.parquet")
    return str(at / "rows.parquet")


def as_tar(at: Path, labels: list) -> str:
    with tarfile.open(at / "rows.tar", "w") as tar:
        for i, label in enumerate(labels):
            members = {"png": encoded(i)} | ({} if label is None else {"cls": str(label).encode()})
            for kind, content in members.items():
                info = tarfile.TarInfo(f"{i}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(at / "rows.tar")


def as_folder(at: Path, labels: list) -> str:
    for i, label in enumerate(labels):
        folder = at / "photos" / ((label or "").strip())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(encoded(i))
    return str(at / "photos")


def as_npz(at: Path, labels: list) -> str:
    images = np.stack([np.full((16, 16, 3), (i * 20, 0, 0), np.uint8) for i in range(len(labels))])
    np.savez(at / "rows.npz", images=images, labels=np.array([label or "" for label in labels]))
    return str(at / "rows.npz")


KINDS = [as_csv, as_jsonl, as_parquet, as_tar, as_folder, as_npz]


def red(source) -> list[int]:
    return (source.__getitems__(torch.arange(len(source))).image[:, 0, 0, 0] // 20).tolist()


@pytest.mark.parametrize("cache", [0, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_only_labeled_images_are_scored_and_the_others_are_listed(kind, cache, tmp_path):
    source = data.open_labeled(kind(tmp_path, LABELS), cache_mb=cache)
    assert red(source) == KEPT and source.label.tolist() == NUMBERS and source.classes == ["a", "b"]
    assert len(source.ledger.unwanted) == 3 and not source.ledger.bad
    images = source.ledger.found - source.ledger.other.total()  # without the .cls members of a shard
    assert images == 8 and source.ledger.used + source.ledger.unread == 5
    assert "3 skipped" in source.ledger.summary()


@pytest.mark.parametrize("kind", KINDS)
def test_all_images_are_used_for_pretraining(kind, tmp_path):
    source = data.open(kind(tmp_path, LABELS))
    assert sorted(red(source)) == list(range(8)) and not source.ledger.unwanted


@pytest.mark.parametrize("kind", KINDS)
def test_prepared_store_keeps_all_images_and_existing_labels(kind, tmp_path, capfd):
    path = kind(tmp_path, LABELS)
    assert main.main(["prepare", path, "--out", str(tmp_path / "store")]) == 0
    assert sorted(red(data.open(tmp_path / "store"))) == list(range(8))
    back = data.open_labeled(tmp_path / "store")
    assert sorted(zip(red(back), back.label.tolist(), strict=True)) == list(zip(KEPT, NUMBERS, strict=True))
    assert set(back.ledger.unwanted.values()) == {NO_LABEL} and len(back.ledger.unwanted) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_opening_labeled_fails_if_no_image_has_a_label(kind, tmp_path):
    path = kind(tmp_path, [""] * 4)
    with pytest.raises(UserError, match=r"no label|no class folders"):
        data.open_labeled(path)
    assert data.open_spec(path, OpenOptions(labels="any")).label is None


@pytest.mark.parametrize("kind", [as_csv, as_parquet, as_tar])
def test_numeric_labels_keep_their_order(kind, tmp_path):
    source = data.open_labeled(kind(tmp_path, ["10", "9", "", "1"]))
    assert source.classes == ["1", "9", "10"] and source.label.tolist() == [2, 1, 0]


def test_integer_labels_next_to_blank_cells_stay_integers(tmp_path):
    source = data.open_labeled(as_parquet(tmp_path, [1, None, 10, 2]))
    assert source.classes == ["1", "2", "10"]


def test_strings_that_equal_as_numbers_stay_two_classes(tmp_path):
    assert data.open_labeled(as_csv(tmp_path, ["7", "007"])).classes == ["007", "7"]


def test_minus_one_is_unlabeled_only_if_classes_have_names(tmp_path):
    images = np.zeros((3, 16, 16), np.uint8)
    np.savez(tmp_path / "named.npz", images=images, labels=[-1, 0, 1], class_names=["cat", "dog"])
    np.savez(tmp_path / "plain.npz", images=images, labels=[-1, 0, 1])
    named, plain = (data.open_labeled(tmp_path / f"{n}.npz") for n in ("named", "plain"))
    assert (named.classes, named.label.tolist()) == (["cat", "dog"], [0, 1])
    assert (plain.classes, plain.label.tolist()) == (["-1", "0", "1"], [0, 1, 2])


# ---- several labels per image

LISTS = [["a", "b"], [], ["b"], None, ["c", "a"], "a"]
HOT = [[1, 1, 0], [-1] * 3, [0, 1, 0], [-1] * 3, [1, 0, 1], [1, 0, 0]]
"""the same with a column per class, -1 without a label"""


def as_columns(at: Path, rows: list[dict]) -> str:
    """A .csv with a column for each key, besides image and text."""
    with (at / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "caption", *rows[0]])
        writer.writeheader()
        for i, row in enumerate(rows):
            (at / f"{i}.png").write_bytes(encoded(i))
            writer.writerow({"file": f"{i}.png", "caption": "words", **row})
    return str(at / "rows.csv")


@pytest.mark.parametrize("cache", [0, 64])
def test_lists_of_strings_are_multi_labels(cache, tmp_path):
    source = data.open_labeled(as_jsonl(tmp_path, LISTS), cache_mb=cache)
    assert source.multi_label and source.classes == ["a", "b", "c"]
    assert red(source) == [0, 2, 4, 5] and source.label.tolist() == [HOT[i] for i in (0, 2, 4, 5)]
    assert source.label.dtype == torch.int8 and list(source.ledger.unwanted.values()) == [NO_LABEL] * 2


def test_lists_of_numbers_are_classes_and_lists_of_0_and_1_are_cells(tmp_path):
    numbers = data.open_labeled(as_parquet(tmp_path, [[0], [10, 2], [], [0, 2]]))
    assert numbers.classes == ["0", "2", "10"]
    assert numbers.label.tolist() == [[1, 0, 0], [0, 1, 1], [1, 1, 0]]
    cells = data.open_labeled(as_parquet(tmp_path, [[1, 0, 0], [0, 1, 1], [0, 0, 0]]))
    assert cells.classes == ["0", "1", "2"]
    assert cells.label.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]  # the last image has no class


def test_lists_of_class_indices_get_class_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": encoded(i), "path": None} for i in range(3)]
    names = datasets.Sequence(datasets.ClassLabel(names=["cat", "dog", "owl"]))
    features = datasets.Features({"image": datasets.Image(), "tags": names})
    made = datasets.Dataset.from_dict({"image": cells, "tags": [[0, 1], [1, 0], [1, 1]]}, features=features)
    made.to_parquet(str(tmp_path / "rows.parquet"))
    source = data.open_labeled(tmp_path / "rows.parquet")
    assert source.classes == ["cat", "dog", "owl"]
    assert source.label.tolist() == [[1, 1, 0], [1, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("kind", [as_csv, as_jsonl, as_parquet, as_tar, as_npz, as_folder])
def test_separator_splits_labels_in_every_kind_of_source(kind, tmp_path):
    path = kind(tmp_path, ["a|b", "", "b", "  ", "c| a", "a"])
    source = data.open_labeled(path, reading=Reading(label_separator="|"))
    assert source.classes == ["a", "b", "c"]
    order = sorted(zip(red(source), source.label.tolist(), strict=True))
    assert order == [(i, HOT[i]) for i in (0, 2, 4, 5)]
    assert len(source.ledger.unwanted) == 2


def test_labels_with_a_pipe_are_one_class_with_a_message(tmp_path, capfd):
    assert data.open_labeled(as_csv(tmp_path, ["a|b", "a"])).classes == ["a", "a|b"]
    assert "'a|b' is read as one class" in capfd.readouterr().err


COLUMNS = [
    {"a": "1", "b": "", "c": "TRUE"},
    {"a": "", "b": " ", "c": ""},
    {"a": "0", "b": "", "c": ""},
    {"a": "1.0", "b": "-1", "c": "0"},
    {"a": "false", "b": "0", "c": "0"},
]


def test_columns_of_0_and_1_are_classes(tmp_path):
    path = as_columns(tmp_path, COLUMNS)
    source = data.open_labeled(path, reading=Reading(labels_from=" a,b ,c"))
    assert source.classes == ["a", "b", "c"] and red(source) == [0, 4]
    assert source.label.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert list(source.ledger.unwanted.items()) == [
        ("1.png", NO_LABEL),
        ("2.png", UNSET),
        ("3.png", "label neither 0 nor 1: -1 for b"),
    ]
    assert source.ledger.found == 5 and source.ledger.used == 2 and not source.ledger.bad


def test_columns_of_0_and_1_in_a_table(tmp_path):
    cells = [{"bytes": encoded(i), "path": None} for i in range(3)]
    table = {"image": cells, "label": [7, 7, 8], "a": [True, False, None], "b": [0.0, 1.0, None]}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    source = data.open_labeled(tmp_path / "rows.parquet", reading=Reading(labels_from="b,a"))
    assert source.classes == ["b", "a"] and source.label.tolist() == [[0, 1], [1, 0]]
    one = data.open_labeled(tmp_path / "rows.parquet", reading=Reading(labels_from="a"))
    assert not one.multi_label and one.label.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nope,a", "has no column nope \\(--labels-from\\)"),
        ("caption,a", "labels of class 'caption' are words; expected 0, 1, true, false or a blank cell"),
    ],
)
def test_missing_or_invalid_label_column_is_an_error(named, message, tmp_path):
    with pytest.raises(UserError, match=message):
        data.open_labeled(as_columns(tmp_path, COLUMNS), reading=Reading(labels_from=named))


def test_label_columns_are_not_required_for_pretraining(tmp_path):
    path = as_columns(tmp_path, COLUMNS)
    assert len(data.open(path, reading=Reading(labels_from="nope"))) == 5


def test_labels_from_without_columns_gives_a_message(tmp_path, capfd):
    source = data.open_labeled(as_folder(tmp_path, ["a", "b"]), reading=Reading(labels_from="x"))
    assert source.classes == ["a", "b"] and "is not a table with columns" in capfd.readouterr().err


def test_rows_of_0_and_1_in_npz(tmp_path):
    images = np.zeros((3, 16, 16), np.uint8)
    np.savez(tmp_path / "rows.npz", images=images, labels=[[1, 0], [1, 1], [2, 0]], class_names=["x", "y"])
    source = data.open_labeled(tmp_path / "rows.npz")
    assert source.classes == ["x", "y"] and source.label.tolist() == [[1, 0], [1, 1]]
    assert list(source.ledger.unwanted.values()) == ["label neither 0 nor 1: 2 for x"]
    for labels, names in (([[1], [0], [1]], ["x"]), ([[1, 0]] * 3, ["x"]), (np.zeros((3, 2, 2)), ["x"])):
        np.savez(tmp_path / "bad.npz", images=images, labels=labels, class_names=names)
        with pytest.raises(UserError, match="`labels` has shape"):
            data.open_labeled(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([{"a": 1}] * 3, "key-value pairs"),
        ([[["a"]], ["b"], ["c"]], "lists of labels are nested"),
        ([[1, 0, 7], [0, 1, 7], [1, 1, 8]], None),
    ],
)
def test_invalid_labels_are_a_one_line_error(labels, message, tmp_path):
    path = as_jsonl(tmp_path, labels)
    if message is None:
        assert data.open_labeled(path).classes == ["0", "1", "7", "8"]
        return
    with pytest.raises(UserError, match=message):
        data.open_labeled(path)


def test_empty_separator_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--label-separator is empty"):
        data.open_labeled(as_csv(tmp_path, ["a", "b"]), reading=Reading(label_separator=""))


def test_multi_label_images_are_all_pretrained_on_and_kept_in_a_store(tmp_path):
    path = as_jsonl(tmp_path, LISTS)
    assert red(data.open(path)) == list(range(6))
    assert main.main(["prepare", path, "--out", str(tmp_path / "store")]) == 0
    assert red(data.open(tmp_path / "store")) == list(range(6))
    assert np.load(tmp_path / "store/label.npy").tolist() == HOT
    back = data.open_labeled(tmp_path / "store")
    assert back.multi_label and back.classes == ["a", "b", "c"] and red(back) == [0, 2, 4, 5]
    assert back.label.tolist() == [HOT[i] for i in (0, 2, 4, 5)]
    assert list(back.ledger.unwanted.values()) == [NO_LABEL] * 2


@pytest.mark.parametrize("cache", [0, 64])
def test_unreadable_image_does_not_shift_labels(cache, tmp_path):
    path = as_jsonl(tmp_path, [["a"], ["a", "b"], ["b"], ["c"]])
    (tmp_path / "1.png").write_bytes(b"no image")
    source = data.open_labeled(path, cache_mb=cache, reading=Reading(max_bad=0.5))
    read = source.__getitems__(torch.arange(len(source)))
    assert "1.png" in source.ledger.bad
    kept = [i for i, name in enumerate(source.files(read.index)) if name != "1.png"]
    assert source.label[kept].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
