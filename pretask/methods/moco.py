"""MoCo: find a view's other half, as a slowly following teacher sees it, among many that the teacher saw before.

He, Fan, Wu, Xie, Girshick: Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020,
arXiv:1911.05722; Chen, Fan, Girshick, He: Improved Baselines with Momentum Contrastive Learning, arXiv:2003.04297 (v2:
a deeper head, stronger views); Chen, Xie, He: An Empirical Study of Training Self-Supervised Vision Transformers, ICCV
2021, arXiv:2104.02057 (v3: no queue, the negatives are the batch; a predictor; both directions). "Released" is
facebookresearch/moco at 7397dfe and facebookresearch/moco-v3 at c349e6e.

Differs: by default v2's head has a batch norm behind its hidden layer, which features of short runs like better (kNN
41.7 and 39.0 %, without it 38.7 and 38.2 %: 500 steps on 8,000 images of CIFAR-10, two seeds).

v2's batch norms see the batch of all processes; the released ones see a device's part of it, and keys are shuffled
among devices first, so that a query and its key share no statistics (v1, sec. 3.3). Here they share them, and the
earlier keys have others, which makes a key easier to find: with the released head, in the same runs, the loss is
0.03 of 6.6 lower than where only a sixteenth of the batch is shared (0.029 ± 0.006 and 0.034 ± 0.007, standard
errors over batches). Networks trained on shuffled eighths, as released, find it nearly as much easier (0.021 ±
0.005, 0.027 ± 0.006), and their features are no better (kNN 36.9 and 38.6 %): so far nobody had learnt to cheat. In
long runs somebody may; the authors' notebook for CIFAR-10 loses 4 % at 800 epochs without shuffling.

Also, the cosines of learning rate and teacher move at every step (released v2: the learning rate at every epoch).
v3's heads are the released ones of ResNets with any encoder; for transformers the projector has a third layer there,
the predictor a batch norm at its end, and the embedding of patches stays as it was drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask import distributed, images
from pretask.config import TrainConfig
from pretask.context import Context
from pretask.encoders import Encoder
from pretask.encoders.heads import follow, projector, rising, teacher_of
from pretask.types import Loss, Progress, Source
from pretask.views import OfTwoViews, TwoViews, ViewsConfig, unlike


@dataclass(frozen=True)
class Config(ViewsConfig):
    """Find the teacher's features of a view's other half among thousands that it saw before (v2)."""

    temperature: float = 0.2
    """of the softmax over keys (v2)"""
    queue: int = 4096
    """keys of earlier steps to tell the right one from (65,536 on ImageNet); 0: those of the batch, as in v3"""
    keep: float = 0.99
    """m, share of the teacher's weights that stays at each step (0.999 on ImageNet); without a queue it rises to 1"""
    width: int = 128
    """of a key"""
    hidden: int = 512
    """of the hidden layers of the heads (2048, v2; 4096, v3)"""
    normed: bool = True
    """a batch norm behind the hidden layer of the head (v2: none)"""

    def build(self, encoder: Encoder, source: Source) -> "MoCo":
        return MoCo(self, encoder)


@dataclass(frozen=True)
class V3(Config):
    """Find the teacher's features of a view's other half in the batch, through a predictor (v3)."""

    queue: int = 0
    """the keys are those of the batch"""


@dataclass(frozen=True)
class Paper(Config):
    """v2 with a ResNet-50 on ImageNet, and --size 224: batch 256, SGD, 200 epochs (released code)."""

    encoder: ClassVar[str] = "resnet50:zero_init_last=False"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=200, batch=256, optimizer="sgd", lr=0.03, weight_decay=1e-4, decay_all=True, warmup=0.0
    )

    side: float = 1.0
    """full size"""
    views: images.Views = images.Views(blur=0.5)
    """crops of a fifth of the area or more"""
    queue: int = 65_536
    """keys of 256 steps"""
    keep: float = 0.999
    """throughout"""
    hidden: int = 2048
    """of the head's hidden layer"""
    normed: bool = False
    """linear, ReLU, linear"""


