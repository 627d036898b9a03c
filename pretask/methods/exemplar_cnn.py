"""Exemplar-CNN: a patch of each image is a class of its own; which one is this distorted copy made of?

Dosovitskiy, Fischer, Springenberg, Riedmiller, Brox: Discriminative Unsupervised Feature Learning with Exemplar
Convolutional Neural Networks, NIPS 2014 and PAMI 2016, arXiv:1406.6909. Seeds are patches of several sizes. They lie where
an image changes, in proportion to the mean squared gradient within the patch (PAMI, sec. 2), and images are drawn in
proportion to it as well, so that no class is an empty sky. Copies are distorted in place and color, all at once, out of the
whole image, so that their borders show what is there. With `exemplar_cnn:clustered` seeds that a first half of the run
cannot tell apart become one class for the second (PAMI, sec. 3.4).

Equations, by the numbers of NIPS 2014: what a copy costs, l(i, T x_i) = -log f(T x_i)_i (2), f the softmax (4) of W g(T x_i)
of the features g, is `loss`. The paper sums it over seeds and copies (1); a batch has the mean, and where every copy is a
new one the run follows the expectation over copies (3).

Released code: facts of asanakoy/Exemplar_CNN@e1a6070, the first commit of a fork, which holds the authors' scripts for STL-10.

**Differs:** by default from both: colors change by half of the published ranges, and the head has a hidden layer: a small
net learns more from that. In all recipes:
- factors are even on a logarithmic scale; the released factors of size are even, those of contrast along the axes of color
  are 2^N(0, 1), of the third 2^N(0, 1/4); shifts there reach a quarter of the copy's side (paper: 0.2 of the seed's);
- a copy that would leave the image is moved inside; released: thrown away, so that of 150 copies some are left;
- released: each patch is stretched to the full range of values before its saturation and value change;
- up to 4 images compete for each seed; the released sampler draws images by their gradients too, but its script
  for STL-10 takes one patch of each of 16,000 that were drawn evenly (paper: "from different images");
- released: gradients are differences from a blurred image at a quarter of the resolution;
- the net's input has middle gray subtracted, not the mean of all copies, so that an exported net needs no other numbers;
- how look-alikes are merged is this file's own choice: mutual nearest neighbors above a cosine.
`:paper` follows the paper's ranges with 100 copies and the released net, whose pooling is 3x3 (paper: 2x2). A first phase on
a set of classes of its own is left out: it has one step in the released command. The paper's scores are those of linear SVMs
on all layers: `pretask evaluate RUN --data LABELED --svm` (evals/svm.py).

Cost: the classifier has one row for each of the N seeds: 32,000 of 512 numbers take 66 MB, four times as much with their
gradients and what AdamW remembers, and a step of 256 images of 32 px takes 2.2 times as long as with 2,000
(bench/seeds.py). No copy is kept: the k-th of a seed follows from (seed, k) by a hash.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import projector
from pretask.evals import knn
from pretask.limits import Below, Count, Natural, Positives, Several, Share, Weight
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method, MethodConfig
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Source, UserError

DRAWS = 16
"""numbers that decide a copy"""
SCALES = tuple(0.8**-k for k in range(4))
"""sides of seeds, as multiples of the smallest (released: augment_patches_distr.m)"""
LOOKED_AT = 4
"""images whose gradients are looked at for each seed; more only where they show nothing"""
PIXELS = 1 << 22
"""looked at at once, in 256 images at most"""
REDUCED = 1.5
"""factor above which bilinear sampling would alias"""
LAYERS = {"conv1": (0.05, 0.0), "conv2": (0.02, 0.0), "conv3": (0.01, 0.25), "fc": (0.01, 1.0)}
"""standard deviation of a layer's first weights, and its share of the weight decay (released: template/train.prototxt)"""
CLASSIFIER = {"lr_scale": 0.25, "decay_scale": 4.0}
"""of its weights (released: fc7 of template/train.prototxt)"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Name the seed patch of which a distorted copy was made."""

    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=256, lr=3e-3, weight_decay=0.01)

    seeds: Several = 8000
    """classes, at most; images that show nothing give none"""
    per_image: Count = 1
    """seeds of one image, at most; their centers lie further apart than a seed's side"""
    copies: Natural = 0
    """of each seed; 0: a new one every time"""
    patch: Count = 32
    """side of a copy and of the smallest seeds, pixels; at most 3/4 of the image's, as of seeds up to 1.95 times as large"""
    shift: Share = 0.2
    """to either side, as a share of the seed's side"""
    scale: Positives = (0.7, 1.4)
    """factor of the seed's side"""
    turn: Weight = 20.0
    """degrees, to either side"""
    axes: Positives = (0.71, 1.41)
    """factor of the contrast along each principal axis of colour"""
    power: Positives = (0.5, 2.0)
    """exponent of saturation and value"""
    stretch: Positives = (0.84, 1.18)
    """factor of saturation and value"""
    offset: Share = 0.05
    """added to hue, saturation and value at most, or taken away"""
    merge: Share = 0.0
    """cosine above which seeds that are each other's nearest become one class in the next round; 0: never"""
    dropout: Below = 0.0
    """of the features, before the head"""
    hidden: Natural = 512
    """width of a layer between features and classes; 0: none"""

    def build(self, encoder: Encoder, source: Source) -> "ExemplarCNN":
        return ExemplarCNN(self, encoder, len(source))


