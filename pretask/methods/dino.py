"""DINO: self-distillation with a momentum teacher over multi-crop views.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin: Emerging Properties in Self-Supervised Vision
Transformers, ICCV 2021, arXiv:2104.14294; numbers without another source are those of the released code. The
student predicts, from every view, the teacher's softmax over prototypes on another global view. The teacher
gets no gradient and sees the global views only. Two operations prevent collapse: centering of the teacher's
logits, so that no prototype dominates, and sharpening with a low temperature, so that its outputs do not
become uniform (sec. 3.1).

The head gets the features of all views at once, so its batch norms, if any, see all of them. Students may use
stochastic depth (the encoder's "drop_path_rate"); teachers drop nothing, and their batch norms use batch
statistics, as the students' do.

**Differs:** logits are cosines for every encoder, where the released ViT-S run scales them by learned lengths
(`--norm_last_layer false`); heads have torch's initialization, not a normal one of standard deviation 0.02,
and the class token one of 1e-6, as in timm, not 0.02; frozen prototypes accumulate momentum; gradients are
clipped by their global norm, not per weight; the teacher's temperature rises every step, not every epoch;
crops are bilinear and taken from an image already resized to the encoder's size; the blur kernel is a tenth
of the image side. The default recipe normalizes pixels by mean 0.5 and standard deviation 0.5, as timm does
for its network; `:paper` by ImageNet's, as released.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import cosine_momentum, ema_copy, linear_warmup, update_ema
from pretask.limits import (
    AtLeastTwo,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveFractions,
    PositiveInt,
    UnitInterval,
)
from pretask.methods.base.views import MultiCrop, MultiCropConfig, MultiCropMethod, asymmetric
from pretask.transforms import augment
from pretask.types import Loss, Progress, Source


@dataclass(frozen=True)
class Config(MultiCropConfig):
    """Predict a momentum teacher's prototype assignment of a global view from any other view of the image."""

    family: ClassVar[str] = "self-distillation"
    ema_momentum: UnitInterval = 0.99
    """teacher's EMA momentum at the start, annealed to 1 (0.996 on ImageNet)"""
    temperature: PositiveFloat = 0.1
    """temperature of the student's softmax over prototypes"""
    teacher_temp: tuple[PositiveFloat, PositiveFloat] = (0.04, 0.07)
    """temperature of the teacher's softmax, before and after its warmup"""
    teacher_temp_warmup: UnitInterval = 0.1
    """fraction of the run in which it rises linearly (30 epochs of 300)"""
    center_momentum: UnitInterval = 0.9
    """EMA momentum of the center"""
    freeze_prototypes: UnitInterval = 0.03
    """fraction of the run, at its start, in which the prototypes are frozen (1 epoch)"""
    prototypes: AtLeastTwo = 1024
    """number of prototypes, the output width of the head (65,536 on ImageNet)"""
    width: PositiveInt = 128
    """bottleneck width of the head, that of the prototypes (256 on ImageNet)"""
    hidden: PositiveInt = 512
    """hidden width of the head (2048 on ImageNet)"""
    use_bn_in_head: bool = True
    """use batch norms in the head (optional in the released code); small networks become uniform without"""

    def build(self, encoder: Encoder, source: Source) -> "DINO":
        return DINO(self, encoder)

    def teacher_temp_at(self, fraction: float) -> float:
        """The teacher's temperature at a fraction of the run."""
        return linear_warmup(*self.teacher_temp, self.teacher_temp_warmup, fraction)


@dataclass(frozen=True)
class Paper(Config):
    """ViT-S/16 on ImageNet, with --size 224: batch 1024, 300 epochs, 2 views of 224 px and 8 of 96 px.

    The run of the released README's "Boosting DINO performance". It has no batch norms.
    """

    encoder: ClassVar[str] = "vit_small_patch16_224.dino:dynamic_img_size=True,drop_path_rate=0.1"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=300,
        batch=1024,
        lr=5e-4 * 1024 / 256,
        lr_end=1e-6,
        weight_decay=0.04,
        weight_decay_end=0.4,
        warmup=10 / 300,
        clip=3.0,
    )

    side: PositiveFraction = 1.0
    """full size"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(crop=(0.4, 1.0), saturation=0.2, blur=0.5)
    """shared by all views; the two global views differ in blur and solarization"""
    local_crops: NonNegativeInt = 8
    """of 96 px"""
    local_size: PositiveFraction = 96 / 224
    """96 px of 224"""
    local_scale: PositiveFractions = (0.05, 0.4)
    """of 96 px"""
    ema_momentum: UnitInterval = 0.996
    """at the start"""
    freeze_prototypes: UnitInterval = 1 / 300
    """one epoch"""
    prototypes: AtLeastTwo = 65_536
    """for complex and large data"""
    width: PositiveInt = 256
    """bottleneck width"""
    hidden: PositiveInt = 2048
    """hidden width"""
    use_bn_in_head: bool = False
    """none, as in the transformer"""

    def augmentations(self) -> tuple[augment.ViewAugmentation, augment.ViewAugmentation]:
        return asymmetric(self.views)


class Head(nn.Module):
    """(…, D) -> (…, K): cosine similarities of a bottleneck embedding with K prototypes."""

    def __init__(self, dim: int, hidden: int, width: int, prototypes: int, use_bn_in_head: bool):
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((dim, hidden), (hidden, hidden)):
            layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if use_bn_in_head else []), nn.GELU()]
        self.bottleneck = nn.Sequential(*layers, nn.Linear(hidden, width))
        self.prototypes = nn.Linear(width, prototypes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.cosines(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, width) unit rows; batch norms see all rows."""
        return F.normalize(self.bottleneck(x.flatten(0, -2)).float(), dim=1).unflatten(0, x.shape[:-1])

    def cosines(self, z: Tensor) -> Tensor:
        """(…, width) unit rows -> (…, K)."""
        with torch.autocast(z.device.type, enabled=False):  # bfloat16 is off by up to 0.06 at 1 / 0.04
            return z @ F.normalize(self.prototypes.weight, dim=1).T


