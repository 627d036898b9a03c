"""Tar shards: choice of the image of a record, truncated and damaged shards, patterns; and streams."""

import bz2
import gzip
import json
import lzma
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from records import cells, names_in, png, reds, table, tar

from pretask import data as sources
from pretask.cli import main
from pretask.data import OpenOptions, loader, stream
from pretask.reading import Reading
from pretask.types import UserError

datasets = pytest.importorskip("datasets")

ANY = Reading(max_bad=1.0)


def column(name: str) -> Reading:
    return Reading(column=name)


def settled(source) -> tuple[int, int, int, int]:
    """Found, used, skipped, other."""
    ledger = source.ledger
    assert ledger.unread == 0
    return ledger.found, ledger.used, len(ledger.bad) + len(ledger.unwanted), ledger.other.total()


def passed(source):
    """A stream after one pass."""
    for _ in source.whole(16):
        pass
    return source


def seen(spec: str, labels: str = "any"):
    """All images of a source, or None if opening it fails with a one-line error."""
    try:
        source = sources.open_spec(spec, OpenOptions(size=16, reading=ANY, labels=labels)).images
        return passed(source) if isinstance(source, stream.Stream) else source
    except UserError as why:
        message = str(why)
    assert "\n" not in message
    return None


# ---- choice of the image


def test_members_of_one_key_are_one_record(tmp_path: Path):
    members = {
        "a.b/0.png": png(3),
        "a.b/0.cls": b"10\n",
        "b/0.png": png(4),
        "b/0.json": b"{}",
        "b/0.cls": b"9",
    }
    source = sources.open_labeled(tar(tmp_path / "s.tar", members))
    assert reds(source.images) == [3, 4]
    assert (source.label.tolist(), source.classes) == ([1, 0], ["9", "10"])
    assert source.files(torch.arange(2)) == ["s.tar/a.b/0.png", "s.tar/b/0.png"]
    assert source.ledger.other == Counter({".cls": 2, ".json": 1})


@pytest.mark.parametrize("first", [True, False])
def test_image_is_the_member_with_a_plain_suffix(first: bool, tmp_path: Path):
    pairs = [((f"{i}.JPG", png(i)), (f"{i}.seg.png", png(100 + i))) for i in range(5)]
    members = [member for pair in pairs for member in (pair if first else pair[::-1])]
    path = tar(tmp_path / "s.tar", members)
    for spec, see in ((str(path), lambda x: x), (f"hf-stream:{path}", passed)):
        source = see(sources.open(spec, size=16))
        assert settled(source) == (len(names_in(path)), 5, 0, 5)
        assert source.ledger.other == Counter({".seg.png": 5})
    assert reds(sources.open(path)) == list(range(5))


STEREO = {f"{i}.{side}.png": png(10 * (side == "right") + i) for i in range(4) for side in ("left", "right")}


def test_several_images_without_a_plain_suffix_need_a_choice(tmp_path: Path):
    path = tar(tmp_path / "s.tar", STEREO)
    for spec in (str(path), f"hf-stream:{path}"):
        with pytest.raises(UserError, match=r"left\.png, right\.png, .*--column left\.png"):
            sources.open(spec)
        with pytest.raises(UserError, match=r"no image up\.png; it has left\.png, right\.png"):
            sources.open(spec, reading=column("up.png"))
    for name in ("right.png", ".Right.PNG"):
        source = sources.open(path, reading=column(name))
        assert reds(source) == [10, 11, 12, 13] and source.ledger.other == Counter({".left.png": 4})


def test_one_kind_of_image_needs_no_choice(tmp_path: Path):
    assert reds(sources.open(tar(tmp_path / "s.tar", {f"{i}.rgb.png": png(i) for i in range(3)}))) == [
        0,
        1,
        2,
    ]


def test_preferred_of_two_formats_is_used_and_the_other_counted(tmp_path: Path):
    source = sources.open(tar(tmp_path / "s.tar", {"0.png": png(1), "0.jpg": png(2), "1.png": png(3)}))
    assert reds(source) == [2, 3] and source.ledger.other == Counter({".png": 1})


