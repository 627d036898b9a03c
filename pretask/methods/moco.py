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
long runs somebody may; the authors' notebook for CIFAR-10 loses 4 % at 800 epochs without shuffling. (These figures, and those
of v1 below, are of runs by a script that was not kept; docs/results/shuffling.py asks the same anew.)

v1 is here as it was published alone (`:paperv1`): made small, it learns little in so few steps (kNN 35.0 %, untrained 33.9,
v2 by default 42.5: the same runs, one seed).

Also, the cosines of learning rate and teacher move at every step (released v2: the learning rate at every epoch).

Without a queue, a plain vision transformer of any size is trained as the released v3 trains its own (`vits.py`): its first
weights are those, and its embedding of patches, one random projection, never learns, nor do the positions, sines and
cosines. Frozen they are as well where weights are loaded. Its projector has a third layer and its predictor ends in a
batch norm; every other net has the heads of ResNets. Here sines and cosines come in another order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import follow, projector, rising, teacher_of
from pretask.encoders.vit import draw_vit
from pretask.limits import Count, Natural, Part, Positive, Share
from pretask.methods.base.context import Context
from pretask.methods.base.views import OfTwoViews, TwoViews, ViewsConfig, unlike
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.transforms import augment as images
from pretask.types import Loss, Progress, Source, UserError


@dataclass(frozen=True)
class V1Views(images.Views):
    """Of v1, and of InstDisc (arXiv:1805.01978): hues turn as far as the rest changes, and colors are lost before the jitter."""

    jitter_p: Share = 1.0
    """probability of a jitter, of four equal strengths: 0.4 (released code)"""

    @property
    def strengths(self) -> tuple[float, float, float, float]:
        brightness, contrast, saturation, _ = super().strengths
        return brightness, contrast, saturation, brightness

    def colors(self, x: Tensor, rng: Rng) -> Tensor:
        x = images.grey(x, rng, self.grey) if x.shape[1] == 3 else x
        return images.jitter(x, rng, *self.strengths, p=self.jitter_p)


@dataclass(frozen=True)
class Config(ViewsConfig):
    """Find the teacher's features of a view's other half among thousands that it saw before (v2)."""

    temperature: Positive = 0.2
    """of the softmax over keys (v2)"""
    queue: Natural = 4096
    """keys of earlier steps to tell the right one from (65,536 on ImageNet); 0: those of the batch, as in v3"""
    keep: Share = 0.99
    """m, share of the teacher's weights that stays at each step (0.999 on ImageNet); without a queue it rises to 1"""
    width: Count = 128
    """of a key"""
    hidden: Natural = 512
    """of the hidden layers of the heads (2048, v2; 4096, v3); 0: the head is one linear layer, as in v1"""
    normed: bool = True
    """a batch norm behind the hidden layer of the head (v2: none)"""

    def draw(self, encoder: str, source: Source) -> Encoder:
        drawn = super().draw(encoder, source)
        if not self.queue and (vit := transformer(drawn)):
            if vit.embed_dim % 4:
                raise UserError(
                    f"moco:v3 has places of sines and cosines; the width {vit.embed_dim} of {encoder} is no multiple of 4"
                )
            draw_v3(vit)
        return drawn

    def build(self, encoder: Encoder, source: Source) -> "MoCo":
        if not self.queue and not self.hidden:
            raise UserError("without a queue (v3) the heads have hidden layers; give a --hidden, such as 512")
        return MoCo(self, encoder)


@dataclass(frozen=True)
class V3(Config):
    """Find the teacher's features of a view's other half in the batch, through a predictor (v3)."""

    queue: Natural = 0
    """the keys are those of the batch"""


@dataclass(frozen=True)
class Paper(Config):
    """v2 with a ResNet-50 on ImageNet, and --size 224: batch 256, SGD, 200 epochs (released code)."""

    encoder: ClassVar[str] = "resnet50:zero_init_last=False"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=200, batch=256, optimizer="sgd", lr=0.03, weight_decay=1e-4, decay_all=True, warmup=0.0
    )

    side: Part = 1.0
    """full size"""
    views: images.Views = images.Views(blur=0.5)
    """crops of a fifth of the area or more"""
    queue: Natural = 65_536
    """keys of 256 steps"""
    keep: Share = 0.999
    """throughout"""
    hidden: Natural = 2048
    """of the head's hidden layer"""
    normed: bool = False
    """linear, ReLU, linear"""


