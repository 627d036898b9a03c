"""EMP-SSL: make many patches of an image agree with their mean, while a high coding rate keeps images apart.

Tong, Chen, Ma, LeCun: EMP-SSL: Towards Self-Supervised Learning in One Training Epoch, 2023, arXiv:2304.03977; numbers are those of
the released code, tsb0601/EMP-SSL at 8fc3758. Every image gives many square patches of one scale. The loss rewards the cosine
of each patch's embedding with the mean over the image's patches, and the total coding rate of the batch, R(Z) = ½ log det(I +
D/(Bε) ZᵀZ), of every patch of the images: it is largest for orthogonal embeddings, which prevents collapse without negatives,
teacher or stop-gradient. Many patches take the place of many epochs. With several processes, the coding rate is that of the
batches of all of them.

**Differs:** the loss is the released one plus two constants, so that it is 0 for embeddings that are equal within an image and
as orthogonal as possible between images; the log has the cosine and the rate themselves. The released scores are those of a bag
of patches: features after the projector's first layer, averaged over 128 patches, of training and test images. `pretask
evaluate` scores the encoder's pooled features of the whole image instead, as for all methods. ε is not squared, as released.
Pixels are divided by 0.25, released 0.5, and convolutions are initialized by PyTorch's rule, not torchvision's; crops lie between
pixels; the blur kernel is a tenth of the patch's side.

Cost: a step encodes batch · patches crops. Of half the image's side, 20 patches cost as much as five whole images.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import build_mlp
from pretask.limits import (
    AtLeastTwo,
    NonNegativeFloat,
    PositiveFloat,
    PositiveFraction,
    PositiveFractions,
    PositiveInt,
    UnitInterval,
)
from pretask.methods.base.method import Method, MethodConfig, Minimum
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.transforms import augment
from pretask.types import Batch, Loss, Source
from pretask.viz.puzzle import Board, Caption, Frame, Panel, Puzzle, Tile

LARC = {"trust_coeff": 0.005, "trust_clip": True}
"""of LARS: the largest relative step, and that it only ever shortens steps (released code)"""


@dataclass(frozen=True)
class PatchAugmentation(augment.HueAugmentation):
    """Augmentation of one patch: square crops of one scale."""

    crop: PositiveFractions = (0.25, 0.25)
    """range of the patch's area, as fractions of the image"""
    solarize: UnitInterval = 0.1
    """probability of solarization"""

    def cropped(self, x: Tensor, size: int, rng: Rng) -> Tensor:
        box = augment.random_boxes(len(x), rng, self.crop, (1.0, 1.0))
        return augment.flip(augment.crop(x, box, size), rng, self.flip)


