"""The explorer in a real browser: what it shows, keys and mouse, tables, and that it stays fast with many images."""

import csv

import numpy as np
import pytest
import torch
from browser import browser

from pretask import data
from pretask.viz import explorer
from pretask.viz.explorer import Column

ODD = 'a, "b"\n<i>猫</i>.png'


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("explorer") / "explorer.html", 300)


def written(path, n: int):
    rng = np.random.default_rng(0)
    group = np.arange(n) % 3
    at = np.stack([group, np.zeros(n)], 1) * 10 + rng.normal(size=(n, 2))
    near = (np.arange(n)[:, None] + np.array([3, 6, 9])) % n
    image = data.open("synthetic:300:16").image
    batches = (image[torch.arange(k, min(k + 100, n)) % 300] for k in range(0, n, 100))
    names = [ODD if i == 4 else f"{'abc'[g]}/{i}.jpg" for i, g in enumerate(group)]
    columns = [
        Column.of("kind", ["cat", "dog", "eel"] * (n // 3) + ["cat"] * (n % 3)),
        Column.of("score", rng.uniform(size=n).tolist()),
    ]
    explorer.write(path, "photos <1>", names, at, near, batches, columns, "A map.")
    return path


def test_columns_are_values_of_text_or_numbers():
    assert Column.of("n", [0.5 * k for k in range(100)]).values == ()
    few = Column.of("k", [1, 2, 1, 2])
    assert few.values == ["1", "2"] and few.data.tolist() == [0, 1, 0, 1]
    many = Column.of("name", [f"x{k % 60}" for k in range(600)] + ["x3"] * 50)
    assert len(many.values) == explorer.MOST_VALUES and many.values[-1] == explorer.OTHER
    assert all(many.values[many.data[600 + k]] == "x3" for k in range(50))


def test_sheets_hold_the_pictures_row_by_row():
    import base64
    import io

    from PIL import Image

    gray = torch.arange(70, dtype=torch.uint8)[:, None, None, None].expand(70, 1, 40, 40) * 3
    [uri] = explorer.sheets([gray[:50], gray[50:]])
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert sheet.shape == (2 * explorer.THUMB, explorer.ROW * explorer.THUMB, 3)
    for i in (0, 5, 63, 64, 69):
        row, column = divmod(i, explorer.ROW)
        cell = sheet[row * 28 : row * 28 + 28, column * 28 : column * 28 + 28]
        assert abs(cell.mean() - 3 * i) < 4


def test_the_page_is_drawn_without_any_request(page_file, tmp_path):
    with browser(tmp_path) as page:
        page.open(page_file)
        assert not page.errors and page.requests == [page_file.as_uri()]
        assert page.run("document.title") == "photos <1> · explorer"
        assert page.run("document.body.dataset.shown") == "300"
        assert (
            page.run("[...document.querySelectorAll('#legend button')].map(b => b.textContent).join()")
            == "cat (100),dog (100),eel (100)"
        )
        colors = page.run(
            "new Promise(r => requestAnimationFrame(() => r(new Set(new Uint32Array(context.getImageData(0, 0, map.width, map.height).data.buffer)).size)))"
        )
        assert colors == 4  # three kinds and the paper


def test_filters_legend_and_lasso_choose_what_is_saved(page_file, tmp_path):
    def saved(page):
        return list(csv.DictReader(page.run("csv()").splitlines(keepends=True)))

    with browser(tmp_path) as page:
        page.open(page_file)
        page.run("document.getElementById('filter').value = 'a/'; filter()")
        rows = saved(page)
        assert len(rows) == 100 and {row["kind"] for row in rows} == {"cat"}
        page.run("document.getElementById('filter').value = ''; filter()")
        page.run("document.querySelector('#legend button').click()")  # hides cats
        assert {row["kind"] for row in saved(page)} == {"dog", "eel"}
        page.run("document.querySelector('#legend button').click()")
        assert ODD in [row["path"] for row in saved(page)]
        box = page.run(
            "(() => { const r = map.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; })()"
        )
        left, top, width, height = box
        middle = left + width / 2
        page.drag(
            (middle, top + 5),
            (left + width - 5, top + 5),
            (left + width - 5, top + height - 5),
            (middle, top + height - 5),
            shift=True,
        )
        rows = saved(page)
        assert (0 < len(rows) < 300 and {row["kind"] for row in rows} == {"dog", "eel"}) or {
            row["kind"] for row in rows
        } == {"eel"}
        page.run("document.getElementById('reset').click()")
        assert len(saved(page)) == 300


def test_keys_and_clicks_show_an_image_and_its_neighbors(page_file, tmp_path):
    with browser(tmp_path) as page:
        page.open(page_file)
        page.run("map.focus()")
        page.press("n", "n", "Enter")
        chosen = page.run("chosen")
        assert chosen >= 0 and page.run("document.querySelectorAll('#near button').length") == 3
        near = page.run("document.querySelector('#near button').title")
        assert near.startswith(page.run(f"name({(chosen + 3) % 300})"))
        page.run("document.querySelector('#near button').click()")
        assert page.run("chosen") == (chosen + 3) % 300
        page.press("Escape")
        assert page.run("chosen") == -1
        before = page.run("[view.x, view.y, view.zoom]")
        page.press("ArrowRight", "+")
        assert page.run("[view.x, view.y, view.zoom]") != before
        page.press("0")
        x, y = page.run(
            "(() => { const r = map.getBoundingClientRect(); return [r.left + screenX(7), r.top + screenY(7)]; })()"
        )
        page.mouse("mouseMoved", x, y)
        page.drag((x, y))
        assert page.run("Math.hypot(screenX(chosen) - screenX(7), screenY(chosen) - screenY(7))") < 14
        page.press("/", *"b/")
        assert page.run("document.body.dataset.shown") == "99"  # one of them has another name


def test_a_table_adds_columns(page_file, tmp_path):
    with (tmp_path / "more.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "place", "size"), ("a/0.jpg", "Rome, Italy", 3), (ODD, "Oslo", 4)]
        )
    with browser(tmp_path) as page:
        page.open(page_file)
        page.upload("#load", tmp_path / "more.csv")
        legend = "new Promise(r => setTimeout(() => r([...document.querySelectorAll('#legend button')].map(b => b.textContent).join('|')), 300))"
        assert page.run(legend) == "(none) (298)|3 (1)|4 (1)"
        assert page.run("columns.map(c => c.name).join()") == "kind,score,place,size"
        assert page.run("value(columns[2], 4)") == "Oslo"


def test_it_fits_a_small_screen(page_file, tmp_path):
    with browser(tmp_path, 400, 800) as page:
        page.open(page_file)
        assert page.run("document.documentElement.scrollWidth") <= 400
        assert page.run("stage.clientHeight") > 300


def test_fifty_thousand_images_are_drawn_fast_enough(tmp_path):
    """The time of a frame's own work; bench/explorer.py measures real frames."""
    path = written(tmp_path / "explorer.html", explorer.MOST)
    assert path.stat().st_size < 40 * 2**20
    with browser(tmp_path) as page:
        page.open(path)
        times = page.run(
            "(() => { const t = []; for (let k = 0; k < 20; k++) { pan(3, 2); const a = performance.now(); render(); t.push(performance.now() - a); } return t.sort((a, b) => a - b); })()"
        )
        assert len(times) == 20 and times[10] < 250  # a tenth of what it takes on a quiet machine
