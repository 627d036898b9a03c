"""Attention maps: where in an image the features of a stage are strong (Gidaris et al. 2018, arXiv:1803.07728, fig. 3).

The paper shows Conv1, Conv3 and Conv5 of an AlexNet, of each Σ_c a_c^p at every place, with p = 1, 2 and 4: the first, the
middle and the last of its maps. It does not say how values become colors; here each map runs from its own least to its
own largest value. Features of other networks may be negative, so |a| stands for a.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.encoders import Encoder
from pretask.transforms import augment as images
from pretask.viz import puzzle as sheet

POWERS = (1, 2, 4)
"""p of the first, the middle and the last map"""


@torch.no_grad()
def cells(encoder: Encoder, image: Tensor) -> list[sheet.Cell]:
    """(B, C, H, W) uint8 -> of each the image, and its maps over it; none of an encoder without maps."""
    chosen = stages(encoder.sides)
    if not chosen:
        return []
    was_training = encoder.training
    found = encoder.eval()(images.to_float(image.to(encoder.mean.device)))
    encoder.train(was_training)
    columns = {"image": sheet.pictures(image)}
    for stage, p in chosen.items():
        columns[f"{stage}, p = {p}"] = sheet.pictures(
            overlaid(image, strength(found[stage].float().cpu(), p))
        )
    return [
        sheet.Cell(tuple((name, column[i]) for name, column in columns.items())) for i in range(len(image))
    ]


def stages(sides: Mapping[str, int]) -> dict[str, int]:
    """The first, the middle and the last map that has more than one place, and the power of each."""
    maps = [stage for stage, side in sides.items() if side > 1]
    return dict(
        zip(dict.fromkeys([*maps[:1], *maps[len(maps) // 2 :][:1], *maps[-1:]]), POWERS, strict=False)
    )


def strength(features: Tensor, p: int) -> Tensor:
    """(B, C, h, w) -> Σ_c |a_c|^p, from 0 at the weakest place of an image to 1 at its strongest, (B, h, w)."""
    summed = features.nan_to_num().abs().pow(p).sum(1)
    low, high = summed.amin((1, 2), keepdim=True), summed.amax((1, 2), keepdim=True)
    return (summed - low) / (high - low).clamp(min=1e-12)


def overlaid(image: Tensor, map: Tensor) -> Tensor:
    """The map (B, h, w) in colors over the gray image (B, C, H, W), (B, 3, H, W) in [0, 1]."""
    from matplotlib import colormaps

    smooth = F.interpolate(map[:, None], size=image.shape[-2:], mode="bilinear")[:, 0].clamp(0, 1)
    color = torch.from_numpy(colormaps["inferno"](smooth.numpy())[..., :3]).float().permute(0, 3, 1, 2)
    return 0.4 * images.luma(images.to_float(image)) + 0.6 * color
