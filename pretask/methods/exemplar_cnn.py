"""Exemplar-CNN: a patch of each image is a class of its own; which one is this distorted copy made of?

Dosovitskiy, Fischer, Springenberg, Riedmiller, Brox: Discriminative Unsupervised Feature Learning with Exemplar
Convolutional Neural Networks, NIPS 2014 and PAMI 2016, arXiv:1406.6909. Seeds lie where an image changes, in proportion
to the squared gradient, so that no class is an empty sky. Copies are distorted in place and colour, all at once, out of
the whole image, so that their borders show what is there. By default colours are changed by half of the published
ranges, on a logarithmic scale, and the head has a hidden layer: a small net learns more from that. With
`exemplar_cnn:clustered` seeds that a first half of the run cannot tell apart become one class for the second (PAMI,
sec. 3.4; how they are merged is this file's own choice: mutual nearest neighbours above a cosine).

Cost: the classifier has one row for each of the N seeds: 32,000 of 512 numbers take 66 MB, four times as much with their
gradients and what AdamW remembers, and a step of 256 images of 32 px takes 2.2 times as long as with 2,000
(bench/seeds.py). No copy is kept: the k-th of a seed follows from (seed, k) by a hash.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask import images
from pretask.config import TrainConfig
from pretask.context import Context
from pretask.encoders import Encoder
from pretask.encoders.heads import projector
from pretask.evals import knn
from pretask.methods.base import Method, MethodConfig
from pretask.rng import Rng
from pretask.types import Batch, Loss, Source, UserError

DRAWS = 16
"""numbers that decide a copy"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Name the seed patch of which a distorted copy was made."""

    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=256, lr=3e-3, weight_decay=0.01)

    seeds: int = 8000
    """classes: so many images, or all, give one patch each"""
    copies: int = 0
    """of each seed; 0: a new one every time"""
    patch: int = 32
    """side of a seed, pixels; at most 3/4 of the image's"""
    shift: float = 0.2
    """to either side, as a share of the seed's side"""
    scale: tuple[float, float] = (0.7, 1.4)
    """factor of the seed's side"""
    turn: float = 20.0
    """degrees, to either side"""
    axes: tuple[float, float] = (0.71, 1.41)
    """factor of the contrast along each principal axis of colour"""
    power: tuple[float, float] = (0.5, 2.0)
    """exponent of saturation and value"""
    stretch: tuple[float, float] = (0.84, 1.18)
    """factor of saturation and value"""
    offset: float = 0.05
    """added to hue, saturation and value at most, or taken away"""
    merge: float = 0.0
    """cosine above which seeds that are each other's nearest become one class in the next round; 0: never"""
    dropout: float = 0.0
    """of the features, before the head"""
    hidden: int = 512
    """width of a layer between features and classes; 0: none"""

    def build(self, encoder: Encoder, source: Source) -> "ExemplarCNN":
        return ExemplarCNN(self, encoder, len(source))


@dataclass(frozen=True)
class Clustered(Config):
    """Seeds that look alike after half of the run are one class in its second half."""

    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=256, lr=3e-3, weight_decay=0.01, rounds=2)

    merge: float = 0.9
    """cosine above which seeds that are each other's nearest become one class"""


@dataclass(frozen=True)
class Paper(Config):
    """The medium net on 96 px images (STL-10): 16,000 patches of 32 px, 100 copies each, 1.2 million steps."""

    encoder: ClassVar[str] = "exemplar"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=9600,
        batch=128,
        optimizer="sgd",
        lr=0.01,
        weight_decay=0.004,
        warmup=0.0,
        drops=(0.5, 0.7, 0.9),
        drop=1 / 3,
    )

    seeds: int = 16000
    """classes"""
    copies: int = 100
    """of each seed"""
    axes: tuple[float, float] = (0.5, 2.0)
    """factor of the contrast along each principal axis of colour"""
    power: tuple[float, float] = (0.25, 4.0)
    """exponent of saturation and value"""
    stretch: tuple[float, float] = (0.7, 1.4)
    """factor of saturation and value"""
    offset: float = 0.1
    """added to hue, saturation and value at most, or taken away"""
    dropout: float = 0.5
    """of the fully connected layer"""
    hidden: int = 0
    """the net has its own"""


@dataclass(frozen=True)
class Copies:
    image: Tensor  # (B, C, p, p), one distorted copy of each image's patch
    seed: Tensor  # (B,) its class, -1 for images that give none


