"""Near-duplicates: images that are copies of each other, re-encoded, resized or slightly cropped.

Candidates are pairs with similar features; a second look compares the pixels of each. How similar features must be, and how much pixels
may differ, depends on encoder and collection. Both bounds are measured on copies that are made of some of the images, and their false
alarms on random pairs.

The second look aligns two images of 32 px by scale and shift (Lucas and Kanade, An Iterative Image Registration Technique, IJCAI 1981;
in the inverse compositional form of Baker and Matthews, Lucas-Kanade 20 Years On, IJCV 56, 2004) and takes the largest difference of any
of 4 x 4 cells, relative to what edges in this cell allow: two frames of a video differ where something moves, copies a little everywhere.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pretask.data import decode, originals
from pretask.data.base import Images
from pretask.encoders.readout import Readout
from pretask.ops import neighbors
from pretask.rng import Rng
from pretask.transforms import augment

COPIED = 500
"""images of which copies are made"""
PAIRS = 1_000_000
"""random pairs"""
MISSED = 0.02
"""fraction of each kind of copies that each of the two bounds may miss"""
MOST_LOOKED = 1_000
"""random pairs that get a second look"""
UNLIKE = 0.24
"""largest difference of a copy, relative to that of two different images: copies of very small images may differ by more, and are missed"""
NEAREST = 20
"""neighbors of an image that may be its duplicates; larger groups are connected by chains"""
SIDE, FINE, CELLS = 32, 64, 4
"""pixels of the second look, and of the image that is moved, so that this does not blur it; cells along a side"""
STEPS = {16: 6, SIDE: 3}
"""Gauss-Newton steps at each size, in pixels"""
NOISE, EDGE = 0.02, 0.3
"""difference that a cell may have anyway: of flat areas, and per unit of its gradient"""
FARTHEST = 0.3
"""largest change of scale, and largest shift relative to half a side"""
QUALITY = 60, 85
"""of a re-encoded JPEG, and of a resized or cropped one"""
REDUCED = 0.5
"""side of a resized copy"""
CROPPED = 0.05
"""largest part of a side that is cut off at each edge of a cropped copy"""
BLOCK = 1024
"""pairs aligned at a time"""


Copy = Callable[[Image.Image, Rng], Image.Image]


def re_encoded(image: Image.Image, rng: Rng) -> Image.Image:
    return saved(image, QUALITY[0])


def resized(image: Image.Image, rng: Rng) -> Image.Image:
    size = [max(1, round(REDUCED * side)) for side in image.size]
    return saved(image.resize(size, Image.Resampling.BICUBIC), QUALITY[1])


def cropped(image: Image.Image, rng: Rng) -> Image.Image:
    left, top, right, bottom = (CROPPED * rng.uniform(4)).tolist()
    width, height = image.size
    box = round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height)
    return saved(image.crop(box), QUALITY[1])


def saved(image: Image.Image, quality: int) -> Image.Image:
    """As a JPEG."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert(image.mode)


COPIES: Mapping[str, Copy] = {
    "re-encoded": re_encoded,
    "resized": resized,
    "cropped": cropped,
}


@dataclass(frozen=True)
class Bounds:
    """From when on two images are duplicates, and what that misses."""

    similarity: float
    """smallest cosine of the centered features"""
    difference: float
    """largest difference of the second look"""
    center: Tensor = field(repr=False)  # (D,) mean of the features
    missed: Mapping[str, float] = field(default_factory=dict)
    """kind of copy -> fraction that is not found, %"""
    copied: int = 0
    """images of which copies were made"""
    pairs: int = 0
    """random pairs"""
    alarms: int = 0
    """those that count as duplicates; real ones are among them"""

    def sentence(self) -> str:
        """What to expect."""
        missed = ", ".join(f"{value:.1f} % {kind}" for kind, value in self.missed.items())
        return (
            f"of copies made of {self.copied:,} images, these would be missed: {missed}; of {self.pairs:,} random pairs, "
            f"{self.alarms:,} count as duplicates, real ones included"
        )


