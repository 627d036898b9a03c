"""MAE: a masked autoencoder that reconstructs the pixels of masked patches.

He, Chen, Xie, Li, Dollár, Girshick: Masked Autoencoders Are Scalable Vision Learners, CVPR 2022,
arXiv:2111.06377. The idea is BERT's (Devlin et al., NAACL 2019, arXiv:1810.04805), which masks 15 % of the
words; images are more redundant, so more must be masked before reconstruction requires understanding. The
encoder, a vision transformer, gets only the visible patches, which also makes a step cheap; a small decoder
gets its tokens, a mask token for every masked patch, and position embeddings (sec. 3). The loss is computed
on masked patches only. Position embeddings are fixed sines and cosines in encoder and decoder, and weights
are initialized by Glorot's rule (appendix A.1): with smaller ones, such as timm's, a narrow network predicts
nothing but gray for hundreds of steps.

The mask determines the difficulty (fig. 6): random patches; large blocks, which is harder; or all but a
regular grid, which is easier (`--mask-sampling`). In the paper random masks give the best features: the
linear-probe accuracy of a ViT-L on ImageNet is 73.5 %, 72.3 with half masked in blocks, 63.9 with three
quarters in blocks, 66.0 with a grid (table 1f).

**Differs:** crops are bilinear and taken from an image already resized to the encoder's size, so magnified up
to 2.2 times. The default recipe normalizes pixels by mean 0.5 and standard deviation 0.5, as timm does for
its network; `:paper` by ImageNet's, as released. The channels of the position embeddings are ordered
differently. Only random masks were released: blocks are BEiT's (arXiv:2106.08254, its
`masking_generator.py`), as `ibot` draws them, so one may be as high or wide as the image; 40 are tried, and
if they mask too few patches, those with the most masked neighbors are masked as well, so that all images of a
batch have equally many. A grid keeps the same one of every 2 x 2 patches all over an image; which one is
drawn per image.

Cost: proportional to the number of patches, so choose that. At 32 px, patches of 4 px make 64; use larger
patches for larger images: at 96 px `--encoder vit_tiny_patch16_224:patch_size=12,…` makes as many.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.optim import Optimizer

from pretask.config import TrainConfig
from pretask.encoders import Encoder
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
from pretask.limits import OpenUnitInterval, PositiveFraction, PositiveInt
from pretask.methods.base.method import Method, MethodConfig, Minimum
from pretask.methods.ibot import block_masks
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.types import Batch, Loss, Source, UserError
from pretask.viz.puzzle import Mask, Panel, Puzzle, reconstruction

EPS = 1e-6
"""added to the variance of a patch, and in every layer norm (released code)"""
ATTEMPTS = 40
"""blocks tried per image: of 147 patches to mask in 196, 0.1 are left on average, at most 3 in 2,000 images"""
GRAY = 0.5
"""value of masked patches in the puzzle's picture; the network never gets it"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Reconstruct the masked three quarters of an image from its visible patches."""

    family: ClassVar[str] = "masked and predictive"
    encoder: ClassVar[str] = (
        "vit_tiny_patch16_224:patch_size=4,embed_dim=128,depth=4,num_heads=4,global_pool=avg,fc_norm=False"
    )
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=2e-3, weight_decay=0.05)

    mask_ratio: OpenUnitInterval = 0.75
    """fraction of the patches that are masked (sec. 4.1)"""
    mask_sampling: Literal["random", "block", "grid"] = "random"
    """mask random patches, large blocks, or all but one of every four (fig. 6)"""
    norm_pix_loss: bool = True
    """normalize each target patch by its own mean and standard deviation (sec. 4.1)"""
    crop: PositiveFraction = 0.2
    """smallest fraction of the image's area that is cropped (released code)"""
    decoder_width: PositiveInt = 64
    """width of the decoder, a multiple of 4 and of `decoder_heads`"""
    decoder_depth: PositiveInt = 1
    """blocks of the decoder"""
    decoder_heads: PositiveInt = 4
    """attention heads of the decoder"""

    def build_encoder(self, encoder: str, source: Source) -> Encoder:
        built = super().build_encoder(encoder, source)
        init_vit(require_plain_vit(built, "mae", self.encoder))
        return built

    def smallest_side(self, encoder: Encoder) -> Minimum:
        """At least one patch must stay visible."""
        rows = next(n for n in count(1) if self.num_masked(n * n) < n * n)
        patch = max(require_plain_vit(encoder, "mae", self.encoder).patch_embed.patch_size)
        return Minimum(rows * patch, "or another --mask-ratio, or --encoder with a smaller patch_size")

    def build(self, encoder: Encoder, source: Source) -> "MAE":
        net = require_plain_vit(encoder, "mae", self.encoder)
        rows, columns = net.patch_embed.grid_size
        if self.mask_sampling == "grid" and (self.mask_ratio != 0.75 or rows % 2 or columns % 2):
            raise UserError(
                "--mask-sampling grid keeps one of every four patches: it needs --mask-ratio 0.75 "
                f"and an even number of rows and columns; these are {self.mask_ratio} and {rows} x {columns}"
            )
        if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
            raise UserError(
                f"--decoder-width {self.decoder_width} is not a multiple of 4 and of "
                f"--decoder-heads {self.decoder_heads}; try {16 * self.decoder_heads}"
            )
        return MAE(self, encoder)

    def num_masked(self, patches: int) -> int:
        """Number of masked patches; that of visible ones is rounded down (released code)."""
        return patches - int(patches * (1 - self.mask_ratio))


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

    decoder_width: PositiveInt = 512
    """width of the decoder (table 1b)"""
    decoder_depth: PositiveInt = 8
    """blocks of the decoder (table 1a)"""
    decoder_heads: PositiveInt = 16
    """attention heads of the decoder (released code)"""


