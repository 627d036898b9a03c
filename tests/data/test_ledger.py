"""Every input record is used, skipped for a reason, or not read yet; the tests count the records independently."""

import csv
import io
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pretask import data
from pretask.cli import main
from pretask.config import RunConfig, TrainConfig
from pretask.data import loader, store
from pretask.data.base import Images, OpenOptions
from pretask.data.encoded import collect
from pretask.data.ledger import Ledger, write_all
from pretask.data.subset import draw_subset
from pretask.encoders import build
from pretask.encoders.readout import Readout
from pretask.evals import features
from pretask.reading import Reading
from pretask.reports.html import facts
from pretask.runtime import accounts
from pretask.train import checkpoint
from pretask.workflows import cluster, colorize, embed
from pretask.workflows import pretrain as pretraining
from pretask.workflows.job import fresh
from pretask.workflows.pretrain import pretrain

GOOD = 30
BROKEN = {"cut.jpg": "", "text.png": "not an image", "empty.bmp": "empty"}


def encoded(i: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (i * 8, 3, 9)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images with known, unknown and no suffix, broken images, and other files."""
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
def test_every_record_of_a_folder_is_counted(folder, cache):
    source = data.open(folder, size=16, cache_mb=cache, reading=Reading(max_bad=0.5))
    source.__getitems__(torch.arange(len(source)))
    ledger = source.ledger
    assert (ledger.found, ledger.used, ledger.unread) == (came_in(folder), GOOD, 0)
    assert set(ledger.bad) == set(BROKEN) and all(why in ledger.bad[name] for name, why in BROKEN.items())
    assert ledger.other == Counter({".xml": 2, ".txt": 1, ".dat": 1, "hidden": 1, "without suffix": 1})
    assert (
        "39 found · 30 used · 3 skipped" in ledger.summary() and "6 other files: 2 .xml" in ledger.summary()
    )


def test_images_read_by_workers_are_counted(folder):
    source = data.open(folder, size=16, cache_mb=0, reading=Reading(max_bad=0.5))
    source.ledger.seen.zero_()  # undo the sample read at opening
    waiting = source.ledger.unread
    for batch in loader.epoch(source, torch.arange(10), 5, workers=1):
        assert len(batch) == 5
    assert source.ledger.used == 10 and source.ledger.unread == waiting - 10


def test_resumed_run_remembers_what_was_read(folder, tmp_path, monkeypatch):
    run_card = pretraining.run_card
    monkeypatch.setattr(pretraining, "run_card", lambda *given: run_card(*given) | {"records": {}})
    settings = RunConfig(
        str(folder),
        out=tmp_path / "run",
        size=16,
        steps=1,
        encoder="resnet_small:width=4",
        reading=Reading(max_bad=0.5),
    )
    source = data.open(folder, size=16, cache_mb=0, reading=Reading(max_bad=0.5))
    made = pretrain(fresh("rotnet", settings, train=TrainConfig(batch=8), images=source))
    (kept,) = checkpoint.load(made.folder / checkpoint.LATEST)["records"]  # of each process
    assert {place for place, _ in kept["failed"].values()} == set(BROKEN) and int(kept["seen"].sum()) == GOOD
    records = json.loads((made.folder / "run.json").read_text())["records"]
    assert (records["found"], records["used"], records["not_looked_at"]) == (came_in(folder), GOOD, 0)
    assert records["left_out"] == {"empty": 1, "not an image": 1} | {
        why.partition(":")[0]: 1
        for why in source.ledger.bad.values()
        if "image" not in why and why != "empty"
    }
    assert ("Records", source.ledger.summary().replace(f" → {made.folder}/bad.csv", "")) in facts(
        made.folder, made.card
    )
    restored = Ledger()
    restored.set_size(len(kept["seen"]), unread=True)
    restored.restore(kept)
    assert (restored.used, restored.unread, set(restored.bad)) == (GOOD, 0, set(BROKEN))


class Twins:
    """Images that are all named x.png; every second one is damaged, each differently."""

    def __len__(self) -> int:
        return 6

    def name(self, i: int) -> str:
        return "x.png"

    def read(self, i: int) -> bytes:
        return encoded(i) if i % 2 == 0 else b"no image"[: 8 * (i > 1)]


TWINS = [0, 16, 32]
"""red values of the valid images"""
DAMAGED = {"x.png": "empty", "x.png (2)": "not an image", "x.png (3)": "not an image"}


def twins(cache: int = 0) -> Images:
    return collect(
        "twins", Twins(), OpenOptions(size=16, reading=Reading(max_bad=1.0), cache_mb=cache)
    ).images


def red(source: Images) -> list[int]:
    return source.__getitems__(torch.arange(len(source))).image[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("cache", [0, 64])
def test_valid_image_with_the_name_of_a_damaged_one_is_used(cache: int, tmp_path: Path):
    source = twins(cache)
    for _ in range(2):  # reading it again does not count it twice
        source.__getitems__(torch.arange(len(source)))
    assert (source.ledger.found, source.ledger.used, source.ledger.bad) == (6, 3, DAMAGED)
    store.prepare(source, tmp_path / "store", progress=False)
    back = data.open(tmp_path / "store")
    assert red(back) == TWINS and back.files(torch.arange(3)) == ["x.png"] * 3
    assert back.ledger.bad == DAMAGED and back.ledger.found == 6
    few = draw_subset(twins(cache), 0.99, 0)
    few.__getitems__(torch.arange(len(few)))
    assert int(few.readable(torch.arange(len(few))).sum()) == 3


def test_workers_count_images_of_equal_name_separately():
    source = twins()
    for _ in loader.epoch(source, torch.arange(6), 2, workers=2):
        pass
    assert (source.ledger.used, source.ledger.unread, source.ledger.bad) == (3, 0, DAMAGED)


def test_every_valid_image_of_equal_name_has_its_row(tmp_path: Path):
    encoder = build("resnet_small:width=4", 3, 16).eval()
    made = embed.write(Readout(encoder), twins(), tmp_path / "x.parquet")
    assert made.n == 3 and pq.read_table(made.table)["file"].to_pylist() == ["x.png"] * 3
    source = twins()
    found = features.embed(encoder, source, progress=False).stages["pool"]
    assert len(found) == 3 == len(cluster.readable(source)) and cluster.readable(source).tolist() == [
        0,
        2,
        4,
    ]
    assert [name for name, _ in colorize.originals(twins())] == ["x.png"] * 3


def test_resumed_run_and_other_processes_count_images_of_equal_name_once(tmp_path: Path):
    source, other = twins(), twins()
    source.__getitems__(torch.arange(6))
    other.ledger.restore(source.ledger.state())
    other.__getitems__(torch.arange(6))
    other.ledger.restore(source.ledger.state())
    assert (other.ledger.bad, other.ledger.used, other.ledger.unread) == (DAMAGED, 3, 0)


def test_joint_list_distinguishes_sources_and_replaces_an_earlier_one(
    tmp_path: Path,
):
    one, other = Ledger({"x.png": "empty"}), Ledger({"x.png": "not an image"})
    path = tmp_path / "scores.bad.csv"
    write_all(path, [("photos", one), ("photos", other), ("photos", one)])
    with path.open(newline="") as file:
        assert [*csv.reader(file)][1:] == [["photos: x.png", "empty"], ["photos: x.png (2)", "not an image"]]
    assert one.where == other.where == str(path)
    write_all(path, [("photos", Ledger())])
    assert not path.exists()


def test_source_opened_twice_is_reported_once_and_most_completely():
    with accounts.collect() as opened:
        for spec, left, seen in (("a", 1, [0]), ("a", 1, [0, 1]), ("b", 0, [0, 1, 2])):
            ledger = Ledger({f"{i}.png": "empty" for i in range(left)})
            ledger.set_size(3, unread=True)
            ledger.mark_read(seen)
            accounts.add("photos", ledger, spec)
        opened[1].ledger.where = "bad.csv"
        assert accounts.summary_lines(opened) == [
            "photos: 4 found · 2 used · 1 skipped: 1 empty → bad.csv · 1 not read yet",
            "photos: 3 found · 3 used",
        ]


def test_images_of_equal_name_keep_their_listed_names_in_every_pass():
    ledger, passes = Ledger(), []
    for _ in range(2):
        ledger.clear(3)
        for position in range(3):
            ledger.mark_unreadable(position, "x.png", "empty")
        passes.append(list(ledger.bad))
    assert passes == [["x.png", "x.png (2)", "x.png (3)"]] * 2


def test_relative_and_recorded_absolute_path_are_one_source(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with accounts.collect() as opened:
        for spec in (folder.name, f"{folder}/", os.path.join("..", folder.parent.name, folder.name)):
            data.open(spec, size=16, reading=Reading(max_bad=1.0))
        assert len(opened) == 3 and len(accounts.summary_lines(opened)) == 1


def test_sources_with_equal_image_names_add_up():
    one, other, both = twins(), twins(64), Ledger()
    for _ in range(2):
        both.merge(one.ledger, other.ledger)
    assert (both.found, both.used, len(both.bad)) == (12, 6, 6)
    assert (~both.readable(torch.arange(9))).nonzero()[:, 0].tolist() == [1, 3, 5]
    state = both.state()
    both.merge(one.ledger, other.ledger)
    assert both.state()["failed"] == state["failed"]


def test_colorized_image_never_replaces_another():
    names = colorize.Names()
    given = [
        "a.jpg",
        "a.png",
        "a.jpg",
        "A.jpg",
        "a.png/b.jpg",
        "sheet.jpg",
        "c/d.jpg",
        "c.png/e.jpg",
        "c.gif",
        "",
        "x" * 300,
    ]
    made = [names.png(name) for name in given]
    assert len({str(path).casefold() for path in made}) == len(made)
    folders = {str(folder) for path in made for folder in path.parents}
    assert not folders & {str(path) for path in made} and max(len(path.name) for path in made) <= 255
    assert [str(path) for path in made[:2]] == ["a.png", "a.png.png"] and str(made[6]) == "c/d.png"


def test_duplicate_names_both_count():
    ledger = Ledger()
    for why in ("empty", "cut off: 3 bytes", "cut off: 4 bytes"):
        ledger.skip("x.png", why)
    ledger.set_size(2)
    assert (ledger.found, ledger.used) == (5, 2)
    assert ledger.summary() == "5 found · 2 used · 3 skipped: 2 cut off, 1 empty"


def test_ledgers_of_two_sources_add_up():
    one, other, both = Ledger(), Ledger(), Ledger()
    one.skip("x", "empty")
    one.set_size(3)
    other.set_size(4, unread=True)
    other.mark_read([1, 2])
    both.merge(one, other)
    assert (both.found, both.used, both.unread, both.bad) == (8, 5, 2, {"x": "empty"})


def test_summary_uses_the_path_given_by_the_user(folder, tmp_path, capfd):
    out = tmp_path / "store [bold] :dog:"
    assert main.main(["prepare", str(folder), "--out", str(out), "--max-bad", "0.5"]) == 0
    output = capfd.readouterr().err
    assert f"wrote {out} (30 images" in output and f"--data '{out}'" in output
    assert f"{folder.name}: 39 found · 30 used · 3 skipped" in output and f"→ {out}/bad.csv" in output
    with (out / "bad.csv").open() as file:
        assert {row["file"] for row in csv.DictReader(file)} == set(BROKEN)
    card = json.loads((out / "store.json").read_text())["records"]
    assert card["found"] == card["used"] + sum(card["left_out"].values()) + sum(card["other_files"].values())


@pytest.mark.parametrize(
    "command", [["prepare"], ["preview", "rotnet"], ["check", "rotnet"], ["audit", "rotnet"]]
)
def test_every_command_that_opens_images_has_max_bad(command, tmp_path, monkeypatch):
    max_bad = []
    monkeypatch.setattr(data, "kind", lambda spec: pytest.fail("opened"))
    monkeypatch.setattr(
        data, "open_spec", lambda spec, options: max_bad.append(options.reading.max_bad) or exit(3)
    )
    words = ["x"] if command == ["prepare"] else ["--data", "x"]
    with pytest.raises(SystemExit):
        main.main(
            [
                *command,
                *words,
                "--max-bad",
                "0.4",
                *(["--out", str(tmp_path / "o")] if command == ["prepare"] else []),
            ]
        )
    assert max_bad == [0.4]
