"""Cluster images by frozen features: `pretask cluster RUN --data PATH --clusters K`

Agglomerative clustering (ops/agglomerative.py) or k-means of pooled features with unit length. A method with its own
clustering head, such as JULE, uses that head and the merge options of its run; `pixels` clusters the images themselves. If
a method is given instead of a run, it is trained first. Labels, if the data has any, are used only for NMI (geometric
mean) and ACC.

Cost: one pass over the images plus the clustering; memory N · D numbers for the features.
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
from pretask.config import DEFAULT_INPUT, InputConfig, RunConfig
from pretask.data import folder
from pretask.data.base import Images, Opened, OpenOptions
from pretask.data.ledger import BAD
from pretask.encoders.readout import Readout
from pretask.evals import cluster_metrics as scoring
from pretask.evals.confidence import Interval, bootstrap_counts, interval, student_interval
from pretask.limits import PositiveInt, Seed, UnitInterval, checked
from pretask.methods import Method
from pretask.ops import agglomerative, kmeans
from pretask.ops.neighbors import unit
from pretask.runtime import files
from pretask.runtime.console import say
from pretask.train.progress import Display
from pretask.train.run import Run
from pretask.transforms.ranges import UNKNOWN, Range
from pretask.types import UserError
from pretask.viz import sheet
from pretask.workflows import embed, explore
from pretask.workflows.job import fresh
from pretask.workflows.pretrain import pretrain
from pretask.workflows.subject import load

SCHEMA = 2
SHOWN = 64
"""images on the contact sheet of a cluster, nearest to its mean first"""
PIXELS = "pixels"
"""the baseline that clusters pixels"""
LINKAGE = {
    "num_neighbors": agglomerative.NEIGHBORS,
    "exact": True,
    "smallest": agglomerative.SMALLEST,
}
"""merge options where neither the method nor the command sets them"""

By = Literal["links", "kmeans"]


@dataclass(frozen=True)
class Subject:
    """Features to cluster by, and how to merge images."""

    name: str
    size: int | None
    channels: int | None
    features: Callable[[Images], Tensor]
    """readable images of a source -> (N, D)"""
    cluster_options: Mapping[str, Any] = field(default_factory=dict)
    """the method's merge options: arguments of `agglomerative.cluster`"""
    range: Range = UNKNOWN
    """values that become black and white, as in its run"""


@dataclass(frozen=True)
class Clusters:
    """The result in `folder`: cluster sizes and, if there are labels, NMI and ACC in %."""

    folder: Path
    subject: str
    data: str
    by: str
    neighbors: int | None
    exact: bool | None
    smallest: float | None
    n: int
    skipped: int
    sizes: list[int]
    nmi: Interval | None = None
    acc: Interval | None = None

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | asdict(self) | {"folder": str(self.folder)}, indent=2)


# ---- features


def subject(
    spec: str,
    input: InputConfig = DEFAULT_INPUT,
    batch: int = 256,
    data: str = "",
    config: Mapping[str, Any] = MappingProxyType({}),
) -> Subject:
    """Weights as in `evaluate`, `pixels`, or a method, which is trained on `data` with those fields of `config` that it has."""
    if spec == PIXELS:
        return Subject("raw pixels", input.size, None, pixels)
    if spec.partition(":")[0] in methods.names() and not Path(spec).exists():
        spec = str(train(spec, data, config))
    loaded = load(spec, input)
    is_run = isinstance(loaded, Run)
    encoder = loaded.encoder if is_run else loaded
    embedding, merging = clustering_of(loaded) if is_run else (unit, {})

    def features(source: Images) -> Tensor:
        return embedding(torch.from_numpy(embed.array(Readout(encoder), source, batch)))

    return Subject(spec, encoder.size, encoder.channels, features, merging, encoder.range)


def clustering_of(run: Run) -> tuple[Callable[[Tensor], Tensor], Mapping[str, Any]]:
    """The method's clustering embedding of pooled features, by default their unit rows, and its merge options.

    The checkpoint is loaded only if the method has its own embedding.
    """
    method = run.build_method()
    default = type(method).cluster_embedding is Method.cluster_embedding
    return unit if default else run.method.cluster_embedding, method.cluster_options


def train(method: str, data: str, config: Mapping[str, Any]) -> Path:
    """A new run of a method on `data`, with the fields of `config` that the method has."""
    default = methods.recipe(method)()
    names = {f.name for f in dataclasses.fields(default)}
    changes = {name: value for name, value in config.items() if name in names and value is not None}
    job = fresh(method, RunConfig(data), dataclasses.replace(default, **changes))
    with Display() as on_log:
        return pretrain(job, on_log=on_log).folder


def pixels(source: Images) -> Tensor:
    """(N, D) pixels, normalized as at the start of JULE."""
    from pretask.methods.jule import flat_pixels
    from pretask.transforms import augment

    parts = [flat_pixels(augment.to_float(b.image)) for b in embed.batches(source, 256)]
    return torch.cat(parts)[readable(source)]