@dataclass(frozen=True)
class Masked:
    shown: Tensor  # (B, C, H, W), masked patches gray
    image: Tensor  # (B, C, H, W), not masked
    visible: Tensor  # (B, V) indices of visible patches
    masked: Tensor  # (B, M) indices of masked patches


def patch_stats(patch: Tensor) -> tuple[Tensor, Tensor]:
    """(…, D) -> mean and standard deviation of each patch (…, 1), over all its pixels and channels."""
    return patch.mean(-1, keepdim=True), (patch.var(-1, keepdim=True) + EPS).sqrt()


class MAE(Method[Masked]):
    pretext_task = "Masked image modeling"
    pos_embed: Tensor  # (N, width)

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.grid, self.side = self.vit.patch_embed.grid_size, self.vit.patch_embed.patch_size
        pixels = encoder.channels * self.side[0] * self.side[1]
        self.decoder_embed = nn.Linear(self.vit.embed_dim, config.decoder_width)
        self.mask_token = nn.Parameter(
            torch.empty(1, 1, config.decoder_width).normal_(std=0.02)
        )  # 3-D, so that it has weight decay
        self.decoder = nn.Sequential(
            *(
                Block(config.decoder_width, config.decoder_heads, qkv_bias=True)
                for _ in range(config.decoder_depth)
            ),
            nn.LayerNorm(config.decoder_width, eps=EPS),
            nn.Linear(config.decoder_width, pixels),
        )
        for part in (self.decoder_embed, self.decoder):
            part.apply(init_xavier)
        self.register_buffer("pos_embed", sincos_pos_embed(self.grid, config.decoder_width), persistent=False)
        self.vit.pos_embed.requires_grad_(False)

    @property
    def vit(self) -> Any:
        return self.encoder.net

    def pretext(self, batch: Batch, rng: Rng) -> Masked:
        x = augment.to_float(batch.image)
        x = augment.flip(augment.resized_crop(x, x.shape[-1], rng, (self.config.crop, 1.0)), rng)
        patch = patchify(x, self.side)
        n = patch.shape[1]
        order = self.masking_order(len(x), rng.child("hidden"))
        masked, visible = order.split([self.config.num_masked(n), n - self.config.num_masked(n)], 1)
        gray = torch.full_like(gather_tokens(patch, masked), GRAY)
        shown = unpatchify(scatter_tokens(patch, masked, gray), self.grid, self.side)
        return Masked(shown, x, visible.sort(1).values, masked.sort(1).values)

    def masking_order(self, b: int, rng: Rng) -> Tensor:
        """(B, N) patch indices of each image, in the order in which they are masked (fig. 6)."""
        (rows, columns), c = self.grid, self.config
        if c.mask_sampling == "random":
            return rng.orders(b, rows * columns)
        if c.mask_sampling == "grid":
            row, column = (
                torch.arange(n, device=rng.device) % 2 == parity
                for n, parity in zip(self.grid, rng.integers(b, 2, 1, high=2).unbind(1), strict=True)
            )
            return (row[:, :, None] & column[:, None]).flatten(1).int().argsort(1)  # visible ones last
        most = torch.full((b,), c.num_masked(rows * columns), device=rng.device)
        block = block_masks(most, self.grid, rng, ATTEMPTS).float()
        neighbors = F.avg_pool2d(block[:, None], 3, stride=1, padding=1)[:, 0]
        score = 2 * block + neighbors + 0.01 * rng.uniform(b, rows, columns)  # ties broken at random
        return score.flatten(1).argsort(1, descending=True)

    def target(self, image: Tensor) -> Tensor:
        """(B, N, C·h·w): all patches, of the encoder's normalized pixels (released code)."""
        return patchify((image - self.encoder.mean) / self.encoder.std, self.side)

    def reconstruct(self, pretext: Masked) -> Tensor:
        """(B, M, C·h·w): the decoder's output for every masked patch, normalized if the targets are."""
        tokens = self.decoder_embed(encode_visible(self.encoder, pretext.shown, pretext.visible))
        prefix, visible = tokens[:, : self.vit.num_prefix_tokens], tokens[:, self.vit.num_prefix_tokens :]
        visible = visible + self.pos_embed[pretext.visible]
        queries = self.mask_token + self.pos_embed[pretext.masked]  # (B, M, width)
        x = self.decoder(torch.cat([prefix, visible, queries.to(visible.dtype)], 1))
        return x[:, -queries.shape[1] :].float()

    def loss(self, pretext: Masked) -> Loss:
        target = gather_tokens(self.target(pretext.image), pretext.masked)  # (B, M, C·h·w)
        if self.config.norm_pix_loss:
            mean, std = patch_stats(target)
            target = (target - mean) / std
        return Loss((self.reconstruct(pretext) - target).square().mean())

    def predict(self, pretext: Masked) -> Mapping[str, Tensor]:
        """The image with masked patches reconstructed; normalized ones get the true mean and contrast."""
        patch, reconstructed = self.target(pretext.image), self.reconstruct(pretext)
        if self.config.norm_pix_loss:
            mean, std = patch_stats(gather_tokens(patch, pretext.masked))
            reconstructed = reconstructed * std + mean
        image = unpatchify(scatter_tokens(patch, pretext.masked, reconstructed), self.grid, self.side)
        return {"image": (image * self.encoder.std + self.encoder.mean).clamp(0, 1)}

    def show(
        self, pretext: Masked, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        hidden = torch.ones(
            len(pretext.image), prod(self.grid), dtype=torch.bool, device=pretext.visible.device
        )
        hidden = hidden.scatter(1, pretext.visible, False).unflatten(1, self.grid)
        for i, image in enumerate(pretext.image):
            own = [answers["image"][i]] if answers else []
            yield Puzzle(
                [Panel("masked", pretext.shown[i], [Mask(hidden[i])])],
                [Panel("image", image)],
                [Panel("network", x) for x in own],
                [reconstruction("What is masked?", f"{pretext.masked.shape[1]} patches", image, *own)],
            )

    def optimizers(self, train: TrainConfig) -> list[Optimizer]:
        """AdamW with betas of 0.9 and 0.95 (table 8)."""
        optimizers = super().optimizers(train)
        for group in optimizers[0].param_groups:
            group |= {"betas": (0.9, 0.95)} if "betas" in group else {}
        return optimizers

    def export(self) -> Encoder:
        """The encoder. The class token is not trained, so by default the patch tokens are averaged."""
        return self.encoder
