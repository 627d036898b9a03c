"""Folders as people have them: nested, with hidden files, links, and images that are none."""

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretask import data as sources
from pretask.data import encoded, loader
from pretask.types import UserError


def photo(path: Path, value: int, side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (value, value, value)).save(path)
    return path


def values(source: sources.Images) -> list[int]:
    return source.__getitems__(torch.arange(len(source))).image[:, 0, 0, 0].tolist()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """20 good photos of values 0 … 19, and six files that are none."""
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
    source = sources.open(mixed, max_bad=0.5)
    assert values(source) == list(range(20))
    check_listed(source.ledger.bad, set(BAD))
    assert source.files(torch.tensor([4, 19])) == ["a/04.png", "b/19.png"]


def test_labels_shrink_with_the_images(mixed: Path):
    source = sources.open_labelled(mixed, max_bad=0.5)
    assert source.label.tolist() == [0] * 10 + [1] * 10
    assert source.classes == ["a", "b"]


def test_where_images_are_decoded_later_the_next_one_stands_in(mixed: Path):
    source = sources.open(mixed, max_bad=0.5, cache_mb=0)
    assert len(source) == 23  # links and pipes are seen at opening, the rest when it is decoded
    stands_in = [0, 1, 2, 3, 4, 4, 5, 6, 6, *range(7, 16), 16, *range(16, 20)]
    assert values(source) == stands_in
    check_listed(source.ledger.bad, set(BAD))


def test_what_workers_meet_is_reported_and_the_batches_are_the_same(mixed: Path):
    here, there = (sources.open(mixed, max_bad=0.5, cache_mb=0) for _ in range(2))
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    made = torch.cat([batch.image for batch in loader.epoch(there, order, 8, workers=2)])
    assert torch.equal(made, here.__getitems__(order).image)
    check_listed(there.ledger.bad, set(BAD))


def test_a_stand_in_has_the_label_of_the_image_it_stands_for(tmp_path: Path):
    photo(tmp_path / "a/0.png", 10)
    (tmp_path / "a/1.png").write_bytes(b"")  # the next file is of another class
    photo(tmp_path / "b/2.png", 20)
    source = sources.open_labelled(tmp_path, max_bad=0.5, cache_mb=0, size=16)
    assert values(source.images) == [10, 10, 20]
    assert source.label.tolist() == [0, 0, 1]


@pytest.mark.parametrize("cache", [64, 0])
def test_too_many_bad_files_stop_the_run(mixed: Path, cache: int):
    with pytest.raises(UserError, match=r"5 of 2[35] images cannot be read .*--max-bad") as caught:
        values(sources.open(mixed, max_bad=0.15, cache_mb=cache))
    assert "\n" not in str(caught.value)


def many(at: Path, n: int, bad: range) -> Path:
    content = photo(at / "0000.png", 1, 4).read_bytes()
    for i in range(n):
        (at / f"{i:04d}.png").write_bytes(b"" if i in bad else content)
    return at


def test_many_bad_files_in_a_row_are_judged_by_their_share_of_all(tmp_path: Path):
    source = sources.open(many(tmp_path, 1500, range(90)), cache_mb=0, size=16)
    assert len(source.__getitems__(torch.arange(100))) == 100  # 90 % of those seen are bad, but 6 % of all


def test_links_that_lead_nowhere_are_judged_by_their_share_of_all(tmp_path: Path):
    many(tmp_path, 1500, range(0))
    for i in range(100):
        (tmp_path / f"link{i}.png").symlink_to("gone.png")
    source = sources.open(tmp_path, cache_mb=0, size=16)
    assert len(source.__getitems__(torch.arange(100))) == 100


def test_a_folder_that_is_mostly_bad_is_named_when_it_is_opened(tmp_path: Path):
    with pytest.raises(UserError, match="of 100 images cannot be read"):
        sources.open(many(tmp_path, 1500, range(0, 1500, 3)), cache_mb=0, size=16)


def test_a_sample_that_chance_explains_does_not_stop_a_run(tmp_path: Path):
    places = encoded.sample(1500)[
        :12
    ]  # 12 of the sample's 100, where 10 % are tolerated; 12 of 1500 in truth
    many(tmp_path, 1500, range(0))
    for i in places:
        (tmp_path / f"{i:04d}.png").write_bytes(b"")
    assert len(sources.open(tmp_path, cache_mb=0, size=16).ledger.bad) == 12


