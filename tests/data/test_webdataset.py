"""Tar shards, parquet tables and streams of both, made on the fly."""

import io
import tarfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretask import data as sources
from pretask.data import loader, stream
from pretask.types import UserError

datasets = pytest.importorskip("datasets")


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def parquet(path: Path, cells: list, labels: list | None = None, typed: bool = True) -> Path:
    table = {"image": [{"bytes": c, "path": None} for c in cells] if typed else cells}
    table |= {} if labels is None else {"label": labels}
    data = datasets.Dataset.from_dict(table)
    (data.cast_column("image", datasets.Image()) if typed else data).to_parquet(path)
    return path


def reds(source: sources.Images) -> list[int]:
    return source.__getitems__(torch.arange(len(source))).image[:, 0, 0, 0].tolist()


# ---- tar


def test_members_of_one_stem_are_one_sample(tmp_path: Path):
    members = {
        "a/0.jpg.png": png(3),
        "a/0.cls": b"10\n",
        "b/0.png": png(4),
        "b/0.json": b"{}",
        "b/0.cls": b"9",
    }
    source = sources.open_labelled(tar(tmp_path / "s.tar", members))
    assert reds(source.images) == [3, 4]
    assert (source.label.tolist(), source.classes) == ([1, 0], ["9", "10"])
    assert source.files(torch.arange(2)) == ["s.tar/a/0.jpg.png", "s.tar/b/0.png"]


def test_class_words_are_sorted(tmp_path: Path):
    members = {"0.png": png(1), "0.cls": b"dog", "1.png": png(2), "1.cls": b"cat"}
    source = sources.open_labelled(tar(tmp_path / "s.tar", members))
    assert (source.label.tolist(), source.classes) == ([1, 0], ["cat", "dog"])


def test_hidden_members_and_other_kinds_are_passed_over(tmp_path: Path):
    members = {"._0.png": b"x", "0.png": png(5), "0.txt": b"caption", "readme": b"hello"}
    assert reds(sources.open(tar(tmp_path / "s.tar", members))) == [5]


def test_damaged_members_are_dropped(tmp_path: Path):
    members = {f"{i}.png": png(i) if i != 3 else b"" for i in range(20)}
    source = sources.open(tar(tmp_path / "s.tar", members))
    assert source.ledger.bad == {"s.tar/3.png": "empty"}
    assert reds(source) == [i for i in range(20) if i != 3]


@pytest.mark.parametrize(
    ("members", "labelled", "told"),
    [({"0.txt": b""}, False, "holds no images"), ({"0.png": png(1)}, True, r"no label for s\.tar/0\.png")],
)
def test_shards_that_lack_something_are_named(tmp_path: Path, members: dict, labelled: bool, told: str):
    path = tar(tmp_path / "s.tar", members)
    with pytest.raises(UserError, match=told):
        (sources.open_labelled if labelled else sources.open)(path)


def test_what_is_no_tar_is_named(tmp_path: Path):
    (tmp_path / "s.tar").write_bytes(b"\x1f\x8b compressed, or something else" * 40)
    with pytest.raises(UserError, match=r"s\.tar cannot be read as tar"):
        sources.open(tmp_path / "s.tar")


# ---- parquet


@pytest.mark.parametrize("typed", [True, False])
def test_image_columns_are_found_by_type_or_name(tmp_path: Path, typed: bool):
    source = sources.open(parquet(tmp_path / "data.parquet", [png(i) for i in range(5)], typed=typed))
    assert reds(source) == list(range(5))
    assert source.files(torch.tensor([2])) == ["row 2"]


def test_empty_and_damaged_cells_are_dropped_with_their_labels(tmp_path: Path):
    cells = [png(i) for i in range(20)]
    cells[4], cells[9] = b"no image", None
    source = sources.open_labelled(
        parquet(tmp_path / "data.parquet", cells, [i % 3 for i in range(20)], typed=False)
    )
    assert source.ledger.bad == {"row 4": "not an image", "row 9": "empty"}
    assert source.label.tolist() == [i % 3 for i in range(20) if i not in (4, 9)]


def test_a_folder_of_tables_has_splits(tmp_path: Path):
    parquet(tmp_path / "train-0.parquet", [png(1)])
    parquet(tmp_path / "test-0.parquet", [png(2), png(3)])
    assert reds(sources.open(tmp_path)) == [1]
    assert reds(sources.open(tmp_path, split="test")) == [2, 3]
    with pytest.raises(UserError, match="cannot be opened"):
        sources.open(tmp_path, split="val")


def test_tables_that_lack_a_column_are_named(tmp_path: Path):
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(UserError, match=r"columns \['text'\]; expected an image column"):
        sources.open(tmp_path / "text.parquet")
    with pytest.raises(UserError, match="expected a label column"):
        sources.open_labelled(parquet(tmp_path / "data.parquet", [png(1)]))


def test_what_is_no_parquet_is_named_in_one_line(tmp_path: Path):
    (tmp_path / "data.parquet").write_text("no")
    with pytest.raises(UserError, match="cannot be opened") as caught:
        sources.open(tmp_path / "data.parquet")
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path: Path):
    path = parquet(tmp_path / "data.parquet", [png(1)])
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'pretask\[hf\]'"):
        sources.open(path)


# ---- streams

N = 60


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s after each shuffled pass


