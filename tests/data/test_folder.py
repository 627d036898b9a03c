"""Folders in the wild: nested, with hidden files, links, and files that are not images."""

import csv
import os
import re
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pretask import data as sources
from pretask.data import encoded, loader
from pretask.encoders import build
from pretask.encoders.readout import Readout
from pretask.reading import Reading
from pretask.types import UserError
from pretask.workflows import embed


def photo(path: Path, value: int, side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (value, value, value)).save(path)
    return path


def values(source: sources.Images) -> list[int]:
    return source.__getitems__(torch.arange(len(source))).image[:, 0, 0, 0].tolist()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """20 good photos of values 0 … 19, and six files that are not images."""
    for i in range(20):
        photo(tmp_path / f"{'ab'[i // 10]}/{i:02d}.png", i)
    whole = (tmp_path / "a/03.png").read_bytes()
    (tmp_path / "a/03x.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a/05x.png").write_bytes(b"")
    (tmp_path / "b/15x.jpg").write_text("a text")
    (tmp_path / "b/16x.png").symlink_to("gone.png")
    (tmp_path / "b/19x.png").mkdir()
    os.mkfifo(tmp_path / "b/17x.png")
    (tmp_path / "b/notes.txt").write_text("not looked at")
    return tmp_path


BAD = {
    "a/03x.png": "(?i)truncated|broken",
    "a/05x.png": "empty",
    "b/15x.jpg": "not an image",
    "b/16x.png": "broken link",
    "b/17x.png": "not a file",
}


def check_listed(bad: dict[str, str], names: set[str]) -> None:
    assert set(bad) == names
    for name, why in bad.items():
        assert re.search(BAD[name], why), (name, why)


def test_bad_files_are_dropped_and_listed(mixed: Path):
    source = sources.open(mixed, reading=Reading(max_bad=0.5))
    assert values(source) == list(range(20))
    check_listed(source.ledger.bad, set(BAD))
    assert source.files(torch.tensor([4, 19])) == ["a/04.png", "b/19.png"]


def test_labels_shrink_with_the_images(mixed: Path):
    source = sources.open_labeled(mixed, reading=Reading(max_bad=0.5))
    assert source.label.tolist() == [0] * 10 + [1] * 10
    assert source.classes == ["a", "b"]


def test_unreadable_image_is_replaced_by_the_next_one(mixed: Path):
    source = sources.open(mixed, reading=Reading(max_bad=0.5), cache_mb=0)
    assert len(source) == 23  # links and pipes are found at opening, the rest when decoded
    stands_in = [0, 1, 2, 3, 4, 4, 5, 6, 6, *range(7, 16), 16, *range(16, 20)]
    assert values(source) == stands_in
    check_listed(source.ledger.bad, set(BAD))


def test_bad_files_found_by_workers_are_recorded_and_batches_are_equal(mixed: Path):
    here, there = (sources.open(mixed, reading=Reading(max_bad=0.5), cache_mb=0) for _ in range(2))
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    made = torch.cat([batch.image for batch in loader.epoch(there, order, 8, workers=2)])
    assert torch.equal(made, here.__getitems__(order).image)
    check_listed(there.ledger.bad, set(BAD))


def test_replacement_has_the_label_of_the_replaced_image(tmp_path: Path):
    photo(tmp_path / "a/0.png", 10)
    (tmp_path / "a/1.png").write_bytes(b"")  # the next file has another class
    photo(tmp_path / "b/2.png", 20)
    source = sources.open_labeled(tmp_path, reading=Reading(max_bad=0.5), cache_mb=0, size=16)
    assert values(source.images) == [10, 10, 20]
    assert source.label.tolist() == [0, 0, 1]


@pytest.mark.parametrize("cache", [64, 0])
def test_too_many_bad_files_stop_the_run(mixed: Path, cache: int):
    with pytest.raises(UserError, match=r"5 of 2[35] images cannot be read .*--max-bad") as caught:
        values(sources.open(mixed, reading=Reading(max_bad=0.15), cache_mb=cache))
    assert "\n" not in str(caught.value)


