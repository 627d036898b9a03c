"""Masked autoencoder: hide three quarters of an image's patches and paint them from the rest.

He, Chen, Xie, Li, Dollár, Girshick: Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, arXiv:2111.06377. The
idea is that of BERT (Devlin et al., NAACL 2019, arXiv:1810.04805), which hides 15 % of the words; an image repeats
itself more, so more must go before painting takes knowing what is shown. The encoder, a vision transformer, is given
the visible patches alone, which also makes a step cheap; a small decoder gets its tokens, one learned token for every
hidden patch, and the place of each (sec. 3). Only hidden patches are scored. Places are sines and cosines that are not
learned, in both halves, and weights begin as Glorot's (appendix A.1): small ones, such as timm's, leave a narrow network
for hundreds of steps where it paints nothing but greys.

Which patches are hidden decides how hard the puzzle is (fig. 6): each at random; large blocks, which is harder; or all but a
regular grid, which is easier (`--mask-sampling`). In the paper the first gives the best features: a linear probe of a ViT-L
names 73.5 % of ImageNet, 72.3 with half in blocks, 63.9 with three quarters in blocks, 66.0 with a grid (table 1f).

**Differs:** crops are bilinear and of an image already reduced to the net's size, so magnified up to 2.2 times. The default
recipe's pixels are less 0.5 and in units of 0.5, as timm has it for its net; `:paper`'s are by ImageNet's means and
deviations, as released. A place's sines and cosines are the released ones in another order. Masks other than random were not
released: blocks are BEiT's (arXiv:2106.08254, its `masking_generator.py`), as `ibot` draws them, so one may be as high or
wide as the image; 40 are tried, and where they leave a few patches to hide, those that blocks surround most are hidden as
well, so that all images of a batch hide equally many. Of every four patches in a square, a grid shows the same one all over
an image; which one is drawn for each image.

Cost: as the number of patches, so that is what to choose. At 32 px patches of 4 px make 64; larger images want larger
patches: at 96 px `--encoder vit_tiny_patch16_224:patch_size=12,…` makes as many.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.optim import Optimizer

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.vit import draw_vit, encode, glorot, patches, pick, places, plain, put, unpatched
from pretask.limits import Count, Part, Within
from pretask.methods.base.method import Method, MethodConfig
from pretask.methods.ibot import rectangles
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Source, UserError

EPS = 1e-6
"""added to the variance of a patch, and in every norm (released code)"""
TRIES = 40
"""blocks that are tried for each image: of 147 patches to hide in 196 they leave 0.1 on average, of 2,000 images 3 at most"""
GREY = 0.5
"""in the place of hidden patches; nothing learns from it"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Paint the hidden three quarters of an image from the patches that are left."""

    encoder: ClassVar[str] = (
        "vit_tiny_patch16_224:patch_size=4,embed_dim=128,depth=4,num_heads=4,global_pool=avg,fc_norm=False"
    )
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=2e-3, weight_decay=0.05)

    mask: Within = 0.75
    """share of the patches that are hidden (sec. 4.1)"""
    mask_sampling: Literal["random", "block", "grid"] = "random"
    """which are: each by itself, large blocks, or all but one of every four (fig. 6)"""
    normalise: bool = True
    """paint each patch less its own mean, in units of its own standard deviation (sec. 4.1)"""
    crop: Part = 0.2
    """smallest share of the area that is shown (released code)"""
    width: Count = 64
    """of the decoder's tokens, a multiple of 4 and of `heads`"""
    blocks: Count = 1
    """of the decoder"""
    heads: Count = 4
    """of the decoder's attention"""

    def draw(self, encoder: str, source: Source) -> Encoder:
        drawn = super().draw(encoder, source)
        draw_vit(plain(drawn, "mae", self.encoder))
        return drawn

    def build(self, encoder: Encoder, source: Source) -> "MAE":
        net = plain(encoder, "mae", self.encoder)
        if not 0 < self.hidden(net.patch_embed.num_patches) < net.patch_embed.num_patches:
            raise UserError(
                f"--mask {self.mask} of {net.patch_embed.num_patches} patches leaves none to "
                "see or none to paint; the paper hides 0.75"
            )
        if self.mask_sampling == "grid" and (
            self.mask != 0.75 or any(n % 2 for n in net.patch_embed.grid_size)
        ):
            raise UserError(
                "--mask-sampling grid shows one of every four patches: it needs --mask 0.75 and an even number of rows "
                f"and columns; these are {self.mask} and {' x '.join(map(str, net.patch_embed.grid_size))}"
            )
        if self.width % 4 or self.width % self.heads:
            raise UserError(
                f"--width {self.width} is no multiple of 4 and of --heads {self.heads}; try {16 * self.heads}"
            )
        return MAE(self, encoder)

    def hidden(self, patches: int) -> int:
        """How many; the visible ones are rounded down (released code)."""
        return patches - int(patches * (1 - self.mask))


@dataclass(frozen=True)
class Paper(Config):
    """ViT-B/16 on ImageNet, with --size 224: 800 epochs in batches of 4096 (table 8, released code)."""

    encoder: ClassVar[str] = "vit_base_patch16_224.mae"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=800,
        batch=4096,
        lr=1.5e-4 * 4096 / 256,  # linear scaling
        weight_decay=0.05,
        warmup=40 / 800,
    )

    width: Count = 512
    """of the decoder's tokens (table 1b)"""
    blocks: Count = 8
    """of the decoder (table 1a)"""
    heads: Count = 16
    """of the decoder's attention (released code)"""


