"""Colorization as a proxy task: predict hue and chroma histograms at a few locations of a gray image from hypercolumns.

Larsson, Maire, Shakhnarovich: Colorization as a Proxy Task for Visual Understanding, CVPR 2017, arXiv:1703.04044, and
Learning Representations for Automatic Colorization, ECCV 2016, arXiv:1603.06668. Of the texts, only readers' notes on
sec. 3 of 2016 were read (rasin-tsukuba's weblog, for one), which do not number its equations. Numbers are
those of the released code: of 2017 gustavla/self-supervision, of 2016 gustavla/autocolorize. Predicting the color of a
location requires recognizing what is there. The prediction is made from the location's hypercolumn, all feature maps of the
network at that point, so that shallow maps provide edges and deep ones can encode semantics. Hypercolumns are gathered only at
the sampled locations; in training, a dense hypercolumn is never computed.

Gray has no hue, so the hue loss is weighted by chroma. The variants predict a and b of CIELab, as histograms or by regression.

**Differs:**
by default crops are stretched, and colors are predicted at few locations, from a window of one pixel. The bins of a and b have
equal widths; in 2016 they are quantiles of a normal distribution of standard deviation 25 (sec. 3.2). `:paper` takes the
network, its dropout, its schedule, its crops and its windows from 2016, but images of 224 px, the margin around the locations
and the weight decay of the head from 2017 (2016: 352 px, locations 96 px from the border, decay 5e-4). In 2016 crops are taken
from the whole photograph, here from its central square. The input of `:paper` is gray - 0.4488, as in 2016; by default it is
(gray - 0.5) / 0.25. The gray image in the hypercolumns is not normalized (the bias of the hidden layer absorbs this).
Running statistics of batch norm move by 0.1 per step (Caffe's default: 0.001).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.classic import caffe_xavier
from pretask.limits import FractionBelowOne, PositiveFraction, PositiveInt
from pretask.methods.base.method import Method, MethodConfig, Minimum
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.transforms.color import (
    AB_STD,
    channel_mean,
    lab_to_rgb,
    rgb_to_hcv,
    rgb_to_lab,
    rgb_to_lightness,
    tint,
)
from pretask.types import Batch, Loss, Source, UserError
from pretask.viz.puzzle import Panel, Points, Puzzle, reconstruction

Targets = Literal["hue_chroma", "lab_histogram", "lab"]

BINS = 32
"""number of bins of hue and of chroma (2016, sec. 3.2)"""
HUE_WEIGHT = 5.0
"""weight of the hue loss relative to the chroma loss (2016 and 2017)"""
HEAD_DECAY = 1e-6
"""weight decay of the head's matrices (2017)"""
MAX_AB = 110.0
"""about the largest a and b in sRGB"""
FADING = 0.03
"""threshold of chromatic fading (released code of 2016): predicted chroma fades if the mean over the bins of p_k exp(iθ_k) is
shorter than this; its length is 1/32 for a certain hue and 0 for a uniform distribution"""
PREDICTED_SIDE = 48
"""side of the grid of locations at which colors of a whole image are predicted; they are interpolated in between"""
CHUNK = 1024
"""locations of an image whose hypercolumns are held in memory at once when predicting"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Predict the hue and chroma of locations in a gray image."""

    family: ClassVar[str] = "pretext tasks"
    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    sees: ClassVar[str] = "mean"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=128, lr=3e-3, weight_decay=0.01)

    targets: Targets = "hue_chroma"
    """what is predicted: histograms of hue and chroma, histograms of a and b, or a and b themselves by regression"""
    num_locations: PositiveInt = 16
    """locations sampled per image and step (paper: 128 or 256 of 224 x 224)"""
    window: PositiveInt = 1
    """side of the window around a location from which its histogram is computed, pixels (2016: 7 of 224)"""
    hidden: PositiveInt = 256
    """width of the head's hidden layer (paper: 1024)"""
    dropout: FractionBelowOne = 0.0
    """dropout rate of the head's hidden layer (paper: 0.5)"""
    crop: PositiveFraction = 0.3
    """smallest fraction of the image's area in a crop; 1: the whole image"""
    stretch: bool = True
    """crops have aspect ratios of 3/4 to 4/3; no: squares from an image enlarged by a uniform factor"""
    side: PositiveFraction = 0.75
    """side of the resized crop, as a fraction of the image's; smaller crops train faster"""

    def smallest_side(self, encoder: Encoder) -> Minimum:
        """The window around a location must lie inside of the crop."""
        return Minimum(math.ceil((self.window // 2 * 2 + 0.5) / self.side), "or a smaller --window")

    def build(self, encoder: Encoder, source: Source) -> "ColorProxy":
        if not encoder.sides:
            raise UserError(
                f"color_proxy needs feature maps, and {encoder.name} has none; try resnet_small or resnet18"
            )
        return ColorProxy(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """VGG-16 with --size 224 and the schedule of 2016, 2 million steps; that of 2017 was not published."""

    encoder: ClassVar[str] = "color_vgg16"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=12,
        batch=8,
        optimizer="sgd",
        lr=1e-3,
        weight_decay=5e-4,
        warmup=0.0,
        milestones=(0.5, 0.75, 0.875),
        bias_lr_scale=2.0,
    )

    num_locations: PositiveInt = 128
    """of 224 x 224"""
    window: PositiveInt = 7
    """pixels (2016)"""
    hidden: PositiveInt = 1024
    """width of the head's hidden layer"""
    dropout: FractionBelowOne = 0.5
    """dropout rate of the head's hidden layer"""
    crop: PositiveFraction = (352 / 600) ** 2
    """352 px of a shorter side of 352 to 600 (2016)"""
    stretch: bool = False
    """aspect ratios are kept (2016)"""
    side: PositiveFraction = 1.0
    """full size"""

    def build(self, encoder: Encoder, source: Source) -> "ColorProxy":
        method = super().build(encoder, source)
        for head in method.heads.values():
            caffe_xavier(head.get_parameter("weight"))
        return method


@dataclass(frozen=True)
class Sampled:
    gray: Tensor  # (B, 1, H, W) mean of the channels: the network's input
    image: Tensor  # (B, 3, H, W)
    location: Tensor  # (B, N, 2) row and column
    target: Tensor  # (B, N, 2, K) histograms of hue and chroma, or of a and b; or (B, N, 2, 1) a and b
    weight: Tensor  # (B, N, 2) weights of the two losses


def square_crop(x: Tensor, size: int, rng: Rng, scale: tuple[float, float]) -> Tensor:
    """(B, C, H, W) -> (B, C, size, size): random squares of the image, enlarged by a uniform factor such that they cover
    a fraction `scale` of the area (released ExtendedImageData of 2016)."""
    factor = rng.uniform(len(x), 1, low=scale[1] ** -0.5, high=scale[0] ** -0.5)
    side = 1 / factor  # (B, 1), as a fraction of the image's
    center = side / 2 + rng.uniform(len(x), 2) * (1 - side)
    return augment.crop(x, torch.cat([center, side, side], 1), size)


def color_values(image: Tensor, targets: Targets) -> Tensor:
    """(B, 3, H, W) -> the predicted quantities (B, 2, H, W), in [0, 1] for histograms, in units of AB_STD for regression."""
    if targets == "hue_chroma":
        hue, chroma, _ = rgb_to_hcv(image)
        return torch.stack([(hue / 6).remainder(1), chroma], 1)
    ab = rgb_to_lab(image)[:, 1:]
    return ab / AB_STD if targets == "lab" else (ab / (2 * MAX_AB) + 0.5).clamp(0, 1)


def histograms(values: Tensor, location: Tensor, window: int) -> Tensor:
    """(B, 2, H, W) in [0, 1] -> (B, N, 2, K), normalized histograms of the window around each location."""
    pixels = augment.windows(values, location - window // 2, window)  # (B, N, 2, w, w)
    bins = (BINS * 0.99999 * pixels).long().flatten(3)
    counts = torch.zeros(*bins.shape[:3], BINS, device=values.device)
    return counts.scatter_add_(3, bins, torch.full_like(bins, 1 / window**2, dtype=torch.float))


def chroma_weight(gray: Tensor) -> Tensor:
    """Weight of the chroma loss at a gray value: 1 from 1/3 to 2/3, 0 at black and white, which have no chroma (2016)."""
    return (3 * torch.minimum(gray, 1 - gray)).clamp(max=1)


def feature_maps(encoder: Encoder, gray: Tensor) -> list[Tensor]:
    """The image itself (2016) and all feature maps of the encoder, (B, D, h, w) each."""
    return [gray, *(x for x in encoder.forward_input(gray).values() if x.ndim == 4)]


def feature_strides(encoder: Encoder) -> list[float]:
    """The stride of each feature map in pixels, measured by enlarging the image."""
    large = encoder.side(1 + 64 / encoder.size)
    small, grown = (
        [x.shape[-1] for x in feature_maps(encoder, torch.zeros(1, 1, s, s))] for s in (encoder.size, large)
    )
    if large == encoder.size:  # a network of fixed input size
        return [encoder.size / cells for cells in small]
    return [(large - encoder.size) / (b - a) for a, b in zip(small, grown, strict=True)]


def hypercolumns(maps: list[Tensor], strides: list[float], location: Tensor) -> Tensor:
    """Sample feature maps (B, D, h, w) at locations (B, N, 2) of the image -> (B, N, sum of D).

    Pixel y is at y / stride in a map, without an offset of half a cell; values are interpolated bilinearly and clamped to
    the last cell.
    """
    columns = []
    for x, stride in zip(maps, strides, strict=True):
        last = torch.tensor(x.shape[-2:], device=x.device) - 1
        grid = 2 * location / stride / last.clamp(min=1) - 1  # -1 is the first cell, 1 the last
        sampled = F.grid_sample(x, grid.flip(-1)[:, None], padding_mode="border", align_corners=True)
        columns.append(sampled[:, :, 0])  # (B, D, N)
    return torch.cat(columns, 1).transpose(1, 2)


class ColorProxy(Method[Sampled]):
    pretext_task = "Colorization at sampled locations"

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.names = ("hue", "chroma") if config.targets == "hue_chroma" else ("a", "b")
        self.side = encoder.side(config.side)
        self.margin = max(round(self.side / 7), config.window // 2)  # 32 of 224 px (released code)
        with torch.no_grad():
            self.strides = feature_strides(encoder.eval())
        outputs = 1 if config.targets == "lab" else BINS
        width = 1 + sum(encoder.widths[stage] for stage in encoder.sides)  # including the image itself
        self.hidden = nn.Linear(width, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.heads = nn.ModuleDict({name: nn.Linear(config.hidden, outputs) for name in self.names})
        nn.init.normal_(self.hidden.weight, std=1e-4)  # initial predictions are uniform (released code)
        for linear in (self.hidden, *self.heads.values()):
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        self.train()

    def pretext(self, batch: Batch, rng: Rng) -> Sampled:
        c, x = self.config, augment.to_float(batch.image)
        crop = augment.resized_crop if c.stretch else square_crop
        x = augment.flip(crop(x, self.side, rng, (c.crop, 1.0)), rng)
        location = self.margin + rng.integers(len(x), c.num_locations, 2, high=self.side - 2 * self.margin)
        gray, values = channel_mean(x), color_values(x, c.targets)

        def sample(of: Tensor) -> Tensor:
            return augment.windows(of, location, 1).flatten(2)  # (B, N, C)

        if c.targets == "hue_chroma":
            weight = torch.cat([HUE_WEIGHT * sample(values[:, 1:]), chroma_weight(sample(gray))], 2)
        else:
            weight = torch.ones_like(sample(values))
        target = sample(values)[..., None] if c.targets == "lab" else histograms(values, location, c.window)
        return Sampled(gray, x, location, target, weight)

    def outputs(self, maps: list[Tensor], location: Tensor) -> Tensor:
        """(B, N, 2, K) logits, or (B, N, 2, 1) a and b, at locations (B, N, 2)."""
        z = self.dropout(self.hidden(hypercolumns(maps, self.strides, location)).relu())
        return torch.stack([self.heads[name](z) for name in self.names], 2).float()

    def loss(self, pretext: Sampled) -> Loss:
        outputs = self.outputs(feature_maps(self.encoder, pretext.gray), pretext.location)
        if self.config.targets == "lab":
            loss = (outputs - pretext.target).square()
        else:
            loss = F.kl_div(outputs.log_softmax(-1), pretext.target, reduction="none")
        hue, chroma = (pretext.weight * loss.sum(-1)).mean((0, 1))
        # of hue and chroma D_KL(y_C‖f_C) + λ_H y_C D_KL(y_H‖f_H), of a and b D_KL of each or squares (2016, sec. 3.2)
        return Loss(hue + chroma, dict(zip(self.names, (hue, chroma), strict=True)))

    def predict(self, pretext: Sampled) -> Mapping[str, Tensor]:
        """The whole image in its predicted colors, with its own gray values."""
        return {"image": self.colorize(pretext.gray)}

    def predict_ab(self, image: Tensor, temperature: float | None = None) -> Tensor:
        """(B, 3, H, W), gray or not -> ab predicted from the mean of the channels, (B, 2, H, W)."""
        return rgb_to_lab(self.colorize(channel_mean(image), 1.0 if temperature is None else temperature))[
            :, 1:
        ]

    def colorize(self, gray: Tensor, temperature: float = 1.0) -> Tensor:
        """(B, 1, H, W) -> (B, 3, H, W), from predictions on a grid with a side of up to PREDICTED_SIDE."""
        maps, (h, w) = feature_maps(self.encoder, gray), gray.shape[2:]
        n, m = min(h, PREDICTED_SIDE), min(w, PREDICTED_SIDE)
        rows, columns = (torch.linspace(0, end - 1, k, device=gray.device) for end, k in ((h, n), (w, m)))
        location = torch.cartesian_prod(rows, columns).expand(len(gray), -1, -1)  # (B, n·m, 2)
        outputs = (self.outputs(maps, chunk) for chunk in location.split(CHUNK, 1))
        color = torch.cat([self.expected_color(each, temperature) for each in outputs], 1)
        color = color.transpose(1, 2).unflatten(2, (n, m))
        return self.apply_color(gray, F.interpolate(color, (h, w), mode="bilinear", align_corners=True))

    def expected_color(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """(B, N, 2, K) -> cosine and sine of the hue and the chroma, (B, N, 3), or a and b, (B, N, 2)."""
        if self.config.targets == "lab":
            return AB_STD * outputs[..., 0]
        p, center = (
            (outputs / temperature).softmax(-1),
            (torch.arange(BINS, device=outputs.device) + 0.5) / BINS,
        )
        if self.config.targets == "lab_histogram":
            return 2 * MAX_AB * (p @ center - 0.5)
        angle = 2 * math.pi * center
        # of the hue K·z, the sum of p_k exp(iθ_k) (2016, sec. 3.3)
        return torch.stack([p[:, :, 0] @ angle.cos(), p[:, :, 0] @ angle.sin(), p[:, :, 1] @ center], 2)

    def apply_color(self, gray: Tensor, color: Tensor) -> Tensor:
        """Color gray images (B, 1, H, W) by the output of `expected_color`, (B, 3 or 2, H, W) -> (B, 3, H, W)."""
        if self.config.targets == "hue_chroma":
            x, y, chroma = color.unbind(1)
            hue = 3 / math.pi * torch.atan2(y, x)
            return tint(gray, hue, chroma * (torch.hypot(x, y) / BINS / FADING).clamp(max=1))
        light = rgb_to_lightness(gray.expand(-1, 3, -1, -1))
        hue, chroma, _ = rgb_to_hcv(lab_to_rgb(torch.cat([100 * light, color], 1)))
        return tint(gray, hue, chroma)

    def groups(self) -> Iterable[dict[str, Any]]:
        head = [self.hidden.weight, *(layer.weight for layer in self.heads.values())]
        for group in super().groups():
            yield group | {"params": [p for p in group["params"] if all(p is not w for w in head)]}
        yield {"params": head, "weight_decay": HEAD_DECAY}

    def show(
        self, pretext: Sampled, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        for i, image in enumerate(pretext.image):
            locations = Points((pretext.location[i] + 0.5) / image.shape[-1])
            own = [answers["image"][i]] if answers else []
            yield Puzzle(
                [Panel("grayscale", pretext.gray[i], [locations])],
                [Panel("in color", image)],
                [Panel("network", x) for x in own],
                [reconstruction("What color is each location?", "as in the photograph", image, *own)],
            )

    def export(self) -> Encoder:
        return self.encoder
