"""Images with text: rows of three kinds of file, articles, and whatever is wrong with either."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from pretask import data as sources
from pretask.cli.main import main
from pretask.data import encoded, loader, store
from pretask.data.subset import drawn
from pretask.text import words as text
from pretask.types import UserError

N = 20


def photo(path: Path, value: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (value, value, value)).save(path)
    return path.name


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """N photos of values 0 … N - 1 in images/."""
    for i in range(N):
        photo(tmp_path / f"images/{i:02d}.png", i)
    return tmp_path


def rows_of(n: int = N) -> list[dict]:
    return [{"image": f"images/{i:02d}.png", "text": f"number {i} α"} for i in range(n)]


def jsonl(folder: Path, rows: list) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "pairs.jsonl")


def table(folder: Path, rows: list[dict], name: str = "pairs.csv", delimiter: str = ",") -> str:
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(folder / name)


def parquet(folder: Path, rows: list[dict]) -> str:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).to_parquet(folder / "pairs.parquet")
    return f"text:{folder / 'pairs.parquet'}"


def embedded(folder: Path, rows: list[dict]) -> str:
    """The same with the images' bytes in the table."""
    whole = [row | {"image": {"bytes": (folder / row["image"]).read_bytes(), "path": None}} for row in rows]
    return parquet(folder, whole)


def read(source: sources.Images, index: torch.Tensor | None = None) -> list[tuple[int, str]]:
    batch = source.__getitems__(torch.arange(len(source)) if index is None else index)
    return list(zip(batch.image[:, 0, 0, 0].tolist(), text.unpack(batch.aux["words"]), strict=True))


KINDS = {
    "jsonl": jsonl,
    "csv": table,
    "tsv": lambda folder, rows: table(folder, rows, "pairs.tsv", "\t"),
    "parquet": parquet,
    "embedded": embedded,
}


@pytest.mark.parametrize("later", [False, True], ids=["memory", "later"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_image_comes_with_its_own_text(kind: str, later: bool, photos: Path):
    source = sources.open(KINDS[kind](photos, rows_of()), cache_mb=0 if later else 64)
    assert source.provides == {"words"} and not source.ledger.bad
    assert read(source) == [(i, f"number {i} α") for i in range(N)]
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for batch in loader.epoch(source, order, 5, workers=2):
        assert torch.equal(batch.image[:, 0, 0, 0].long(), batch.index)
        assert text.unpack(batch.aux["words"]) == [f"number {i} α" for i in batch.index.tolist()]


def test_a_share_and_a_store_keep_image_and_text_together(photos: Path, tmp_path: Path):
    for later in (0, 64):
        source = sources.open(jsonl(photos, rows_of()), cache_mb=later)
        some = drawn(source, 0.3, seed=1)
        assert len(some) == 6 and all(words == f"number {value} α" for value, words in read(some))
    store.prepare(source, tmp_path / "store", progress=False)
    assert read(sources.open(tmp_path / "store")) == read(source)


def test_a_text_may_be_in_several_columns_and_in_lists(photos: Path):
    rows = [{"image": "images/00.png", "context": "a page", "captions": ["one", "two"], "topic": "told"}]
    spec = jsonl(photos, rows)
    assert read(sources.open(spec)) == [(0, "a page")]
    assert read(sources.open(f"{spec}:captions,context")) == [(0, "one\ntwo\na page")]
    with pytest.raises(UserError, match="no column about; it has image, context, captions, topic"):
        sources.open(f"{spec}:about")


def test_rows_that_cannot_be_used_are_counted_and_listed(photos: Path):
    (photos / "images/03.png").write_bytes(b"no image")
    rows = [
        *rows_of(),
        '{"image": "images/01.png", ',
        "[1, 2]",
        "",
        {"text": "alone"},
        {"image": "images/02.png", "text": " "},
        {"image": "gone.png", "text": "here"},
        {"image": "https://example.org/a.png", "text": "here"},
    ]
    spec = jsonl(photos, rows)
    source = sources.open(spec, max_bad=0.5)
    assert read(source) == [(i, f"number {i} α") for i in range(N) if i != 3]
    assert {place: re.sub(r":.*", "", why) for place, why in source.ledger.bad.items()} == {
        "line 21": "not JSON",
        "line 22": "not an object of names and values",
        "line 24": "names no image",
        "line 25": "has no text",
        "line 26": "no such file",
        "line 27": "its image lies on the web; download it and give its path",
        "images/03.png": "not an image",
    }
    with pytest.raises(UserError, match=r"7 of 26 images cannot be read .* --max-bad"):
        sources.open(spec)


def test_an_image_that_stands_in_for_an_unreadable_one_brings_its_own_text(photos: Path, monkeypatch):
    monkeypatch.setattr(encoded, "sample", lambda n: list(range(3)))
    (photos / "images/07.png").write_bytes(b"no image")
    source = sources.open(jsonl(photos, rows_of()), cache_mb=0)
    assert read(source, torch.tensor([6, 7, 8]))[1] == (8, "number 8 α")
    (batch,) = loader.epoch(source, torch.tensor([7, 3]), 2, workers=1)
    assert text.unpack(batch.aux["words"]) == ["number 8 α", "number 3 α"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["nothing of use"], r"no image with text \(line 1: not JSON"),
        ([{"picture": "images/00.png", "text": "a"}], "names no image"),
        ([{"image": "images/00.png", "words": "a"}], "has no text"),
    ],
)
def test_a_file_without_pairs_says_what_is_expected(rows: list, told: str, photos: Path):
    with pytest.raises(UserError, match=told):
        sources.open(jsonl(photos, rows))


