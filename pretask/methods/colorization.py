"""Colorization: from the lightness of an image, name the colour of each of its places.

Zhang, Isola, Efros: Colorful Image Colorization, ECCV 2016, arXiv:1603.08511; the released code is that of the caffe
branch of richzhang/colorization. To colour a thing, one has to know what it is. Colours are the ab of CIELab in 313
classes, because the mean of the colours that a thing may have is grey. Bright colours are rare, so that a place
counts by how rare its colour is among the images at hand: the shares of the colours are measured on them when a run
begins. Images without colour do not count.

**Differs:**
the shares of the colors are those of the images at hand, not ImageNet's. The weight of a place is part of the loss,
where the released layer multiplies the gradient alone and prints the loss without ("unweighted" in the log).
`:paper` and `:features` are given L - 50, as released; other nets by default (L - 50) / 25. First weights are torch's,
those of the published nets' first layer a 25th as large, where the released ones are fitted to images by k-means and
scaled so that every output begins with a deviation of 1 (fc6, fc7 and fc8 of `:features` are as released). Adam's decay
is decoupled and its β₂ 0.999 (`:paper`: 0.99, and decay is added to the gradient). Running statistics of batch norm
move by 0.1 a step (Caffe's default: 0.001). `:paper` falls by thirds at the paper's steps; the released solver falls by
tenths every 225,000 of 500,000 steps. Images are cut to their central square; how the released code's database was cut
was not read. Whether painted images are recognized (sec. 3.1) is asked of an EfficientNet-Lite0, by
docs/results/recognition.py, not of a VGG-16, whose weights are not at hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.data import loader
from pretask.encoders import Encoder
from pretask.limits import Count, Natural, Part, Positive, between
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method, MethodConfig
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Source, UserError

RANGES = {
    **{-90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100)},
    **{-30: (-50, 100), -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90)},
    **{30: (-90, 90), 40: (-100, 90), 50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70)},
    **{90: (-110, 70), 100: (-90, 0)},
}
"""a -> the first and last b of its bins, 10 apart: the released list, which no simple rule of the gamut gives"""
BINS = torch.tensor([(a, b) for a, (low, high) in RANGES.items() for b in range(low, high + 1, 10)]).float()
"""(313, 2)"""
SIGMA = 5.0
"""width of a soft answer and of the smoothing of the shares, in Lab units (sec. 2.1, 2.2)"""
GREY = 5.0
"""an image whose a and b are all within this of 0 has no colour (released code)"""
SAMPLE = 1_000
"""images that the shares of the colours are measured on, at most"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Name the colour of each place of an image from its lightness."""

    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    sees: ClassVar[str] = "lightness"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=3e-3, weight_decay=0.01)

    side: Part = 0.75
    """of the window that is shown, as a share of the image's"""
    every: Count = 4
    """pixels from one place whose colour is asked for to the next (the paper's output is a quarter of its input)"""
    neighbours: Annotated[int, *between(1, len(BINS))] = 5
    """nearest bins that share an answer (sec. 2.1; 10 in the released code); 1: the nearest alone"""
    uniform: Part = 0.5
    """share of the uniform distribution in what rare colours are weighed by (λ of eq. 4); 1: all count alike"""
    regress: bool = False
    """answer one colour, scored by its squared error: the paper's L2 baseline (eq. 1)"""
    temperature: Positive = 0.38
    """of the distribution whose mean is painted (eq. 5); 1: the mean, towards 0: the mode"""
    decoder: Natural = 0
    """channels of three more convolutions in front of the answer, the first of which doubles the map; 0: none"""

    def build(self, encoder: Encoder, source: Source) -> "Colorization":
        if not encoder.sides:
            raise UserError(
                f"colorization reads a map, and {encoder.name} makes none; try resnet_small or resnet18"
            )
        return Colorization(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """With --size 256: the released net that paints; windows of 176 px, Adam, about 450,000 steps on ImageNet.

    Its biases learn and decay as its matrices do (colorization_train_val_v2.prototxt).
    """

    encoder: ClassVar[str] = "colornet"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=14,
        batch=40,
        lr=3e-5,
        weight_decay=1e-3,
        warmup=0.0,
        drops=(200 / 450, 375 / 450),
        drop=1 / 3,
        decay_all=True,
    )

    side: Part = 0.6875
    """176 of 256 pixels"""
    decoder: Natural = 256
    """of a 4x4 deconvolution and two 3x3 convolutions"""


@dataclass(frozen=True)
class Features(Config):
    """With --size 256: the released net for features, AlexNet, whose answers are enlarged to every eighth pixel."""

    encoder: ClassVar[str] = "color_alexnet"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=28,
        batch=80,
        lr=3e-5,
        weight_decay=1e-3,
        warmup=0.0,
        drops=(24 / 45, 30 / 45, 40 / 45),
        drop=1 / 3,
        vector_lr=2.0,
    )

    side: Part = 0.703125
    """180 of 256 pixels"""
    every: Count = 8
    """pixels (released code)"""

    def build(self, encoder: Encoder, source: Source) -> "Colorization":
        method = super().build(encoder, source)
        for weight in method.head.parameters():  # fc8 has no filler, and Caffe's is zero
            nn.init.zeros_(weight)
        return method


@dataclass(frozen=True)
class Colourless:
    light: Tensor  # (B, 1, H, W) lightness, 0 … 1: all that the network sees
    image: Tensor  # (B, 3, H, W) in colour
    ab: Tensor  # (B, 2, h, w) the colours that are asked for: single pixels, no means
    coloured: Tensor  # (B,) whether there is any