def calibrate(
    readout: Readout,
    source: Images,
    x: Tensor,
    positions: Tensor,
    seed: int,
    copied: int = COPIED,
    pairs: int = PAIRS,
) -> Bounds:
    """Bounds for images with features (N, D), at these positions (N,) of the source, from copies of `copied` images; false alarms are
    counted on `pairs` random pairs."""
    center = x.float().mean(0)
    z = neighbors.unit(x.float() - center)
    rng = Rng(seed, "duplicates")
    some = rng.child("copied").permutation(len(x))[:copied]
    own, found = small(source, positions[some]), dict[str, tuple[Tensor, Tensor]]()
    for kind, copy in COPIES.items():
        canvases = copies(source, positions[some], copy, rng.child(kind))
        similar = (z[some] * neighbors.unit(readout.rows(canvases) - center)).sum(1)
        found[kind] = similar, differences(own, reduced(canvases))
    similarity = min(similar.quantile(MISSED).item() for similar, _ in found.values())
    unlike = differences(own, own.roll(1, 0)).median().item()  # of different images
    difference = min(max(far.quantile(1 - MISSED).item() for _, far in found.values()), UNLIKE * unlike)
    missed = {
        kind: 100 * (1 - ((similar >= similarity) & (far <= difference)).double().mean().item())
        for kind, (similar, far) in found.items()
    }
    drawn = rng.child("pairs").integers(2, pairs, high=len(x)).T
    drawn = drawn[drawn[:, 0] != drawn[:, 1]]
    near = drawn[cosines(z, drawn) >= similarity] if len(drawn) else drawn
    looked = confirmed(source, positions, near[:MOST_LOOKED], difference)
    alarms = round(looked.double().mean().item() * len(near)) if len(near) else 0
    return Bounds(similarity, difference, center, missed, len(some), len(drawn), alarms)


def copies(source: Images, positions: Tensor, copy: Copy, rng: Rng) -> Tensor:
    """(N, C, H, W) uint8: copies of images, as an encoder sees them."""

    def one(i: int) -> Tensor:
        made = copy(originals.picture(source, i), rng.child(i))
        return torch.from_numpy(decode.canvas(made, source.size, source.channels).copy())

    return torch.stack([*originals.each(one, positions.tolist())])


def cosines(z: Tensor, pairs: Tensor) -> Tensor:
    """(N, D) unit rows, (P, 2) -> (P,)."""
    return torch.cat([(z[some[:, 0]] * z[some[:, 1]]).sum(1) for some in pairs.split(1 << 16)])


# ---- finding them


@dataclass(frozen=True)
class Group:
    """Images that are copies of each other."""

    members: Sequence[int]
    """rows, the one to keep first"""
    similarity: Sequence[float]
    """of the features to those of the one to keep; 1 for equal pixels"""


def find(
    source: Images, x: Tensor, positions: Tensor, sums: np.ndarray, bounds: Bounds, best: Callable[[int], Any]
) -> list[Group]:
    """Groups of duplicates among images with features (N, D). The one with the largest `best` of its row is kept."""
    z = neighbors.unit(x.float() - bounds.center)
    similarity, index = neighbors.nearest(z, z, min(NEAREST, len(z) - 1), exclude_self=True)
    near = (similarity >= bounds.similarity).nonzero()
    pairs = torch.stack([near[:, 0], index[near[:, 0], near[:, 1]]], 1)
    pairs = pairs.sort(1).values.unique(dim=0)
    pairs = pairs[confirmed(source, positions, pairs, bounds.difference)]
    same = equal_pairs(sums)
    return [group_of(members, z, sums, best) for members in connected(len(x), torch.cat([pairs, same]))]


def equal_pairs(sums: np.ndarray) -> Tensor:
    """(P, 2) each row with the first that has the same pixels."""
    _, first, inverse = np.unique(sums, axis=0, return_index=True, return_inverse=True)
    root = first[inverse.ravel()]
    rows = np.flatnonzero(root != np.arange(len(sums)))
    return torch.from_numpy(np.stack([root[rows], rows], 1))


