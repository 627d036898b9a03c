"""Rotation: turn each image by 0, 90, 180 and 270 degrees and ask by how much.

Gidaris, Singh, Komodakis: Unsupervised Representation Learning by Predicting Image Rotations, ICLR 2018,
arXiv:1803.07728; released code: gidariss/FeatureLearningRotNet at edafaba. All four turns of an image share a batch (sec.
3.2 and dataloader.py). Photographs stand upright; knowing by how much one was turned takes knowing what is in it. Crop and
flip come before the turn: a flip after it would make 90 and 270 degrees the same puzzle.

Equations, by the paper's numbers from memory: F^y(X|θ), the probability of each of K = 4 turns y (1), is `logits` after a
softmax; the objective, the mean over images of loss(X, θ) = -1/K Σ_y log F^y(g(X|y)|θ) (2, 3), is `loss`; g(X|y), X turned
by y quarter turns counter-clockwise, is `turned`.

**Differs**, all recipes: pixels are normalized by 0.5 and 0.25, not by the mean and deviation of the data set. `:paper`
follows the released CIFAR-10 run, whose 200 epochs with falls at 60, 120 and 160 are not the 100 with falls at 30, 60 and
80 of the paper's text; PyTorch of that time drew the gains of batch norms uniformly in [0, 1] (from memory), ours are 1.
By default, besides: a small ResNet, AdamW along half a cosine, crops of 0.3 of the area and more, scaled bilinearly to 3/4
of the side, before the turn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask import images
from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.methods.base import Method, MethodConfig
from pretask.rng import Rng
from pretask.types import Batch, Loss, Source

TURNS = 4


@dataclass(frozen=True)
class Config(MethodConfig):
    """Turn each image by a multiple of 90 degrees and predict by how much."""

    encoder: ClassVar[str] = "resnet_small:width=32"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=3e-3, weight_decay=0.01)

    crop: float = 0.3
    """smallest share of the area that is shown; 1 shows the whole image, moved by an eighth of its side"""
    side: float = 0.75
    """of what a crop shows, as a share of the image's; smaller puzzles, and more of them in the same time"""

    def build(self, encoder: Encoder, source: Source) -> Method[Any]:
        return RotNet(self, encoder)


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

    crop: float = 1.0
    """the whole image, moved by up to 4 of 32 pixels"""


@dataclass(frozen=True)
class Turned:
    image: Tensor  # (4·B, C, H, W), the turns of one image in a row
    turn: Tensor  # (4·B,) quarter turns counter-clockwise


def turned(image: Tensor, side: int, crop: float, rng: Rng) -> Turned:
    """g(X|y): one view of each image, of `side` pixels and at least `crop` of the area, in all four turns."""
    x = images.to_float(image)
    whole = crop == 1
    x = images.shift(x, rng, x.shape[-1] // 8) if whole else images.resized_crop(x, side, rng, (crop, 1.0))
    x = images.flip(x, rng)
    four = torch.stack([x.rot90(k, (2, 3)) for k in range(TURNS)], 1)  # (B, 4, C, H, W)
    return Turned(four.flatten(0, 1), torch.arange(TURNS, device=x.device).repeat(len(x)))


class RotNet(Method[Turned]):
    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.head = nn.Linear(encoder.dim, TURNS)
        self.side = encoder.side(config.side)

    def pretext(self, batch: Batch, rng: Rng) -> Turned:
        return turned(batch.image, self.side, self.config.crop, rng)

    def logits(self, pretext: Turned) -> Tensor:
        return self.head(self.encoder(pretext.image)["pool"])  # (4·B, 4)

    def loss(self, pretext: Turned) -> Loss:
        logits = self.logits(pretext)
        accuracy = (logits.argmax(1) == pretext.turn).float().mean()
        return Loss(F.cross_entropy(logits, pretext.turn), {"accuracy": accuracy})  # eq. 2 and 3

    def solve(self, pretext: Turned) -> Mapping[str, Tensor]:
        return {"turn": self.logits(pretext).argmax(1)}

    def export(self) -> Encoder:
        return self.encoder
