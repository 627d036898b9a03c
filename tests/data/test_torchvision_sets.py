"""torchvision datasets, from local files in the expected layout; nothing is downloaded."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretask import data as sources
from pretask.data import torchvision_sets
from pretask.reading import Reading
from pretask.types import UserError

DIGITS = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Twelve training images and three test images in MNIST's own format."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 12), ("t10k", 3)):
        head = struct.pack(">iiii", 2051, n, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + DIGITS[:n].tobytes())
        labels = bytes(i % 10 for i in range(n))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, n) + labels)
    return tmp_path


@pytest.mark.parametrize("spec", ["mnist", "MNIST", "mnist:train"])
def test_arrays_are_taken_from_the_given_root(mnist: Path, spec: str):
    source = sources.open(spec, reading=Reading(root=mnist))
    assert (source.name, source.channels, source.size) == ("mnist", 1, 28)
    assert torch.equal(source.__getitems__(torch.arange(12)).image[:, 0], torch.from_numpy(DIGITS))


def test_labels_and_class_names_are_read_only_if_requested(mnist: Path):
    source = sources.open_labeled("mnist", reading=Reading(root=mnist))
    assert source.label.tolist() == [i % 10 for i in range(12)]
    assert source.classes[3] == "3 - three"


@pytest.mark.parametrize("named", [("mnist:test", None), ("mnist", "test")])
def test_split_may_be_named(mnist: Path, named: tuple):
    assert len(sources.open(named[0], split=named[1], reading=Reading(root=mnist))) == 3


def test_datasets_of_files_are_decoded(tmp_path: Path):
    for k, kind in enumerate(["Forest", "River"]):
        for i in range(6):
            path = tmp_path / "eurosat" / "2750" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (10 * k, i, 0)).save(path)
    source = sources.open_labeled("eurosat", reading=Reading(root=tmp_path))
    assert (source.size, source.classes) == (64, ["Forest", "River"])
    assert source.label.tolist() == [0] * 6 + [1] * 6
    image = source.__getitems__(torch.arange(12)).image
    assert image[:, 0, 0, 0].tolist() == [0] * 6 + [10] * 6
    assert image[:, 1, 0, 0].tolist() == list(range(6)) * 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [("mnist:valid", "no split 'valid'; it has train and test"), ("eurosat:test", "has no splits")],
)
def test_missing_split_is_named(mnist: Path, spec: str, message: str):
    with pytest.raises(UserError, match=message):
        sources.open(spec, reading=Reading(root=mnist))


def test_offline_error_is_one_line_with_advice(tmp_path: Path, monkeypatch):
    def offline(*_, **__):
        raise OSError("Name or service not known\nand a long story")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(
        UserError, match=r"could not be downloaded: Name or service not known\..*--root"
    ) as caught:
        sources.open("cifar10", reading=Reading(root=tmp_path / "new"))
    assert "\n" not in str(caught.value)


def test_usual_names_are_known():
    assert {"cifar10", "cifar100", "mnist", "fashionmnist", "svhn", "stl10"} <= set(torchvision_sets.names())
    assert not torchvision_sets.is_known("imagefolder")


def test_channels_first_arrays_are_transposed(tmp_path: Path, monkeypatch):
    class Svhn:  # with channels first, as in SVHN and STL-10
        data = np.stack([DIGITS, DIGITS // 2, DIGITS // 4], 1)
        labels = np.arange(12)

        def __len__(self) -> int:
            return 12

    monkeypatch.setattr(torchvision_sets, "build", lambda *_: Svhn())
    image = sources.open("svhn").__getitems__(torch.arange(12)).image
    assert torch.equal(image, torch.from_numpy(Svhn.data))
