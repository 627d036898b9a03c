"""Labels from a table: which image each row means, what is counted, what is refused; and lists of images."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pretask
from pretask import data
from pretask.cli import main
from pretask.data import label_file, listed, places
from pretask.reading import Reading
from pretask.types import UserError
from pretask.workflows import inputs

ODD = ["a, b.png", 'quote".png', "line\nbreak.png", "Straße 猫.png", " space.png", "#1.png", "plus+@.png"]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Ten pictures, each of one gray level, in two folders."""
    for i in range(10):
        path = tmp_path / "photos" / "xy"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        gray(i, path)
    return tmp_path / "photos"


def gray(level: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((16, 16, 3), 20 * level, np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(path)


def table(path: Path, rows, header=("path", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def labels_of(spec: str, **fields) -> dict[str, str]:
    """Name -> class of each labeled image."""
    found = data.open_labeled(spec, size=16, progress=False, **fields)
    names = found.files(torch.arange(len(found)))
    return {name: found.classes[k] for name, k in zip(names, found.label.tolist(), strict=True)}


def level_of(spec: str) -> dict[str, int]:
    """Name -> gray level of each labeled image: that it is the right picture."""
    found = data.open_labeled(spec, size=16, progress=False)
    image = found.__getitems__(torch.arange(len(found))).image
    names = found.files(torch.arange(len(found)))
    return {name: int(x[0, 8, 8]) // 20 for name, x in zip(names, image, strict=True)}


def test_paths_are_relative_to_the_data_or_to_the_table_or_absolute(photos, tmp_path):
    home = tmp_path / "elsewhere"
    gray(11, home / "own.png")
    gray(12, tmp_path / "far" / "abs.png")
    rows = [("x/0.png", "dark"), ("own.png", "bright"), (str(tmp_path / "far" / "abs.png"), "bright")]
    rows += [("../photos/y/1.png", "dark"), (str(photos / "x" / "2.png"), "dark"), ("y\\3.png", "dark")]
    spec = label_file.spec_of(table(home / "few.csv", rows), str(photos))
    expected = {"x/0.png": 0, str(home / "own.png"): 11, str(tmp_path / "far" / "abs.png"): 12}
    expected |= {"y/1.png": 1, "x/2.png": 2, "y/3.png": 3}
    assert level_of(spec) == expected
    found = labels_of(spec)
    assert all(found[name] == ("bright" if level > 10 else "dark") for name, level in expected.items())


def test_the_data_comes_before_the_table(photos, tmp_path):
    """The same relative path in both places means the image of --data."""
    gray(11, tmp_path / "elsewhere" / "x" / "0.png")
    spec = label_file.spec_of(
        table(tmp_path / "elsewhere" / "few.csv", [("x/0.png", "a"), ("y/1.png", "b")]), str(photos)
    )
    assert level_of(spec) == {"x/0.png": 0, "y/1.png": 1}


def test_rows_without_an_image_and_images_without_a_row_are_counted(photos, tmp_path, capsys):
    few = table(
        tmp_path / "few.csv", [("x/0.png", "a"), ("y/1.png", "b"), ("y/99.png", "b"), ("x/2.png", "")]
    )
    assert labels_of(label_file.spec_of(few, str(photos))) == {"x/0.png": "a", "y/1.png": "b"}
    said = capsys.readouterr().err
    assert (
        "few.csv: 3 labeled images, 1 rows without an image (no such image: y/99.png); 7 images without a row"
        in " ".join(said.split())
    )


def test_two_labels_of_one_image_are_an_error_that_names_both(photos, tmp_path):
    rows = [("x/0.png", "cat"), ("y/1.png", "dog"), ("x/./0.png", "dog")]
    with pytest.raises(UserError, match=r"two labels for x/\./0\.png: cat in line 2 and dog in line 4"):
        labels_of(label_file.spec_of(table(tmp_path / "few.csv", rows), str(photos)))
    rows[-1] = ("x/0.png", "cat")
    assert len(labels_of(label_file.spec_of(table(tmp_path / "few.csv", rows), str(photos)))) == 2


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        (
            [("x/99.png", "a")],
            ("path", "label"),
            r"none of 1 rows of .* names an image \(x/99\.png\); a path is relative to",
        ),
        ([], ("path", "label"), "expected path and label|none of 0 rows"),
        ([("x/0.png", "a")], ("where", "what"), "has the columns where, what; expected path and label"),
        ([("x/0.png", "a")], ("path", "what"), "expected path and label, or name them with --labels-from"),
    ],
)
def test_tables_that_label_nothing_are_refused(photos, tmp_path, rows, header, said):
    with pytest.raises(UserError, match=said):
        labels_of(label_file.spec_of(table(tmp_path / "few.csv", rows, header), str(photos)))


def test_other_columns_encodings_and_formats(photos, tmp_path):
    named = table(tmp_path / "a.csv", [("x/0.png", "1"), ("y/1.png", "2")], ("where", "what"))
    reading = Reading(column="where", labels_from="what")
    assert labels_of(label_file.spec_of(named, str(photos)), reading=reading) == {
        "x/0.png": "1",
        "y/1.png": "2",
    }
    tabs = tmp_path / "b.tsv"
    tabs.write_text("label\tfile_name\na\tx/0.png\nb\ty/1.png\n")
    lines = tmp_path / "c.jsonl"
    lines.write_text(
        "\n".join(json.dumps({"path": p, "label": k}) for p, k in (("x/0.png", "a"), ("y/1.png", "b")))
    )
    for path in (tabs, lines):
        assert labels_of(label_file.spec_of(path, str(photos))) == {"x/0.png": "a", "y/1.png": "b"}
    gray(5, photos / "é" / "5.png")
    latin = tmp_path / "d.csv"
    latin.write_bytes("path,label\né/5.png,Käse\nx/0.png,Brot\n".encode("cp1252"))
    reading = Reading(encoding="cp1252")
    assert labels_of(label_file.spec_of(latin, str(photos)), reading=reading) == {
        "é/5.png": "Käse",
        "x/0.png": "Brot",
    }


def test_several_labels_an_image(photos, tmp_path):
    rows = [("x/0.png", "cat|dog"), ("y/1.png", "dog"), ("x/2.png", "cat")]
    spec = label_file.spec_of(table(tmp_path / "few.csv", rows), str(photos))
    found = data.open_labeled(spec, size=16, reading=Reading(label_separator="|"))
    assert found.classes == ["cat", "dog"] and found.label.tolist() == [[1, 1], [0, 1], [1, 0]]


def test_names_with_commas_quotes_line_breaks_and_any_unicode(tmp_path):
    for i, name in enumerate(ODD):
        gray(i, tmp_path / "odd" / name)
    spec = label_file.spec_of(
        table(tmp_path / "few.csv", [(n, "ab"[i % 2]) for i, n in enumerate(ODD)]), str(tmp_path / "odd")
    )
    assert level_of(spec) == {name: i for i, name in enumerate(ODD)}


def test_images_that_are_no_files_are_found_by_their_names(photos, tmp_path):
    pixels = np.arange(6, dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2) * 20
    np.savez(tmp_path / "x.npz", images=pixels)
    spec = label_file.spec_of(
        table(tmp_path / "few.csv", [("4", "a"), ("1", "b"), ("9", "b")]), str(tmp_path / "x.npz")
    )
    found = data.open_labeled(spec, size=16)
    assert found.files(torch.arange(2)) == ["4", "1"] and found.label.tolist() == [0, 1]
    assert found.__getitems__(torch.arange(2)).image[:, 0, 0, 0].tolist() == [80, 20]
    everything = data.open_spec(spec, data.OpenOptions(size=16, labels="any"))
    assert everything.label.tolist() == [-1, 1, -1, -1, 0, -1]


def test_commands_take_a_table_of_labels(photos, tmp_path, run_of):
    from pretask.encoders import build

    run = run_of(build("resnet_small:width=4", 3, 16), tmp_path / "run")
    for i in range(40):
        gray(i % 12, photos / "x" / f"more{i}.png")
    few = table(tmp_path / "few.csv", [(f"x/more{i}.png", f"k{i % 2}") for i in range(40)])
    words = ["evaluate", str(run), "--data", str(photos), "--labels", str(few)]
    assert main.main(words) == 0
    [path] = (run / "scores").glob("*.json")
    assert json.loads(path.read_text())["data"]["classes"] == ["k0", "k1"]
    out = tmp_path / "clusters"
    words = [
        "cluster",
        str(run),
        "--data",
        str(photos),
        "--labels",
        str(few),
        "--clusters",
        "2",
        "--by",
        "kmeans",
    ]
    assert main.main([*words, "--out", str(out)]) == 0
    assert json.loads((out / "summary.json").read_text())["n"] == 50  # all images, not only the labeled ones


def test_python_takes_a_table_of_labels(photos, tmp_path):
    from pretask.encoders import build

    few = table(tmp_path / "few.csv", [(f"{'xy'[i % 2]}/{i}.png", f"k{i // 5}") for i in range(10)])
    scores = pretask.evaluate(build("resnet_small:width=4", 3, 16), photos, labels=few, progress=False)
    assert scores.data["classes"] == ["k0", "k1"]
    with pytest.raises(UserError, match="labels from a table are those of files"):
        pretask.evaluate(build("resnet_small:width=4", 3, 16), (np.zeros((2, 16, 16)), [0, 1]), labels=few)


def test_labels_of_compare_and_adapt_may_be_a_table(photos, tmp_path):
    few = table(tmp_path / "few.csv", [("x/0.png", "a")])
    assert inputs.labeled_spec(str(few), photos) == f"labels:{few}@{photos}"
    assert inputs.labeled_spec(str(photos), photos) == str(photos)
    assert (
        places.absolute(f"labels:{os.path.relpath(few)}@{os.path.relpath(photos)}")
        == f"labels:{few}@{photos}"
    )


# ---- lists


def test_a_list_is_read_with_the_names_that_images_had(photos, tmp_path):
    keep = tmp_path / "curated" / "keep.txt"
    keep.parent.mkdir()
    listed.write(keep, photos, ["y/3.png", "x/0.png"])
    assert keep.read_text() == "# names relative to: ../photos\n../photos/y/3.png\n../photos/x/0.png\n"
    found = data.open(f"list:{keep}", size=16, progress=False)
    assert found.files(torch.arange(2)) == ["y/3.png", "x/0.png"]
    assert found.__getitems__(torch.arange(2)).image[:, 0, 8, 8].tolist() == [60, 0]
    assert labels_of(f"list:{keep}") == {"y/3.png": "y", "x/0.png": "x"}
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(photos, moved / "photos")
    shutil.move(keep.parent, moved / "curated")
    assert len(data.open(f"list:{moved / 'curated' / 'keep.txt'}", size=16, progress=False)) == 2


def test_a_plain_list_of_any_program(photos, tmp_path):
    plain = photos / "list.txt"
    plain.write_text("x/0.png\r\ny/1.png\n\nx/0.png\nx/none.png\n" + f"{photos}/x/2.png\n")
    source = data.open(f"list:{plain}", size=16, progress=False, reading=Reading(max_bad=0.5))
    assert source.files(torch.arange(3)) == ["x/0.png", "y/1.png", "x/2.png"]
    assert source.ledger.bad == {"x/none.png": "no such file: x/none.png"}
    assert source.ledger.unwanted == {"x/0.png": listed.TWICE}


def test_a_list_holds_every_name(tmp_path):
    names = [*ODD, os.fsdecode(b"not \xff utf-8.png")]
    for i, name in enumerate(names):
        gray(i, tmp_path / "odd" / name)
    listed.write(tmp_path / "keep.txt", tmp_path / "odd", names)
    root, found, ledger = listed.read(tmp_path / "keep.txt")
    assert found == names and not ledger.bad and root == tmp_path / "odd"


def test_labels_of_a_list_are_only_for_what_it_lists(photos, tmp_path):
    listed.write(tmp_path / "keep.txt", photos, ["x/0.png", "y/1.png"])
    few = table(tmp_path / "few.csv", [("x/0.png", "a"), ("y/1.png", "b"), ("x/2.png", "a")])
    assert labels_of(label_file.spec_of(few, f"list:{tmp_path / 'keep.txt'}")) == {
        "x/0.png": "a",
        "y/1.png": "b",
    }


@pytest.mark.parametrize(("content", "said"), [("", "it is empty"), ("no.png\n", r"no\.png: no such file")])
def test_a_list_without_images_is_an_error(tmp_path, content, said):
    (tmp_path / "keep.txt").write_text(content)
    with pytest.raises(UserError, match=said):
        data.open(f"list:{tmp_path / 'keep.txt'}")
    with pytest.raises(UserError, match=r"none\.txt cannot be read"):
        data.open(f"list:{tmp_path / 'none.txt'}")
