"""iBOT: hide patches of an image and foresee to which prototypes a teacher, who sees them, assigns them.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong: iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022,
arXiv:2111.07832; numbers without another source are those of the released code. Every hidden patch is replaced by one
learned token, at the patch's own place. From a view with hidden patches the student also foresees how the teacher
assigns the whole of another view, as in DINO; both losses count alike. What keeps all patches from one answer is what
keeps all images from it in DINO: the teacher follows slowly, centred and sharp. Patches have a centre of their own.

The head gets the class and patch tokens of both large views at once, then those of the small views at once: so its
batch norms, where it has some, count them (`main_ibot.py`, whose small views go through the net by themselves).

**Differs:** all that does in DINO; no more than ten rectangles are tried for a view, and one may be as high or wide as the
view; the token of hidden patches does not decay; a transformer that pools otherwise than by a class token has what it
pools in that token's place.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.limits import Count, Natural, Part, Parts, Several, Share, Shares
from pretask.methods import dino
from pretask.methods.base.views import Crops, unlike
from pretask.methods.dino import DINO, across, assigned
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Progress, Source, UserError

RECTANGLES = 10
"""that are tried for each view"""
ASPECT = 0.3
"""height by width of a rectangle, from this to its inverse"""


@dataclass(frozen=True)
class Config(dino.Config):
    """Foresee to which prototypes a slowly following teacher assigns hidden patches, and the whole of another view."""

    encoder: ClassVar[str] = (
        "vit_tiny_patch16_224:patch_size=4,embed_dim=128,depth=4,num_heads=4,dynamic_img_size=True"
    )
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=1e-3, weight_decay=0.05, clip=3.0)

    masked: Share = 0.5
    """share of the large views that have hidden patches"""
    hides: Shares = (0.1, 0.5)
    """of the patches of such a view, from and to (0.3 ± 0.2)"""

    def build(self, encoder: Encoder, source: Source) -> "IBOT":
        if type(encoder.net) is not VisionTransformer:
            raise UserError(
                f"ibot hides patches from a plain vision transformer, and {encoder.name} is none; "
                f"try --encoder {self.encoder}"
            )
        return IBOT(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ViT-S/16 on ImageNet, with --size 224: batch 1024, 800 epochs, 2 views of 224 px and 10 of 96 px."""

    encoder: ClassVar[str] = "vit_small_patch16_224.dino:dynamic_img_size=True,drop_path_rate=0.1"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=800,
        batch=1024,
        lr=5e-4 * 1024 / 256,
        lr_end=1e-6,
        weight_decay=0.04,
        weight_decay_end=0.4,
        warmup=10 / 800,
        clip=3.0,
    )

    side: Part = 1.0
    """full size"""
    views: images.Views = images.Views(crop=(0.25, 1.0), saturation=0.2, blur=0.5)
    """but for blur and solarisation of the two large views, which differ"""
    small: Natural = 10
    """of 96 px"""
    small_side: Part = 96 / 224
    """of the image's"""
    small_crop: Parts = (0.05, 0.25)
    """of 96 px"""
    keep: Share = 0.996
    """at first"""
    warm: Share = 30 / 800
    """30 epochs"""
    frozen: Share = 1 / 800
    """one epoch"""
    prototypes: Several = 8192
    """of images and patches alike"""
    width: Count = 256
    """of the bottleneck"""
    hidden: Count = 2048
    """of the hidden layers"""
    norm: bool = False
    """none, as there are none in a transformer"""

    def pair(self) -> tuple[images.Views, images.Views]:
        return unlike(self.views)


@dataclass(frozen=True)
class Masked(Crops):
    left_hidden: Tensor  # (B, h, w) bools, true for patches that the student does not see
    right_hidden: Tensor


