"""Surface normals foreseen from an image: angles to the true ones, pooled over all valid pixels of all test images.

Scores as in the field's protocol on NYUv2 (Fouhey et al., ICCV 2013): mean and median angle in degrees, and the share
within 11.25, 22.5 and 30. Differs: the decoder learns by the cosine, where the protocol of Goyal et al. (2019,
arXiv:1905.01235) quantises normals into 40 codes and classifies them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.encoders import Encoder
from pretask.evals import dense
from pretask.evals.interval import RESAMPLES, Interval, quantiles
from pretask.types import Source

WITHIN = (11.25, 22.5, 30.0)
"""degrees"""
BINS = 1800
"""of a tenth of a degree, in which angles are counted so that the median of drawn test sets can be found"""


@dataclass(frozen=True)
class Angles:
    """Of N test images, how many valid pixels are off by which angle."""

    counts: Tensor  # (N, BINS) int32
    pooled: dense.Pooled

    def scores(self) -> dict[str, float]:
        """mean and median in degrees; "within 11.25" … in %."""
        found = {name: float(x) for name, x in self.pooled.means().items()}
        return found | {"median": float(medians(self.counts.double().sum(0)[None])[0])}

    def intervals(self, seed: int = 0) -> dict[str, Interval]:
        """95 %, by test sets of as many images drawn anew."""
        rows = drawn(len(self.counts), seed)
        found = {name: x.numpy() for name, x in self.pooled.means(rows).items()}
        found["median"] = medians(rows.double() @ self.counts.double()).numpy()
        return {name: Interval(value, *quantiles(found[name])) for name, value in self.scores().items()}


def drawn(n: int, seed: int) -> Tensor:
    """(RESAMPLES, N): how often each of n images is in test sets drawn anew."""
    return torch.from_numpy(np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=RESAMPLES))


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


def loss(found: Tensor, true: Tensor) -> Tensor:
    """1 - cosine, over what is known."""
    off = 1 - F.cosine_similarity(found, true, dim=1)
    valid = known(true)
    return (off * valid).sum() / valid.sum().clamp(min=1)


def normals(
    encoder: Encoder,
    train: Source,
    test: Source,
    *,
    frozen: bool = True,
    train_index: Tensor | None = None,
    test_index: Tensor | None = None,
    **known: Any,
) -> Angles:
    """The decoder learns on `train` and is scored on `test`; of one source, give positions. `known` is that of dense.fit."""
    net = dense.fit(encoder, train, "normals", 3, loss, frozen=frozen, index=train_index, **known)
    return compare(dense.foreseen(net, test, "normals", test_index, known.get("device", "cpu")))
