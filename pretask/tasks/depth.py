"""Monocular depth estimation, in meters: errors pooled over all valid pixels of all test images.

Metrics of Eigen, Puhrsch, Fergus (NeurIPS 2014, arXiv:1406.2283): root mean squared error in meters, mean absolute
relative error, and the fraction of pixels with max(predicted / true, true / predicted) below 1.25, 1.25², 1.25³. The
logarithm is predicted, since errors of depth are relative.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pretask.tasks import dense

RATIO = 1.25
NEAREST, FARTHEST = 0.05, 80.0
"""range of predictions, meters"""


class Depth(dense.DenseTask):
    name = "depth"
    metrics: ClassVar[Mapping[str, str]] = {
        "absrel": "mean absolute error relative to the true depth, %; lower is better",
        "rmse": "root mean squared error, meters; lower is better",
        **{f"delta{k}": f"fraction of pixels with a depth within a factor of 1.25^{k}" for k in (1, 2, 3)},
    }
    protocol = (
        "frozen: one linear layer predicts the logarithm of depth from all maps of the encoder, fitted by ridge regression with the "
        "penalty chosen on the last fifth of the training images; fine-tuned or supervised: a decoder of four convolutions is trained "
        f"together with the encoder on the absolute error of the logarithm, {dense.TRAIN.optimizer}, lr {dense.TRAIN.lr}, batch "
        f"{dense.TRAIN.batch}, {dense.DenseTask.steps} steps by default, no hyperparameter or checkpoint is chosen, the last weights "
        "are scored; training images are also mirrored; all pixels with known depth in all test images have the same weight"
    )
    outputs = 1
    floor_name = "one depth everywhere"

    def target(self, true: Tensor) -> tuple[Tensor, Tensor]:
        """Meters (B, 1, H, W) -> their logarithm, and 1.0 where it is known."""
        valid = true > 0
        return torch.where(valid, true, 1).log(), valid.float()

    def loss(self, output: Tensor, true: Tensor) -> Tensor:
        """Mean absolute error of log depth over known pixels."""
        valid = true > 0
        error = (output - torch.where(valid, true, 1).log()).abs()
        return (error * valid).sum() / valid.sum().clamp(min=1)

    def to_map(self, output: Tensor) -> Tensor:
        return meters(output)

    def mean(self, maps: Iterable[Tensor]) -> Tensor:
        """() meters: the exponential of the mean logarithm."""
        return torch.cat([true[true > 0].double().log() for true in maps]).mean().exp()

    def compare(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> "Errors":
        """Batches of depth (B, 1, H, W) in meters, predicted and true, 0 where unknown -> errors of each image."""
        sums: dict[str, list[Tensor]] = {}
        pixels = []
        for predicted, true in pairs:
            valid = true > 0
            d, z = predicted.double(), torch.where(valid, true, 1).double()
            ratio = torch.maximum(d / z, z / d)
            each = {"rmse": (d - z).square(), "absrel": 100.0 * (d - z).abs() / z}
            each |= {f"delta{k}": 100.0 * (ratio < RATIO**k) for k in (1, 2, 3)}
            for name, x in each.items():
                sums.setdefault(name, []).append(torch.where(valid, x.double(), 0).sum((1, 2, 3)))
            pixels.append(valid.sum((1, 2, 3)).double())
        totals = {name: torch.cat(rows) for name, rows in sums.items()}
        return Errors(dense.PixelSums(totals, torch.cat(pixels)))

    def colored(self, map: Tensor) -> Tensor:
        """(1, H, W) meters -> (3, H, W) uint8; near is bright, unknown is black."""
        near = torch.where(map > 0, 1 / map.clamp(min=0.5), 0)
        return (near / 2 * 255).to(torch.uint8).expand(3, -1, -1)


@dataclass(frozen=True)
class Errors:
    """Errors of N test images, summed over pixels."""

    sums: dense.PixelSums

    def scores(self, weight: Tensor | None = None) -> dict[str, Tensor]:
        """absrel in %, rmse in meters, delta1, delta2 and delta3 in %, () each; for (R, N), the number of times that each
        image is in each of R sets, (R,) each. The root is taken of the mean square over all pixels."""
        means = self.sums.means(weight)
        return means | {"rmse": means["rmse"].sqrt()}


def meters(log: Tensor) -> Tensor:
    return log.exp().clamp(NEAREST, FARTHEST)