def tables(at: Path) -> str:
    for part, rows in enumerate(np.array_split(np.arange(N), 4)):
        parquet(at / f"{part}.parquet", [png(i) for i in rows], [0] * len(rows))
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
def test_a_stream_comes_in_stored_order(make: Make, tmp_path: Path):
    source = sources.open(make(tmp_path), size=16)
    assert len(source) == N
    batches = list(loader.epoch(source, None, 8))
    assert values(batches) == [list(range(8 * k, 8 * k + 8)) for k in range(7)]
    assert [b.index.tolist() for b in batches] == values(batches)


def test_an_order_shuffles_a_stream_the_same_way_each_time(tmp_path: Path):
    source = sources.open(tables(tmp_path), size=16)
    orders = [torch.randperm(N, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    first, again, other = [flat(loader.epoch(source, order, 10)) for order in orders]
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other) == list(range(N))
    assert first != list(range(N))


def test_the_processes_of_a_shuffled_stream_cover_everything_once(tmp_path: Path):
    source, order = sources.open(tables(tmp_path), size=16), torch.arange(N)
    shares = [flat(loader.epoch(source, order, 12, share=(r, 2))) for r in range(2)]
    assert sorted(chain(*shares)) == list(range(N))
    assert list(chain(*shares)) != list(range(N))


def test_a_shorter_order_ends_a_stream_earlier(tmp_path: Path):
    source = sources.open(tables(tmp_path), size=16)
    assert len(list(loader.epoch(source, torch.arange(30), 10))) == 3


@pytest.mark.parametrize("make", [tables, shards])
@pytest.mark.parametrize("world", [2, 4, 3])  # 3 does not divide the 4 shards
def test_the_processes_of_a_stream_cover_everything_once(make: Make, world: int, tmp_path: Path):
    source = sources.open(make(tmp_path), size=16)
    shares = [flat(loader.epoch(source, None, 12, share=(r, world))) for r in range(world)]
    assert sorted(chain(*shares)) == list(range(N))
    assert {len(share) for share in shares} == {N // world}


def test_a_process_with_fewer_rows_begins_anew(tmp_path: Path):
    parquet(tmp_path / "0.parquet", [png(i) for i in range(9)])
    parquet(tmp_path / "1.parquet", [png(100 + i) for i in range(3)])
    source = sources.open(f"hf-stream:{tmp_path}/*.parquet#12", size=16)
    long, short = (values(loader.epoch(source, None, 4, share=(r, 2))) for r in range(2))
    assert (long, short) == ([[0, 1], [2, 3], [4, 5]], [[100, 101], [102, 100], [101, 102]])


def test_a_resumed_stream_skips_what_was_seen(tmp_path: Path):
    source, order = sources.open(tables(tmp_path), size=16), torch.arange(N)
    whole, tail = (values(loader.epoch(source, order, 10, first=first)) for first in (0, 4))
    assert tail == whole[4:]


def test_bad_rows_of_a_stream_are_replaced_within_their_batch(tmp_path: Path):
    cells = [png(i) for i in range(20)]
    cells[3], cells[7] = b"no image", None
    parquet(tmp_path / "0.parquet", cells, typed=False)
    source = sources.open(f"hf-stream:{tmp_path}/*.parquet#20", size=16, max_bad=0.5)
    shown = values(loader.epoch(source, None, 4))
    assert shown[:3] == [[0, 1, 2, 0], [4, 5, 6, 4], [8, 9, 10, 11]]
    assert source.ledger.bad == {"row 3": "not an image", "row 7": "empty"}
    assert values(loader.epoch(source, None, 4, first=1)) == shown[1:]


def test_a_stream_of_nothing_readable_stops(tmp_path: Path):
    parquet(tmp_path / "0.parquet", [b"no"] * 20, typed=False)
    with pytest.raises(UserError, match="cannot be read"):
        list(loader.epoch(sources.open(f"hf-stream:{tmp_path}/*.parquet#20", size=16), None, 4))


def test_a_stream_is_judged_by_the_pass_and_not_by_all_passes_together(tmp_path: Path):
    cells = [png(i) if i % 15 else b"no" for i in range(N)]  # 7 % bad; each pass gives them other numbers
    for part, rows in enumerate(np.array_split(np.arange(N), 4)):
        parquet(tmp_path / f"{part}.parquet", [cells[i] for i in rows], typed=False)
    source = sources.open(f"hf-stream:{tmp_path}/*.parquet#{N}", size=16)
    for seed in range(6):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        assert len(list(loader.epoch(source, order, 10))) == 6
    assert len(source.ledger.bad) == 4


def test_a_stream_says_what_it_cannot_do(tmp_path: Path):
    spec = tables(tmp_path)
    source = sources.open(spec)
    assert source.size == stream.LARGEST
    with pytest.raises(UserError, match="pretask prepare"):
        source.__getitems__(torch.arange(3))
    with pytest.raises(UserError, match="cannot be evaluated on"):
        sources.open_labelled(spec)
    with pytest.raises(UserError, match="expected a number after #"):
        sources.open(spec.replace(f"#{N}", "#many"))


@pytest.mark.parametrize("make", [tables, shards])
def test_the_length_is_counted_in_local_files(make: Make, tmp_path: Path):
    assert len(sources.open(make(tmp_path).partition("#")[0])) == N


def test_a_length_that_nobody_knows_must_be_stated(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(stream.glob, "glob", lambda _: [])
    with pytest.raises(UserError, match=r"state it: .*#100000"):
        sources.open(tables(tmp_path).partition("#")[0])


def test_a_stream_can_be_prepared(tmp_path: Path):
    sources.store.prepare(sources.open(tables(tmp_path), size=16), tmp_path / "out", progress=False)
    assert reds(sources.open(tmp_path / "out")) == list(range(N))
