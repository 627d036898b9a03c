"""All kinds of sources times all kinds of trouble: each record is used, or listed with its reason.

Records are counted here with os.walk, tarfile, csv, json and pyarrow, not by the ledger; skipped records are compared by name with
the planted ones."""

import csv
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pretask import data
from pretask.data import store
from pretask.data.base import OpenOptions
from pretask.reading import Reading

EVERYTHING = Reading(max_bad=1.0)


def jpeg(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (i * 30 % 256, 3, 9)).save(file, "JPEG")
    return file.getvalue()


def noise() -> bytes:
    """A JPEG of some 6,000 bytes."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


SOUND = {f"{i:02}": jpeg(i) for i in range(6)}
"""stem -> content"""
BROKEN = {
    "empty": (b"", "empty"),
    "cut off": (noise()[:3000], "image file is truncated"),
    "of the web": (b"<html>404 not found</html>", "not an image"),
    "of zeros": (bytes(2000), "not an image"),
}
"""kind of trouble -> content, and the beginning of its reason"""
ODD = [
    "a b",
    " a",
    "a [1]",
    "[abc]",
    "*",
    "a?b",
    "{0,1}",
    "{0..9}",
    "%20",
    "#1",
    "a:b",
    "-r",
    "~",
    "$HOME",
    "it's",
    'say "hi"',
    "a,b;c\td",
    "two\nlines",
    "a\rb",
    "[bold]",
    ":smile:",
    "\\n",
    "é",
    "e\u0301",
    "猫",
    "\u202eabc",
    "😀",
    "x" * 240,
]
"""stems of valid images"""
LATIN = os.fsdecode(b"caf\xe9 \xff")
"""not UTF-8"""


@dataclass(frozen=True)
class Made:
    """A source, and what must happen to its records."""

    spec: str
    found: int
    used: Sequence[str]
    bad: Mapping[str, str] = field(default_factory=dict)


# ---- kinds of sources, with records named `stem`.jpg


def of_folder(at: Path, records: Mapping[str, bytes]) -> tuple[str, int, Callable[[str], str]]:
    root = at / "photos"
    root.mkdir()
    for stem, content in records.items():
        (root / f"{stem}.jpg").write_bytes(content)
    return str(root), sum(len(files) for _, _, files in os.walk(root)), "{}.jpg".format


def of_tar(at: Path, records: Mapping[str, bytes]) -> tuple[str, int, Callable[[str], str]]:
    path = at / "shard.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for stem, content in records.items():
            member = tarfile.TarInfo(f"{stem}.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with tarfile.open(path) as tar:
        return str(path), len(tar.getmembers()), "shard.tar/{}.jpg".format


def of_csv(at: Path, records: Mapping[str, bytes]) -> tuple[str, int, Callable[[str], str]]:
    of_folder(at, records)
    path = at / "photos" / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerows([("image", "text"), *((f"{stem}.jpg", 'seen, "in" it') for stem in records)])
    with path.open(newline="", encoding="utf-8") as file:
        return str(path), sum(1 for _ in csv.reader(file)) - 1, "{}.jpg".format


def of_jsonl(at: Path, records: Mapping[str, bytes]) -> tuple[str, int, Callable[[str], str]]:
    of_folder(at, records)
    path = at / "photos" / "rows.jsonl"
    path.write_text("".join(json.dumps({"image": f"{stem}.jpg", "text": "seen"}) + "\n" for stem in records))
    return str(path), len(path.read_text().splitlines()), "{}.jpg".format


def of_parquet(at: Path, records: Mapping[str, bytes]) -> tuple[str, int, Callable[[str], str]]:
    path, stems = at / "rows.parquet", list(records)
    pq.write_table(pa.table({"image": pa.array(records.values(), pa.binary()), "name": stems}), path)
    return str(path), pq.read_metadata(path).num_rows, lambda stem: f"row {stems.index(stem)}"


def of_npz(at: Path, records: Mapping[str, bytes]) -> tuple[str, int, Callable[[str], str]]:
    path, stems = at / "packed.npz", list(records)
    ends = np.cumsum([0, *map(len, records.values())])
    np.savez(path, jpeg=np.frombuffer(b"".join(records.values()), np.uint8), offsets=ends)
    return str(path), len(np.load(path)["offsets"]) - 1, lambda stem: str(stems.index(stem))


KINDS = {
    "folder": of_folder,
    "tar": of_tar,
    "csv": of_csv,
    "jsonl": of_jsonl,
    "parquet": of_parquet,
    "npz": of_npz,
}
NAMED = ("folder", "tar", "csv", "jsonl")
"""kinds whose records have names"""


def made(kind: str, at: Path, records: Mapping[str, bytes], bad: Mapping[str, str] = {}) -> Made:
    spec, found, name = KINDS[kind](at, records)
    used = [name(stem) for stem in records if stem not in bad]
    return Made(spec, found, used, {name(stem): why for stem, why in bad.items()})


def hold(source: Made, out: Path, cache: int = 0) -> None:
    """Every record of a source is used or listed, when it is read and when it is prepared as a store."""
    options = OpenOptions(16, 3, EVERYTHING, progress=False, cache_mb=cache)
    images = data.open_with_any_labels(source.spec, options).images
    images.__getitems__(torch.arange(len(images)))
    store.prepare(images, out, progress=False)
    kept = data.open(out)
    for ledger in (images.ledger, kept.ledger):
        other = ledger.other.total()
        assert ledger.found - other == source.found == ledger.used + len(ledger.bad), ledger.summary()
        assert ledger.unread == 0 and set(ledger.bad) == set(source.bad), ledger.bad
        assert all(ledger.bad[name].startswith(why) for name, why in source.bad.items()), ledger.bad
    assert sorted(kept.files(torch.arange(len(kept)))) == sorted(source.used)
    if source.bad:
        with (out / "bad.csv").open(newline="", errors="surrogateescape") as file:
            assert {row["file"] for row in csv.DictReader(file)} == set(source.bad)


# ---- all kinds of trouble


@pytest.mark.parametrize("trouble", BROKEN)
@pytest.mark.parametrize("kind", KINDS)
def test_unreadable_image_is_listed(kind, trouble, tmp_path):
    content, why = BROKEN[trouble]
    for at, cache in (("first", 0), ("last", 64)):
        (tmp_path / at).mkdir()
        records = {"bad": content} | SOUND if at == "first" else SOUND | {"bad": content}
        hold(made(kind, tmp_path / at, records, {"bad": why}), tmp_path / at / "store", cache)


@pytest.mark.parametrize("kind", KINDS)
def test_one_good_image_among_broken_ones_is_used(kind, tmp_path):
    records = {f"bad {i}": content for i, (content, _) in enumerate(BROKEN.values())}
    bad = {f"bad {i}": why for i, (_, why) in enumerate(BROKEN.values())}
    hold(made(kind, tmp_path, records | {"sound": jpeg(3)}, bad), tmp_path / "store")


@pytest.mark.parametrize("kind", NAMED)
def test_odd_file_names_work(kind, tmp_path):
    odd = [*ODD, LATIN] if kind in ("folder", "tar") else ODD
    if kind == "tar":  # keys end at the first dot
        odd = [stem for stem in odd if "." not in stem]
    hold(made(kind, tmp_path, {stem: jpeg(i) for i, stem in enumerate(odd)}), tmp_path / "store")


@pytest.mark.parametrize("kind", NAMED)
@settings(
    derandomize=True,
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    stems=st.sets(
        st.text(st.characters(exclude_characters="./\0", exclude_categories=["Cs"]), min_size=1, max_size=40),
        min_size=1,
        max_size=8,
    )
)
def test_any_names_work(kind, tmp_path_factory, stems):
    at = tmp_path_factory.mktemp("any")
    hold(made(kind, at, {stem: jpeg(i) for i, stem in enumerate(sorted(stems))}), at / "store")


# ---- single cases


def test_broken_and_circular_links_are_listed(tmp_path):
    spec, _, name = of_folder(tmp_path, SOUND)
    root = Path(spec)
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "self.jpg").symlink_to("self.jpg")
    (root / "up").symlink_to(root)
    bad = {"gone.jpg": "broken link", "self.jpg": "broken link: it points to itself"}
    hold(Made(spec, len(SOUND) + 2, [name(stem) for stem in SOUND], bad), tmp_path / "store")


def test_members_of_the_same_name_count_as_two(tmp_path):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for stem, content in [*SOUND.items(), ("00", jpeg(9))]:
            member = tarfile.TarInfo(f"{stem}.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    used = [f"shard.tar/{stem}.jpg" for stem in SOUND]
    options = OpenOptions(16, 3, EVERYTHING, progress=False, cache_mb=0)
    images = data.open_with_any_labels(str(path), options).images
    images.__getitems__(torch.arange(len(images)))
    ledger = images.ledger
    assert (ledger.found, ledger.used, len(ledger.bad)) == (7, 6, 1), ledger.summary()
    assert sorted(images.files(torch.arange(len(images)))) == used


def test_truncated_shard_is_used_up_to_the_cut(tmp_path):
    spec, _, name = of_tar(tmp_path, SOUND)
    path = Path(spec)
    with tarfile.open(path) as tar:
        third = tar.getmembers()[3].offset
    path.write_bytes(path.read_bytes()[: third + 700])
    images = data.open(spec, size=16, reading=EVERYTHING)
    assert sorted(images.files(torch.arange(len(images)))) == [name(stem) for stem in list(SOUND)[:3]]
    assert len(images.ledger.bad) == 1 and "shard.tar" in next(iter(images.ledger.bad))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_without_an_image_path_are_listed(kind, tmp_path):
    spec, found, name = KINDS[kind](tmp_path, SOUND)
    wrong = ["", "gone.jpg", "x" * 5000, "https://example.org/a.jpg", "."]
    path = Path(spec)
    with path.open("a", newline="") as file:
        for image in wrong:
            if kind == "csv":
                csv.writer(file).writerow((image, "seen"))
            else:
                file.write(json.dumps({"image": image, "text": "seen"}) + "\n")
    first = found + (2 if kind == "csv" else 1)
    bad = {f"line {first + i}": "" for i in range(len(wrong))}
    used = [name(stem) for stem in SOUND]
    hold(Made(spec, found + len(wrong), used, bad), tmp_path / "store")


def test_invalid_lines_are_listed(tmp_path):
    spec, found, name = of_jsonl(tmp_path, SOUND)
    wrong = [
        "{",
        "[1, 2]",
        '"text"',
        "null",
        "\0",
        '{"text": "no image"}',
        '{"image": "00.jpg"}',
        '{"image": 3, "text": "x"}',
    ]
    with Path(spec).open("a") as file:
        file.write("".join(f"{line}\n" for line in wrong))
    bad = {f"line {found + 1 + i}": "" for i in range(len(wrong))}
    hold(Made(spec, found + len(wrong), [name(stem) for stem in SOUND], bad), tmp_path / "store")


def test_empty_cells_are_listed(tmp_path):
    path = tmp_path / "rows.parquet"
    cells = [*SOUND.values(), None, b""]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), path)
    used = [f"row {i}" for i in range(len(SOUND))]
    hold(Made(str(path), len(cells), used, {"row 6": "empty", "row 7": "empty"}), tmp_path / "store")