def teacher_probs(logits: Tensor, center: Tensor, temperature: Tensor) -> Tensor:
    """(…, K) teacher logits -> probabilities, centered and sharpened."""
    return ((logits - center) / temperature).softmax(-1)


def cross_view_loss(target: Tensor, log_p: Tensor) -> Tensor:
    """Mean cross-entropy of teacher views (2, B, K) with every other student view (2 + V, B, K) (eq. 3)."""
    pairs = [(own, v) for own in range(len(target)) for v in range(len(log_p)) if v != own]
    return torch.stack([-(target[own] * log_p[v]).sum(1).mean() for own, v in pairs]).mean()


class DINO(MultiCropMethod):
    pretext_task = "Self-distillation between crops"
    center: Tensor  # (K,) mean of the teacher's logits
    teacher_temp: Tensor  # () temperature of the teacher's softmax

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.head = Head(encoder.dim, config.hidden, config.width, config.prototypes, config.use_bn_in_head)
        self.teacher = nn.ModuleList(ema_copy(net) for net in (encoder, self.head))
        self.register_buffer("center", torch.zeros(config.prototypes))
        self.register_buffer("teacher_temp", torch.tensor(config.teacher_temp_at(0.0)))

    def logits(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) student logits."""
        return self.head(self.encoder(image)["pool"])

    @torch.no_grad()
    def teacher_logits(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) teacher logits."""
        encoder, head = self.teacher
        return head(encoder(image)["pool"])

    def loss(self, pretext: MultiCrop) -> Loss:
        teacher_logits = self.teacher_logits(pretext.both)  # (2B, K)
        target = teacher_probs(teacher_logits, self.center, self.teacher_temp).unflatten(0, (2, -1))
        log_p = (self.forward_views(self.head, pretext) / self.config.temperature).log_softmax(2)
        entropy = torch.special.entr(target).sum(2).mean()  # collapse: towards 0 or ln K (sec. 5.3)
        return Loss(
            cross_view_loss(target, log_p), {"entropy": entropy}, carry=teacher_logits.mean(0, keepdim=True)
        )

    def after_step(self, carry: Any, progress: Progress) -> None:
        """`carry` (W, K): the mean teacher logits of each process."""
        self.center.lerp_(carry.mean(0), 1 - self.config.center_momentum)  # eq. 4
        self.teacher_temp.fill_(self.config.teacher_temp_at(progress.fraction))
        momentum = cosine_momentum(self.config.ema_momentum, progress.fraction)
        for teacher, student in zip(self.teacher, (self.encoder, self.head), strict=True):
            update_ema(teacher, student, momentum)

    def groups(self) -> Iterable[dict[str, Any]]:
        """The prototypes are frozen at the start of the run."""
        last = self.head.prototypes.weight
        for group in super().groups():
            yield {**group, "params": [p for p in group["params"] if p is not last]}
        yield {"params": [last], "after": self.config.freeze_prototypes}

    def predict(self, pretext: MultiCrop) -> Mapping[str, Tensor]:
        """The second view whose teacher distribution is closest to the prediction from the first view."""
        predicted = (self.logits(pretext.view1) / self.config.temperature).log_softmax(1)
        target = teacher_probs(self.teacher_logits(pretext.view2), self.center, self.teacher_temp)
        kl = -torch.special.entr(target).sum(1) - predicted @ target.T  # (B, B)
        return {"view2": pretext.view2[kl.argmin(1)]}

    def export(self) -> Encoder:
        """The teacher's encoder, the better of the two throughout training (sec. 5.2)."""
        encoder: Any = self.teacher[0]
        return encoder
