"""Colour proxy: look at a grey image and say, at a few places, how its hue and its chroma are distributed.

Larsson, Maire, Shakhnarovich: Colorization as a Proxy Task for Visual Understanding, CVPR 2017, arXiv:1703.04044, and
Learning Representations for Automatic Colorization, ECCV 2016, arXiv:1603.06668. Of the texts, only readers' notes on
sec. 3 of 2016 were read (rasin-tsukuba's weblog, for one), which give its equations no numbers. Numbers are
those of the released code: of 2017 gustavla/self-supervision, of 2016 gustavla/autocolorize. Which colour a place has
takes knowing what stands there. The answer is read from the hypercolumn of the place, all maps of the network at that
point, so that edges come from shallow maps and deep ones are left to say what things are. Only the places that are
asked for are gathered: a hypercolumn of the whole image is never made in training.

Hue is an angle that grey has none of, so it costs as much as there is chroma. The variants ask for a and b of CIELab,
as histograms or, as painting by regression does, as two numbers.

**Differs:**
by default crops are stretched, and colors are asked for at few places, each by its own color. The bins of a and b are
of equal width, where 2016 takes quantiles of a normal distribution of deviation 25 (sec. 3.2). `:paper` takes the net,
its dropout, its course, its crops and its windows from 2016, but images of 224 px, the margin around the places and
the decay of the head from 2017 (2016: 352 px, places 96 px from the border, decay 5e-4). In 2016 the crop came from
the whole photograph, here it comes from its central square. `:paper` is given gray less 0.4488, as in 2016; other nets by
default (gray - 0.5) / 0.25. In hypercolumns gray itself stands without that (the bias of the hidden layer takes it up).
Running statistics of batch norm move by 0.1 a step (Caffe's default: 0.001).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.classic import caffe_xavier
from pretask.limits import Below, Count, Part
from pretask.methods.base.method import Method, MethodConfig
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Source, UserError

Targets = Literal["hue_chroma", "lab_histogram", "lab"]

BINS = 32
"""of hue and of chroma (2016, sec. 3.2)"""
HUE = 5.0
"""weight of hue beside chroma (2016 and 2017)"""
HEAD_DECAY = 1e-6
"""weight decay of the head's matrices (2017)"""
WIDEST = 110.0
"""of a and b: about the largest of sRGB"""
FADED = 0.03
"""length of the mean over all bins of their hue times its probability, below which `solve` lets the colour fade: 1/32 is
that of a hue without doubt, 0 that of all alike (chromatic fading, released code of 2016)"""
PAINTED = 48
"""places along a side at which `solve` asks for colours; it fills in between them"""
CHUNK = 1024
"""places of an image whose hypercolumns `solve` holds at once"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Tell the hue and the chroma of places in a grey image."""

    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    sees: ClassVar[str] = "mean"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=128, lr=3e-3, weight_decay=0.01)

    targets: Targets = "hue_chroma"
    """histograms of hue and chroma; histograms of a and b; or a and b themselves, by squared error"""
    places: Count = 16
    """of an image at which colours are asked for, new ones each time (paper: 128 or 256 of 224 x 224)"""
    window: Count = 1
    """pixels along a side around a place whose colours are counted; 1: its own colour alone (2016: 7 of 224)"""
    hidden: Count = 256
    """width of the head's hidden layer (paper: 1024)"""
    dropout: Below = 0.0
    """of the head's hidden layer (paper: 0.5)"""
    crop: Part = 0.3
    """smallest share of the area that is shown; 1 shows the whole image"""
    stretch: bool = True
    """crops are up to 4/3 as wide as high, or as high as wide; no: squares, of an image enlarged by a uniform factor"""
    side: Part = 0.75
    """of what a crop shows, as a share of the image's; smaller puzzles, and more of them in the same time"""

    def build(self, encoder: Encoder, source: Source) -> "ColorProxy":
        if not encoder.sides:
            raise UserError(
                f"color_proxy reads maps, and {encoder.name} makes none; try resnet_small or resnet18"
            )
        return ColorProxy(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """VGG-16 with --size 224 and the learning rate of 2016: 2 million steps; that of 2017 was not published."""

    encoder: ClassVar[str] = "color_vgg16"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=12,
        batch=8,
        optimizer="sgd",
        lr=1e-3,
        weight_decay=5e-4,
        warmup=0.0,
        drops=(0.5, 0.75, 0.875),
        vector_lr=2.0,
    )

    places: Count = 128
    """of 224 x 224"""
    window: Count = 7
    """pixels (2016)"""
    hidden: Count = 1024
    """width of the head's hidden layer"""
    dropout: Below = 0.5
    """of the head's hidden layer"""
    crop: Part = (352 / 600) ** 2
    """352 px of a shorter side of 352 to 600 (2016)"""
    stretch: bool = False
    """shapes stay as they are (2016)"""
    side: Part = 1.0
    """full size"""

    def build(self, encoder: Encoder, source: Source) -> "ColorProxy":
        method = super().build(encoder, source)
        for head in method.heads.values():
            caffe_xavier(head.get_parameter("weight"))
        return method


