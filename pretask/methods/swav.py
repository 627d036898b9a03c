"""SwAV: from one view of an image, foresee to which prototypes another view of it is assigned.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments, NeurIPS 2020, arXiv:2006.09882; numbers without another source are those of the released code. What keeps
all images from going to one prototype is that the assignments of a batch, its codes, are made equally many for each
(Sinkhorn and Knopp). Small views are only asked. With several processes the codes are shared out over all of them.

Differs: no queue of earlier features, so a batch should hold about as many views as there are prototypes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask import distributed, images
from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import projector
from pretask.types import Loss, Source
from pretask.views import Crops, CropsConfig, OfCrops


@dataclass(frozen=True)
class Config(CropsConfig):
    """Foresee from one view to which prototypes another view of the same image is assigned."""

    prototypes: int = 256
    """that images are assigned to (3000 on ImageNet)"""
    temperature: float = 0.1
    """of the softmax over prototypes"""
    epsilon: float = 0.05
    """how soft the codes are"""
    iterations: int = 3
    """of Sinkhorn and Knopp"""
    frozen: float = 0.01
    """share of the run in whose beginning the prototypes stay as they are"""
    width: int = 128
    """of the projection"""
    hidden: int = 512
    """of the projector's hidden layer (2048 on ImageNet)"""

    def build(self, encoder: Encoder, source: Source) -> "SwAV":
        return SwAV(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ResNet-50 on ImageNet, with --size 224: batch 4096, 800 epochs, 2 views of 224 px and 6 of 96 px."""

    encoder: ClassVar[str] = "resnet50"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=800, batch=4096, optimizer="lars", lr=4.8, weight_decay=1e-6, warmup=10 / 800
    )

    side: float = 1.0
    """full size"""
    views: images.Views = images.Views(crop=(0.14, 1.0), jitter=1.0, blur=0.5)
    """of 224 px"""
    small: int = 6
    """of 96 px"""
    small_side: float = 96 / 224
    """of the image's"""
    small_crop: tuple[float, float] = (0.05, 0.14)
    """of 96 px"""
    prototypes: int = 3000
    """table 4"""
    frozen: float = 313 / (800 * 312)
    """one epoch of 313 steps"""
    hidden: int = 2048
    """of the projector's hidden layer"""


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
    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.head = projector(encoder.dim, config.hidden, config.width)
        self.prototypes = nn.Linear(config.width, config.prototypes, bias=False)

    def scores(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K): cosines with the prototypes."""
        z = F.normalize(self.head(self.encoder(image)["pool"]).float(), dim=1)
        with torch.autocast(z.device.type, enabled=False):
            return z @ F.normalize(self.prototypes.weight, dim=1).T

    def loss(self, pretext: Crops) -> Loss:
        c, scores = self.config, self.through(self.scores, pretext)  # (2 + V, B, K)
        log_p = (scores / c.temperature).log_softmax(2)
        costs = []
        for own in (0, 1):
            q = codes(distributed.gather_rows(scores[own].detach()), c.epsilon, c.iterations)
            q = q.chunk(distributed.world())[distributed.rank()]  # (B, K)
            others = [v for v in range(len(scores)) if v != own]
            costs.append(-(q * log_p[others]).sum(2).mean())  # eq. 2, swapped
        return Loss(torch.stack(costs).mean())

    def groups(self) -> Iterable[dict[str, Any]]:
        """The prototypes stay as they are at first, and have no weight decay, which their lengths would not feel."""
        for group in super().groups():
            yield {**group, "params": [p for p in group["params"] if p is not self.prototypes.weight]}
        yield {"params": [self.prototypes.weight], "weight_decay": 0.0, "after": self.config.frozen}

    def solve(self, pretext: Crops) -> Mapping[str, Tensor]:
        left, right = self.scores(pretext.left), self.scores(pretext.right)
        near = F.normalize(left, dim=1) @ F.normalize(right, dim=1).T
        return {"right": pretext.right[near.argmax(1)]}
