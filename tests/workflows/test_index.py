"""Indexing and searching: what is found, what an update does, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from browser import browser
from PIL import Image

import pretask
from pretask import data, encoders
from pretask.cli import main
from pretask.collection import lookup
from pretask.encoders.readout import Readout
from pretask.types import UserError
from pretask.workflows import index as indexing


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, pixels in enumerate(data.open("demo:test", size=32).image[:50].permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{i:02}, x.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from pretask.encoders.saved import save_encoder

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    save_encoder(encoders.build("resnet_small:width=8", 3, 32), folder)
    return folder


@pytest.fixture
def idx(photos, weights, tmp_path):
    pretask.index(weights, photos, out=tmp_path / "idx", progress=False)
    return tmp_path / "idx"


def test_an_image_is_most_similar_to_itself_and_its_copy(idx, photos, tmp_path):
    Image.open(photos / "07, x.png").save(tmp_path / "query.jpg", quality=80)
    found = pretask.search(idx, tmp_path / "query.jpg", top=5)
    assert found.table["path"][0] == "07, x.png" and found.table["rank"] == [1, 2, 3, 4, 5]
    assert found.table["similarity"][0] > 0.9 and found.frame()["similarity"].is_monotonic_decreasing
    several = pretask.search(idx, [photos / "03, x.png", photos / "09, x.png"], top=1)
    assert several.table["path"] == ["03, x.png", "09, x.png"]
    array = np.asarray(Image.open(photos / "11, x.png"))[None]
    assert pretask.search(idx, array, top=1).table["path"] == ["11, x.png"]
    assert found.path("07, x.png") == photos.resolve() / "07, x.png"


def test_the_stage_is_part_of_the_index(photos, weights, tmp_path):
    pretask.index(weights, photos, out=tmp_path / "idx", stage="stage2", grid=2, progress=False)
    found = pretask.search(tmp_path / "idx", photos / "05, x.png", top=3)
    encoder = pretask.load(weights)
    source = data.open(photos, size=32, progress=False)
    x = Readout(encoder, "stage2", 2).rows(source.image)
    z = torch.nn.functional.normalize(x - x.mean(0), dim=1)
    names = source.files(torch.arange(len(source)))
    order = (z @ z[names.index("05, x.png")]).argsort(descending=True)[:3]
    assert found.table["path"] == [names[i] for i in order]


def test_new_images_are_added_and_gone_ones_dropped(idx, photos, weights, monkeypatch):
    (photos / "07, x.png").unlink()
    Image.open(photos / "08, x.png").save(photos / "new.bmp")
    seen, before = [], Readout.rows
    monkeypatch.setattr(Readout, "rows", lambda self, image: seen.append(len(image)) or before(self, image))
    made = pretask.index(weights, photos, out=idx, progress=False)
    assert sum(seen) == 1 and made.images == 50
    assert {*pretask.search(idx, photos / "08, x.png", top=2).table["path"]} == {"08, x.png", "new.bmp"}
    assert "07, x.png" not in pretask.search(idx, photos / "08, x.png", top=50).table["path"]


def test_images_that_have_changed_since_are_refused(idx, photos):
    query = photos.parent / "query.png"
    shutil.copy(photos / "07, x.png", query)
    Image.new("RGB", (32, 32)).save(photos / "07, x.png")
    with pytest.raises(
        UserError,
        match=r"07, x\.png in .* is gone or has changed since it was indexed; run pretask index again",
    ):
        pretask.search(idx, query)
    (photos / "07, x.png").unlink()
    with pytest.raises(UserError, match="is gone or has changed"):
        pretask.search(idx, query)


def test_other_weights_are_refused(idx, photos, weights, tmp_path):
    from pretask.encoders.saved import save_encoder

    (tmp_path / "other").mkdir()
    save_encoder(encoders.build("resnet_small:width=8", 3, 32), tmp_path / "other")
    with pytest.raises(UserError, match=r"has other weights than those that .* was made with"):
        pretask.search(idx, photos / "01, x.png", what=tmp_path / "other")
    with pytest.raises(UserError, match="holds features of another encoder or stage"):
        pretask.index(tmp_path / "other", photos, out=idx, progress=False)
    moved = shutil.copytree(weights, tmp_path / "moved")
    assert pretask.search(idx, photos / "01, x.png", top=1, what=moved).table["path"] == ["01, x.png"]


def test_an_interrupted_index_goes_on(photos, weights, tmp_path, monkeypatch):
    def stops(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lookup, "build", stops)
        with pytest.raises(KeyboardInterrupt):
            pretask.index(weights, photos, out=tmp_path / "idx", progress=False)
    with pytest.raises(UserError, match="is not a finished index"):
        pretask.search(tmp_path / "idx", photos / "01, x.png")
    seen, before = [], Readout.rows
    monkeypatch.setattr(Readout, "rows", lambda self, image: seen.append(len(image)) or before(self, image))
    pretask.index(weights, photos, out=tmp_path / "idx", progress=False)
    assert not seen
    card = json.loads((tmp_path / "idx" / indexing.CARD).read_text())
    (tmp_path / "idx" / indexing.CARD).write_text(json.dumps(card | {"images": 49}))
    with pytest.raises(UserError, match="was interrupted while it was updated"):
        pretask.search(tmp_path / "idx", photos / "01, x.png")


def test_the_commands_print_a_table_json_and_a_page(photos, weights, tmp_path, capsys):
    idx, page_file = tmp_path / "idx", tmp_path / "found.html"
    assert main.main(["index", str(weights), "--data", str(photos), "--out", str(idx)]) == 0
    query = str(photos / "02, x.png")
    assert main.main(["search", str(idx), "--query", query, "--top", "4", "--html", str(page_file)]) == 0
    printed = capsys.readouterr().out
    assert "02, x.png" in printed and "1.000" in printed
    assert main.main(["search", str(idx), "--query", query, query, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 40 and rows[0]["path"] == "02, x.png" and rows[0]["rank"] == 1
    with browser(tmp_path, 400, 700) as page:
        page.open(page_file)
        assert page.run("document.querySelectorAll('img').length") == 5
        assert page.run("document.documentElement.scrollWidth") <= 400 and page.requests == [
            page_file.as_uri()
        ]
    assert main.main(["search", str(idx), "--query", str(tmp_path / "none.png")]) == 2
    assert "none.png cannot be read" in capsys.readouterr().err


def test_images_that_are_no_files_are_searched_too(weights, tmp_path):
    pretask.index(weights, "synthetic:40:32", out=tmp_path / "idx", progress=False)
    image = data.open("synthetic:40:32").image[5:6].permute(0, 2, 3, 1).numpy()
    assert pretask.search(tmp_path / "idx", image, top=1).table["path"] == ["5"]