@dataclass(frozen=True)
class PaperV1(Paper):
    """v1 with a ResNet-50 on ImageNet, and --size 224: batch 256, SGD, 200 epochs (released code)."""

    train: ClassVar[TrainConfig] = replace(Paper.train, drops=(120 / 200, 160 / 200))

    views: V1Views = V1Views()
    """never blurred"""
    temperature: Positive = 0.07
    """of the softmax over keys"""
    hidden: Natural = 0
    """the head is one linear layer"""


@dataclass(frozen=True)
class PaperV3(V3):
    """v3 with a ResNet-50 on ImageNet, and --size 224: batch 4096, LARS, 300 epochs (released CONFIG.md)."""

    encoder: ClassVar[str] = "resnet50"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=300, batch=4096, optimizer="lars", lr=0.3 * 4096 / 256, weight_decay=1e-6, warmup=10 / 300
    )

    side: Part = 1.0
    """full size"""
    views: images.Views = images.Views(saturation=0.2)
    """but for blur and solarisation, in which the two views differ"""
    temperature: Positive = 1.0
    """of the softmax over keys"""
    keep: Share = 0.99
    """at first (0.996, and a weight decay of 1.5e-6, where it runs for 1000 epochs)"""
    width: Count = 256
    """of a key"""
    hidden: Natural = 4096
    """of the hidden layers"""

    def pair(self) -> tuple[images.Views, images.Views]:
        return unlike(self.views)


@dataclass(frozen=True)
class PaperV3ViT(PaperV3):
    """v3 with a ViT-S/16 of 12 heads on ImageNet, and --size 224: batch 4096, AdamW, 300 epochs (released CONFIG.md)."""

    encoder: ClassVar[str] = "vit_small_patch16_224.dino:num_heads=12"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=300, batch=4096, lr=1.5e-4 * 4096 / 256, weight_decay=0.1, decay_all=True, warmup=40 / 300
    )

    views: images.Views = images.Views(crop=(0.08, 1.0), saturation=0.2)
    """but for blur and solarisation, in which the two views differ"""
    temperature: Positive = 0.2
    """of the softmax over keys"""


def transformer(encoder: Encoder) -> Any:
    """The plain vision transformer inside, with positions and one layer that embeds patches; None of another net."""
    net = encoder.net
    plain = isinstance(net, VisionTransformer) and isinstance(net.patch_embed, PatchEmbed)
    return net if plain and net.pos_embed is not None else None


@torch.no_grad()
def draw_v3(vit: Any) -> None:
    """First weights as in `vits.py`: queries, keys and values are three matrices, and the class token is all but 0."""
    draw_vit(vit)
    for name, layer in vit.named_modules():
        if name.endswith("qkv"):
            for matrix in layer.weight.chunk(3):
                nn.init.xavier_uniform_(matrix)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=1e-6)


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


def linear(dim: int, hidden: int, width: int) -> nn.Sequential:
    """The head of v1, one layer; or that of v2, with a hidden one and no batch norm."""
    before = [nn.Linear(dim, hidden), nn.ReLU()] if hidden else []
    return nn.Sequential(*before, nn.Linear(hidden or dim, width))


def normed(*widths: int) -> nn.Sequential:
    """A projector without biases that ends in a batch norm without gain."""
    return nn.Sequential(projector(*widths, bias=False), nn.BatchNorm1d(widths[-1], affine=False))


class MoCo(OfTwoViews):
    queue: Tensor  # (K, D) keys of earlier steps
    place: Tensor  # () where the next one goes

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        dim, hidden, width = encoder.dim, config.hidden, config.width
        self.predictor: nn.Module = nn.Identity()
        if config.queue:
            plain = not (hidden and config.normed)
            self.head = linear(dim, hidden, width) if plain else projector(dim, hidden, width)
        elif vit := transformer(encoder):
            self.head = normed(dim, hidden, hidden, width)
            self.predictor = normed(width, hidden, width)
            vit.patch_embed.requires_grad_(False)
            vit.pos_embed.requires_grad_(False)
        else:
            self.head = normed(dim, hidden, width)
            self.predictor = projector(width, hidden, width, bias=False)
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