def connected(n: int, pairs: Tensor) -> list[np.ndarray]:
    """Groups of two or more of n rows that pairs connect, in the order of their first rows."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    one, other = pairs.T.numpy()
    _, group = connected_components(
        coo_matrix((np.ones(len(one)), (one, other)), shape=(n, n)), directed=False
    )
    rows = np.argsort(group, kind="stable")
    parts = np.split(rows, np.flatnonzero(np.diff(group[rows])) + 1)
    return sorted((part for part in parts if len(part) > 1), key=lambda part: part[0])


def group_of(members: np.ndarray, z: Tensor, sums: np.ndarray, best: Callable[[int], Any]) -> Group:
    kept = max(members.tolist(), key=lambda row: (best(row), -row))
    rest = [row for row in members.tolist() if row != kept]
    similar = [1.0 if (sums[row] == sums[kept]).all() else float(z[row] @ z[kept]) for row in rest]
    return Group([kept, *rest], [1.0, *similar])


def between(
    source: Images, x: Tensor, positions: Tensor, sums: np.ndarray,
    other: Images, x_other: Tensor, positions_other: Tensor, sums_other: np.ndarray, bounds: Bounds,
) -> list[tuple[int, int, float]]:  # fmt: skip
    """Pairs (row of the first, row of the other, similarity) of images in two collections that are copies of each other."""
    z, z_other = (neighbors.unit(rows.float() - bounds.center) for rows in (x, x_other))
    similarity, index = neighbors.nearest(z_other, z, min(NEAREST, len(z)))
    near = (similarity >= bounds.similarity).nonzero()
    pairs = torch.stack([index[near[:, 0], near[:, 1]], near[:, 0]], 1)
    looked = seen_alike(source, positions, other, positions_other, pairs, bounds.difference)
    rows: dict[bytes, list[int]] = {}
    for row, one in enumerate(sums):
        rows.setdefault(one.tobytes(), []).append(row)
    exact = [(row, k) for k, one in enumerate(sums_other) for row in rows.get(one.tobytes(), [])]
    found = dict.fromkeys(exact, 1.0)
    for row, k in pairs[looked].tolist():
        found.setdefault((row, k), float(z[row] @ z_other[k]))
    return sorted((row, k, similar) for (row, k), similar in found.items())


# ---- the second look


def confirmed(source: Images, positions: Tensor, pairs: Tensor, bound: float) -> Tensor:
    """(P, 2) rows -> (P,) whether their pixels are alike."""
    return seen_alike(source, positions, source, positions, pairs, bound)


def seen_alike(
    source: Images, positions: Tensor, other: Images, positions_other: Tensor, pairs: Tensor, bound: float
) -> Tensor:
    """(P, 2) rows of two collections -> (P,) whether their pixels are alike. Each image is read once."""
    if not len(pairs):
        return torch.zeros(0, dtype=torch.bool)
    one, at = pairs[:, 0].unique(return_inverse=True)
    two, at_other = pairs[:, 1].unique(return_inverse=True)
    a, b = small(source, positions[one]), small(other, positions_other[two])
    parts = zip(at.split(BLOCK), at_other.split(BLOCK), strict=True)
    return torch.cat([differences(a[i], b[j]) <= bound for i, j in parts])


def small(source: Images, positions: Tensor) -> Tensor:
    """(N,) -> (N, C, FINE, FINE) in [0, 1]."""
    return torch.cat([reduced(source.__getitems__(some).image) for some in positions.split(256)])


def reduced(image: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> (N, C, FINE, FINE) in [0, 1]."""
    size = (FINE, FINE)
    return F.interpolate(
        augment.to_float(image), size=size, mode="bilinear", antialias=True, align_corners=False
    )


