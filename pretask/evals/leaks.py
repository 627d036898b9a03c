"""Test images that are in the training set too: equal pixels, and copies that are re-encoded, resized or slightly cropped."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pretask.collection import duplicates
from pretask.data import LabeledDataset
from pretask.data.base import Images
from pretask.data.subset import LabeledSubset
from pretask.encoders import Encoder
from pretask.encoders.readout import Readout
from pretask.evals.features import Features, readable
from pretask.ops import neighbors
from pretask.types import LabeledSource

SHARE = 0.05
"""fraction of the time so far in which near copies are looked for"""
COPIED = 64
"""training images of which copies are made, to find how similar they are"""
TIMED = 8
"""images on which the time of that is estimated"""
BLOCK = 32
"""test images looked up at a time: comparing them with their neighbors takes up to a second"""


@dataclass(frozen=True)
class Leaks:
    """Rows of test images that are in the training set."""

    exact: Tensor  # (E,) with equal pixels
    near: Tensor  # (M,) others
    looked: int
    """test images that were looked at for near copies; all are for equal pixels"""
    n: int

    @property
    def clean(self) -> Tensor:
        """(N,) bool: which test images are not in the training set."""
        kept = torch.ones(self.n, dtype=torch.bool)
        kept[torch.cat([self.exact, self.near])] = False
        return kept

    @property
    def count(self) -> int:
        return len(self.exact) + len(self.near)

    def sentence(self, without: Mapping[str, float]) -> str:
        """A warning; `without` are scores without these images."""
        looked = "" if self.looked == self.n else f" ({self.looked:,} of them looked at for near copies)"
        scores = ", ".join(f"{name} {value:.1f}" for name, value in without.items())
        return (
            f"{self.count:,} of {self.n:,} test images{looked} are in the training set too ({len(self.exact):,} equal, {len(self.near):,} near); "
            f"without them: {scores}"
        )

    def to_json(self) -> dict[str, int]:
        return {"exact": len(self.exact), "near": len(self.near), "looked": self.looked, "n": self.n}


def find(
    encoder: Encoder, train: LabeledSource, test: LabeledSource, train_features: Features, test_features: Features,
    seconds: float, seed: int = 0,
) -> Leaks:  # fmt: skip
    """Leaks between two sets with features of the same encoder; near ones, by the pooled features, as far as `seconds` allow."""
    assert train_features.sums is not None and test_features.sums is not None
    known = {row.numpy().tobytes() for row in train_features.sums}
    is_exact = torch.tensor([row.numpy().tobytes() in known for row in test_features.sums])
    x, x_test = (each.stages["pool"] for each in (train_features, test_features))
    near, looked = find_near(encoder, train, test, x, x_test, seconds, seed)
    return Leaks(is_exact.nonzero().flatten(), near[~is_exact[near]], looked, len(test_features))


def find_near(
    encoder: Encoder,
    train: LabeledSource,
    test: LabeledSource,
    x: Tensor,
    x_test: Tensor,
    seconds: float,
    seed: int,
) -> tuple[Tensor, int]:
    """Rows of near copies, and the number of test images that were looked at."""
    end = time.monotonic() + seconds
    (images, positions), (images_test, positions_test) = images_of(train), images_of(test)
    readout = Readout(encoder)
    if time.monotonic() + calibration_seconds(readout, images, positions) > end:
        return torch.zeros(0, dtype=torch.long), 0
    bounds = duplicates.calibrate(readout, images, x, positions, seed, COPIED, pairs=0)
    z, z_test = (neighbors.unit(rows.float() - bounds.center) for rows in (x, x_test))
    found: list[Tensor] = []
    looked = 0
    for rows in torch.arange(len(z_test)).split(BLOCK):
        if time.monotonic() > end:
            break
        similarity, index = neighbors.nearest(z_test[rows], z, min(duplicates.NEAREST, len(z)))
        near = (similarity >= bounds.similarity).nonzero()
        pairs = torch.stack([index[near[:, 0], near[:, 1]], rows[near[:, 0]]], 1)
        same = duplicates.seen_alike(images, positions, images_test, positions_test, pairs, bounds.difference)
        found.append(pairs[same, 1])
        looked += len(rows)
    return torch.cat(found).unique() if found else torch.zeros(0, dtype=torch.long), looked


def calibration_seconds(readout: Readout, images: Images, positions: Tensor) -> float:
    """Estimated seconds until the bounds of near copies are known."""
    began = time.monotonic()
    image = images.__getitems__(positions[:TIMED]).image
    readout.rows(image)
    own = duplicates.reduced(image)
    duplicates.differences(own, own.roll(1, 0))
    return (len(duplicates.COPIES) + 1) * COPIED / len(image) * (time.monotonic() - began)


def images_of(source: LabeledSource) -> tuple[Images, Tensor]:
    """The images behind labeled ones, and the positions of those that can be read."""
    index = readable(source)
    index = torch.arange(len(source)) if index is None else index
    if isinstance(source, LabeledSubset):
        index, source = source.index[index], source.whole
    assert isinstance(source, LabeledDataset)
    return source.images, index
