"""Rotation: turn each image by 0, 90, 180 and 270 degrees and ask by how much.

Gidaris, Singh, Komodakis: Unsupervised Representation Learning by Predicting Image Rotations, ICLR 2018,
arXiv:1803.07728; released code: gidariss/FeatureLearningRotNet at edafaba. All four turns of an image share a batch (sec.
3.1 and dataloader.py). Photographs stand upright; knowing by how much one was turned takes knowing what is in it. Crop and
flip come before the turn: a flip after it would make 90 and 270 degrees the same puzzle.

Equations, by the paper's numbers: F^y(X|θ), the probability of each of K turns y (1), is `logits` after a softmax; the
objective, the mean over images of loss(X, θ) = -1/K Σ_y log F^y(g(X|y)|θ) (2, 3), is `loss`; g(X|y) = Rot(X, 90 (y - 1)),
X turned counter-clockwise (sec. 2.2), is `turned`.

Table 2 has other turns: `--angles 0 180`, `--angles 90 270`, and 8 in steps of 45 degrees; the four are best (89.06 % of
CIFAR-10; 8: 88.51, {0, 180}: 87.46, {90, 270}: 85.52). A turn that is no multiple of 90 degrees has to be sampled anew. The
paper "took care to crop only the central square image regions" (sec. 3.1), and blames what is left of sampling for some of
the loss; none of that was released. Here neither corners nor blur tell a turn: in a set that has an oblique one, all views
show the middle of the crop, which every turn fills (half of its area, in as many pixels as else the whole), and all are
sampled between the pixels of the slightly blurred crop so that they keep equally much of its finest detail, see `tilted`.
Of white noise no network can tell 0 from 45 degrees, which 60 steps teach it if views are sampled at the pixels (the tests).

**Differs**, all recipes: pixels are normalized by 0.5 and 0.25, not by the mean and deviation of the data set. `:paper`
follows the released CIFAR-10 run, whose 200 epochs with falls at 60, 120 and 160 are not the 100 with falls at 30, 60 and
80 of the paper's text (sec. 3.1); `:paperimagenet` the released ImageNet run, whose 50 epochs with falls at 15, 30 and 45
are not the 30 with falls at 10 and 20 of the text (sec. 3.2). PyTorch of that time drew the gains of batch norms uniformly
in [0, 1] (from memory), ours are 1. With oblique angles, a crop of the whole image is stretched a little, not moved.
By default, besides: a small ResNet, AdamW along half a cosine, crops of 0.3 of the area and more, scaled bilinearly to 3/4
of the side, before the turn.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.limits import Degrees, Part
from pretask.methods.base.method import Method, MethodConfig
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Source, UserError

ANGLES: tuple[int, ...] = (0, 90, 180, 270)
CORNER = (math.sqrt(2) - 1) / 2
"""how far the corners of a square, turned by 45 degrees, are outside of it; of its side"""
PHASE = (1 - math.sqrt(1 / 3)) / 2
"""where between two pixels a straight row is sampled, 0.211"""


@dataclass(frozen=True)
class CropConfig(MethodConfig):
    """What is turned, and what is trained on it on a small machine."""

    encoder: ClassVar[str] = "resnet_small:width=32"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=3e-3, weight_decay=0.01)

    crop: Part = 0.3
    """smallest share of the area that is shown; 1 shows the whole image, moved by an eighth of its side"""
    side: Part = 0.75
    """of what a crop shows, as a share of the image's; smaller puzzles, and more of them in the same time"""


@dataclass(frozen=True)
class Config(CropConfig):
    """Turn each image by a multiple of 90 degrees and predict by how much."""

    angles: tuple[Degrees, ...] = ANGLES
    """degrees counter-clockwise, of each of which every image gets a copy (table 2: these four are best)"""

    def build(self, encoder: Encoder, source: Source) -> Method[Any]:
        if len({angle % 360 for angle in self.angles}) < max(2, len(self.angles)):
            raise UserError(
                f"--angles {' '.join(map(str, self.angles))}: to be told apart they are two or more, and no two the same"
            )
        return RotNet(self, encoder, self.angles)


