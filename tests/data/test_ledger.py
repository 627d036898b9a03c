"""Each record that came in is used, left out for a reason, or not looked at yet; what came in is counted here, not by the books."""

import csv
import io
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pretask import data as sources
from pretask.cli import main as cli
from pretask.config import TrainConfig
from pretask.data import loader
from pretask.data.ledger import Ledger
from pretask.runtime import files as checkpoint
from pretask.workflows.pretrain import Settings, pretrain

GOOD = 30
BROKEN = {"cut.jpg": "", "text.png": "not an image", "empty.bmp": "empty"}


def encoded(i: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (i * 8, 3, 9)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of known, unknown and no endings, broken ones, and files that are none."""
    at = tmp_path / "photos [holiday] :cat:"
    at.mkdir()
    for i in range(GOOD - 3):
        (at / f"{i:02}.png").write_bytes(encoded(i))
    for name, kind in (("a.jpg?w=300", "JPEG"), ("b", "GIF"), ("c.webp_large", "WEBP")):
        (at / name).write_bytes(encoded(30, kind))
    (at / "cut.jpg").write_bytes(encoded(31, "JPEG")[:300])
    (at / "text.png").write_bytes(b"<html>not found</html>")
    (at / "empty.bmp").write_bytes(b"")
    for name in ("1.xml", "2.xml", "notes.txt", "BM.dat", ".DS_Store", "README"):
        (at / name).write_bytes(b"BM is how a bitmap begins, and a text may, too")
    return at


def came_in(at: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(at))


@pytest.mark.parametrize("cache", [0, 64])
def test_nothing_of_a_folder_is_lost(folder, cache):
    source = sources.open(folder, size=16, cache_mb=cache, max_bad=0.5)
    source.__getitems__(torch.arange(len(source)))
    books = source.ledger
    assert (books.found, books.used, books.waiting) == (came_in(folder), GOOD, 0)
    assert set(books.bad) == set(BROKEN) and all(why in books.bad[name] for name, why in BROKEN.items())
    assert books.other == Counter({".xml": 2, ".txt": 1, ".dat": 1, "hidden": 1, "without ending": 1})
    assert "39 found · 30 used · 3 left out" in books.line() and "6 other files: 2 .xml" in books.line()


def test_what_workers_have_read_is_counted_as_it_comes(folder):
    source = sources.open(folder, size=16, cache_mb=0, max_bad=0.5)
    source.ledger.seen.zero_()  # what the survey at opening has seen
    waiting = source.ledger.waiting
    for batch in loader.epoch(source, torch.arange(10), 5, workers=1):
        assert len(batch) == 5
    assert source.ledger.used == 10 and source.ledger.waiting == waiting - 10


def test_a_run_that_goes_on_remembers_what_was_read(folder, tmp_path):
    settings = Settings(
        str(folder), out=tmp_path / "run", size=16, steps=1, encoder="resnet_small:width=4", max_bad=0.5
    )
    source = sources.open(folder, size=16, cache_mb=0, max_bad=0.5)
    made = pretrain("rotnet", settings, train=TrainConfig(batch=8), source=source)
    kept = checkpoint.load(made.folder / checkpoint.LATEST)["records"]
    assert set(kept["bad"]) == set(BROKEN) and int(kept["seen"].sum()) == GOOD
    fresh = Ledger()
    fresh.opened(len(kept["seen"]), unread=True)
    fresh.restore(kept)
    assert (fresh.used, fresh.waiting, set(fresh.bad)) == (GOOD, 0, set(BROKEN))


def test_two_that_are_called_alike_both_count():
    books = Ledger()
    for why in ("empty", "cut off: 3 bytes", "cut off: 4 bytes"):
        books.leave("x.png", why)
    books.opened(2)
    assert (books.found, books.used) == (5, 2)
    assert books.line() == "5 found · 2 used · 3 left out: 2 cut off, 1 empty"


def test_books_of_two_sources_add_up():
    one, other, both = Ledger(), Ledger(), Ledger()
    one.leave("x", "empty")
    one.opened(3)
    other.opened(4, unread=True)
    other.see([1, 2])
    both.gather(one, other)
    assert (both.found, both.used, both.waiting, both.bad) == (8, 5, 2, {"x": "empty"})


def test_a_command_says_it_in_the_words_that_the_user_chose(folder, tmp_path, capfd):
    out = tmp_path / "store [bold] :dog:"
    assert cli.main(["prepare", str(folder), "--out", str(out), "--max-bad", "0.5"]) == 0
    told = capfd.readouterr().err
    assert f"wrote {out} (30 images" in told and f"--data '{out}'" in told
    assert f"{folder.name}: 39 found · 30 used · 3 left out" in told and f"→ {out}/bad.csv" in told
    with (out / "bad.csv").open() as file:
        assert {row["file"] for row in csv.DictReader(file)} == set(BROKEN)
    card = json.loads((out / "store.json").read_text())["records"]
    assert card["found"] == card["used"] + sum(card["left_out"].values()) + sum(card["other_files"].values())


@pytest.mark.parametrize(
    "verb", [["prepare"], ["preview", "rotnet"], ["check", "rotnet"], ["audit", "rotnet"]]
)
def test_every_verb_that_opens_images_can_be_told_how_many_may_be_bad(verb, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "kind", lambda spec: pytest.fail("opened"))
    monkeypatch.setattr(sources, "opened", lambda spec, wanted: asked.append(wanted.max_bad) or exit(3))
    words = ["x"] if verb == ["prepare"] else ["--data", "x"]
    with pytest.raises(SystemExit):
        cli.main(
            [
                *verb,
                *words,
                "--max-bad",
                "0.4",
                *(["--out", str(tmp_path / "o")] if verb == ["prepare"] else []),
            ]
        )
    assert asked == [0.4]


def test_several_labels_of_an_image_are_one_line_and_do_not_stop_a_store(tmp_path, capfd):
    cells = [{"bytes": encoded(i), "path": None} for i in range(4)]
    pq.write_table(
        pa.table({"image": cells, "label": [["a"], ["a", "b"], [], ["b"]]}), tmp_path / "x.parquet"
    )
    with pytest.raises(sources.UserError, match="several labels"):
        sources.open_labelled(tmp_path / "x.parquet")
    assert cli.main(["prepare", str(tmp_path / "x.parquet"), "--out", str(tmp_path / "s")]) == 0
    assert "its labels are left out: images have several labels" in capfd.readouterr().err
    assert len(sources.open(tmp_path / "s")) == 4