@dataclass(frozen=True)
class Config(MethodConfig):
    """Agree with the mean embedding of the image's patches, and spread embeddings by the total coding rate."""

    family: ClassVar[str] = "redundancy reduction"
    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=3e-3, weight_decay=0.01)

    num_patches: AtLeastTwo = 20
    """patches per image; with 200, the released scores are 2 points higher after one epoch and 0.3 after 30"""
    side: PositiveFraction = 0.5
    """side of a patch's crop as a fraction of the image's; 0.5 neither enlarges nor reduces a patch of a quarter of the area"""
    views: PatchAugmentation = PatchAugmentation()
    """augmentation of a patch"""
    invariance: NonNegativeFloat = 100.0
    """weight of the cosine; that of the coding rate is 1"""
    epsilon: PositiveFloat = 0.2
    """ε of the coding rate: the smaller, the more a rate depends on weak directions"""
    width: PositiveInt = 256
    """output width of the projector (released: 1024)"""
    hidden: PositiveInt = 512
    """width of the projector's two hidden layers (released: 4096)"""

    def smallest_batch(self) -> Minimum:
        """A single image cannot be kept apart from others."""
        return Minimum(2)

    def build(self, encoder: Encoder, source: Source) -> "EMPSSL":
        return EMPSSL(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ResNet-18 on CIFAR-10: 20 patches of 16 px, enlarged to 32, LARS, batch 100, 30 epochs (released command)."""

    encoder: ClassVar[str] = "resnet_small:blocks=2,stages=4,stride=1,strided=True"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=30, batch=100, optimizer="lars", lr=0.3, nesterov=True, weight_decay=1e-4, warmup=0.0
    )

    side: PositiveFraction = 1.0
    """32 px"""
    views: PatchAugmentation = PatchAugmentation(blur=0.1)
    """with blur"""
    invariance: NonNegativeFloat = 200.0
    """weight of the cosine"""
    width: PositiveInt = 1024
    """output width"""
    hidden: PositiveInt = 4096
    """width of the hidden layers"""


@dataclass(frozen=True)
class Patches:
    first: Tensor  # (B, P, C, h, w), half of an image's patches
    rest: Tensor  # (B, Q, C, h, w), the others

    @property
    def all(self) -> Tensor:
        return torch.cat([self.first, self.rest], 1)


def total_coding_rate(z: Tensor, epsilon: float) -> Tensor:
    """(…, B, D) unit rows -> (…): ½ log det(I + D/(Bε) ZᵀZ), by the smaller of ZᵀZ and ZZᵀ, which give the same."""
    b, d = z.shape[-2:]
    with torch.autocast(z.device.type, enabled=False):
        gram = z @ z.mT if b < d else z.mT @ z
        identity = torch.eye(min(b, d), device=z.device)
        factor = torch.linalg.cholesky(identity + d / (b * epsilon) * gram)
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def largest_coding_rate(b: int, d: int, epsilon: float) -> float:
    """That of B unit rows of dimension D which are as orthogonal as possible."""
    rank = min(b, d)
    return rank / 2 * math.log(1 + d / (rank * epsilon))


class EMPSSL(Method[Patches]):
    pretext_task = "Invariance of many patches"

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.side = encoder.side(config.side)
        self.projector = build_mlp(encoder.dim, config.hidden, config.hidden, config.width)

    def pretext(self, batch: Batch, rng: Rng) -> Patches:
        x, c = augment.to_float(batch.image), self.config
        patches = torch.stack([c.views(x, self.side, rng.child("patch", i)) for i in range(c.num_patches)], 1)
        return Patches(*patches.tensor_split([c.num_patches // 2], 1))

    def loss(self, pretext: Patches) -> Loss:
        c, patches = self.config, pretext.all.transpose(0, 1)  # (P, B, C, h, w)
        z = self.projector(self.encoder(patches.flatten(0, 1))["pool"]).float()
        z = F.normalize(z, dim=1).unflatten(0, patches.shape[:2])  # (P, B, D)
        every = distributed.gather(z.transpose(0, 1).contiguous()).transpose(0, 1)
        similarity = F.cosine_similarity(z, z.mean(0), dim=2).mean()
        rate = total_coding_rate(every, c.epsilon).mean()
        lost = largest_coding_rate(every.shape[1], every.shape[2], c.epsilon) - rate
        return Loss(c.invariance * (1 - similarity) + lost, {"similarity": similarity, "coding_rate": rate})

    def groups(self) -> Iterable[dict[str, Any]]:
        """LARS adapts the steps of matrices as released; other optimizers ignore it."""
        return ({**group, **LARC} for group in super().groups())

    def show(
        self, pretext: Patches, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        at, c = augment.positions(batch.image), self.config
        boxes = [
            augment.extent(c.views.cropped(at, self.side, rng.child("patch", i)))
            for i in range(c.num_patches)
        ]
        for image, patches, places in zip(batch.image, pretext.all, torch.stack(boxes, 1), strict=True):
            board = Board([Tile(patch) for patch in patches], columns=round(len(patches) ** 0.5))
            yield Puzzle(
                [Panel("image", image, [Frame(box, role="other") for box in places.tolist()])],
                [Panel("patches", board)],
                captions=[Caption("What do all patches have in common?", "the same image")],
            )

    def export(self) -> Encoder:
        return self.encoder