@dataclass(frozen=True)
class Sampled:
    grey: Tensor  # (B, 1, H, W) mean of the channels: all that the network sees
    image: Tensor  # (B, 3, H, W)
    at: Tensor  # (B, N, 2) row and column of each place
    target: Tensor  # (B, N, 2, K) histograms of hue and chroma, or of a and b; or (B, N, 2, 1) a and b
    weight: Tensor  # (B, N, 2) of the two


def enlarged(x: Tensor, size: int, rng: Rng, scale: tuple[float, float]) -> Tensor:
    """(B, C, H, W) -> (B, C, size, size): squares out of images whose side was multiplied by a factor, uniform from and to
    where they show `scale` of the area (released ExtendedImageData of 2016)."""
    factor = rng.uniform(len(x), 1, low=scale[1] ** -0.5, high=scale[0] ** -0.5)
    share = 1 / factor  # (B, 1) of the side
    centre = share / 2 + rng.uniform(len(x), 2) * (1 - share)
    return images.crop(x, torch.cat([centre, share, share], 1), size)


def coordinates(image: Tensor, targets: Targets) -> Tensor:
    """(B, 3, H, W) -> what is asked for, (B, 2, H, W): in [0, 1] where it is put into bins, else in units of AB_SPREAD."""
    if targets == "hue_chroma":
        hue, chroma, _ = images.to_hcv(image)
        return torch.stack([(hue / 6).remainder(1), chroma], 1)
    ab = images.lab(image)[:, 1:]
    return ab / images.AB_SPREAD if targets == "lab" else (ab / (2 * WIDEST) + 0.5).clamp(0, 1)


