#!/usr/bin/env python3
"""Index of many images: time to build, time of a query, recall against exact search, and memory.

    python bench/lookup.py --count 1000000 --width 512 --folder /tmp/lookup

Vectors are drawn around cluster centers, as features of images are; queries are drawn like them.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from pretask.collection import lookup
from pretask.collection.store import Collection

QUERIES, TOP = 1000, 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=2000)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(args.clusters, args.width)).astype(np.float32)
    shape = (args.count, args.width)
    features = np.memmap(folder / "features.bin", np.float32, "w+", shape=shape)
    for start in range(0, args.count, lookup.BLOCK):
        n = min(lookup.BLOCK, args.count - start)
        features[start : start + n] = drawn(rng, centers, n)
    features.flush()
    none = np.empty((0, 0))
    known = Collection(
        folder,
        [""] * args.count,
        np.memmap(folder / "features.bin", np.float32, "r", shape=shape),
        none,
        none,
    )
    began = time.perf_counter()
    lookup.build(folder, known)
    built = time.perf_counter() - began
    found = lookup.opened(folder, known)
    queries = drawn(rng, centers, QUERIES)
    seconds, rows = [], []
    for query in queries:
        began = time.perf_counter()
        rows.append(found.nearest(query[None], TOP)[1][0])
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    expected = exact(known, queries)
    recall = np.mean([len({*a} & {*b}) / TOP for a, b in zip(expected, rows, strict=True)])
    print(
        json.dumps(
            {
                "vectors": args.count, "width": args.width, "build, s": round(built, 1), "query, median ms": round(1000 * float(np.median(seconds)), 1),
                "query, 95 % ms": round(1000 * float(np.quantile(seconds, 0.95)), 1), f"recall@{TOP}": round(float(recall), 4),
                "peak resident memory, GB": round(peak, 2),
            },
            indent=2,
        )
    )  # fmt: skip
    if args.folder is None:
        shutil.rmtree(folder)


def drawn(rng: np.random.Generator, centers: np.ndarray, n: int) -> np.ndarray:
    return (
        centers[rng.integers(len(centers), size=n)] + 0.7 * rng.normal(size=(n, centers.shape[1]))
    ).astype(np.float32)


def exact(known: Collection, queries: np.ndarray) -> np.ndarray:
    """(Q, TOP) rows by all vectors, in blocks."""
    center = np.load(known.folder / lookup.CENTER)
    z = lookup.unit(queries - center)
    best, rows = np.full((len(z), TOP), -np.inf, np.float32), np.zeros((len(z), TOP), np.int64)
    for start in range(0, len(known), lookup.BLOCK):
        block = lookup.unit(np.asarray(known.features[start : start + lookup.BLOCK]) - center)
        cosine = np.concatenate([best, z @ block.T], 1)
        place = np.concatenate(
            [rows, np.broadcast_to(start + np.arange(len(block)), (len(z), len(block)))], 1
        )
        keep = np.argpartition(-cosine, TOP - 1, axis=1)[:, :TOP]
        best, rows = np.take_along_axis(cosine, keep, 1), np.take_along_axis(place, keep, 1)
    return rows


if __name__ == "__main__":
    main()