def many(at: Path, n: int, bad: range) -> Path:
    content = photo(at / "0000.png", 1, 4).read_bytes()
    for i in range(n):
        (at / f"{i:04d}.png").write_bytes(b"" if i in bad else content)
    return at


def test_consecutive_bad_files_count_as_a_fraction_of_all(tmp_path: Path):
    source = sources.open(many(tmp_path, 1500, range(90)), cache_mb=0, size=16)
    assert (
        len(source.__getitems__(torch.arange(100))) == 100
    )  # 90 % of the images read are bad, but 6 % of all


def test_broken_links_count_as_a_fraction_of_all(tmp_path: Path):
    many(tmp_path, 1500, range(0))
    for i in range(100):
        (tmp_path / f"link{i}.png").symlink_to("gone.png")
    source = sources.open(tmp_path, cache_mb=0, size=16)
    assert len(source.__getitems__(torch.arange(100))) == 100


def test_mostly_bad_folder_fails_when_opened(tmp_path: Path):
    with pytest.raises(UserError, match="of 100 images cannot be read"):
        sources.open(many(tmp_path, 1500, range(0, 1500, 3)), cache_mb=0, size=16)


def test_insignificant_excess_in_the_sample_does_not_stop_a_run(tmp_path: Path):
    places = encoded.sample(1500)[
        :12
    ]  # 12 of the sample's 100, where 10 % are tolerated; 12 of 1500 in truth
    many(tmp_path, 1500, range(0))
    for i in places:
        (tmp_path / f"{i:04d}.png").write_bytes(b"")
    assert len(sources.open(tmp_path, cache_mb=0, size=16).ledger.bad) == 12


def test_folder_with_only_bad_files_fails_immediately(tmp_path: Path):
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_text("no")
    with pytest.raises(UserError, match="no image of a sample"):
        sources.open(tmp_path)
    with pytest.raises(UserError, match="30 of 30"):
        sources.open(tmp_path, size=16, reading=Reading(max_bad=1.0))


def test_worker_without_readable_images_gives_a_one_line_error(tmp_path: Path):
    photo(tmp_path / "0.png", 1)
    for i in range(1, 150):
        (tmp_path / f"{i:03d}.jpg").write_text("no")
    source = sources.open(tmp_path, cache_mb=0, size=16, reading=Reading(max_bad=1.0))
    with pytest.raises(UserError, match=r"100 images after it cannot be read$") as caught:
        list(loader.epoch(source, torch.arange(10, 20), 5, workers=1))
    assert "\n" not in str(caught.value)


def test_files_without_permission_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for i in range(20):
        photo(tmp_path / f"{i:02d}.png", i)
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:  # root can read everything
        if path.name == "07.png":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert sources.open(tmp_path).ledger.bad == {"07.png": "permission denied"}


def test_hidden_entries_are_ignored(tmp_path: Path):
    photo(tmp_path / "shown.png", 1)
    photo(tmp_path / ".hidden.png", 2)
    photo(tmp_path / ".thumbnails/small.png", 3)
    photo(tmp_path / "._shown.png", 4)
    assert values(sources.open(tmp_path)) == [1]


def test_links_are_followed_once_and_loops_end(tmp_path: Path):
    photo(tmp_path / "data/real/0.png", 1)
    (tmp_path / "data/real/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/again").symlink_to(tmp_path / "data/real")
    (tmp_path / "data/self.png").symlink_to("self.png")
    photo(tmp_path / "elsewhere/1.png", 2)
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    source = sources.open(tmp_path / "data", reading=Reading(max_bad=0.5))
    assert source.files(torch.arange(len(source))) == ["real/0.png", "linked/1.png"]
    assert set(source.ledger.bad) == {"self.png"}


