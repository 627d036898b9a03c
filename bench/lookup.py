#!/usr/bin/env python3
"""Index of many images: time to build, time of a query, recall against exact search, and memory.

    python bench/lookup.py --count 1000000 --width 512

Vectors are drawn around cluster centers, as features of images are; queries are drawn like them.
"""

import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import Goal, flags, seconds, show

from pretask.collection import lookup
from pretask.collection.lookup import Lookup
from pretask.collection.store import Collection

QUERIES, TOP = 1000, 10
SPREAD = 0.7
"""standard deviation around a center, relative to that of the centers"""


@dataclass(frozen=True)
class Flags:
    count: int = 1_000_000
    """number of vectors"""
    width: int = 512
    clusters: int = 2000
    json: bool = False
    """print only JSON to standard output"""


def main() -> None:
    args = flags(Flags, __doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        measure(args, Path(name))


def measure(args: Flags, folder: Path) -> None:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(args.clusters, args.width)).astype(np.float32)
    known = collection(folder, rng, centers, args.count)
    built = seconds(lambda: lookup.build(folder, known))
    found, queries = lookup.opened(folder, known), drawn(rng, centers, QUERIES)
    rows: list[np.ndarray] = []
    times = [seconds(lambda each=each: rows.append(nearest(found, each))) for each in queries]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    recall = np.mean([len({*a} & {*b}) / TOP for a, b in zip(exact(known, queries), rows, strict=True)])
    median, most = np.quantile(times, [0.5, 0.95])
    numbers = {
        "vectors": args.count,
        "width": args.width,
        "query, median ms": 1000 * float(median),
        "query, 95 % ms": 1000 * float(most),
    }
    goals = [
        Goal(f"recall@{TOP}", float(recall), 0.95, ""),
        Goal("build", built / 60, 30, "min", less=True),
        Goal("query", 1000 * float(median), 50, "ms", less=True),
        Goal("peak resident memory", peak, 4, "GB", less=True),
    ]
    show(f"Index of {args.count:,} vectors", numbers, goals, args.json)


def collection(folder: Path, rng: np.random.Generator, centers: np.ndarray, count: int) -> Collection:
    """Features on the disk, of images without names."""
    path, shape = folder / "features.bin", (count, centers.shape[1])
    features = np.memmap(path, np.float32, "w+", shape=shape)
    for start in range(0, count, lookup.BLOCK):
        part = features[start : start + lookup.BLOCK]
        part[:] = drawn(rng, centers, len(part))
    features.flush()
    none = np.empty((0, 0))
    return Collection(folder, [""] * count, np.memmap(path, np.float32, "r", shape=shape), none, none)


def drawn(rng: np.random.Generator, centers: np.ndarray, n: int) -> np.ndarray:
    own = centers[rng.integers(len(centers), size=n)]
    return (own + SPREAD * rng.normal(size=own.shape)).astype(np.float32)


def nearest(found: Lookup, query: np.ndarray) -> np.ndarray:
    """(TOP,) rows."""
    return found.nearest(query[None], TOP)[1][0]


def exact(known: Collection, queries: np.ndarray) -> np.ndarray:
    """(Q, TOP) rows by all vectors, in blocks."""
    center = np.load(known.folder / lookup.CENTER)
    z = lookup.unit(queries - center)
    best, rows = np.full((len(z), TOP), -np.inf, np.float32), np.zeros((len(z), TOP), np.int64)
    for start in range(0, len(known), lookup.BLOCK):
        block = lookup.unit(np.asarray(known.features[start : start + lookup.BLOCK]) - center)
        cosine = np.concatenate([best, z @ block.T], 1)
        place = np.broadcast_to(start + np.arange(len(block)), (len(z), len(block)))
        place = np.concatenate([rows, place], 1)
        keep = np.argpartition(-cosine, TOP - 1, axis=1)[:, :TOP]
        best, rows = np.take_along_axis(cosine, keep, 1), np.take_along_axis(place, keep, 1)
    return rows


if __name__ == "__main__":
    main()
