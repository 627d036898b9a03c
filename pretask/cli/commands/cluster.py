"""pretask cluster RUN --data PATH --clusters K: images sorted into clusters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretask.cli.flags import subject
from pretask.limits import Count, Seed, Share
from pretask.train.progress import console, say


@dataclass(frozen=True)
class Flags:
    """Sort images into clusters by what a run makes of them, or timm:NAME, or `pixels`, the baseline; a method, such as
    jule, is trained on the images first. A table of file names, a sheet of each cluster and, where the data has labels,
    NMI and ACC. No label is seen before the score."""

    data: str
    """images: a folder, a .npz, .parquet or .tar file, hf:NAME, or a torchvision name"""
    clusters: Count
    """how many"""
    out: Path = Path("clusters")
    """the folder that is made"""
    by: Literal["links", "kmeans"] = "links"
    """agglomerative, on the graph of nearest neighbours, or k-means"""
    neighbours: Count | None = None
    """of each image in that graph (those that a run of jule merged by; else 20)"""
    exact: bool | None = None
    """affinities of clusters as if computed anew after each merge, or those of JULE's fast mode (as a run of jule merged;
    else exact)"""
    smallest: Share | None = None
    """share of the mean size below which a cluster is none of those wanted, so that outliers join their nearest; 0: every
    cluster counts (as a run of jule merged; else 0.05)"""
    json: bool = False
    """print the summary as JSON, and nothing else, on standard output"""
    batch: Count = 256
    """images at once"""
    size: Count | None = None
    """side of the images for timm:NAME and pixels; a run has its own"""
    seed: Seed = 0
    """of k-means, and of the intervals"""
    root: Path | None = None
    """where a torchvision data set is"""
    max_bad: Share = 0.1
    """share of unreadable files at which it stops"""


def run(words: list[str]) -> None:
    what, chosen = subject(words, "cluster", "RUN, METHOD, timm:NAME or pixels", Flags)

    from pretask.data.base import Asked
    from pretask.reports import table
    from pretask.workflows import cluster as clustering

    clustering.refuse(chosen.out, chosen.neighbours, chosen.smallest)  # before a method is trained
    merging = {name: getattr(chosen, name) for name in ("neighbours", "exact", "smallest")}
    config = {"clusters": chosen.clusters} | merging
    seen_by = clustering.subject(what, chosen.size, chosen.batch, chosen.data, config)
    asked = Asked(seen_by.size, seen_by.channels, chosen.root, chosen.max_bad)
    made = clustering.cluster(
        seen_by,
        clustering.opened(chosen.data, asked),
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
