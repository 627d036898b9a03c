"""Folders with train, val and test splits: pretraining never sees test images."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from small import quick_scores

from pretask import data
from pretask.config import RunConfig
from pretask.data import splits
from pretask.data.base import OpenOptions
from pretask.data.folder import with_all_splits
from pretask.encoders import build
from pretask.encoders.readout import Readout
from pretask.reading import Reading
from pretask.types import UserError
from pretask.workflows import cluster, embed, evaluate, inputs
from pretask.workflows.job import run_folder

VALUES = {"train": 10, "val": 20, "test": 30, "unlabeled": 40, "extra": 50}


def photo(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (value, value, value)).save(path)


def root(at: Path, *parts: str, classes: str = "ab", n: int = 2) -> Path:
    """Two images per class and split, all with the value of the split; an unlabeled split has no classes."""
    for part in parts:
        kind = splits.KINDS.get(Path(part).name.lower(), "test")
        for c in classes:
            for i in range(n):
                inside = part if kind == "unlabeled" else f"{part}/{c}"
                photo(at / inside / f"{c}{i}.png", VALUES[kind])
    return at


def values(source: data.Images) -> set[int]:
    return set(source.__getitems__(torch.arange(len(source))).image[:, 0, 0, 0].tolist())


@pytest.mark.parametrize(
    ("parts", "used"),
    [
        (["train", "val", "test"], {10}),
        (["Train", "VALID", "Test"], {10}),
        (["training", "testing"], {10}),
        (["train", "unlabeled", "extra", "validation"], {10, 40, 50}),
        (["unlabeled", "test"], {40}),
        (["unlabelled", "test"], {40}),  # British spelling
        (["train"], {10}),
        (["images/train", "images/test"], {10}),
        (["cats", "train", "test"], {10, 30}),  # classes
        (["cats", "dogs"], {30}),
        (["val", "test"], {20, 30}),  # without a training split these are ordinary folders
    ],
)
def test_pretraining_never_sees_test_splits(tmp_path, parts, used):
    assert values(data.open(root(tmp_path, *parts))) == used


def test_unused_splits_are_printed_and_counted(tmp_path, capfd):
    root(tmp_path / "photos", "train", "val", "test")
    (tmp_path / "photos/test/broken.png").write_bytes(b"")
    (tmp_path / "photos/test/gone.png").symlink_to("nowhere")
    source = data.open(tmp_path / "photos")
    output = capfd.readouterr().err
    assert "photos: train/ is used, val/ and test/ are not" in output and f"{tmp_path}/photos:all" in output
    assert source.ledger.summary() == "14 found · 4 used · 10 skipped: 6 in test/, 4 in val/"
    assert not source.ledger.bad  # unused images cannot stop a run
    assert source.files(torch.arange(4)) == [
        "train/a/a0.png",
        "train/a/a1.png",
        "train/b/b0.png",
        "train/b/b1.png",
    ]


def test_one_split_all_or_classes_can_be_requested(tmp_path):
    at = root(tmp_path / "photos", "train", "val", "test")
    assert values(data.open(f"{at}:val")) == values(data.open(at, split="validation")) == {20}
    assert data.open(f"{at}:val").name == "photos:val"
    everything = data.open_labeled(f"{at}:all")
    assert values(everything.images) == {10, 20, 30} and everything.classes == ["a", "b"]
    classes = data.open_labeled(f"{at}:classes")
    assert len(classes) == 12 and classes.classes == ["test", "train", "val"]
    assert values(data.open(f"{root(tmp_path / 'yolo', 'images/train', 'images/val')}:val")) == {20}
    with pytest.raises(UserError, match=r"no split 'extra'; it has train, val, test"):
        data.open(f"{at}:extra")


def test_existing_path_with_a_colon_is_a_path(tmp_path):
    root(tmp_path / "photos", "train", "test")
    photo(tmp_path / "photos:all/x.png", 99)
    assert values(data.open(tmp_path / "photos:all")) == {99}


def test_loose_images_do_not_matter_unless_they_outnumber_train(tmp_path):
    at = root(tmp_path / "a", "train", "test")
    for i in range(9):
        photo(at / f"preview{i}.png", 99)
    source = data.open(at)
    assert values(source) == {10} and "9 outside the splits" in source.ledger.summary()
    assert values(data.open(f"{at}:all")) == {10, 30, 99}
    at = root(tmp_path / "b", "train")
    photo(at / "preview.png", 99)
    assert values(data.open(at)) == {10}
    for i in range(9):
        photo(at / f"{i}.png", 99)
    assert values(data.open(at)) == {10, 99}


def test_folders_named_like_splits_give_a_message(tmp_path, capfd):
    data.open(root(tmp_path, "train", "test", "cats"))
    assert "test/ and train/ are read as ordinary folders" in capfd.readouterr().err
    data.open(root(tmp_path / "b", "val", "test"))
    assert "test/ and val/ are read as ordinary folders" in capfd.readouterr().err
    data.open(root(tmp_path / "c", "cats", "test"))
    assert "ordinary folders" not in capfd.readouterr().err


def test_labels_are_the_class_folders_of_train(tmp_path):
    at = root(tmp_path / "photos", "train", "val", "test", "unlabeled", "extra")
    source = data.open_labeled(at)
    assert (
        source.classes == ["a", "b"]
        and source.label.tolist() == [0, 0, 1, 1]
        and values(source.images) == {10}
    )
    found = data.open_with_any_labels(str(at), OpenOptions())
    kinds = [name.split("/")[0] for name in found.images.files(torch.arange(len(found.images)))]
    assert {kind for kind, y in zip(kinds, found.label.tolist(), strict=True) if y < 0} == {"unlabeled"}
    photo(tmp_path / "bare/train/0.png", 1)
    with pytest.raises(UserError, match=r"no class folders; expected .*/train/CLASS/IMAGE"):
        data.open_labeled(tmp_path / "bare")
    with pytest.raises(UserError, match=r"has no train/; it has test/ and unlabeled/"):
        data.open_labeled(root(tmp_path / "none", "unlabeled", "test"))


@pytest.mark.parametrize(
    ("parts", "train", "test"),
    [
        (["train", "val", "test"], "photos:train", "photos:test"),
        (["Train", "valid"], "photos:train", "photos:valid"),
        (["train", "unlabeled", "test"], "photos:train", "photos:test"),
        (["images/train", "images/test"], "photos:train", "photos:images/test"),
    ],
)
def test_test_split_is_used_for_scores_or_else_val(tmp_path, monkeypatch, capfd, parts, train, test):
    quick_scores(monkeypatch)
    at = root(tmp_path / "photos", *parts, n=4)
    encoder = build("resnet_small:width=4", 3, 16).eval()
    found = evaluate.evaluate(encoder, at, progress=False)
    assert (found.data["train"], found.data["test"]) == (train, test)
    assert {name: card["used"] for name, card in found.records.items()} == {"train": 8, "test": 8}
    output = capfd.readouterr().err
    assert f"photos: trained on train/, tested on {test.partition(':')[2]}/" in output
    assert ("; val/ is not used" in output) == ("val" in parts)


def test_root_given_as_test_set_uses_its_test_split(tmp_path, capfd):
    at = root(tmp_path / "photos", "train", "test")
    assert inputs.split_paths("other", at) == ("other", f"{at}:test")
    assert "photos: tested on test/" in capfd.readouterr().err
    arrays = object(), object()
    assert inputs.split_paths(arrays) == (arrays, None)


def test_unlabeled_test_split_falls_back_to_val_or_a_holdout(tmp_path):
    at = root(tmp_path / "photos", "train", "val", "test/test")  # as in many competitions
    (at / "test/test").rename(at / "x")
    for i, path in enumerate(sorted((at / "x").rglob("*.png"))):
        path.rename(at / f"test/{i}.png")
    assert inputs.split_paths(str(at)) == (f"{at}:train", f"{at}:val")
    for path in sorted((at / "val").rglob("*.png")):
        path.unlink()
    assert inputs.split_paths(str(at)) == (str(at), None)


def test_commands_that_do_not_train_use_all_splits(tmp_path):
    at = root(tmp_path / "photos", "train", "test")
    encoder = build("resnet_small:width=4", 3, 16).eval()
    found = cluster.open_images(str(at), OpenOptions(16, 3, Reading()))
    assert values(found.images) == {10, 30} and found.classes == ["a", "b"]
    made = embed.write(Readout(encoder), data.open(with_all_splits(str(at))), tmp_path / "x.parquet")
    assert made.n == 8
    assert with_all_splits("cifar10") == "cifar10" and with_all_splits(f"{at}:test") == f"{at}:test"


def test_run_is_named_by_root_and_split(tmp_path):
    at = root(tmp_path / "photos", "train", "test")
    assert run_folder("rotnet", RunConfig(str(at))).name == "rotnet-photos-s0"
    assert run_folder("rotnet", RunConfig(f"{at}:all")).name == "rotnet-photos-all-s0"
    photo(tmp_path / "cats:dogs/x.png", 1)
    assert run_folder("rotnet", RunConfig(f"{tmp_path}/cats:dogs")).name == "rotnet-cats-dogs-s0"
    assert run_folder("rotnet", RunConfig("stl10:unlabeled")).name == "rotnet-unlabeled-s0"
