"""MoCo: contrastive learning with a momentum encoder and a queue of negatives (v1, v2), or in-batch negatives
(v3).

He, Fan, Wu, Xie, Girshick: Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020,
arXiv:1911.05722; Chen, Fan, Girshick, He: Improved Baselines with Momentum Contrastive Learning,
arXiv:2003.04297 (v2: a deeper head, stronger augmentation); Chen, Xie, He: An Empirical Study of Training
Self-Supervised Vision Transformers, ICCV 2021, arXiv:2104.02057 (v3: no queue, a predictor, a symmetric
loss). "Released" is facebookresearch/moco at 7397dfe and facebookresearch/moco-v3 at c349e6e.

**Differs:** by default v2's projector has a batch norm after its hidden layer, which gives better features in
short runs (kNN 41.0 %, without it 39.1: 500 steps on 8,000 images of CIFAR-10, three seeds, as all figures
here; docs/results/shuffling.py).

v2's batch norms use statistics of the batch of all processes. The released ones use those of one device, and
keys are shuffled among devices first, so that a query and its key share no statistics (v1, sec. 3.3). Here
they share them, and the queued keys have others, which makes the positive easier to find: with the released
projector the loss of 6.8 is 0.21 lower if keys are normalized with their queries than if they are shuffled
among eighths of the batch. Networks trained on shuffled eighths show a difference of 0.13, and their features
are no better (38.9 %). Long runs may learn to exploit the leak: the authors' CIFAR-10 notebook loses 4 % at
800 epochs without shuffling.

v1 exists only as published (`:paperv1`); scaled down, it has the best features of these runs (43.3 %).

The cosine schedules of learning rate and teacher momentum advance every step (released v2: the learning rate
every epoch).

Without a queue, a plain vision transformer of any size is trained like that of the released v3 (`vits.py`):
it is initialized the same way, and its patch embedding, a random projection, and its sine-cosine position
embeddings are frozen, also if weights are loaded. Its projector has a third layer and its predictor ends in a
batch norm; all other networks have the heads of the released ResNets. The channels of the sine-cosine
embeddings are ordered differently.
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
from pretask.encoders.heads import build_mlp, cosine_momentum, ema_copy, update_ema
from pretask.encoders.vit import init_vit
from pretask.limits import NonNegativeInt, PositiveFloat, PositiveFraction, PositiveInt, UnitInterval
from pretask.methods.base.context import Context
from pretask.methods.base.views import MATCH, TwoViewMethod, TwoViews, ViewConfig, asymmetric
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.transforms import augment
from pretask.types import Loss, Progress, Source, UserError


@dataclass(frozen=True)
class V1Augmentation(augment.ViewAugmentation):
    """As in v1 and InstDisc (arXiv:1805.01978): hue jitter as strong as the rest, after grayscaling."""

    jitter_p: UnitInterval = 1.0
    """probability of the color jitter, whose four strengths are 0.4 (released code)"""

    @property
    def jitter_strengths(self) -> tuple[float, float, float, float]:
        brightness, contrast, saturation, _ = super().jitter_strengths
        return brightness, contrast, saturation, brightness

    def distort_colors(self, x: Tensor, rng: Rng) -> Tensor:
        x = augment.gray(x, rng, self.gray) if x.shape[1] == 3 else x
        return augment.color_jitter(x, rng, *self.jitter_strengths, p=self.jitter_p)


@dataclass(frozen=True)
class Config(ViewConfig):
    """Find the teacher's key of the other view of an image among a queue of thousands (v2)."""

    family: ClassVar[str] = "contrastive"
    temperature: PositiveFloat = 0.2
    """τ, temperature of the softmax over keys (v2)"""
    queue: NonNegativeInt = 4096
    """length of the queue of negatives (65,536 on ImageNet); 0: in-batch negatives, as in v3"""
    ema_momentum: UnitInterval = 0.99
    """m, the teacher's EMA momentum (0.999 on ImageNet); without a queue it is annealed to 1"""
    width: PositiveInt = 128
    """output width of the projector, that of a key"""
    hidden: NonNegativeInt = 512
    """hidden width of projector and predictor (v2: 2048; v3: 4096); 0: a linear projector, as in v1"""
    hidden_bn: bool = True
    """use a batch norm after the projector's hidden layer (v2: none)"""

    def build_encoder(self, encoder: str, source: Source) -> Encoder:
        built = super().build_encoder(encoder, source)
        if not self.queue and (vit := plain_vit(built)):
            if vit.embed_dim % 4:
                raise UserError(
                    f"moco:v3 uses sine-cosine position embeddings, whose width must be a multiple of 4; "
                    f"{encoder} has {vit.embed_dim}"
                )
            init_v3(vit)
        return built

    def build(self, encoder: Encoder, source: Source) -> "MoCo":
        if not self.queue and not self.hidden:
            raise UserError("without a queue (v3) the heads have hidden layers; set --hidden, such as 512")
        return MoCo(self, encoder)