@dataclass(frozen=True)
class PaperV3(V3):
    """v3 with a ResNet-50 on ImageNet, and --size 224: batch 4096, LARS, 300 epochs (released CONFIG.md)."""

    encoder: ClassVar[str] = "resnet50"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=300, batch=4096, optimizer="lars", lr=0.3 * 4096 / 256, weight_decay=1e-6, warmup=10 / 300
    )

    side: float = 1.0
    """full size"""
    views: images.Views = images.Views(saturation=0.2)
    """but for blur and solarisation, in which the two views differ"""
    temperature: float = 1.0
    """of the softmax over keys"""
    keep: float = 0.99
    """at first (0.996, and a weight decay of 1.5e-6, where it runs for 1000 epochs)"""
    width: int = 256
    """of a key"""
    hidden: int = 4096
    """of the hidden layers"""

    def pair(self) -> tuple[images.Views, images.Views]:
        return unlike(self.views)


def among(query: Tensor, keys: Tensor, right: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE (v1 and v3, eq. 1): -log softmax(q·k/τ) of each query's own key, and how often that one is the nearest.

    query (B, D) and keys (N, D) unit rows, right (B,) places in `keys`.
    """
    with torch.autocast(query.device.type, enabled=False):  # bfloat16 rounds a logit of 5 by up to 0.02
        logits = query @ keys.T / temperature  # (B, N)
    return F.cross_entropy(logits, right), (logits.argmax(1) == right).float().mean()


def among_earlier(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The same for keys (B, D) of their own, row by row, beside a queue (K, D) that is all wrong."""
    with torch.autocast(query.device.type, enabled=False):
        own = (query * key).sum(1, keepdim=True)
        logits = torch.cat([own, query @ queue.T], 1) / temperature  # (B, 1 + K)
    right = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    return F.cross_entropy(logits, right), (logits.argmax(1) == right).float().mean()


class MoCo(OfTwoViews):
    queue: Tensor  # (K, D) keys of earlier steps
    place: Tensor  # () where the next one goes

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        hidden, width = config.hidden, config.width
        self.predictor: nn.Module = nn.Identity()
        if not config.queue:
            last = nn.BatchNorm1d(width, affine=False)
            self.head = nn.Sequential(projector(encoder.dim, hidden, width, bias=False), last)
            self.predictor = projector(width, hidden, width, bias=False)
        elif config.normed:
            self.head = projector(encoder.dim, hidden, width)
        else:
            self.head = nn.Sequential(nn.Linear(encoder.dim, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.teacher = nn.ModuleList(teacher_of(net) for net in (encoder, self.head))
        self.register_buffer("queue", torch.zeros(config.queue, width))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def begin(self, context: Context) -> None:
        self.queue.copy_(F.normalize(context.rng.whole.normal(*self.queue.shape), dim=1))

    def queries(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) unit rows."""
        return F.normalize(self.predictor(self.head(self.encoder(image)["pool"])).float(), dim=1)

    @torch.no_grad()
    def keys(self, image: Tensor) -> Tensor:
        encoder, head = self.teacher
        return F.normalize(head(encoder(image)["pool"]).float(), dim=1)

    def loss(self, pretext: TwoViews) -> Loss:
        t = self.config.temperature
        if self.config.queue:
            query, key = self.queries(pretext.left), self.keys(pretext.right)
            total, accuracy = among_earlier(query, key, self.queue, t)
            return Loss(total, {"accuracy": accuracy}, carry=key)
        rows = len(pretext.left)
        right = torch.arange(rows, device=pretext.left.device) + distributed.rank() * rows
        views = (pretext.left, pretext.right)  # each through batch norms by itself (v3, appendix A)
        queries, keys = map(self.queries, views), [self.keys(view) for view in views]
        one, other = (
            among(q, distributed.gather_rows(k), right, t)
            for q, k in zip(queries, reversed(keys), strict=True)
        )
        return Loss(2 * t * (one[0] + other[0]), {"accuracy": (one[1] + other[1]) / 2})  # v3, algorithm 1

    def after_step(self, carry: Any, progress: Progress) -> None:
        keep = self.config.keep if self.config.queue else rising(self.config.keep, progress.fraction)
        for teacher, student in zip(self.teacher, (self.encoder, self.head), strict=True):
            follow(teacher, student, keep)  # v1, eq. 2
        if self.config.queue:
            key = carry[-len(self.queue) :]
            there = (self.place + torch.arange(len(key), device=key.device)) % len(self.queue)
            self.queue[there] = key
            self.place.copy_((self.place + len(key)) % len(self.queue))

    def solve(self, pretext: TwoViews) -> Mapping[str, Tensor]:
        near = self.queries(pretext.left) @ self.keys(pretext.right).T
        return {"right": pretext.right[near.argmax(1)]}
