"""What looks at a run from outside: are the features healthy, and (with a labelled set) how good are they?

Nothing here touches training: features are taken in evaluation mode, from images that were set aside, and labels
live only in the watch set that the user gave.
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
from pretask.train.health import BLIND, BROKEN, COMPLETE, DIMENSIONAL, HEALTHY, SHORTCUT
from pretask.train.run import append, read
from pretask.types import Batch, Labelled, Progress, Source

T = TypeVar("T")

PROBES = 256
"""images whose features are looked at"""
PUZZLES = 64
"""of them whose puzzle is made, to ask what the solver pays for wrong answers"""
NEIGHBOURS = 20
"""that vote on the online kNN (DINO's usual best)"""
LABELLED = 2000
"""labelled images that the online kNN is of"""
SHARE = 0.01
"""of the run's time that looking may take"""


@dataclass(frozen=True)
class Spread:
    """How far the features of different images lie apart; see `spread`."""

    std: float
    cosine: float
    rank: float
    relative: float


def spread(z: Tensor) -> Spread:
    """(N, D) features -> mean per-dimension std and mean cosine of unit rows, effective rank, relative variance.

    `rank` is RankMe (arXiv:2210.02885) of the centred features: the exponential of the entropy of their singular
    values. `relative` is the share of the features' mean square that differs between images, 0 for a constant.
    """
    z = z.float()
    if not z.isfinite().all():
        return Spread(*(math.nan,) * 4)
    centred = z - z.mean(0)
    relative = (centred.square().sum() / z.square().sum().clamp(min=1e-12)).item()
    return Spread(evals.std(z), evals.cosine(z), evals.rankme(centred), relative)


@dataclass(frozen=True)
class Costs:
    """What a solver pays for the puzzles of some images, and for the same ones with something of other images."""

    paid: float
    swapped: float
    """NaN for a puzzle of one field"""


@torch.no_grad()
def costs(method: Method[Any], batch: Batch) -> Costs:
    """Each field of the puzzle by itself is given to the next image but half a batch; what costs most counts.

    A question may have several fields, which moved together would only be asked in another order.
    """
    with still(method), distributed.alone():
        puzzle = method.puzzle(batch, 0, "watch")
        rows = {f.name: x for f in fields(puzzle) if getattr(x := getattr(puzzle, f.name), "ndim", 0)}
        moved = [replace(puzzle, **{name: x.roll(len(x) // 2 + 1, 0)}) for name, x in rows.items()]
        paid, *others = (method.loss(p).total.item() for p in (puzzle, *moved))
        return Costs(paid, max(others) if len(others) > 1 else math.nan)


@contextmanager
def still(net: nn.Module) -> Iterator[None]:
    """In here a network answers as in training, batch norms by the batch, but nothing is left out and nothing changes."""
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


def diagnose(now: Spread, first: Spread, asked: Costs, start: Costs) -> str:
    """The state of features that were `first` before training, and of a solver that paid `start`.

    Untrained networks already map images close together, so the thresholds are relative to them. Measured on
    planted faults and healthy runs: a collapse leaves under 0.1 % of the untrained variance, a healthy run of
    rotation prediction as little as 6 %; one planted direction leaves under a fifth of the untrained rank,
    a healthy contrastive run dips to a third.

    Batch norms keep an encoder's features apart where all that follows has collapsed. Then the loss, once it has
    fallen, is the same with something of other images: planted, it differs by under 0.1 % of the fall, at the end of
    finished runs on real images by 10 % and more. A solver that is still at chance differs by noise, and has hardly fallen.
    """
    if not math.isfinite(now.relative):
        return BROKEN
    fell = start.paid - asked.paid
    if now.relative < 0.005 * first.relative:
        return SHORTCUT if fell > 0.2 * abs(start.paid) else COMPLETE
    if now.rank < 0.25 * first.rank:
        return DIMENSIONAL
    if fell > 0.02 * abs(start.paid) and abs(asked.swapped - asked.paid) < 0.002 * fell:
        return BLIND
    return HEALTHY


def told(kind: type[T], row: Mapping[str, Any]) -> T:
    """What a row of watch.jsonl says, as it was written."""
    return kind(**{f.name: row[f.name] for f in fields(kind)})  # type: ignore[arg-type]


class Watch:
    """Looks at the encoder now and then, never for more than SHARE of the time; keeps what it saw in watch.jsonl."""

    def __init__(self, method: Method[Any], source: Source, folder: Path, labelled: Labelled | None = None):
        self.method, self.encoder, self.folder = method, method.export(), folder
        self.probes, self.puzzles = (loader.sample(source, n) for n in (PROBES, PUZZLES))
        self.labelled = None
        if labelled is not None:
            some = loader.sample(labelled, LABELLED, Rng(0, "watch"))
            self.labelled = (some, labelled.label[some.index])
        rows = read(folder / "watch.jsonl")
        self.first = told(Spread, rows[0]) if rows else None
        self.starts: dict[int, Costs] = {}  # the first of each round
        for row in rows:
            if "paid" in row:
                self.starts.setdefault(row["round"], told(Costs, row))
        self.state, self.since, self.knn = HEALTHY, 0, math.nan
        self.cost = {"look": 0.0, "knn": 0.0}
        self.last = {"look": -math.inf, "knn": -math.inf}

    def due(self, what: str, share: float) -> bool:
        return time.perf_counter() - self.last[what] > self.cost[what] / share

    def look(self, progress: Progress, now: bool = False) -> None:
        """Look if it is time, or `now`. What a solver pays is compared within a round of the method."""
        if not (now or self.due("look", SHARE)):
            return
        began = time.perf_counter()
        seen, asked = spread(pooled(self.encoder, self.probes.image)), costs(self.method, self.puzzles)
        self.first = self.first or seen
        state = diagnose(seen, self.first, asked, self.starts.setdefault(progress.round, asked))
        if state != self.state:
            self.state, self.since = state, progress.step
        self.last["look"] = time.perf_counter()
        self.cost["look"] = self.last["look"] - began
        row = {
            "step": progress.step,
            "round": progress.round,
            **asdict(seen),
            **asdict(asked),
            "state": state,
        }
        if self.labelled is not None and (now or self.due("knn", 2 * SHARE)):
            row["knn"] = self.knn = self.nearest()
        append(self.folder / "watch.jsonl", row)

    def nearest(self) -> float:
        """Accuracy, %, of one half of the labelled images by their neighbours in the other."""
        assert self.labelled is not None
        began = time.perf_counter()
        batch, label = self.labelled
        z, half = pooled(self.encoder, batch.image), len(batch) // 2
        found = knn(z[:half], label[:half], z[half:], int(label.max()) + 1, NEIGHBOURS)
        self.last["knn"] = time.perf_counter()
        self.cost["knn"] = self.last["knn"] - began
        return 100 * (found == label[half:]).float().mean().item()
