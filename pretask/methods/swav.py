"""SwAV: predict the cluster assignment of one view from another view, with assignments by Sinkhorn-Knopp.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments, NeurIPS 2020, arXiv:2006.09882; numbers without another source are those of the released
code. The assignments of a batch, its codes, are spread evenly over the prototypes (Sinkhorn-Knopp), which
prevents collapse. Codes are computed for global views only; local views only predict them. With several
processes, codes are computed over the batches of all of them.

A batch with fewer images than prototypes cannot be spread evenly: then codes are computed together with a
queue of features from earlier batches, whose codes are discarded (sec. 3.1, "Working with small batches").

**Differs:** cosines divide by the prototypes' lengths, where the released code normalizes the prototypes
before every step; frozen prototypes accumulate momentum; with several processes there is one queue, not one
per process; the released ResNet-50 pads by one pixel more (`src/resnet50.py`); the blur kernel is a tenth of
the image side, as in SimCLR.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import build_mlp
from pretask.limits import (
    AtLeastTwo,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveFractions,
    PositiveInt,
    UnitInterval,
)
from pretask.methods.base.views import MATCH, MultiCrop, MultiCropConfig, MultiCropMethod
from pretask.runtime import distributed
from pretask.transforms import augment
from pretask.types import Loss, Progress, Source


@dataclass(frozen=True)
class Config(MultiCropConfig):
    """Predict from one view to which prototypes another view of the same image is assigned."""

    family: ClassVar[str] = "clustering"
    prototypes: AtLeastTwo = 256
    """number of prototypes (3000 on ImageNet)"""
    temperature: PositiveFloat = 0.1
    """temperature of the softmax over prototypes"""
    epsilon: PositiveFloat = 0.05
    """ε, entropy regularization of Sinkhorn-Knopp; larger values give softer codes"""
    sinkhorn_iterations: PositiveInt = 3
    """iterations of Sinkhorn-Knopp"""
    freeze_prototypes: UnitInterval = 0.01
    """fraction of the run, at its start, in which the prototypes are frozen"""
    queue: NonNegativeInt = 384
    """length of the feature queue per global view: 1.5 times the prototypes (3,840 for 3000); 0: no queue"""
    queue_start: UnitInterval = 15 / 200
    """fraction of the run before the queue is filled (epoch 15 of 200, `swav_200ep_bs256_pretrain.sh`)"""
    width: PositiveInt = 128
    """output width of the projector"""
    hidden: PositiveInt = 512
    """hidden width of the projector (2048 on ImageNet)"""

    def build(self, encoder: Encoder, source: Source) -> "SwAV":
        return SwAV(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ResNet-50 on ImageNet, with --size 224: batch 4096, 800 epochs, 2 views of 224 px and 6 of 96 px.

    As `scripts/swav_800ep_pretrain.sh`. LARC also adapts the steps of gains and biases, and they have weight
    decay.
    """

    encoder: ClassVar[str] = "resnet50"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=800,
        batch=4096,
        optimizer="lars",
        lr=4.8,
        lr_start=0.3,
        lr_end=0.0048,
        weight_decay=1e-6,
        decay_all=True,
        warmup=10 / 800,
    )

    side: PositiveFraction = 1.0
    """full size"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(crop=(0.14, 1.0), jitter=1.0, blur=0.5)
    """of 224 px"""
    local_crops: NonNegativeInt = 6
    """of 96 px"""
    local_size: PositiveFraction = 96 / 224
    """96 px of 224"""
    local_scale: PositiveFractions = (0.05, 0.14)
    """of 96 px"""
    prototypes: AtLeastTwo = 3000
    """table 4"""
    freeze_prototypes: UnitInterval = 313 / (800 * 312)
    """313 steps, about one epoch"""
    queue: NonNegativeInt = 0
    """none: a batch has more images than there are prototypes"""
    hidden: PositiveInt = 2048
    """hidden width of the projector"""


@dataclass(frozen=True)
class Paper256(Paper):
    """The same in batches of 256 and 200 epochs, with a queue (`scripts/swav_200ep_bs256_pretrain.sh`)."""

    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=200,
        batch=256,
        optimizer="lars",
        lr=0.6,
        lr_end=0.0006,
        weight_decay=1e-6,
        decay_all=True,
        warmup=0.0,
    )

    freeze_prototypes: UnitInterval = 5005 / (200 * 5004)
    """5005 steps, about one epoch"""
    queue: NonNegativeInt = 3840
    """features of 15 batches"""


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, sinkhorn_iterations: int) -> Tensor:
    """Sinkhorn-Knopp (sec. 3.1): (B, K) scores -> (B, K) codes with row sums 1 and equal column sums B / K.

    They maximize the entropy-regularized ⟨Q, S⟩ + ε H(Q) among such Q. Column sums are equal up to the error
    that the last iteration leaves. `scores` are those of all processes.
    """
    q = ((scores - scores.max()) / epsilon).exp()  # the maximum cancels in the sums
    for _ in range(sinkhorn_iterations):
        q = q / q.sum(0).clamp(min=torch.finfo(q.dtype).tiny)  # columns first, rows last
        q = q / q.sum(1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
    return q


class SwAV(MultiCropMethod):
    pretext_task = "Swapped cluster prediction between crops"
    caption = MATCH
    queue: Tensor  # (2, Q, D) earlier projections of each global view, newest first
    queue_filled: Tensor  # () number of filled rows, up to Q

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.projector = build_mlp(encoder.dim, config.hidden, config.width)
        self.prototypes = nn.Linear(config.width, config.prototypes, bias=False)
        self.register_buffer("queue", torch.zeros(2, config.queue, config.width))
        self.register_buffer("queue_filled", torch.zeros((), dtype=torch.int64))

    def project(self, pool: Tensor) -> Tensor:
        """Pooled features (N, dim) -> (N, D) unit rows."""
        return F.normalize(self.projector(pool).float(), dim=1)

    def scores(self, z: Tensor) -> Tensor:
        """(…, D) -> (…, K): cosines with the prototypes."""
        with torch.autocast(z.device.type, enabled=False):
            return z @ F.normalize(self.prototypes.weight, dim=1).T

    def loss(self, pretext: MultiCrop) -> Loss:
        z = self.forward_views(self.project, pretext)  # (2 + V, B, D)
        return Loss(self.swapped_loss(self.scores(z)), carry=z[:2].detach().transpose(0, 1))

    def swapped_loss(self, scores: Tensor) -> Tensor:
        """Mean cross-entropy of each global view's codes with all other views (2 + V, B, K) (eq. 2)."""
        log_p = (scores / self.config.temperature).log_softmax(2)
        costs = []
        for own in (0, 1):
            q = self.assign(own, scores[own].detach())
            others = [v for v in range(len(scores)) if v != own]
            costs.append(-(q * log_p[others]).sum(2).mean())
        return torch.stack(costs).mean()

    @torch.no_grad()
    def assign(self, own: int, scores: Tensor) -> Tensor:
        """(B, K) scores of global view `own` -> its codes, computed together with the queue if it is full."""
        c, batch = self.config, distributed.gather_rows(scores)
        full = self.queue_filled == c.queue
        earlier = self.scores(self.queue[own]) if full else batch[:0]  # (Q, K), with the current prototypes
        q = sinkhorn(torch.cat([earlier, batch]), c.epsilon, c.sinkhorn_iterations)[len(earlier) :]
        return q.chunk(distributed.world())[distributed.rank()]

    def after_step(self, carry: Any, progress: Progress) -> None:
        """`carry` (B, 2, D): projections of both global views on all processes."""
        if progress.fraction >= self.config.queue_start:
            rows = self.config.queue
            self.queue.copy_(torch.cat([carry.transpose(0, 1), self.queue], 1)[:, :rows])
            self.queue_filled.copy_((self.queue_filled + len(carry)).clamp(max=rows))

    def groups(self) -> Iterable[dict[str, Any]]:
        """The prototypes are frozen at the start of the run."""
        for group in super().groups():
            yield {**group, "params": [p for p in group["params"] if p is not self.prototypes.weight]}
        yield {"params": [self.prototypes.weight], "after": self.config.freeze_prototypes}

    def predict(self, pretext: MultiCrop) -> Mapping[str, Tensor]:
        z1, z2 = (
            self.scores(self.project(self.encoder(view)["pool"])) for view in (pretext.view1, pretext.view2)
        )
        near = F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).T
        return {"view2": pretext.view2[near.argmax(1)]}
