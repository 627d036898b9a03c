"""DINO: from any view of an image, foresee to which prototypes a slowly following teacher assigns a large view of it.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin: Emerging Properties in Self-Supervised Vision Transformers,
ICCV 2021, arXiv:2104.14294; numbers without another source are those of the released code. The teacher gets no
gradient and sees the large views alone. Two things keep it from assigning all images alike: its logits are centred, so
that no one prototype always wins, and its softmax is sharp, so that not all of them always share (sec. 3.1).

The head gets the class tokens of all views at once, so its batch norms, where it has some, count them all. Students may
drop paths ("drop_path_rate" of the encoder); teachers drop nothing, and their batch norms count batches, as students' do.

**Differs:** logits are cosines in every net, where the released ViT-S run scales them by learned lengths
(`--norm_last_layer false`); heads begin with torch's weights, not with normal ones of deviation 0.02, and the class token
with 1e-6, as timm has it, not with 0.02; frozen prototypes gather momentum; gradients are clipped together, not weight by
weight; the teacher's temperature rises with every step, not every epoch; crops are bilinear and of an image already
reduced to the views' size; a blur has a window of a tenth of the side. The default recipe's pixels are less 0.5 and in units of
0.5, as timm has it for its net; `:paper`'s are by ImageNet's means and deviations, as released.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import follow, rising, teacher_of
from pretask.limits import Count, Natural, Part, Parts, Positive, Several, Share
from pretask.methods.base.views import Crops, CropsConfig, OfCrops, unlike
from pretask.transforms import augment as images
from pretask.types import Loss, Progress, Source


@dataclass(frozen=True)
class Config(CropsConfig):
    """Foresee from any view to which prototypes a slowly following teacher assigns a large view of its image."""

    keep: Share = 0.99
    """share of the teacher's weights that stays at each step; rises to 1 (0.996 on ImageNet)"""
    temperature: Positive = 0.1
    """of the student's softmax over prototypes"""
    sharp: tuple[Positive, Positive] = (0.04, 0.07)
    """temperature of the teacher's softmax, at first and at last"""
    warm: Share = 0.1
    """share of the run in which it rises (30 epochs of 300)"""
    centring: Share = 0.9
    """share of the centre that stays at each step"""
    frozen: Share = 0.03
    """share of the run in whose beginning the prototypes stay as they are (1 epoch)"""
    prototypes: Several = 1024
    """that views are assigned to (65,536 on ImageNet)"""
    width: Count = 128
    """of the bottleneck in front of them (256 on ImageNet)"""
    hidden: Count = 512
    """of the head's hidden layers (2048 on ImageNet)"""
    norm: bool = True
    """batch norms in the head (an option of the released code); without them small nets soon share all images out evenly"""

    def build(self, encoder: Encoder, source: Source) -> "DINO":
        return DINO(self, encoder)

    def sharpness(self, fraction: float) -> float:
        """The teacher's temperature at a fraction of the run."""
        first, last = self.sharp
        return first + (last - first) * fraction / self.warm if fraction < self.warm else last


@dataclass(frozen=True)
class Paper(Config):
    """ViT-S/16 on ImageNet, with --size 224: batch 1024, 300 epochs, 2 views of 224 px and 8 of 96 px.

    The run of the released README's "Boosting DINO performance". It has no batch norms: views meet nowhere in the net.
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

    side: Part = 1.0
    """full size"""
    views: images.Views = images.Views(crop=(0.4, 1.0), saturation=0.2, blur=0.5)
    """but for blur and solarisation of the two large views, which differ"""
    small: Natural = 8
    """of 96 px"""
    small_side: Part = 96 / 224
    """of the image's"""
    small_crop: Parts = (0.05, 0.4)
    """of 96 px"""
    keep: Share = 0.996
    """at first"""
    frozen: Share = 1 / 300
    """one epoch"""
    prototypes: Several = 65_536
    """for complex and large data"""
    width: Count = 256
    """of the bottleneck"""
    hidden: Count = 2048
    """of the hidden layers"""
    norm: bool = False
    """none, as there are none in a transformer"""

    def pair(self) -> tuple[images.Views, images.Views]:
        return unlike(self.views)


