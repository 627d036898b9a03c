"""iBOT: masked image modeling with an online tokenizer, the momentum teacher of DINO.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong: iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022,
arXiv:2111.07832; numbers without another source are those of the released code. Masked patches of a global
view are replaced by a mask token, at their own positions; the student predicts their prototype assignments by
the teacher, which sees the whole view. From a masked view the student also predicts the teacher's assignment
of another view, as in DINO; both losses have weight 1. Centering, sharpening and the momentum teacher prevent
collapse, as in DINO; patches have their own center.

The head gets the class and patch tokens of both global views at once, then those of the local views at once,
so its batch norms, if any, see them together (`main_ibot.py`, which passes local views separately).

**Differs:** all of DINO's differences; at most ten rectangles are tried per view, and one may be as high or
wide as the view; the mask token has no weight decay; a transformer that does not pool by a class token has
its pooled features in that token's place.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.vit import masked_tokens, require_vit
from pretask.limits import (
    AtLeastTwo,
    NonNegativeInt,
    PositiveFraction,
    PositiveFractions,
    PositiveInt,
    UnitInterval,
    UnitIntervals,
)
from pretask.methods import dino
from pretask.methods.base.method import Minimum
from pretask.methods.base.views import MultiCrop, asymmetric
from pretask.methods.dino import DINO, cross_view_loss, teacher_probs
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.types import Batch, Loss, Progress, Source
from pretask.viz.puzzle import Mask, Puzzle

ATTEMPTS = 10
"""rectangles tried per view"""
ASPECT = 0.3
"""smallest height-to-width ratio of a rectangle; the largest is its inverse"""


@dataclass(frozen=True)
class Config(dino.Config):
    """Predict a momentum teacher's prototype assignments of masked patches and of another view."""

    family: ClassVar[str] = "self-distillation"
    encoder: ClassVar[str] = (
        "vit_tiny_patch16_224:patch_size=4,embed_dim=128,depth=4,num_heads=4,dynamic_img_size=True"
    )
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=1e-3, weight_decay=0.05, clip=3.0)

    mask_probability: UnitInterval = 0.5
    """fraction of the global views that are masked"""
    mask_ratio: UnitIntervals = (0.1, 0.5)
    """fraction of the patches of a masked view that are masked, from and to (0.3 ± 0.2)"""

    def smallest_side(self, encoder: Encoder) -> Minimum:
        return smallest_masked_side(require_vit(encoder, "ibot", self.encoder), self.mask_ratio[1])

    def build(self, encoder: Encoder, source: Source) -> "IBOT":
        require_vit(encoder, "ibot", self.encoder)
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

    side: PositiveFraction = 1.0
    """full size"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(crop=(0.25, 1.0), saturation=0.2, blur=0.5)
    """shared by all views; the two global views differ in blur and solarization"""
    local_crops: NonNegativeInt = 10
    """of 96 px"""
    local_size: PositiveFraction = 96 / 224
    """96 px of 224"""
    local_scale: PositiveFractions = (0.05, 0.25)
    """of 96 px"""
    ema_momentum: UnitInterval = 0.996
    """at the start"""
    teacher_temp_warmup: UnitInterval = 30 / 800
    """30 epochs"""
    freeze_prototypes: UnitInterval = 1 / 800
    """one epoch"""
    prototypes: AtLeastTwo = 8192
    """shared by images and patches"""
    width: PositiveInt = 256
    """bottleneck width"""
    hidden: PositiveInt = 2048
    """hidden width"""
    use_bn_in_head: bool = False
    """none, as in the transformer"""

    def augmentations(self) -> tuple[augment.ViewAugmentation, augment.ViewAugmentation]:
        return asymmetric(self.views)


@dataclass(frozen=True)
class MaskedMultiCrop(MultiCrop):
    view1_mask: Tensor  # (B, h, w) bool, true for masked patches
    view2_mask: Tensor


def smallest_masked_side(vit: Any, ratio: float) -> Minimum:
    """Smallest image side at which a view of `vit` has one masked patch at this mask ratio."""
    rows = math.ceil(ratio**-0.5) if ratio else 1
    return Minimum(rows * max(vit.patch_embed.patch_size), "or --encoder with a smaller patch_size")


def block_masks(
    most: Tensor, grid: tuple[int, int], rng: Rng, attempts: int = ATTEMPTS, least: int | None = None
) -> Tensor:
    """(B,) -> (B, h, w): random rectangles of patches, added as long as at most `most` patches are masked.

    They are drawn as in BEiT (arXiv:2106.08254, algorithm 1), with an area of `least` patches or more as long as so
    many are left; by default that of a third of the view's shorter side.
    """
    row, column = (torch.arange(n, device=most.device) for n in grid)
    draws = rng.uniform(len(most), attempts, 4).unbind(1)
    least = (min(grid) // 3) ** 2 if least is None else least
    mask = torch.zeros(len(most), *grid, dtype=torch.bool, device=most.device)
    for size, shape, down, right in (draw.unbind(1) for draw in draws):
        area = least + size * (most - mask.sum((1, 2)) - least)
        aspect = ((1 - 2 * shape) * math.log(ASPECT)).exp()
        height, width = (x.clamp(min=1).sqrt().round() for x in (area * aspect, area / aspect))
        top, left = (down * (grid[0] - height + 1)).floor(), (right * (grid[1] - width + 1)).floor()
        rows = (row >= top[:, None]) & (row < (top + height)[:, None])  # (B, h)
        columns = (column >= left[:, None]) & (column < (left + width)[:, None])  # (B, w)
        more = mask | rows[:, :, None] & columns[:, None]
        mask = torch.where(more.sum((1, 2), keepdim=True) <= most[:, None, None], more, mask)
    return mask


def mean_per_image(loss: Tensor, mask: Tensor) -> Tensor:
    """(M,) losses of the masked patches, with `mask` (B, N) -> the mean over images of each image's mean.

    An image without masked patches counts as 0.
    """
    weight = 1 / mask.sum(1, keepdim=True).clamp(min=1)  # (B, 1)
    return (loss * weight.expand(mask.shape)[mask]).sum() / len(mask)


def with_masks(pretext: MultiCrop, shown: Iterable[Puzzle]) -> Iterator[Puzzle]:
    """Draw the masks of both global views into puzzles that show them."""
    assert isinstance(pretext, MaskedMultiCrop)
    masks = zip(pretext.view1_mask, pretext.view2_mask, strict=True)
    for (mask1, mask2), puzzle in zip(masks, shown, strict=True):
        (image, first), (second, *more) = puzzle.question, puzzle.answer
        first = replace(first, marks=[Mask(mask1, 0.8), *first.marks])
        second = replace(second, marks=[Mask(mask2, 0.8), *second.marks])
        yield replace(puzzle, question=[image, first], answer=[second, *more])


class IBOT(DINO):
    pretext_task = "Self-distillation with masked patches"
    config: Config
    patch_center: Tensor  # (K,) mean of the teacher's patch logits

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        net: Any = encoder.net
        self.grid: tuple[int, int] = net.patch_embed.dynamic_feat_size((self.side, self.side))
        self.mask_token = nn.Parameter(torch.zeros(net.embed_dim))  # replaces the embedding of a masked patch
        self.register_buffer("patch_center", torch.zeros(config.prototypes))

    def pretext(self, batch: Batch, rng: Rng) -> MaskedMultiCrop:
        crops = super().pretext(batch, rng)
        mask1, mask2 = (self.draw_masks(len(batch), rng.child("hidden", side)) for side in ("left", "right"))
        return MaskedMultiCrop(crops.view1, crops.view2, crops.local_views, mask1, mask2)

    def show(
        self, pretext: MultiCrop, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        yield from with_masks(pretext, super().show(pretext, answers, batch, rng))

    def draw_masks(self, count: int, rng: Rng) -> Tensor:
        """(B, h, w): masks of a random fraction of the patches for some views, empty ones for the others."""
        low, high = self.config.mask_ratio
        ratio = rng.uniform(count, low=low, high=high) * rng.coin(count, p=self.config.mask_probability)
        return block_masks(ratio * math.prod(self.grid), self.grid, rng)

    def tokens(self, encoder: Any, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B, h, w) -> (B, 1 + N, D): the pooled features and the patch tokens."""
        return masked_tokens(encoder, image, self.mask_token, mask)

    def local_view_logits(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) student logits of pooled features; patches matter for batch norms only."""
        tokens = self.tokens(self.encoder, image)
        return self.head.cosines(
            self.head.embed(tokens if self.config.use_bn_in_head else tokens[:, :1])[:, 0]
        )

    def loss(self, pretext: MaskedMultiCrop) -> Loss:  # type: ignore[override]  # its own pretext makes it
        t = self.config.temperature
        mask = torch.cat([pretext.view1_mask, pretext.view2_mask])  # (2B, h, w)
        encoder, head = self.teacher
        with torch.no_grad():
            teacher_logits = head(self.tokens(encoder, pretext.both))  # (2B, 1 + N, K)
        image, patch = teacher_logits[:, 0], teacher_logits[:, 1:]
        logits = self.head(self.tokens(self.encoder, pretext.both, mask))
        rows = [logits[:, 0]]
        if self.config.local_crops:
            rows.append(self.local_view_logits(pretext.local_views.transpose(0, 1).flatten(0, 1)))
        log_p = (torch.cat(rows) / t).log_softmax(1).unflatten(0, (-1, len(pretext.view1)))  # (2 + V, B, K)
        cls_loss = cross_view_loss(
            teacher_probs(image, self.center, self.teacher_temp).unflatten(0, (2, -1)), log_p
        )

        where = mask.flatten(1)  # (2B, N)
        target = teacher_probs(patch[where], self.patch_center, self.teacher_temp)  # (M, K)
        log_p = (logits[:, 1:][where] / t).log_softmax(1)
        patch_loss = mean_per_image(-(target * log_p).sum(1), where)
        carry = image.mean(0, keepdim=True), patch.mean((0, 1))[None]
        return Loss(cls_loss + patch_loss, {"cls": cls_loss, "patch": patch_loss}, carry)

    def after_step(self, carry: Any, progress: Progress) -> None:
        """`carry`: the mean teacher logits of images and of patches, (W, K) each, one row per process."""
        image_logits, patch_logits = carry
        super().after_step(image_logits, progress)
        self.patch_center.lerp_(patch_logits.mean(0), 1 - self.config.center_momentum)
