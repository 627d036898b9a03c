"""What the features hold to be alike: nearest neighbours, and a map of all images on a plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pretask.viz import puzzle as sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEIGHBOURS = 8
"""shown of each query"""
MAPPED = 1000
"""images on the map at most; t-SNE takes 3 s for these and minutes for all"""
PALETTE = [
    *(
        "#4e79a7",
        "#f28e2b",
        "#e15759",
        "#59a14f",
        "#b07aa1",
        "#edc948",
        "#76b7b2",
        "#ff9da7",
        "#9c755f",
        "#8c8c8c",
    ),
    *(
        "#3d6fb6",
        "#c56a10",
        "#b8434e",
        "#3f8a3a",
        "#8a5a8f",
        "#b8952a",
        "#3f9a93",
        "#d9667f",
        "#7d5a45",
        "#6f7780",
    ),
]
"""of classes, in their order; from the 21st on they are used again"""


def neighbours(features: Tensor, queries: Tensor, k: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """(N, D), (Q,) positions -> (Q, k) cosines and positions of the nearest others, the nearest first."""
    unit = F.normalize(features.float(), dim=1)
    cosine = unit[queries] @ unit.T  # (Q, N)
    cosine = cosine.scatter(1, queries[:, None], -torch.inf)  # nothing is its own neighbour
    best = cosine.topk(min(k, len(features) - 1))
    return best.values, best.indices


def spread_out(n: int, label: Tensor | None, count: int) -> Tensor:
    """(count,) queries: of each class in turn where labels are known, else at even distances."""
    if label is None:
        return torch.linspace(0, n - 1, min(count, n)).round().long()
    order = label.argsort(stable=True)
    rank = torch.cat(
        [torch.arange(int(many)) for many in label[order].unique_consecutive(return_counts=True)[1]]
    )
    return order[rank.argsort(stable=True)][:count]  # the first of every class, then the second


@dataclass(frozen=True)
class Neighbour:
    """A picture in a line of neighbours; the query itself has no cosine and is not judged."""

    picture: Image.Image
    name: str = ""
    cosine: float | None = None
    same: bool | None = None


def lines(
    features: Tensor, images: Tensor, label: Tensor | None = None, classes: Sequence[str] = (), count: int = 8
) -> list[list[Neighbour]]:
    """`count` lines of a query and its nearest others; with labels, whether each has the query's class."""
    queries = spread_out(len(features), label, count)
    names = [""] * len(features) if label is None else [classes[k] for k in label.tolist()]
    drawn = []
    for query, cosine, found in zip(queries.tolist(), *neighbours(features, queries), strict=True):
        picture, *others = sheet.pictures(images[[query, *found.tolist()]])
        drawn.append([Neighbour(picture, names[query])])
        for i, c, other in zip(found.tolist(), cosine.tolist(), others, strict=True):
            same = None if label is None else bool(label[i] == label[query])
            drawn[-1].append(Neighbour(other, names[i], c, same))
    return drawn


def nearest(features: Tensor, images: Tensor, count: int = 8) -> Image.Image:
    """A sheet of `count` lines, each an image and its nearest others by the cosine of their features."""
    drawn = lines(features, images, count=count)
    cells = [
        sheet.Cell(
            (("", one.picture),), (sheet.Note("", "query" if one.cosine is None else f"{one.cosine:.2f}"),)
        )
        for line in drawn
        for one in line
    ]
    return sheet.paint(cells, title="Nearest neighbours", columns=len(drawn[0]))


def plane(features: Tensor, seed: int = 0) -> np.ndarray:
    """(N, D) -> (N, 2): principal components, then t-SNE of their directions."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    z = F.normalize(features.double(), dim=1).numpy()
    if min(z.shape) < 4 or np.ptp(z, axis=0).max() < 1e-6:  # too few, or collapsed: nothing to unfold
        return np.pad(z, ((0, 0), (0, 2)))[:, :2]
    z = PCA(min(50, *z.shape), random_state=seed).fit_transform(z)
    perplexity = min(30.0, (len(z) - 1) / 3)
    with threadpool_limits(1):  # threads that wait for each other took ten times as long on a busy machine
        return TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=seed).fit_transform(z)


def map2d(features: Tensor, label: Tensor | None, images: Tensor, seed: int = 0) -> Figure:
    """Images on a plane where neighbours have similar features: dots coloured by class, else pictures."""
    from matplotlib.ticker import NullLocator

    from pretask.viz import svg

    at = plane(features, seed)  # (N, 2)
    figure, axes = svg.blank(8.0, 5.6)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_major_locator(NullLocator())
    axes.yaxis.set_major_locator(NullLocator())
    if label is None:
        axes.imshow(mosaic(at, images), interpolation="none", aspect="auto")
        return figure
    colours = [PALETTE[k % len(PALETTE)] for k in label.tolist()]
    axes.scatter(at[:, 0], at[:, 1], s=14, c=colours, alpha=0.85, linewidths=0)
    axes.margins(0.02)
    return figure


def mosaic(
    at: np.ndarray, images: Tensor, width: int = 1440, height: int = 1008, side: int = 40
) -> Image.Image:
    """The images at their places on a transparent canvas; one that would cover another is left out."""
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
    """Colour and name of the classes that occur."""
    return [(PALETTE[int(k) % len(PALETTE)], classes[int(k)]) for k in label.unique()]
