"""Predicting labels: what is predicted, what it may claim, what it saves, and what is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import browser
from PIL import Image

import pretask
from pretask import data, encoders
from pretask.cli import main
from pretask.evals import calibration
from pretask.types import UserError
from pretask.workflows.predict import read_head, sentences

KINDS = ("boat", "car", "cup")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """200 pictures of three kinds, each of a color of its own, named after their kind; a tenth of the names are wrong."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(200):
        seen = i % 3
        kind = KINDS[seen] if rng.uniform() < 0.9 else KINDS[rng.integers(3)]
        pixels = rng.normal(110, 50, (32, 32, 3)) + 40 * np.eye(3)[seen]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:04} {kind}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from pretask.encoders.saved import save_encoder

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    save_encoder(encoders.build("resnet_small:width=8", 3, 32), folder)
    return folder


def truth(name: str) -> str:
    return Path(name).stem.split()[1]


def table(path: Path, photos: Path, count: int, drawn: int, wrong: int = 0) -> Path:
    """The first `count` images with their true kinds, `drawn` of them marked as random, `wrong` of them with another label."""
    names = sorted(p.name for p in photos.iterdir())
    rng = np.random.default_rng(0)
    chosen = rng.permutation(names)[:count].tolist()
    kinds = sorted({truth(name) for name in names})
    rows = [
        (
            name,
            kinds[(kinds.index(truth(name)) + 1) % 3] if k < wrong else truth(name),
            "random" if k < drawn else "typical",
        )
        for k, name in enumerate(chosen)
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "reason"), *rows])
    return path


@pytest.fixture(scope="module")
def predicted(photos, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted")
    labels = table(folder / "labels.csv", photos, 120, 90)
    return pretask.predict(weights, labels, photos, out=folder / "out", precision=0.6, progress=False)


def test_every_image_gets_a_label_with_a_probability(predicted, photos):
    rows = predicted.predictions.rows()
    assert {name for name, *_ in rows} == {p.name for p in photos.iterdir()}
    assert all(0.3 < probability <= 1 and 0 <= margin <= probability for _, _, probability, margin, _ in rows)
    right = np.mean([truth(name) == label for name, label, *_ in rows])
    assert right > 0.8  # a third by chance
    frame = predicted.predictions.frame()
    assert frame.columns.tolist() == ["path", "label", "probability", "margin", "sure"]
    on_disk = list(csv.DictReader((predicted.folder / "predictions.csv").open()))
    assert [row["label"] for row in on_disk] == frame["label"].tolist()


def test_the_accuracy_is_estimated_by_random_labels_alone_and_holds(predicted):
    accuracy = predicted.summary["accuracy"]
    assert predicted.summary["drawn_at_random"] == 90
    known = {row["path"] for row in csv.DictReader((predicted.folder.parent / "labels.csv").open())}
    others = [truth(name) == label for name, label, *_ in predicted.predictions.rows() if name not in known]
    assert len(others) == 80 and accuracy["low"] <= np.mean(others) <= accuracy["high"]
    right = 90 * accuracy["value"]
    assert right == pytest.approx(round(right))
    assert (accuracy["low"], accuracy["high"]) == pytest.approx(calibration.binomial(round(right), 90)[1:])
    said = " ".join(sentences(predicted.summary))
    assert "Expected accuracy of images without a label: " in said and "by 90 labels" in said


def test_sure_predictions_are_those_from_the_threshold_on(predicted):
    sure_from = predicted.summary["sure_from"]
    assert sure_from is not None
    for _, _, probability, _, sure in predicted.predictions.rows():
        assert sure == (probability >= sure_from)
    right = [truth(name) == label for name, label, _, _, sure in predicted.predictions.rows() if sure]
    assert len(right) == predicted.summary["sure"] and np.mean(right) >= 0.6


def test_labels_that_were_not_drawn_at_random_give_no_estimate(photos, weights, tmp_path):
    labels = table(tmp_path / "labels.csv", photos, 60, 0)
    found = pretask.predict(weights, labels, photos, out=tmp_path / "out", progress=False)
    assert found.summary["accuracy"] is None
    said = " ".join(sentences(found.summary))
    assert "no estimate" in said and "as if they were drawn at random" in said


def test_too_few_random_labels_make_nothing_sure(photos, weights, tmp_path):
    labels = table(tmp_path / "labels.csv", photos, 60, 20)
    found = pretask.predict(weights, labels, photos, out=tmp_path / "out", progress=False)
    assert found.summary["sure"] == 0 and not any(found.predictions["sure"])
    assert "59 would be the fewest" in " ".join(sentences(found.summary))


def test_wrong_labels_are_suspected(photos, weights, tmp_path):
    labels = table(tmp_path / "labels.csv", photos, 160, 0, wrong=12)
    found = pretask.predict(weights, labels, photos, out=tmp_path / "out", progress=False)
    given = {row["path"]: row["label"] for row in csv.DictReader(labels.open())}
    wrong = {name for name, label in given.items() if truth(name) != label}
    suspects = found.suspects["path"]
    share = len(wrong) / len(given)
    assert np.mean([name in wrong for name in suspects]) > 3 * share
    assert all(label == given[name] for name, label, *_ in found.suspects.rows())


def test_the_head_is_saved_with_its_stage_and_refuses_other_weights(predicted, weights, photos):
    readout, head, classes = read_head(predicted.folder, weights)
    source = data.open(photos, size=32, progress=False)
    probability = head(readout.rows(source.image))
    names = source.files(torch.arange(len(source)))
    found = {
        name: (classes[int(k)], float(p))
        for name, k, p in zip(names, probability.argmax(1), probability.amax(1), strict=True)
    }
    for name, label, p, *_ in predicted.predictions.rows():
        assert found[name] == (label, pytest.approx(p, abs=1e-4))
    with pytest.raises(UserError, match="was fitted to the features of"):
        read_head(predicted.folder, encoders.build("resnet_small:width=8", 3, 32))
    with pytest.raises(UserError, match="holds no head of pretask predict"):
        read_head(predicted.folder.parent, weights)


@pytest.mark.parametrize("to", ["torch", "onnx"])
def test_the_head_is_exported_with_its_encoder(predicted, weights, photos, tmp_path, to, capsys):
    out = tmp_path / {"torch": "head.pt2", "onnx": "head.onnx"}[to]
    words = ["export", str(weights), "--head", str(predicted.folder), "--to", to, "--out", str(out)]
    assert main.main(words) == 0
    usage = capsys.readouterr().out
    assert "boat" in usage or predicted.classes[0] in usage
    pixels = data.open(photos, size=32, progress=False).image[:4].float() / 255
    if to == "torch":
        probability = torch.export.load(out).module()(pixels)["probability"]
    else:
        import onnxruntime

        [made] = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"]).run(
            ["probability"], {"image": pixels.numpy()}
        )
        probability = torch.from_numpy(made)
    readout, head, _ = read_head(predicted.folder, weights)
    torch.testing.assert_close(probability, head(readout.eval()(pixels)), atol=1e-4, rtol=1e-3)


