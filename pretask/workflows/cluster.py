"""Images sorted into clusters by what a network makes of them: `pretask cluster RUN --data PATH --clusters K`

Agglomerative clustering (maths/agglomeration.py) or k-means of frozen features: of a method that compares images by a head
of its own, as JULE does, that, merged as its run merged them; of all others the pooled features at unit length; of
`pixels` the images themselves. A bare method is trained first. Labels, where the data has any, are read for the score
alone: NMI by the geometric mean, and ACC.

Cost: one pass over the images, then the clustering's own; memory N · D numbers for the features.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pretask import data as sources
from pretask import methods
from pretask.data.base import Asked, Images, Opened
from pretask.data.ledger import BAD
from pretask.evals import cluster_metrics as scoring
from pretask.evals.confidence import Interval, interval, over_runs, resampled
from pretask.evals.knn import unit
from pretask.methods import Method
from pretask.ops import agglomerative as agglomeration
from pretask.runtime import files as checkpoint
from pretask.train.run import Run
from pretask.types import UserError
from pretask.viz import puzzle as sheet
from pretask.workflows import embed as embedding

SCHEMA = 1
SHOWN = 64
"""images on a cluster's sheet, those nearest to its mean first"""
PIXELS = "pixels"
"""the subject that is no run: the baseline"""
LINKAGE = {
    "neighbours_each": agglomeration.NEIGHBOURS,
    "exact": True,
    "smallest": agglomeration.SMALLEST,
}
"""how images are merged where neither their method nor the command says so"""

By = Literal["links", "kmeans"]


@dataclass(frozen=True)
class Subject:
    """What looks at the images, and how its features are compared."""

    name: str
    size: int | None
    channels: int | None
    features: Callable[[Images], Tensor]
    """readable images of a source -> (N, D)"""
    linkage: Mapping[str, Any] = field(default_factory=dict)
    """how its method merges images, by arguments of `agglomeration.cluster`"""


@dataclass(frozen=True)
class Clusters:
    """What was made in `folder`: how large the clusters are and, where there are labels, how right, %."""

    folder: Path
    subject: str
    data: str
    by: str
    neighbours: int | None
    exact: bool | None
    smallest: float | None
    n: int
    skipped: int
    sizes: list[int]
    nmi: Interval | None = None
    acc: Interval | None = None

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | asdict(self) | {"folder": str(self.folder)}, indent=2)


# ---- what looks at the images


def subject(
    spec: str,
    size: int | None = None,
    batch: int = 256,
    data: str = "",
    config: Mapping[str, Any] = MappingProxyType({}),
) -> Subject:
    """A run's folder, timm:NAME, `pixels`, or a method, which is then trained on `data`, by what it knows of `config`."""
    if spec == PIXELS:
        return Subject("raw pixels", size, None, pixels)
    if spec.partition(":")[0] in methods.names() and not Path(spec).exists():
        spec = str(trained(spec, data, config))
    encoder = embedding.encoder_of(spec, size)
    by, linkage = (unit, {}) if spec.startswith("timm:") else compared(Run(spec))

    def features(source: Images) -> Tensor:
        return by(torch.from_numpy(embedding.array(encoder, source, "pool", batch)))

    return Subject(spec, encoder.size, encoder.channels, features, linkage)


def compared(run: Run) -> tuple[Callable[[Tensor], Tensor], Mapping[str, Any]]:
    """What the run's method makes of pooled features, of most nothing new, for which no checkpoint is needed; and how it
    merges images, if it does."""
    drawn = run.drawn()
    return unit if type(drawn).compared is Method.compared else run.method.compared, drawn.linkage


def trained(method: str, data: str, config: Mapping[str, Any]) -> Path:
    """A new run of a method on `data`: for as many clusters as are wanted, merged as asked for, if it has such knobs."""
    from pretask.api import pretrain

    knobs = {f.name for f in dataclasses.fields(methods.recipe(method))}
    told = {name: value for name, value in config.items() if name in knobs and value is not None}
    return pretrain(method, data, config=told).folder


def pixels(source: Images) -> Tensor:
    """(N, D): as JULE begins."""
    from pretask.methods.jule import raw
    from pretask.transforms import augment as images

    parts = [raw(images.to_float(b.image)) for b in embedding.batches(source, 256)]
    return torch.cat(parts)[readable(source)]


def opened(spec: str, asked: Asked) -> Opened:
    """Images, and beside them their labels where all have one."""
    found = sources.opened_anyhow(spec, asked)
    whole = found.label is not None and bool((found.label >= 0).all())
    return found if whole else Opened(found.images)


def readable(source: Images) -> Tensor:
    """(N,) positions of the images that could be read."""
    names = source.files(torch.arange(len(source)))
    return torch.tensor(
        [i for i, name in enumerate(names) if name not in source.ledger.bad], dtype=torch.int64
    )


# ---- clustering


