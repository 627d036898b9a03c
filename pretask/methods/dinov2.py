"""DINOv2: self-distillation of crops and masked patches, with Sinkhorn-Knopp centering and separate heads.

Oquab, Darcet, Moutakanni and 23 others: DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024,
arXiv:2304.07193; register tokens: Darcet, Oquab, Mairal, Bojanowski: Vision Transformers Need Registers, ICLR
2024, arXiv:2309.16588. Numbers without another source are those of the released code
(facebookresearch/dinov2 at b8931f7). The loss is DINO's on the class tokens of all crops plus iBOT's on masked
patches, each with a head of its own. Both targets are spread evenly over the prototypes by Sinkhorn-Knopp, in place
of DINO's center, and KoLeo drives the class tokens of different images apart.

Networks with register tokens and with rotary positions work too, such as the published ones in timm:
`--encoder vit_small_patch14_reg4_dinov2:dynamic_img_size=True`, or
`--encoder vit_small_patch16_dinov3:global_pool=token`, which otherwise pools by averaging the patches.

The published networks end with a short training at a higher resolution (appendix B.2; not in the released code): a
second run from the weights of the first, in which all schedules start again and the learning rate is lower.
`:highres` is such a run, started with `--init`; a last part of the first run would have a learning rate near 0.

**Differs:** logits are cosines, where the released prototypes have learned lengths with weight decay; heads have
torch's initialization, not a normal one of standard deviation 0.02; gradients are clipped by their global norm,
not per backbone and head; frozen prototypes accumulate momentum; stochastic depth drops each image with the
same probability, not a fixed number of images; mask ratios are spread over the views of all processes, not of
each; at most 30 rectangles are tried per view, and one may be as high or wide as the view; the mask token learns at the heads' rate,
not at the embeddings'; without local crops the two pairs of views are averaged (released: divided by 3); position embeddings of smaller crops are
resampled by timm, with antialiasing; a transformer that does not pool by a class token has its pooled features in
that token's place; crops are bilinear and taken from an image already resized to the encoder's size; the blur
kernel is a tenth of the image side. `:highres` begins with new heads, as the released `student.pretrained_weights`
does. The default recipe normalizes pixels by mean 0.5 and standard deviation 0.5, as timm does for its network;
`:paper` by ImageNet's, as released; the gates of its SwiGLU layers begin at 1, as in timm.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import cosine_momentum, ema_copy, linear_warmup, update_ema
from pretask.encoders.vit import masked_tokens, require_vit
from pretask.limits import (
    AtLeastTwo,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveFractions,
    PositiveInt,
    UnitInterval,
    UnitIntervals,
)
from pretask.methods.base.method import Minimum
from pretask.methods.base.views import MultiCrop, MultiCropConfig, MultiCropMethod, asymmetric
from pretask.methods.dino import Head, cross_view_loss
from pretask.methods.ibot import (
    MaskedMultiCrop,
    block_masks,
    mean_per_image,
    smallest_masked_side,
    with_masks,
)
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.transforms import augment
from pretask.types import Batch, Loss, Progress, Source, UserError
from pretask.viz.puzzle import Puzzle

ATTEMPTS = 30
"""rectangles tried per view"""
LEAST = 4
"""area of a rectangle in patches, as long as so many may be masked (`data/masking.py`)"""
EPS = 1e-8
"""added to distances in KoLeo (`koleo_loss.py`)"""


@dataclass(frozen=True)
class Config(MultiCropConfig):
    """Predict a momentum teacher's evenly spread assignments of masked patches and of another view."""

    family: ClassVar[str] = "self-distillation"
    encoder: ClassVar[str] = (
        "vit_tiny_patch16_224:patch_size=4,embed_dim=128,depth=4,num_heads=4,dynamic_img_size=True"
    )
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=30, batch=64, lr=1e-3, layer_decay=0.9, weight_decay=0.04, weight_decay_end=0.2, clip=3.0
    )

    mask_probability: UnitInterval = 0.5
    """fraction of the global views that are masked"""
    mask_ratio: UnitIntervals = (0.1, 0.5)
    """fraction of the patches of a masked view that are masked, from and to; evenly spread over the masked views"""
    koleo: NonNegativeFloat = 0.1
    """weight of KoLeo, which is summed over both global views"""
    koleo_batch: AtLeastTwo = 64
    """images among which KoLeo looks for the nearest neighbor (released: the 32 of one GPU)"""
    ema_momentum: UnitInterval = 0.99
    """teacher's EMA momentum at the start, annealed to 1 (0.994 on ImageNet-22k)"""
    temperature: PositiveFloat = 0.1
    """temperature of the student's softmax over prototypes"""
    teacher_temp: tuple[PositiveFloat, PositiveFloat] = (0.04, 0.07)
    """temperature of the teacher's assignments, before and after its warmup"""
    teacher_temp_warmup: UnitInterval = 0.1
    """fraction of the run in which it rises linearly (30 epochs of 500)"""
    sinkhorn_iterations: PositiveInt = 3
    """iterations of Sinkhorn-Knopp"""
    freeze_prototypes: UnitInterval = 0.03
    """fraction of the run, at its start, in which the prototypes are frozen (1 epoch)"""
    prototypes: AtLeastTwo = 512
    """number of prototypes of each head (131,072 on ImageNet-22k)"""
    width: PositiveInt = 128
    """bottleneck width of the head for images (384 on ImageNet-22k)"""
    patch_width: PositiveInt = 128
    """bottleneck width of the head for patches (256 on ImageNet-22k)"""
    hidden: PositiveInt = 512
    """hidden width of both heads (2048 on ImageNet-22k)"""
    patch_embed_lr: NonNegativeFloat = 0.2
    """factor of the patch embedding's learning rate, in addition"""
    drop_path: FractionBelowOne = 0.0
    """stochastic depth of every block of the student (0.4 on ImageNet-22k); 0: as in the encoder's arguments"""

    def smallest_side(self, encoder: Encoder) -> Minimum:
        return smallest_masked_side(require_vit(encoder, "dinov2", self.encoder), self.mask_ratio[1])

    def build(self, encoder: Encoder, source: Source) -> "DINOv2":
        vit = require_vit(encoder, "dinov2", self.encoder)
        if self.drop_path and not hasattr(vit.blocks[0], "drop_path1"):
            raise UserError(f"--drop-path needs blocks of two residual layers, which {encoder.name} has not")
        return DINOv2(self, encoder)

    def teacher_temp_at(self, fraction: float) -> float:
        """The teacher's temperature at a fraction of the run."""
        return linear_warmup(*self.teacher_temp, self.teacher_temp_warmup, fraction)


