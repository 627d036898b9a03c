"""Images with text: three kinds of tables, articles, and errors in either."""

import csv
import io
import json
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretask import data as sources
from pretask.cli.main import main
from pretask.data import encoded, image_text, loader, rows, store
from pretask.data.paths import resolve
from pretask.data.subset import draw_subset
from pretask.reading import Reading
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
    """The same with the bytes of the images in the table."""
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


def test_subset_and_store_keep_image_and_text_together(photos: Path, tmp_path: Path):
    for later in (0, 64):
        source = sources.open(jsonl(photos, rows_of()), cache_mb=later)
        some = draw_subset(source, 0.3, seed=1)
        assert len(some) == 6 and all(words == f"number {value} α" for value, words in read(some))
    store.prepare(source, tmp_path / "store", progress=False)
    assert read(sources.open(tmp_path / "store")) == read(source)


def test_text_may_be_in_several_columns_and_in_lists(photos: Path):
    rows = [{"image": "images/00.png", "context": "a page", "captions": ["one", "two"], "topic": "news"}]
    spec = jsonl(photos, rows)
    assert read(sources.open(spec)) == [(0, "a page")]
    assert read(sources.open(f"{spec}:captions,context")) == [(0, "one\ntwo\na page")]
    with pytest.raises(UserError, match="no column about; it has image, context, captions, topic"):
        sources.open(f"{spec}:about")


def test_unusable_rows_are_counted_and_listed(photos: Path):
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
    source = sources.open(spec, reading=Reading(max_bad=0.5))
    assert read(source) == [(i, f"number {i} α") for i in range(N) if i != 3]
    assert {place: re.sub(r":.*", "", why) for place, why in source.ledger.bad.items()} == {
        "line 21": "not JSON",
        "line 22": "not a JSON object",
        "line 24": "has no image path",
        "line 25": "has no text",
        "line 26": "no such file",
        "line 27": "its image is a URL; download it and use its path",
        "images/03.png": "not an image",
    }
    with pytest.raises(UserError, match=r"7 of 26 images cannot be read .* --max-bad"):
        sources.open(spec)