@dataclass(frozen=True)
class Clustered(Config):
    """Seeds that look alike after half of the run are one class in its second half."""

    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=256, lr=3e-3, weight_decay=0.01, rounds=2)

    merge: Share = 0.9
    """cosine above which seeds that are each other's nearest become one class"""


@dataclass(frozen=True)
class Paper(Config):
    """The medium net on the 100,000 images of STL-10: 16,000 patches, 100 copies each, 1.56 million steps."""

    encoder: ClassVar[str] = "exemplar"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=1997,
        batch=128,
        optimizer="sgd",
        lr=0.01,
        vector_lr=2.0,
        weight_decay=0.004,
        warmup=0.0,
        drops=(10 / 13, 11 / 13, 12 / 13, 12.5 / 13),  # 1.2 million steps, 120,000 twice, 60,000 twice
        drop=(0.4, 0.25, 0.4, 0.25),
    )

    seeds: Several = 16000
    """classes"""
    copies: Natural = 100
    """of each seed"""
    axes: Positives = (0.5, 2.0)
    """factor of the contrast along each principal axis of colour"""
    power: Positives = (0.25, 4.0)
    """exponent of saturation and value"""
    stretch: Positives = (0.7, 1.4)
    """factor of saturation and value"""
    offset: Share = 0.1
    """added to hue, saturation and value at most, or taken away"""
    dropout: Below = 0.5
    """of the fully connected layer"""
    hidden: Natural = 0
    """the net has its own"""

    def draw(self, encoder: str, source: Source) -> Encoder:
        drawn = super().draw(encoder, source)
        for stage, (std, _) in layers(drawn).items():
            layer: Any = drawn.net.get_submodule(f"{stage}.0")
            nn.init.normal_(layer.weight, std=std)
            nn.init.constant_(layer.bias, 0.1)
        return drawn

    def build(self, encoder: Encoder, source: Source) -> "Published":
        return Published(self, encoder, len(source))


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


# ---- where seeds lie


def steepness(x: Tensor) -> Tensor:
    """(B, C, H, W) -> squared gradient of the brightness, (B, H, W); beyond its border an image goes on as it ends."""
    grey = F.pad(images.luma(x), (1, 1, 1, 1), mode="replicate")
    across, down = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2], grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    return (across.square() + down.square())[:, 0]


def summed(steep: Tensor) -> Tensor:
    """(B, H, W) -> sums over all rectangles from the upper left, (B, H + 1, W + 1), in 2^-32: whole, so that 0 stays 0."""
    return F.pad((steep.double() * 2**32).long().cumsum(1).cumsum(2), (1, 0, 1, 0))


