"""Depth foreseen from an image, in metres: errors pooled over all valid pixels of all test images.

Scores after Eigen, Puhrsch, Fergus (NeurIPS 2014, arXiv:1406.2283): root mean square error in metres, mean absolute
relative error, and the share of pixels with max(found / true, true / found) below 1.25, 1.25², 1.25³. What is
foreseen is the logarithm, since depth is known to a share of itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pretask.encoders import Encoder
from pretask.tasks import dense
from pretask.tasks.base import Outcome, Plan
from pretask.tasks.dense import TUNES as TUNES
from pretask.tasks.dense import Scenes
from pretask.tasks.dense import check as check
from pretask.tasks.dense import classes as classes
from pretask.tasks.dense import load as load
from pretask.tasks.dense import matched as matched
from pretask.tasks.dense import shown as shown

RATIO = 1.25
NEAREST, FARTHEST = 0.05, 80.0
"""metres that can be foreseen"""
EVALS: Mapping[str, str] = {
    "absrel": "mean error as a share of the true depth, %; smaller is better",
    "rmse": "root of the mean squared error, metres; smaller is better",
    **{f"delta{k}": f"share of pixels whose depth is right up to a factor of 1.25^{k}" for k in (1, 2, 3)},
}
PROTOCOL = (
    "frozen, the logarithm of depth is read off all maps of the encoder by one linear layer: ridge regression, the penalty chosen on "
    "the last fifth of the training images; fine-tuned or supervised, a decoder of four convolutions is trained with the encoder by the "
    f"absolute error of the logarithm, {dense.TRAIN.optimizer}, lr {dense.TRAIN.lr}, batch {dense.TRAIN.batch}, {dense.STEPS} steps "
    "if not told otherwise, nothing chosen, last weights; mirrored images too; all pixels of all test images whose depth is known "
    "count alike"
)


def apply(encoder: Encoder, train: Scenes, test: Scenes, plan: Plan) -> Outcome:
    maps, notes = dense.taken("depth", 1, loss, target, encoder, train, test, plan)
    pictures: list[Mapping[str, Tensor]] = []
    metric = ((image, metres(log), true) for image, log, true in maps)
    errors = compare(dense.watched(metric, painted, pictures, len(test)))
    return Outcome(dense.scored(errors, EVALS, len(test), plan.seed, notes), (), pictures)


def floor(train: Scenes, test: Scenes, plan: Plan) -> tuple[str, Outcome]:
    """The mean logarithm of the training scenes' depth, everywhere."""
    logs = torch.cat([true[true > 0].double().log() for true in train.true("depth")])
    everywhere = logs.mean().exp()
    errors = compare((everywhere.expand_as(true), true) for true in test.true("depth"))
    return "one depth everywhere", Outcome(dense.scored(errors, EVALS, len(test), plan.seed, {}))


def painted(depth: Tensor) -> Tensor:
    """(1, H, W) metres -> (3, H, W) uint8, near is bright; black where it is not known."""
    near = torch.where(depth > 0, 1 / depth.clamp(min=0.5), 0)
    return (near / 2 * 255).to(torch.uint8).expand(3, -1, -1)


@dataclass(frozen=True)
class Errors:
    """Of N test images, their shares in the pooled scores."""

    pooled: dense.Pooled

    def scores(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """absrel in %, rmse in metres, delta1, delta2 and delta3 in %, () each; of (R, N), how often each image was
        drawn, (R,). The mean square of all pixels is rooted last."""
        means = self.pooled.means(rows)
        return means | {"rmse": means["rmse"].sqrt()}


def compare(pairs: Iterable[tuple[Tensor, Tensor]]) -> Errors:
    """Batches of depth (B, 1, H, W) in metres, found and true, 0 where unknown -> errors of each image."""
    sums: dict[str, list[Tensor]] = {}
    pixels = []
    for found, true in pairs:
        valid = true > 0
        d, z = found.double(), torch.where(valid, true, 1).double()
        ratio = torch.maximum(d / z, z / d)
        each = {"rmse": (d - z).square(), "absrel": 100.0 * (d - z).abs() / z}
        each |= {f"delta{k}": 100.0 * (ratio < RATIO**k) for k in (1, 2, 3)}
        for name, x in each.items():
            sums.setdefault(name, []).append(torch.where(valid, x.double(), 0).sum((1, 2, 3)))
        pixels.append(valid.sum((1, 2, 3)).double())
    return Errors(dense.Pooled({name: torch.cat(rows) for name, rows in sums.items()}, torch.cat(pixels)))


def target(true: Tensor) -> tuple[Tensor, Tensor]:
    """Metres (B, 1, H, W) -> their logarithm, and where it is known."""
    valid = true > 0
    return torch.where(valid, true, 1).log(), valid.float()


def loss(found: Tensor, true: Tensor) -> Tensor:
    """Mean absolute error of log depth, over what is known."""
    valid = true > 0
    off = (found - torch.where(valid, true, 1).log()).abs()
    return (off * valid).sum() / valid.sum().clamp(min=1)


def metres(log: Tensor) -> Tensor:
    return log.exp().clamp(NEAREST, FARTHEST)
