#!/usr/bin/env python3
"""The k-means patches baseline on few and on many images, before and after a change of the sampling.

    python docs/results/patches.py --data FOLDER

FOLDER holds cifar10/. Centers are fitted on 100 to 50,000 images of CIFAR-10, and their features are scored with the labels of
these images on 2,000 test images. The results are written to patches/, and `make.py` writes their page; existing rows are
not measured again. The script takes about half an hour on one core.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import KMeans
from torch import Tensor

from pretask.data import LabeledDataset
from pretask.data.arrays import Arrays
from pretask.evals import baselines, knn
from pretask.evals.features import embed
from pretask.evals.measure import choose
from pretask.ops import kmeans
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.types import Source

HERE = Path(__file__).resolve().parent
COUNTS = (100, 325, 2_000, 50_000)
TEST = 2_000
SEEDS = 3
"""seeds of the patches; one for the largest set, where the seed hardly matters and a run takes a quarter of an hour"""


@dataclass(frozen=True)
class Way:
    sample: Callable[[Source, int, Rng], Tensor]
    centers: Callable[[Tensor, int, int], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    folder = parser.parse_args().data / "cifar10"
    every, test = (open_jpegs(folder / f"cifar10_{part}_full_jpeg.npz") for part in ("train", "test"))
    test = subset(test, TEST)
    kept = HERE / "patches" / "cifar10.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for n in COUNTS:
        train = subset(every, n)
        for name, way in WAYS.items():
            if any((row["images"], row["way"]) == (n, name) for row in rows):
                continue
            found = [score(train, test, way, seed) for seed in range(SEEDS if n < COUNTS[-1] else 1)]
            means = {key: float(np.mean([each[key] for each in found])) for key in found[0]}
            rows.append({"images": n, "way": name, **means})
            print(rows[-1], flush=True)
            kept.write_text(json.dumps(rows, indent=2) + "\n")


def open_jpegs(path: Path) -> LabeledDataset:
    packed = np.load(path)
    jpeg, edge, label = packed["jpeg"], packed["offsets"], packed["labels"]
    pixels = [np.asarray(Image.open(io.BytesIO(jpeg[a:b].tobytes()))) for a, b in pairwise(edge)]
    image = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return LabeledDataset(
        Arrays(path.stem, image), torch.from_numpy(label).long(), [str(c) for c in packed["class_names"]]
    )


def subset(source: LabeledDataset, n: int) -> LabeledDataset:
    index = Rng(0, "patches", n).permutation(len(source))[:n].sort().values
    image = source.__getitems__(index).image
    return LabeledDataset(Arrays(f"{n}", image), source.label[index], source.classes)


def score(train: LabeledDataset, test: LabeledDataset, way: Way, seed: int) -> dict[str, Any]:
    began = time.process_time()
    patch = baselines.normalized(way.sample(train, baselines.SAMPLES, Rng(seed, "patches")))
    mean, zca = baselines.whiten(patch)
    net = baselines.Patches(mean, zca, way.centers((patch - mean) @ zca, baselines.CENTERS, seed))
    took = time.process_time() - began
    of_train, of_test = (embed(net, each, progress=False) for each in (train, test))
    chosen = choose(of_train, len(train.classes), 0)
    x, y = of_train.stages["pool"], of_test.stages["pool"]
    near = knn.knn(x, of_train.label, y, len(train.classes), chosen.k)
    right = chosen.probes["pool"].probe.predict(y) == of_test.label
    return {
        "drawn": len(patch),
        "seconds": took,
        "kNN": 100 * (near == of_test.label).double().mean().item(),
        "linear": 100 * right.double().mean().item(),
    }


def sample_with_replacement(source: Source, n: int, rng: Rng) -> Tensor:
    """(n, D) patches at random locations of at most n / 20 images, with replacement."""
    which = rng.permutation(len(source))[: max(1, n // 20)].sort().values
    canvas = augment.to_float(source.__getitems__(which).image)
    m, channels, h, w = canvas.shape
    at, of = torch.arange(baselines.PATCH), rng.integers(n, high=m)
    top, left = (rng.integers(n, high=side - baselines.PATCH + 1) for side in (h, w))
    rows, columns = (top[:, None] + at)[:, None, :, None], (left[:, None] + at)[:, None, None, :]
    return 255 * canvas[
        of[:, None, None, None], torch.arange(channels)[None, :, None, None], rows, columns
    ].flatten(1)


def lloyd(x: Tensor, k: int, seed: int) -> Tensor:
    """(N, D) -> (K, D) centers by full passes over all patches."""
    means = KMeans(k, init="random", n_init=1, max_iter=12, tol=0, random_state=seed)  # pyright: ignore[reportArgumentType]
    return torch.from_numpy(means.fit(x.numpy()).cluster_centers_)


WAYS = {
    "before: with repetition, 12 rounds": Way(sample_with_replacement, lloyd),
    "every place once, 12 rounds": Way(baselines.sample_patches, lloyd),
    "now: every place once, mini-batches": Way(
        baselines.sample_patches, partial(kmeans.centers, seen=baselines.SEEN)
    ),
}


if __name__ == "__main__":
    main()
