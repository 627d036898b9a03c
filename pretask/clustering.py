"""Images sorted into clusters by what a network makes of them: `pretask cluster RUN --data PATH --clusters K`

Agglomerative clustering (maths/agglomeration.py) or k-means of frozen features: of a method that compares images by a head
of its own, as JULE does, that; of all others the pooled features at unit length; of `pixels` the images themselves. A
bare method is trained first. Labels, where the data has any, are read for the score alone: NMI by the geometric mean,
and ACC.

Cost: one pass over the images, then the clustering's own; memory N · D numbers for the features.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pretask import checkpoint, embedding, methods, sources
from pretask.evals import clustering as scoring
from pretask.evals.interval import Interval, interval, over_runs, resampled
from pretask.evals.knn import unit
from pretask.maths import agglomeration
from pretask.methods import Method
from pretask.reports import sheet
from pretask.run import Run
from pretask.sources import folder
from pretask.sources.common import Asked, Images, Opened, listed
from pretask.types import UserError

SCHEMA = 1
SHOWN = 64
"""images on a cluster's sheet, those nearest to its mean first"""
PIXELS = "pixels"
"""the subject that is no run: the baseline"""

By = Literal["links", "kmeans"]


@dataclass(frozen=True)
class Subject:
    """What looks at the images, and how its features are compared."""

    name: str
    size: int | None
    channels: int | None
    features: Callable[[Images], Tensor]
    """readable images of a source -> (N, D)"""
    neighbours: int | None = None
    """of an image, that its method links it with"""


@dataclass(frozen=True)
class Clusters:
    """What was made in `folder`: how large the clusters are and, where there are labels, how right, %."""

    folder: Path
    subject: str
    data: str
    by: str
    neighbours: int | None
    n: int
    skipped: int
    sizes: list[int]
    nmi: Interval | None = None
    acc: Interval | None = None

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | asdict(self) | {"folder": str(self.folder)}, indent=2)


# ---- what looks at the images


def subject(
    spec: str, size: int | None = None, batch: int = 256, clusters: int = 0, data: str = ""
) -> Subject:
    """A run's folder, timm:NAME, `pixels`, or a method, which is then trained on `data` for so many clusters."""
    if spec == PIXELS:
        return Subject("raw pixels", size, None, pixels)
    if spec.partition(":")[0] in methods.names() and not Path(spec).exists():
        spec = str(trained(spec, data, clusters))
    encoder = embedding.encoder_of(spec, size)
    by, links = (unit, None) if spec.startswith("timm:") else compared(Run(spec))

    def features(source: Images) -> Tensor:
        return by(torch.from_numpy(embedding.array(encoder, source, "pool", batch)))

    return Subject(spec, encoder.size, encoder.channels, features, links)


def compared(run: Run) -> tuple[Callable[[Tensor], Tensor], int | None]:
    """What the run's method makes of pooled features, of most nothing new, for which no checkpoint is needed; and by how
    many neighbours it links images, if it does."""
    drawn = run.drawn()
    return unit if type(drawn).compared is Method.compared else run.method.compared, drawn.links


def trained(method: str, data: str, clusters: int) -> Path:
    """A new run of a method on `data`, for as many clusters as are wanted if it has that knob."""
    from pretask.api import pretrain

    knobs = {f.name for f in dataclasses.fields(methods.recipe(method))}
    return pretrain(method, data, config={"clusters": clusters} if "clusters" in knobs else {}).folder


def pixels(source: Images) -> Tensor:
    """(N, D): as JULE begins."""
    from pretask import images
    from pretask.methods.jule import raw

    parts = [raw(images.to_float(b.image)) for b in embedding.batches(source, 256)]
    return torch.cat(parts)[readable(source)]


def opened(spec: str, asked: Asked) -> Opened:
    """Images, and beside them their labels where all have one."""
    try:
        found = sources.opened(spec, dataclasses.replace(asked, labels=True))
    except UserError:  # none, or not of this kind of source
        return sources.opened(spec, asked)
    return sources.opened(spec, asked) if folder.LOOSE in found.images.bad.values() else found


def readable(source: Images) -> Tensor:
    """(N,) positions of the images that could be read."""
    names = source.files(torch.arange(len(source)))
    return torch.tensor([i for i, name in enumerate(names) if name not in source.bad], dtype=torch.int64)


# ---- clustering


def cluster(
    what: Subject,
    data: Opened,
    clusters: int,
    out: Path,
    by: By = "links",
    seed: int = 0,
    neighbours: int | None = None,
) -> Clusters:
    """Clusters of every readable image, in a new folder `out`: clusters.csv and clusters.parquet with a row for each
    (file, cluster, distance from the cluster's mean), cluster-000.png … with a sheet of each, summary.json.

    By links an image has so many `neighbours`, or the subject's own. UserError if there are fewer images than clusters.
    """
    source = data.images
    refuse(out)
    if neighbours is not None and neighbours < 1:
        raise UserError(f"--neighbours {neighbours} links no images; expected 1 or more")
    source.__getitems__(torch.arange(1))  # a stream has no positions, and says so before the work
    x = what.features(source)
    kept = readable(source)
    if not 1 <= clusters <= len(x):
        raise UserError(
            f"{len(x)} images make no {clusters} clusters; expected --clusters from 1 to {len(x)}"
        )
    if by == "kmeans":
        links, found = None, scoring.cluster(x, clusters, seed)
    else:
        links = neighbours or what.neighbours or agglomeration.NEIGHBOURS
        found = agglomeration.cluster(x, clusters, neighbours_each=links)
    far = distances(x, found)
    scores = {} if data.label is None else scored(data.label[kept], found, seed)
    sizes = found.bincount(minlength=int(found.max()) + 1).tolist()
    made = Clusters(out, what.name, source.name, by, links, len(x), len(source.bad), sizes, **scores)
    names = source.files(kept)

    def fill(inside: Path) -> None:
        write_table(inside, names, found, far)
        for c in range(len(sizes)):
            write_sheet(inside / f"cluster-{c:03}.png", source, kept, c, found, far)
        if source.bad:
            checkpoint.write_text(inside / "skipped.csv", listed(source.bad))
        checkpoint.write_text(inside / "summary.json", made.to_json() + "\n")

    checkpoint.write_folder(out, fill)
    return made


def refuse(out: Path) -> None:
    """UserError if there is something already."""
    if out.exists():
        raise UserError(f"{out} exists; choose another --out")


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
