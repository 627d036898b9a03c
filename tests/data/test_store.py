"""A store is written completely or not at all, and returns what was written."""

import errno
import json
import math
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pretask import data
from pretask.data import store
from pretask.data.ledger import Ledger
from pretask.runtime import files
from pretask.transforms.ranges import UNKNOWN
from pretask.types import Batch, UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(40):
        path = tmp_path / "photos" / "ab"[i // 20] / f"{i:02d} é.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i, 0, 0)).save(path)
    (tmp_path / "photos/a/10x.png").write_bytes(b"")
    return tmp_path / "photos"


def everything(source) -> Batch:
    return source.__getitems__(torch.arange(len(source)))


@pytest.mark.parametrize("cache", [64, 0])
def test_store_equals_its_source_without_the_bad_images(photos: Path, tmp_path: Path, cache: int):
    store.prepare(data.open_labeled(photos, cache_mb=cache), tmp_path / "out", progress=False)
    back, source = data.open_labeled(tmp_path / "out"), data.open_labeled(photos)
    index = torch.arange(40)
    assert torch.equal(everything(back).image, everything(source).image)
    assert torch.equal(back.label, source.label)
    assert (back.classes, back.name, back.ledger.bad) == (["a", "b"], "photos", {"a/10x.png": "empty"})
    assert back.files(index) == source.files(index)


def test_store_without_labels_has_none(photos: Path, tmp_path: Path):
    store.prepare(data.open(photos), tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "label.npy").exists()
    with pytest.raises(UserError, match="has no labels"):
        data.open_labeled(tmp_path / "out")


def test_every_field_of_a_batch_is_kept(tmp_path: Path):
    class Articles:
        name, channels, size, provides, ledger = "articles", 1, 4, frozenset({"words"}), Ledger()
        range = UNKNOWN

        def __len__(self) -> int:
            return 300

        def __getitems__(self, index: Tensor) -> Batch:
            image = (index % 256).to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
            return Batch(index, image, {"words": index[:, None].repeat(1, 5)})

        def files(self, index: Tensor) -> list[str]:
            return [f"article {i}" for i in index.tolist()]

        def readable(self, index: Tensor) -> Tensor:
            return self.ledger.readable(index)

    store.prepare(Articles(), tmp_path / "out", progress=False)
    back = data.open(tmp_path / "out")
    assert back.provides == {"words"}
    assert torch.equal(everything(back).aux["words"], torch.arange(300)[:, None].repeat(1, 5))
    assert everything(back).image[:, 0, 0, 0].tolist() == [i % 256 for i in range(300)]


def test_opening_does_not_read_the_images(tmp_path: Path):
    store.prepare(data.open("synthetic:64:16"), tmp_path / "out", progress=False)
    n = 2_000_000  # of 768 bytes, in a sparse file
    card = json.loads((tmp_path / "out" / store.CARD).read_text())
    for name, form in card["fields"].items():
        form["shape"][0] = n
        size = math.prod(form["shape"]) * getattr(torch, form["dtype"]).itemsize
        os.truncate(tmp_path / "out" / f"{name}.bin", size)
    (tmp_path / "out" / store.CARD).write_text(json.dumps(card))
    began = time.perf_counter()
    source = data.open(tmp_path / "out")
    last = source.__getitems__(torch.tensor([0, n - 1]))
    assert time.perf_counter() - began < 0.5
    assert last.image[1].sum() == 0
    assert last.image[0].sum() > 0


def test_changing_a_batch_does_not_reach_the_file(tmp_path: Path):
    store.prepare(data.open("synthetic:8:16"), tmp_path / "out", progress=False)
    before = (tmp_path / "out" / "image.bin").read_bytes()
    data.open(tmp_path / "out").image.zero_()  # type: ignore[attr-defined]
    assert (tmp_path / "out" / "image.bin").read_bytes() == before


def test_existing_path_is_not_overwritten(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="out exists"):
        store.prepare(data.open("synthetic:8"), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years"


def test_too_small_disk_fails_before_writing(tmp_path: Path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2000, 1000, 1000))
    with pytest.raises(UserError, match="GiB free; synthetic:8 needs"):
        store.prepare(data.open("synthetic:8"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["sync", "replace"])
def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch, when: str):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((files, "sync") if when == "sync" else (Path, "replace")), full)
    with pytest.raises(UserError, match=r"could not write .*out: No space left"):
        store.prepare(data.open("synthetic:8"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_nothing_and_a_killed_one_is_cleaned_up(tmp_path: Path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.prepare(data.open("synthetic:8"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.new").mkdir()
    (tmp_path / ".out.new" / "image.bin").write_bytes(b"half of it")
    store.prepare(data.open("synthetic:8"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert len(data.open(tmp_path / "out")) == 8


@pytest.mark.parametrize("hurt", ["image.bin", "names.npy", store.CARD])
def test_damaged_store_is_reported(tmp_path: Path, hurt: str):
    store.prepare(data.open("synthetic:8"), tmp_path / "out")
    path = tmp_path / "out" / hurt
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="damaged store"):
        data.open(tmp_path / "out")


def test_store_has_one_size(tmp_path: Path):
    store.prepare(data.open("synthetic:8:16"), tmp_path / "out")
    assert data.open(tmp_path / "out", size=16, channels=3).size == 16
    with pytest.raises(UserError, match="size 16, not 32"):
        data.open(tmp_path / "out", size=32)
    with pytest.raises(UserError, match="channels 3, not 1"):
        data.open(tmp_path / "out", channels=1)


def test_labels_of_a_store_do_not_reach_its_images(photos: Path, tmp_path: Path):
    store.prepare(data.open_labeled(photos), tmp_path / "out")
    np.save(tmp_path / "out" / "label.npy", np.zeros(3))  # invalid labels that nothing reads
    assert len(data.open(tmp_path / "out")) == 40
