"""Growth of the cost of scores with the number of labeled images and of features.

Example: python bench/growth.py --out docs/assets/growth.svg

On synthetic features of N samples and D dimensions, the script runs everything that `pretask evaluate` does with the
features of a stage, measures the CPU time of each part, and plots it over N and over D. No part should grow faster than
N · D · min(N, D), the cost of factorizing the features.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Goal, flags, show
from matplotlib.figure import Figure
from torch import Tensor

from pretask.evals import fewshot, knn, linear_probe
from pretask.evals.holdout import splits
from pretask.evals.measure import feasible_shots
from pretask.rng import Rng

CLASSES = 10
TEST = 2_000
"""test samples"""
FIXED = {"images": 2_000, "features": 512}
"""value of one axis while the other varies"""


@dataclass(frozen=True)
class Flags:
    images: tuple[int, ...] = (100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
    """numbers of labeled samples"""
    features: tuple[int, ...] = (64, 128, 256, 512, 1_024, 2_048, 4_096)
    """numbers of features"""
    out: Path | None = None
    """write a plot to this file"""
    json: bool = False
    """print only JSON to standard output"""


def make_features(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Ten overlapping classes; the spectrum of the features decays as that of networks."""
    rng = Rng(n, d, "growth")
    label = torch.arange(n) % CLASSES
    scale = torch.arange(1, d + 1).float() ** -0.5
    return (rng.normal(n, d) + Rng(d, "middles").normal(CLASSES, d)[label]) * scale, label


def parts(n: int, d: int) -> dict[str, float]:
    """CPU seconds of each part of a score."""
    (x, label), (test, truth) = make_features(n, d), make_features(TEST, d)
    folds = splits(label, 0)

    def few() -> None:
        for shots in feasible_shots(label):
            fewshot.fewshot(x, label, test, truth, CLASSES, shots, 0)

    work: dict[str, Callable[[], object]] = {
        "choose k": lambda: knn.choose(x, label, CLASSES, folds),
        "kNN": lambda: knn.knn(x, label, test, CLASSES, min(20, n)),
        "choose the penalty, fit the probe": lambda: linear_probe.choose(x, label, CLASSES, folds).probe,
        "few labels": few,
    }
    return {name: cpu_seconds(each) for name, each in work.items()}


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def bound(n: int, d: int) -> float:
    return n * d * min(n, d)


def fastest(counts: Sequence[int], found: Sequence[dict[str, float]], bounds: Sequence[float]) -> float:
    """Largest growth exponent of a part over the last decade of the counts, relative to that of the bound."""
    first = next(i for i, n in enumerate(counts) if n * 10 >= counts[-1])
    grown = bounds[-1] / bounds[first]
    return max(
        (
            math.log(found[-1][name] / max(found[first][name], 0.02)) / math.log(grown)
            for name in found[-1]
            if found[-1][name] > 0.2  # shorter times are noise
        ),
        default=0.0,
    )


def picture(axes: Mapping[str, tuple[Sequence[int], Sequence[dict[str, float]], Sequence[float]]]) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for place, (what, (counts, found, bounds)) in zip(
        figure.subplots(1, 2, sharey=True), axes.items(), strict=True
    ):
        for name in found[0]:
            place.loglog(
                counts, [max(each[name], 1e-3) for each in found], marker="o", markersize=3, label=name
            )
        top = max(found[-1].values())
        place.loglog(
            counts, [top * b / bounds[-1] for b in bounds], "k--", linewidth=1, label="N · D · min(N, D)"
        )
        other = "features" if what == "images" else "images"
        place.set_xlabel(f"{what} ({FIXED[other]:,} {other})")
        place.grid(alpha=0.3)
    figure.axes[0].set_ylabel("CPU seconds")
    figure.axes[0].set_ylim(bottom=1e-3)
    figure.axes[0].legend(fontsize=7)
    return figure


def main() -> None:
    args = flags(Flags, __doc__ or "")
    parts(200, 64)  # warm up: the first use loads libraries
    width, count = FIXED["features"], FIXED["images"]
    axes = {
        "images": (
            args.images,
            [parts(n, width) for n in args.images],
            [bound(n, width) for n in args.images],
        ),
        "features": (
            args.features,
            [parts(count, d) for d in args.features],
            [bound(count, d) for d in args.features],
        ),
    }
    numbers: dict[str, object] = {
        f"{n:,} {what}: {name}, s": seconds
        for what, (counts, found, _) in axes.items()
        for n, each in zip(counts, found, strict=True)
        for name, seconds in each.items()
    }
    goals = [
        Goal(f"growth with {what}, as a power of the bound's", fastest(*each), 1.1, "", less=True)
        for what, each in axes.items()
    ]
    if args.out:
        picture(axes).savefig(args.out)
    show("How scores grow", numbers, goals, args.json)


if __name__ == "__main__":
    main()