def rectangles(most: Tensor, grid: tuple[int, int], rng: Rng, tries: int = RECTANGLES) -> Tensor:
    """(B,) -> (B, h, w): rectangles of patches, one after the other as long as no more than `most` are hidden.

    They are drawn as in BEiT (arXiv:2106.08254, algorithm 1).
    """
    row, column = (torch.arange(n, device=most.device) for n in grid)
    draws = rng.uniform(len(most), tries, 4).unbind(1)
    least = (min(grid) // 3) ** 2  # patches in the first one
    hidden = torch.zeros(len(most), *grid, dtype=torch.bool, device=most.device)
    for size, shape, down, right in (draw.unbind(1) for draw in draws):
        area = least + size * (most - hidden.sum((1, 2)) - least)
        aspect = ((1 - 2 * shape) * math.log(ASPECT)).exp()
        height, width = (x.clamp(min=1).sqrt().round() for x in (area * aspect, area / aspect))
        top, left = (down * (grid[0] - height + 1)).floor(), (right * (grid[1] - width + 1)).floor()
        rows = (row >= top[:, None]) & (row < (top + height)[:, None])  # (B, h)
        columns = (column >= left[:, None]) & (column < (left + width)[:, None])  # (B, w)
        more = hidden | rows[:, :, None] & columns[:, None]
        hidden = torch.where(more.sum((1, 2), keepdim=True) <= most[:, None, None], more, hidden)
    return hidden


def each_image(cost: Tensor, hidden: Tensor) -> Tensor:
    """(M,) costs of the patches that are `hidden` (B, N) -> the mean over images of the mean over the image's own.

    An image that hides nothing counts as 0.
    """
    share = 1 / hidden.sum(1, keepdim=True).clamp(min=1)  # (B, 1)
    return (cost * share.expand(hidden.shape)[hidden]).sum() / len(hidden)


class IBOT(DINO):
    config: Config
    patch_centre: Tensor  # (K,) of the teacher's logits for patches

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        net: Any = encoder.net
        self.grid: tuple[int, int] = net.patch_embed.dynamic_feat_size((self.side, self.side))
        self.unknown = nn.Parameter(torch.zeros(net.embed_dim))  # in the place of a hidden patch
        self.register_buffer("patch_centre", torch.zeros(config.prototypes))

    def pretext(self, batch: Batch, rng: Rng) -> Masked:
        crops = super().pretext(batch, rng)
        left, right = (self.hidden(len(batch), rng.child("hidden", side)) for side in ("left", "right"))
        return Masked(crops.left, crops.right, crops.small, left, right)

    def hidden(self, count: int, rng: Rng) -> Tensor:
        """(B, h, w): of some views a share of the patches, of the others none."""
        low, high = self.config.hides
        share = rng.uniform(count, low=low, high=high) * rng.coin(count, p=self.config.masked)
        return rectangles(share * math.prod(self.grid), self.grid, rng)

    def tokens(self, encoder: Any, image: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B, h, w) -> (B, 1 + N, D): what the transformer pools, and its patches."""
        vit = encoder.net
        x = vit.patch_embed(encoder.normalised(encoder.seen(image)))  # (B, N, D) or (B, h, w, D)
        if hidden is not None:
            x = torch.where(hidden.reshape(*x.shape[:-1], 1), self.unknown.to(x.dtype), x)
        x = vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(x))))  # (B, P + N, D), after P prefix tokens
        whole = vit.forward_head(x, pre_logits=True)
        return torch.cat([whole[:, None], vit.fc_norm(x[:, vit.num_prefix_tokens :])], 1)

    def of_small(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K), the student's for what is pooled; patches count in batch norms alone."""
        tokens = self.tokens(self.encoder, image)
        return self.head.cosines(self.head.narrowed(tokens if self.config.norm else tokens[:, :1])[:, 0])

    def loss(self, pretext: Masked) -> Loss:  # type: ignore[override]  # it makes no other puzzle
        t = self.config.temperature
        hidden = torch.cat([pretext.left_hidden, pretext.right_hidden])  # (2B, h, w)
        encoder, head = self.teacher
        with torch.no_grad():
            taught = head(self.tokens(encoder, pretext.both))  # (2B, 1 + N, K)
        image, patch = taught[:, 0], taught[:, 1:]
        logits = self.head(self.tokens(self.encoder, pretext.both, hidden))
        rows = [logits[:, 0]]
        if self.config.small:
            rows.append(self.of_small(pretext.small.transpose(0, 1).flatten(0, 1)))
        log_p = (torch.cat(rows) / t).log_softmax(1).unflatten(0, (-1, len(pretext.left)))  # (2 + V, B, K)
        of_images = across(assigned(image, self.centre, self.sharpness).unflatten(0, (2, -1)), log_p)

        where = hidden.flatten(1)  # (2B, N)
        target = assigned(patch[where], self.patch_centre, self.sharpness)  # (M, K)
        log_p = (logits[:, 1:][where] / t).log_softmax(1)
        of_patches = each_image(-(target * log_p).sum(1), where)
        carry = image.mean(0, keepdim=True), patch.mean((0, 1))[None]
        return Loss(of_images + of_patches, {"images": of_images, "patches": of_patches}, carry)

    def after_step(self, carry: Any, progress: Progress) -> None:
        """`carry`: of each process the mean logits of images and of patches, (W, K) both."""
        of_images, of_patches = carry
        super().after_step(of_images, progress)
        self.patch_centre.lerp_(of_patches.mean(0), 1 - self.config.centring)