def test_record_without_the_image_is_listed(tmp_path: Path):
    path = tar(tmp_path / "s.tar", {"0.png": png(1), "0.seg.png": png(2), "1.seg.png": png(3), "2.txt": b"x"})
    source = sources.open(path, reading=ANY)
    assert source.ledger.bad == {"s.tar/1.seg.png": "its record has no image with a plain suffix"}
    assert settled(source) == (4, 1, 1, 2)
    source = sources.open(path, reading=Reading(max_bad=1.0, column="png"))
    assert source.ledger.bad == {"s.tar/1.seg.png": "its record has no image png"}


def test_second_image_of_a_key_is_listed_and_the_first_used(tmp_path: Path):
    members = [("0.png", png(1)), ("0.png", png(2)), ("0.PNG", png(3)), ("1.png", b"no"), ("1.png", png(4))]
    path = tar(tmp_path / "s.tar", members)
    for spec, see in ((str(path), lambda x: x), (f"hf-stream:{path}", passed)):
        for cache in (0, 64):
            source = see(sources.open(spec, size=16, reading=ANY, cache_mb=cache))
            assert settled(source) == (5, 1, 4, 0)
            again = "a second image of this key"
            assert source.ledger.bad == {
                "s.tar/0.png (2)": again,
                "s.tar/0.PNG": again,
                "s.tar/1.png": "not an image",
                "s.tar/1.png (2)": again,
            }


def test_other_members_are_counted(tmp_path: Path):
    path = tar(
        tmp_path / "s.tar", {"._0.png": b"x", "0.png": png(5), "0.txt": b"caption", "readme": b"hello"}
    )
    with tarfile.open(path, "a") as archive:
        for name, kind in (
            ("photos", tarfile.DIRTYPE),
            ("1.png", tarfile.SYMTYPE),
            (".git/2.png", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
    source = sources.open(path, reading=ANY)
    assert reds(source) == [5] and settled(source) == (len(names_in(path)), 1, 1, 5)
    assert source.ledger.other == Counter({"hidden": 2, ".txt": 1, "without suffix": 1, "folders": 1})
    assert list(source.ledger.bad) == ["s.tar/1.png"]


def test_names_that_are_not_utf8_are_distinguished(tmp_path: Path):
    names = [os.fsdecode(name) for name in (b"\xe9.png", b"\xe8.png", "é.png".encode(), b"a\nb.p\xe9g")]
    path = tar(tmp_path / "s.tar", [(name, png(i)) for i, name in enumerate(names)])
    source = sources.open(path)
    assert reds(source) == [0, 1, 2] and settled(source) == (4, 3, 0, 1)
    assert source.files(torch.arange(3)) == [f"s.tar/{name}" for name in names[:3]]
    assert main.main(["prepare", str(path), "--out", str(tmp_path / "out")]) == 0
    assert sources.open(tmp_path / "out").files(torch.arange(3)) == [f"s.tar/{name}" for name in names[:3]]


def test_damaged_images_are_dropped(tmp_path: Path):
    source = sources.open(tar(tmp_path / "s.tar", {f"{i}.png": png(i) if i != 3 else b"" for i in range(20)}))
    assert source.ledger.bad == {"s.tar/3.png": "empty"}
    assert reds(source) == [i for i in range(20) if i != 3]


@pytest.mark.parametrize(
    ("members", "labeled", "message"),
    [({"0.txt": b""}, False, "contains no images"), ({"0.png": png(1)}, True, r"no label for s\.tar/0\.png")],
)
def test_shards_without_images_or_labels_are_reported(
    tmp_path: Path, members: dict, labeled: bool, message: str
):
    path = tar(tmp_path / "s.tar", members)
    with pytest.raises(UserError, match=message):
        (sources.open_labeled if labeled else sources.open)(path)


KEYS = st.sampled_from(["a", "b/a", "./a", ".h", "é", "a b", "[1]", "'", "\udcff", ""])
SUFFIXES = st.sampled_from(["png", "JPG", "seg.png", "cls", "json", "txt", "", "p\udcffg"])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(KEYS, SUFFIXES, st.booleans()), min_size=1, max_size=12))
def test_members_with_any_names_are_all_counted(tmp_path_factory, members):
    path = tmp_path_factory.mktemp("any") / "s.tar"
    named = [
        (f"{key}.{suffix}" if suffix else key or "x", png(i) if good else b"{")
        for i, (key, suffix, good) in enumerate(members)
    ]
    tar(path, named)
    for spec, labels in ((str(path), "none"), (str(path), "any"), (f"hf-stream:{path}", "any")):
        if (source := seen(spec, labels)) is None:
            continue
        assert settled(source)[0] == len(named)
        if not isinstance(source, stream.Stream):
            taken = source.files(torch.arange(len(source)))
            assert len(set(taken)) == source.ledger.used and not set(taken) & set(source.ledger.bad)


