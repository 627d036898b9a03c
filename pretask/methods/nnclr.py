"""NNCLR: contrastive learning whose positives are nearest neighbors in a queue of embeddings of earlier images.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman: With a Little Help from My Friends: Nearest-Neighbor Contrastive
Learning of Visual Representations, ICCV 2021, arXiv:2104.14548. The embedding of one view is replaced by its
nearest neighbor in the queue, the support set. The prediction from the other view must be found by this neighbor
among the predictions of the batch, and the neighbor by the prediction among the neighbors of the batch
(sec. 3.2). Only embeddings of the first view enter the queue. With several processes, negatives and queue span
all of them.

The authors released no code. `:paper` has the numbers of a reproduction by others, clane9/vissl at fc6cd41,
whose comments cite the paper; they could not be compared with the paper itself. The layers of projector and
predictor could: lightly quotes the paper on them (lightly-ai/lightly at e8d317f, lightly/models/modules/heads.py).

**Differs** from the reproduction: saturation is jittered as in BYOL, half as much, which the reproduction lists as
still to be done; the predictor's first layer has no bias, as a batch norm follows. Like the reproduction, the recipe
blurs and solarizes the two views as BYOL's two pipelines do, and batch norms see both views at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import build_mlp
from pretask.limits import PositiveFloat, PositiveFraction, PositiveInt
from pretask.methods.base.context import Context
from pretask.methods.base.views import MATCH, TwoViewMethod, TwoViews, ViewConfig, asymmetric
from pretask.methods.moco import enqueue, info_nce
from pretask.runtime import distributed
from pretask.transforms import augment
from pretask.types import Loss, Progress, Source


@dataclass(frozen=True)
class Config(ViewConfig):
    """Find the nearest neighbor of the other view of the same image among the neighbors of the whole batch."""

    family: ClassVar[str] = "contrastive"
    temperature: PositiveFloat = 0.1
    """τ, temperature of the softmax over the batch"""
    queue: PositiveInt = 4096
    """length of the queue of embeddings, the support set (98,304 on ImageNet)"""
    width: PositiveInt = 128
    """d, width of the embedding (256 on ImageNet)"""
    hidden: PositiveInt = 512
    """width of the projector's two hidden layers (2048 on ImageNet)"""
    predictor_hidden: PositiveInt = 512
    """width of the predictor's hidden layer (4096 on ImageNet)"""

    def build(self, encoder: Encoder, source: Source) -> "NNCLR":
        return NNCLR(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ResNet-50 on ImageNet, with --size 224: batch 4096, LARS, 1000 epochs (reproduction by others)."""

    encoder: ClassVar[str] = "resnet50:zero_init_last=False"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=1000,
        batch=4096,
        optimizer="lars",
        lr=0.3 * 4096 / 256,
        lr_start=0.6,
        weight_decay=1e-6,
        warmup=0.01,
    )

    side: PositiveFraction = 1.0
    """full size"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(crop=(0.08, 1.0), saturation=0.2)
    """shared by both views, which differ in blur and solarization"""
    queue: PositiveInt = 98_304
    """embeddings of 24 steps"""
    width: PositiveInt = 256
    """d, width of the embedding"""
    hidden: PositiveInt = 2048
    """hidden width of the projector"""
    predictor_hidden: PositiveInt = 4096
    """hidden width of the predictor"""

    def augmentations(self) -> tuple[augment.ViewAugmentation, augment.ViewAugmentation]:
        return asymmetric(self.views)


def nearest(z: Tensor, queue: Tensor) -> Tensor:
    """(B, D), (K, D) unit rows -> (B, D): the most similar row of the queue to each row of `z`."""
    with torch.autocast(z.device.type, enabled=False):  # bfloat16 confuses close neighbors
        return queue[(z @ queue.T).argmax(1)]


class NNCLR(TwoViewMethod):
    pretext_task = "Contrastive learning with nearest neighbors"
    caption = MATCH
    queue: Tensor  # (K, D) embeddings of earlier steps
    queue_ptr: Tensor  # () index of the next embedding to replace

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        hidden, width = config.hidden, config.width
        self.projector = build_mlp(encoder.dim, hidden, hidden, width, bias=False)
        self.projector.append(nn.BatchNorm1d(width))
        self.predictor = build_mlp(width, config.predictor_hidden, width)
        self.register_buffer("queue", torch.zeros(config.queue, width))
        self.register_buffer("queue_ptr", torch.zeros((), dtype=torch.int64))

    def begin(self, context: Context) -> None:
        self.queue.copy_(F.normalize(context.rng.unsharded.normal(*self.queue.shape), dim=1))

    def embed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> embeddings and the predictions from them, (B, D) unit rows each."""
        z = self.projector(self.encoder(image)["pool"])
        return F.normalize(z.float(), dim=1), F.normalize(self.predictor(z).float(), dim=1)

    def loss(self, pretext: TwoViews) -> Loss:
        z, p = self.embed(pretext.both)
        z = z.detach()
        rows, t = len(pretext.view1), self.config.temperature
        target = torch.arange(rows, device=z.device) + distributed.rank() * rows
        terms = []
        for neighbor, predicted in zip(nearest(z, self.queue).chunk(2), reversed(p.chunk(2)), strict=True):
            terms.append(info_nce(neighbor, distributed.gather(predicted), target, t))
            terms.append(info_nce(predicted, distributed.gather_rows(neighbor), target, t))
        total, accuracy = (torch.stack(each).mean() for each in zip(*terms, strict=True))
        return Loss(total, {"accuracy": accuracy}, carry=z[:rows])

    def after_step(self, carry: Any, progress: Progress) -> None:
        enqueue(self.queue, self.queue_ptr, carry)

    def predict(self, pretext: TwoViews) -> Mapping[str, Tensor]:
        neighbor = nearest(self.embed(pretext.view1)[0], self.queue)
        predicted = self.embed(pretext.view2)[1]
        return {"view2": pretext.view2[(neighbor @ predicted.T).argmax(1)]}
