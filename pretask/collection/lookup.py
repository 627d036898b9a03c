"""Nearest images of a collection: exactly, or by a FAISS index on disk if there are many."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretask.collection.store import Collection
from pretask.errors import install_command
from pretask.types import UserError

EXACT = 50_000
"""images up to which all are compared"""
LISTS = 4
"""inverted lists for N images: LISTS · sqrt(N)"""
TRAINED = 40
"""images per list that the lists are found by"""
PROBES = 64
"""lists that a query looks into"""
RERANKED = 10
"""candidates per result, which are compared exactly"""
INDEX, CENTER = "vectors.faiss", "center.npy"
"""files in the folder of an index"""
BLOCK = 16_384
"""rows read at a time"""


@dataclass(frozen=True)
class Lookup:
    """A collection that can be searched."""

    collection: Collection
    center: np.ndarray  # (D,) mean of the features, which are compared by cosine after it is subtracted
    faiss: Any = None
    """the index; None: all images are compared"""

    def nearest(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(Q, D) features -> cosines and rows (Q, K) of the most similar images, best first; K is at most the number of images."""
        z, count = unit(query - self.center), min(count, len(self.collection))
        found = [self.of_one(row, count) for row in z]
        return np.stack([cosine for cosine, _ in found]), np.stack([rows for _, rows in found])

    def of_one(self, z: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(D,) of unit length -> (K,), (K,)."""
        features = self.collection.features
        if self.faiss is None:
            rows = np.arange(len(features))
            cosine = np.concatenate(
                [self.cosines(features[k : k + BLOCK], z) for k in range(0, len(features), BLOCK)]
            )
        else:
            _, near = self.faiss.search(z[None], min(RERANKED * count, len(features)))
            rows = np.sort(near[0][near[0] >= 0])
            cosine = self.cosines(features[rows], z)
        best = np.argsort(-cosine, kind="stable")[:count]
        return cosine[best], rows[best]

    def cosines(self, features: np.ndarray, z: np.ndarray) -> np.ndarray:
        return unit(features - self.center) @ z


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def build(folder: Path, collection: Collection, seed: int = 0) -> Lookup:
    """Index a collection in a folder. Raises UserError if FAISS is needed and not installed."""
    total = np.zeros(collection.features.shape[1])
    for rows in blocks(collection.features):
        total += rows.sum(0, dtype=np.float64)
    center = (total / max(1, len(collection))).astype(np.float32)
    np.save(folder / CENTER, center)
    (folder / INDEX).unlink(missing_ok=True)
    if len(collection) <= EXACT:
        return Lookup(collection, center)
    faiss = import_faiss(len(collection))
    n, width = collection.features.shape
    lists = 2 ** round(np.log2(LISTS * n**0.5))
    index = faiss.index_factory(width, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    some = np.sort(np.random.default_rng(seed).permutation(n)[: TRAINED * lists])
    index.train(unit(collection.features[some] - center))
    for rows in blocks(collection.features):
        index.add(unit(rows - center))
    temporary = folder / f"{INDEX}.new"
    faiss.write_index(index, str(temporary))
    temporary.replace(folder / INDEX)
    return opened(folder, collection)


def opened(folder: Path, collection: Collection) -> Lookup:
    """The index in a folder; its vectors stay on the disk until they are needed."""
    center = np.load(folder / CENTER)
    if not (folder / INDEX).is_file():
        return Lookup(collection, center)
    faiss = import_faiss(len(collection))
    index = faiss.read_index(str(folder / INDEX), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    index.nprobe = PROBES
    return Lookup(collection, center, index)


def blocks(features: np.ndarray) -> Any:
    return (np.asarray(features[k : k + BLOCK]) for k in range(0, len(features), BLOCK))


def import_faiss(n: int) -> Any:
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(f"an index of {n:,} images needs faiss: {install_command('search')}") from None
    return faiss
