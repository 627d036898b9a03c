"""Kinds of data: detected from the content, and opened only once per command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import quick_scores

import pretask
from pretask import data as sources
from pretask.cli.main import main
from pretask.data import store
from pretask.data.arrays import Arrays
from pretask.data.base import OpenOptions
from pretask.types import UserError
from pretask.workflows import kinds
from pretask.workflows.kinds import Extras, LabeledImages, TextImages, Tracks

SIZE = OpenOptions(16, 3, progress=False)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick_scores(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    known = {"encoder": "resnet_small:width=8", "batch": 16, "steps": 2, "quiet": True}
    return str(
        pretask.pretrain(
            "rotnet", "synthetic:64:16", tmp_path_factory.mktemp("runs") / "a-s0", **known
        ).folder
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """Paths of the same images as each kind of data, and of a test set."""
    root = tmp_path_factory.mktemp("data")
    found = sources.open_labeled("synthetic:120:16")
    pixels = found.images.image.permute(0, 2, 3, 1).numpy()  # type: ignore[attr-defined]
    (root / "images").mkdir()
    rows = []
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(root / f"images/{i}.png")
        kind = found.classes[int(found.label[i])]
        rows.append({"image": f"images/{i}.png", "label": kind, "text": f"a {kind} by the {kind} road"})
    tables = {
        "table": rows,
        "test": rows[::2],
        "texts": [{key: row[key] for key in ("image", "text")} for row in rows],
    }
    for name, lines in tables.items():
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    np.savez(root / "arrays.npz", images=pixels, labels=found.label.numpy(), class_names=found.classes)
    store.prepare(found, root / "store", progress=False)
    aux = {
        "tracked": found.images.image,  # type: ignore[attr-defined]
        "clip": torch.arange(120),
        "span": torch.tensor([[0, 30]]).repeat(120, 1),
    }
    store.prepare(Arrays("clips", found.images.image, aux=aux), root / "tracks", progress=False)  # type: ignore[attr-defined]
    return {path.stem: path for path in root.iterdir()}


@pytest.fixture
def opens(monkeypatch) -> list[str]:
    """Names of the opened data, in order."""
    names, real = [], sources.open_spec
    monkeypatch.setattr(
        sources, "open_spec", lambda spec, given: names.append(Path(spec).stem) or real(spec, given)
    )
    return names


@pytest.mark.parametrize("kind", ["table", "texts", "arrays", "store", "tracks"])
def test_scored_data_is_opened_once_and_shown_in_the_report(kind, run, places, opens):
    assert main(["evaluate", run, "--data", str(places[kind]), "--json"]) == 0
    assert opens.count(kind) == 1
    page = (Path(run) / "report.html").read_text()
    assert ("share a class with their query" in page) == (kind != "tracks")  # which have no labels


@pytest.mark.parametrize("words", [["evaluate"], ["study", "--ask", "data", "--fractions", "1"]])
def test_a_test_set_is_opened_once_and_shown_in_the_report(words, run, places, opens):
    verb, *more = words
    data = ["--data", str(places["arrays"]), "--test", str(places["test"])]
    assert main([verb, run, *data, *more, "--json"]) == 0
    assert (opens.count("arrays"), opens.count("test")) == (1, 1)
    assert "60 images" in (Path(run) / "report.html").read_text()


@pytest.mark.parametrize(
    ("kind", "of"),
    [("table", LabeledImages), ("texts", TextImages), ("store", LabeledImages), ("tracks", Tracks)],
)
def test_the_kind_is_detected_from_the_content(kind, of, places):
    found = kinds.open_kind(places[kind], None, SIZE)
    assert type(found) is of and [source.name for source in found.sources] == [found.sources[0].name]
    assert (found.shown is None) == (of is Tracks)
    found.check(Extras())


@pytest.mark.parametrize("extras", [Extras(supervised=True), Extras(finetune=True), Extras(svm=True)])
def test_training_flags_and_test_sets_are_refused_for_tracks(extras, places):
    with pytest.raises(UserError, match="holds tracks, which have no labels to train on"):
        kinds.open_kind(places["tracks"], None, SIZE).check(extras)
    with pytest.raises(UserError, match="give held-out tracks as --data, without --test or training flags"):
        kinds.open_kind(places["tracks"], places["test"], SIZE).check(Extras())