# ---- labels


def test_class_words_are_sorted(tmp_path: Path):
    members = {"0.png": png(1), "0.cls": b"dog", "1.png": png(2), "1.cls": b"cat"}
    source = sources.open_labeled(tar(tmp_path / "s.tar", members))
    assert (source.label.tolist(), source.classes) == ([1, 0], ["cat", "dog"])


LABELED = {
    "0.cls": b"2",
    "0.json": b'{"label": 7}',
    "1.json": b'{"url": "x", "label": 1}',
    "2.json": b'{"cls": "0"}',
    "3.json": b"{broken",
    "4.cls": b"\xff\xfe",
    "5.cls": b" ",
    "5.json": b'{"class": 2}',
    "6.json": b"[1, 2]",
}


@pytest.mark.parametrize("labels", ["any", "all"])
def test_labels_are_read_from_cls_or_json_members(labels, tmp_path: Path):
    path = tar(tmp_path / "s.tar", {f"{i}.png": png(i) for i in range(7)} | LABELED)
    source = sources.open_spec(str(path), OpenOptions(labels=labels))
    assert source.classes == ["0", "1", "2"]
    known = {0: 2, 1: 1, 2: 0, 5: 2}
    given = [known.get(i, -1) for i in range(7)] if labels == "any" else list(known.values())
    assert source.label is not None and source.label.tolist() == given
    broken = {"damaged .json": 1, "damaged .cls": 1}
    assert source.images.ledger.other == Counter({".cls": 2, ".json": 5, **broken})
    assert settled(source.images)[0] == len(names_in(path))


@pytest.mark.parametrize("wrapped", [False, True])
def test_labels_are_read_from_json_next_to_the_shards(wrapped: bool, tmp_path: Path, capfd):
    for i in range(2):
        tar(tmp_path / f"s-{i}.tar", {f"a/{i}{k}.png": png(10 * i + k) for k in range(3)})
    own, shared = {"a/00.png": "x", "a/01": "y", "a/10": "no"}, {"a/02": "z", "a/10.png": "x", "a/00": "no"}
    (tmp_path / "s-0.json").write_text(json.dumps({"labels": list(own.items())} if wrapped else own))
    (tmp_path / "labels.json").write_text(json.dumps({"labels": shared} if wrapped else shared))
    (tmp_path / "s-1.json").write_text("[1, 2]")
    source = sources.open_labeled(f"{tmp_path}/s-*.tar")
    assert [source.classes[i] for i in source.label.tolist()] == ["x", "y", "z", "x"]
    assert reds(source.images) == [0, 1, 2, 10] and len(source.ledger.unwanted) == 2
    assert "s-1.json ignored, it has no labels" in capfd.readouterr().err


# ---- truncated and damaged shards


@pytest.mark.parametrize(
    ("cut", "place"),
    [(0, None), (100, "s-1.tar at byte {start}"), (540, "s-1.tar/10.png"), (600, "s-1.tar at byte {end}")],
)
def test_truncated_shard_is_used_up_to_the_cut(cut: int, place: str | None, tmp_path: Path):
    """Cut between members (undetectable), in a header, in an image, in the padding after an image."""
    tar(tmp_path / "s-0.tar", {f"{i}.png": png(i) for i in range(20)})
    path = tar(tmp_path / "s-1.tar", {f"{i}.png": png(100 + i) for i in range(20)})
    with tarfile.open(path) as archive:
        tenth = archive.getmembers()[10]
    assert 540 - 512 < tenth.size < 600 - 512
    path.write_bytes(path.read_bytes()[: tenth.offset + cut])
    lost = [place.format(start=tenth.offset, end=tenth.offset + 1024)] if place else []
    kept = list(range(20)) + list(range(100, 111 if cut == 600 else 110))
    for i, spec in enumerate(("{0}/s-*.tar", "hf-stream:{0}/s-*.tar", "hf-stream:{0}/s-*.tar#40")):
        store = tmp_path / str(i)
        words = ["prepare", spec.format(tmp_path), "--out", str(store), "--size", "16"]
        assert main.main(words) == 0
        assert reds(sources.open(store)) == kept
        card = json.loads((store / "store.json").read_text())
        assert list(card["bad"]) == lost
        assert card["records"]["found"] == len(kept) + len(lost) and card["records"]["used"] == len(kept)


