"""Small synthetic images that suit a method, a small encoder of the kind that it trains, and a narrow head."""

import atexit
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pretask import data, encoders, methods
from pretask.encoders.saved import save_encoder
from pretask.evals import baselines, fewshot, holdout, linear_probe, protocol
from pretask.methods import MethodConfig
from pretask.train import requirements
from pretask.types import Source, UserError
from pretask.viz import sheet

SMALL = {
    "mlp": "mlp:width=32",
    "resnet50": "resnet_small:width=16",
    "resnet18": "resnet_small:width=16",
    "vit_tiny_patch16_224": "vit_tiny_patch16_224:patch_size=4,embed_dim=48,depth=2,global_pool=avg,fc_norm=False",
}
"""narrower networks of the same kind, so that a test takes a second"""


HEADS = {
    "dino": {"hidden": 64, "prototypes": 128},
    "ibot": {"hidden": 64, "prototypes": 128},
    "dinov2": {"hidden": 64, "prototypes": 128},
    "barlow_twins": {"hidden": 64, "width": 128},
    "vicreg": {"hidden": 64, "width": 128},
}
"""narrower heads of methods whose heads take most of the time of a small encoder's step"""


def light(name: str, **changes: Any) -> MethodConfig:
    """The default recipe of a method, with a narrower head if that saves much time, and with a teacher if it needs one."""
    return methods.recipe(name)(**{**HEADS.get(name, {}), **required(name), **changes})


def required(name: str) -> dict[str, Any]:
    """The hyperparameters of a method that have no default."""
    return {"teacher": teacher()} if name == "distill" else {}


@cache
def teacher() -> str:
    """The folder of a small encoder for images of 16 px, which exists as long as this process."""
    made = tempfile.TemporaryDirectory()
    atexit.register(made.cleanup)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        save_encoder(encoders.build("resnet_small:width=8", 3, 16), Path(made.name))
    return made.name


def small(encoder: str) -> str:
    name = encoder.split(":")[0]
    return SMALL.get(name, f"{name}:width=16")


def undrawn(patch: pytest.MonkeyPatch) -> None:
    """Runs begin with a blank preview: drawing it takes a third of the time of a run of two steps."""
    patch.setattr(sheet, "puzzles", lambda *_, **__: Image.new("RGB", (8, 8)))


def quick_scores(patch: pytest.MonkeyPatch) -> None:
    """Few patches, centers, few-shot draws, penalties and held-out folds: with the usual numbers, a table takes seconds."""
    patch.setattr(baselines, "SAMPLES", 2000)
    patch.setattr(fewshot, "DRAWS", 2)
    patch.setattr(linear_probe, "PENALTIES", (1.0, 0.1, 0.01))
    patch.setattr(linear_probe, "START", 1)
    patch.setattr(holdout, "REPEATS", 2)
    defaults = {**(protocol.evaluate.__kwdefaults__ or {}), "centers": 20}
    patch.setattr(protocol.evaluate, "__kwdefaults__", defaults)


def images_for(name: str) -> Source:
    """64 images of 16 px, or larger ones for methods whose tiles would be too small."""
    return data.open(f"synthetic:64:{side_for(name)}")


@cache
def side_for(name: str) -> int:
    """Found once in a process, with the same random state before and after."""
    config, side = light(name), 16
    while True:
        source = data.open(f"synthetic:64:{side}")
        try:
            with torch.random.fork_rng(devices=[]):
                encoder = config.build_encoder(config.spec(small(config.encoder)), source)
            requirements.check(config, encoder, source)
        except UserError:
            assert side < 256, f"{name} takes no images of up to {side} px"
            side *= 2
        else:
            return side