def test_stage_and_grid_can_be_named(photos, weights, tmp_path):
    labels = table(tmp_path / "labels.csv", photos, 60, 30)
    found = pretask.predict(
        weights, labels, photos, out=tmp_path / "out", stage="stage2", grid=2, progress=False
    )
    card = json.loads((found.folder / "head.json").read_text())
    assert (card["stage"], card["grid"]) == ("stage2", 2)
    with pytest.raises(UserError, match="has no stage 'stage9'"):
        pretask.predict(weights, labels, photos, out=tmp_path / "other", stage="stage9", progress=False)


def test_the_command_prints_what_can_be_claimed_and_writes_pages(photos, weights, tmp_path, capsys):
    labels = table(tmp_path / "labels.csv", photos, 90, 60)
    out = tmp_path / "out"
    assert (
        main.main(
            ["predict", str(weights), "--labels", str(labels), "--data", str(photos), "--out", str(out)]
        )
        == 0
    )
    printed = capsys.readouterr()
    assert (
        printed.out.startswith("200 images labeled from 90 labels of 3 classes")
        and "Traceback" not in printed.err
    )
    with browser(tmp_path, 400, 900) as page:
        for name in ("predictions.html", "explorer.html"):
            page.open(out / name)
            assert page.run("document.documentElement.scrollWidth") <= 400, name
            assert not page.errors and page.requests == [(out / name).as_uri()]
        assert page.run("columns.map(c => c.name).join()") == "label,probability,sure,suspect"


