"""Search a collection by example: `pretask index WEIGHTS --data PATH --out FOLDER`, then `pretask search FOLDER --query IMAGE`

An index remembers its weights and its data. Called again, `index` adds new images, drops those that are gone, and computes changed ones anew.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretask.collection import lookup, store
from pretask.collection.lookup import Lookup
from pretask.config import InputConfig, ReadoutConfig
from pretask.data import decode, folder, originals, places
from pretask.encoders import Encoder
from pretask.encoders.readout import Readout
from pretask.limits import PositiveInt, checked
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime import files
from pretask.runtime.console import busy
from pretask.runtime.tables import Table
from pretask.types import UserError
from pretask.workflows import collection
from pretask.workflows.predict import origin_of
from pretask.workflows.readout import open_readout
from pretask.workflows.subject import Weights

CARD = "index.json"
SCHEMA = 1


@dataclass(frozen=True)
class Card:
    """What an index was made of."""

    weights: str
    key: str
    """of encoder, stage and grid"""
    data: str
    root: str | None
    """folder that names are relative to, for images that are files"""
    stage: str
    grid: int | None
    size: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    images: int
    schema: int = SCHEMA


@dataclass(frozen=True)
class Indexed:
    """The result of `index`."""

    folder: Path
    images: int
    skipped: int
    """unreadable images"""


@dataclass(frozen=True)
class Found:
    """The result of `search`."""

    table: Table
    """query, rank, path, similarity"""
    card: Card

    def frame(self) -> Any:
        """The table as a data frame."""
        return self.table.frame()

    def path(self, name: str) -> Path | None:
        """The file of an image; None if images are no files."""
        return Path(self.card.root, name) if self.card.root else None


@checked
def index(
    what: Weights,
    data: str | Path,
    *,
    out: str | Path,
    stage: str = "pool",
    grid: PositiveInt | None = None,
    size: PositiveInt | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    reading: Reading = DEFAULT_READING,
    progress: bool = True,
) -> Indexed:
    """Index the images of `data` by their features, for `search`; an index that is there is updated.

        pretask.index("timm:resnet18", "photos/", out="idx")

    `what`, `stage` and `grid` are as in `embed`. More than 50,000 images need the extra `search` (FAISS). Raises UserError.
    """
    target = Path(out)
    own = collection.opened(
        what, data, target, ReadoutConfig(stage, grid), InputConfig(size, mean, std), reading, progress
    )
    if not len(own):
        raise UserError(f"{data} has no readable image")
    with busy(f"indexing {len(own):,} images"):
        lookup.build(target, own.collection)
    root = originals.root(own.source)
    readout = own.readout
    card = Card(
        origin_of(what, readout.encoder), store.key_of(readout), places.absolute(str(data)), str(root.resolve()) if root else None,
        readout.stage, readout.grid, readout.encoder.size, mean, std, len(own),
    )  # fmt: skip
    files.write_text(target / CARD, json.dumps(asdict(card), indent=2) + "\n")
    return Indexed(target, len(own), len(own.source.ledger.bad))


@checked
def search(
    where: str | Path,
    query: Any,
    *,
    top: PositiveInt = 20,
    what: Weights | None = None,
) -> Found:
    """The images of an index that are most similar to a query: a file, several files, or an array of images.

        found = pretask.search("idx", "query.jpg", top=20)
        found.frame()

    The index knows its weights; `what` is needed only if they were moved. Raises UserError if weights or images have changed since.
    """
    target = Path(where)
    card, known = opened(target)
    readout = weights_of(card, what, target)
    names, images = queries(query, readout)
    cosine, rows = known.nearest(readout.rows(images).numpy(), top)
    found = [
        (name, rank, known.collection.names[int(row)], float(c))
        for name, cosines, near in zip(names, cosine, rows, strict=True)
        for rank, (c, row) in enumerate(zip(cosines, near, strict=True), 1)
    ]
    check_unchanged(target, card, known, np.unique(rows))
    return Found(Table.of(("query", "rank", "path", "similarity"), found), card)


def opened(target: Path) -> tuple[Card, Lookup]:
    """An index in a folder. Raises UserError."""
    try:
        card = Card(**json.loads((target / CARD).read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(
            f"{target} is not a finished index; make it with pretask index WEIGHTS --data PATH --out {target}"
        ) from None
    found = store.opened(target / collection.FEATURES)
    if len(found) != card.images:
        raise UserError(
            f"{target} was interrupted while it was updated; run pretask index again with the same flags"
        )
    return card, lookup.opened(target, found)


def weights_of(card: Card, what: Weights | None, target: Path) -> Readout:
    input = InputConfig(
        card.size, tuple(card.mean) if card.mean else None, tuple(card.std) if card.std else None
    )
    readout = open_readout(what or card.weights, ReadoutConfig(card.stage, card.grid), input)
    if store.key_of(readout) != card.key:
        raise UserError(
            f"{what or card.weights} has other weights than those that {target} was made with; index the images again"
        )
    return readout


def queries(query: Any, readout: Readout) -> tuple[list[str], torch.Tensor]:
    """Names and pixels (Q, C, H, W) uint8 of the queries."""
    encoder: Encoder = readout.encoder
    if isinstance(query, str | Path):
        query = [query]
    if isinstance(query, Sequence) and query and all(isinstance(each, str | Path) for each in query):
        return [str(each) for each in query], torch.stack([canvas_of(Path(each), encoder) for each in query])
    from pretask.data import in_memory

    source = in_memory.from_array(query, size=encoder.size, channels=encoder.channels, range=encoder.range)
    return [str(i) for i in range(len(source))], source.image


def canvas_of(path: Path, encoder: Encoder) -> torch.Tensor:
    try:
        pixels = decode.canvas(path.expanduser(), encoder.size, encoder.channels, known=encoder.range)
    except decode.Unreadable as why:
        raise UserError(f"{path} cannot be read: {why}") from None
    return torch.from_numpy(pixels.copy())


def check_unchanged(target: Path, card: Card, known: Lookup, rows: np.ndarray) -> None:
    """Raises UserError if the file of a result is gone or has changed since it was indexed."""
    if card.root is None:
        return
    for row in map(int, rows):
        name = known.collection.names[row]
        if tuple(known.collection.stamps[row]) != folder.stamp(os.path.join(card.root, name)):
            raise UserError(
                f"{name} in {card.root} is gone or has changed since it was indexed; run pretask index again with --out {target}"
            )
