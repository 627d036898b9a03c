"""Attention maps: where in an image the features of a stage are strong (Gidaris et al. 2018, arXiv:1803.07728, fig. 3).

The paper shows Σ_c a_c^p at each position for Conv1, Conv3 and Conv5 of an AlexNet with p = 1, 2 and 4: its first, middle
and last feature map. It does not say how values become colors; here each map is scaled from its minimum to its maximum.
Features of other networks may be negative, so |a| is used instead of a.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.encoders import Encoder
from pretask.transforms import augment
from pretask.transforms.color import luma
from pretask.viz import sheet

POWERS = (1, 2, 4)
"""p for the first, middle and last map"""


@torch.no_grad()
def cells(encoder: Encoder, image: Tensor) -> list[sheet.Cell]:
    """(B, C, H, W) uint8 -> a cell per image with its attention maps; no cells if the encoder has no feature maps."""
    chosen = stages(encoder.sides)
    if not chosen:
        return []
    was_training = encoder.training
    found = encoder.eval()(augment.to_float(image.to(encoder.mean.device)))
    encoder.train(was_training)
    columns = {"image": sheet.pictures(image)}
    for stage, p in chosen.items():
        columns[f"{stage}, p = {p}"] = sheet.pictures(overlay(image, strength(found[stage].float().cpu(), p)))
    return [
        sheet.Cell(tuple((name, column[i]) for name, column in columns.items())) for i in range(len(image))
    ]


def stages(sides: Mapping[str, int]) -> dict[str, int]:
    """The first, middle and last feature map with more than one position, and the power for each."""
    maps = [stage for stage, side in sides.items() if side > 1]
    return dict(
        zip(dict.fromkeys([*maps[:1], *maps[len(maps) // 2 :][:1], *maps[-1:]]), POWERS, strict=False)
    )


def strength(features: Tensor, p: int) -> Tensor:
    """(B, C, h, w) -> Σ_c |a_c|^p, scaled to [0, 1] per image, (B, h, w)."""
    summed = features.nan_to_num().abs().pow(p).sum(1)
    low, high = summed.amin((1, 2), keepdim=True), summed.amax((1, 2), keepdim=True)
    return (summed - low) / (high - low).clamp(min=1e-12)


def overlay(image: Tensor, map: Tensor) -> Tensor:
    """(B, C, H, W) images and (B, h, w) maps -> the maps in color over the gray images, (B, 3, H, W) in [0, 1]."""
    from matplotlib import colormaps

    smooth = F.interpolate(map[:, None], size=image.shape[-2:], mode="bilinear")[:, 0].clamp(0, 1)
    color = torch.from_numpy(colormaps["inferno"](smooth.numpy())[..., :3]).float().permute(0, 3, 1, 2)
    return 0.4 * luma(augment.to_float(image)) + 0.6 * color
