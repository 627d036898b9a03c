"""Continuing from weights: adapters, the pull toward the initial weights, and batch norms measured anew at the end."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pretask.config import TrainConfig
from pretask.data import loader
from pretask.encoders import Encoder
from pretask.encoders.layers import freeze
from pretask.errors import UserError, install_command
from pretask.transforms import augment

if TYPE_CHECKING:
    from pretask.types import Source

INITIAL = "initial.safetensors"
"""the encoder's weights at the start of a run that continues from weights, in its folder"""
MEASURED = 2048
"""images on which the running statistics of batch norms are measured"""


def prepare(encoder: Encoder, train: TrainConfig) -> None:
    """Freeze batch norms and stages, and insert adapters, before a method is built on the encoder. Raises UserError."""
    if train.freeze_norms:
        from timm.layers.norm_act import freeze_batch_norm_2d  # slower to import than torch

        encoder.net = freeze_batch_norm_2d(encoder.net)
    if train.freeze:
        freeze(encoder, train.freeze)
    if train.lora:
        insert_adapters(encoder, train.lora)
    if not any(p.requires_grad for p in encoder.parameters()):
        raise UserError(
            f"--freeze {train.freeze} leaves nothing of {encoder.name} to train; freeze fewer stages"
        )


def insert_adapters(encoder: Encoder, rank: int) -> None:
    """Low-rank adapters beside the attention's linear layers; everything else of the encoder is frozen."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError(f"--lora needs peft: {install_command('lora')}") from None
    names = [name for name, _ in encoder.net.named_modules() if name.endswith(("attn.qkv", "attn.proj"))]
    if not names:
        raise UserError(f"--lora adapts the attention of vision transformers, and {encoder.name} has none")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), encoder.net)


def merged(encoder: Encoder) -> Encoder:
    """The encoder with its adapters merged into the weights and batch norms no longer frozen, if it has any: equal outputs, the
    original tensors' names."""
    from timm.layers.norm_act import unfreeze_batch_norm_2d

    for name, module in [*encoder.net.named_modules()]:
        if hasattr(module, "get_base_layer"):
            layer: Any = module
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(encoder.net.get_submodule(parent), last, layer.get_base_layer())
    encoder.net = unfreeze_batch_norm_2d(encoder.net)
    return encoder.eval().requires_grad_()


def initial_bytes(encoder: Encoder) -> bytes:
    """The content of INITIAL."""
    from safetensors.torch import save

    return save({name: value.contiguous().cpu() for name, value in encoder.net.state_dict().items()})


def load_initial(encoder: Encoder, folder: Path) -> None:
    """Load the weights that a run started from into an encoder without adapters."""
    from safetensors.torch import load_file

    encoder.net.load_state_dict(load_file(folder / INITIAL))


class Pull:
    """Moves the encoder's weights toward their initial values: w ← w - lr · pull · (w - w₀), as AdamW moves them toward 0."""

    def __init__(self, encoder: Encoder, strength: float):
        self.strength = strength
        self.pairs = [(p, p.detach().clone()) for p in encoder.parameters() if p.requires_grad]

    def apply(self, rates: dict[Tensor, float]) -> None:
        """After an optimizer's step, with the learning rate of each parameter."""
        with torch.no_grad():
            for p, start in self.pairs:
                p.lerp_(start, min(1.0, rates[p] * self.strength))


def measure_batch_norms(encoder: Encoder, source: "Source") -> None:
    """Measure the running statistics of the encoder's batch norms anew, on images of the run without augmentation.

    While it trains they follow augmented views, and at the start they are those of other images.
    """
    from torch.optim.swa_utils import update_bn

    count = min(MEASURED, len(source))
    order = torch.linspace(0, len(source) - 1, count).long()
    update_bn(inputs(encoder, source, order), encoder)
    encoder.eval()


def inputs(encoder: Encoder, source: "Source", order: Tensor) -> Iterator[Tensor]:
    for batch in loader.epoch(source, order, min(256, len(order))):
        yield augment.to_float(batch.image.to(encoder.mean.device))
