"""Which images to label first: the random part, what is excluded, and the page on which they are labeled."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import browser
from PIL import Image

import pretask
from pretask import data, encoders
from pretask.cli import main
from pretask.types import UserError
from pretask.viz import labeling
from pretask.workflows.select import RANDOM

ODD = 'a, b\n猫 "x".png'


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    source = data.open_labeled("demo:test", size=32)
    for i, pixels in enumerate(source.images.image[:80].permute(0, 2, 3, 1).numpy()):
        name = ODD if i == 3 else f"{i:02} {source.classes[source.label[i]]}.png"
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from pretask.encoders.saved import save_encoder

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    save_encoder(encoders.build("resnet_small:width=8", 3, 32), folder)
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_three_in_ten_are_drawn_at_random_and_mixed_evenly(photos, weights, tmp_path):
    found = pretask.select(weights, photos, 40, out=tmp_path / "selected.csv", progress=False)
    rows = read(tmp_path / "selected.csv")
    assert [row["rank"] for row in rows] == [str(k) for k in range(1, 41)]
    assert len({row["path"] for row in rows}) == 40 and {row["path"] for row in rows} <= {
        p.name for p in photos.iterdir()
    }
    reasons = [row["reason"] for row in rows]
    assert reasons.count(RANDOM) == 12 and reasons.count("typical") == 28
    assert all(2 <= reasons[: 10 * k].count(RANDOM) - 3 * (k - 1) <= 4 for k in range(1, 5))
    assert found.frame()["path"].tolist() == [row["path"] for row in rows]


def test_the_random_part_is_the_same_whatever_the_strategy_and_uniform(photos, weights, tmp_path):
    drawn, counts = [], np.zeros(80)
    for strategy in ("typical", "k-center"):
        made = pretask.select(
            weights, photos, 20, out=tmp_path / f"{strategy}.csv", strategy=strategy, progress=False
        )
        drawn.append(
            [p for p, r in zip(made.table["path"], made.table["reason"], strict=True) if r == RANDOM]
        )
    assert drawn[0] == drawn[1]
    names = sorted(p.name for p in photos.iterdir())
    for seed in range(60):
        made = pretask.select(
            weights, photos, 8, out=tmp_path / "typical.csv", random=1.0, seed=seed, progress=False
        )
        counts[[names.index(name) for name in made.table["path"]]] += 1
    assert counts.sum() == 480 and counts.max() < 18  # 6 on average


def test_labeled_images_are_not_chosen_again_and_margins_decide(photos, weights, tmp_path):
    names = sorted(p.name for p in photos.iterdir() if p.name != ODD)
    with (tmp_path / "few.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((name, name.split()[1]) for name in names[:30])])
    found = pretask.select(
        weights, photos, 20, tmp_path / "few.csv", out=tmp_path / "more.csv", progress=False
    )
    assert not {*found.table["path"]} & {*names[:30]} and found.labeled == 30
    assert {*found.table["reason"]} == {RANDOM, "margin"}
    copy = tmp_path / "elsewhere" / "x"  # labeled images of another folder, with the same pixels
    copy.mkdir(parents=True)
    for k, name in enumerate(names[:6]):
        (tmp_path / "elsewhere" / "xy"[k % 2]).mkdir(exist_ok=True)
        Image.open(photos / name).save(tmp_path / "elsewhere" / "xy"[k % 2] / f"{k}.bmp")
    found = pretask.select(
        weights, photos, 70, tmp_path / "elsewhere", out=tmp_path / "all.csv", progress=False
    )
    assert not {*found.table["path"]} & {*names[:6]} and found.labeled == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", "81"], "--count 81 is more than the 80 readable images without a label"),
        (["--count", "8", "--strategy", "margin"], "--strategy margin needs images with a label"),
        (["--count", "8", "--out", "x.txt"], "--out x.txt should end in .csv"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(photos, weights, tmp_path, words, said, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(["select", str(weights), "--data", str(photos), *words]) == 2
    assert said in capsys.readouterr().err


# ---- the page


@pytest.fixture(scope="module")
def selected(photos, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("selected")
    assert (
        main.main(
            [
                "select",
                str(weights),
                "--data",
                str(photos),
                "--count",
                "12",
                "--out",
                str(out / "selected.csv"),
            ]
        )
        == 0
    )
    return out / "selected.csv"


def made(selected: Path, photos: Path, out: Path, *flags: str) -> Path:
    assert (
        main.main(["label", str(selected), "--data", str(photos), "--out", str(out / "label.html"), *flags])
        == 0
    )
    return out / "label.html"


def downloaded(page, out: Path) -> list[dict[str, str]]:
    """What the page saves."""
    return list(csv.DictReader(page.run("csv()").splitlines(keepends=True)))


def test_images_are_labeled_by_keyboard_and_the_answers_become_labels(selected, photos, tmp_path):
    page_file = made(selected, photos, tmp_path, "--classes", "boat,car,cup")
    with browser(tmp_path) as page:
        page.open(page_file)
        assert not page.errors and page.requests == [page_file.as_uri()]
        page.press("1", "2", "3", "3", "Backspace", "1")  # undone once
        page.press("ArrowRight", "?")  # skipped, unsure
        page.press("/", *"tree", "Enter")  # a new class by its name
        page.press("4")  # its key
        page.press("ArrowLeft", "ArrowLeft", "ArrowLeft")
        page.screenshot(tmp_path / "label.png")
        rows = downloaded(page, tmp_path)
    expected = ["boat", "car", "cup", "boat", "", "", "tree", "tree"]
    assert [row["label"] for row in rows] == expected
    assert [row["state"] for row in rows] == ["labeled"] * 4 + ["skipped", "unsure"] + ["labeled"] * 2
    chosen = read(selected)
    assert [(row["path"], row["reason"], row["rank"]) for row in rows] == [
        (row["path"], row["reason"], row["rank"]) for row in chosen[:8]
    ]


def test_answers_survive_closing_the_page_and_are_saved_and_loaded(selected, photos, tmp_path):
    page_file = made(selected, photos, tmp_path, "--classes", "boat,car")
    with browser(tmp_path) as page:
        page.open(page_file)
        page.press("1", "2")
        page.run("document.getElementById('save').click()")
        page.open(page_file)
        assert page.run("document.body.dataset.answered") == "2"
        page.press("1")
        saved = next(iter(wait_for(tmp_path / "downloads")))
        page.run("localStorage.clear()")
        page.run("keep = () => {}")
        page.open(page_file)
        page.run("localStorage.clear(); state.answers = {}; show()")
        page.upload("#load", saved)
        assert page.run("new Promise(r => setTimeout(() => r(document.body.dataset.answered), 300))") == "2"
        assert [row["label"] for row in downloaded(page, tmp_path)] == ["boat", "car"]
    labels = data.open_labeled(f"labels:{saved}@{photos}", size=32, progress=False)
    assert labels.classes == ["boat", "car"] and len(labels) == 2


def wait_for(folder: Path) -> list[Path]:
    import time

    for _ in range(100):
        found = list(folder.glob("*.csv")) if folder.is_dir() else []
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("nothing was downloaded")


def test_several_labels_an_image(selected, photos, tmp_path):
    page_file = made(selected, photos, tmp_path, "--classes", "boat,car", "--multi")
    with browser(tmp_path) as page:
        page.open(page_file)
        page.press("1", "2", "Enter", "2", "2", "1", "Enter")
        assert [row["label"] for row in downloaded(page, tmp_path)] == ["boat|car", "boat"]


def test_without_classes_the_page_asks_for_names_of_groups(selected, photos, tmp_path):
    page_file = made(selected, photos, tmp_path)
    with browser(tmp_path, 400, 800) as page:
        page.open(page_file)
        assert page.run("document.documentElement.scrollWidth") <= 400
        assert page.run("document.querySelectorAll('#groups img').length") == 12
        page.run("document.querySelector('#groups input').focus()")
        page.press(*"sailing boat")
        page.run("document.getElementById('begin').click()")
        first = int(read(selected)[0]["cluster"])
        page.press("Enter")  # takes the name of the group, if it has one
        labels = [row["label"] for row in downloaded(page, tmp_path)]
        assert labels == (["sailing boat"] if first == 0 else [])
        assert page.run("document.documentElement.scrollWidth") <= 400


def test_many_images_become_several_pages(selected, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(labeling, "MOST_BYTES", 6000)
    made(selected, photos, tmp_path, "--classes", "a,b")
    pages = sorted(tmp_path.glob("label*.html"))
    assert len(pages) > 2 and pages[0].name == "label-2.html"
    counts = [
        len(json.loads(page.read_text().split("const items = ")[1].split(", key = ")[0])) for page in pages
    ]
    assert sum(counts) == 12


@pytest.mark.parametrize(
    ("flags", "content", "said"),
    [
        (["--classes", "a,a"], None, "--classes has 'a' twice"),
        (["--out", "x.pdf"], None, "should end in .html"),
        ([], "name\nx\n", "has no column path"),
        ([], "path\nnowhere.png\n", r"none of 1 images .* is in .* \(nowhere.png\)"),
    ],
)
def test_a_list_that_cannot_be_labeled_is_one_line(selected, photos, tmp_path, flags, content, said, capsys):
    import re

    images = selected
    if content:
        images = tmp_path / "list.csv"
        images.write_text(content)
    words = ["label", str(images), "--data", str(photos), "--out", str(tmp_path / "label.html"), *flags]
    assert main.main(words) == 2
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))


def test_images_of_the_list_that_are_gone_are_counted(selected, photos, tmp_path, capsys):
    rows = read(selected)
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path",), ("gone.png",), (rows[0]["path"],)])
    made(tmp_path / "list.csv", photos, tmp_path, "--classes", "a,b")
    assert "1 images of" in capsys.readouterr().err


def test_python_returns_the_pages(selected, photos, tmp_path):
    found = pretask.label(selected, photos, classes=["a", "b"], out=tmp_path / "label.html", progress=False)
    assert found.pages == [tmp_path / "label.html"] and found.images == 12 and not found.missing
    with pytest.raises(UserError, match="should end in"):
        pretask.label(selected, photos, out=tmp_path / "label.txt")
