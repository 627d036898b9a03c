"""Augmentation of views, compared with the released code of the methods."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from pretask import methods
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.transforms.color import luma

JITTER = {
    "byol:paper": (0.4, 0.4, 0.2, 0.1),  # google-deepmind/deepmind-research byol/utils/augmentations.py
    "barlow_twins:paper": (0.4, 0.4, 0.2, 0.1),  # facebookresearch/barlowtwins main.py
    "vicreg:paper": (0.4, 0.4, 0.2, 0.1),  # facebookresearch/vicreg augmentations.py
    "moco:paper": (0.4, 0.4, 0.4, 0.1),  # facebookresearch/moco main_moco.py
    "densecl:paper": (
        0.4,
        0.4,
        0.4,
        0.1,
    ),  # WXinlong/DenseCL configs/selfsup/densecl/densecl_imagenet_200ep.py
    "densecl:papercoco": (0.4, 0.4, 0.4, 0.1),
    "nnclr:paper": (0.4, 0.4, 0.2, 0.1),  # BYOL's, which the paper uses by the notes of clane9/vissl
    "moco:paperv3": (0.4, 0.4, 0.2, 0.1),  # facebookresearch/moco-v3 main_moco.py
    "moco:paperv3vit": (0.4, 0.4, 0.2, 0.1),
    "dino:paper": (0.4, 0.4, 0.2, 0.1),  # facebookresearch/dino main_dino.py
    "ibot:paper": (0.4, 0.4, 0.2, 0.1),  # bytedance/ibot main_ibot.py
    "dinov2:paper": (0.4, 0.4, 0.2, 0.1),  # facebookresearch/dinov2 dinov2/data/augmentations.py
    "simsiam:paper": (0.4, 0.4, 0.4, 0.1),  # facebookresearch/simsiam main_simsiam.py
    "swav:paper": (0.8, 0.8, 0.8, 0.2),  # facebookresearch/swav src/multicropdataset.py
    "lejepa:paper": (0.8, 0.8, 0.8, 0.2),  # rbalestr-lab/lejepa MINIMAL.md
}
"""brightness, contrast, saturation, hue"""


@pytest.mark.parametrize("recipe", JITTER)
def test_color_jitter_of_every_view_matches_the_released_code(recipe, monkeypatch):
    config, drawn = methods.recipe(recipe)(), []
    inner = augment.color_jitter
    monkeypatch.setattr(
        augment, "color_jitter", lambda x, rng, *strengths, p: drawn.append((*strengths, p)) or inner(x, rng, *strengths, p=p)
    )  # fmt: skip
    views = [*config.augmentations()]
    if hasattr(config, "local_scale"):
        views.append(dataclasses.replace(config.views, crop=config.local_scale))
    for view in views:
        view(torch.rand(2, 3, 16, 16), 16, Rng(0))
    assert drawn == [pytest.approx((*JITTER[recipe], 0.8))] * len(views)


def test_saturation_scales_the_distance_from_gray_by_the_drawn_factor():
    x = 0.25 + 0.5 * Rng(1).uniform(256, 3, 4, 4)
    out = augment.color_jitter(x, Rng(2), brightness=0.0, contrast=0.0, saturation=0.2, hue=0.0)
    gray = luma(x)
    factor = ((out - gray) / (x - gray)).flatten(1).median(1).values
    assert_close(out, gray + factor.view(-1, 1, 1, 1) * (x - gray), atol=1e-5, rtol=0)
    assert 0.8 <= factor.min() < 0.82 and 1.18 < factor.max() <= 1.2
