"""Neighborhood discovery in the report: class consistency and entropy per round, labels, and the page."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pretask import data
from pretask.config import RunConfig
from pretask.data import subset
from pretask.methods import neighbourhood_discovery as nd
from pretask.reports import neighbors, report
from pretask.train import run
from pretask.types import UserError
from pretask.workflows.job import fresh
from pretask.workflows.pretrain import pretrain


def planted(folder, number: int, anchor: list[bool], neighbor: list[list[int]]) -> None:
    found = {
        "anchor": torch.tensor(anchor),
        "neighbor": torch.tensor(neighbor, dtype=torch.int32),
        "entropy": torch.arange(float(len(anchor))),
    }
    save_file(found, folder / nd.FOUND.format(number))


def test_consistency_is_the_fraction_of_neighbors_with_the_class_of_their_image(tmp_path):
    """By hand: images 0 to 5 of classes 0 0 1 1 2 2, two neighbors each."""
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    neighbor = [[1, 2], [0, 5], [3, 0], [1, 0], [5, 3], [0, 1]]  # right: 1, 1, 1, 0, 1, 0 of two
    planted(tmp_path, 1, [True, False, False, True, False, False], neighbor)
    planted(tmp_path, 2, [True, True, True, False, True, False], neighbor)
    grid = neighbors.consistencies(neighbors.read(tmp_path), label)
    assert [name for name, _ in grid.lines] == ["2 (2 anchors)", "3 (4 anchors)"]
    values = [[cell.value for cell in cells] for _, cells in grid.lines]
    assert values == [pytest.approx([25.0, 100 * 4 / 12]), pytest.approx([50.0, 100 * 4 / 12])]
    reach = 196 * np.std([0.5, 0.0], ddof=1) / 2**0.5
    assert grid.lines[0][1][0].high == pytest.approx(25 + reach, abs=0.01)


def test_entropy_needs_no_labels_and_is_missing_without_other_images(tmp_path):
    planted(tmp_path, 1, [True, True, False], [[1], [0], [0]])
    planted(tmp_path, 2, [True, True, True], [[1], [0], [0]])
    (_, first), (_, last) = neighbors.entropies(neighbors.read(tmp_path)).lines
    assert [cell.value for cell in first] == [0.5, 2.0]
    assert [last[0].value, last[1]] == [1.0, None]


def test_rounds_are_sorted_by_number(tmp_path):
    for number in (10, 2, 1):
        planted(tmp_path, number, [True], [[0]])
    assert list(neighbors.read(tmp_path)) == ["1", "2", "10"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of three rounds on labeled images, and one on half of them."""
    folder = tmp_path_factory.mktemp("rounds")
    labeled = data.open_labeled("synthetic:64:16")
    images = labeled.__getitems__(torch.arange(64)).image.permute(0, 2, 3, 1).numpy()
    np.savez(folder / "images.npz", images=images, labels=labeled.label.numpy())
    runs = {}
    for part in (1.0, 0.5):
        settings = RunConfig(
            str(folder / "images.npz"), folder / f"run-{part}", "resnet_small:width=8", steps=9, fraction=part
        )
        train = nd.Config.train.__class__(batch=16, cycles=3)
        runs[part] = pretrain(fresh("neighbourhood_discovery", settings, nd.Config(), train))
    return runs, labeled.label


def test_a_run_saves_its_rounds_and_the_report_scores_them_with_the_labels_of_its_images(made):
    runs, label = made
    for part, one in runs.items():
        assert sorted(p.name for p in one.folder.glob("neighbors-*")) == [
            "neighbors-1.safetensors",
            "neighbors-2.safetensors",
        ]
        own = label[subset.subset_index(64, part, 0)]
        assert torch.equal(neighbors.labels(one.folder, one.card), own)
        last = neighbors.read(one.folder)["2"]
        assert torch.equal(last["neighbor"].long(), one.method.neighbor)
        same = [int(own[i] == own[j]) for i, (j,) in enumerate(last["neighbor"].tolist())]
        page = report.report(one.folder).read_text()
        assert f"{100 * sum(same) / len(same):.1f} ±" in page
        assert '<section id="rounds"' in page


def test_without_labels_the_page_shows_entropy_and_says_so(made, tmp_path):
    one = made[0][1.0]
    card = json.loads((one.folder / run.CARD).read_text())
    with np.load(card["settings"]["data"]) as whole:
        np.savez(tmp_path / "bare.npz", images=whole["images"])
    with pytest.raises(UserError, match="no labels"):
        data.open_labeled(tmp_path / "bare.npz")
    card["settings"]["data"] = str(tmp_path / "bare.npz")
    assert neighbors.labels(one.folder, card) is None
    (entropy,) = neighbors.answers(one.folder, card)
    assert "Entropy" in entropy.title
    assert neighbors.answers(tmp_path, card) == []  # not a run of neighborhood discovery
    page = report.compose(one.folder, card).read_text()
    assert "the images have no or several labels" in page


def test_saved_rounds_contain_no_labels(made):
    for one in made[0].values():
        assert {*neighbors.read(one.folder)["1"]} == {"anchor", "neighbor", "entropy"}
