"""Linear readout: one linear layer predicts a map from a frozen encoder's maps, by ridge regression in closed form.

A decoder of several layers would learn its own features and be scored for those too, so frozen maps are read out
linearly, as in a linear probe. The columns are all stages, resized to one grid and scaled to variance 1; the rows are the
grid positions of every training image and its mirror image. The target of a position is the mean over its known pixels,
and its weight is the fraction of pixels that are known. The penalty is fitted on the first four fifths of the images and
chosen by the squared error on the last fifth; a split in order keeps similar frames of a film on the same side.
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.data.base import bar
from pretask.encoders import Encoder
from pretask.evals.features import batches
from pretask.transforms import augment
from pretask.types import Source, UserError

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)
"""λ of mean squared error + λ ‖W‖², strong to weak"""
GRID = 4
"""pixels per grid position and side; predictions on the grid are upsampled to the image"""
BATCH = 32
"""number of images per batch"""

Target = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(B, C, H, W) true maps -> (B, K, H, W) targets, 0 where unknown, and (B, 1, H, W) 1.0 where known"""


class Readout(nn.Module):
    """An encoder with one linear layer: (B, C, H, W) in [0, 1] -> (B, K, H, W)."""

    weight: Tensor  # (K, D, 1, 1)
    bias: Tensor  # (K,)

    def __init__(self, encoder: Encoder, weight: Tensor, bias: Tensor):
        """weight (D, K), bias (K,)."""
        super().__init__()
        self.encoder = encoder
        self.register_buffer("weight", weight.T[:, :, None, None].float())
        self.register_buffer("bias", bias.float())

    def forward(self, image: Tensor) -> Tensor:
        return resize(F.conv2d(grid_features(self.encoder, image), self.weight, self.bias), image.shape[2:])


def fit(
    encoder: Encoder,
    source: Source,
    name: str,
    target: Target,
    *,
    index: Tensor | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Readout:
    """A readout for the map `name`, fitted to the scenes at `index`, by default all scenes. The encoder is not changed."""
    index = torch.arange(len(source)) if index is None else index
    encoder = copy.deepcopy(encoder).to(device).eval()
    first, last = (
        second_moments(encoder, source, name, target, part, device, progress)
        for part in index.tensor_split([len(index) - len(index) // 5])
    )
    width = sum(encoder.widths[stage] for stage in map_stages(encoder))
    penalty = min(PENALTIES, key=lambda p: squared_error(last, *solve(first, width, p)))
    return Readout(encoder, *solve(first + last, width, penalty)).to(device)


@torch.no_grad()
def second_moments(
    encoder: Encoder,
    source: Source,
    name: str,
    target: Target,
    index: Tensor,
    device: torch.device | str,
    progress: bool,
) -> Tensor:
    """Sum over all positions of weight · z zᵀ, float64 (D + 1 + K, D + 1 + K) on the CPU; z is [features, 1, target]."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    with bar(progress) as steps:
        parts = batches(source, BATCH, index)
        for each in steps.track(parts, total=-(-len(index) // BATCH), description=f"{name}, frozen"):
            x, y = augment.to_float(each.image.to(device)), each.aux[name].to(device)
            for image, true in ((x, y), (x.flip(3), flip_map(y, name))):
                features = grid_features(encoder, image)
                targets, known = target(true)
                side = features.shape[2], features.shape[3]
                weight, targets = (F.adaptive_avg_pool2d(m, side) for m in (known, targets))
                row = torch.cat([features, torch.ones_like(weight), targets / weight.clamp(min=1e-6)], 1)
                row, weight = (m.movedim(1, 3).flatten(0, 2).double() for m in (row, weight))
                total = total + (weight * row).T @ row
    return total.cpu()


def solve(moments: Tensor, width: int, penalty: float) -> tuple[Tensor, Tensor]:
    """-> weight (D, K) and bias (K,), for features that are not standardized; all 0 if nothing is known."""
    moments = moments / moments[width, width].clamp(min=1e-12)
    mean, target_mean = moments[width, :width], moments[width, width + 1 :]
    covariance = moments[:width, :width] - mean.outer(mean)
    scale = covariance.diagonal().clamp(min=0).sqrt()
    scale = torch.where(scale > 1e-6, 1 / scale, 0)  # constant columns are ignored
    matrix = covariance * scale.outer(scale) + penalty * torch.eye(width, dtype=torch.float64)
    right = (moments[:width, width + 1 :] - mean.outer(target_mean)) * scale[:, None]
    weight = torch.linalg.solve(matrix, right) * scale[:, None]
    return weight, target_mean - mean @ weight


def squared_error(moments: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Sum over positions of weight · |prediction - target|²."""
    if not moments.ndim:  # no images
        return 0.0
    residual = torch.cat([weight, bias[None], -torch.eye(len(bias), dtype=torch.float64)])
    return (residual * (moments @ residual)).sum().item()


# ---- all stages on one grid


def map_stages(encoder: Encoder) -> list[str]:
    """The stages with maps larger than 1 x 1; UserError if there are none."""
    if not (stages := [stage for stage, side in encoder.sides.items() if side > 1]):
        raise UserError(f"{encoder.name} has no maps, which dense prediction needs; use another encoder")
    return stages


def grid_features(encoder: Encoder, image: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1] -> (B, D, h, w)."""
    stages = encoder(image)
    return concat_on_grid([stages[stage].float() for stage in map_stages(encoder)], image)


def concat_on_grid(maps: Sequence[Tensor], image: Tensor) -> Tensor:
    """Maps of any size, resized to the grid of an image and concatenated along channels."""
    size = [max(1, side // GRID) for side in image.shape[2:]]
    return torch.cat([resize(x, size) for x in maps], 1)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, D, h, w) -> (B, D, *size), bilinear, with anti-aliasing for downsampling."""
    if list(x.shape[2:]) == list(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", antialias=True)


def flip_map(y: Tensor, name: str) -> Tensor:
    """Flip a map left to right; the x component of normals changes its sign."""
    flipped = y.flip(3)
    if name != "normals":
        return flipped
    return flipped * flipped.new_tensor([-1.0, 1.0, 1.0]).view(1, 3, 1, 1)