def busy(sums: Tensor, side: int, rim: int) -> Tensor:
    """(B, H + 1, W + 1) -> the mean over each patch of `side` that is `rim` or more from the border, (B, h, w)."""
    s = sums[:, rim : sums.shape[1] - rim, rim : sums.shape[2] - rim]
    box = s[:, side:, side:] - s[:, side:, :-side] - s[:, :-side, side:] + s[:, :-side, :-side]
    return box.double() / (2**32 * side**2)


def apart(place: Tensor, side: int, rim: int, h: int) -> Tensor:
    """(B, P, 3) -> which of h x h patches of `side` have a center more than `side` from those of P others, (B, h, h)."""
    center = place[..., :2] + place[..., 2:] / 2
    at = rim + side / 2 + torch.arange(h)
    far = (at - center[..., None]).abs() > side  # (B, P, 2, h)
    return (far[:, :, 0, :, None] | far[:, :, 1, None, :]).all(1)


def pick(energy: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(B, h, w), (B,) in [0, 1) -> row and column drawn in proportion to the energy, (B, 2), and its sum, (B,)."""
    total = energy.sum((1, 2))
    energy = torch.where(total[:, None, None] > 0, energy, 1.0)  # what shows nothing has its seed anywhere
    ends = energy.flatten(1).cumsum(1)
    at = torch.searchsorted(ends, u[:, None] * ends[:, -1:], right=True)[:, 0]
    return torch.stack([at // energy.shape[2], at % energy.shape[2]], 1), total


def window(x: Tensor, center: Tensor, side: Tensor, angle: Tensor, size: int) -> Tensor:
    """Squares of `side` (B,) pixels around `center` (B, 2) of x and y, turned by `angle` (B,) -> (B, C, size, size).

    A square that would leave its image is moved inside; where it is too large, the image is mirrored around it.
    """
    whole, cos, sin = x.shape[-1], angle.cos(), angle.sin()
    reach = (side / 2 * (cos.abs() + sin.abs())).clamp(max=whole / 2)[:, None]  # of its corners
    across, down = (2 * torch.maximum(torch.minimum(center, whole - reach), reach) / whole - 1).unbind(1)
    cos, sin = side / whole * cos, side / whole * sin
    turned = torch.stack([cos, -sin, across, sin, cos, down], 1).view(-1, 2, 3)
    grid = F.affine_grid(turned, [*x.shape[:2], size, size], align_corners=False)
    made = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    coarse = (side > REDUCED * size).nonzero()[:, 0]
    if len(coarse):
        half = F.interpolate(x[coarse], size=(math.ceil(whole / 2),) * 2, mode="bilinear", antialias=True)
        made[coarse] = F.grid_sample(half, grid[coarse], padding_mode="reflection", align_corners=False)
    return made


def layers(encoder: Encoder) -> Mapping[str, tuple[float, float]]:
    """LAYERS, of the net that has them."""
    return LAYERS if encoder.name.split(":")[0] == "exemplar" else {}


def inset(side: int, size: int) -> int:
    """Pixels between a seed and the border: an eighth of its side, so that centers stay 0.625 of it away (released: 20 of 32
    pixels); less where that would leave a small image no room."""
    return min(side // 8, (size - side) // 2 - side // 8)


def middles(place: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3) -> x and y of the centers, (B, 2), and the sides, (B,)."""
    side = place[:, 2].float()
    return place[:, :2].flip(1) + side[:, None] / 2, side


class ExemplarCNN(Method[Copies]):
    label: Tensor  # (N, P) class of each seed of an image, -1 for those that it has not
    place: Tensor  # (N, P, 3) row and column of the seed's upper left pixel, and its side
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
        sides = [round(self.side * factor) for factor in SCALES]
        self.sides = [side for side in sides if side <= 3 * encoder.size // 4]
        self.seen = encoder.side(self.side / encoder.size)
        self.classes = min(config.seeds, count * config.per_image)
        label = torch.full((count, config.per_image), -1)
        label.view(-1)[: self.classes] = torch.arange(self.classes)  # until `begin`, in the middle of images
        self.register_buffer("label", label)
        middle = torch.tensor([(encoder.size - self.side) // 2] * 2 + [self.side], dtype=torch.int32)
        self.register_buffer("place", middle.repeat(count, config.per_image, 1))
        self.register_buffer("axes", torch.eye(encoder.channels))
        self.register_buffer("colour", torch.full((encoder.channels,), 0.5))
        self.dropout = nn.Dropout(config.dropout)
        self.head = projector(*(w for w in (encoder.dim, config.hidden, self.classes) if w))

    def begin(self, context: Context) -> None:
        """Principal axes of the colours of up to 1,024 images, and the seeds."""
        order = context.rng.whole.permutation(len(context.source)).cpu()
        image = images.to_float(context.source.__getitems__(order[:1024]).image)
        pixel = image.permute(0, 2, 3, 1).flatten(0, 2)  # (M, C)
        self.colour.copy_(pixel.mean(0))
        self.axes.copy_(torch.linalg.eigh(pixel.T.cov().view_as(self.axes)).eigenvectors.T)
        self.sow(context, order)

    def sow(self, context: Context, order: Tensor) -> None:
        """Seeds of the first images of `order` (N,), one by one without replacement, in proportion to their energy."""
        u = context.rng.child("seeds").whole.uniform(len(order), self.config.per_image, 3).cpu().double()
        few, enough = max(16, min(256, PIXELS // self.encoder.size**2)), LOOKED_AT * self.config.seeds
        found, looked, fitting = [], 0, 0
        for some, numbers in zip(order.split(few), u.split(few), strict=True):
            found.append(self.candidates(images.to_float(context.source.__getitems__(some).image), numbers))
            looked, fitting = looked + len(some), fitting + int((found[-1][1] > 0).sum())
            if looked >= enough and fitting >= self.classes:
                break
        place, energy = map(torch.cat, zip(*found, strict=True))
        index, u = order[:looked], u[:looked]
        energy = energy if energy.any() else torch.ones_like(energy)
        fits = energy > 0
        arrival = torch.where(fits, -(1 - u[..., 2]).log() / energy, torch.inf)  # the likelier, the sooner
        first = arrival.flatten().argsort()[: self.classes]
        won = torch.zeros_like(fits).flatten().index_fill(0, first, True).view_as(fits) & fits
        taken = fits & (fits.cumsum(1) <= won.sum(1, keepdim=True))  # those that were placed first
        number = taken.flatten().cumsum(0).view_as(taken) - 1
        label = torch.full_like(self.label, -1, device="cpu")
        label[index] = torch.where(taken, number, -1)
        self.label.copy_(label)
        self.place[index.to(self.place.device)] = place.to(self.place)

    def candidates(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), (B, P, 3) in [0, 1) -> P seeds of each image, (B, P, 3), and its energy, 0 for those that do not fit.

        Of a seed each scale is as likely; its place is drawn in proportion to the mean squared gradient within the patch
        (PAMI, sec. 2). An image's energy is the mean of that over all of the smallest patches (released sampler).
        """
        sums, size = summed(steepness(x)), x.shape[-1]
        side = torch.tensor(self.sides)[(u[..., 0] * len(self.sides)).long()]  # (B, P)
        mean = busy(sums, self.side, inset(self.side, size)).mean((1, 2))
        place, energy = side[..., None].repeat(1, 1, 3), torch.zeros(side.shape).double()
        for k, one in itertools.product(range(side.shape[1]), self.sides):
            of, rim = (side[:, k] == one).nonzero()[:, 0], inset(one, size)
            each = busy(sums[of], one, rim)
            corner, total = pick(each * apart(place[of, :k], one, rim, each.shape[-1]), u[of, k, 1])
            place[of, k, :2] = corner + rim
            energy[of, k] = torch.where(total > 0, mean[of], 0.0)
        return place, energy

    def begin_epoch(self, context: Context) -> Tensor | None:
        """At the start of a later round, seeds that look alike become one class. All seeds are drawn equally often."""
        now = context.progress
        if self.config.merge and now.round and now.first_of_round:
            self.join(context)
        count = (self.label >= 0).sum(1)
        return count.float() if (count != count[0]).any() else None

    @torch.no_grad()
    def join(self, context: Context) -> None:
        """Each two seeds that are nearest to each other, and nearer than `merge`, are one class from now on."""
        which = (self.label >= 0).nonzero()  # (S, 2)
        self.eval()
        rows = []
        for index, k in (some.unbind(1) for some in which.split(256)):
            batch = context.source.__getitems__(index.cpu()).to(index.device)
            rows.append(self.described(self.seeds(images.to_float(batch.image), self.place[index, k])))
        self.train()
        z = torch.cat(rows)
        cosine, nearest = (found[:, 0] for found in knn.nearest(z, z, 1, exclude_self=True))
        here = torch.arange(len(z), device=z.device)
        pair = (nearest[nearest] == here) & (here < nearest) & (cosine > self.config.merge)
        index, k = which.unbind(1)
        label = self.label[index, k]
        root = torch.arange(int(label.max()) + 1, device=z.device)
        root[label[nearest[pair]]] = label[pair]
        while not torch.equal(root, root[root]):  # a class that joins one which joins a third
            root = root[root]
        joined = root.unique(return_inverse=True)[1]  # class before -> class from now on
        self.label[index, k] = joined[label]
        for values in self.head[-1].parameters():
            total = torch.zeros_like(values).index_add_(0, joined, values[: len(joined)])
            count = joined.bincount(minlength=len(values)).clamp(min=1)
            values.copy_(total / count.view(-1, *[1] * (values.ndim - 1)))

    # ---- the puzzle

    def seeds(self, x: Tensor, place: Tensor) -> Tensor:
        """(B, C, p, p): the patches at `place` (B, 3), undistorted."""
        center, side = middles(place)
        return window(x, center, side, torch.zeros_like(side), self.side)

    def placed(self, x: Tensor, place: Tensor, u: Tensor) -> Tensor:
        """Each seed at `place` (B, 3) moved, scaled and turned by what `u` (6, B) says, out of the whole image."""
        c, (center, side) = self.config, middles(place)
        center = center + c.shift * side[:, None] * (2 * u[:2].T - 1)
        angle = math.radians(c.turn) * (2 * u[2] - 1)
        return window(x, center, side * between(u[3], *c.scale), angle, self.side)

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
        has = self.label[batch.index] >= 0  # (B, P)
        wanted = rng.child("seed").uniform(len(batch), 1) * has.sum(1, keepdim=True)
        k = (has.cumsum(1) > wanted).int().argmax(1)  # one of the image's seeds
        u = hashed(batch.index * has.shape[1] + k, copy).T  # (DRAWS, B)
        image = self.placed(images.to_float(batch.image), self.place[batch.index, k], u[:6])
        return Copies(self.coloured(image, u[6:]), self.label[batch.index, k])

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
        return Loss(F.cross_entropy(logits, pretext.seed, ignore_index=-1), {"accuracy": accuracy})  # eq. 1

    def solve(self, pretext: Copies) -> Mapping[str, Tensor]:
        return {"seed": self.logits(pretext).argmax(1)}

    def export(self) -> Encoder:
        return self.encoder


class Published(ExemplarCNN):
    """Its classifier begins, and its layers learn and decay, as in the released net."""

    def __init__(self, config: Config, encoder: Encoder, count: int):
        super().__init__(config, encoder, count)
        answer: Any = self.head[-1]
        nn.init.normal_(answer.weight, std=0.005)
        nn.init.zeros_(answer.bias)

    def groups(self) -> Iterable[dict[str, Any]]:
        rest = dict(self.named_parameters())
        for stage, (_, decay) in layers(self.encoder).items():
            yield {"params": [rest.pop(f"encoder.net.{stage}.0.weight")], "decay_scale": decay}
        yield {"params": [rest.pop(f"head.{len(self.head) - 1}.weight")]} | CLASSIFIER
        yield {"params": [p for p in rest.values() if p.ndim > 1]}
        yield {"params": [p for p in rest.values() if p.ndim <= 1], "vectors": True}
