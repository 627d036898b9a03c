"""Images without a label are left out where labels are scored, counted and listed, and are kept everywhere else."""

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

from pretask import data as sources
from pretask.cli import main as cli
from pretask.data import Asked
from pretask.data.ledger import NO_LABEL
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
def test_only_images_with_a_label_are_scored_and_the_others_are_named(kind, cache, tmp_path):
    source = sources.open_labelled(kind(tmp_path, LABELS), cache_mb=cache)
    assert red(source) == KEPT and source.label.tolist() == NUMBERS and source.classes == ["a", "b"]
    assert len(source.ledger.unwanted) == 3 and not source.ledger.bad
    assert source.ledger.found == 8 and source.ledger.used + source.ledger.waiting == 5
    assert "3 left out" in source.ledger.line()


@pytest.mark.parametrize("kind", KINDS)
def test_all_are_pretrained_on(kind, tmp_path):
    source = sources.open(kind(tmp_path, LABELS))
    assert sorted(red(source)) == list(range(8)) and not source.ledger.unwanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_store_keeps_all_images_and_the_labels_that_there_are(kind, tmp_path, capfd):
    path = kind(tmp_path, LABELS)
    assert cli.main(["prepare", path, "--out", str(tmp_path / "store")]) == 0
    assert sorted(red(sources.open(tmp_path / "store"))) == list(range(8))
    back = sources.open_labelled(tmp_path / "store")
    assert sorted(zip(red(back), back.label.tolist(), strict=True)) == list(zip(KEPT, NUMBERS, strict=True))
    assert set(back.ledger.unwanted.values()) == {NO_LABEL} and len(back.ledger.unwanted) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_where_no_image_has_a_label_it_is_said(kind, tmp_path):
    path = kind(tmp_path, [""] * 4)
    with pytest.raises(UserError, match=r"no label|no class folders"):
        sources.open_labelled(path)
    assert sources.opened(path, Asked(labels="any")).label is None


@pytest.mark.parametrize("kind", [as_csv, as_parquet, as_tar])
def test_numbers_stay_in_their_order(kind, tmp_path):
    source = sources.open_labelled(kind(tmp_path, ["10", "9", "", "1"]))
    assert source.classes == ["1", "9", "10"] and source.label.tolist() == [2, 1, 0]


def test_numbers_beside_blank_cells_are_whole(tmp_path):
    source = sources.open_labelled(as_parquet(tmp_path, [1, None, 10, 2]))
    assert source.classes == ["1", "2", "10"]


def test_words_that_look_like_one_number_stay_two_classes(tmp_path):
    assert sources.open_labelled(as_csv(tmp_path, ["7", "007"])).classes == ["007", "7"]


def test_a_class_of_minus_one_is_none_where_classes_have_names_and_is_one_where_they_have_not(tmp_path):
    images = np.zeros((3, 16, 16), np.uint8)
    np.savez(tmp_path / "named.npz", images=images, labels=[-1, 0, 1], class_names=["cat", "dog"])
    np.savez(tmp_path / "plain.npz", images=images, labels=[-1, 0, 1])
    named, plain = (sources.open_labelled(tmp_path / f"{n}.npz") for n in ("named", "plain"))
    assert (named.classes, named.label.tolist()) == (["cat", "dog"], [0, 1])
    assert (plain.classes, plain.label.tolist()) == (["-1", "0", "1"], [0, 1, 2])
