"""Parquet files, saved datasets and folders of them: choice of the image column, unreadable parts, patterns and splits."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from records import cells, png, reds, table, tar

from pretask import data as sources
from pretask.cli import main
from pretask.errors import install_command
from pretask.reading import Reading
from pretask.types import UserError

datasets = pytest.importorskip("datasets")

ANY = Reading(max_bad=1.0)


def column(name: str) -> Reading:
    return Reading(column=name)


def counts(source) -> tuple[int, int, dict[str, str], Counter[str]]:
    """Found, used, skipped, other."""
    if isinstance(source, sources.stream.Stream):
        for _ in source.whole(16):
            pass
    ledger = source.ledger
    assert ledger.unread == 0
    return ledger.found, ledger.used, ledger.bad, ledger.other


# ---- columns


@pytest.mark.parametrize("typed", [True, False])
def test_image_columns_are_found_by_type_or_name(tmp_path: Path, typed: bool):
    path = table(tmp_path / "x.parquet", **{"photo" if typed else "image": cells(range(5))})
    if typed:
        data = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path))
        data.cast_column("photo", datasets.Image()).to_parquet(path)
    source = sources.open(path)
    assert reds(source) == list(range(5))
    assert source.files(torch.tensor([2])) == ["row 2"]


@pytest.mark.parametrize("prefix", ["", "hf-stream:"])
def test_first_of_several_image_columns_is_used_and_all_are_printed(prefix: str, tmp_path: Path, capfd):
    path = table(
        tmp_path / "x.parquet", id=[1, 2], left=cells([1, 2]), right=cells([3, 4]), thumb=[png(5), png(6)]
    )
    spec = f"{prefix}{path}"
    store = tmp_path / "out"
    assert main.main(["prepare", spec, "--size", "16", "--out", str(store)]) == 0
    assert "reading images from column left, not right; choose with --column" in capfd.readouterr().err
    assert reds(sources.open(store)) == [1, 2]
    for i, (name, kept) in enumerate({"right": [3, 4], "thumb": [5, 6]}.items()):
        store = tmp_path / str(i)
        words = ["prepare", spec, "--size", "16", "--column", name, "--out", str(store)]
        assert main.main(words) == 0 and reds(sources.open(store)) == kept
    with pytest.raises(UserError, match=r"no column rigth; it has id, left, right, thumb"):
        sources.open(spec, reading=column("rigth"))


def test_tables_without_a_required_column_are_reported(tmp_path: Path):
    path = table(tmp_path / "text.parquet", text=["a"])
    for spec in (str(path), f"hf-stream:{path}"):
        with pytest.raises(UserError, match=r"columns \['text'\]; expected an image column"):
            sources.open(spec)
    with pytest.raises(UserError, match="expected a label column"):
        sources.open_labeled(table(tmp_path / "data.parquet", image=cells([1])))


# ---- cells


def test_empty_and_damaged_cells_are_dropped_with_their_labels(tmp_path: Path):
    images = [png(i) for i in range(20)]
    images[4], images[9] = b"no image", None  # type: ignore[call-overload]
    labels = [i % 3 for i in range(20)]
    source = sources.open_labeled(table(tmp_path / "data.parquet", image=images, label=labels))
    assert source.ledger.bad == {"row 4": "not an image", "row 9": "empty"}
    assert source.label.tolist() == [i % 3 for i in range(20) if i not in (4, 9)]


ODD = {
    3: (None, "empty"),
    5: ("", "empty"),
    7: ("x" * 400 + ".png", "file name too long"),
    8: ("nowhere.png", "no such file or directory"),
    9: ("photos", "is a directory"),
    11: ("photos/nul\0.png", "embedded null byte"),
    12: ("photos/loop.png", "too many levels of symbolic links"),
}


@pytest.mark.parametrize("prefix", ["", "hf-stream:"])
@pytest.mark.parametrize("cache", [0, 64])
def test_missing_paths_are_listed_by_row_and_the_rest_is_used(prefix: str, cache: int, tmp_path: Path):
    names = []
    for i in range(20):
        path = tmp_path / "photos" / f"a [{i}] é.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(i))
        names.append(ODD[i][0] if i in ODD else f"photos/{path.name}")
    (tmp_path / "photos" / "loop.png").symlink_to("loop.png")
    path = table(tmp_path / "rows.parquet", image=names)
    source = sources.open(f"{prefix}{path}", size=16, reading=ANY, cache_mb=cache)
    if not prefix:
        source.__getitems__(torch.arange(len(source)))
    found, used, bad, _ = counts(source)
    assert (found, used) == (pq.read_metadata(path).num_rows, 20 - len(ODD))
    row = "rows.parquet row" if prefix else "row"
    assert bad == {f"{row} {i}": why for i, (_, why) in ODD.items()}


@pytest.mark.parametrize("prefix", ["", "hf-stream:"])
def test_cells_of_other_types_are_listed(prefix: str, tmp_path: Path):
    table(tmp_path / "0.parquet", photo=[[1, 2], None, [3]])
    spec = f"{prefix}{tmp_path}/0.parquet"
    with pytest.raises(UserError, match="not an encoded image or a path: list"):
        counts(sources.open(spec, size=16, reading=column("photo")))


# ---- files


def damaged(path: Path) -> Path:
    """Damage the beginning of a file, so that its footer stays valid."""
    data = bytearray(path.read_bytes())
    data[8:200] = np.random.default_rng(0).bytes(192)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("prefix", ["", "hf-stream:"])
def test_damaged_files_among_several_are_listed_and_the_others_are_used(prefix: str, tmp_path: Path):
    for i in range(4):
        table(tmp_path / f"{i}.parquet", image=cells(range(10 * i, 10 * i + 10)), label=[i] * 10)
    (tmp_path / "1.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:300])
    (tmp_path / "2.parquet").write_text("no")
    damaged(tmp_path / "3.parquet")
    table(tmp_path / "4.parquet", label=[5, 5])
    source = sources.open(f"{prefix}{tmp_path}/*.parquet", size=16, reading=ANY)
    found, used, bad, _ = counts(source)
    each = {"1": 1, "2": 1, "3": 10 if prefix else 1, "4": 2}  # a stream uses the valid part of a file
    assert used == 10 and found == used + len(bad) == 10 + sum(each.values())
    assert Counter(name[0] for name in bad) == each
    assert {name.split()[0] for name in bad} == {f"{i}.parquet" for i in range(1, 5)}
    assert prefix or reds(source) == list(range(10))
    assert all(bad[f"4.parquet row {i}"] == "empty" for i in range(2))


@pytest.mark.parametrize("prefix", ["", "hf-stream:"])
def test_file_that_is_not_parquet_is_a_one_line_error(prefix: str, tmp_path: Path):
    (tmp_path / "data.parquet").write_text("no")
    with pytest.raises(UserError, match="cannot be opened") as caught:
        sources.open(f"{prefix}{tmp_path / 'data.parquet'}")
    assert "\n" not in str(caught.value)


def test_row_names_include_the_file(tmp_path: Path):
    for i in range(2):
        table(tmp_path / f"{i}.parquet", image=[png(i), png(10 + i), b"no"])
    source = sources.open(f"{tmp_path}/*.parquet", reading=ANY)
    assert source.files(torch.arange(4)) == [f"{i}.parquet row {k}" for i in range(2) for k in range(2)]
    assert list(source.ledger.bad) == ["0.parquet row 2", "1.parquet row 2"]


@pytest.mark.parametrize(
    "name", ["data [v1]/train.parquet", "train[1].parquet", "a*b?.parquet", "a'b c{1..2}.parquet"]
)
def test_existing_path_is_not_a_pattern(name: str, tmp_path: Path):
    path = table(tmp_path / name, image=cells(range(3)))
    table(path.with_name("other.parquet"), image=cells([9]))
    assert reds(sources.open(path)) == [0, 1, 2]
    assert counts(sources.open(f"hf-stream:{path}", size=16))[1] == 3


def test_all_numbers_of_a_pattern_must_exist(tmp_path: Path):
    for i in range(2):
        table(tmp_path / f"{i:02}.parquet", image=cells([i]))
    assert reds(sources.open(f"{tmp_path}/{{00..01}}.parquet")) == [0, 1]
    with pytest.raises(UserError, match=r"expands to 3 files; missing: .*02\.parquet$"):
        sources.open(f"{tmp_path}/{{00..02}}.parquet")


# ---- folders


@pytest.mark.parametrize("folder", ["", "data/", "default [x]/"])
@pytest.mark.parametrize("prefix", ["", "hf-stream:"])
def test_folder_of_tables_opens_by_split(folder: str, prefix: str, tmp_path: Path, capfd):
    root = tmp_path / folder if "[" in folder else tmp_path
    at = tmp_path / folder
    table(at / "train-00000-of-00001.parquet", image=cells([1, 2]))
    table(at / "validation-00000-of-00001.parquet", image=cells([5]))
    table(at / "test-00000-of-00001.parquet", image=cells([3, 4, 6]))
    (root / "README.md").write_text("about")
    for part, kept in {"": [1, 2], ":test": [3, 4, 6], ":val": [5], ":all": [3, 4, 6, 1, 2, 5]}.items():
        source = sources.open(f"{prefix}{root}{part}", size=16)
        assert counts(source) == (len(kept) + 1, len(kept), {}, Counter({".md": 1}))
        assert prefix or reds(source) == kept
    assert "reading train, not val or test; to change this" in capfd.readouterr().err
    assert reds(sources.open(root, split="test")) == [3, 4, 6]
    with pytest.raises(UserError, match=r"no split 'extra'; it has train, val, test"):
        sources.open(f"{prefix}{root}:extra")


def test_test_split_is_not_trained_on(tmp_path: Path):
    for name in ("test", "val"):
        table(tmp_path / name / "0.parquet", image=cells([1]))
    with pytest.raises(UserError, match=r"has the splits val, test; choose one"):
        sources.open(tmp_path)
    table(tmp_path / "unlabeled" / "0.parquet", image=cells([7]), label=[0])
    assert reds(sources.open(tmp_path)) == [7]
    with pytest.raises(UserError, match="choose one"):
        sources.open_labeled(tmp_path)


@pytest.mark.parametrize("prefix", ["", "hf-stream:"])
def test_saved_dataset_is_opened(prefix: str, tmp_path: Path):
    data = datasets.Dataset.from_dict({"image": cells(range(5)), "label": [0, 1, 0, 1, 0]})
    datasets.disable_progress_bars()
    data.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "one [1]"))
    parts = {"train": data, "test": data.select(range(2)), "fold": data.select(range(1))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "many"))
    for name, n in {"one [1]": 5, "many": 6, "many:test": 2, "many:fold": 1, "many:all": 8}.items():
        assert counts(sources.open(f"{prefix}{tmp_path / name}", size=16))[:2] == (n, n), name
    if not prefix:
        assert sources.open_labeled(tmp_path / "one [1]").label.tolist() == [0, 1, 0, 1, 0]


# ---- next to photos


def photographs(at: Path, n: int = 12) -> Path:
    for i in range(n):
        path = at / f"sub{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i, 0, 0)).save(path)
    return at


STRAY = {
    "x.parquet": lambda at: table(at / "x.parquet", file_name=["0.png"], text=["words"]),
    "image.parquet": lambda at: table(at / "image.parquet", image=["sub0/0.png"]),
    "broken.parquet": lambda at: (at / "broken.parquet").write_text("no"),
    "features.parquet": lambda at: table(at / "features.parquet", file=["0.png"], features=[[0.5, 1.0]]),
    "state.json": lambda at: (at / "state.json").write_text("{}"),
    "index.json": lambda at: (at / "index.json").write_text('{"license": "CC0"}'),
}


@pytest.mark.parametrize("stray", STRAY)
def test_stray_table_does_not_hide_photos(stray: str, tmp_path: Path):
    STRAY[stray](photographs(tmp_path))
    source = sources.open(tmp_path)
    found, used, bad, other = counts(source)
    assert (found, used, bad) == (sum(len(files) for *_, files in os.walk(tmp_path)), 12, {})
    assert other == Counter({Path(stray).suffix: 1})


def test_images_next_to_a_table_are_counted(tmp_path: Path):
    table(photographs(tmp_path, 2) / "x.parquet", image=cells([7, 8]))
    assert counts(sources.open(tmp_path)) == (4, 2, {}, Counter({".png": 2}))


# ---- labels of the imagefolder layout

NAMES = [f"sub{i % 2}/{i}.png" for i in range(12)]
LABELS = ["cat", "dog", "", None] * 3


def as_csv(at: Path, rows: list[tuple]) -> None:
    text = "".join(f"{name},{label or ''}\n" for name, label in rows)
    (at / "metadata.csv").write_text("\ufefffile_name,label\n" + text, encoding="utf-8")


def as_jsonl(at: Path, rows: list[tuple]) -> None:
    lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
    (at / "metadata.jsonl").write_text("\n".join(lines))


def as_parquet(at: Path, rows: list[tuple]) -> None:
    names, labels = zip(*rows, strict=True)
    pq.write_table(pa.table({"file_name": list(names), "label": list(labels)}), at / "metadata.parquet")


FORMS = [as_csv, as_jsonl, as_parquet]


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_read_from_metadata_next_to_the_images(form, tmp_path: Path):
    form(photographs(tmp_path), list(zip(NAMES, LABELS, strict=True)))
    source = sources.open_labeled(tmp_path)
    given = {name: label for name, label in zip(NAMES, LABELS, strict=True) if label}
    labels = [source.classes[i] for i in source.label.tolist()]
    assert dict(zip(source.files(torch.arange(len(source))), labels, strict=True)) == given
    assert source.ledger.found == 13 and set(source.ledger.unwanted) == set(NAMES) - set(given)
    assert sorted(reds(sources.open(tmp_path))) == list(range(12))


@pytest.mark.parametrize("form", FORMS)
def test_rows_without_an_image_and_images_without_a_row_are_listed(form, tmp_path: Path):
    rows = [*zip(NAMES[:9], "abcabcabc", strict=True), ("sub0/nowhere.png", "a"), ("../x.png", "b")]
    form(photographs(tmp_path), rows)
    source = sources.open_labeled(tmp_path, reading=ANY)
    assert set(source.ledger.unwanted) == set(NAMES[9:]) and len(source) == 9
    assert sorted(source.ledger.bad.values()) == [
        "no such image: ../x.png",
        "no such image: sub0/nowhere.png",
    ]
    assert source.ledger.found == 13 + 2


def test_paths_are_relative_to_the_metadata(tmp_path: Path):
    photographs(tmp_path)
    for sub in range(2):
        as_csv(tmp_path / f"sub{sub}", [(f"{i}.png", "ab"[i // 6]) for i in range(sub, 12, 2)])
    source = sources.open_labeled(tmp_path)
    assert source.label.tolist() == [i // 6 for i in reds(source.images)] and len(source) == 12


def test_class_folders_are_used_if_metadata_has_no_labels(tmp_path: Path):
    table(photographs(tmp_path) / "metadata.parquet", file_name=NAMES, text=["words"] * 12)
    (tmp_path / "metadata.jsonl").write_text("{broken")
    source = sources.open_labeled(tmp_path)
    assert source.classes == ["sub0", "sub1"] and not source.ledger.bad


def test_broken_lines_of_metadata_are_listed(tmp_path: Path):
    lines = [json.dumps({"file_name": name, "label": i % 2}) for i, name in enumerate(NAMES)]
    text = "\n".join([*lines[:3], "{broken", *lines[3:], "[1]", '{"label": 1}'])
    (photographs(tmp_path) / "metadata.jsonl").write_text(text)
    source = sources.open_labeled(tmp_path, reading=ANY)
    assert len(source) == 12 and source.ledger.bad == {
        "metadata.jsonl line 4": "not a JSON object",
        "metadata.jsonl line 14": "not a JSON object",
        "metadata.jsonl line 15": "has no file_name",
    }


def test_missing_package_is_named_with_its_extra(monkeypatch, tmp_path: Path):
    path = table(tmp_path / "data.parquet", image=cells([1]))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=re.escape(install_command("hf"))):
        sources.open(path)
    table(photographs(tmp_path) / "data.parquet", text=["a"])
    assert len(sources.open(tmp_path)) == 12  # without the package


def test_shards_next_to_tables_of_urls_are_opened(tmp_path: Path):
    tar(tmp_path / "0.tar", {"0.png": png(4)})
    table(tmp_path / "0.parquet", url=["a"])
    assert reds(sources.open(tmp_path)) == [4]
