"""A map read off a frozen encoder's maps by one linear layer: ridge regression, solved.

A decoder of several layers learns features of its own, and would be scored for those too. So frozen maps are read linearly,
as frozen features are in a linear probe.
All stages on one grid are the columns, each with variance 1; its places are the rows, of every training image and its
mirror image. A place counts as the share of its pixels that are known, and is to give their mean. The penalty is the one
that, learned from the first four fifths of the images, errs least on the last; so images of a film are not neighbours of
those that they are tried on.
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.data.base import bar
from pretask.encoders import Encoder
from pretask.evals.features import batches
from pretask.transforms import augment as images
from pretask.types import Source, UserError

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)
"""λ of mean squared error + λ ‖W‖², strong to weak"""
GRID = 4
"""pixels that a place of the grid covers, a side; the map is enlarged to the image from there"""
BATCH = 32
"""images at once"""

Target = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(B, C, H, W) true -> (B, K, H, W) what is foreseen of it, 0 where it is not known, and (B, 1, H, W) 1.0 where it is"""


class Readout(nn.Module):
    """An encoder below one linear layer: (B, C, H, W) in [0, 1] -> (B, K, H, W)."""

    weight: Tensor  # (K, D, 1, 1)
    bias: Tensor  # (K,)

    def __init__(self, encoder: Encoder, weight: Tensor, bias: Tensor):
        """Of (D, K) and (K,)."""
        super().__init__()
        self.encoder = encoder
        self.register_buffer("weight", weight.T[:, :, None, None].float())
        self.register_buffer("bias", bias.float())

    def forward(self, image: Tensor) -> Tensor:
        return resized(F.conv2d(columns(self.encoder, image), self.weight, self.bias), image.shape[2:])


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
    """What foresees the map `name` of the scenes at `index`, all by default; the encoder stays as it is."""
    index = torch.arange(len(source)) if index is None else index
    encoder = copy.deepcopy(encoder).to(device).eval()
    first, last = (
        products(encoder, source, name, target, part, device, progress)
        for part in index.tensor_split([len(index) - len(index) // 5])
    )
    width = sum(encoder.widths[stage] for stage in stages_of(encoder))
    penalty = min(PENALTIES, key=lambda p: squared_error(last, *solve(first, width, p)))
    return Readout(encoder, *solve(first + last, width, penalty)).to(device)


@torch.no_grad()
def products(
    encoder: Encoder,
    source: Source,
    name: str,
    target: Target,
    index: Tensor,
    device: torch.device | str,
    progress: bool,
) -> Tensor:
    """Sum over all places of share · z zᵀ, float64 (D + 1 + K, D + 1 + K) on the CPU; z is a row of columns, 1 and the aim."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    with bar(progress) as steps:
        parts = batches(source, BATCH, index)
        for each in steps.track(parts, total=-(-len(index) // BATCH), description=f"{name}, frozen"):
            x, y = images.to_float(each.image.to(device)), each.aux[name].to(device)
            for image, true in ((x, y), (x.flip(3), mirror(y, name))):
                found = columns(encoder, image)
                aim, known = target(true)
                side = found.shape[2], found.shape[3]
                share, aim = (F.adaptive_avg_pool2d(m, side) for m in (known, aim))
                row = torch.cat([found, torch.ones_like(share), aim / share.clamp(min=1e-6)], 1)
                row, share = (m.movedim(1, 3).flatten(0, 2).double() for m in (row, share))
                total = total + (share * row).T @ row
    return total.cpu()


def solve(products: Tensor, width: int, penalty: float) -> tuple[Tensor, Tensor]:
    """-> weights (D, K) and bias (K,), in the units of the columns themselves; all 0 if nothing is known."""
    mean = products / products[width, width].clamp(min=1e-12)
    middle, aims = mean[width, :width], mean[width, width + 1 :]
    covariance = mean[:width, :width] - middle.outer(middle)
    scale = covariance.diagonal().clamp(min=0).sqrt()
    scale = torch.where(scale > 1e-6, 1 / scale, 0)  # a column that does not vary has no say
    matrix = covariance * scale.outer(scale) + penalty * torch.eye(width, dtype=torch.float64)
    right = (mean[:width, width + 1 :] - middle.outer(aims)) * scale[:, None]
    weight = torch.linalg.solve(matrix, right) * scale[:, None]
    return weight, aims - middle @ weight


def squared_error(products: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Sum over places of share · |foreseen - aim|²."""
    if not products.ndim:  # of no images
        return 0.0
    away = torch.cat([weight, bias[None], -torch.eye(len(bias), dtype=torch.float64)])
    return (away * (products @ away)).sum().item()


# ---- all stages on one grid


def stages_of(encoder: Encoder) -> list[str]:
    """Those that are maps; UserError if there is none."""
    if not (stages := [stage for stage, side in encoder.sides.items() if side > 1]):
        raise UserError(f"{encoder.name} has no maps, and a map is to be foreseen; use another encoder")
    return stages


def columns(encoder: Encoder, image: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1] -> (B, D, h, w)."""
    found = encoder(image)
    return on_grid([found[stage].float() for stage in stages_of(encoder)], image)


def on_grid(maps: Sequence[Tensor], image: Tensor) -> Tensor:
    """Of any sides, one below the other."""
    size = [max(1, side // GRID) for side in image.shape[2:]]
    return torch.cat([resized(x, size) for x in maps], 1)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, D, h, w) -> (B, D, *size), with anti-aliasing where it shrinks."""
    if list(x.shape[2:]) == list(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", antialias=True)


def mirror(y: Tensor, name: str) -> Tensor:
    """What a mirror shows: left and right change places, and a normal that pointed right points left."""
    flipped = y.flip(3)
    if name != "normals":
        return flipped
    return flipped * flipped.new_tensor([-1.0, 1.0, 1.0]).view(1, 3, 1, 1)
