"""pretask cluster RUN --data PATH --clusters K: sort images into clusters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretask.cli.flags import subject
from pretask.config import DEFAULT_INPUT, InputConfig
from pretask.limits import PositiveInt, Seed, UnitInterval
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import console, say


@dataclass(frozen=True)
class Flags:
    """Cluster images by the features of a run or of published weights, or by their `pixels` (a baseline); a METHOD, such as jule, is
    trained on the images first. Writes a table of file names and a contact sheet of each cluster. If the data has labels,
    they are used only to compute NMI and ACC."""

    data: str
    """images: a folder, a .npz, .parquet or .tar file, hf:NAME, or a torchvision name"""
    clusters: PositiveInt
    """number of clusters"""
    labels: Path | None = None
    """table of path and label for the images of --data, to compute NMI and ACC by"""
    out: Path = Path("clusters")
    """folder to create; it must not exist"""
    by: Literal["links", "kmeans"] = "links"
    """links: agglomerative clustering on the graph of nearest neighbors; kmeans: k-means"""
    neighbors: PositiveInt | None = None
    """neighbors of each image in that graph (default: as in the run of jule, otherwise 20)"""
    exact: bool | None = None
    """recompute cluster affinities after each merge, instead of JULE's fast mode (default: as in the run of jule, otherwise
    exact)"""
    smallest: UnitInterval | None = None
    """clusters smaller than this fraction of the mean size are outliers and join their nearest cluster; 0: no outliers
    (default: as in the run of jule, otherwise 0.05)"""
    json: bool = False
    """print only the summary, as JSON, on standard output"""
    batch: PositiveInt = 256
    """images per forward pass"""
    input: InputConfig = DEFAULT_INPUT
    seed: Seed = 0
    """random seed of k-means and of the confidence intervals"""
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    what, chosen = subject(words, "cluster", "RUN, METHOD, timm:NAME, ARCH@FILE or pixels", Flags)

    from pretask.data.base import OpenOptions, canvas_fields
    from pretask.reports import table
    from pretask.workflows import cluster, inputs

    cluster.check_out(chosen.out)  # before a method is trained
    merging = {name: getattr(chosen, name) for name in ("neighbors", "exact", "smallest")}
    config = {"clusters": chosen.clusters} | merging
    seen_by = cluster.subject(what, chosen.input, chosen.batch, chosen.data, config)
    options = OpenOptions(**canvas_fields(seen_by), reading=chosen.reading)
    made = cluster.cluster(
        seen_by,
        cluster.open_images(inputs.with_labels(chosen.data, chosen.labels), options),
        chosen.clusters,
        chosen.out,
        chosen.by,
        chosen.seed,
        **merging,
    )
    if chosen.json:
        print(made.to_json())
    else:
        console().print(table.clustered(made))
    say(
        f"wrote {made.n} images in {len(made.sizes)} clusters to {made.folder}. "
        f"Look at {made.folder / 'cluster-000.png'}"
    )