def test_replacement_of_an_unreadable_image_has_its_own_text(photos: Path, monkeypatch):
    monkeypatch.setattr(encoded, "sample", lambda n: list(range(3)))
    (photos / "images/07.png").write_bytes(b"no image")
    source = sources.open(jsonl(photos, rows_of()), cache_mb=0)
    assert read(source, torch.tensor([6, 7, 8]))[1] == (8, "number 8 α")
    (batch,) = loader.epoch(source, torch.tensor([7, 3]), 2, workers=1)
    assert text.unpack(batch.aux["words"]) == ["number 8 α", "number 3 α"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["nothing of use"], r"no usable image \(line 1: not JSON"),
        ([{"picture": "images/00.png", "text": "a"}], "has no image path"),
        ([{"image": "images/00.png", "text": " "}], "has no text"),
    ],
)
def test_file_without_pairs_says_what_is_expected(rows: list, message: str, photos: Path):
    with pytest.raises(UserError, match=message):
        sources.open(jsonl(photos, rows))


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_table_of_labels_needs_no_text(name: str, photos: Path):
    rows = [{"image": f"images/{i:02}.png", "label": "odd" if i % 2 else "even"} for i in range(N)]
    path = photos / name
    if path.suffix == ".csv":
        path.write_text("image,label\n" + "".join(f"{row['image']},{row['label']}\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = sources.open_labeled(str(path))
    assert found.classes == ["even", "odd"] and found.label.tolist() == [0, 1] * (N // 2)
    assert "words" not in found.provides and found.ledger.used == N


def test_column_of_images_can_be_named(photos: Path):
    path = photos / "rows.csv"
    path.write_text("image,view,text\nimages/00.png,images/01.png,a\nimages/02.png,images/03.png,b\n")
    source = sources.open(str(path), reading=Reading(column="view"))
    assert source.files(torch.arange(2)) == ["images/01.png", "images/03.png"]
    with pytest.raises(UserError, match="no column side; it has image, view, text"):
        sources.open(str(path), reading=Reading(column="side"))


def test_labels_are_only_for_evaluation(photos: Path):
    rows = [row | {"label": "odd" if i % 2 else "even"} for i, row in enumerate(rows_of())]
    found = sources.open_labeled(jsonl(photos, rows))
    assert found.classes == ["even", "odd"] and found.label.tolist() == [0, 1] * (N // 2)
    assert sources.open(jsonl(photos, rows)).provides == {"words"}
    with pytest.raises(UserError, match="has no labels"):
        sources.open_labeled(jsonl(photos, rows_of()))


MARKDOWN = """# Stars

Some *words*. ![a dwarf](../images/00.png) <img src="../images/01.png" alt="a giant">

| a | table |
|---|---|
| of | cells |

![again](../images/00.png) ![far](https://example.org/a.png) ![gone](gone.png) ![inside](data:image/png;base64,AA)
"""
HTML = """<html><head><style>p {color: red}</style><title>Moons</title></head>
<body><p>Phobos &amp; Deimos<script>hidden()</script></p><img src="/images/02%20x.png?v=1"></body></html>"""


def test_every_image_of_an_article_has_its_whole_text(photos: Path):
    (photos / "pages").mkdir()
    photo(photos / "images/02 x.png", 2)
    (photos / "pages/stars.md").write_text(MARKDOWN)
    (photos / "pages/moons.html").write_text(HTML)
    (photos / "pages/none.md").write_text("No picture.")
    (photos / "pages/print.pdf").write_bytes(b"%PDF")
    source = sources.open(f"text:{photos}", reading=Reading(max_bad=0.6))
    moons, dwarf, giant = read(source)
    assert [value for value, _ in (moons, dwarf, giant)] == [2, 0, 1]
    assert dwarf[1] == giant[1]
    assert text.words(dwarf[1])[:7] == ["stars", "some", "words", "dwarf", "giant", "table", "cells"]
    assert text.words(moons[1]) == ["moons", "phobos", "deimos"]
    assert {place: re.split("[;:]", why)[0] for place, why in source.ledger.bad.items()} == {
        "pages/stars.md: https://example.org/a.png": "its image is a URL",
        "pages/stars.md: gone.png": "no such file",
        "pages/stars.md: data:image/png;base64,AA": "its image is an inline data URL",
    }
    others = {"articles without images": 1, "images of no article": N - 2, ".pdf": 1}
    assert (source.ledger.other, source.ledger.found) == (others, 3 + 3 + N)
    with pytest.raises(UserError, match="has no article with an image"):
        sources.open(f"text:{photos / 'images'}")


def test_article_and_folder_without_permission_are_listed(photos: Path, monkeypatch):
    (photos / "sound.md").write_text("Words. ![](images/00.png)")
    (photos / "closed.md").write_text("Words. ![](images/01.png)")
    (photos / "closed").mkdir()
    read_bytes, scandir = Path.read_bytes, os.scandir

    def unless_closed(then, path):  # root can read everything
        if Path(path).stem == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return then(path)

    monkeypatch.setattr(Path, "read_bytes", lambda path: unless_closed(read_bytes, path))
    monkeypatch.setattr(os, "scandir", lambda path: unless_closed(scandir, path))
    source = sources.open(f"text:{photos}", reading=Reading(max_bad=0.9))
    assert source.ledger.bad == {"closed.md": "permission denied", "closed": "permission denied"}
    assert (source.ledger.found, source.ledger.used) == (N + 2, 1)


def test_bad_article_does_not_stop_others(photos: Path, tmp_path: Path):
    pages = photos / "pages"
    pages.mkdir()
    (pages / "sound.md").write_text(
        "Words. ![](../images/00.png) ![](%2e%2e/images/01.png) ![](/images/02.png)"
    )
    (pages / "broken.md").symlink_to("nowhere.md")
    (pages / "short.html").write_bytes("Grüße <img src='../images/03.png'>".encode("cp1252"))
    (pages / "loop").symlink_to(pages)
    lost = ["q" * 300 + ".png", "..", "a%00b.png", "nowhere/x.png", "data:image/png;base64,AA"]
    (pages / "lost.html").write_text("words" + "".join(f'<img src="{image}">' for image in lost))
    source = sources.open(f"text:{photos}", reading=Reading(max_bad=0.9))
    assert sorted(value for value, _ in read(source)) == [0, 1, 2]
    reasons = {place: re.split("[;:]", why)[0] for place, why in source.ledger.bad.items()}
    assert reasons == {
        "pages/broken.md": "no such file or directory",
        "pages/short.html": "unknown encoding",
        f"pages/lost.html: {'q' * 80}": "path too long",
        "pages/lost.html: ..": "not a file",
        "pages/lost.html: a%00b.png": "no such file",
        "pages/lost.html: nowhere/x.png": "no such file",
        "pages/lost.html: data:image/png;base64,AA": "its image is an inline data URL",
    }
    assert source.ledger.other == {"images of no article": N - 3}
    assert (source.ledger.found, source.ledger.used) == (N + len(reasons), 3)


def test_real_pairs(shared_data):
    book = sources.open(shared_data("pairs", "astronomy", "pairs.jsonl"), size=32)
    assert len(book) == 669 and not book.ledger.bad
    assert "universe" in text.words(text.unpack(book.__getitems__(torch.arange(1)).aux["words"])[0])
    assert (
        len(sources.open(f"{shared_data('pairs', 'coco_captions', 'pairs.jsonl')}:captions", size=32)) == 159
    )


def test_method_that_needs_text_says_which_sources_have_it(photos: Path, capsys):
    for command in ("pretrain", "preview"):
        words = [command, "text_topic", "--data", str(photos / "images"), "--out", str(photos / "out.png")]
        assert main(words) == 2
        assert "needs a text for every image, as in pairs.jsonl" in capsys.readouterr().err


# ---- malformed tables


def loose(folder: Path, lines: str | bytes, name: str = "loose.csv", columns: str = "", max_bad: float = 1.0):
    """Open a table: value of the image -> text; line -> reason; and the number of rows."""
    content = lines if isinstance(lines, bytes) else lines.encode()
    (folder / name).write_bytes(content)
    source = sources.open(f"{folder / name}{columns}", reading=Reading(max_bad=max_bad))
    assert source.ledger.found == source.ledger.used + source.ledger.skipped
    return dict(read(source)), dict(source.ledger.bad), source.ledger.found


def line(i: int, words: str) -> str:
    return f"images/{i:02d}.png,{words}\n"


def test_unclosed_quote_affects_only_its_row(photos: Path):
    texts = [f'"words {i}' if i == 4 else f"words {i}" for i in range(N)]
    used, bad, found = loose(photos, "image,text\n" + "".join(map(line, range(N), texts)))
    assert used == dict(enumerate(texts)) and not bad and found == N


@pytest.mark.parametrize("second", ['"words 9', 'a screen of 24"'])
def test_two_unclosed_quotes_do_not_swallow_the_rows_between(second: str, photos: Path):
    texts = [{4: '"words 4', 9: second}.get(i, f"words {i}") for i in range(N)]
    used, bad, found = loose(photos, "image,text\n" + "".join(map(line, range(N), texts)))
    assert used == dict(enumerate(texts)) and not bad and found == N


def test_quoted_text_may_contain_newlines_quotes_and_commas(photos: Path):
    texts = [
        'two\nlines, "quoted"\n\nand, more',
        "images/05.png\nis no row",
        "images/05.png,nor,is\nthis",
        "x",
    ]
    table(photos, [{"image": f"images/{i:02d}.png", "text": words} for i, words in enumerate(texts)])
    content = (photos / "pairs.csv").read_bytes()
    used, bad, found = loose(photos, content)
    assert used == dict(enumerate(texts)) and not bad and found == 4


def test_unquoted_text_with_commas_is_read_or_listed(photos: Path):
    prose = loose(photos, "image,text\n" + line(0, "two, three and, more"))
    assert prose == ({0: "two, three and, more"}, {}, 1)
    content = (
        "image,text,label\n" + line(0, "one,cat") + line(1, "one, two, three,cat") + line(2, '"one, two,cat')
    )
    used, bad, found = loose(photos, content)
    assert used == {0: "one"} and found == 3
    assert bad == {
        "line 3": "more fields than the header: 5 instead of 3; quote text that contains ','",
        "line 4": "unclosed quote, or a quote within quotes that is not doubled",
    }


def test_short_rows_are_listed_and_trailing_blank_cells_ignored(photos: Path):
    content = (
        "\n image , text ,label\n"
        + line(0, "one,cat")
        + line(1, "two")  # a missing label does not matter
        + "images/02.png\n"
        + line(3, "four,cat,, ")
        + ",,\n\n  \n"
        + ",five,\n"
    )
    used, bad, found = loose(photos, content)
    assert used == {0: "one", 1: "two", 3: "four"} and found == 5
    assert bad == {"line 5": "fewer fields than the header: 1 instead of 3", "line 10": "has no image path"}


@pytest.mark.parametrize("name", ["loose.csv", "loose.tsv", "LOOSE.CSV"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiter_and_line_ends_are_detected(name: str, delimiter: str, end: str, photos: Path):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
    texts = ["a; b; c", "d, e", "f\tg, ;", "2,5"]
    writer.writerows([("image", "text"), *((f"images/{i:02d}.png", words) for i, words in enumerate(texts))])
    assert loose(photos, file.getvalue(), name) == (dict(enumerate(texts)), {}, 4)


def test_undecodable_bytes_are_listed_by_line(photos: Path):
    content = b"image,text\n" + "".join(line(i, f"gr\xfc\xdfe {i}") for i in range(4)).encode()
    content += b"images/04.png,gr\xfc\xdfe\nimages/05.png,nul\0\nimages/06.png,fine\n"
    used, bad, found = loose(photos, content)
    assert list(used) == [0, 1, 2, 3, 6] and used[3] == "grüße 3" and found == 7
    assert bad == {"line 6": "not of the file's encoding: byte 0xfc", "line 7": "contains a NUL byte"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,text,text\nimages/00.png,a,b\n", "two columns are named 'text'"),
        ("images/00.png,words\nimages/01.png,words\n", r"no usable image \(line 2: "),
        ("image,text\n", "it is empty"),
        ("\n\n", "it is empty"),
        ("", "it is empty"),
    ],
)
def test_unusable_header_is_a_one_line_error(content: str, message: str, photos: Path):
    with pytest.raises(UserError, match=message) as error:
        loose(photos, content)
    assert "\n" not in str(error.value)


def test_rows_without_the_column_are_listed_and_others_are_used(photos: Path):
    rows = [
        {"image": "images/00.png", "caption": "a"},
        {"image": "images/01.png"},
        {"image": "images/02.png", "caption": None},
        {"image": "images/03.png", "caption": ["b", None, ["c"]]},
        {"image": "images/04.png", "caption": 0},
        {"image": "images/05.png", "caption": {"raw": "d"}},
        {"image": "images/06.png", "caption": float("nan")},
        {"image": 7, "caption": "e"},
        "[" * 100_000,
    ]
    content = Path(jsonl(photos, rows)).read_bytes()
    used, bad, found = loose(photos, content, "loose.jsonl", ":caption")
    assert used == {0: "a", 3: "b\nc", 4: "0"} and found == 9
    assert {place: why.partition(":")[0] for place, why in bad.items()} == {
        "line 2": "has no text",
        "line 3": "has no text",
        "line 6": "its text is a JSON object",
        "line 7": "has no text",
        "line 8": "has no image path",
        "line 9": "not JSON",
    }
    with pytest.raises(UserError, match="no column title; it has image, caption"):
        loose(photos, content, "loose.jsonl", ":title")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_same_image_may_have_several_texts(kind: str, photos: Path):
    rows = [{"image": "images/00.png", "text": f"text {i}"} for i in range(3)]
    source = sources.open(KINDS[kind](photos, rows))
    assert read(source) == [(0, f"text {i}") for i in range(3)]


def test_row_paths_are_resolved_or_listed(photos: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(photos))
    photo(photos / "images/a b%.png", 1)
    photo(photos / "images/c\\d.png", 1)
    (photos / "circle").symlink_to("circle")
    there = {
        "images/00.png": "images/00.png",
        "images\\00.png": "images/00.png",
        " images/00.png ": "images/00.png",
        "images/a%20b%25.png": "images/a b%.png",
        "images/a b%.png": "images/a b%.png",
        "images/c\\d.png": "images/c\\d.png",
        "~/images/00.png": str(photos / "images/00.png"),
        f"file://{photos}/images/00.png": str(photos / "images/00.png"),
        str(photos / "images/00.png"): str(photos / "images/00.png"),
    }
    assert {name: resolve(photos, name)[0] for name in there} == there
    not_there = {
        "x" * 5000: "path too long",
        "images/" + "x" * 300: "path too long",
        "a\0b": "not a path",
        "\ud83d.png": "not a path",
        "images": "not a file",
        "images/00.png/x": "no such file",
        "gone.png": "no such file",
        "circle": "too many levels of symbolic links",
        "https://example.org/a.png": "its image is a URL; download it and use its path",
        "//example.org/a.png": "its image is a URL; download it and use its path",
        "data:image/png;base64,AA": "its image is an inline data URL; store it as a file",
        "": "has no image path",
        None: "has no image path",
    }
    assert {name: resolve(photos, name)[1].partition(":")[0] for name in not_there} == not_there


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_too_long_path_is_listed(kind: str, photos: Path):
    wrong = ["x" * 5000, "a\nb.png", "images"]
    rows = rows_of() + [{"image": name, "text": "words"} for name in wrong]
    source = sources.open(KINDS[kind](photos, rows), reading=Reading(max_bad=0.5))
    assert read(source) == [(i, f"number {i} α") for i in range(N)]
    assert [why.partition(":")[0] for why in source.ledger.bad.values()] == [
        "path too long",
        "no such file",
        "not a file",
    ]
    assert source.ledger.found == N + 3


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(
    str.strip
)
NOISE = st.text('",;\t\n\r ab', max_size=12)
quick = settings(derandomize=True, deadline=None, max_examples=40, database=None)


def of_csv(content: str) -> list[rows.Row]:
    return list(rows.of_csv(content, ["image"], ["text"], [], lambda name: name.startswith("images/")))


@quick
@given(st.lists(CELLS, min_size=1, max_size=6), st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]))
def test_csv_round_trip_preserves_all_texts(texts: list[str], delimiter: str, end: str):
    file = io.StringIO()
    quoting = (
        csv.QUOTE_ALL if "\r" in "".join(texts) else csv.QUOTE_MINIMAL
    )  # minimal quoting would not quote a single one
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([("image", "text"), *((f"images/{i}", words) for i, words in enumerate(texts))])
    assert [dict(row.cells) for row in of_csv(file.getvalue())] == [
        {"image": f"images/{i}", "text": words} for i, words in enumerate(texts)
    ]


@quick
@given(st.lists(st.one_of(NOISE, CELLS.map(lambda text: f'images/9,"{text}')), max_size=5), st.data())
def test_noise_between_valid_rows_loses_none_of_them(noise: list[str], data: st.DataObject):
    """Also, every nonblank line belongs to a row that begins at or before it."""
    lines = [f"images/{i},sound {i}" for i in range(4)]
    for line in noise:
        lines.insert(data.draw(st.integers(0, len(lines))), line)
    content = "\n".join(["image,text", *lines])
    found = of_csv(content)
    texts = [row.cells["text"] for row in found if not row.why]
    assert [words for words in texts if words.startswith("sound")] == [f"sound {i}" for i in range(4)]
    begins = [row.line for row in found]
    assert begins == sorted(set(begins))
    for row in found:
        assert row.why or set(row.cells) == {"image", "text"}


@quick
@given(
    st.lists(
        st.one_of(NOISE, st.builds(json.dumps, st.recursive(st.none() | st.integers() | CELLS, st.lists)))
    )
)
def test_every_line_of_jsonl_is_a_row_or_has_a_reason(lines: list[str]):
    content = "\n".join(lines)
    found = {row.line: row.why for row in rows.of_jsonl(content)}
    written = [i for i, text in enumerate(re.split("\r\n|\r|\n", content), 1) if text.strip()]
    assert list(found) == written and all(found.values())


@quick
@given(
    st.recursive(
        st.none() | st.floats() | st.booleans() | CELLS, lambda x: st.lists(x) | st.dictionaries(CELLS, x)
    )
)
def test_every_cell_is_a_text_or_has_a_reason(cell):
    words, why = image_text.text_of({"text": cell}, [])
    assert bool(words) != bool(why)
