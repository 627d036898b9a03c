"""Curating a folder: what is in the tables and in the list, what happens after a kill and after a change, and what is refused."""

import csv
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from browser import browser
from forked import Forked, wait_until
from PIL import Image, ImageFilter

import pretask
from pretask import data, encoders
from pretask.cli import main
from pretask.collection import duplicates, store
from pretask.encoders.readout import Readout
from pretask.types import UserError
from pretask.workflows import curate as curating

ODD = "a, b\n猫.png"


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setattr(duplicates, "COPIED", 30)
    monkeypatch.setattr(duplicates, "PAIRS", 2000)
    monkeypatch.setattr(duplicates.calibrate, "__defaults__", (30, 2000))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Sixty drawings; copies, a blurred one, a flat one, an unreadable one, and one with an odd name."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    for i, pixels in enumerate(data.open("demo:test", size=64).image[:60].permute(0, 2, 3, 1).numpy()):
        path = folder / ("house" if i % 2 else "boat") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    Image.open(folder / "boat" / "00.png").save(folder / "boat" / "same.bmp")
    Image.open(folder / "house" / "01.png").save(folder / "house" / "again.jpg", quality=70)
    Image.open(folder / "boat" / "02.png").filter(ImageFilter.GaussianBlur(5)).save(
        folder / "boat" / "blurred.png"
    )
    Image.new("RGB", (64, 64), (90, 120, 60)).save(folder / "boat" / "flat.png")
    (folder / "house" / "bad.png").write_bytes(b"no picture")
    shutil.move(folder / "boat" / "04.png", folder / "boat" / ODD)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from pretask.encoders.saved import save_encoder

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    save_encoder(encoders.build("resnet_small:width=16", 3, 64), folder)
    return folder


@pytest.fixture(scope="module")
def curated(photos, weights, tmp_path_factory):
    test = tmp_path_factory.mktemp("held")
    Image.open(photos / "house" / "03.png").save(test / "leak.png")
    Image.fromarray(data.open("demo:test", size=64).image[100].permute(1, 2, 0).numpy()).save(
        test / "other.png"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates.calibrate, "__defaults__", (30, 2000))
        return pretask.curate(
            weights, photos, test, out=tmp_path_factory.mktemp("out") / "curated", progress=False
        )