def test_only_bad_files_are_an_error_at_once(tmp_path: Path):
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_text("no")
    with pytest.raises(UserError, match="none of the images"):
        sources.open(tmp_path)
    with pytest.raises(UserError, match="30 of 30"):
        sources.open(tmp_path, size=16, max_bad=1.0)


def test_a_worker_that_finds_nothing_readable_says_so_in_one_line(tmp_path: Path):
    photo(tmp_path / "0.png", 1)
    for i in range(1, 150):
        (tmp_path / f"{i:03d}.jpg").write_text("no")
    source = sources.open(tmp_path, cache_mb=0, size=16, max_bad=1.0)
    with pytest.raises(UserError, match=r"100 images after it cannot be read$") as caught:
        list(loader.epoch(source, torch.arange(10, 20), 5, workers=1))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission_are_skipped(tmp_path: Path):
    for i in range(20):
        photo(tmp_path / f"{i:02d}.png", i)
    (tmp_path / "07.png").chmod(0)
    assert sources.open(tmp_path).ledger.bad == {"07.png": "permission denied"}


def test_hidden_entries_are_passed_over(tmp_path: Path):
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
    source = sources.open(tmp_path / "data", max_bad=0.5)
    assert source.files(torch.arange(len(source))) == ["real/0.png", "linked/1.png"]
    assert set(source.ledger.bad) == {"self.png"}


@pytest.mark.parametrize("name", ["with space.png", "été 写真.png", b"not utf-8 \xff.png"])
def test_any_file_name_will_do(tmp_path: Path, name: str | bytes):
    content = photo(tmp_path / "plain.png", 7).read_bytes()
    with open(os.path.join(os.fsencode(tmp_path), os.fsencode(name)), "wb") as file:
        file.write(content)
    source = sources.open(tmp_path, cache_mb=0, size=16)
    assert values(source) == [7, 7]
    assert os.fsdecode(name) in source.files(torch.arange(2))


def test_the_canvas_is_the_median_short_side_within_limits(tmp_path: Path):
    for i, side in enumerate([20, 40, 40, 100, 1000]):
        photo(tmp_path / "usual" / f"{i}.png", i, side)
        photo(tmp_path / "large" / f"{i}.png", i, 300)
        photo(tmp_path / "small" / f"{i}.png", i, 4)
    assert sources.open(tmp_path / "usual").size == 40
    assert sources.open(tmp_path / "large").size == encoded.LARGEST
    assert sources.open(tmp_path / "small").size == encoded.SMALLEST


def test_a_split_is_a_folder_inside(tmp_path: Path):
    photo(tmp_path / "train/a/0.png", 1)
    photo(tmp_path / "val/a/0.png", 2)
    assert values(sources.open(tmp_path, split="val")) == [2]
    with pytest.raises(UserError, match=r"no folder 'test'.*train.*val"):
        sources.open(tmp_path, split="test")


def test_files_outside_class_folders_are_listed(tmp_path: Path):
    for i in range(20):
        photo(tmp_path / f"a/{i:02d}.png", i)
    photo(tmp_path / "loose.png", 99)
    source = sources.open_labelled(tmp_path)
    assert len(source) == 20 and not source.ledger.bad
    assert source.ledger.unwanted == {"loose.png": "lies outside the class folders"}


@pytest.mark.parametrize("labelled", [False, True])
def test_a_folder_without_what_is_needed_is_named(tmp_path: Path, labelled: bool):
    open_ = sources.open_labelled if labelled else sources.open
    with pytest.raises(UserError, match=rf"{tmp_path.name} holds no images"):
        open_(tmp_path)
    photo(tmp_path / "0.png", 1)
    if labelled:
        with pytest.raises(UserError, match="has no class folders"):
            open_(tmp_path)


def test_a_file_of_another_kind_is_named(tmp_path: Path):
    (tmp_path / "data.xls").write_text("1,2")
    with pytest.raises(UserError, match=r"data\.xls is a file of unknown kind"):
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


def test_numbers_of_a_folder_of_real_photos(shared_data):
    source = sources.open(shared_data("imagenette224", "val"), size=32)
    assert len(source) == 600
    image = source.__getitems__(torch.arange(600)).image.float()
    assert 90 < image.mean() < 140  # photographs, neither black nor white
    assert np.unique(image.flatten(1).std(1).numpy()).size > 590  # 600 different ones
