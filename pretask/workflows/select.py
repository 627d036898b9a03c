"""Which images to label first: `pretask select WEIGHTS --data PATH --count N --out selected.csv`

A part of them is drawn at random: only these can say later how accurate predictions are (`pretask predict`). The others are chosen: the
typical ones of clusters or, once there are labels, those that a first classifier is unsure of.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pretask import data as sources
from pretask.collection import selection, store
from pretask.config import InputConfig, ReadoutConfig
from pretask.data.base import canvas_fields
from pretask.evals import linear_probe
from pretask.evals.holdout import splits
from pretask.limits import PositiveInt, Seed, UnitInterval, checked
from pretask.ops import kmeans
from pretask.ops.neighbors import unit
from pretask.reading import DEFAULT_READING, Reading
from pretask.rng import Rng
from pretask.runtime.console import busy
from pretask.runtime.tables import Table
from pretask.types import UserError
from pretask.workflows import collection, inputs
from pretask.workflows.collection import Opened
from pretask.workflows.subject import Weights

Strategy = Literal["typical", "k-center", "margin"]
RANDOM = "random"
"""reason of the images that are drawn at random"""
MOST_CLUSTERS = 30
"""clusters that the table names, for the sheets of `pretask label`"""


@dataclass(frozen=True)
class Selected:
    """The result of `select`."""

    path: Path
    table: Table
    """rank, path, reason, cluster"""
    strategy: Strategy
    labeled: int
    """images that have a label already"""
    images: Opened

    def frame(self) -> Any:
        """The table as a data frame."""
        return self.table.frame()


@dataclass(frozen=True)
class Known:
    """Images that have a label already."""

    rows: Tensor
    """(M,) rows of the collection that have the same pixels; they are not chosen again"""
    x: Tensor  # (L, D) features of all of them, whether they are in the collection or not
    label: Tensor  # (L,)
    classes: Sequence[str]


@checked
def select(
    what: Weights,
    data: str | Path,
    count: PositiveInt,
    labeled: str | Path | None = None,
    *,
    out: str | Path = "selected.csv",
    strategy: Strategy | None = None,
    random: UnitInterval = 0.3,
    stage: str = "pool",
    grid: PositiveInt | None = None,
    size: PositiveInt | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    seed: Seed = 0,
    reading: Reading = DEFAULT_READING,
    progress: bool = True,
) -> Selected:
    """Choose `count` images to label first, a fraction `random` of them at random.

        selected = pretask.select("timm:resnet18", "photos/", 100, out="selected.csv")

    `what`, `stage` and `grid` are as in `embed`, `data` as in `pretrain`. `labeled` are images that have a label already, in class folders or
    a table of path and label; they are not chosen again, and the default `strategy` with them is "margin", else "typical". Features are
    kept in a folder next to `out`, so that an interrupted call goes on. Raises UserError.
    """
    path = Path(out)
    if path.suffix != ".csv":
        raise UserError(f"--out {path} should end in .csv")
    features = path.with_name(f"{path.stem}-features")
    which, input = ReadoutConfig(stage, grid), InputConfig(size, mean, std)
    own = collection.opened(what, data, features, which, input, reading, progress)
    known = (
        open_known(own, inputs.labeled_spec(labeled, data), features, reading, progress) if labeled else None
    )
    covered = known.rows if known else torch.zeros(0, dtype=torch.long)
    if count > len(own) - len(covered):
        raise UserError(
            f"--count {count} is more than the {len(own) - len(covered):,} readable images without a label in {data}"
        )
    chosen_by = strategy or ("margin" if known else "typical")
    if chosen_by == "margin" and not known:
        raise UserError("--strategy margin needs images with a label; give them with --labeled")
    with busy(f"choosing {count} of {len(own):,} images"):
        rows, reasons = choose(own, known, count, chosen_by, random, covered, seed)
    cluster = clusters(own, rows, seed)
    table = Table(
        {
            "rank": list(range(1, count + 1)),
            "path": [own.names[row] for row in rows.tolist()],
            "reason": reasons,
            "cluster": cluster.tolist(),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    table.write(path)
    return Selected(path, table, chosen_by, len(covered), own)


def open_known(own: Opened, spec: Any, folder: Path, reading: Reading, progress: bool) -> Known:
    fields = canvas_fields(own.readout.encoder)
    found = sources.open_labeled(str(spec), **fields, reading=reading, progress=progress, cache_mb=0)
    sources.require_single_label(found, "--labeled", "select one column of labels with --labels-from")
    there = store.collect(folder / "labeled", own.readout, found.images, progress)
    sums = {each.tobytes() for each in there.sums}
    rows = [row for row, each in enumerate(own.collection.sums) if each.tobytes() in sums]
    return Known(
        torch.tensor(rows, dtype=torch.long),
        there.rows(),
        found.label[there.positions(found.images)],
        found.classes,
    )


def choose(
    own: Opened,
    known: Known | None,
    count: int,
    strategy: Strategy,
    random: float,
    covered: Tensor,
    seed: int,
) -> tuple[Tensor, list[str]]:
    """(count,) rows in the order in which to label them, and why each was chosen."""
    z = unit(own.x - own.x.mean(0))
    free = torch.ones(len(own), dtype=torch.bool)
    free[covered] = False
    pool = free.nonzero().flatten()
    drawn = pool[Rng(seed, "random").permutation(len(pool))[: round(random * count)]]
    covered = torch.cat([covered, drawn])
    rest = count - len(drawn)
    if not rest:
        chosen = torch.zeros(0, dtype=torch.long)
    elif strategy == "typical":
        chosen = selection.typical(z, rest, covered, seed)
    elif strategy == "k-center":
        chosen = selection.k_center(z, rest, covered)
    else:
        assert known is not None
        chosen = selection.margin(z, probabilities(own.x, known, seed), rest, covered, seed)
    return interleaved(drawn, chosen, strategy)


def interleaved(drawn: Tensor, chosen: Tensor, strategy: str) -> tuple[Tensor, list[str]]:
    """Both in their order, evenly mixed, so that the first images have the same fraction of random ones."""
    places = [((k + 0.5) / len(drawn), RANDOM, row) for k, row in enumerate(drawn.tolist())]
    places += [((k + 0.5) / len(chosen), strategy, row) for k, row in enumerate(chosen.tolist())]
    places.sort(key=lambda place: place[0])
    return torch.tensor([row for *_, row in places]), [reason for _, reason, _ in places]


def probabilities(x: Tensor, known: Known, seed: int) -> Tensor:
    """(N, K) of a linear probe on the labels so far."""
    classes = len(known.classes)
    fitted = linear_probe.choose(known.x, known.label, classes, splits(known.label, seed))
    return fitted.probe.logits(x).softmax(1)


def clusters(own: Opened, rows: Tensor, seed: int) -> Tensor:
    """(count,) cluster of each chosen image among the chosen ones, the largest first."""
    if len(rows) < 2:
        return torch.zeros(len(rows), dtype=torch.long)
    z = unit(own.x[rows] - own.x.mean(0))
    found = kmeans.cluster(z, min(MOST_CLUSTERS, max(2, round(len(rows) / 8))), seed)
    order = found.bincount().argsort(descending=True, stable=True)
    return order.argsort()[found]


def sentences(found: Selected) -> Iterator[str]:
    """What was chosen, in words."""
    reasons = found.table["reason"]
    drawn = sum(reason == RANDOM for reason in reasons)
    yield (
        f"{len(reasons):,} of {len(found.images):,} images to label: {drawn:,} drawn at random, by which the accuracy can be estimated "
        f"later, and {len(reasons) - drawn:,} chosen ({found.strategy})."
    )
    if found.labeled:
        yield f"{found.labeled:,} images have a label already."