def hashed(*keys: Tensor) -> Tensor:
    """(B,) whole numbers each -> (B, DRAWS) evenly spread in [0, 1): the same keys, the same numbers (splitmix64)."""
    x = torch.arange(1, DRAWS + 1, device=keys[0].device)
    for key in keys:
        x = (x + key[:, None]) * -0x61C8864680B583EB
        x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
        x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
        x = x ^ (x >> 31 & 0x1FFFFFFFF)
    return (x >> 40 & 0xFFFFFF) / 2**24


def between(u: Tensor, low: float, high: float) -> Tensor:
    """u in [0, 1) -> a factor from low to high, evenly on a logarithmic scale: halved as often as doubled."""
    return low * (high / low) ** u


def busy(x: Tensor, side: int, margin: int) -> Tensor:
    """(B, C, H, W) -> mean squared gradient of the patch around every centre that is `margin` from the border, (B, h, w)."""
    inset = margin - side // 2  # of the patches' upper left pixels
    ring = max(inset - 1, 0)
    grey = images.luma(x[..., ring : x.shape[-2] - ring, ring : x.shape[-1] - ring])
    steps = grey if inset else F.pad(grey, (1, 1, 1, 1), mode="replicate")
    across, down = steps[..., 1:-1, 2:] - steps[..., 1:-1, :-2], steps[..., 2:, 1:-1] - steps[..., :-2, 1:-1]
    energy = (across.square() + down.square())[:, 0]
    for _ in range(
        2
    ):  # along rows, then along columns: a mean over a window is a difference of two running sums
        ends = F.pad(energy.cumsum(2), (1, 0))
        energy = ((ends[..., side:] - ends[..., :-side]) / side).mT
    return energy