def encode(ab: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """(B, 2, h, w) -> the nearest bins and their shares, exp(-d² / 2σ²) normalised, (B, k, h, w) each, nearest first.

    Of bins at equal distance, up to 0.06 in d², the one with the lower number is nearer.
    """
    flat = ab.movedim(1, -1).flatten(0, -2)  # (M, 2)
    bins = BINS.to(ab.device)
    distance = (flat[:, :1] - bins[:, 0]).square() + (flat[:, 1:] - bins[:, 1]).square()  # (M, 313)
    order = 2e-4 * torch.arange(len(bins), device=ab.device)
    nearest = (distance + order).topk(neighbours, largest=False).indices
    share = (-distance.gather(1, nearest) / (2 * SIGMA**2)).softmax(1)
    form = (len(ab), *ab.shape[2:], neighbours)
    return nearest.view(form).movedim(-1, 1), share.view(form).movedim(-1, 1)


def smoothed(count: Tensor) -> Tensor:
    """(313,) how often each bin was nearest -> the share of each colour, smoothed by a Gaussian (sec. 2.2)."""
    near = -torch.cdist(BINS, BINS).square() / (2 * SIGMA**2)
    kernel = near.softmax(0)  # (to, from): what a bin has is handed on whole
    return kernel @ (count / count.sum())


def weights(share: Tensor, uniform: float) -> Tensor:
    """(313,) shares of the colours -> what a place of each counts: 1 on average over the shares (eq. 4)."""
    weight = 1 / ((1 - uniform) * share + uniform / len(share))
    return weight / (share * weight).sum()


def annealed_mean(logits: Tensor, temperature: float) -> Tensor:
    """(B, 313, h, w) -> (B, 2, h, w): the mean of the bins under softmax(logits / T) (eq. 5)."""
    p = (logits.float() / temperature).softmax(1)
    return torch.einsum("bqhw,qc->bchw", p, BINS.to(p.device))


class Colorization(Method[Colourless]):
    share: Tensor  # (313,) of each colour among the images at hand
    weight: Tensor  # (313,) what a place of each colour counts

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.side = encoder.side(config.side)
        self.last = [*encoder.sides][-1]  # the deepest map
        channels = encoder.widths[self.last]
        answer = nn.Conv2d(config.decoder or channels, 2 if config.regress else len(BINS), 1)
        self.head = nn.Sequential(*decoder(channels, config.decoder), answer) if config.decoder else answer
        self.register_buffer("share", torch.full((len(BINS),), 1 / len(BINS)))
        self.register_buffer("weight", torch.ones(len(BINS)))

    def begin(self, context: Context) -> None:
        count = torch.zeros(len(BINS))
        for image in loader.sample(context.source, SAMPLE, context.rng.whole).image.split(100):
            nearest, _ = encode(self.true(images.to_float(image)), 1)
            count += nearest.flatten().bincount(minlength=len(BINS))
        share = smoothed(count)
        self.share.copy_(share)
        self.weight.copy_(weights(share, 1.0 if self.config.regress else self.config.uniform))

    def true(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2, h, w): ab of single pixels, `every` so many."""
        return images.lab(x[:, :, :: self.config.every, :: self.config.every])[:, 1:]

    def pretext(self, batch: Batch, rng: Rng) -> Colourless:
        x = images.to_float(batch.image)
        corner = rng.integers(len(x), 1, 2, high=x.shape[-1] - self.side + 1)
        x = images.flip(images.windows(x, corner, self.side)[:, 0], rng)
        ab = self.true(x)
        return Colourless(images.lightness(x), x, ab, ab.abs().amax((1, 2, 3)) > GREY)

    def answer(self, light: Tensor) -> Tensor:
        """(B, 1, H, W) lightness, 0 … 1 -> (B, 313, h, w) logits, or (B, 2, h, w) ab / AB_SPREAD by regression."""
        return self.head(self.encoder.look(light)[self.last])

    def loss(self, pretext: Colourless) -> Loss:
        answer = self.answer(pretext.light)
        answer = F.interpolate(answer, size=pretext.ab.shape[-2:], mode="bilinear").float()
        nearest, share = encode(pretext.ab, self.config.neighbours)
        if self.config.regress:
            cost = (answer - pretext.ab / images.AB_SPREAD).square().sum(1) / 2  # (B, h, w), eq. 1
        else:
            cost = -(share * answer.log_softmax(1).gather(1, nearest)).sum(1)  # eq. 2
        counts = self.weight[nearest[:, 0]] * pretext.coloured[:, None, None]  # eq. 3
        return Loss((counts * cost).mean(), {"unweighted": cost.mean()})

    def colours(self, image: Tensor, temperature: float | None = None) -> Tensor:
        """(B, 3, H, W), grey or not -> the ab that its lightness suggests, (B, 2, H, W)."""
        return self.painted(images.lightness(image), temperature)

    def painted(self, light: Tensor, temperature: float | None = None) -> Tensor:
        """(B, 1, H, W) lightness, 0 … 1 -> (B, 2, H, W) ab."""
        answer = self.answer(light)
        if self.config.regress:
            ab = images.AB_SPREAD * answer.float()
        else:
            ab = annealed_mean(answer, self.config.temperature if temperature is None else temperature)
        return F.interpolate(ab, size=light.shape[-2:], mode="bilinear")

    def solve(self, pretext: Colourless) -> Mapping[str, Tensor]:
        lab = torch.cat([100 * pretext.light, self.painted(pretext.light)], 1)
        return {"image": images.from_lab(lab)}

    def export(self) -> Encoder:
        return self.encoder


def decoder(channels: int, width: int) -> list[nn.Module]:
    """(B, channels, h, w) -> (B, width, 2·h, 2·w): conv8 of the released net."""
    return [
        nn.ConvTranspose2d(channels, width, 4, 2, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(inplace=True),
    ]