def differences(a: Tensor, b: Tensor) -> Tensor:
    """(P, C, FINE, FINE) each -> (P,) the largest difference of a cell, as they are or aligned, whichever is smaller."""
    identity = pose = torch.tensor([1.0, 0.0, 0.0]).expand(len(a), 3)
    for side, steps in STEPS.items():
        pose = aligned(F.avg_pool2d(a, FINE // side), F.avg_pool2d(b, FINE // side), pose, steps)
    return torch.minimum(cell_difference(a, b, identity), cell_difference(a, b, pose))


def warped(a: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """(P, C, H, H), (P, 3) scale and shift -> a(scale · x + shift), and (P, 1, H, H) where that lies inside of a."""
    scale, shift_x, shift_y = pose.unbind(1)
    zero = torch.zeros_like(scale)
    theta = torch.stack([torch.stack([scale, zero, shift_x], 1), torch.stack([zero, scale, shift_y], 1)], 1)
    grid = F.affine_grid(theta, list(a.shape), align_corners=False)
    inside = (grid.abs() <= 1).all(-1)[:, None]
    return F.grid_sample(a, grid, padding_mode="border", align_corners=False), inside


def gradient(b: Tensor) -> tuple[Tensor, Tensor]:
    """(P, C, H, H) -> derivatives by x and y in coordinates from -1 to 1."""
    step = 4 / b.shape[-1]  # two pixels
    padded = F.pad(b, (1, 1, 1, 1), mode="replicate")
    return (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / step, (
        padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    ) / step


def like(w: Tensor, b: Tensor, inside: Tensor) -> Tensor:
    """`w` with the mean and standard deviation of `b` where both are there: copies may differ in brightness and contrast."""
    n = (inside.sum((1, 2, 3), keepdim=True) * w.shape[1]).clamp(min=1)

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (x * inside).sum((1, 2, 3), keepdim=True) / n
        return mean, (((x - mean) * inside).square().sum((1, 2, 3), keepdim=True) / n).sqrt()

    (mean_w, std_w), (mean_b, std_b) = moments(w), moments(b)
    return (w - mean_w) * (std_b / std_w.clamp(min=1e-3)).clamp(0.5, 2.0) + mean_b


def aligned(a: Tensor, b: Tensor, pose: Tensor, steps: int) -> Tensor:
    """(P, C, H, H) each, (P, 3) -> the scale and shift by which a lies on b, after Gauss-Newton steps from `pose`."""
    a, b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    along_x, along_y = gradient(b)
    at = (torch.arange(b.shape[-1]) + 0.5) / b.shape[-1] * 2 - 1
    steepest = torch.stack([along_x * at + along_y * at[:, None], along_x, along_y], 1).flatten(
        2
    )  # (P, 3, H·H)
    for _ in range(steps):
        w, inside = warped(a, pose)
        weighted = steepest * inside.flatten(2)
        hessian = weighted @ steepest.transpose(1, 2) + 1e-6 * torch.eye(3)
        error = (like(w, b, inside) - b).flatten(2)
        change = torch.linalg.solve(hessian, weighted @ error.transpose(1, 2))[..., 0]  # (P, 3)
        scale = pose[:, :1] / (1 + change[:, :1]).clamp(0.5, 2.0)
        shift = pose[:, 1:] - scale * change[:, 1:]
        pose = torch.cat([scale.clamp(1 - FARTHEST, 1 + FARTHEST), shift.clamp(-FARTHEST, FARTHEST)], 1)
    return pose


def cell_difference(a: Tensor, b: Tensor, pose: Tensor) -> Tensor:
    """(P,) the largest difference of a cell of SIDE px images, relative to what it may be anyway."""
    w, inside = warped(a, pose)
    w, b, inside = (F.avg_pool2d(x, FINE // SIDE) for x in (w, b, inside.float()))
    inside = (inside == 1).float()
    side = SIDE // CELLS
    seen = F.avg_pool2d(inside, side)  # (P, 1, CELLS, CELLS)

    def root_mean_square(x: Tensor) -> Tensor:
        return (F.avg_pool2d((x.square().mean(1, keepdim=True) * inside), side) / seen.clamp(min=1e-6)).sqrt()

    along_x, along_y = gradient(b)
    edges = root_mean_square(torch.cat([along_x, along_y], 1) * (2 / SIDE))  # per pixel
    far = root_mean_square(like(w, b, inside) - b) / (NOISE + EDGE * edges)
    return torch.where(seen >= 0.5, far, 0).amax((1, 2, 3))
