"""Near-duplicates: the alignment finds a known scale and shift, copies are found, and frames in which something moves are not copies."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretask import data, encoders
from pretask.collection import duplicates, store
from pretask.encoders.readout import Readout
from pretask.rng import Rng


def smooth(n: int, seed: int = 0) -> torch.Tensor:
    """(N, 3, FINE, FINE) in [0, 1], with structure of a few pixels."""
    coarse = Rng(seed, "smooth").uniform(n, 3, 12, 12)
    return F.interpolate(coarse, size=(duplicates.FINE,) * 2, mode="bicubic", align_corners=False).clamp(0, 1)


def moved(image: torch.Tensor, scale: float, dx: float, dy: float) -> torch.Tensor:
    theta = torch.tensor([[scale, 0, dx], [0, scale, dy]]).expand(len(image), 2, 3)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


@pytest.mark.parametrize(
    ("scale", "dx", "dy"), [(0.93, 0.03, -0.04), (0.9, 0.0, 0.0), (1.0, 0.06, 0.05), (1.05, -0.02, 0.03)]
)
def test_alignment_finds_scale_and_shift(scale, dx, dy):
    image = smooth(8)
    crop = moved(image, scale, dx, dy)
    pose = torch.tensor([1.0, 0.0, 0.0]).expand(8, 3)
    for side, steps in duplicates.STEPS.items():
        factor = duplicates.FINE // side
        pose = duplicates.aligned(F.avg_pool2d(image, factor), F.avg_pool2d(crop, factor), pose, steps)
    torch.testing.assert_close(pose.median(0).values, torch.tensor([scale, dx, dy]), atol=0.01, rtol=0)


def test_a_copy_of_other_brightness_and_contrast_is_alike_and_another_image_is_not():
    image = smooth(8)
    changed = 0.1 + 0.75 * moved(image, 0.95, 0.02, 0.02)
    assert duplicates.differences(image, changed).max() < 0.8
    assert (
        duplicates.differences(image, smooth(8, 1)).min() > 2 * duplicates.differences(image, changed).max()
    )


def test_what_moves_in_a_corner_is_seen_however_small_the_mean_difference():
    """A copy differs a little everywhere; a frame in which something moves differs a lot in one place."""
    image = smooth(8)
    noisy = image + 0.02 * Rng(0, "noise").normal(*image.shape)
    frame = image.clone()
    frame[:, :, 40:56, 40:56] = frame[:, :, 40:56, 40:56].flip(3)
    assert duplicates.differences(image, noisy).max() < duplicates.differences(image, frame).min()


def test_equal_pixels_are_grouped_by_their_first_row():
    sums = torch.tensor([[1], [2], [1], [3], [2], [1]], dtype=torch.uint8).numpy()
    pairs = duplicates.equal_pairs(sums)
    assert sorted(map(tuple, pairs.tolist())) == [(0, 2), (0, 5), (1, 4)]
    groups = duplicates.connected(6, torch.tensor([[4, 1], [2, 0], [5, 2]]))
    assert [group.tolist() for group in groups] == [[0, 2, 5], [1, 4]]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Drawings, with copies of twelve of them of each kind."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("planted")
    images = data.open("demo:test", size=64).image[:160]
    truth = {}
    for i, pixels in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    for kind, copy in duplicates.COPIES.items():
        for i in range(12):
            made = copy(Image.open(folder / f"{i:03}.png").convert("RGB"), Rng(1, kind, i))
            made.save(folder / f"copy {kind} {i:03}.png")
            truth[f"copy {kind} {i:03}.png"] = f"{i:03}.png"
    torch.manual_seed(0)
    readout = Readout(encoders.build("resnet_small:width=16", 3, 64))
    source = data.open(folder, size=64, cache_mb=0, progress=False)
    found = store.collect(folder.parent / "store", readout, source, progress=False)
    return readout, source, found, truth


def test_planted_copies_are_found_and_hardly_anything_else(planted):
    readout, source, found, truth = planted
    x, positions = found.rows(), found.positions(source)
    bounds = duplicates.calibrate(readout, source, x, positions, 0, copied=100, pairs=5_000)
    groups = duplicates.find(source, x, positions, found.sums, bounds, lambda row: -len(found.names[row]))
    together = {found.names[row]: number for number, group in enumerate(groups) for row in group.members}
    hits = [name in together and together[name] == together.get(origin) for name, origin in truth.items()]
    assert np.mean(hits) >= 0.9
    pairs = [(found.names[a], found.names[b]) for g in groups for a in g.members for b in g.members if a < b]
    same = [truth.get(a, a) == truth.get(b, b) for a, b in pairs]
    assert np.mean(same) >= 0.9
    assert all(found.names[group.members[0]] not in truth for group in groups if len(group.members) == 4)
    assert "would be missed" in bounds.sentence() and set(bounds.missed) == set(duplicates.COPIES)
    assert max(bounds.missed.values()) <= 10


def test_copies_between_two_collections(planted):
    readout, source, found, truth = planted
    x, positions = found.rows(), found.positions(source)
    bounds = duplicates.calibrate(readout, source, x, positions, 0, copied=60, pairs=0)
    first = torch.tensor([row for row, name in enumerate(found.names) if name not in truth])
    other = torch.tensor([row for row, name in enumerate(found.names) if name in truth])
    pairs = duplicates.between(
        source, x[first], positions[first], found.sums[first.numpy()],
        source, x[other], positions[other], found.sums[other.numpy()], bounds,
    )  # fmt: skip
    hit = {(found.names[first[a]], found.names[other[b]]) for a, b, _ in pairs}
    assert np.mean([(origin, name) in hit for name, origin in truth.items()]) >= 0.9
    assert np.mean([truth[name] == origin for origin, name in hit]) >= 0.9
