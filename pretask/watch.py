"""What looks at a run from outside: are the features healthy, and (with a labelled set) how good are they?

Nothing here touches training: features are taken in evaluation mode, from images that were set aside, and labels
live only in the watch set that the user gave.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from pretask import loader
from pretask.encoders import Encoder, pooled
from pretask.evals import spread as evals
from pretask.evals.knn import knn
from pretask.rng import Rng
from pretask.run import append, read
from pretask.states import BROKEN, COMPLETE, DIMENSIONAL, HEALTHY, SHORTCUT
from pretask.types import Labelled, Source

PROBES = 256
"""images whose features are looked at"""
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


def diagnose(now: Spread, first: Spread, loss_fell: bool) -> str:
    """The state of features that were `first` before training.

    Untrained networks already map images close together, so the thresholds are relative to them. Measured on
    planted faults and healthy runs: a collapse leaves under 0.1 % of the untrained variance, a healthy run of
    rotation prediction as little as 6 %; one planted direction leaves under a fifth of the untrained rank,
    a healthy contrastive run dips to a third.
    """
    if not math.isfinite(now.relative):
        return BROKEN
    if now.relative < 0.005 * first.relative:
        return SHORTCUT if loss_fell else COMPLETE
    if now.rank < 0.25 * first.rank:
        return DIMENSIONAL
    return HEALTHY


class Watch:
    """Looks at the encoder now and then, never for more than SHARE of the time; keeps what it saw in watch.jsonl."""

    def __init__(self, encoder: Encoder, source: Source, folder: Path, labelled: Labelled | None = None):
        self.encoder, self.folder = encoder, folder
        self.probes = loader.sample(source, PROBES)
        self.labelled = None
        if labelled is not None:
            some = loader.sample(labelled, LABELLED, Rng(0, "watch"))
            self.labelled = (some, labelled.label[some.index])
        rows = read(folder / "watch.jsonl")
        self.first = (
            Spread(**{k: rows[0][k] for k in ("std", "cosine", "rank", "relative")}) if rows else None
        )
        self.state, self.since, self.knn = HEALTHY, 0, math.nan
        self.cost = {"look": 0.0, "knn": 0.0}
        self.last = {"look": -math.inf, "knn": -math.inf}

    def due(self, what: str, share: float) -> bool:
        return time.perf_counter() - self.last[what] > self.cost[what] / share

    def look(self, step: int, loss_fell: bool = False, now: bool = False) -> None:
        """Look if it is time, or `now`."""
        if not (now or self.due("look", SHARE)):
            return
        began = time.perf_counter()
        seen = spread(pooled(self.encoder, self.probes.image))
        self.first = self.first or seen
        state = diagnose(seen, self.first, loss_fell)
        if state != self.state:
            self.state, self.since = state, step
        self.last["look"] = time.perf_counter()
        self.cost["look"] = self.last["look"] - began
        row = {"step": step, **asdict(seen), "state": state}
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
