"""How often neighbors are of one class, round by round: planted neighborhoods, whose labels they are, and the page."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pretask import data as sources
from pretask.data import subset as share
from pretask.methods import neighbourhood_discovery as nd
from pretask.reports import neighbors as neighborhoods
from pretask.reports import report as compose
from pretask.train import run
from pretask.types import UserError
from pretask.workflows import pretrain as pretraining


def planted(folder, number: int, anchor: list[bool], neighbor: list[list[int]]) -> None:
    found = {
        "anchor": torch.tensor(anchor),
        "neighbor": torch.tensor(neighbor, dtype=torch.int32),
        "entropy": torch.arange(float(len(anchor))),
    }
    save_file(found, folder / nd.FOUND.format(number))


def test_consistency_is_the_share_of_neighbors_of_their_images_class(tmp_path):
    """By hand: images 0 to 5 of classes 0 0 1 1 2 2, two neighbors each."""
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    neighbor = [[1, 2], [0, 5], [3, 0], [1, 0], [5, 3], [0, 1]]  # right: 1, 1, 1, 0, 1, 0 of two
    planted(tmp_path, 1, [True, False, False, True, False, False], neighbor)
    planted(tmp_path, 2, [True, True, True, False, True, False], neighbor)
    grid = neighborhoods.consistencies(neighborhoods.read(tmp_path), label)
    assert [name for name, _ in grid.lines] == ["2 (2 anchors)", "3 (4 anchors)"]
    values = [[cell["value"] for cell in cells] for _, cells in grid.lines]
    assert values == [pytest.approx([25.0, 100 * 4 / 12]), pytest.approx([50.0, 100 * 4 / 12])]
    reach = 196 * np.std([0.5, 0.0], ddof=1) / 2**0.5
    assert grid.lines[0][1][0]["high"] == pytest.approx(25 + reach, abs=0.01)


def test_entropy_needs_no_label_and_no_others_are_no_number(tmp_path):
    planted(tmp_path, 1, [True, True, False], [[1], [0], [0]])
    planted(tmp_path, 2, [True, True, True], [[1], [0], [0]])
    (_, first), (_, last) = neighborhoods.entropies(neighborhoods.read(tmp_path)).lines
    assert [cell["value"] for cell in first] == [0.5, 2.0]
    assert [last[0]["value"], last[1]] == [1.0, None]


def test_rounds_are_in_order_of_their_number(tmp_path):
    for number in (10, 2, 1):
        planted(tmp_path, number, [True], [[0]])
    assert list(neighborhoods.read(tmp_path)) == ["1", "2", "10"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of three rounds on images with labels, and on a share of them."""
    folder = tmp_path_factory.mktemp("rounds")
    labelled = sources.open_labelled("synthetic:64:16")
    images = labelled.__getitems__(torch.arange(64)).image.permute(0, 2, 3, 1).numpy()
    np.savez(folder / "images.npz", images=images, labels=labelled.label.numpy())
    runs = {}
    for part in (1.0, 0.5):
        settings = pretraining.Settings(
            str(folder / "images.npz"), folder / f"run-{part}", "resnet_small:width=8", steps=9, share=part
        )
        train = nd.Config.train.__class__(batch=16, rounds=3)
        runs[part] = pretraining.pretrain("neighbourhood_discovery", settings, nd.Config(), train)
    return runs, labelled.label


def test_a_run_keeps_its_rounds_and_its_report_judges_them_by_the_labels_of_its_own_images(made):
    runs, label = made
    for part, one in runs.items():
        assert sorted(p.name for p in one.folder.glob("neighbors-*")) == [
            "neighbors-1.safetensors",
            "neighbors-2.safetensors",
        ]
        own = label[share.chosen(64, part, 0)]
        assert torch.equal(neighborhoods.labels(one.card), own)
        last = neighborhoods.read(one.folder)["2"]
        assert torch.equal(last["neighbor"].long(), one.method.neighbour)
        same = [int(own[i] == own[j]) for i, (j,) in enumerate(last["neighbor"].tolist())]
        page = compose.report(one.folder).read_text()
        assert f"{100 * sum(same) / len(same):.1f} ±" in page
        assert '<section id="rounds"' in page


def test_without_labels_the_page_shows_what_is_known_and_says_so(made, tmp_path):
    one = made[0][1.0]
    card = json.loads((one.folder / run.CARD).read_text())
    with np.load(card["settings"]["data"]) as whole:
        np.savez(tmp_path / "bare.npz", images=whole["images"])
    with pytest.raises(UserError, match="no labels"):
        sources.open_labelled(tmp_path / "bare.npz")
    card["settings"]["data"] = str(tmp_path / "bare.npz")
    assert neighborhoods.labels(card) is None
    (undecided,) = neighborhoods.answers(one.folder, card)
    assert "undecided" in undecided.title
    assert neighborhoods.answers(tmp_path, card) == []  # a run of another method
    page = compose.compose(one.folder, card).read_text()
    assert "The images have no labels" in page


def test_no_label_is_in_what_a_run_keeps(made):
    for one in made[0].values():
        assert {*neighborhoods.read(one.folder)["1"]} == {"anchor", "neighbor", "entropy"}