def open_images(spec: str, options: OpenOptions) -> Opened:
    """Images, with their labels if each has exactly one."""
    found = sources.open_with_any_labels(folder.with_all_splits(spec), options)
    if found.label is not None and found.label.ndim == 2:
        say(
            f"{found.images.name} has several labels per image, but NMI and ACC need one, so clusters are not scored; "
            "select one column of labels with --labels-from"
        )
        return Opened(found.images)
    whole = found.label is not None and bool((found.label >= 0).all())
    return found if whole else Opened(found.images)


def readable(source: Images) -> Tensor:
    """(N,) positions of the readable images."""
    return source.readable(torch.arange(len(source))).nonzero()[:, 0]


# ---- clustering


@checked
def cluster(
    what: Subject,
    data: Opened,
    clusters: PositiveInt,
    out: Path,
    by: By = "links",
    seed: Seed = 0,
    neighbors: PositiveInt | None = None,
    exact: bool | None = None,
    smallest: UnitInterval | None = None,
) -> Clusters:
    """Cluster all readable images into a new folder `out`: clusters.csv and clusters.parquet (file, cluster, distance from the
    cluster's mean), a contact sheet per cluster (cluster-000.png …), explorer.html, and summary.json.

    For `by="links"`, each image has `neighbors` in the graph, affinities are `exact` or those of the fast mode, and clusters
    below the fraction `smallest` of the mean size do not count; None: the method's own option. Raises UserError if there are
    fewer images than clusters.
    """
    source = data.images
    check_out(out)
    source.__getitems__(torch.arange(1))  # a stream has no positions and raises here
    x = what.features(source)
    kept = readable(source)
    if not 1 <= clusters <= len(x):
        raise UserError(f"--clusters {clusters} is out of range for {len(x)} images; give 1 to {len(x)}")
    linkage: dict[str, Any] = {}
    if by == "kmeans":
        found = kmeans.cluster(x, clusters, seed)
    else:
        given = {"num_neighbors": neighbors, "exact": exact, "smallest": smallest}
        linkage = LINKAGE | {**what.cluster_options} | {k: v for k, v in given.items() if v is not None}
        found = agglomerative.cluster(x, clusters, **linkage)
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
        label = None if data.label is None else [data.classes[int(k)] for k in data.label[kept]]
        columns = {"cluster": found.tolist()} | ({"label": label} if label else {})
        explore.explore(inside / explore.PAGE, source, names, kept, x, columns, seed)
        source.ledger.write(inside / BAD, out / BAD)
        files.write_text(inside / "summary.json", made.to_json() + "\n")

    files.write_folder(out, fill)
    return made


def check_out(out: Path) -> None:
    """Raises UserError if `out` exists."""
    if out.exists():
        raise UserError(f"{out} exists; choose another --out")


def distances(x: Tensor, label: Tensor) -> Tensor:
    """(N, D), (N,) -> (N,) distance of each sample from the mean of its cluster."""
    total = torch.zeros(int(label.max()) + 1, x.shape[1]).index_add_(0, label, x.float())
    return (x - (total / label.bincount().clamp(min=1)[:, None])[label]).norm(dim=1)


def scored(label: Tensor, found: Tensor, seed: int) -> dict[str, Interval]:
    """NMI by the geometric mean and ACC, %, with intervals over images."""
    label = label.unique(return_inverse=True)[1]
    table = scoring.contingency_table(label, found)
    again = bootstrap_counts(table.ravel(), seed).reshape(-1, *table.shape)
    variance = float((100 * scoring.nmi(again, geometric=True)).var())
    value = np.array([100 * float(scoring.nmi(table, geometric=True))])
    right = 100 * scoring.hungarian_correct(label, found).float()
    return {"nmi": student_interval(value, variance, len(label)), "acc": interval(right, seed)}


# ---- on disk


def write_table(folder: Path, names: list[str], found: Tensor, far: Tensor) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = io.StringIO()
    rows = zip(names, found.tolist(), (f"{d:.6g}" for d in far.tolist()), strict=True)
    csv.writer(text).writerows([("file", "cluster", "distance"), *rows])
    files.write_text(folder / "clusters.csv", text.getvalue())
    columns = {
        "file": [embed.printable(name) for name in names],
        "cluster": found.numpy().astype(np.int32),
        "distance": far.numpy(),
    }
    files.write(folder / "clusters.parquet", lambda file: pq.write_table(pa.table(columns), file))


def write_sheet(path: Path, source: Images, kept: Tensor, c: int, found: Tensor, far: Tensor) -> None:
    """A contact sheet of the images nearest to the cluster's mean."""
    mine = (found == c).nonzero()[:, 0]
    near = mine[far[mine].argsort(stable=True)[:SHOWN]]
    title = f"cluster {c}: {len(mine)} images" + (
        f", the {SHOWN} nearest to its mean" if len(mine) > SHOWN else ""
    )
    picture = sheet.images(source.__getitems__(kept[near]).image, title=title)
    files.write(path, lambda file: picture.save(file, format="PNG"))
