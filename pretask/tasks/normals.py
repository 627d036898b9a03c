"""Surface normal estimation: angles to the true normals, pooled over all valid pixels of all test images.

Metrics of the usual NYUv2 protocol (Fouhey et al., ICCV 2013): mean and median angle in degrees, and the fraction of
pixels within 11.25, 22.5 and 30 degrees. **Differs:** frozen maps are read out linearly, and a decoder is trained on the
cosine similarity, while the protocol of Goyal et al. (2019, arXiv:1905.01235) quantizes normals into 40 codes and
classifies them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.tasks import dense

WITHIN = (11.25, 22.5, 30.0)
"""degrees"""
BINS = 1800
"""bins of a tenth of a degree in which angles are counted, to compute the median of resampled test sets"""


class Normals(dense.DenseTask):
    name = "normals"
    metrics: ClassVar[Mapping[str, str]] = {
        "mean": "mean angle between the predicted and the true normal, degrees; lower is better",
        "median": "median of that angle, degrees; lower is better",
        **{f"within {d:g}": f"fraction of pixels with an angle below {d:g} degrees" for d in WITHIN},
    }
    protocol = (
        "frozen: one linear layer predicts normals from all maps of the encoder, fitted by ridge regression with the penalty chosen on "
        "the last fifth of the training images; fine-tuned or supervised: a decoder of four convolutions is trained together with the "
        f"encoder on the cosine similarity, {dense.TRAIN.optimizer}, lr {dense.TRAIN.lr}, batch {dense.TRAIN.batch}, "
        f"{dense.DenseTask.steps} steps by default, no hyperparameter or checkpoint is chosen, the last weights are scored; training "
        "images are also mirrored; all pixels with a known normal in all test images have the same weight"
    )
    outputs = 3
    floor_name = "one normal everywhere"

    def target(self, true: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> the same, and (B, 1, H, W) 1.0 where it is known."""
        valid = known(true)[:, None].float()
        return true * valid, valid

    def loss(self, output: Tensor, true: Tensor) -> Tensor:
        """Mean of 1 - cosine similarity over known pixels."""
        error = 1 - F.cosine_similarity(output, true, dim=1)
        valid = known(true)
        return (error * valid).sum() / valid.sum().clamp(min=1)

    def mean(self, maps: Iterable[Tensor]) -> Tensor:
        """(1, 3, 1, 1) mean direction."""
        total = torch.stack([true.sum((0, 2, 3)) for true in maps]).sum(0)
        return F.normalize(total, dim=0).view(1, 3, 1, 1)

    def compare(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> "Angles":
        """Batches of normals (B, 3, H, W), predicted and true, zeros where unknown -> angles of each image."""
        counts, sums, pixels = [], [], []
        for predicted, true in pairs:
            angles, valid = angle(predicted, true), known(true)
            for degrees in (a[v] for a, v in zip(angles, valid, strict=True)):
                bin = (degrees * BINS / 180).long().clamp(max=BINS - 1)
                counts.append(bin.bincount(minlength=BINS).int())
                sums.append([degrees.sum().item(), *(100.0 * (degrees < d).sum().item() for d in WITHIN)])
                pixels.append(len(degrees))
        table = torch.tensor(sums, dtype=torch.float64)
        names = ["mean", *(f"within {d:g}" for d in WITHIN)]
        totals = dense.PixelSums(dict(zip(names, table.T, strict=True)), torch.tensor(pixels).double())
        return Angles(torch.stack(counts), totals)

    def colored(self, map: Tensor) -> Tensor:
        """(3, H, W) -> colors uint8; unknown is black."""
        unit = F.normalize(map, dim=0)
        return ((unit + 1) / 2 * 255 * (unit.square().sum(0) > 0)).to(torch.uint8)


@dataclass(frozen=True)
class Angles:
    """Histograms of the angles in N test images, over valid pixels."""

    counts: Tensor  # (N, BINS) int32
    sums: dense.PixelSums

    def scores(self, weight: Tensor | None = None) -> dict[str, Tensor]:
        """mean and median in degrees, "within 11.25" … in %, () each; for (R, N), the number of times that each image is in
        each of R sets, (R,) each."""
        rows = torch.ones(1, len(self.counts)) if weight is None else weight
        median = medians(rows.double() @ self.counts.double())
        return self.sums.means(weight) | {"median": median[0] if weight is None else median}


def medians(counts: Tensor) -> Tensor:
    """(R, BINS) -> (R,) degrees, interpolated within a bin."""
    total = counts.cumsum(1)
    half = total[:, -1:] / 2
    bin = torch.searchsorted(total, half).clamp(max=BINS - 1)
    below = total.gather(1, bin) - counts.gather(1, bin)
    fraction = (half - below) / counts.gather(1, bin).clamp(min=1)
    return ((bin + fraction) * 180 / BINS).squeeze(1)


def known(true: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, H, W) bool: where there is a normal."""
    return true.square().sum(1) > 0.25


def angle(predicted: Tensor, true: Tensor) -> Tensor:
    """(B, 3, H, W) vectors of any length, and unit vectors -> (B, H, W) degrees."""
    cosine = F.cosine_similarity(predicted.double(), true.double(), dim=1)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