class Head(nn.Module):
    """(…, D) -> (…, K): cosines of a bottleneck of `width` with K prototypes."""

    def __init__(self, dim: int, hidden: int, width: int, prototypes: int, norm: bool):
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((dim, hidden), (hidden, hidden)):
            layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), nn.GELU()]
        self.narrow = nn.Sequential(*layers, nn.Linear(hidden, width))
        self.prototypes = nn.Linear(width, prototypes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.cosines(self.narrowed(x))

    def narrowed(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, width) unit rows; batch norms count all rows."""
        return F.normalize(self.narrow(x.flatten(0, -2)).float(), dim=1).unflatten(0, x.shape[:-1])

    def cosines(self, z: Tensor) -> Tensor:
        """(…, width) unit rows -> (…, K)."""
        with torch.autocast(z.device.type, enabled=False):  # bfloat16 is off by up to 0.06 at 1 / 0.04
            return z @ F.normalize(self.prototypes.weight, dim=1).T


def assigned(logits: Tensor, centre: Tensor, temperature: Tensor) -> Tensor:
    """(…, K) logits of the teacher -> its probabilities, centred and sharpened."""
    return ((logits - centre) / temperature).softmax(-1)


def across(target: Tensor, log_p: Tensor) -> Tensor:
    """Mean cross-entropy of the teacher's large views (2, B, K) with every other view (2 + V, B, K) (eq. 3)."""
    pairs = [(own, v) for own in range(len(target)) for v in range(len(log_p)) if v != own]
    return torch.stack([-(target[own] * log_p[v]).sum(1).mean() for own, v in pairs]).mean()


class DINO(OfCrops):
    centre: Tensor  # (K,) of the teacher's logits
    sharpness: Tensor  # () temperature of the teacher

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        self.head = Head(encoder.dim, config.hidden, config.width, config.prototypes, config.norm)
        self.teacher = nn.ModuleList(teacher_of(net) for net in (encoder, self.head))
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.register_buffer("sharpness", torch.tensor(config.sharpness(0.0)))

    def logits(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K), the student's."""
        return self.head(self.encoder(image)["pool"])

    @torch.no_grad()
    def taught(self, image: Tensor) -> Tensor:
        """The same of the teacher."""
        encoder, head = self.teacher
        return head(encoder(image)["pool"])

    def loss(self, pretext: Crops) -> Loss:
        taught = self.taught(pretext.both)  # (2B, K)
        target = assigned(taught, self.centre, self.sharpness).unflatten(0, (2, -1))
        log_p = (self.through(self.head, pretext) / self.config.temperature).log_softmax(2)
        entropy = torch.special.entr(target).sum(2).mean()  # towards 0 or ln K: collapse (sec. 5.3)
        return Loss(across(target, log_p), {"entropy": entropy}, carry=taught.mean(0, keepdim=True))

    def after_step(self, carry: Any, progress: Progress) -> None:
        """`carry` (W, K): the mean logits of each process."""
        self.centre.lerp_(carry.mean(0), 1 - self.config.centring)  # eq. 4
        self.sharpness.fill_(self.config.sharpness(progress.fraction))
        keep = rising(self.config.keep, progress.fraction)
        for teacher, student in zip(self.teacher, (self.encoder, self.head), strict=True):
            follow(teacher, student, keep)

    def groups(self) -> Iterable[dict[str, Any]]:
        """The prototypes stay as they are at first."""
        last = self.head.prototypes.weight
        for group in super().groups():
            yield {**group, "params": [p for p in group["params"] if p is not last]}
        yield {"params": [last], "after": self.config.frozen}

    def solve(self, pretext: Crops) -> Mapping[str, Tensor]:
        """The right view that the teacher assigns most nearly as the student foresees from the left one."""
        foreseen = (self.logits(pretext.left) / self.config.temperature).log_softmax(1)
        target = assigned(self.taught(pretext.right), self.centre, self.sharpness)
        divergence = (
            -torch.special.entr(target).sum(1) - foreseen @ target.T
        )  # (B, B), of Kullback and Leibler
        return {"right": pretext.right[divergence.argmin(1)]}

    def export(self) -> Encoder:
        """The teacher's, the better of the two throughout training (sec. 5.2)."""
        encoder: Any = self.teacher[0]
        return encoder
