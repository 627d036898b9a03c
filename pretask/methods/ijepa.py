"""I-JEPA: predict a momentum teacher's features of four blocks of an image from a context block.

Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun, Ballas: Self-Supervised Learning from Images with a
Joint-Embedding Predictive Architecture, CVPR 2023, arXiv:2301.08243. The task is that of a masked
autoencoder, but the targets are features, not pixels, and there is no augmentation beyond cropping. The
encoder gets only the context, the teacher the whole image; a narrow predictor gets the context's tokens and a
mask token for every patch of a block. The teacher's stop-gradient prevents collapse.

**Differs:** the loss is the released code's smooth L1, where sec. 3 has the average L2 distance; weight decay
rises on a half cosine as in the released code, where appendix A.1 has a linear schedule; contexts are
shortened to the shortest of the batch by dropping patches at random, not the last ones; a context of which
the blocks leave too little is replaced by everything outside the blocks, not drawn again. Blocks reach every
row and column: the released sampler (`src/masks/multiblock.py`) never covers the last of each, nor fills a
side, and draws a block's area and aspect ratio from one number, where here each has its own. Weights are
initialized as MAE's, where the released ones are normal with standard deviation 0.02, and smaller in deeper
blocks' output layers; the mask token has no weight decay; crops are taken from an image already resized to
the encoder's size. The default recipe normalizes pixels by mean 0.5 and standard deviation 0.5, as timm does
for its network; `:paper` by ImageNet's, as released.

Cost: proportional to the number of patches; choose it as for `mae`. It needs tens of epochs: on CIFAR-10 its
best stage is 5 points above the untrained network's after 20, and not above it after two.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import ema_copy, update_ema
from pretask.encoders.vit import (
    encode_visible,
    gather_tokens,
    init_vit,
    init_xavier,
    patchify,
    require_plain_vit,
    scatter_tokens,
    sincos_pos_embed,
    unpatchify,
)
from pretask.limits import PositiveFloats, PositiveFraction, PositiveFractions, PositiveInt, UnitInterval
from pretask.methods.base.method import Method, MethodConfig, Minimum
from pretask.methods.mae import GRAY
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.types import Batch, Loss, Progress, Source, UserError
from pretask.viz.puzzle import Caption, Frame, Mask, Panel, Puzzle

MIN_KEEP = 10
"""a context has more patches than this (`min_keep` of the released code)"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Predict a momentum teacher's features of four blocks of an image from the rest of it."""

    family: ClassVar[str] = "masked and predictive"
    encoder: ClassVar[str] = (
        "vit_tiny_patch16_224:patch_size=4,embed_dim=128,depth=4,num_heads=4,"
        "global_pool=avg,fc_norm=False,class_token=False"
    )
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=1e-3, weight_decay=0.05)

    num_blocks: PositiveInt = 4
    """target blocks per image (sec. 3)"""
    block_scale: PositiveFractions = (0.15, 0.2)
    """area of a block as a fraction of the image's, from and to"""
    block_aspect: PositiveFloats = (0.75, 1.5)
    """aspect ratio of a block, height over width, from and to"""
    context_scale: PositiveFractions = (0.85, 1.0)
    """area of the context as a fraction of the image's, from and to, before the blocks are removed from it"""
    crop: PositiveFraction = 0.3
    """smallest fraction of the image's area that is cropped (appendix A)"""
    ema_momentum: UnitInterval = 0.98
    """teacher's EMA momentum at the start, annealed linearly to 1 (paper: 0.996, appendix A.1)"""
    predictor_width: PositiveInt = 64
    """width of the predictor, a multiple of 4 and of `predictor_heads` (paper: 384)"""
    predictor_depth: PositiveInt = 2
    """blocks of the predictor (12 for the paper's largest encoder)"""
    predictor_heads: PositiveInt = 4
    """attention heads of the predictor"""

    def build_encoder(self, encoder: str, source: Source) -> Encoder:
        built = super().build_encoder(encoder, source)
        init_vit(require_plain_vit(built, "ijepa", self.encoder))
        return built

    def smallest_side(self, encoder: Encoder) -> Minimum:
        """Blocks need a grid of at least 4 x 4 patches."""
        patch = max(require_plain_vit(encoder, "ijepa", self.encoder).patch_embed.patch_size)
        return Minimum(4 * patch, "or --encoder with a smaller patch_size")

    def build(self, encoder: Encoder, source: Source) -> "IJEPA":
        require_plain_vit(encoder, "ijepa", self.encoder)
        if self.predictor_width % 4 or self.predictor_width % self.predictor_heads:
            raise UserError(
                f"--predictor-width {self.predictor_width} is not a multiple of 4 and of "
                f"--predictor-heads {self.predictor_heads}; try {16 * self.predictor_heads}"
            )
        return IJEPA(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ViT-B/16 on ImageNet, with --size 224: batch 2048, AdamW, 600 epochs (table 1, appendix A.1).

    The released configurations, none of them for a ViT-B, warm up for 40 epochs from 2e-4, the paper for 15
    from 1e-4.
    """

    encoder: ClassVar[str] = "vit_base_patch16_224.mae:global_pool=avg,fc_norm=False,class_token=False"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=600,
        batch=2048,
        lr=1e-3,
        lr_start=1e-4,
        lr_end=1e-6,
        weight_decay=0.04,
        weight_decay_end=0.4,
        warmup=15 / 600,
    )

    ema_momentum: UnitInterval = 0.996
    """at the start"""
    predictor_width: PositiveInt = 384
    """width of the predictor"""
    predictor_depth: PositiveInt = 6
    """for a ViT-B"""
    predictor_heads: PositiveInt = 12
    """attention heads of the predictor"""


@dataclass(frozen=True)
class Blocks:
    shown: Tensor  # (B, C, H, W), gray outside the context
    image: Tensor  # (B, C, H, W), not masked
    visible: Tensor  # (B, V) patch indices of the context
    masked: Tensor  # (B, M, T) patch indices of each block


def block_size(area: Tensor, aspect: Tensor, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a block of `area` (a fraction) and `aspect` (height over width) in a grid."""
    n = grid[0] * grid[1] * area
    sides = (n * aspect).sqrt(), (n / aspect).sqrt()
    high, wide = (max(1, min(round(float(s)), most)) for s, most in zip(sides, grid, strict=True))
    return high, wide


def block_masks(sides: tuple[int, int], grid: tuple[int, int], u: Tensor) -> Tensor:
    """(…, 2) in [0, 1) -> (…, rows, columns) bools: a block of these sides, at a random position."""
    inside = []
    for i, (side, most) in enumerate(zip(sides, grid, strict=True)):
        first = (u[..., i, None] * (most - side + 1)).floor()
        at = torch.arange(most, device=u.device)
        inside.append((at >= first) & (at < first + side))
    return inside[0][..., :, None] & inside[1][..., None, :]


class IJEPA(Method[Blocks]):
    pretext_task = "Prediction of masked blocks' features"
    pos_embed: Tensor  # (N, width)

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        vit: Any = encoder.net
        self.grid, self.side = vit.patch_embed.grid_size, vit.patch_embed.patch_size
        self.predictor_embed = nn.Linear(vit.embed_dim, config.predictor_width)
        self.mask_token = nn.Parameter(torch.zeros(config.predictor_width))
        self.predictor = nn.Sequential(
            *(
                Block(config.predictor_width, config.predictor_heads, qkv_bias=True)
                for _ in range(config.predictor_depth)
            ),
            nn.LayerNorm(config.predictor_width),
            nn.Linear(config.predictor_width, vit.embed_dim),
        )
        for part in (self.predictor_embed, self.predictor):
            part.apply(init_xavier)
        nn.init.normal_(self.mask_token, std=0.02)
        vit.pos_embed.requires_grad_(False)
        self.register_buffer(
            "pos_embed", sincos_pos_embed(self.grid, config.predictor_width), persistent=False
        )
        self.teacher = ema_copy(encoder)

    def pretext(self, batch: Batch, rng: Rng) -> Blocks:
        c = self.config
        x = augment.to_float(batch.image)
        x = augment.resized_crop(x, x.shape[-1], rng, (c.crop, 1.0))
        visible, masked = self.draw_blocks(len(x), rng)
        patch = patchify(x, self.side)
        shown = scatter_tokens(torch.full_like(patch, GRAY), visible, gather_tokens(patch, visible))
        return Blocks(unpatchify(shown, self.grid, self.side), x, visible, masked)

    def draw_blocks(self, b: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """(B, V) patch indices of the context and (B, M, T) of the blocks, whose sizes the whole batch
        shares.

        Drawn for all processes at once, since the shortest context among them determines V.
        """
        c, (rank, world), common = self.config, rng.shard, rng.child("sizes").unsharded
        sizes = common.uniform(3)
        area, wide = (
            low + (high - low) * sizes[i] for i, (low, high) in enumerate((c.block_scale, c.context_scale))
        )
        low, high = c.block_aspect
        block = block_size(area, low + (high - low) * sizes[2], self.grid)
        around = block_size(wide, torch.ones(()), self.grid)
        masked = block_masks(
            block, self.grid, rng.child("blocks").unsharded.uniform(b * world, c.num_blocks, 2)
        ).flatten(2)
        rest = ~masked.any(1)  # (B, N)
        context = (
            block_masks(around, self.grid, rng.child("context").unsharded.uniform(b * world, 2)).flatten(1)
            & rest
        )
        context = torch.where(context.sum(1, keepdim=True) <= MIN_KEEP, rest, context)
        shortest = int(context.sum(1).min())
        order = rng.child("kept").unsharded.uniform(*context.shape) + context  # the context's patches first
        visible = order.topk(max(1, shortest), dim=1).indices.sort(1).values
        own = slice(rank * b, (rank + 1) * b)
        return visible[own], masked[own].nonzero()[:, 2].view(b, c.num_blocks, -1)

    def predicted(self, pretext: Blocks) -> Tensor:
        """(B, M, T, D): the predictor's output for all patches of each block, block by block."""
        vit, (b, m, t) = self.encoder.net, pretext.masked.shape
        tokens = self.predictor_embed(encode_visible(self.encoder, pretext.shown, pretext.visible))
        prefix, visible = tokens[:, : vit.num_prefix_tokens], tokens[:, vit.num_prefix_tokens :]
        context = torch.cat([prefix, visible + self.pos_embed[pretext.visible]], 1)
        queries = self.mask_token + self.pos_embed[pretext.masked]  # (B, M, T, width)
        context = context[:, None].expand(-1, m, -1, -1)
        x = self.predictor(torch.cat([context, queries.to(context.dtype)], 2).flatten(0, 1))
        return x[:, -t:].unflatten(0, (b, m)).float()

    @torch.no_grad()
    def target(self, pretext: Blocks) -> Tensor:
        """(B, M, T, D): the teacher's tokens, each normalized to mean 0 and standard deviation 1."""
        b, n = len(pretext.image), self.grid[0] * self.grid[1]
        tokens = encode_visible(
            self.teacher, pretext.image, torch.arange(n, device=pretext.image.device).expand(b, -1)
        )
        tokens = F.layer_norm(tokens[:, -n:].float(), tokens.shape[-1:])
        return gather_tokens(tokens, pretext.masked.flatten(1)).unflatten(1, pretext.masked.shape[1:])

    def loss(self, pretext: Blocks) -> Loss:
        return Loss(F.smooth_l1_loss(self.predicted(pretext), self.target(pretext)))

    def show(
        self, pretext: Blocks, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        (rows, columns), b = self.grid, len(pretext.image)
        everywhere = torch.ones(b, rows * columns, dtype=torch.bool, device=pretext.visible.device)
        unseen = everywhere.scatter(1, pretext.visible, False).view(b, rows, columns)
        other = everywhere.scatter(1, pretext.masked.flatten(1), False).view(b, rows, columns)
        for i, image in enumerate(pretext.image):
            places = [(block // columns, block % columns) for block in pretext.masked[i]]
            frames = [
                Frame(
                    (
                        int(x.min()) / columns,
                        int(y.min()) / rows,
                        (int(x.max()) + 1) / columns,
                        (int(y.max()) + 1) / rows,
                    )
                )
                for y, x in places
            ]
            yield Puzzle(
                [Panel("context", image, [Mask(unseen[i])])],
                [Panel("target blocks", image, [Mask(other[i], 0.6), *frames])],
                captions=[Caption("What is in the masked blocks?", "the teacher's features")],
            )

    def after_step(self, carry: Any, progress: Progress) -> None:
        momentum = self.config.ema_momentum
        momentum += (1 - momentum) * progress.fraction  # linear (appendix A.1)
        update_ema(self.teacher, self.encoder, momentum)

    def export(self) -> Encoder:
        """The teacher's encoder, as in the paper."""
        return self.teacher
