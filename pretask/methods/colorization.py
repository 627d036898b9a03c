"""Colorization: classify the color of each location of an image from its lightness.

Zhang, Isola, Efros: Colorful Image Colorization, ECCV 2016, arXiv:1603.08511; the released code is that of the caffe
branch of richzhang/colorization. Coloring an object requires recognizing it. Colors are CIELab's ab in 313 classes, because
the mean of an object's possible colors is gray. Saturated colors are rare, so locations are weighted by how rare their color
is (class rebalancing); the color distribution is measured on the training images when a run begins. Images without color are
left out of the loss.

**Differs:**
the color distribution is that of the training images, not ImageNet's. The weight of a location is part of the loss; the
released layer multiplies only the gradient and prints the loss without it ("unweighted" in the log). The input of `:paper` and
`:features` is L - 50, as released; by default it is (L - 50) / 25. Weights are initialized by torch's defaults, divided by 25
in the first layer of the published networks; the released ones are fitted to images by k-means and scaled so that every
output starts with a standard deviation of 1 (fc6, fc7 and fc8 of `:features` are as released). Adam has decoupled weight decay
and β₂ 0.999 (`:paper`: 0.99, and the decay is added to the gradient). Running statistics of batch norm move by 0.1 per step
(Caffe's default: 0.001). The learning rate of `:paper` is divided by 3 at the paper's steps; the released solver divides it by
10 every 225,000 of 500,000 steps. Images are cropped to their central square; the cropping of the released database was not
read. Recognition of colorized images (sec. 3.1) is measured with an EfficientNet-Lite0, by docs/results/recognition.py,
instead of a VGG-16, whose weights were not available.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.data import loader
from pretask.encoders import Encoder
from pretask.limits import NonNegativeInt, PositiveFloat, PositiveFraction, PositiveInt, between
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method, MethodConfig
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.transforms.color import AB_STD, lab_to_rgb, rgb_to_lab, rgb_to_lightness
from pretask.types import Batch, Loss, Source, UserError
from pretask.viz.puzzle import Panel, Puzzle, reconstruction

B_RANGES = {
    **{-90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100)},
    **{-30: (-50, 100), -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90)},
    **{30: (-90, 90), 40: (-100, 90), 50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70)},
    **{90: (-110, 70), 100: (-90, 0)},
}
"""a -> the first and last b of its bins, 10 apart: the released list, which follows no simple rule of the gamut"""
BINS = torch.tensor([(a, b) for a, (low, high) in B_RANGES.items() for b in range(low, high + 1, 10)]).float()
"""(313, 2): ab of the bin centers"""
SIGMA = 5.0
"""standard deviation of the soft encoding and of the smoothing of the distribution, in Lab units (sec. 2.1, 2.2)"""
GRAY = 5.0
"""images whose a and b all lie within this distance of 0 have no color (released code)"""
SAMPLE = 1_000
"""largest number of images on which the color distribution is measured"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Classify the color of each location of an image from its lightness."""

    family: ClassVar[str] = "pretext tasks"
    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    sees: ClassVar[str] = "lightness"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=3e-3, weight_decay=0.01)

    side: PositiveFraction = 0.75
    """side of the crop, as a fraction of the image's"""
    stride: PositiveInt = 4
    """pixels between locations whose color is predicted (the paper's output has a quarter of the input's side)"""
    num_neighbors: Annotated[int, *between(1, len(BINS))] = 5
    """nearest bins in the soft encoding of a color (sec. 2.1; 10 in the released code); 1: one-hot encoding"""
    uniform: PositiveFraction = 0.5
    """weight of the uniform distribution in the class rebalancing (λ of eq. 4); 1: no rebalancing"""
    regression: bool = False
    """predict ab by regression with squared error, the paper's L2 baseline (eq. 1)"""
    temperature: PositiveFloat = 0.38
    """temperature of the annealed mean that gives the predicted color (eq. 5); 1: the mean, near 0: the mode"""
    decoder: NonNegativeInt = 0
    """channels of three additional convolutions before the output, the first of which doubles the resolution; 0: none"""

    def build(self, encoder: Encoder, source: Source) -> "Colorization":
        if not encoder.sides:
            raise UserError(
                f"colorization needs feature maps, and {encoder.name} has none; try resnet_small or resnet18"
            )
        return Colorization(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """With --size 256: the released colorization network; crops of 176 px, Adam, about 450,000 steps on ImageNet.

    Biases have the learning rate and weight decay of the matrices (colorization_train_val_v2.prototxt).
    """

    encoder: ClassVar[str] = "colornet"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=14,
        batch=40,
        lr=3e-5,
        weight_decay=1e-3,
        warmup=0.0,
        milestones=(200 / 450, 375 / 450),
        gamma=1 / 3,
        decay_all=True,
    )

    side: PositiveFraction = 0.6875
    """176 of 256 pixels"""
    decoder: NonNegativeInt = 256
    """a 4x4 transposed convolution and two 3x3 convolutions"""