ODD = [
    b"not utf-8 \xff.png",
    b"not utf-8 \xfe.png",
    b"line\nbreak.png",
    b"return\r.png",
    b"tab\t.png",
    b"'quotes\".png",
    b"[bold]brackets[/bold].png",
    b" spaces .png",
    b"comma, semicolon;.png",
    b"-rf.png",
    b"%s{0}$HOME`.png",
    b"x" * 251 + b".png",
    "été 写真 😀.png".encode(),
    b"in a folder.jpg/x.png",
]


@pytest.fixture
def odd(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Valid images with odd names in a/, damaged ones in b/, and all unusable files: path -> reason."""
    root = tmp_path / "photos"
    content = photo(root / "a/plain.png", 7).read_bytes()
    for i, name in enumerate(ODD):
        for folder, data in (("a", content), ("b", b"no image"[: 8 * (i % 2)])):
            path = os.path.join(os.fsencode(root), folder.encode(), name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
    why = ("empty", "not an image")
    bad = {os.fsdecode(b"b/" + name): why[i % 2] for i, name in enumerate(ODD)}
    (root / "a/again.png").symlink_to("plain.png")
    os.link(root / "a/plain.png", root / "a/hard.png")
    (root / "a/up").symlink_to(root)
    (root / "gone.png").symlink_to("nowhere")
    (root / "loop.png").symlink_to("loop.png")
    os.mkfifo(root / "pipe.jpg")
    os.mkfifo(root / "pipe")
    bad |= {
        "gone.png": "broken link",
        "loop.png": "broken link: it points to itself",
        "pipe.jpg": "not a file: a pipe",
    }
    return root, bad


@pytest.mark.parametrize("cache", [64, 0])
def test_every_file_of_an_odd_folder_is_used_or_listed(odd: tuple[Path, dict[str, str]], cache: int):
    root, bad = odd
    source = sources.open(root, size=16, reading=Reading(max_bad=1.0), cache_mb=cache)
    source.__getitems__(torch.arange(len(source)))
    ledger = source.ledger
    came_in = sum(len(files) for _, _, files in os.walk(root))
    assert ledger.bad == bad and ledger.other == {"without suffix": 1}
    assert (ledger.found, ledger.used, ledger.unread) == (came_in, len(ODD) + 3, 0)
    names = source.files(source.readable(torch.arange(len(source))).nonzero()[:, 0])
    sound = {os.fsdecode(b"a/" + name) for name in ODD} | {"a/plain.png", "a/again.png", "a/hard.png"}
    assert sorted(names) == sorted(sound)


def test_lists_and_tables_distinguish_odd_names(odd: tuple[Path, dict[str, str]], tmp_path: Path):
    root, bad = odd
    source = sources.open(root, size=16, reading=Reading(max_bad=1.0), cache_mb=0)
    made = embed.write(Readout(build("resnet_small:width=4", 3, 16).eval()), source, tmp_path / "x.parquet")
    assert made.skipped is not None
    with made.skipped.open(newline="", errors="surrogateescape") as file:
        assert {row["file"]: row["reason"] for row in csv.DictReader(file)} == bad
    names = pq.read_table(made.table)["file"].to_pylist()
    assert len(set(names)) == len(ODD) + 3
    assert {
        "a/not utf-8 \\xff.png",
        "a/not utf-8 \\xfe.png",
        "a/line\nbreak.png",
        "a/[bold]brackets[/bold].png",
    } <= {*names}


def test_file_that_vanishes_is_listed_and_no_longer_used(tmp_path: Path):
    for i in range(20):
        photo(tmp_path / f"{i:02}.png", i)
    source = sources.open(tmp_path, size=16, cache_mb=0)
    assert source.ledger.used == 20  # read at opening
    (tmp_path / "07.png").unlink()
    assert values(source)[7] == 8
    ledger = source.ledger
    assert ledger.bad == {"07.png": "no such file or directory"}
    assert (ledger.found, ledger.used, ledger.unread) == (20, 19, 0)


def test_folder_without_permission_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    photo(tmp_path / "open/0.png", 1)
    photo(tmp_path / "locked/1.png", 2)
    scandir = os.scandir

    def refuse(path):
        if os.fsencode(path).endswith(b"locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("pretask.data.folder.os.scandir", refuse)
    source = sources.open(tmp_path, reading=Reading(max_bad=0.5))
    assert values(source) == [1] and source.ledger.bad == {"locked": "permission denied"}
    assert source.ledger.found == 2


@pytest.mark.parametrize("name", ["with space.png", "été 写真.png", b"not utf-8 \xff.png"])
def test_any_file_name_works(tmp_path: Path, name: str | bytes):
    content = photo(tmp_path / "plain.png", 7).read_bytes()
    with open(os.path.join(os.fsencode(tmp_path), os.fsencode(name)), "wb") as file:
        file.write(content)
    source = sources.open(tmp_path, cache_mb=0, size=16)
    assert values(source) == [7, 7]
    assert os.fsdecode(name) in source.files(torch.arange(2))


def test_default_size_is_the_median_short_side_within_limits(tmp_path: Path):
    for i, side in enumerate([20, 40, 40, 100, 1000]):
        photo(tmp_path / "usual" / f"{i}.png", i, side)
        photo(tmp_path / "large" / f"{i}.png", i, 300)
        photo(tmp_path / "small" / f"{i}.png", i, 4)
    assert sources.open(tmp_path / "usual").size == 40
    assert sources.open(tmp_path / "large").size == encoded.LARGEST
    assert sources.open(tmp_path / "small").size == encoded.SMALLEST


def test_files_outside_class_folders_are_listed(tmp_path: Path):
    for i in range(20):
        photo(tmp_path / f"a/{i:02d}.png", i)
    photo(tmp_path / "loose.png", 99)
    source = sources.open_labeled(tmp_path)
    assert len(source) == 20 and not source.ledger.bad
    assert source.ledger.unwanted == {"loose.png": "outside the class folders"}


@pytest.mark.parametrize("labeled", [False, True])
def test_folder_without_images_or_classes_is_named(tmp_path: Path, labeled: bool):
    open_ = sources.open_labeled if labeled else sources.open
    with pytest.raises(UserError, match=rf"{tmp_path.name} contains no images"):
        open_(tmp_path)
    photo(tmp_path / "0.png", 1)
    if labeled:
        with pytest.raises(UserError, match="has no class folders"):
            open_(tmp_path)


def test_file_of_unknown_type_is_named(tmp_path: Path):
    (tmp_path / "data.xls").write_text("1,2")
    with pytest.raises(UserError, match=r"data\.xls has an unknown file type"):
        sources.open(tmp_path / "data.xls")


def test_opening_many_files_is_quick_and_keeps_few_bytes_per_image(tmp_path: Path):
    n = 5000
    content = photo(tmp_path / "0000.png", 1).read_bytes()
    for k in range(10):
        (tmp_path / f"folder{k}").mkdir()
        for i in range(n // 10):
            (tmp_path / f"folder{k}" / f"image{i:04d}.png").write_bytes(content)
    began = time.perf_counter()
    source = sources.open(tmp_path, cache_mb=0, size=16)
    assert time.perf_counter() - began < 1.0  # 100,000 in under 5 s is 0.25 s for these; the rest is slack
    assert isinstance(source, encoded.Encoded)
    paths = source.reader.items.paths  # type: ignore[attr-defined]
    assert paths.blob.nbytes + paths.ends.nbytes < 40 * n
    assert not [v for v in vars(source.reader.items).values() if isinstance(v, list | dict)]


def test_statistics_of_a_folder_of_real_photos(shared_data):
    source = sources.open(shared_data("imagenette224", "val"), size=32)
    assert len(source) == 600
    image = source.__getitems__(torch.arange(600)).image.float()
    assert 90 < image.mean() < 140  # photographs, neither black nor white
    assert np.unique(image.flatten(1).std(1).numpy()).size > 590  # 600 different images