def test_labels_are_for_evaluation_alone(photos: Path):
    rows = [row | {"label": "odd" if i % 2 else "even"} for i, row in enumerate(rows_of())]
    found = sources.open_labelled(jsonl(photos, rows))
    assert found.classes == ["even", "odd"] and found.label.tolist() == [0, 1] * (N // 2)
    assert sources.open(jsonl(photos, rows)).provides == {"words"}
    with pytest.raises(UserError, match="has no labels"):
        sources.open_labelled(jsonl(photos, rows_of()))


MARKDOWN = """# Stars

Some *words*. ![a dwarf](../images/00.png) <img src="../images/01.png" alt="a giant">

| a | table |
|---|---|
| of | cells |

![again](../images/00.png) ![far](https://example.org/a.png) ![gone](gone.png) ![inside](data:image/png;base64,AA)
"""
HTML = """<html><head><style>p {color: red}</style><title>Moons</title></head>
<body><p>Phobos &amp; Deimos<script>hidden()</script></p><img src="/images/02%20x.png?v=1"></body></html>"""


def test_articles_give_their_whole_text_to_each_of_their_images(photos: Path):
    (photos / "pages").mkdir()
    photo(photos / "images/02 x.png", 2)
    (photos / "pages/stars.md").write_text(MARKDOWN)
    (photos / "pages/moons.html").write_text(HTML)
    (photos / "pages/none.md").write_text("No picture.")
    source = sources.open(f"text:{photos}", max_bad=0.6)
    moons, dwarf, giant = read(source)
    assert [value for value, _ in (moons, dwarf, giant)] == [2, 0, 1]
    assert dwarf[1] == giant[1]
    assert text.words(dwarf[1])[:7] == ["stars", "some", "words", "dwarf", "giant", "table", "cells"]
    assert text.words(moons[1]) == ["moons", "phobos", "deimos"]
    assert {place: why.partition(";")[0] for place, why in source.ledger.bad.items()} == {
        "pages/stars.md: https://example.org/a.png": "its image lies on the web",
        "pages/stars.md: gone.png": "no such file",
        "pages/stars.md: data:image/png;base64,AA": "its image is written into the article",
    }
    with pytest.raises(UserError, match="has no article with an image of its own"):
        sources.open(f"text:{photos / 'images'}")


def test_the_real_pairs(shared_data):
    book = sources.open(shared_data("pairs", "astronomy", "pairs.jsonl"), size=32)
    assert len(book) == 669 and not book.ledger.bad
    assert "universe" in text.words(text.unpack(book.__getitems__(torch.arange(1)).aux["words"])[0])
    assert (
        len(sources.open(f"{shared_data('pairs', 'coco_captions', 'pairs.jsonl')}:captions", size=32)) == 159
    )


def test_a_method_that_needs_text_says_where_it_comes_from(photos: Path, capsys):
    for verb in ("pretrain", "preview"):
        words = [verb, "text_topic", "--data", str(photos / "images"), "--out", str(photos / "out.png")]
        assert main(words) == 2
        assert "needs a text with every image, as in pairs.jsonl" in capsys.readouterr().err