def test_reading_continues_after_a_damaged_header(tmp_path: Path):
    path = tar(tmp_path / "s.tar", {f"{i}.png": png(i) for i in range(30)})
    with tarfile.open(path) as archive:
        header = archive.getmembers()[10].offset
    data = bytearray(path.read_bytes())
    data[header : header + 200] = b"x" * 200
    path.write_bytes(data)
    source = sources.open(path)
    assert reds(source) == [i for i in range(30) if i != 10]
    assert source.ledger.bad == {f"s.tar at byte {header}": "damaged"}


def test_concatenated_shards_are_read_to_the_end(tmp_path: Path):
    one, two = (tar(tmp_path / f"{i}.tar", {f"{i}.png": png(i)}) for i in (1, 2))
    one.write_bytes(one.read_bytes() + two.read_bytes())
    source = sources.open(one)
    assert reds(source) == [1, 2] and not source.ledger.bad


def test_global_header_of_git_is_not_damage(tmp_path: Path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "0" * 40}) as archive:
        tar(tmp_path / "x.tar", {"0.png": png(4), "long" * 40 + ".png": png(5)})
        with tarfile.open(tmp_path / "x.tar") as other:
            for member in other:
                archive.addfile(member, other.extractfile(member))
    source = sources.open(path)
    assert reds(source) == [4, 5] and not source.ledger.bad