def rows(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_tables_hold_what_was_planted(curated):
    groups: dict[str, set[str]] = {}
    for row in rows(curated.folder / "duplicates.csv"):
        groups.setdefault(row["group"], set()).add(row["path"])
    assert {"boat/00.png", "boat/same.bmp"} in groups.values()
    assert any({"house/01.png", "house/again.jpg"} <= group for group in groups.values())
    kept = {row["path"] for row in rows(curated.folder / "duplicates.csv") if row["keep"] == "1"}
    assert len(kept) == len(groups) and "house/again.jpg" not in kept
    unusable = {row["path"]: row["reason"] for row in rows(curated.folder / "unusable.csv")}
    assert unusable == {
        "house/bad.png": "unreadable: not an image",
        "boat/blurred.png": "blurred",
        "boat/flat.png": "flat",
    }
    [leak] = rows(curated.folder / "leaks.csv")
    assert (leak["path"], leak["test_path"], leak["similarity"]) == ("house/03.png", "leak.png", "1")
    clusters = rows(curated.folder / "clusters.csv")
    assert len(clusters) == 64 and sum(1 / int(row["size"]) for row in clusters) == pytest.approx(
        curated.summary["clusters"]["count"]
    )


def test_the_list_opens_what_is_kept(curated, photos):
    source = data.open(f"list:{curated.folder / 'keep.txt'}", size=64, progress=False)
    names = source.files(torch.arange(len(source)))
    assert names == list(curated.keep) and ODD in [os.path.basename(name) for name in names]
    left_out = {
        "boat/same.bmp",
        "house/again.jpg",
        "boat/blurred.png",
        "boat/flat.png",
        "house/03.png",
        "house/bad.png",
    }
    assert not left_out & {*names} and len(names) >= 64 - 5 - 3
    labeled = data.open_labeled(f"list:{curated.folder / 'keep.txt'}", size=64, progress=False)
    assert labeled.classes == ["boat", "house"]


def test_the_summary_says_what_to_expect(curated):
    content = json.loads((curated.folder / "summary.json").read_text())
    assert content["kept"] == len(curated.keep) and content["unusable"] == {
        "unreadable": 1,
        "blurred": 1,
        "flat": 1,
    }
    said = " ".join(curating.sentences(content))
    assert (
        "nothing is deleted" in said and "these would be missed" in said and "Unusable: 1 unreadable" in said
    )
    assert curated.duplicates.frame().columns.tolist() == ["group", "path", "similarity", "keep"]
    assert curated.clusters.arrays()["cluster"].dtype == np.int64


def test_a_second_call_reads_what_is_there_and_an_update_sees_changes(
    curated, photos, weights, tmp_path, monkeypatch
):
    moved = shutil.copytree(photos, tmp_path / "photos")
    out = tmp_path / "curated"
    first = pretask.curate(weights, moved, out=out, progress=False)
    seen, before = [], Readout.rows
    monkeypatch.setattr(Readout, "rows", lambda self, image: seen.append(len(image)) or before(self, image))
    copied = 30 * len(duplicates.COPIES) + 1  # and the unreadable image, which is tried again
    again = pretask.curate(weights, moved, out=out, progress=False)
    assert sum(seen) == copied and again.keep == first.keep
    Image.open(moved / "house" / "05.png").save(moved / "house" / "new copy.bmp")
    seen.clear()
    third = pretask.curate(weights, moved, out=out, progress=False)
    assert sum(seen) == copied + 1
    assert "house/new copy.bmp" in third.duplicates["path"]


def test_a_killed_command_goes_on(photos, weights, tmp_path, monkeypatch):
    out = tmp_path / "curated"
    monkeypatch.setattr(store, "BATCH", 4)
    going = Forked(tmp_path / "printed", "curate", weights, "--data", photos, "--out", out)
    state = out / "features" / store.STATE
    wait_until(lambda: state.is_file() and json.loads(state.read_text())["rows"] >= 4, going)
    going.send_signal(signal.SIGKILL)
    assert going.wait() == -signal.SIGKILL
    assert main.main(["curate", str(weights), "--data", str(photos), "--out", str(out)]) == 0
    assert len(rows(out / "clusters.csv")) == 64


def test_the_command_prints_the_summary_and_writes_pages(photos, weights, tmp_path, capsys):
    out = tmp_path / "curated"
    assert main.main(["curate", str(weights), "--data", str(photos), "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["images"] == 65
    assert f"--data list:{out / 'keep.txt'}" in " ".join(printed.err.split())
    with browser(tmp_path, 400, 900) as page:
        for name in ("curated.html", "explorer.html"):
            page.open(out / name)
            assert page.run("document.documentElement.scrollWidth") <= 400, name
            assert not page.errors and page.requests == [(out / name).as_uri()]
        page.open(out / "curated.html")
        titles = page.run("[...document.querySelectorAll('h2')].map(x => x.textContent)")
        assert titles[:2] == ["Duplicates", "Unusable"] and "Clusters" in titles


def test_images_that_are_no_files_are_curated_by_their_names(weights, tmp_path):
    found = pretask.curate(weights, "synthetic:40:64", out=tmp_path / "curated", progress=False)
    assert set(found.keep) <= {str(i) for i in range(40)}
    assert (tmp_path / "curated" / "keep.txt").read_text().splitlines() == list(found.keep)


def test_too_few_images_and_a_folder_of_something_else_are_refused(photos, weights, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(photos / "boat" / "00.png", few)
    with pytest.raises(UserError, match="has 1 readable images; curate compares 10 or more"):
        pretask.curate(weights, few, out=tmp_path / "out", progress=False)
    with pytest.raises(UserError, match="exists; choose another --out"):
        pretask.curate(weights, photos, out=photos, progress=False)