@dataclass(frozen=True)
class V3(Config):
    """Find the teacher's key of the other view of an image in the batch, through a predictor (v3)."""

    queue: NonNegativeInt = 0
    """in-batch negatives"""


@dataclass(frozen=True)
class Paper(Config):
    """v2 with a ResNet-50 on ImageNet, and --size 224: batch 256, SGD, 200 epochs (released code)."""

    encoder: ClassVar[str] = "resnet50:zero_init_last=False"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=200, batch=256, optimizer="sgd", lr=0.03, weight_decay=1e-4, decay_all=True, warmup=0.0
    )

    side: PositiveFraction = 1.0
    """full size"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(blur=0.5)
    """crops of at least a fifth of the area"""
    queue: NonNegativeInt = 65_536
    """keys of 256 steps"""
    ema_momentum: UnitInterval = 0.999
    """constant"""
    hidden: NonNegativeInt = 2048
    """hidden width of the projector"""
    hidden_bn: bool = False
    """linear, ReLU, linear"""


@dataclass(frozen=True)
class PaperV1(Paper):
    """v1 with a ResNet-50 on ImageNet, and --size 224: batch 256, SGD, 200 epochs (released code)."""

    train: ClassVar[TrainConfig] = replace(Paper.train, milestones=(120 / 200, 160 / 200))

    views: V1Augmentation = V1Augmentation()
    """no blur"""
    temperature: PositiveFloat = 0.07
    """temperature of the softmax over keys"""
    hidden: NonNegativeInt = 0
    """the projector is one linear layer"""


@dataclass(frozen=True)
class PaperV3(V3):
    """v3 with a ResNet-50 on ImageNet, and --size 224: batch 4096, LARS, 300 epochs (released CONFIG.md)."""

    encoder: ClassVar[str] = "resnet50"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=300, batch=4096, optimizer="lars", lr=0.3 * 4096 / 256, weight_decay=1e-6, warmup=10 / 300
    )

    side: PositiveFraction = 1.0
    """full size"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(saturation=0.2)
    """shared by both views, which differ in blur and solarization"""
    temperature: PositiveFloat = 1.0
    """temperature of the softmax over keys"""
    ema_momentum: UnitInterval = 0.99
    """at the start (0.996, and a weight decay of 1.5e-6, for 1000 epochs)"""
    width: PositiveInt = 256
    """output width"""
    hidden: NonNegativeInt = 4096
    """hidden width"""

    def augmentations(self) -> tuple[augment.ViewAugmentation, augment.ViewAugmentation]:
        return asymmetric(self.views)


@dataclass(frozen=True)
class PaperV3ViT(PaperV3):
    """v3 with ViT-S/16 of 12 heads on ImageNet, and --size 224: batch 4096, AdamW, 300 epochs (CONFIG.md)."""

    encoder: ClassVar[str] = "vit_small_patch16_224.dino:num_heads=12"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=300, batch=4096, lr=1.5e-4 * 4096 / 256, weight_decay=0.1, decay_all=True, warmup=40 / 300
    )

    views: augment.ViewAugmentation = augment.ViewAugmentation(crop=(0.08, 1.0), saturation=0.2)
    """shared by both views, which differ in blur and solarization"""
    temperature: PositiveFloat = 0.2
    """temperature of the softmax over keys"""


def plain_vit(encoder: Encoder) -> Any:
    """The ViT inside, if it has position embeddings and a linear patch embedding; else None."""
    net = encoder.net
    plain = isinstance(net, VisionTransformer) and isinstance(net.patch_embed, PatchEmbed)
    return net if plain and net.pos_embed is not None else None


@torch.no_grad()
def init_v3(vit: Any) -> None:
    """As in `vits.py`: Xavier for query, key and value separately, and a nearly zero class token."""
    init_vit(vit)
    for name, layer in vit.named_modules():
        if name.endswith("qkv"):
            for matrix in layer.weight.chunk(3):
                nn.init.xavier_uniform_(matrix)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=1e-6)