@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4 compressed in another way" * 90, b"\x1f\x8b gzip, but not really" * 90]
)
def test_file_that_is_not_tar_is_one_line_and_other_shards_are_used(content: bytes, tmp_path: Path):
    path = tmp_path / "s-1.tar"
    path.write_bytes(content)
    for spec in (str(path), f"hf-stream:{path}"):
        with pytest.raises(UserError, match=r"contains no images .*s-1\.tar: ") as caught:
            sources.open(spec)
        assert "\n" not in str(caught.value)
    tar(tmp_path / "s-0.tar", {f"{i}.png": png(i) for i in range(20)})
    source = sources.open(tmp_path / "s-*.tar")
    assert len(source) == 20 and list(source.ledger.bad) == ["s-1.tar"]
    assert list(passed(sources.open(f"hf-stream:{tmp_path}/s-*.tar", size=16)).ledger.bad) == ["s-1.tar"]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_damage_anywhere_in_a_shard_stops_nothing(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    at = tmp_path_factory.mktemp("hurt")
    path = tar(
        at / "s.tar", {f"{i}.{kind}": c for i in range(8) for kind, c in (("png", png(i)), ("cls", b"1"))}
    )
    data = bytearray(path.read_bytes())
    start = int(rng.integers(len(data)))
    data[start : start + int(rng.integers(1, 1500))] = rng.bytes(int(rng.integers(0, 1500)))
    path.write_bytes(data)
    for spec in (str(path), f"hf-stream:{path}"):
        if (source := seen(spec)) is not None:
            settled(source)


# ---- compressed


@pytest.mark.parametrize(
    ("ending", "squeeze"), [("tar.gz", gzip), ("tgz", gzip), ("tar.bz2", bz2), ("tar.xz", lzma)]
)
def test_compressed_shards_are_streamed_or_prepared_with_their_labels(ending, squeeze, tmp_path: Path, capfd):
    members = {
        f"{i}.{kind}": c
        for i in range(20)
        for kind, c in (("png", png(i)), ("cls", b"ab"[i % 2 : i % 2 + 1]))
    }
    path = tmp_path / f"s.{ending}"
    path.write_bytes(squeeze.compress(tar(tmp_path / "plain.tar", members).read_bytes()))
    with pytest.raises(UserError, match=r"compressed.*pretask prepare .*hf-stream:"):
        sources.open(path)
    assert settled(passed(sources.open(f"hf-stream:{path}", size=16))) == (40, 20, 0, 20)
    assert main.main(["prepare", str(path), "--out", str(tmp_path / "out"), "--size", "16"]) == 0
    store = sources.open_labeled(tmp_path / "out")
    assert (
        reds(store) == list(range(20)) and store.label.tolist() == [0, 1] * 10 and store.classes == ["a", "b"]
    )


def test_truncated_compressed_shard_is_used_up_to_the_cut(tmp_path: Path):
    rng = np.random.default_rng(0)
    members = {f"{i}.{k}": c for i in range(20) for k, c in (("png", png(i)), ("txt", rng.bytes(1000)))}
    data = gzip.compress(tar(tmp_path / "plain.tar", members).read_bytes())
    path = tmp_path / "s.tar.gz"
    path.write_bytes(data[: len(data) // 2])
    source = passed(sources.open(f"hf-stream:{path}", size=16, reading=ANY))
    assert 8 <= source.ledger.used <= 11 and len(source.ledger.bad) == 1
    [(place, why)] = source.ledger.bad.items()
    assert place in [f"s.tar.gz/{name}" for name in members] and why.startswith("truncated or damaged")


# ---- patterns and folders


def labeled(n: int, start: int = 0) -> dict[str, bytes]:
    return {f"{i}.{kind}": c for i in range(start, start + n) for kind, c in (("png", png(i)), ("cls", b"1"))}


@pytest.mark.parametrize(
    "name", ["data [v1]/train.tar", "train[1].tar", "a*b?.tar", "{0..1}.tar", "x#1.tar", "a'b c.tar"]
)
def test_existing_path_is_not_a_pattern(name: str, tmp_path: Path):
    path = tar(tmp_path / name, labeled(3))
    tar(path.with_name("other.tar"), labeled(1, 50))
    assert reds(sources.open(path)) == [0, 1, 2]
    source = passed(sources.open(f"hf-stream:{path}", size=16))
    assert source.ledger.used == 3


def test_all_numbers_of_a_pattern_must_exist(tmp_path: Path):
    for i in (8, 9, 10):
        tar(tmp_path / f"s-{i:03d}.tar", labeled(2, 10 * i))
    spec = f"{tmp_path}/s-{{008..010}}.tar"
    assert reds(sources.open(spec)) == [80, 81, 90, 91, 100, 101]
    assert len(sources.open(f"hf-stream:{spec}")) == 6
    assert reds(sources.open(f"{tmp_path}/s-{{010,008}}.tar")) == [100, 101, 80, 81]
    for prefix in ("", "hf-stream:"):
        with pytest.raises(UserError, match=r"expands to 5 files; missing: .*s-007\.tar, .*s-011\.tar$"):
            sources.open(f"{prefix}{tmp_path}/s-{{007..011}}.tar")


def test_shards_of_the_same_name_in_two_folders_are_distinct(tmp_path: Path):
    for i, folder in enumerate("ab"):
        tar(tmp_path / folder / "0.tar", labeled(1, i))
    assert sources.open(f"{tmp_path}/*/0.tar").files(torch.arange(2)) == ["a/0.tar/0.png", "b/0.tar/1.png"]


@pytest.mark.parametrize("prefix", ["", "hf-stream:"])
def test_folder_of_shards_opens_by_split(prefix: str, tmp_path: Path, capfd):
    tar(tmp_path / "train-000.tar", labeled(3))
    tar(tmp_path / "data" / "train-001.tar", labeled(2, 10))
    tar(tmp_path / "test-000.tar", labeled(4, 20))
    (tmp_path / "README.md").write_text("x")
    table(tmp_path / "train-000.parquet", url=["a"], key=["0"])
    expected = {"": [0, 1, 2, 10, 11], ":test": [20, 21, 22, 23], ":all": [0, 1, 2, 10, 11, 20, 21, 22, 23]}
    for part, kept in expected.items():
        source = sources.open(f"{prefix}{tmp_path}{part}", size=16)
        source = passed(source) if prefix else source
        assert settled(source) == (2 * len(kept) + 2, len(kept), 0, len(kept) + 2), part
        assert prefix or sorted(reds(source)) == kept
    assert "reading train, not test" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"no split 'val'; it has"):
        sources.open(f"{prefix}{tmp_path}:val")


def test_folder_of_photos_with_a_shard_is_read_as_photos(tmp_path: Path):
    (tmp_path / "photo.png").write_bytes(png(3))
    tar(tmp_path / "backup.tar", labeled(3))
    source = sources.open(tmp_path)
    assert reds(source) == [3] and source.ledger.other == Counter({".tar": 1})


# ---- streams

N = 60


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s after each shuffled pass


def tables(at: Path) -> str:
    for part, rows in enumerate(np.array_split(np.arange(N), 4)):
        table(at / f"{part}.parquet", image=cells(rows), label=[0] * len(rows))
    return f"hf-stream:{at}/*.parquet#{N}"


def shards(at: Path) -> str:
    for part, rows in enumerate(np.array_split(np.arange(N), 4)):
        tar(at / f"{part}.tar", {f"{i}.{k}": c for i in rows for k, c in (("png", png(i)), ("cls", b"0"))})
    return f"hf-stream:{at}/*.tar#{N}"


Make = Callable[[Path], str]


def values(batches) -> list[list[int]]:
    return [batch.image[:, 0, 0, 0].tolist() for batch in batches]


def flat(batches) -> list[int]:
    return [value for batch in values(batches) for value in batch]


@pytest.mark.parametrize("make", [tables, shards])
def test_stream_keeps_the_stored_order(make: Make, tmp_path: Path):
    source = sources.open(make(tmp_path), size=16)
    assert len(source) == N
    batches = list(loader.epoch(source, None, 8))
    assert values(batches) == [list(range(8 * k, 8 * k + 8)) for k in range(7)]
    assert [b.index.tolist() for b in batches] == values(batches)


def test_order_shuffles_a_stream_reproducibly(tmp_path: Path):
    source = sources.open(tables(tmp_path), size=16)
    orders = [torch.randperm(N, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    first, again, other = [flat(loader.epoch(source, order, 10)) for order in orders]
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other) == list(range(N))
    assert first != list(range(N))


def test_processes_of_a_shuffled_stream_cover_everything_once(tmp_path: Path):
    source, order = sources.open(tables(tmp_path), size=16), torch.arange(N)
    shares = [flat(loader.epoch(source, order, 12, shard=(r, 2))) for r in range(2)]
    assert sorted(chain(*shares)) == list(range(N))
    assert list(chain(*shares)) != list(range(N))


def test_shorter_order_ends_a_stream_earlier(tmp_path: Path):
    source = sources.open(tables(tmp_path), size=16)
    assert len(list(loader.epoch(source, torch.arange(30), 10))) == 3


@pytest.mark.parametrize("make", [tables, shards])
@pytest.mark.parametrize("world", [2, 4, 3])  # 3 does not divide the 4 shards
def test_processes_of_a_stream_cover_everything_once(make: Make, world: int, tmp_path: Path):
    source = sources.open(make(tmp_path), size=16)
    shares = [flat(loader.epoch(source, None, 12, shard=(r, world))) for r in range(world)]
    assert sorted(chain(*shares)) == list(range(N))
    assert {len(share) for share in shares} == {N // world}


def test_process_with_fewer_rows_starts_over(tmp_path: Path):
    table(tmp_path / "0.parquet", image=cells(range(9)))
    table(tmp_path / "1.parquet", image=cells(range(100, 103)))
    source = sources.open(f"hf-stream:{tmp_path}/*.parquet#12", size=16)
    long, short = (values(loader.epoch(source, None, 4, shard=(r, 2))) for r in range(2))
    assert (long, short) == ([[0, 1], [2, 3], [4, 5]], [[100, 101], [102, 100], [101, 102]])


def test_resumed_stream_skips_what_was_seen(tmp_path: Path):
    source, order = sources.open(tables(tmp_path), size=16), torch.arange(N)
    whole, tail = (values(loader.epoch(source, order, 10, first=first)) for first in (0, 4))
    assert tail == whole[4:]


def test_bad_rows_of_a_stream_are_replaced_within_their_batch(tmp_path: Path):
    images = [png(i) for i in range(20)]
    table(tmp_path / "0.parquet", image=[*images[:3], b"no image", *images[4:7], None, *images[8:]])
    source = sources.open(f"hf-stream:{tmp_path}/*.parquet#20", size=16, reading=Reading(max_bad=0.5))
    shown = values(loader.epoch(source, None, 4))
    assert shown[:3] == [[0, 1, 2, 0], [4, 5, 6, 4], [8, 9, 10, 11]]
    assert source.ledger.bad == {"0.parquet row 3": "not an image", "0.parquet row 7": "empty"}
    assert values(loader.epoch(source, None, 4, first=1)) == shown[1:]


def test_stream_without_readable_images_stops(tmp_path: Path):
    table(tmp_path / "0.parquet", image=[b"no"] * 20)
    with pytest.raises(UserError, match="cannot be read"):
        list(loader.epoch(sources.open(f"hf-stream:{tmp_path}/*.parquet#20", size=16), None, 4))


def test_max_bad_of_a_stream_applies_to_each_pass(tmp_path: Path):
    images = [png(i) if i % 15 else b"no" for i in range(N)]  # 7 % bad
    for part, rows in enumerate(np.array_split(np.arange(N), 4)):
        table(tmp_path / f"{part}.parquet", image=[images[i] for i in rows])
    source = sources.open(f"hf-stream:{tmp_path}/*.parquet#{N}", size=16)
    for seed in range(6):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        assert len(list(loader.epoch(source, order, 10))) == 6
    assert len(source.ledger.bad) == 4


def test_unsupported_operations_of_a_stream_are_reported(tmp_path: Path):
    spec = tables(tmp_path)
    source = sources.open(spec)
    assert source.size == stream.LARGEST
    with pytest.raises(UserError, match="pretask prepare"):
        source.__getitems__(torch.arange(3))
    with pytest.raises(UserError, match="streams cannot be used for evaluation"):
        sources.open_labeled(spec)
    with pytest.raises(UserError, match="expected the number of images after #"):
        sources.open(spec.replace(f"#{N}", "#many"))


@pytest.mark.parametrize("make", [tables, shards])
def test_length_is_counted_in_local_files(make: Make, tmp_path: Path):
    assert len(sources.open(make(tmp_path).partition("#")[0])) == N


def test_unknown_length_must_be_stated(tmp_path: Path, monkeypatch):
    rows = datasets.Dataset.from_dict({"image": [png(1)]}).to_iterable_dataset()
    monkeypatch.setattr(stream.parquet, "open_hub", lambda spec, options, streaming: (rows, "data"))
    with pytest.raises(UserError, match=r"for example hf-stream:some/data#100000"):
        sources.open("hf-stream:some/data")
    source = passed(sources.open("hf-stream:some/data#5", size=16))
    assert (source.ledger.found, source.ledger.used) == (1, 1)


@pytest.mark.parametrize("make", [tables, shards])
@pytest.mark.parametrize("stated", ["", "#50", "#70"])
def test_prepared_stream_has_each_image_once(make: Make, stated: str, tmp_path: Path):
    spec = make(tmp_path).partition("#")[0] + stated
    assert main.main(["prepare", spec, "--out", str(tmp_path / "out"), "--size", "16"]) == 0
    kept = reds(sources.open(tmp_path / "out"))
    assert kept == list(range(50 if stated == "#50" else N))
    records = json.loads((tmp_path / "out" / "store.json").read_text())["records"]
    assert records["used"] == len(kept) and records["not_looked_at"] == 0
    assert records["found"] == len(kept) + sum(records["other_files"].values())


def test_stream_can_be_prepared(tmp_path: Path):
    sources.store.prepare(sources.open(tables(tmp_path), size=16), tmp_path / "out", progress=False)
    assert reds(sources.open(tmp_path / "out")) == list(range(N))
