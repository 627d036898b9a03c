"""Planted copies of test images in the training set are counted, and scores without them are printed."""

import json
import time

import numpy as np
import pytest
import torch
from small import quick_scores

import pretask
from pretask import data, encoders
from pretask.cli import main
from pretask.collection import duplicates
from pretask.evals import features, leaks
from pretask.rng import Rng


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quick_scores(monkeypatch)


@pytest.fixture(scope="module")
def sets():
    """200 drawings and 60 others; 10 of the others are copied into the first as they are, and 10 re-encoded."""
    source = data.open_labeled("demo:test", size=48)
    image, label = source.images.image[:260], [source.classes[k] for k in source.label[:260]]
    pixels = image.permute(0, 2, 3, 1).numpy().copy()
    pixels[50:60] = pixels[200:210]
    from PIL import Image

    for i in range(10):
        pixels[110 + i] = np.asarray(duplicates.re_encoded(Image.fromarray(pixels[210 + i]), Rng(0)))
    return (pixels[:200], label[:200]), (pixels[200:], label[200:])


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return encoders.build("resnet_small:width=8", 3, 48)


def opened(pair, encoder):
    from pretask.data.base import OpenOptions
    from pretask.workflows.inputs import labeled_pair

    return labeled_pair(pair, None, OpenOptions(size=48, channels=3))[0]


def test_exact_and_near_copies_are_found(sets, encoder):
    train, test = (opened(pair, encoder) for pair in sets)
    known, asked = (features.embed(encoder, source, progress=False) for source in (train, test))
    found = leaks.find(encoder, train, test, known, asked, 60)
    assert set(found.exact.tolist()) == set(range(10))
    assert found.looked == found.n == 60
    assert (
        len({*found.near.tolist()} & {*range(10, 20)}) >= 9
        and len({*found.near.tolist()} - {*range(10, 20)}) <= 1
    )
    assert found.clean.sum() == 60 - found.count
    hurried = leaks.find(encoder, train, test, known, asked, 0)
    assert torch.equal(hurried.exact, found.exact) and not len(hurried.near) and hurried.looked == 0
    assert "(0 of them looked at for near copies)" in hurried.sentence(
        {"knn": 12.345}
    ) and "knn 12.3" in hurried.sentence({"knn": 12.345})


def test_near_copies_are_not_looked_for_if_aligning_takes_longer_than_allowed(sets, encoder, monkeypatch):
    def slow(a, b, before=duplicates.differences):
        time.sleep(0.005 * len(a))
        return before(a, b)

    def late(*_, **__):
        raise AssertionError("bounds are measured although there is no time")

    monkeypatch.setattr(duplicates, "differences", slow)
    monkeypatch.setattr(duplicates, "calibrate", late)
    train, test = (opened(pair, encoder) for pair in sets)
    known, asked = (features.embed(encoder, source, progress=False) for source in (train, test))
    found = leaks.find(encoder, train, test, known, asked, 1.0)
    assert len(found.exact) == 10 and found.looked == 0


def test_evaluate_warns_with_the_scores_without_them(sets, encoder):
    scores = pretask.evaluate(encoder, sets[0], sets[1], progress=False)
    [warning] = [text for text in scores.skipped if "training set too" in text]
    assert "10 equal" in warning and "without them: knn " in warning and "best linear " in warning
    assert scores.leaks["exact"] == 10
    quiet = pretask.evaluate(encoder, sets[0], sets[1], progress=False, leaks=False)
    assert not quiet.leaks and not any("training set too" in text for text in quiet.skipped)
    assert [row.values for row in quiet.rows] == [row.values for row in scores.rows]


def test_sets_without_copies_give_no_warning_and_the_flag_skips_the_search(tmp_path, run_of, encoder, capsys):
    run = run_of(encoders.build("resnet_small:width=4", 3, 16), tmp_path / "run")
    words = ["evaluate", str(run), "--data", "synthetic:80:16", "--json"]
    assert main.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["leaks"]["exact"] == 0 and not any("training set too" in text for text in found["skipped"])
    assert main.main([*words, "--no-leaks"]) == 0
    assert "leaks" not in json.loads(capsys.readouterr().out)
