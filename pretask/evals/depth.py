"""Depth foreseen from an image, in metres: errors pooled over all valid pixels of all test images.

Scores after Eigen, Puhrsch, Fergus (NeurIPS 2014, arXiv:1406.2283): root mean square error in metres, mean absolute
relative error, and the share of pixels with max(found / true, true / found) below 1.25, 1.25², 1.25³. The decoder
foresees the logarithm, by the mean absolute error, since depth is known to a share of itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretask.encoders import Encoder
from pretask.evals import dense
from pretask.evals.interval import Interval, quantiles
from pretask.evals.normals import drawn
from pretask.types import Source

RATIO = 1.25
NEAREST, FARTHEST = 0.05, 80.0
"""metres that can be foreseen"""


@dataclass(frozen=True)
class Errors:
    """Of N test images, their shares in the pooled scores."""

    pooled: dense.Pooled

    def scores(self) -> dict[str, float]:
        """rmse in metres, absrel (1 is 100 %), delta1, delta2 and delta3 in %."""
        return {name: float(x) for name, x in finished(self.pooled.means()).items()}

    def intervals(self, seed: int = 0) -> dict[str, Interval]:
        """95 %, by test sets of as many images drawn anew."""
        found = finished(self.pooled.means(drawn(len(self.pooled.pixels), seed)))
        return {
            name: Interval(value, *quantiles(found[name].numpy())) for name, value in self.scores().items()
        }


def finished(means: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean square of all pixels is rooted last."""
    return {name: x.sqrt() if name == "rmse" else x for name, x in means.items()}


def compare(pairs: Iterable[tuple[Tensor, Tensor]]) -> Errors:
    """Batches of depth (B, 1, H, W) in metres, found and true, 0 where unknown -> errors of each image."""
    sums: dict[str, list[Tensor]] = {}
    pixels = []
    for found, true in pairs:
        valid = true > 0
        d, z = found.double(), torch.where(valid, true, 1).double()
        ratio = torch.maximum(d / z, z / d)
        each = {"rmse": (d - z).square(), "absrel": (d - z).abs() / z}
        each |= {f"delta{k}": 100.0 * (ratio < RATIO**k) for k in (1, 2, 3)}
        for name, x in each.items():
            sums.setdefault(name, []).append(torch.where(valid, x.double(), 0).sum((1, 2, 3)))
        pixels.append(valid.sum((1, 2, 3)).double())
    return Errors(dense.Pooled({name: torch.cat(rows) for name, rows in sums.items()}, torch.cat(pixels)))


def loss(found: Tensor, true: Tensor) -> Tensor:
    """Mean absolute error of log depth, over what is known."""
    valid = true > 0
    off = (found - torch.where(valid, true, 1).log()).abs()
    return (off * valid).sum() / valid.sum().clamp(min=1)


def metres(log: Tensor) -> Tensor:
    return log.exp().clamp(NEAREST, FARTHEST)


def depth(
    encoder: Encoder,
    train: Source,
    test: Source,
    *,
    frozen: bool = True,
    train_index: Tensor | None = None,
    test_index: Tensor | None = None,
    **known: Any,
) -> Errors:
    """The decoder learns on `train` and is scored on `test`; of one source, give positions. `known` is that of dense.fit."""
    net = dense.fit(encoder, train, "depth", 1, loss, frozen=frozen, index=train_index, **known)
    pairs = dense.foreseen(net, test, "depth", test_index, known.get("device", "cpu"))
    return compare((metres(log), true) for log, true in pairs)