def test_a_second_call_computes_nothing_anew(photos, weights, tmp_path, monkeypatch):
    from pretask.encoders import Classic

    labels = table(tmp_path / "labels.csv", photos, 60, 30)
    first = pretask.predict(weights, labels, photos, out=tmp_path / "out", progress=False)
    calls, before = [], Classic.stages
    monkeypatch.setattr(Classic, "stages", lambda self, x: calls.append(len(x)) or before(self, x))
    again = pretask.predict(weights, labels, photos, out=tmp_path / "out", progress=False)
    assert sum(calls) <= 1  # of a network that is only built
    assert again.predictions.rows() == first.predictions.rows()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("{0}", "a"), ("{1}", "a")], "has 1 class with two or more images (a); predict needs two"),
        ([("{0}", "a"), ("{1}", "b")], "has 0 classes with two or more images (none); predict needs two"),
        ([("none.png", "a")], "none of 1 rows of"),
        ([("{0}", "a|b"), ("{1}", "b")], "needs one"),
    ],
)
def test_labels_that_cannot_be_learned_from_are_one_line(photos, weights, tmp_path, rows, said, capsys):
    names = sorted(p.name for p in photos.iterdir())
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "label"), *((path.format(*names), label) for path, label in rows)]
        )
    words = ["predict", str(weights), "--labels", str(tmp_path / "labels.csv"), "--data", str(photos)]
    words += ["--out", str(tmp_path / "out"), *(["--label-separator", "|"] if "|" in rows[0][1] else [])]
    assert main.main(words) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_class_with_one_image_is_left_out_and_named(photos, weights, tmp_path, capsys):
    labels = table(tmp_path / "labels.csv", photos, 60, 30)
    names = {row["path"] for row in csv.DictReader(labels.open())}
    rest = next(p.name for p in photos.iterdir() if p.name not in names)
    with labels.open("a", newline="") as file:
        csv.writer(file).writerow((rest, "zebra", "random"))
    found = pretask.predict(weights, labels, photos, out=tmp_path / "out", progress=False)
    assert "left out, since they have one labeled image each: zebra" in " ".join(
        capsys.readouterr().err.split()
    )
    assert "zebra" not in found.classes and found.summary["labeled"] == 60


@pytest.fixture
def blocks(photos, weights, tmp_path, monkeypatch):
    """The Python blocks of the page on collections, in a folder with photos and their predictions."""
    import re
    import shutil

    shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    labels = table(tmp_path / "labels.csv", photos, 120, 90)
    pretask.predict(
        weights, labels, tmp_path / "photos", out=tmp_path / "predicted", precision=0.6, progress=False
    )
    page = Path(__file__).parents[2] / "docs" / "collection.md"
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_lines_of_the_page_read_the_tables(blocks, photos, weights, tmp_path, capsys):
    from datasets import load_dataset

    classify, label_studio, imagefolder, fiftyone = blocks
    first = min(p.name for p in photos.iterdir())
    (tmp_path / "photo.jpg").write_bytes((photos / first).read_bytes())
    words = ["export", str(weights), "--head", "predicted", "--to", "onnx", "--out", "classifier.onnx"]
    assert main.main(words) == 0
    capsys.readouterr()
    exec(classify, {})
    rows = {
        row["path"]: row for row in csv.DictReader(Path("predicted/predictions.csv").read_text().splitlines())
    }
    printed = capsys.readouterr().out.split()
    assert printed[0] == rows[first]["label"] and float(printed[1]) == pytest.approx(
        float(rows[first]["probability"]), abs=1e-3
    )
    exec(label_studio, {})
    tasks = json.loads(Path("tasks.json").read_text())
    assert len(tasks) == 200 and tasks[0]["predictions"][0]["result"][0]["value"]["choices"] == [
        next(iter(rows.values()))["label"]
    ]
    exec(fiftyone, {})
    made = json.loads(Path("export/labels.json").read_text())
    assert len(made["labels"]) == len(list(Path("export/data").iterdir())) == 200
    assert made["classes"][made["labels"]["000000"]] == next(iter(rows.values()))["label"]
    exec(imagefolder, {})
    sure = [row for row in rows.values() if row["sure"] == "1"]
    for path in Path("photos").glob("*.png"):
        if rows[path.name]["sure"] == "0":
            path.unlink()
    loaded = load_dataset("imagefolder", data_dir="photos", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == len(sure) and sorted(set(loaded["label"])) == sorted({row["label"] for row in sure})
