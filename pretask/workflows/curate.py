"""What is in a collection of images, and what should not be: `pretask curate WEIGHTS --data PATH --out FOLDER`

Duplicates, leaks into a test set, outliers, unusable images and clusters, as tables and a page, and a list of the images to keep, which
`--data list:FOLDER/keep.txt` reads. Nothing is deleted. Interrupted, it goes on when it is called again.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretask.collection import duplicates, quality
from pretask.collection.duplicates import Bounds, Group
from pretask.collection.quality import Look
from pretask.config import InputConfig, ReadoutConfig
from pretask.data import listed, originals
from pretask.data.base import bar
from pretask.limits import PositiveInt, Seed, checked
from pretask.ops import kmeans, neighbors
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime import files
from pretask.runtime.console import busy
from pretask.runtime.tables import Table
from pretask.types import UserError
from pretask.workflows import collection
from pretask.workflows.collection import Opened
from pretask.workflows.subject import Weights

KEEP, SUMMARY, LOOKS = "keep.txt", "summary.json", "looks.jsonl"
"""names in the folder that is made"""
FEWEST = 10
"""images that can be curated"""
AROUND = 10
"""nearest images by whose mean distance outliers are found"""
FAR = 3.0
"""interquartile ranges above the third quartile from which an image is an outlier (Tukey, Exploratory Data Analysis, 1977)"""
MOST_CLUSTERS = 50
WRITTEN = 256
"""images measured before the results are written"""


@dataclass(frozen=True)
class Curated:
    """The result of `curate`."""

    folder: Path
    duplicates: Table
    """group, path, similarity to the one that is kept, keep"""
    leaks: Table
    """path, test_path, similarity"""
    outliers: Table
    """path, distance, nearest"""
    unusable: Table
    """path, reason"""
    clusters: Table
    """path, cluster, distance from its mean, size of the cluster"""
    keep: Sequence[str]
    summary: Mapping[str, Any]
    images: Opened

    def to_json(self) -> str:
        return files.strict_json(dict(self.summary), indent=2)


@checked
def curate(
    what: Weights,
    data: str | Path,
    test: str | Path | None = None,
    *,
    out: str | Path,
    stage: str = "pool",
    grid: PositiveInt | None = None,
    size: PositiveInt | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    seed: Seed = 0,
    reading: Reading = DEFAULT_READING,
    progress: bool = True,
) -> Curated:
    """Find duplicates, leaks, outliers and unusable images, and list the images to keep; nothing is deleted.

        curated = pretask.curate("runs/simclr-photos-s0", "photos/", test="held_out/", out="curated")
        curated.duplicates.frame()

    `what`, `stage` and `grid` are as in `embed`, `data` and `test` as in `pretrain`. Images that are also in `test` are leaks and not
    kept. `out` is a folder, which is updated if an earlier call made it. Raises UserError.
    """
    folder = Path(out)
    which, input = ReadoutConfig(stage, grid), InputConfig(size, mean, std)
    own = collection.opened(what, data, folder, which, input, reading, progress)
    if len(own) < FEWEST:
        raise UserError(f"{data} has {len(own)} readable images; curate compares {FEWEST} or more")
    looks = look_at_all(own, folder / LOOKS, progress)
    with busy(f"calibrating duplicates of {own.source.name}"):
        bounds = duplicates.calibrate(own.readout, own.source, own.x, own.positions, seed)
    faults, common = quality.faults(looks, own.readout.encoder.size)
    with busy(f"comparing {len(own):,} images"):
        groups = duplicates.find(
            own.source, own.x, own.positions, own.collection.sums, bounds, best_of(looks, faults)
        )
        leaks = find_leaks(own, test, folder, bounds, reading, progress)
    copies = {row for group in groups for row in group.members[1:]}
    left_out = copies | {row for row, fault in enumerate(faults) if fault} | {row for row, *_ in leaks.rows()}
    single = torch.tensor([row for row in range(len(own)) if row not in copies])
    outliers = find_outliers(own, single, bounds)
    clusters = find_clusters(own, bounds, seed)
    return finish(own, folder, groups, leaks, outliers, faults, clusters, left_out, bounds, common)


def look_at_all(own: Opened, path: Path, progress: bool) -> list[Look]:
    """What is measured of each image; what an earlier call measured is read from the disk."""
    sums = [each.tobytes().hex() for each in own.collection.sums]
    known = {row["sum"]: Look(**row["look"]) for row in files.read_rows(path)}
    todo = [row for row, each in enumerate(sums) if each not in known]
    with bar(progress) as shown:
        task = shown.add_task(f"looking at {own.source.name}", total=len(todo))
        for start in range(0, len(todo), WRITTEN):
            some = todo[start : start + WRITTEN]
            found = originals.each(lambda row: quality.look(own.source, int(own.positions[row])), some)
            for row, each in zip(some, found, strict=True):
                if each is not None:
                    known[sums[row]] = each
                    files.append_row(path, {"sum": sums[row], "look": asdict(each)})
            shown.advance(task, len(some))
    return [known.get(each, quality.UNSEEN) for each in sums]


def best_of(looks: Sequence[Look], faults: Sequence[str]) -> Any:
    """Of copies, one without a fault is kept, then the largest, then the one with most detail."""
    return lambda row: (not faults[row], looks[row].width * looks[row].height, looks[row].detail)


def find_leaks(
    own: Opened, test: str | Path | None, folder: Path, bounds: Bounds, reading: Reading, progress: bool
) -> Table:
    columns = ("row", "path", "test_path", "similarity")
    if test is None:
        return Table.of(columns, [])
    other = collection.opened_by(own.readout, test, folder / f"{collection.FEATURES}-test", reading, progress)
    pairs = duplicates.between(
        own.source, own.x, own.positions, own.collection.sums,
        other.source, other.x, other.positions, other.collection.sums, bounds,
    )  # fmt: skip
    return Table.of(columns, [(row, own.names[row], other.names[k], similar) for row, k, similar in pairs])


def find_outliers(own: Opened, single: Tensor, bounds: Bounds) -> Table:
    """Images far from their nearest ones; `single` (M,) are the rows without copies."""
    z = neighbors.unit(own.x[single] - bounds.center)
    similarity, index = neighbors.nearest(z, z, min(AROUND, len(z) - 1), exclude_self=True)
    distance = 1 - similarity.mean(1)
    low, high = np.quantile(distance.numpy(), [0.25, 0.75])
    far = (distance > high + FAR * (high - low)).nonzero().flatten()
    far = far[distance[far].argsort(descending=True)]
    rows = [(own.names[single[i]], float(distance[i]), own.names[single[index[i, 0]]]) for i in far.tolist()]
    return Table.of(("path", "distance", "nearest"), rows)


def find_clusters(own: Opened, bounds: Bounds, seed: int) -> Table:
    """k-means of the features; of N images sqrt(N / 10) clusters, from 2 to MOST_CLUSTERS."""
    z = neighbors.unit(own.x - bounds.center)
    count = min(MOST_CLUSTERS, max(2, round((len(own) / 10) ** 0.5)))
    found = kmeans.cluster(z, count, seed)
    means = torch.zeros(int(found.max()) + 1, z.shape[1]).index_add_(0, found, z)
    sizes = found.bincount(minlength=len(means))
    distance = (z - (means / sizes[:, None].clamp(min=1))[found]).norm(dim=1)
    return Table(
        {
            "path": own.names,
            "cluster": found.tolist(),
            "distance": distance.tolist(),
            "size": sizes[found].tolist(),
        }
    )


def finish(
    own: Opened, folder: Path, groups: Sequence[Group], leaks: Table, outliers: Table, faults: Sequence[str], clusters: Table,
    left_out: set[int], bounds: Bounds, common: Mapping[str, int],
) -> Curated:  # fmt: skip
    """Write the tables, the list and the summary."""
    names = own.names
    copied = [
        (number, names[row], similar, row == group.members[0])
        for number, group in enumerate(groups)
        for row, similar in zip(group.members, group.similarity, strict=True)
    ]
    unusable = [(name, f"unreadable: {why}") for name, why in sorted(own.source.ledger.bad.items())]
    unusable += [(names[row], fault) for row, fault in enumerate(faults) if fault]
    tables = {
        "duplicates": Table.of(("group", "path", "similarity", "keep"), copied),
        "leaks": Table({name: leaks[name] for name in ("path", "test_path", "similarity")}),
        "outliers": outliers,
        "unusable": Table.of(("path", "reason"), unusable),
        "clusters": clusters,
    }
    keep = [name for row, name in enumerate(names) if row not in left_out]
    for name, table in tables.items():
        table.write(folder / f"{name}.csv")
    if (root := originals.root(own.source)) is not None:
        listed.write(folder / KEEP, root, keep)
    else:  # images that are no files have only names
        files.write_text(folder / KEEP, "".join(f"{listed.quoted(name)}\n" for name in keep))
    sizes = sorted(Counter(clusters["cluster"]).values())
    summary = {
        "data": own.source.name,
        "features": str(own.readout),
        "images": len(names) + len(own.source.ledger.bad),
        "kept": len(keep),
        "duplicates": len(copied) - len(groups),
        "groups": len(groups),
        "leaks": len(set(leaks["path"])),
        "outliers": len(outliers),
        "unusable": dict(Counter(reason.partition(":")[0] for _, reason in unusable)),
        "common": dict(common),
        "clusters": {"count": len(sizes), "smallest": sizes[0], "largest": sizes[-1]},
        "bounds": {
            "similarity": bounds.similarity,
            "difference": bounds.difference,
            "missed": dict(bounds.missed),
            "copied": bounds.copied,
            "pairs": bounds.pairs,
            "alarms": bounds.alarms,
        },
        "expected": bounds.sentence(),
    }
    found = Curated(folder, **tables, keep=keep, summary=summary, images=own)
    files.write_text(folder / SUMMARY, found.to_json() + "\n")
    return found


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """What was found, in words."""
    faults = ", ".join(f"{n:,} {reason}" for reason, n in summary["unusable"].items()) or "none"
    clusters = summary["clusters"]
    found = [
        f"{summary['kept']:,} of {summary['images']:,} images are kept; nothing is deleted.",
        f"Duplicates: {summary['duplicates']:,} copies in {summary['groups']:,} groups; {summary['expected']}.",
        f"Unusable: {faults}.",
        f"Outliers, which are kept: {summary['outliers']:,}. In the test set too: {summary['leaks']:,}.",
        f"Clusters: {clusters['count']}, of {clusters['smallest']:,} to {clusters['largest']:,} images.",
    ]
    found += [
        f"{n:,} images are {fault}; so many that it is taken as a property of the collection."
        for fault, n in summary["common"].items()
    ]
    return found
