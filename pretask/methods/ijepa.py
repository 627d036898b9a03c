"""I-JEPA: from a part of an image, foresee what a slowly following teacher makes of four blocks beside it.

Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun, Ballas: Self-Supervised Learning from Images with a
Joint-Embedding Predictive Architecture, CVPR 2023, arXiv:2301.08243. The puzzle is that of a masked autoencoder, but
what is foreseen are features and not pixels, and there are no views: the image is only cropped. The encoder is given
the context alone, the teacher the whole image; a narrow predictor gets the context's tokens and one learned token for
every patch of a block. What keeps all patches from getting the same features is that the teacher gets no gradient.

**Differs:** the loss is the released code's smooth L1, where sec. 3 has the average L2 distance; weight decay rises along
half a cosine as in the released code, where appendix A.1 has a line; a context is shortened to the shortest of its batch
by leaving out patches at random, not the last ones; one that the blocks leave next to nothing of is the whole rest of its
image, not drawn again. Blocks reach every row and column: the released sampler (`src/masks/multiblock.py`) never covers
the last of each, nor fills a side, and draws a block's area and aspect by one number, where here each has its own.
Weights begin as MAE's, where the released ones are normal of deviation 0.02, and those that end a block smaller the
deeper it lies; the token of hidden patches does not decay; crops are of an image already reduced to the net's
size. The default recipe's pixels are less 0.5 and in units of 0.5, as timm has it for its net; `:paper`'s are by ImageNet's
means and deviations, as released.

Cost: as the number of patches: choose them as for `mae`. It needs tens of passes over the images: on CIFAR-10 its best
stage is 5 points above the untrained network's after 20, and not above it after two.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import follow, teacher_of
from pretask.encoders.vit import draw_vit, encode, glorot, patches, pick, places, plain, put, unpatched
from pretask.limits import Count, Part, Parts, Positives, Share
from pretask.methods.base.method import Method, MethodConfig
from pretask.methods.mae import GREY
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Progress, Source, UserError

LEAST = 10
"""patches than which a context has more (`min_keep` of the released code)"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Foresee a slowly following teacher's features of four blocks of an image from the rest of it."""

    encoder: ClassVar[str] = (
        "vit_tiny_patch16_224:patch_size=4,embed_dim=128,depth=4,num_heads=4,"
        "global_pool=avg,fc_norm=False,class_token=False"
    )
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=1e-3, weight_decay=0.05)

    blocks: Count = 4
    """to foresee (sec. 3)"""
    scale: Parts = (0.15, 0.2)
    """of a block's area, as a share of the image's"""
    aspect: Positives = (0.75, 1.5)
    """of a block: height over width"""
    context: Parts = (0.85, 1.0)
    """of the context's area, before the blocks are taken out of it"""
    crop: Part = 0.3
    """smallest share of the area that is shown (appendix A)"""
    keep: Share = 0.98
    """share of the teacher's weights that stays at each step; rises to 1 on a line (0.996 in the paper, appendix A.1)"""
    width: Count = 64
    """of the predictor's tokens, a multiple of 4 and of `heads` (384 in the paper)"""
    depth: Count = 2
    """of the predictor (12 for the paper's largest encoder)"""
    heads: Count = 4
    """of the predictor's attention"""

    def draw(self, encoder: str, source: Source) -> Encoder:
        drawn = super().draw(encoder, source)
        draw_vit(plain(drawn, "ijepa", self.encoder))
        return drawn

    def build(self, encoder: Encoder, source: Source) -> "IJEPA":
        vit = plain(encoder, "ijepa", self.encoder)
        if vit.patch_embed.num_patches < 16:
            raise UserError(
                f"ijepa cuts blocks out of 16 patches or more, and {encoder.name} makes "
                f"{vit.patch_embed.num_patches} of {encoder.size} px; give another --size or patch_size"
            )
        if self.width % 4 or self.width % self.heads:
            raise UserError(
                f"--width {self.width} is no multiple of 4 and of --heads {self.heads}; try {16 * self.heads}"
            )
        return IJEPA(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ViT-B/16 on ImageNet, with --size 224: batch 2048, AdamW, 600 epochs (table 1, appendix A.1).

    The released configurations, none of them of a ViT-B, rise in 40 epochs from 2e-4, where the paper has 15 from 1e-4.
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

    keep: Share = 0.996
    """at first"""
    width: Count = 384
    """of the predictor's tokens"""
    depth: Count = 6
    """of the predictor, for a ViT-B"""
    heads: Count = 12
    """of the predictor's attention"""


@dataclass(frozen=True)
class Blocks:
    shown: Tensor  # (B, C, H, W), all but the context grey
    image: Tensor  # (B, C, H, W), whole
    visible: Tensor  # (B, V) numbers of the context's patches, row by row
    hidden: Tensor  # (B, M, T) those of each block


def extent(area: Tensor, aspect: Tensor, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a block of `area` (a share) and `aspect` (height over width) in a grid of patches."""
    n = grid[0] * grid[1] * area
    sides = (n * aspect).sqrt(), (n / aspect).sqrt()
    high, wide = (max(1, min(round(float(s)), most)) for s, most in zip(sides, grid, strict=True))
    return high, wide


def placed(sides: tuple[int, int], grid: tuple[int, int], u: Tensor) -> Tensor:
    """(…, 2) in [0, 1) -> (…, rows, columns) bools: a block of these sides, anywhere that it fits."""
    inside = []
    for i, (side, most) in enumerate(zip(sides, grid, strict=True)):
        first = (u[..., i, None] * (most - side + 1)).floor()
        at = torch.arange(most, device=u.device)
        inside.append((at >= first) & (at < first + side))
    return inside[0][..., :, None] & inside[1][..., None, :]


class IJEPA(Method[Blocks]):
    places: Tensor  # (N, width)

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        vit: Any = encoder.net
        self.grid, self.side = vit.patch_embed.grid_size, vit.patch_embed.patch_size
        self.narrow = nn.Linear(vit.embed_dim, config.width)
        self.unknown = nn.Parameter(torch.zeros(config.width))
        self.predictor = nn.Sequential(
            *(Block(config.width, config.heads, qkv_bias=True) for _ in range(config.depth)),
            nn.LayerNorm(config.width),
            nn.Linear(config.width, vit.embed_dim),
        )
        for part in (self.narrow, self.predictor):
            part.apply(glorot)
        nn.init.normal_(self.unknown, std=0.02)
        vit.pos_embed.requires_grad_(False)
        self.register_buffer("places", places(self.grid, config.width), persistent=False)
        self.teacher = teacher_of(encoder)

    def pretext(self, batch: Batch, rng: Rng) -> Blocks:
        c = self.config
        x = images.to_float(batch.image)
        x = images.resized_crop(x, x.shape[-1], rng, (c.crop, 1.0))
        visible, hidden = self.blocks(len(x), rng)
        patch = patches(x, self.side)
        shown = put(torch.full_like(patch, GREY), visible, pick(patch, visible))
        return Blocks(unpatched(shown, self.grid, self.side), x, visible, hidden)

    def blocks(self, b: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """(B, V) the context's patches and (B, M, T) those of the blocks, of sizes that the whole batch shares.

        Drawn for the rows of all processes, since the shortest context of them decides on V.
        """
        c, (rank, world), common = self.config, rng.share, rng.child("sizes").whole
        sizes = common.uniform(3)
        area, wide = (low + (high - low) * sizes[i] for i, (low, high) in enumerate((c.scale, c.context)))
        low, high = c.aspect
        block = extent(area, low + (high - low) * sizes[2], self.grid)
        around = extent(wide, torch.ones(()), self.grid)
        hidden = placed(block, self.grid, rng.child("blocks").whole.uniform(b * world, c.blocks, 2)).flatten(
            2
        )
        rest = ~hidden.any(1)  # (B, N)
        context = (
            placed(around, self.grid, rng.child("context").whole.uniform(b * world, 2)).flatten(1) & rest
        )
        context = torch.where(context.sum(1, keepdim=True) <= LEAST, rest, context)
        few = int(context.sum(1).min())
        order = rng.child("kept").whole.uniform(*context.shape) + context  # those of the context come first
        visible = order.topk(max(1, few), dim=1).indices.sort(1).values
        own = slice(rank * b, (rank + 1) * b)
        return visible[own], hidden[own].nonzero()[:, 2].view(b, c.blocks, -1)

    def foreseen(self, pretext: Blocks) -> Tensor:
        """(B, M, T, D): what the predictor makes of every patch of every block, one block at a time."""
        vit, (b, m, t) = self.encoder.net, pretext.hidden.shape
        tokens = self.narrow(encode(self.encoder, pretext.shown, pretext.visible))
        prefix, known = tokens[:, : vit.num_prefix_tokens], tokens[:, vit.num_prefix_tokens :]
        context = torch.cat([prefix, known + self.places[pretext.visible]], 1)
        unknown = self.unknown + self.places[pretext.hidden]  # (B, M, T, width)
        context = context[:, None].expand(-1, m, -1, -1)
        x = self.predictor(torch.cat([context, unknown.to(context.dtype)], 2).flatten(0, 1))
        return x[:, -t:].unflatten(0, (b, m)).float()

    @torch.no_grad()
    def target(self, pretext: Blocks) -> Tensor:
        """(B, M, T, D): the teacher's tokens, each less its mean and in units of its standard deviation."""
        b, n = len(pretext.image), self.grid[0] * self.grid[1]
        tokens = encode(
            self.teacher, pretext.image, torch.arange(n, device=pretext.image.device).expand(b, -1)
        )
        tokens = F.layer_norm(tokens[:, -n:].float(), tokens.shape[-1:])
        return pick(tokens, pretext.hidden.flatten(1)).unflatten(1, pretext.hidden.shape[1:])

    def loss(self, pretext: Blocks) -> Loss:
        return Loss(F.smooth_l1_loss(self.foreseen(pretext), self.target(pretext)))

    def after_step(self, carry: Any, progress: Progress) -> None:
        keep = self.config.keep
        keep += (1 - keep) * progress.fraction  # on a line (appendix A.1)
        follow(self.teacher, self.encoder, keep)

    def export(self) -> Encoder:
        """The teacher, as in the paper."""
        return self.teacher
