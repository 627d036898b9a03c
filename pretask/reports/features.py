"""Similarity of features: nearest neighbors, and a two-dimensional map of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pretask.viz import sheet
from pretask.viz.draw import PALETTE
from pretask.viz.puzzle import Caption

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEIGHBORS = 8
"""neighbors shown per query"""
MAPPED = 1000
"""maximum number of images on the map; t-SNE takes 3 s for these and minutes for all"""


def neighbors(features: Tensor, queries: Tensor, k: int = NEIGHBORS) -> tuple[Tensor, Tensor]:
    """(N, D), (Q,) positions -> (Q, k) cosines and positions of the nearest neighbors, nearest first."""
    unit = F.normalize(features.float(), dim=1)
    cosine = unit[queries] @ unit.T  # (Q, N)
    cosine = cosine.scatter(1, queries[:, None], -torch.inf)  # exclude the query itself
    best = cosine.topk(min(k, len(features) - 1))
    return best.values, best.indices


def choose_queries(n: int, label: Tensor | None, count: int) -> Tensor:
    """(count,) query positions: cycling through the classes if each image has one label, otherwise evenly spaced."""
    if label is None or label.ndim == 2:
        return torch.linspace(0, n - 1, min(count, n)).round().long()
    order = label.argsort(stable=True)
    rank = torch.cat(
        [torch.arange(int(many)) for many in label[order].unique_consecutive(return_counts=True)[1]]
    )
    return order[rank.argsort(stable=True)][:count]  # the first of each class, then the second


@dataclass(frozen=True)
class Neighbor:
    """An image in a row of neighbors; the query has no cosine and no `same`."""

    picture: Image.Image
    name: str = ""
    cosine: float | None = None
    same: bool | None = None


def neighbor_rows(
    features: Tensor, images: Tensor, label: Tensor | None = None, classes: Sequence[str] = (), count: int = 8
) -> list[list[Neighbor]]:
    """`count` rows, each a query and its nearest neighbors; with labels, whether they share a class with the query."""
    queries = choose_queries(len(features), label, count)
    names = class_names(label, classes, len(features))
    drawn = []
    for query, cosine, found in zip(queries.tolist(), *neighbors(features, queries), strict=True):
        picture, *others = sheet.pictures(images[[query, *found.tolist()]])
        drawn.append([Neighbor(picture, names[query])])
        for i, c, other in zip(found.tolist(), cosine.tolist(), others, strict=True):
            same = None if label is None else share_class(label[i], label[query])
            drawn[-1].append(Neighbor(other, names[i], c, same))
    return drawn


def class_names(label: Tensor | None, classes: Sequence[str], n: int) -> list[str]:
    """Names of n images: their class, or their classes separated by commas; empty without labels."""
    if label is None:
        return [""] * n
    if label.ndim == 1:
        return [classes[int(k)] for k in label]
    return [", ".join(classes[int(k)] for k in row.nonzero()) for row in label]


def share_class(one: Tensor, other: Tensor) -> bool:
    """Whether two labels, () classes or (K,) of 1 and 0, are equal or share a class."""
    return bool((one == other) if one.ndim == 0 else (one & other).any())


def neighbor_sheet(features: Tensor, images: Tensor, count: int = 8) -> Image.Image:
    """A contact sheet of `count` rows, each an image and its nearest neighbors by cosine similarity."""
    drawn = neighbor_rows(features, images, count=count)
    cells = [
        sheet.Cell(
            (("", one.picture),), (Caption("", "query" if one.cosine is None else f"{one.cosine:.2f}"),)
        )
        for line in drawn
        for one in line
    ]
    return sheet.paint(cells, title="Nearest neighbors", columns=len(drawn[0]))


def map2d(at: np.ndarray, label: Tensor | None, images: Tensor) -> Figure:
    """A map of images at (N, 2): dots colored by class, or thumbnails without labels."""
    from matplotlib.ticker import NullLocator

    from pretask.viz import svg

    figure, axes = svg.blank_figure(8.0, 5.6)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_major_locator(NullLocator())
    axes.yaxis.set_major_locator(NullLocator())
    if label is None:
        axes.imshow(mosaic(at, images), interpolation="none", aspect="auto")
        return figure
    colors = [PALETTE[k % len(PALETTE)] for k in label.tolist()]
    axes.scatter(at[:, 0], at[:, 1], s=14, c=colors, alpha=0.85, linewidths=0)
    axes.margins(0.02)
    return figure


def mosaic(
    at: np.ndarray, images: Tensor, width: int = 1440, height: int = 1008, side: int = 40
) -> Image.Image:
    """Thumbnails at their positions on a transparent canvas; overlapping ones are omitted."""
    span = np.ptp(at, axis=0)
    place = (at - at.min(0)) / np.where(span > 0, span, 1) * (width - side, height - side)
    canvas = Image.new("RGBA", (width, height))
    taken: list[tuple[float, float]] = []
    for (x, y), picture in zip(place.tolist(), sheet.pictures(images), strict=True):
        if all(abs(x - u) >= side or abs(y - v) >= side for u, v in taken):
            taken.append((x, y))
            canvas.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (int(x), int(y)))
    return canvas


def legend(label: Tensor, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Color and name of each class that occurs."""
    return [(PALETTE[int(k) % len(PALETTE)], classes[int(k)]) for k in label.unique()]