@dataclass(frozen=True)
class HighRes(Config):
    """Continue from the weights of another run (--init) for a short time, with larger views (appendix B.2)."""

    continues: ClassVar[bool] = True
    train: ClassVar[TrainConfig] = replace(Config.train, epochs=3, lr=Config.train.lr / 10)

    side: PositiveFraction = 1.0
    """full size; local crops stay as they are"""


@dataclass(frozen=True)
class Paper(Config):
    """ViT-L/14 on ImageNet-22k, with --size 224 and --steps 625000: batch 3072, 2 views of 224 px and 8 of 98 px.

    The README's "long setup": `configs/train/vitl14.yaml` over `ssl_default_config.yaml`, on 96 GPUs. 500 epochs of
    1250 steps are 163 passes over 11.8 million images. timm has a ViT of this kind with SwiGLU layers, the ViT-g,
    which is given the size of the ViT-L.
    """

    encoder: ClassVar[str] = (
        "vit_giant_patch14_dinov2:embed_dim=1024,depth=24,num_heads=16,mlp_ratio=5.34375,dynamic_img_size=True"
    )
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=163,
        batch=3072,
        lr=2e-4 * math.sqrt(3072 / 1024),
        lr_end=1e-6,
        weight_decay=0.04,
        weight_decay_end=0.2,
        warmup=80 / 500,
        clip=3.0,
    )

    side: PositiveFraction = 1.0
    """full size"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(crop=(0.32, 1.0), saturation=0.2, blur=0.5)
    """shared by all views; the two global views differ in blur and solarization"""
    local_crops: NonNegativeInt = 8
    """of 98 px"""
    local_size: PositiveFraction = 98 / 224
    """98 px of 224"""
    local_scale: PositiveFractions = (0.05, 0.32)
    """of 98 px"""
    koleo_batch: AtLeastTwo = 32
    """images of one GPU"""
    ema_momentum: UnitInterval = 0.994
    """at the start"""
    teacher_temp_warmup: UnitInterval = 30 / 500
    """30 epochs"""
    freeze_prototypes: UnitInterval = 1 / 500
    """one epoch"""
    prototypes: AtLeastTwo = 131_072
    """of each head"""
    width: PositiveInt = 384
    """bottleneck width for images"""
    patch_width: PositiveInt = 256
    """bottleneck width for patches"""
    hidden: PositiveInt = 2048
    """hidden width"""
    drop_path: FractionBelowOne = 0.4
    """of every block"""

    def augmentations(self) -> tuple[augment.ViewAugmentation, augment.ViewAugmentation]:
        return asymmetric(self.views)


def whole_patches(encoder: Encoder, fraction: float) -> int:
    """`fraction` of the image side in pixels, rounded to patches, without which a transformer takes full size only."""
    vit: Any = encoder.net
    patches = encoder.size // max(vit.patch_embed.patch_size)
    return encoder.side(max(1, round(fraction * patches)) / patches)


def mask_ratios(count: int, probability: float, ratio: tuple[float, float], rng: Rng) -> Tensor:
    """(B, 2): mask ratios of both global views of `count` images (`data/collate.py`).

    Of the 2B views of all processes, a fraction `probability` is masked, chosen at random. The range `ratio` is divided
    into as many equal parts, and each masked view draws its ratio from another part. The others have 0.
    """
    (rank, world), (low, high) = rng.shard, ratio
    views = 2 * count * world
    masked = int(views * probability)
    place = rng.unsharded.permutation(views).view(-1, 2)[rank * count : (rank + 1) * count]
    spread = low + (high - low) * (place + rng.uniform(count, 2)) / max(1, masked)
    return torch.where(place < masked, spread, 0.0)


@torch.no_grad()
def sinkhorn(cosines: Tensor, temperature: Tensor, iterations: int) -> Tensor:
    """Sinkhorn-Knopp: (M, K) teacher cosines -> (M, K) targets with row sums 1 and nearly equal column sums.

    Columns are summed over all processes, whose numbers of rows M may differ.
    """
    tiny = torch.finfo(cosines.dtype).tiny
    q = ((cosines - 1) / temperature).exp()  # constant factors cancel
    for _ in range(iterations):
        q = q / distributed.mean(q.sum(0)).clamp(min=tiny)  # columns first, rows last
        q = q / q.sum(1, keepdim=True).clamp(min=tiny)
    return q


def koleo(z: Tensor, group: int) -> Tensor:
    """KoLeo (sec. 4): minus the mean log distance of each unit row to its nearest neighbor.

    (B, D) features; neighbors are looked for in groups of `group` rows, or of some more where that leaves a rest.
    """
    costs = []
    with torch.autocast(z.device.type, enabled=False):
        for rows in F.normalize(z.float(), dim=1, eps=EPS).tensor_split(max(1, len(z) // group)):
            similarity = (rows @ rows.T).detach().fill_diagonal_(-1.0)
            nearest = rows[similarity.argmax(1)]
            costs.append(-(F.pairwise_distance(rows, nearest, eps=EPS) + EPS).log())
    return torch.cat(costs).mean()


class DINOv2(MultiCropMethod):
    pretext_task = "Self-distillation with masked patches"
    config: Config
    teacher_temp: Tensor  # () temperature of the teacher's assignments

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        c, net = config, encoder.net
        vit: Any = net
        self.side, self.local_size = (whole_patches(encoder, f) for f in (c.side, c.local_size))
        self.grid: tuple[int, int] = vit.patch_embed.dynamic_feat_size((self.side, self.side))
        self.mask_token = nn.Parameter(torch.zeros(1, vit.embed_dim))  # replaces a masked patch's embedding
        self.head, self.patch_head = (
            Head(encoder.dim, c.hidden, width, c.prototypes, use_bn_in_head=False)
            for width in (c.width, c.patch_width)
        )
        self.teacher = nn.ModuleList(ema_copy(part) for part in self.student)
        self.register_buffer("teacher_temp", torch.tensor(c.teacher_temp_at(0.0)))
        for block in vit.blocks if c.drop_path else ():
            block.drop_path1, block.drop_path2 = DropPath(c.drop_path), DropPath(c.drop_path)

    @property
    def student(self) -> tuple[Encoder, Head, Head]:
        return self.encoder, self.head, self.patch_head

    def pretext(self, batch: Batch, rng: Rng) -> MaskedMultiCrop:
        crops, c = super().pretext(batch, rng), self.config
        ratios = mask_ratios(len(batch), c.mask_probability, c.mask_ratio, rng.child("ratio"))
        most = (ratios * math.prod(self.grid)).floor()  # (B, 2) patches
        mask1, mask2 = (
            block_masks(of_view, self.grid, rng.child("hidden", side), ATTEMPTS, LEAST)
            for of_view, side in zip(most.unbind(1), ("left", "right"), strict=True)
        )
        return MaskedMultiCrop(crops.view1, crops.view2, crops.local_views, mask1, mask2)

    def show(
        self, pretext: MultiCrop, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        yield from with_masks(pretext, super().show(pretext, answers, batch, rng))

    def loss(self, pretext: MultiCrop) -> Loss:
        assert isinstance(pretext, MaskedMultiCrop)
        c, mask = self.config, torch.cat([pretext.view1_mask, pretext.view2_mask])  # (2B, h, w)
        where = mask.flatten(1)  # (2B, N)
        target, patch_target = self.targets(pretext.both, where)
        own = masked_tokens(self.encoder, pretext.both, self.mask_token, mask)  # (2B, 1 + N, D)
        rows = [own[:, 0]]
        if c.local_crops:
            rows.append(self.encoder(pretext.local_views.transpose(0, 1).flatten(0, 1))["pool"])
        log_p = (self.head(torch.cat(rows)) / c.temperature).log_softmax(1)
        cls_loss = cross_view_loss(target.unflatten(0, (2, -1)), log_p.unflatten(0, (-1, len(pretext.view1))))
        patch_log_p = (self.patch_head(own[:, 1:][where]) / c.temperature).log_softmax(1)
        patch_loss = mean_per_image(-(patch_target * patch_log_p).sum(1), where)
        view1, view2 = (koleo(distributed.gather(z), c.koleo_batch) for z in own[:, 0].chunk(2))
        parts = {"cls": cls_loss, "patch": patch_loss, "koleo": view1 + view2}
        return Loss(cls_loss + patch_loss + c.koleo * parts["koleo"], parts)

    @torch.no_grad()
    def targets(self, image: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's assignments of the views (2B, C, H, W) and of their M patches in `where`: (2B, K), (M, K)."""
        teacher: Any = self.teacher
        (encoder, head, patch_head), rounds = teacher, self.config.sinkhorn_iterations
        tokens = masked_tokens(encoder, image, self.mask_token)  # not masked
        logits = head(tokens[:, 0]), patch_head(tokens[:, 1:][where])
        whole, patches = (sinkhorn(x, self.teacher_temp, rounds) for x in logits)
        return whole, patches

    def after_step(self, carry: Any, progress: Progress) -> None:
        c = self.config
        self.teacher_temp.fill_(c.teacher_temp_at(progress.fraction))
        momentum = cosine_momentum(c.ema_momentum, progress.fraction)
        for teacher, student in zip(self.teacher, self.student, strict=True):
            update_ema(teacher, student, momentum)

    def groups(self) -> Iterable[dict[str, Any]]:
        """The patch embedding apart, with its own learning rate; the prototypes of both heads are frozen at the start."""
        last = [self.head.prototypes.weight, self.patch_head.prototypes.weight]
        patch_embed: Any = self.encoder.net.patch_embed
        apart = {*last, *patch_embed.parameters()}
        for group in super().groups():
            yield {**group, "params": [p for p in group["params"] if p not in apart]}
        for vectors in (False, True):
            params = [p for p in patch_embed.parameters() if p.requires_grad and (p.ndim <= 1) == vectors]
            yield {"params": params, "lr_scale": self.config.patch_embed_lr, "vectors": vectors}
        yield {"params": last, "after": self.config.freeze_prototypes}

    def predict(self, pretext: MultiCrop) -> Mapping[str, Tensor]:
        """The second view whose assignment in the batch is closest to the prediction from the first view."""
        encoder, head, _ = self.teacher
        log_p = (self.head(self.encoder(pretext.view1)["pool"]) / self.config.temperature).log_softmax(1)
        with distributed.local_only():
            target = sinkhorn(
                head(encoder(pretext.view2)["pool"]), self.teacher_temp, self.config.sinkhorn_iterations
            )
        kl = -torch.special.entr(target).sum(1) - log_p @ target.T  # (B, B)
        return {"view2": pretext.view2[kl.argmin(1)]}

    def export(self) -> Encoder:
        """The teacher's encoder, as released."""
        encoder: Any = self.teacher[0]
        return encoder
