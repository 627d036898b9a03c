"""Collapse monitor: are the features of a run healthy, and, given labeled images, how good are they?

Monitoring does not affect training. Features are computed in evaluation mode from a fixed sample of images, and labels
are used only from the images given by --monitor.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretask.data import loader
from pretask.encoders import pooled
from pretask.evals import label_free as evals
from pretask.evals.knn import knn
from pretask.methods.base.method import Method
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.runtime.files import append_row, read_rows
from pretask.train import run
from pretask.train.health import (
    COMPLETE,
    CONSTANT_FEATURES,
    DIMENSIONAL,
    HEALTHY,
    INPUT_INDEPENDENT,
    NONFINITE,
)
from pretask.types import Batch, LabeledSource, Progress, Source

T = TypeVar("T")

PROBES = 256
"""images whose features are checked"""
PUZZLES = 64
"""number of these images used for the shuffle test"""
NEIGHBORS = 20
"""k of the online kNN (usually the best for DINO)"""
LABELED = 2000
"""maximum number of labeled images for the online kNN"""
BUDGET = 0.01
"""fraction of the run's time that checks may take"""


@dataclass(frozen=True)
class FeatureStats:
    """How much features differ between images; see `feature_stats`."""

    std: float
    cosine: float
    rank: float
    relative_variance: float


def feature_stats(z: Tensor) -> FeatureStats:
    """(N, D) features -> mean per-dimension std and mean cosine of unit rows, effective rank, relative variance.

    `rank` is RankMe (arXiv:2210.02885) of the centered features: the exponential of the entropy of their singular
    values. `relative_variance` is the fraction of the features' mean square that differs between images, 0 for constant
    features.
    """
    z = z.float()
    if not z.isfinite().all():
        return FeatureStats(*(math.nan,) * 4)
    centered = z - z.mean(0)
    relative_variance = (centered.square().sum() / z.square().sum().clamp(min=1e-12)).item()
    return FeatureStats(evals.std(z), evals.cosine(z), evals.rankme(centered), relative_variance)


@dataclass(frozen=True)
class ShuffleTest:
    """Loss on the puzzles of some images, and on the same puzzles with one field shuffled between images."""

    probe_loss: float
    shuffled_loss: float
    """NaN for a puzzle of one field"""