@dataclass(frozen=True)
class Masked:
    shown: Tensor  # (B, C, H, W), hidden patches grey
    image: Tensor  # (B, C, H, W), whole
    visible: Tensor  # (B, V) numbers of patches, row by row
    hidden: Tensor  # (B, M) the others


def level(patch: Tensor) -> tuple[Tensor, Tensor]:
    """(…, D) -> mean and standard deviation of each patch (…, 1), over all pixels and colours of it."""
    return patch.mean(-1, keepdim=True), (patch.var(-1, keepdim=True) + EPS).sqrt()


class MAE(Method[Masked]):
    places: Tensor  # (N, width)

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.grid, self.side = self.vit.patch_embed.grid_size, self.vit.patch_embed.patch_size
        pixels = encoder.channels * self.side[0] * self.side[1]
        self.narrow = nn.Linear(self.vit.embed_dim, config.width)
        self.unknown = nn.Parameter(torch.empty(1, 1, config.width).normal_(std=0.02))  # no vector: it decays
        self.decoder = nn.Sequential(
            *(Block(config.width, config.heads, qkv_bias=True) for _ in range(config.blocks)),
            nn.LayerNorm(config.width, eps=EPS),
            nn.Linear(config.width, pixels),
        )
        for part in (self.narrow, self.decoder):
            part.apply(glorot)
        self.register_buffer("places", places(self.grid, config.width), persistent=False)
        self.vit.pos_embed.requires_grad_(False)

    @property
    def vit(self) -> Any:
        return self.encoder.net

    def pretext(self, batch: Batch, rng: Rng) -> Masked:
        x = images.to_float(batch.image)
        x = images.flip(images.resized_crop(x, x.shape[-1], rng, (self.config.crop, 1.0)), rng)
        patch = patches(x, self.side)
        n = patch.shape[1]
        order = self.order(len(x), rng.child("hidden"))
        hidden, visible = order.split([self.config.hidden(n), n - self.config.hidden(n)], 1)
        grey = torch.full_like(pick(patch, hidden), GREY)
        shown = unpatched(put(patch, hidden, grey), self.grid, self.side)
        return Masked(shown, x, visible.sort(1).values, hidden.sort(1).values)

    def order(self, b: int, rng: Rng) -> Tensor:
        """(B, N) numbers of patches, of each image in the order in which they are hidden (fig. 6)."""
        (rows, columns), c = self.grid, self.config
        if c.mask_sampling == "random":
            return rng.orders(b, rows * columns)
        if c.mask_sampling == "grid":
            row, column = (
                torch.arange(n, device=rng.device) % 2 == parity
                for n, parity in zip(self.grid, rng.integers(b, 2, 1, high=2).unbind(1), strict=True)
            )
            return (
                (row[:, :, None] & column[:, None]).flatten(1).int().argsort(1)
            )  # the visible ones come last
        most = torch.full((b,), c.hidden(rows * columns), device=rng.device)
        block = rectangles(most, self.grid, rng, TRIES).float()
        beside = F.avg_pool2d(block[:, None], 3, stride=1, padding=1)[:, 0]
        score = 2 * block + beside + 0.01 * rng.uniform(b, rows, columns)  # of equals any may be first
        return score.flatten(1).argsort(1, descending=True)

    def target(self, image: Tensor) -> Tensor:
        """(B, N, C·h·w): all patches, in the pixels that the encoder is given (released code)."""
        return patches((image - self.encoder.mean) / self.encoder.std, self.side)

    def painted(self, pretext: Masked) -> Tensor:
        """(B, M, C·h·w), what the decoder makes of every hidden patch; normalised if targets are."""
        tokens = self.narrow(encode(self.encoder, pretext.shown, pretext.visible))
        prefix, known = tokens[:, : self.vit.num_prefix_tokens], tokens[:, self.vit.num_prefix_tokens :]
        known = known + self.places[pretext.visible]
        unknown = self.unknown + self.places[pretext.hidden]  # (B, M, width)
        x = self.decoder(torch.cat([prefix, known, unknown.to(known.dtype)], 1))
        return x[:, -unknown.shape[1] :].float()

    def loss(self, pretext: Masked) -> Loss:
        target = pick(self.target(pretext.image), pretext.hidden)  # (B, M, C·h·w)
        if self.config.normalise:
            mean, std = level(target)
            target = (target - mean) / std
        return Loss((self.painted(pretext) - target).square().mean())

    def solve(self, pretext: Masked) -> Mapping[str, Tensor]:
        """The image, hidden patches as painted; normalised ones get the mean and contrast of the true patch."""
        patch, painted = self.target(pretext.image), self.painted(pretext)
        if self.config.normalise:
            mean, std = level(pick(patch, pretext.hidden))
            painted = painted * std + mean
        image = unpatched(put(patch, pretext.hidden, painted), self.grid, self.side)
        return {"image": (image * self.encoder.std + self.encoder.mean).clamp(0, 1)}

    def optimizers(self, train: TrainConfig) -> list[Optimizer]:
        """AdamW with betas of 0.9 and 0.95 (table 8)."""
        made = super().optimizers(train)
        for group in made[0].param_groups:
            group |= {"betas": (0.9, 0.95)} if "betas" in group else {}
        return made

    def export(self) -> Encoder:
        """All patches go through it. No loss is on the class token, so by default it pools the mean of the others."""
        return self.encoder