def info_nce(query: Tensor, keys: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE (v1 and v3, eq. 1): -log softmax(q·k/τ) of each query's positive key, and the top-1 accuracy.

    query (B, D) and keys (N, D) are unit rows; target (B,) holds the index of the positive in `keys`.
    """
    with torch.autocast(query.device.type, enabled=False):  # bfloat16 rounds a logit of 5 by up to 0.02
        logits = query @ keys.T / temperature  # (B, N)
    return F.cross_entropy(logits, target), (logits.argmax(1) == target).float().mean()


def info_nce_queue(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE of queries and their positive keys (both (B, D)) against a queue (K, D) of negatives."""
    with torch.autocast(query.device.type, enabled=False):
        own = (query * key).sum(1, keepdim=True)
        logits = torch.cat([own, query @ queue.T], 1) / temperature  # (B, 1 + K)
    target = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    return F.cross_entropy(logits, target), (logits.argmax(1) == target).float().mean()


def v1_v2_projector(dim: int, config: Config) -> nn.Sequential:
    """v1's projector, one linear layer; v2's, with a hidden layer; or v2's with a batch norm after it."""
    hidden, width = config.hidden, config.width
    if hidden and config.hidden_bn:
        return build_mlp(dim, hidden, width)
    before = [nn.Linear(dim, hidden), nn.ReLU()] if hidden else []
    return nn.Sequential(*before, nn.Linear(hidden or dim, width))


def v3_mlp(*widths: int) -> nn.Sequential:
    """An MLP without biases that ends in a batch norm without gain and bias."""
    return nn.Sequential(build_mlp(*widths, bias=False), nn.BatchNorm1d(widths[-1], affine=False))


def enqueue(queue: Tensor, oldest: Tensor, rows: Tensor) -> None:
    """Replace the oldest rows of a queue (K, D), those from index `oldest` () on, and move the index past them."""
    rows = rows[-len(queue) :]
    there = (oldest + torch.arange(len(rows), device=rows.device)) % len(queue)
    queue[there] = rows
    oldest.copy_((oldest + len(rows)) % len(queue))


class MoCo(TwoViewMethod):
    pretext_task = "Momentum contrast with a queue of keys"
    caption = MATCH
    queue: Tensor  # (K, D) keys of earlier steps
    queue_ptr: Tensor  # () index of the next key to replace

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        dim, hidden, width = encoder.dim, config.hidden, config.width
        self.predictor: nn.Module = nn.Identity()
        if config.queue:
            self.projector = v1_v2_projector(dim, config)
        elif vit := plain_vit(encoder):
            self.projector = v3_mlp(dim, hidden, hidden, width)
            self.predictor = v3_mlp(width, hidden, width)
            vit.patch_embed.requires_grad_(False)
            vit.pos_embed.requires_grad_(False)
        else:
            self.projector = v3_mlp(dim, hidden, width)
            self.predictor = build_mlp(width, hidden, width, bias=False)
        self.teacher = nn.ModuleList(ema_copy(net) for net in (encoder, self.projector))
        self.register_buffer("queue", torch.zeros(config.queue, width))
        self.register_buffer("queue_ptr", torch.zeros((), dtype=torch.int64))

    def begin(self, context: Context) -> None:
        self.queue.copy_(F.normalize(context.rng.unsharded.normal(*self.queue.shape), dim=1))

    def queries(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) unit rows of the student."""
        return F.normalize(self.predictor(self.projector(self.encoder(image)["pool"])).float(), dim=1)

    @torch.no_grad()
    def keys(self, image: Tensor) -> Tensor:
        encoder, projector = self.teacher
        return F.normalize(projector(encoder(image)["pool"]).float(), dim=1)

    def loss(self, pretext: TwoViews) -> Loss:
        t = self.config.temperature
        if self.config.queue:
            query, key = self.queries(pretext.view1), self.keys(pretext.view2)
            total, accuracy = info_nce_queue(query, key, self.queue, t)
            return Loss(total, {"accuracy": accuracy}, carry=key)
        rows = len(pretext.view1)
        target = torch.arange(rows, device=pretext.view1.device) + distributed.rank() * rows
        views = (pretext.view1, pretext.view2)  # batch norms see one view at a time (v3, appendix A)
        queries, keys = map(self.queries, views), [self.keys(view) for view in views]
        one, other = (
            info_nce(q, distributed.gather_rows(k), target, t)
            for q, k in zip(queries, reversed(keys), strict=True)
        )
        return Loss(2 * t * (one[0] + other[0]), {"accuracy": (one[1] + other[1]) / 2})  # v3, algorithm 1

    def after_step(self, carry: Any, progress: Progress) -> None:
        momentum = (
            self.config.ema_momentum
            if self.config.queue
            else cosine_momentum(self.config.ema_momentum, progress.fraction)
        )
        for teacher, student in zip(self.teacher, (self.encoder, self.projector), strict=True):
            update_ema(teacher, student, momentum)  # v1, eq. 2
        if self.config.queue:
            enqueue(self.queue, self.queue_ptr, carry)

    def predict(self, pretext: TwoViews) -> Mapping[str, Tensor]:
        near = self.queries(pretext.view1) @ self.keys(pretext.view2).T
        return {"view2": pretext.view2[near.argmax(1)]}