@dataclass(frozen=True)
class Features(Config):
    """With --size 256: the released AlexNet for feature learning; its outputs are upsampled to a stride of 8 pixels."""

    encoder: ClassVar[str] = "color_alexnet"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=28,
        batch=80,
        lr=3e-5,
        weight_decay=1e-3,
        warmup=0.0,
        milestones=(24 / 45, 30 / 45, 40 / 45),
        gamma=1 / 3,
        bias_lr_scale=2.0,
    )

    side: PositiveFraction = 0.703125
    """180 of 256 pixels"""
    stride: PositiveInt = 8
    """pixels (released code)"""

    def build(self, encoder: Encoder, source: Source) -> "Colorization":
        method = super().build(encoder, source)
        for weight in method.head.parameters():  # fc8 has no filler; Caffe's default is zero
            nn.init.zeros_(weight)
        return method


@dataclass(frozen=True)
class Grayscale:
    lightness: Tensor  # (B, 1, H, W) in 0 … 1: the network's input
    image: Tensor  # (B, 3, H, W) in color
    ab: Tensor  # (B, 2, h, w) the target colors, of single pixels, not averages
    colored: Tensor  # (B,) whether the image has color


def soft_encode(ab: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """(B, 2, h, w) -> the nearest bins and their weights, exp(-d² / 2σ²) normalized, (B, k, h, w) each, nearest first.

    Of bins at equal distance (to 0.06 in d²), the one with the lower index counts as nearer.
    """
    flat = ab.movedim(1, -1).flatten(0, -2)  # (M, 2)
    bins = BINS.to(ab.device)
    distance = (flat[:, :1] - bins[:, 0]).square() + (flat[:, 1:] - bins[:, 1]).square()  # (M, 313)
    order = 2e-4 * torch.arange(len(bins), device=ab.device)
    nearest = (distance + order).topk(num_neighbors, largest=False).indices
    weight = (-distance.gather(1, nearest) / (2 * SIGMA**2)).softmax(1)
    shape = (len(ab), *ab.shape[2:], num_neighbors)
    return nearest.view(shape).movedim(-1, 1), weight.view(shape).movedim(-1, 1)


def smooth(count: Tensor) -> Tensor:
    """(313,) counts of the bins -> the color distribution, smoothed by a Gaussian (sec. 2.2)."""
    log_kernel = -torch.cdist(BINS, BINS).square() / (2 * SIGMA**2)
    kernel = log_kernel.softmax(0)  # (to, from): each bin's mass is redistributed completely
    return kernel @ (count / count.sum())


def rebalancing_weights(prior: Tensor, uniform: float) -> Tensor:
    """(313,) color distribution -> the weight of each class, with mean 1 under the distribution (eq. 4)."""
    weight = 1 / ((1 - uniform) * prior + uniform / len(prior))
    return weight / (prior * weight).sum()


def annealed_mean(logits: Tensor, temperature: float) -> Tensor:
    """(B, 313, h, w) -> (B, 2, h, w): the mean of the bins under softmax(logits / T) (eq. 5)."""
    p = (logits.float() / temperature).softmax(1)
    return torch.einsum("bqhw,qc->bchw", p, BINS.to(p.device))


class Colorization(Method[Grayscale]):
    pretext_task = "Colorization"
    prior: Tensor  # (313,) color distribution of the training images
    weight: Tensor  # (313,) rebalancing weight of each class

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.side = encoder.side(config.side)
        self.last = [*encoder.sides][-1]  # stage of the deepest feature map
        channels = encoder.widths[self.last]
        output = nn.Conv2d(config.decoder or channels, 2 if config.regression else len(BINS), 1)
        self.head = nn.Sequential(*decoder(channels, config.decoder), output) if config.decoder else output
        self.register_buffer("prior", torch.full((len(BINS),), 1 / len(BINS)))
        self.register_buffer("weight", torch.ones(len(BINS)))

    def begin(self, context: Context) -> None:
        count = torch.zeros(len(BINS))
        for image in loader.sample(context.source, SAMPLE, context.rng.unsharded).image.split(100):
            nearest, _ = soft_encode(self.target_ab(augment.to_float(image)), 1)
            count += nearest.flatten().bincount(minlength=len(BINS))
        prior = smooth(count)
        self.prior.copy_(prior)
        self.weight.copy_(rebalancing_weights(prior, 1.0 if self.config.regression else self.config.uniform))

    def target_ab(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2, h, w): ab of every `stride`-th pixel."""
        return rgb_to_lab(x[:, :, :: self.config.stride, :: self.config.stride])[:, 1:]

    def pretext(self, batch: Batch, rng: Rng) -> Grayscale:
        x = augment.to_float(batch.image)
        corner = rng.integers(len(x), 1, 2, high=x.shape[-1] - self.side + 1)
        x = augment.flip(augment.windows(x, corner, self.side)[:, 0], rng)
        ab = self.target_ab(x)
        return Grayscale(rgb_to_lightness(x), x, ab, ab.abs().amax((1, 2, 3)) > GRAY)

    def output(self, lightness: Tensor) -> Tensor:
        """(B, 1, H, W) lightness in 0 … 1 -> (B, 313, h, w) logits, or with regression (B, 2, h, w) ab / AB_STD."""
        return self.head(self.encoder.forward_input(lightness)[self.last])

    def loss(self, pretext: Grayscale) -> Loss:
        output = self.output(pretext.lightness)
        output = F.interpolate(output, size=pretext.ab.shape[-2:], mode="bilinear").float()
        nearest, target = soft_encode(pretext.ab, self.config.num_neighbors)
        if self.config.regression:
            loss = (output - pretext.ab / AB_STD).square().sum(1) / 2  # (B, h, w), eq. 1
        else:
            loss = -(target * output.log_softmax(1).gather(1, nearest)).sum(1)  # eq. 2
        weight = self.weight[nearest[:, 0]] * pretext.colored[:, None, None]  # eq. 3
        return Loss((weight * loss).mean(), {"unweighted": loss.mean()})

    def predict_ab(self, image: Tensor, temperature: float | None = None) -> Tensor:
        """(B, 3, H, W), gray or not -> ab predicted from the lightness, (B, 2, H, W)."""
        return self.lightness_to_ab(rgb_to_lightness(image), temperature)

    def lightness_to_ab(self, lightness: Tensor, temperature: float | None = None) -> Tensor:
        """(B, 1, H, W) lightness in 0 … 1 -> (B, 2, H, W) ab."""
        output = self.output(lightness)
        if self.config.regression:
            ab = AB_STD * output.float()
        else:
            ab = annealed_mean(output, self.config.temperature if temperature is None else temperature)
        return F.interpolate(ab, size=lightness.shape[-2:], mode="bilinear")

    def predict(self, pretext: Grayscale) -> Mapping[str, Tensor]:
        lab = torch.cat([100 * pretext.lightness, self.lightness_to_ab(pretext.lightness)], 1)
        return {"image": lab_to_rgb(lab)}

    def show(
        self, pretext: Grayscale, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        for i, image in enumerate(pretext.image):
            own = [answers["image"][i]] if answers else []
            yield Puzzle(
                [Panel("lightness", pretext.lightness[i])],
                [Panel("in color", image)],
                [Panel("network", x) for x in own],
                [reconstruction("What color is it?", "as in the photograph", image, *own)],
            )

    def export(self) -> Encoder:
        return self.encoder


def decoder(channels: int, width: int) -> list[nn.Module]:
    """(B, channels, h, w) -> (B, width, 2·h, 2·w): conv8 of the released network."""
    return [
        nn.ConvTranspose2d(channels, width, 4, 2, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(inplace=True),
    ]
