"""What looks at a run from outside: are the features healthy, and (with a labelled set) how good are they?

Nothing here touches training: features are taken in evaluation mode, from images that were set aside, and labels
live only in the watch set that the user gave.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask import images
from pretask.encoders import Encoder
from pretask.run import append, read
from pretask.types import Batch, Labelled, Source

PROBES = 256
"""images whose features are looked at"""
SHARE = 0.01
"""of the run's time that looking may take"""

HEALTHY, COMPLETE, DIMENSIONAL, SHORTCUT, BROKEN = (
    "healthy",
    "complete collapse",
    "dimensional collapse",
    "loss falls while features are constant",
    "loss is not finite",
)
ADVICE = {
    COMPLETE: "every image gets the same features: lower --lr, lengthen --warmup, check stop-gradient or negatives",
    DIMENSIONAL: "features span almost no dimensions: a larger --batch, a weaker --weight-decay or a lower --lr",
    SHORTCUT: "the puzzle is solved without looking at the image: look at `pretask preview`, run `pretask check`",
    BROKEN: "lower --lr, set --clip 1, or run with --precision 32-true",
}


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
    unit = F.normalize(z, dim=1)
    n = len(z)
    cosine = ((unit.sum(0).square().sum() - n) / (n * (n - 1))).item()
    centred = z - z.mean(0)
    s = torch.linalg.svdvals(centred.double())
    p = s / s.sum().clamp(min=1e-12)
    rank = (-(p * p.clamp(min=1e-12).log()).sum()).exp().item()
    relative = (centred.square().sum() / z.square().sum().clamp(min=1e-12)).item()
    return Spread(unit.std(0).mean().item(), cosine, rank, relative)


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


def knn(train: Tensor, label: Tensor, test: Tensor, truth: Tensor, k: int = 20) -> float:
    """Accuracy, %, of the similarity-weighted k nearest neighbours at temperature 0.07 (Wu et al. 2018)."""
    similarity, nearest = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T).topk(min(k, len(train)))
    votes = torch.zeros(len(test), int(label.max()) + 1).scatter_add_(
        1, label[nearest], (similarity / 0.07).exp()
    )
    return 100 * (votes.argmax(1) == truth).float().mean().item()


class Watch:
    """Looks at the encoder now and then, never for more than SHARE of the time; keeps what it saw in watch.jsonl."""

    def __init__(self, encoder: Encoder, source: Source, folder: Path, labelled: Labelled | None = None):
        self.encoder, self.folder = encoder, folder
        step = max(1, len(source) // PROBES)
        self.probes = source.__getitems__(torch.arange(0, len(source), step)[:PROBES])
        self.labelled = None
        if labelled is not None:
            order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(0))[:2000]
            self.labelled = (labelled.__getitems__(order), labelled.label[order])
        rows = read(folder / "watch.jsonl")
        self.first = (
            Spread(**{k: rows[0][k] for k in ("std", "cosine", "rank", "relative")}) if rows else None
        )
        self.state, self.since, self.knn = HEALTHY, 0, math.nan
        self.cost = {"look": 0.0, "knn": 0.0}
        self.last = {"look": -math.inf, "knn": -math.inf}

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        was_training = self.encoder.training
        self.encoder.eval()
        device = next(self.encoder.parameters()).device
        rows = [
            self.encoder(images.to_float(x.to(device)))["pool"].float().cpu() for x in batch.image.split(128)
        ]
        self.encoder.train(was_training)
        return torch.cat(rows)

    def due(self, what: str, share: float) -> bool:
        return time.perf_counter() - self.last[what] > self.cost[what] / share

    def look(self, step: int, loss_fell: bool = False, now: bool = False) -> None:
        """Look if it is time, or `now`."""
        if not (now or self.due("look", SHARE)):
            return
        began = time.perf_counter()
        seen = spread(self.features(self.probes))
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
        assert self.labelled is not None
        began = time.perf_counter()
        batch, label = self.labelled
        z = self.features(batch)
        half = len(z) // 2
        accuracy = knn(z[:half], label[:half], z[half:], label[half:])
        self.last["knn"] = time.perf_counter()
        self.cost["knn"] = self.last["knn"] - began
        return accuracy