@torch.no_grad()
def shuffle_test(method: Method[Any], batch: Batch) -> ShuffleTest:
    """Shift each field of the puzzle separately by half a batch plus one; the largest loss counts.

    Fields are shifted one at a time: shifting all fields of a question would only reorder the batch.
    """
    with frozen(method), distributed.local_only():
        puzzle = method.puzzle(batch, 0, "watch")
        rows = {f.name: x for f in fields(puzzle) if getattr(x := getattr(puzzle, f.name), "ndim", 0)}
        moved = [replace(puzzle, **{name: x.roll(len(x) // 2 + 1, 0)}) for name, x in rows.items()]
        probe_loss, *shuffled = (method.loss(p).total.item() for p in (puzzle, *moved))
        return ShuffleTest(probe_loss, max(shuffled) if len(shuffled) > 1 else math.nan)


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Within the block batch norms use batch statistics as in training, but dropout is off and no buffer changes."""
    modes = [(module, module.training) for module in net.modules()]
    norms = [m for m, training in modes if training and isinstance(m, _BatchNorm) and m.track_running_stats]
    net.eval()
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for module, training in modes:
            module.training = training


def diagnose(now: FeatureStats, first: FeatureStats, test: ShuffleTest, start: ShuffleTest) -> str:
    """State of health, given the statistics before training (`first`) and the shuffle test at the start of the cycle.

    Untrained networks already map images close together, so thresholds are relative to them. Measured on planted faults
    and healthy runs: collapse leaves under 0.1 % of the untrained variance, while a healthy run of rotation prediction
    leaves as little as 6 %; features with one planted direction keep under a fifth of the untrained rank, while a healthy
    contrastive run drops to a third.

    Batch norms keep an encoder's features different even if everything after them has collapsed. The loss then falls but
    does not change when puzzles are shuffled: by under 0.1 % of the fall with planted faults, but by 10 % or more at the
    end of finished runs on real images. A method that is still at chance differs by noise, and its loss has hardly fallen.
    """
    if not math.isfinite(now.relative_variance):
        return NONFINITE
    fall = start.probe_loss - test.probe_loss
    if now.relative_variance < 0.005 * first.relative_variance:
        return CONSTANT_FEATURES if fall > 0.2 * abs(start.probe_loss) else COMPLETE
    if now.rank < 0.25 * first.rank:
        return DIMENSIONAL
    if fall > 0.02 * abs(start.probe_loss) and abs(test.shuffled_loss - test.probe_loss) < 0.002 * fall:
        return INPUT_INDEPENDENT
    return HEALTHY


def from_row(kind: type[T], row: Mapping[str, Any]) -> T:
    """A dataclass read back from a row of monitor.jsonl."""
    return kind(**{f.name: row[f.name] for f in fields(kind)})  # type: ignore[arg-type]


class CollapseMonitor:
    """Checks the encoder from time to time, using at most BUDGET of the run's time, and writes to monitor.jsonl."""

    def __init__(
        self, method: Method[Any], source: Source, folder: Path, labeled: LabeledSource | None = None
    ):
        self.method, self.encoder, self.folder = method, method.export(), folder
        self.probes, self.puzzles = (loader.sample(source, n) for n in (PROBES, PUZZLES))
        self.labeled = None
        if labeled is not None:
            some = loader.sample(labeled, LABELED, Rng(0, "watch"))
            self.labeled = (some, labeled.label[some.index])
        rows = read_rows(folder / run.MONITOR)
        self.first = from_row(FeatureStats, rows[0]) if rows else None
        self.starts: dict[int, ShuffleTest] = {}  # the first test of each cycle
        for row in rows:
            if "probe_loss" in row:
                self.starts.setdefault(row["cycle"], from_row(ShuffleTest, row))
        self.state, self.since, self.knn = HEALTHY, 0, math.nan
        self.cost = {"check": 0.0, "knn": 0.0}  # seconds of the last check
        self.last = {"check": -math.inf, "knn": -math.inf}  # when it ended

    def is_due(self, what: str, fraction: float) -> bool:
        return time.perf_counter() - self.last[what] > self.cost[what] / fraction

    def check(self, progress: Progress, now: bool = False) -> None:
        """Check if it is due, or `now`. The loss is compared with the one at the start of the method's cycle."""
        if not (now or self.is_due("check", BUDGET)):
            return
        began = time.perf_counter()
        stats = feature_stats(pooled(self.encoder, self.probes.image))
        test = shuffle_test(self.method, self.puzzles)
        self.first = self.first or stats
        state = diagnose(stats, self.first, test, self.starts.setdefault(progress.cycle, test))
        if state != self.state:
            self.state, self.since = state, progress.step
        self.last["check"] = time.perf_counter()
        self.cost["check"] = self.last["check"] - began
        row = {
            "step": progress.step,
            "cycle": progress.cycle,
            **asdict(stats),
            **asdict(test),
            "state": state,
        }
        if self.labeled is not None and (now or self.is_due("knn", 2 * BUDGET)):
            row["knn"] = self.knn = self.online_knn()
        append_row(self.folder / run.MONITOR, row)

    def online_knn(self) -> float:
        """kNN accuracy in %: one half of the labeled images, classified by neighbors in the other half."""
        assert self.labeled is not None
        began = time.perf_counter()
        batch, label = self.labeled
        z, half = pooled(self.encoder, batch.image), len(batch) // 2
        predicted = knn(z[:half], label[:half], z[half:], int(label.max()) + 1, NEIGHBORS)
        self.last["knn"] = time.perf_counter()
        self.cost["knn"] = self.last["knn"] - began
        return 100 * (predicted == label[half:]).float().mean().item()