def histograms(values: Tensor, at: Tensor, window: int) -> Tensor:
    """(B, 2, H, W) in [0, 1] -> (B, N, 2, K), the share of each bin in the window around each place."""
    seen = images.windows(values, at - window // 2, window)  # (B, N, 2, w, w)
    bins = (BINS * 0.99999 * seen).long().flatten(3)
    counts = torch.zeros(*bins.shape[:3], BINS, device=values.device)
    return counts.scatter_add_(3, bins, torch.full_like(bins, 1 / window**2, dtype=torch.float))


def tells(grey: Tensor) -> Tensor:
    """How much chroma counts at a grey value: 1 from 1/3 to 2/3, 0 at black and white, which have none (2016)."""
    return (3 * torch.minimum(grey, 1 - grey)).clamp(max=1)


def maps(encoder: Encoder, grey: Tensor) -> list[Tensor]:
    """The image itself (2016) and every map that the encoder makes of it, (B, D, h, w) each."""
    return [grey, *(x for x in encoder.look(grey).values() if x.ndim == 4)]


def strides(encoder: Encoder) -> list[float]:
    """Pixels from one cell of each map to the next: what an image grows by over what its map grows by."""
    large = encoder.side(1 + 64 / encoder.size)
    small, grown = (
        [x.shape[-1] for x in maps(encoder, torch.zeros(1, 1, s, s))] for s in (encoder.size, large)
    )
    if large == encoder.size:  # a net of one size alone: the cells share the image out
        return [encoder.size / cells for cells in small]
    return [(large - encoder.size) / (b - a) for a, b in zip(small, grown, strict=True)]


def hypercolumns(layers: list[Tensor], strides: list[float], at: Tensor) -> Tensor:
    """Maps (B, D, h, w) read at places (B, N, 2) of the image -> (B, N, sum of D).

    Place y is y / stride of a map, bilinearly between its cells and never beyond the last; no half cell is added.
    """
    columns = []
    for x, stride in zip(layers, strides, strict=True):
        last = torch.tensor(x.shape[-2:], device=x.device) - 1
        grid = 2 * at / stride / last.clamp(min=1) - 1  # -1 is the first cell, 1 the last
        read = F.grid_sample(x, grid.flip(-1)[:, None], padding_mode="border", align_corners=True)
        columns.append(read[:, :, 0])  # (B, D, N)
    return torch.cat(columns, 1).transpose(1, 2)


class ColorProxy(Method[Sampled]):
    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.names = ("hue", "chroma") if config.targets == "hue_chroma" else ("a", "b")
        self.side = encoder.side(config.side)
        self.margin = max(round(self.side / 7), config.window // 2)  # 32 of 224 px (released code)
        with torch.no_grad():
            self.strides = strides(encoder.eval())
        answers = 1 if config.targets == "lab" else BINS
        width = 1 + sum(encoder.widths[stage] for stage in encoder.sides)  # with the image itself
        self.hidden = nn.Linear(width, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.heads = nn.ModuleDict({name: nn.Linear(config.hidden, answers) for name in self.names})
        nn.init.normal_(self.hidden.weight, std=1e-4)  # so that the start is uniform (released code)
        for linear in (self.hidden, *self.heads.values()):
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        self.train()

    def pretext(self, batch: Batch, rng: Rng) -> Sampled:
        c, x = self.config, images.to_float(batch.image)
        cropped = images.resized_crop if c.stretch else enlarged
        x = images.flip(cropped(x, self.side, rng, (c.crop, 1.0)), rng)
        at = self.margin + rng.integers(len(x), c.places, 2, high=self.side - 2 * self.margin)
        grey, values = images.mean(x), coordinates(x, c.targets)

        def there(of: Tensor) -> Tensor:
            return images.windows(of, at, 1).flatten(2)  # (B, N, C)

        if c.targets == "hue_chroma":
            weight = torch.cat([HUE * there(values[:, 1:]), tells(there(grey))], 2)
        else:
            weight = torch.ones_like(there(values))
        target = there(values)[..., None] if c.targets == "lab" else histograms(values, at, c.window)
        return Sampled(grey, x, at, target, weight)

    def answers(self, layers: list[Tensor], at: Tensor) -> Tensor:
        """(B, N, 2, K) logits, or (B, N, 2, 1) a and b, at places (B, N, 2)."""
        z = self.dropout(self.hidden(hypercolumns(layers, self.strides, at)).relu())
        return torch.stack([self.heads[name](z) for name in self.names], 2).float()

    def loss(self, pretext: Sampled) -> Loss:
        answers = self.answers(maps(self.encoder, pretext.grey), pretext.at)
        if self.config.targets == "lab":
            cost = (answers - pretext.target).square()
        else:
            cost = F.kl_div(answers.log_softmax(-1), pretext.target, reduction="none")
        hue, chroma = (pretext.weight * cost.sum(-1)).mean((0, 1))
        # of hue and chroma D_KL(y_C‖f_C) + λ_H y_C D_KL(y_H‖f_H), of a and b D_KL of each or squares (2016, sec. 3.2)
        return Loss(hue + chroma, dict(zip(self.names, (hue, chroma), strict=True)))

    def solve(self, pretext: Sampled) -> Mapping[str, Tensor]:
        """The whole image in the colours to be expected, on its own grey."""
        return {"image": self.coloured(pretext.grey)}

    def colours(self, image: Tensor, temperature: float | None = None) -> Tensor:
        """(B, 3, H, W), grey or not -> the ab that the mean of its channels suggests, (B, 2, H, W)."""
        return images.lab(self.coloured(images.mean(image), 1.0 if temperature is None else temperature))[
            :, 1:
        ]

    def coloured(self, grey: Tensor, temperature: float = 1.0) -> Tensor:
        """(B, 1, H, W) -> (B, 3, H, W), by what is expected at up to PAINTED places along a side."""
        layers, (h, w) = maps(self.encoder, grey), grey.shape[2:]
        n, m = min(h, PAINTED), min(w, PAINTED)
        down, across = (torch.linspace(0, end - 1, k, device=grey.device) for end, k in ((h, n), (w, m)))
        at = torch.cartesian_prod(down, across).expand(len(grey), -1, -1)  # (B, n·m, 2)
        answers = (self.answers(layers, some) for some in at.split(CHUNK, 1))
        colour = torch.cat([self.expected(each, temperature) for each in answers], 1)
        colour = colour.transpose(1, 2).unflatten(2, (n, m))
        return self.painted(grey, F.interpolate(colour, (h, w), mode="bilinear", align_corners=True))

    def expected(self, answers: Tensor, temperature: float = 1.0) -> Tensor:
        """(B, N, 2, K) -> cosine and sine of the hue and the chroma, (B, N, 3), or a and b, (B, N, 2)."""
        if self.config.targets == "lab":
            return images.AB_SPREAD * answers[..., 0]
        p, middle = (
            (answers / temperature).softmax(-1),
            (torch.arange(BINS, device=answers.device) + 0.5) / BINS,
        )
        if self.config.targets == "lab_histogram":
            return 2 * WIDEST * (p @ middle - 0.5)
        turn = 2 * math.pi * middle
        # of the hue K·z, the sum of p_k exp(iθ_k) (2016, sec. 3.3)
        return torch.stack([p[:, :, 0] @ turn.cos(), p[:, :, 0] @ turn.sin(), p[:, :, 1] @ middle], 2)

    def painted(self, grey: Tensor, colour: Tensor) -> Tensor:
        """What `expected` gives, (B, 3 or 2, H, W), on a grey (B, 1, H, W) -> (B, 3, H, W) of that mean."""
        if self.config.targets == "hue_chroma":
            x, y, chroma = colour.unbind(1)
            hue = 3 / math.pi * torch.atan2(y, x)
            return images.tinted(grey, hue, chroma * (torch.hypot(x, y) / BINS / FADED).clamp(max=1))
        light = images.lightness(grey.expand(-1, 3, -1, -1))
        hue, chroma, _ = images.to_hcv(images.from_lab(torch.cat([100 * light, colour], 1)))
        return images.tinted(grey, hue, chroma)

    def groups(self) -> Iterable[dict[str, Any]]:
        head = [self.hidden.weight, *(layer.weight for layer in self.heads.values())]
        for group in super().groups():
            yield group | {"params": [p for p in group["params"] if all(p is not w for w in head)]}
        yield {"params": head, "weight_decay": HEAD_DECAY}

    def export(self) -> Encoder:
        return self.encoder
