"""The nearest images: by all of them, and by a FAISS index that stays on the disk."""

import numpy as np
import pytest

from pretask.collection import lookup
from pretask.collection.store import Collection
from pretask.rng import Rng


def collection(n: int, width: int = 16) -> Collection:
    centers = 3 * Rng(0, "centers").normal(max(1, n // 50), width)
    rng = Rng(0, "points")
    rows = (centers[rng.integers(n, high=len(centers))] + rng.normal(n, width)).numpy().astype(np.float32)
    nothing = np.zeros((n, 0))
    return Collection(None, [f"{i}.jpg" for i in range(n)], 2 + rows, nothing, nothing)  # pyright: ignore[reportArgumentType]


def by_loop(found: Collection, query: np.ndarray, count: int) -> list[int]:
    x = found.features.astype(np.float64)
    center = x.mean(0)
    cosine = [
        (row - center) @ (query - center) / np.linalg.norm(row - center) / np.linalg.norm(query - center)
        for row in x
    ]
    return sorted(range(len(x)), key=lambda i: -cosine[i])[:count]


def test_the_nearest_are_those_of_a_loop(tmp_path):
    known = collection(300)
    made = lookup.build(tmp_path, known)
    for query in known.features[[5, 77]] + 0.1:
        cosine, rows = made.nearest(query[None], 7)
        assert rows[0].tolist() == by_loop(known, query, 7) and (np.diff(cosine[0]) <= 0).all()
    assert lookup.opened(tmp_path, known).nearest(known.features[:1], 500)[1].shape == (1, 300)


def test_many_images_are_searched_by_an_index_on_disk(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    known = collection(4000)
    exact = lookup.build(tmp_path, known)
    monkeypatch.setattr(lookup, "EXACT", 1000)
    monkeypatch.setattr(lookup, "PROBES", 16)
    lookup.build(tmp_path, known)
    assert (tmp_path / lookup.INDEX).is_file()
    made = lookup.opened(tmp_path, known)
    assert made.faiss is not None
    query = known.features[:: 4000 // 50] + 0.05
    expected, found = exact.nearest(query, 10)[1], made.nearest(query, 10)
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(expected, found[1], strict=True)]) >= 0.95
    np.testing.assert_allclose(
        found[0][:, 0], exact.nearest(query, 1)[0][:, 0], atol=1e-5
    )  # compared exactly in the end


def test_an_index_of_few_images_replaces_one_of_many(tmp_path):
    (tmp_path / lookup.INDEX).write_bytes(b"of before")
    lookup.build(tmp_path, collection(20))
    assert not (tmp_path / lookup.INDEX).exists()
