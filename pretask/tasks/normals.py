"""Surface normals foreseen from an image: angles to the true ones, pooled over all valid pixels of all test images.

Scores as in the field's protocol on NYUv2 (Fouhey et al., ICCV 2013): mean and median angle in degrees, and the share
within 11.25, 22.5 and 30. Differs: frozen maps are read linearly, and a decoder learns by the cosine, where the protocol of Goyal et al. (2019,
arXiv:1905.01235) quantises normals into 40 codes and classifies them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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

WITHIN = (11.25, 22.5, 30.0)
"""degrees"""
BINS = 1800
"""of a tenth of a degree, in which angles are counted so that the median of drawn test sets can be found"""
EVALS: Mapping[str, str] = {
    "mean": "of the angle between the foreseen and the true normal, degrees; smaller is better",
    "median": "of the same",
    **{f"within {d:g}": f"share of pixels whose normal is off by less than {d:g} degrees" for d in WITHIN},
}
PROTOCOL = (
    "frozen, normals are read off all maps of the encoder by one linear layer: ridge regression, the penalty chosen on the last "
    "fifth of the training images; fine-tuned or supervised, a decoder of four convolutions is trained with the encoder by the cosine, "
    f"{dense.TRAIN.optimizer}, lr {dense.TRAIN.lr}, batch {dense.TRAIN.batch}, {dense.STEPS} steps if not told otherwise, nothing "
    "chosen, last weights; mirrored images too; all pixels of all test images whose normal is known count alike"
)


def apply(encoder: Encoder, train: Scenes, test: Scenes, plan: Plan) -> Outcome:
    maps, notes = dense.taken("normals", 3, loss, target, encoder, train, test, plan)
    pictures: list[Mapping[str, Tensor]] = []
    angles = compare(dense.watched(maps, painted, pictures, len(test)))
    return Outcome(dense.scored(angles, EVALS, len(test), plan.seed, notes), (), pictures)


def floor(train: Scenes, test: Scenes, plan: Plan) -> tuple[str, Outcome]:
    """The mean direction of the training scenes, everywhere."""
    total = torch.stack([true.sum((0, 2, 3)) for true in train.true("normals")]).sum(0)
    everywhere = F.normalize(total, dim=0).view(1, 3, 1, 1)
    angles = compare((everywhere.expand_as(true), true) for true in test.true("normals"))
    return "one normal everywhere", Outcome(dense.scored(angles, EVALS, len(test), plan.seed, {}))


def painted(normals: Tensor) -> Tensor:
    """(3, H, W) -> colours uint8, black where there is none."""
    unit = F.normalize(normals, dim=0)
    return ((unit + 1) / 2 * 255 * (unit.square().sum(0) > 0)).to(torch.uint8)


@dataclass(frozen=True)
class Angles:
    """Of N test images, how many valid pixels are off by which angle."""

    counts: Tensor  # (N, BINS) int32
    pooled: dense.Pooled

    def scores(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """mean and median in degrees, "within 11.25" … in %, () each; of (R, N), how often each image was drawn, (R,)."""
        drawn = torch.ones(1, len(self.counts)) if rows is None else rows
        middle = medians(drawn.double() @ self.counts.double())
        return self.pooled.means(rows) | {"median": middle[0] if rows is None else middle}


def medians(counts: Tensor) -> Tensor:
    """(R, BINS) -> (R,) degrees: where half of the pixels lie below, interpolated within the bin."""
    total = counts.cumsum(1)
    half = total[:, -1:] / 2
    bin = torch.searchsorted(total, half).clamp(max=BINS - 1)
    below = total.gather(1, bin) - counts.gather(1, bin)
    share = (half - below) / counts.gather(1, bin).clamp(min=1)
    return ((bin + share) * 180 / BINS).squeeze(1)


def known(true: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, H, W): where there is a normal."""
    return true.square().sum(1) > 0.25


def angle(found: Tensor, true: Tensor) -> Tensor:
    """(B, 3, H, W) of any length, and unit vectors -> (B, H, W) degrees."""
    cosine = F.cosine_similarity(found.double(), true.double(), dim=1)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))


def compare(pairs: Iterable[tuple[Tensor, Tensor]]) -> Angles:
    """Batches of normals (B, 3, H, W), found and true, zeros where unknown -> what is off by how much."""
    counts, sums, pixels = [], [], []
    for found, true in pairs:
        off, valid = angle(found, true), known(true)
        for degrees in (o[v] for o, v in zip(off, valid, strict=True)):
            bin = (degrees * BINS / 180).long().clamp(max=BINS - 1)
            counts.append(bin.bincount(minlength=BINS).int())
            sums.append([degrees.sum().item(), *(100.0 * (degrees < d).sum().item() for d in WITHIN)])
            pixels.append(len(degrees))
    table = torch.tensor(sums, dtype=torch.float64)
    names = ["mean", *(f"within {d:g}" for d in WITHIN)]
    pooled = dense.Pooled(dict(zip(names, table.T, strict=True)), torch.tensor(pixels).double())
    return Angles(torch.stack(counts), pooled)


def target(true: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3, H, W) -> the same, and (B, 1, H, W) where it is known."""
    valid = known(true)[:, None].float()
    return true * valid, valid


def loss(found: Tensor, true: Tensor) -> Tensor:
    """1 - cosine, over what is known."""
    off = 1 - F.cosine_similarity(found, true, dim=1)
    valid = known(true)
    return (off * valid).sum() / valid.sum().clamp(min=1)