def cluster(
    what: Subject,
    data: Opened,
    clusters: int,
    out: Path,
    by: By = "links",
    seed: int = 0,
    neighbours: int | None = None,
    exact: bool | None = None,
    smallest: float | None = None,
) -> Clusters:
    """Clusters of every readable image, in a new folder `out`: clusters.csv and clusters.parquet with a row for each
    (file, cluster, distance from the cluster's mean), cluster-000.png … with a sheet of each, summary.json.

    By links an image has so many `neighbours`, affinities are `exact` or the fast mode's, and a cluster is one of those
    wanted from a share `smallest` of the mean size on; None: as the subject's method merges. UserError if there are fewer
    images than clusters.
    """
    source = data.images
    refuse(out, neighbours, smallest)
    source.__getitems__(torch.arange(1))  # a stream has no positions, and says so before the work
    x = what.features(source)
    kept = readable(source)
    if not 1 <= clusters <= len(x):
        raise UserError(
            f"{len(x)} images make no {clusters} clusters; expected --clusters from 1 to {len(x)}"
        )
    linkage: dict[str, Any] = {}
    if by == "kmeans":
        found = scoring.cluster(x, clusters, seed)
    else:
        asked = {"neighbours_each": neighbours, "exact": exact, "smallest": smallest}
        linkage = LINKAGE | {**what.linkage} | {k: v for k, v in asked.items() if v is not None}
        found = agglomeration.cluster(x, clusters, **linkage)
    far = distances(x, found)
    scores = {} if data.label is None else scored(data.label[kept], found, seed)
    sizes = found.bincount(minlength=int(found.max()) + 1).tolist()
    links, exact, smallest = (linkage.get(name) for name in LINKAGE)
    made = Clusters(
        out,
        what.name,
        source.name,
        by,
        links,
        exact,
        smallest,
        len(x),
        len(source.ledger.bad),
        sizes,
        **scores,
    )
    names = source.files(kept)

    def fill(inside: Path) -> None:
        write_table(inside, names, found, far)
        for c in range(len(sizes)):
            write_sheet(inside / f"cluster-{c:03}.png", source, kept, c, found, far)
        source.ledger.write(inside / BAD, out / BAD)
        checkpoint.write_text(inside / "summary.json", made.to_json() + "\n")

    checkpoint.write_folder(out, fill)
    return made


def refuse(out: Path, neighbours: int | None, smallest: float | None) -> None:
    """UserError if there is something already, or clusters cannot be merged so."""
    if out.exists():
        raise UserError(f"{out} exists; choose another --out")
    if neighbours is not None and neighbours < 1:
        raise UserError(f"--neighbours {neighbours} links no images; expected 1 or more")
    if smallest is not None and not 0 <= smallest <= 1:
        raise UserError(f"--smallest {smallest:g} is no share of the mean size; expected 0 to 1")


def distances(x: Tensor, label: Tensor) -> Tensor:
    """(N, D), (N,) -> (N,) distance of each sample from the mean of its cluster."""
    total = torch.zeros(int(label.max()) + 1, x.shape[1]).index_add_(0, label, x.float())
    return (x - (total / label.bincount().clamp(min=1)[:, None])[label]).norm(dim=1)


def scored(label: Tensor, found: Tensor, seed: int) -> dict[str, Interval]:
    """NMI by the geometric mean and ACC, %, with intervals over images."""
    label = label.unique(return_inverse=True)[1]
    table = scoring.table(label, found)
    again = resampled(table.ravel(), seed).reshape(-1, *table.shape)
    variance = float((100 * scoring.nmi(again, geometric=True)).var())
    value = np.array([100 * float(scoring.nmi(table, geometric=True))])
    right = 100 * scoring.matched(label, found).float()
    return {"nmi": over_runs(value, variance, len(label)), "acc": interval(right, seed)}


# ---- on disk


def write_table(folder: Path, names: list[str], found: Tensor, far: Tensor) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = io.StringIO()
    rows = zip(names, found.tolist(), (f"{d:.6g}" for d in far.tolist()), strict=True)
    csv.writer(text).writerows([("file", "cluster", "distance"), *rows])
    checkpoint.write_text(folder / "clusters.csv", text.getvalue())
    columns = {
        "file": [embedding.printable(name) for name in names],
        "cluster": found.numpy().astype(np.int32),
        "distance": far.numpy(),
    }
    checkpoint.write(folder / "clusters.parquet", lambda file: pq.write_table(pa.table(columns), file))


def write_sheet(path: Path, source: Images, kept: Tensor, c: int, found: Tensor, far: Tensor) -> None:
    """The images nearest to the cluster's mean, and how many there are."""
    mine = (found == c).nonzero()[:, 0]
    near = mine[far[mine].argsort(stable=True)[:SHOWN]]
    title = f"cluster {c}: {len(mine)} images" + (
        f", the {SHOWN} nearest to its mean" if len(mine) > SHOWN else ""
    )
    picture = sheet.images(source.__getitems__(kept[near]).image, title=title)
    checkpoint.write(path, lambda file: picture.save(file, format="PNG"))
