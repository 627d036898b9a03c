"""SwAV: from one view of an image, foresee to which prototypes another view of it is assigned.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments, NeurIPS 2020, arXiv:2006.09882; numbers without another source are those of the released code. What keeps
all images from going to one prototype is that the assignments of a batch, its codes, are made equally many for each
(Sinkhorn and Knopp). Small views are only asked. With several processes the codes are shared out over all of them.

A batch with fewer images than prototypes cannot be shared out evenly: then features of earlier batches are shared out
with it, and forgotten (sec. 3.1, "Working with small batches").

**Differs:** cosines divide by the prototypes' lengths, where the released code cuts the prototypes to length 1 before
every step; frozen prototypes gather momentum; with several processes the queue is one, not one for each; the released
ResNet-50 pads by a pixel more (`src/resnet50.py`); a blur has a window of a tenth of the side, as in SimCLR.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import projector
from pretask.limits import Count, Natural, Part, Parts, Positive, Several, Share
from pretask.methods.base.views import Crops, CropsConfig, OfCrops
from pretask.runtime import distributed
from pretask.transforms import augment as images
from pretask.types import Loss, Progress, Source


@dataclass(frozen=True)
class Config(CropsConfig):
    """Foresee from one view to which prototypes another view of the same image is assigned."""

    prototypes: Several = 256
    """that images are assigned to (3000 on ImageNet)"""
    temperature: Positive = 0.1
    """of the softmax over prototypes"""
    epsilon: Positive = 0.05
    """how soft the codes are"""
    iterations: Count = 3
    """of Sinkhorn and Knopp"""
    frozen: Share = 0.01
    """share of the run in whose beginning the prototypes stay as they are"""
    queue: Natural = 384
    """earlier features of each large view that codes count: half as many again as prototypes (3,840 for 3000); 0: none"""
    queue_start: Share = 15 / 200
    """share of the run after which they are gathered (epoch 15 of 200, `scripts/swav_200ep_bs256_pretrain.sh`)"""
    width: Count = 128
    """of the projection"""
    hidden: Count = 512
    """of the projector's hidden layer (2048 on ImageNet)"""

    def build(self, encoder: Encoder, source: Source) -> "SwAV":
        return SwAV(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ResNet-50 on ImageNet, with --size 224: batch 4096, 800 epochs, 2 views of 224 px and 6 of 96 px.

    As `scripts/swav_800ep_pretrain.sh`. LARC fits the steps of gains and biases, too, and lets them decay.
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

    side: Part = 1.0
    """full size"""
    views: images.Views = images.Views(crop=(0.14, 1.0), jitter=1.0, blur=0.5)
    """of 224 px"""
    small: Natural = 6
    """of 96 px"""
    small_side: Part = 96 / 224
    """of the image's"""
    small_crop: Parts = (0.05, 0.14)
    """of 96 px"""
    prototypes: Several = 3000
    """table 4"""
    frozen: Share = 313 / (800 * 312)
    """313 steps, about one epoch"""
    queue: Natural = 0
    """none: a batch has more images than there are prototypes"""
    hidden: Count = 2048
    """of the projector's hidden layer"""


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

    frozen: Share = 5005 / (200 * 5004)
    """5005 steps, about one epoch"""
    queue: Natural = 3840
    """features of 15 batches"""


@torch.no_grad()
def codes(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Sinkhorn and Knopp (sec. 3.1): (B, K) scores -> (B, K) with rows of sum 1 and columns of equal sums, B / K.

    The largest entropy-regularised ⟨Q, S⟩ + ε H(Q) among such Q. The columns are even up to what the last
    iteration left. `scores` are those of all processes.
    """
    q = ((scores - scores.max()) / epsilon).exp()  # a common factor, which the sums take out
    for _ in range(iterations):
        q = q / q.sum(0).clamp(min=torch.finfo(q.dtype).tiny)  # columns first, rows last
        q = q / q.sum(1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
    return q


class SwAV(OfCrops):
    queue: Tensor  # (2, Q, D) earlier features of the left and of the right view, the newest first
    queued: Tensor  # () how many of Q there are

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.head = projector(encoder.dim, config.hidden, config.width)
        self.prototypes = nn.Linear(config.width, config.prototypes, bias=False)
        self.register_buffer("queue", torch.zeros(2, config.queue, config.width))
        self.register_buffer("queued", torch.zeros((), dtype=torch.int64))

    def embedded(self, pool: Tensor) -> Tensor:
        """Pooled features (N, dim) -> (N, D) unit rows."""
        return F.normalize(self.head(pool).float(), dim=1)

    def scores(self, z: Tensor) -> Tensor:
        """(…, D) -> (…, K): cosines with the prototypes."""
        with torch.autocast(z.device.type, enabled=False):
            return z @ F.normalize(self.prototypes.weight, dim=1).T

    def loss(self, pretext: Crops) -> Loss:
        z = self.through(self.embedded, pretext)  # (2 + V, B, D)
        return Loss(self.swapped(self.scores(z)), carry=z[:2].detach().transpose(0, 1))

    def swapped(self, scores: Tensor) -> Tensor:
        """Mean cross-entropy of each large view's codes with all other views, of (2 + V, B, K) scores (eq. 2)."""
        log_p = (scores / self.config.temperature).log_softmax(2)
        costs = []
        for own in (0, 1):
            q = self.codes_of(own, scores[own].detach())
            others = [v for v in range(len(scores)) if v != own]
            costs.append(-(q * log_p[others]).sum(2).mean())
        return torch.stack(costs).mean()

    @torch.no_grad()
    def codes_of(self, own: int, scores: Tensor) -> Tensor:
        """(B, K) scores of the left or right view -> their codes, shared out together with a queue that is full."""
        c, batch = self.config, distributed.gather_rows(scores)
        full = self.queued == c.queue
        earlier = self.scores(self.queue[own]) if full else batch[:0]  # (Q, K), by today's prototypes
        q = codes(torch.cat([earlier, batch]), c.epsilon, c.iterations)[len(earlier) :]
        return q.chunk(distributed.world())[distributed.rank()]

    def after_step(self, carry: Any, progress: Progress) -> None:
        """`carry` (B, 2, D): what both large views of all processes became."""
        if progress.fraction >= self.config.queue_start:
            rows = self.config.queue
            self.queue.copy_(torch.cat([carry.transpose(0, 1), self.queue], 1)[:, :rows])
            self.queued.copy_((self.queued + len(carry)).clamp(max=rows))

    def groups(self) -> Iterable[dict[str, Any]]:
        """The prototypes stay as they are at first."""
        for group in super().groups():
            yield {**group, "params": [p for p in group["params"] if p is not self.prototypes.weight]}
        yield {"params": [self.prototypes.weight], "after": self.config.frozen}

    def solve(self, pretext: Crops) -> Mapping[str, Tensor]:
        left, right = (
            self.scores(self.embedded(self.encoder(view)["pool"])) for view in (pretext.left, pretext.right)
        )
        near = F.normalize(left, dim=1) @ F.normalize(right, dim=1).T
        return {"right": pretext.right[near.argmax(1)]}
