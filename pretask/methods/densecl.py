"""DenseCL: momentum contrast of views and of the cells of their feature maps.

Wang, Zhang, Shen, Kong, Li: Dense Contrastive Learning for Self-Supervised Visual Pre-Training, CVPR 2021,
arXiv:2011.09157; "released" is WXinlong/DenseCL at b64bbb6. MoCo v2 gets a second projector, which embeds each
cell of the encoder's last feature map. The positive of a cell is the key of that cell of the other view whose
features, before the projector, have the largest cosine similarity to its own; the negatives are a queue with the
mean dense embedding of each earlier view. The loss is (1 - λ) times MoCo's plus λ times the dense one.

A large map is pooled to a grid of S x S cells; the released recipes take it as it is, 7 x 7 at 224 px. λ is
constant: a released hook that keeps it at 0 in the first 1000 steps is not used by the released recipes.

**Differs:** all of MoCo v2's differences: by default both projectors have a batch norm after the hidden layer, and
batch norms use statistics of the whole batch, without shuffling. The 1x1 convolutions of the dense projector are
linear layers, applied to each cell. The initialization is that of timm and torch (fan-out and uniform; released:
normal by fan-in). The cosine schedule advances every step, not every epoch.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import ema_copy, update_ema
from pretask.limits import NonNegativeInt, PositiveFraction, PositiveInt, UnitInterval
from pretask.methods import moco
from pretask.methods.base.context import Context
from pretask.methods.base.views import TwoViews
from pretask.methods.moco import MoCo, enqueue, info_nce_queue, v1_v2_projector
from pretask.transforms import augment
from pretask.types import Loss, Progress, Source, UserError


@dataclass(frozen=True)
class Config(moco.Config):
    """Find the teacher's keys of the other view and of its most similar cells among queues of thousands."""

    queue: PositiveInt = 4096
    """length of each queue of negatives (65,536 on ImageNet)"""
    lambda_: UnitInterval = 0.5
    """λ, weight of the dense loss; that of MoCo's loss is 1 - λ"""
    grid: PositiveInt = 3
    """S, largest side of the grid of cells (7 on ImageNet); a larger map is pooled to it"""

    def build(self, encoder: Encoder, source: Source) -> "DenseCL":
        if not encoder.sides:
            raise UserError(
                f"densecl needs feature maps, and {encoder.name} has none; try resnet_small or resnet18"
            )
        return DenseCL(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ResNet-50 on ImageNet, with --size 224: batch 256, SGD, 200 epochs (densecl_imagenet_200ep.py)."""

    encoder: ClassVar[str] = "resnet50:zero_init_last=False"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=200, batch=256, optimizer="sgd", lr=0.03, weight_decay=1e-4, decay_all=True, warmup=0.0
    )

    side: PositiveFraction = 1.0
    """full size"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(blur=0.5)
    """as in MoCo v2"""
    queue: PositiveInt = 65_536
    """keys of 256 steps"""
    ema_momentum: UnitInterval = 0.999
    """constant"""
    hidden: NonNegativeInt = 2048
    """hidden width of both projectors"""
    hidden_bn: bool = False
    """linear, ReLU, linear"""
    grid: PositiveInt = 7
    """that of the map, which is not pooled"""


@dataclass(frozen=True)
class PaperCOCO(Paper):
    """The same on COCO for 800 epochs, with ten times the learning rate (densecl_coco_800ep.py)."""

    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=800, batch=256, optimizer="sgd", lr=0.3, weight_decay=1e-4, decay_all=True, warmup=0.0
    )


def unit(x: Tensor) -> Tensor:
    """(…, D) -> vectors of length 1."""
    return F.normalize(x.float(), dim=-1)


def best_match(features1: Tensor, features2: Tensor) -> Tensor:
    """(B, N, C) features of the cells of two views -> (B, N): the cell of view 2 most similar to each of view 1."""
    with torch.autocast(features1.device.type, enabled=False):  # bfloat16 confuses similar cells
        return (unit(features1) @ unit(features2).transpose(1, 2)).argmax(2)


@dataclass(frozen=True)
class Embedding:
    """What the encoder and the two projectors make of B views; N is the number of cells."""

    view: Tensor  # (B, D)
    dense: Tensor  # (B, N, D)
    features: Tensor  # (B, N, C), before the dense projector


class DenseCL(MoCo):
    pretext_task = "Momentum contrast of views and of cells"
    config: Config
    dense_queue: Tensor  # (K, D) mean dense embeddings of earlier steps
    dense_queue_ptr: Tensor  # () index of the next one to replace

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.last = [*encoder.sides][-1]  # stage of the deepest feature map
        self.dense_projector = v1_v2_projector(encoder.widths[self.last], config)
        self.dense_teacher = ema_copy(self.dense_projector)
        self.register_buffer("dense_queue", torch.zeros_like(self.queue))
        self.register_buffer("dense_queue_ptr", torch.zeros_like(self.queue_ptr))

    def begin(self, context: Context) -> None:
        super().begin(context)
        rng = context.rng.child("dense").unsharded
        self.dense_queue.copy_(unit(rng.normal(*self.dense_queue.shape)))

    def embed(
        self, image: Tensor, encoder: nn.Module, projector: nn.Module, dense_projector: nn.Module
    ) -> Embedding:
        stages = encoder(image)
        side = min(self.config.grid, stages[self.last].shape[-1])
        features = F.adaptive_avg_pool2d(stages[self.last], side).flatten(2).transpose(1, 2)
        dense = dense_projector(features.flatten(0, 1)).float().unflatten(0, features.shape[:2])
        return Embedding(projector(stages["pool"]), dense, features)

    def loss(self, pretext: TwoViews) -> Loss:
        t, weight = self.config.temperature, self.config.lambda_
        query = self.embed(pretext.view1, self.encoder, self.projector, self.dense_projector)
        encoder, projector = self.teacher
        with torch.no_grad():
            key = self.embed(pretext.view2, encoder, projector, self.dense_teacher)
            match = best_match(query.features, key.features)[:, :, None]  # (B, N, 1)
            positive = unit(key.dense).gather(1, match.expand_as(key.dense))  # (B, N, D)
            view_key, dense_key = unit(key.view), unit(key.dense.mean(1))
        view_loss, accuracy = info_nce_queue(unit(query.view), view_key, self.queue, t)
        cells = unit(query.dense).flatten(0, 1), positive.flatten(0, 1)
        dense_loss, dense_accuracy = info_nce_queue(*cells, self.dense_queue, t)
        total = (1 - weight) * view_loss + weight * dense_loss
        parts = {"accuracy": accuracy, "dense_accuracy": dense_accuracy}
        return Loss(total, parts, carry=(view_key, dense_key))

    def after_step(self, carry: Any, progress: Progress) -> None:
        """`carry`: keys of the views, and their mean dense keys."""
        view_key, dense_key = carry
        super().after_step(view_key, progress)
        update_ema(self.dense_teacher, self.dense_projector, self.config.ema_momentum)
        enqueue(self.dense_queue, self.dense_queue_ptr, dense_key)