@dataclass(frozen=True)
class Paper(Config):
    """The released CIFAR-10 run: NIN of four blocks, 200 epochs, learning rate divided by 5 three times."""

    encoder: ClassVar[str] = "nin4"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=200,
        batch=128,
        optimizer="sgd",
        lr=0.1,
        weight_decay=5e-4,
        warmup=0.0,
        drops=(0.3, 0.6, 0.8),
        drop=0.2,
        nesterov=True,
        decay_all=True,
    )

    crop: Part = 1.0
    """the whole image, moved by up to 4 of 32 pixels"""


@dataclass(frozen=True)
class PaperImageNet(Paper):
    """The released ImageNet run, with --size 224: AlexNet with batch norm, batch 192, 50 epochs."""

    encoder: ClassVar[str] = "alexnet_bn"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=50,
        batch=192,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        warmup=0.0,
        drops=(0.3, 0.6, 0.9),
        nesterov=True,
        decay_all=True,
    )

    crop: Part = 0.08
    """smallest share of the area that is shown"""
    side: Part = 1.0
    """full size"""


@dataclass(frozen=True)
class Turned:
    image: Tensor  # (K·B, C, H, W), the turns of one image in a row
    turn: Tensor  # (K·B,) which of the K angles


def turned(image: Tensor, side: int, crop: float, rng: Rng, angles: Sequence[int] = ANGLES) -> Turned:
    """g(X|y): one view of each image, of `side` pixels and at least `crop` of the area, in all turns."""
    x, oblique = images.to_float(image), any(angle % 90 for angle in angles)
    side = x.shape[-1] if crop == 1 else side
    if oblique:
        x = images.resized_crop(x, side + 2 * math.ceil(CORNER * side + 1), rng, (crop, 1.0))
    elif crop == 1:
        x = images.shift(x, rng, side // 8)
    else:
        x = images.resized_crop(x, side, rng, (crop, 1.0))
    x = images.flip(x, rng)
    if oblique:
        x = images.blur(x, rng, p=1.0, sigma=(0.7, 0.7))
    first = {angle: tilted(x, angle, side) if oblique else x for angle in {angle % 90 for angle in angles}}
    views = [first[angle % 90].rot90(angle // 90, (2, 3)) for angle in angles]
    turn = torch.arange(len(angles), device=x.device).repeat(len(x))
    return Turned(torch.stack(views, 1).flatten(0, 1), turn)


def tilted(x: Tensor, angle: float, side: int) -> Tensor:
    """The middle of each image, which leaves as many pixels on either side, turned counter-clockwise, (B, C, side, side).

    Samples of a tilted grid lie anywhere between the pixels, and keep 2/3 of the variance of white noise along each axis.
    One that stands straight would keep all or half of it, if it met the pixels or their edges; at PHASE it keeps 2/3 as well.
    """
    at = torch.arange(side, device=x.device) - (side - 1) / 2
    across, down = at[None], at[:, None]
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    grid = torch.stack([cos * across - sin * down, sin * across + cos * down], -1)  # pixels from the middle
    grid = 2 * (grid + PHASE) / x.shape[-1]
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="border", align_corners=False)


class RotNet(Method[Turned]):
    def __init__(self, config: CropConfig, encoder: Encoder, angles: Sequence[int] = ANGLES):
        super().__init__()
        self.config, self.encoder, self.angles = config, encoder, angles
        self.head = nn.Linear(encoder.dim, len(angles))
        self.side = encoder.side(config.side)

    def pretext(self, batch: Batch, rng: Rng) -> Turned:
        return turned(batch.image, self.side, self.config.crop, rng, self.angles)

    def logits(self, pretext: Turned) -> Tensor:
        return self.head(self.encoder(pretext.image)["pool"])  # (K·B, K)

    def loss(self, pretext: Turned) -> Loss:
        logits = self.logits(pretext)
        accuracy = (logits.argmax(1) == pretext.turn).float().mean()
        return Loss(F.cross_entropy(logits, pretext.turn), {"accuracy": accuracy})  # eq. 2 and 3

    def solve(self, pretext: Turned) -> Mapping[str, Tensor]:
        return {"turn": self.logits(pretext).argmax(1)}

    def meanings(self) -> Mapping[str, Sequence[str]]:
        return {"turn": [f"{angle}°" for angle in self.angles]}

    def export(self) -> Encoder:
        return self.encoder