class ExemplarCNN(Method[Copies]):
    label: Tensor  # (N,) class of each image, -1 for those without
    axes: Tensor  # (C, C) principal axes of colour, in rows
    colour: Tensor  # (C,) mean

    def __init__(self, config: Config, encoder: Encoder, count: int):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.side = min(config.patch, 3 * encoder.size // 4)
        if self.side < 8:
            raise UserError(
                f"images of {encoder.size} px with --patch {config.patch} give seeds of {self.side} px; "
                "expected 8 px or more: give --size 11 and --patch 8, or larger ones"
            )
        reach = self.side * (config.scale[1] / 2 * math.sqrt(2) + config.shift)  # of a copy, from its centre
        self.margin = max(self.side // 2, min(math.ceil(reach), encoder.size // 2 - self.side // 8))
        self.seen = encoder.side(self.side / encoder.size)
        classes = min(config.seeds, count)
        label = torch.full((count,), -1)
        label[Rng(0, "seeds").permutation(count)[:classes]] = torch.arange(classes)
        self.register_buffer("label", label)
        self.register_buffer("axes", torch.eye(encoder.channels))
        self.register_buffer("colour", torch.full((encoder.channels,), 0.5))
        self.dropout = nn.Dropout(config.dropout)
        self.head = projector(*(w for w in (encoder.dim, config.hidden, classes) if w))

    def begin(self, context: Context) -> None:
        """Principal axes of the colours of up to 1,024 images."""
        some = context.rng.whole.permutation(len(context.source))[:1024].cpu()
        image = images.to_float(context.source.__getitems__(some).image)
        pixel = image.permute(0, 2, 3, 1).flatten(0, 2)  # (M, C)
        self.colour.copy_(pixel.mean(0))
        self.axes.copy_(torch.linalg.eigh(pixel.T.cov().view_as(self.axes)).eigenvectors.T)

    def begin_epoch(self, context: Context) -> Tensor | None:
        """At the start of a later round, seeds that look alike become one class. Images without a seed are not drawn."""
        now = context.progress
        if self.config.merge and now.round and now.first_of_round:
            self.join(context)
        return (self.label >= 0).float() if (self.label < 0).any() else None

    @torch.no_grad()
    def join(self, context: Context) -> None:
        """Each two seeds that are nearest to each other, and nearer than `merge`, are one class from now on."""
        index = (self.label >= 0).nonzero()[:, 0]
        self.eval()
        rows = []
        for some in index.split(256):
            batch = context.source.__getitems__(some.cpu()).to(index.device)
            rows.append(self.described(self.seeds(images.to_float(batch.image), batch.index)))
        self.train()
        z = torch.cat(rows)
        cosine, nearest = (found[:, 0] for found in knn.nearest(z, z, 1, exclude_self=True))
        here = torch.arange(len(z), device=z.device)
        pair = (nearest[nearest] == here) & (here < nearest) & (cosine > self.config.merge)
        label = self.label[index]
        root = torch.arange(int(label.max()) + 1, device=z.device)
        root[label[nearest[pair]]] = label[pair]
        while not torch.equal(root, root[root]):  # a class that joins one which joins a third
            root = root[root]
        joined = root.unique(return_inverse=True)[1]  # class before -> class from now on
        self.label[index] = joined[label]
        for values in self.head[-1].parameters():
            total = torch.zeros_like(values).index_add_(0, joined, values[: len(joined)])
            count = joined.bincount(minlength=len(values)).clamp(min=1)
            values.copy_(total / count.view(-1, *[1] * (values.ndim - 1)))

    # ---- the puzzle

    def corners(self, x: Tensor, index: Tensor) -> Tensor:
        """(B, 2): row and column of the upper left pixel of each image's seed; busy places are likelier."""
        energy = busy(x, self.side, self.margin) + 1e-9  # an image that shows nothing has its seed anywhere
        ends = energy.flatten(1).double().cumsum(1)
        at = torch.searchsorted(ends, hashed(index)[:, :1] * ends[:, -1:]).clamp(max=ends.shape[1] - 1)[:, 0]
        inset = self.margin - self.side // 2
        return torch.stack([at // energy.shape[2], at % energy.shape[2]], 1) + inset

    def seeds(self, x: Tensor, index: Tensor) -> Tensor:
        """(B, C, p, p): the patches themselves."""
        return images.windows(x, self.corners(x, index)[:, None], self.side)[:, 0]

    def placed(self, x: Tensor, index: Tensor, u: Tensor) -> Tensor:
        """Each seed moved, scaled and turned by what `u` (6, B) says, out of the whole image."""
        c, share = self.config, self.side / x.shape[-1]
        centre = (self.corners(x, index) + self.side / 2).flip(1) / x.shape[-1]  # (B, 2) of x and y
        across, down = (centre + c.shift * share * (2 * u[:2].T - 1)).T
        angle, side = math.radians(c.turn) * (2 * u[2] - 1), share * between(u[3], *c.scale)
        cos, sin = side * angle.cos(), side * angle.sin()
        turned = torch.stack([cos, -sin, 2 * across - 1, sin, cos, 2 * down - 1], 1).view(-1, 2, 3)
        grid = F.affine_grid(turned, [*x.shape[:2], self.side, self.side], align_corners=False)
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    def coloured(self, x: Tensor, u: Tensor) -> Tensor:
        """Contrast along the axes of colour, then hue, saturation and value, as `u` (10, B) says."""
        c, (p, q, m, n) = self.config, u[3:7, :, None, None]
        shift = c.offset * (2 * u[7:, :, None, None] - 1)  # (3, B, 1, 1)
        if x.shape[1] == 1:
            value = x[:, 0] ** between(p, *c.power) * between(m, *c.stretch) + shift[0]
            return value.clamp(0, 1)[:, None]
        factor = between(u[:3].T, *c.axes)  # (B, 3)
        mixed = torch.einsum("ad,ba,ae->bde", self.axes, factor, self.axes)  # project, stretch, project back
        mean = self.colour.view(3, 1, 1)
        x = (torch.einsum("bde,behw->bdhw", mixed, x - mean) + mean).clamp(0, 1)
        hue, chroma, value = images.to_hcv(x)
        saturation = chroma / value.clamp(min=1e-8)
        value = (value ** between(p, *c.power) * between(m, *c.stretch) + shift[0]).clamp(0, 1)
        saturation = (saturation ** between(q, *c.power) * between(n, *c.stretch) + shift[1]).clamp(0, 1)
        return images.from_hcv(hue + 6 * shift[2], saturation * value, value)

    def pretext(self, batch: Batch, rng: Rng) -> Copies:
        copy = rng.integers(len(batch), high=self.config.copies or 2**31)
        u = hashed(batch.index, copy).T  # (DRAWS, B)
        image = self.placed(images.to_float(batch.image), batch.index, u[:6])
        return Copies(self.coloured(image, u[6:]), self.label[batch.index])

    # ---- the solver

    def described(self, image: Tensor) -> Tensor:
        if self.seen != self.side:
            image = F.interpolate(image, size=(self.seen,) * 2, mode="bilinear")
        return self.encoder(image)["pool"]

    def logits(self, pretext: Copies) -> Tensor:
        return self.head(self.dropout(self.described(pretext.image)))[
            :, : int(self.label.max()) + 1
        ]  # (B, classes)

    def loss(self, pretext: Copies) -> Loss:
        logits = self.logits(pretext)
        accuracy = (logits.argmax(1) == pretext.seed).float().mean()
        return Loss(F.cross_entropy(logits, pretext.seed, ignore_index=-1), {"accuracy": accuracy})

    def solve(self, pretext: Copies) -> Mapping[str, Tensor]:
        return {"seed": self.logits(pretext).argmax(1)}

    def export(self) -> Encoder:
        return self.encoder
