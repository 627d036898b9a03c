"""Exemplar-CNN: classify distorted copies of image patches, where each patch is its own surrogate class.

Dosovitskiy, Fischer, Springenberg, Riedmiller, Brox: Discriminative Unsupervised Feature Learning with Exemplar
Convolutional Neural Networks, NIPS 2014 and PAMI 2016, arXiv:1406.6909. Seed patches have several sizes. Their positions are
sampled in proportion to the mean squared gradient within the patch (PAMI, sec. 2), and so are the images, which avoids
classes of featureless patches. A copy is cropped from the whole image with all spatial distortions at once, so that it shows
real pixels up to its borders, and its colors are distorted. In `exemplar_cnn:clustered`, seeds with similar features after the
first half of the run are merged into one class for the second half (PAMI, sec. 3.4).

Equations, by the numbers of NIPS 2014: the loss of a copy, l(i, T x_i) = -log f(T x_i)_i (2), with f the softmax (4) of
W g(T x_i) of the features g, is `loss`. The paper sums it over seeds and copies (1), here it is averaged over a batch; if
every copy is new, training follows the expectation over copies (3).

Released code: asanakoy/Exemplar_CNN@e1a6070, the first commit of a fork, which has the authors' scripts for STL-10.

**Differs:** by default, color distortions have half of the published ranges and the head has a hidden layer, which improves
the features of small networks. In all recipes:
- factors are log-uniform; the released scale factors are uniform, the contrast factors along the principal axes of color are
  2^N(0, 1), of the third 2^N(0, 1/4), and translations reach a quarter of the copy's side (paper: 0.2 of the seed's);
- a copy that would leave the image is moved inside; released: discarded, so that only some of 150 copies remain;
- released: each patch is stretched to the full range of values before its saturation and value change;
- up to 4 images are candidates for each seed; the released sampler also samples images by their gradients, but its script
  for STL-10 takes one patch from each of 16,000 images sampled uniformly (paper: "from different images");
- released: gradients are differences from a blurred image at a quarter of the resolution;
- the mean subtracted from the input is middle gray, not the mean of all copies, so that exported weights need no other data;
- the rule for merging seeds is our own: mutual nearest neighbors above a cosine similarity.
`:paper` follows the paper's ranges with 100 copies and the released network, with 3x3 pooling (paper: 2x2). A first phase on
other classes is omitted; it has one step in the released command. The paper's scores are those of linear SVMs on all layers:
`pretask evaluate RUN --data LABELED --svm` (evals/svm.py).

Cost: the classifier has one row per seed: 32,000 of dimension 512 take 66 MB, four times as much with their gradients and
AdamW's state, and a step of 256 images of 32 px takes 2.2 times as long as with 2,000 (bench/seeds.py). Copies are not
stored: the k-th copy of a seed is determined by a hash of (seed, k).
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import build_mlp
from pretask.limits import (
    AtLeastTwo,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloats,
    PositiveInt,
    UnitInterval,
)
from pretask.limits import between as whole
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method, MethodConfig, Minimum
from pretask.ops import neighbors
from pretask.rng import Rng, scrambled, unit
from pretask.transforms import augment
from pretask.transforms.color import hcv_to_rgb, luma, rgb_to_hcv
from pretask.types import Batch, Loss, Source
from pretask.viz.puzzle import Caption, Frame, Panel, Puzzle

SMALLEST = 8
"""smallest side of a seed, pixels"""
DRAWS = 16
"""random numbers per copy"""
SCALES = tuple(0.8**-k for k in range(4))
"""sides of seeds, as multiples of the smallest (released: augment_patches_distr.m)"""
CANDIDATES = 4
"""candidate images per seed; more only if they have no gradient"""
PIXELS = 1 << 22
"""largest number of pixels processed at once when sampling seeds, in at most 256 images"""
MAX_REDUCTION = 1.5
"""reduction factor above which bilinear sampling aliases, so that the image is halved first"""
LAYERS = {"conv1": (0.05, 0.0), "conv2": (0.02, 0.0), "conv3": (0.01, 0.25), "fc": (0.01, 1.0)}
"""standard deviation of a layer's initial weights, and factor of its weight decay (released: template/train.prototxt)"""
CLASSIFIER = {"lr_scale": 0.25, "decay_scale": 4.0}
"""factors for the classifier's weights (released: fc7 of template/train.prototxt)"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Classify a distorted copy by the seed patch that it was made from."""

    family: ClassVar[str] = "pretext tasks"
    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=256, lr=3e-3, weight_decay=0.01)

    num_classes: AtLeastTwo = 8000
    """largest number of seeds, each a surrogate class; images without gradients have none"""
    seeds_per_image: PositiveInt = 1
    """largest number of seeds per image; the distance of their centers exceeds a seed's side"""
    copies: NonNegativeInt = 0
    """copies per seed; 0: a new one at each visit"""
    patch: Annotated[int, *whole(SMALLEST, 4096)] = 32
    """side of a copy and of the smallest seeds, pixels; seeds are up to 1.95 times as large; at most 3/4 of the image's side"""
    translation: UnitInterval = 0.2
    """largest translation in each direction, as a fraction of the seed's side"""
    scale: PositiveFloats = (0.7, 1.4)
    """range of the scale factor"""
    rotation: NonNegativeFloat = 20.0
    """largest rotation in either direction, degrees"""
    pca_contrast: PositiveFloats = (0.71, 1.41)
    """range of the contrast factor along each principal axis of color"""
    hsv_power: PositiveFloats = (0.5, 2.0)
    """range of the exponent of saturation and value"""
    hsv_factor: PositiveFloats = (0.84, 1.18)
    """range of the factor of saturation and value"""
    hsv_offset: UnitInterval = 0.05
    """largest value added to or subtracted from hue, saturation and value"""
    merge_threshold: UnitInterval = 0.0
    """cosine similarity above which mutual nearest seeds are merged into one class in the next round; 0: never"""
    dropout: FractionBelowOne = 0.0
    """dropout rate of the features, before the head"""
    hidden: NonNegativeInt = 512
    """width of the head's hidden layer; 0: none"""

    def smallest_side(self, encoder: Encoder) -> Minimum:
        return Minimum(math.ceil(4 * SMALLEST / 3))

    def fewest_images(self) -> Minimum:
        return Minimum(
            math.ceil(2 / self.seeds_per_image), "or give --seeds-per-image 2, for at least two classes"
        )

    def smallest_batch(self) -> Minimum:
        """A head with a hidden layer has a batch norm."""
        return Minimum(2 if self.hidden else 1)

    def build(self, encoder: Encoder, source: Source) -> "ExemplarCNN":
        return ExemplarCNN(self, encoder, len(source))


@dataclass(frozen=True)
class Clustered(Config):
    """Seeds with similar features after half of the run are one class in its second half."""

    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=256, lr=3e-3, weight_decay=0.01, cycles=2)

    merge_threshold: UnitInterval = 0.9
    """cosine similarity above which mutual nearest seeds are merged into one class"""


@dataclass(frozen=True)
class Paper(Config):
    """The medium network on the 100,000 images of STL-10: 16,000 patches, 100 copies each, 1.56 million steps."""

    encoder: ClassVar[str] = "exemplar"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=1997,
        batch=128,
        optimizer="sgd",
        lr=0.01,
        bias_lr_scale=2.0,
        weight_decay=0.004,
        warmup=0.0,
        milestones=(10 / 13, 11 / 13, 12 / 13, 12.5 / 13),  # 1.2 million steps, 120,000 twice, 60,000 twice
        gamma=(0.4, 0.25, 0.4, 0.25),
    )

    num_classes: AtLeastTwo = 16000
    """seeds, each a surrogate class"""
    copies: NonNegativeInt = 100
    """copies per seed"""
    pca_contrast: PositiveFloats = (0.5, 2.0)
    """range of the contrast factor along each principal axis of color"""
    hsv_power: PositiveFloats = (0.25, 4.0)
    """range of the exponent of saturation and value"""
    hsv_factor: PositiveFloats = (0.7, 1.4)
    """range of the factor of saturation and value"""
    hsv_offset: UnitInterval = 0.1
    """largest value added to or subtracted from hue, saturation and value"""
    dropout: FractionBelowOne = 0.5
    """dropout rate of the fully connected layer"""
    hidden: NonNegativeInt = 0
    """none; the encoder has a fully connected layer"""

    def build_encoder(self, encoder: str, source: Source) -> Encoder:
        drawn = super().build_encoder(encoder, source)
        for stage, (std, _) in released_layers(drawn).items():
            layer: Any = drawn.net.get_submodule(f"{stage}.0")
            nn.init.normal_(layer.weight, std=std)
            nn.init.constant_(layer.bias, 0.1)
        return drawn

    def build(self, encoder: Encoder, source: Source) -> "Published":
        return Published(self, encoder, len(source))


@dataclass(frozen=True)
class Copies:
    image: Tensor  # (B, C, p, p), one distorted copy of a seed of each image
    label: Tensor  # (B,) the seed's class, -1 for images without seeds


def hash_uniform(*keys: Tensor) -> Tensor:
    """(B,) integers each -> (B, DRAWS) uniform numbers in [0, 1), determined by the keys."""
    x = torch.arange(1, DRAWS + 1, device=keys[0].device)
    for key in keys:
        x = scrambled(x + key[:, None])
    return unit(x)


def log_uniform(u: Tensor, low: float, high: float) -> Tensor:
    """u in [0, 1) -> a factor from low to high, log-uniform."""
    return low * (high / low) ** u


# ---- sampling of seeds


def squared_gradient(x: Tensor) -> Tensor:
    """(B, C, H, W) -> squared gradient of the luma, (B, H, W), with replicated borders."""
    gray = F.pad(luma(x), (1, 1, 1, 1), mode="replicate")
    dx, dy = gray[..., 1:-1, 2:] - gray[..., 1:-1, :-2], gray[..., 2:, 1:-1] - gray[..., :-2, 1:-1]
    return (dx.square() + dy.square())[:, 0]


def integral_image(energy: Tensor) -> Tensor:
    """(B, H, W) -> sums over all rectangles from the upper left, (B, H + 1, W + 1), in 2^-32: integers, so that 0 is exact."""
    return F.pad((energy.double() * 2**32).long().cumsum(1).cumsum(2), (1, 0, 1, 0))


def patch_energy(sums: Tensor, side: int, margin: int) -> Tensor:
    """(B, H + 1, W + 1) -> the mean over each patch of `side` that is at least `margin` from the border, (B, h, w)."""
    s = sums[:, margin : sums.shape[1] - margin, margin : sums.shape[2] - margin]
    box = s[:, side:, side:] - s[:, side:, :-side] - s[:, :-side, side:] + s[:, :-side, :-side]
    return box.double() / (2**32 * side**2)


def far_from(box: Tensor, side: int, margin: int, h: int) -> Tensor:
    """(B, P, 3) -> which of h x h patches of `side` have a center more than `side` from those of P others, (B, h, h)."""
    center = box[..., :2] + box[..., 2:] / 2
    position = margin + side / 2 + torch.arange(h)
    far = (position - center[..., None]).abs() > side  # (B, P, 2, h)
    return (far[:, :, 0, :, None] | far[:, :, 1, None, :]).all(1)


def sample_position(energy: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(B, h, w), (B,) in [0, 1) -> row and column sampled in proportion to the energy, (B, 2), and its sum, (B,)."""
    total = energy.sum((1, 2))
    energy = torch.where(total[:, None, None] > 0, energy, 1.0)  # uniform if there is no energy
    cumulative = energy.flatten(1).cumsum(1)
    at = torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return torch.stack([at // energy.shape[2], at % energy.shape[2]], 1), total


def crop_rotated(x: Tensor, center: Tensor, side: Tensor, angle: Tensor, size: int) -> Tensor:
    """Squares of `side` (B,) pixels around `center` (B, 2) x and y, rotated by `angle` (B,) -> (B, C, size, size).

    A square that would leave its image is moved inside; if it is too large, the image is padded by reflection.
    """
    whole, cos, sin = x.shape[-1], angle.cos(), angle.sin()
    reach = (side / 2 * (cos.abs() + sin.abs())).clamp(max=whole / 2)[
        :, None
    ]  # of the corners, from the center
    tx, ty = (2 * torch.maximum(torch.minimum(center, whole - reach), reach) / whole - 1).unbind(1)
    cos, sin = side / whole * cos, side / whole * sin
    theta = torch.stack([cos, -sin, tx, sin, cos, ty], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [*x.shape[:2], size, size], align_corners=False)
    crops = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    large = (side > MAX_REDUCTION * size).nonzero()[:, 0]
    if len(large):
        half = F.interpolate(x[large], size=(math.ceil(whole / 2),) * 2, mode="bilinear", antialias=True)
        crops[large] = F.grid_sample(half, grid[large], padding_mode="reflection", align_corners=False)
    return crops


def released_layers(encoder: Encoder) -> Mapping[str, tuple[float, float]]:
    """LAYERS if the encoder is the released network, else nothing."""
    return LAYERS if encoder.name.split(":")[0] == "exemplar" else {}


def border_margin(side: int, size: int) -> int:
    """Pixels between a seed and the border: an eighth of its side, so that centers are at least 0.625 of it away (released:
    20 of 32 pixels); less in images that are too small for that."""
    return min(side // 8, (size - side) // 2 - side // 8)


def center_and_side(box: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3) -> x and y of the centers, (B, 2), and the sides, (B,)."""
    side = box[:, 2].float()
    return box[:, :2].flip(1) + side[:, None] / 2, side


class ExemplarCNN(Method[Copies]):
    pretext_task = "Instance classification of distorted patches"
    label: Tensor  # (N, P) class of each seed of an image, -1 for missing seeds
    box: Tensor  # (N, P, 3) row and column of the seed's upper left pixel, and its side
    color_axes: Tensor  # (C, C) principal axes of color, in rows
    color_mean: Tensor  # (C,)

    def __init__(self, config: Config, encoder: Encoder, count: int):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.side = min(config.patch, 3 * encoder.size // 4)
        sides = [round(self.side * factor) for factor in SCALES]
        self.sides = [side for side in sides if side <= 3 * encoder.size // 4]
        self.input_side = encoder.side(self.side / encoder.size)
        self.num_classes = min(config.num_classes, count * config.seeds_per_image)
        label = torch.full((count, config.seeds_per_image), -1)
        label.view(-1)[: self.num_classes] = torch.arange(
            self.num_classes
        )  # until `begin`, in the centers of images
        self.register_buffer("label", label)
        center = torch.tensor([(encoder.size - self.side) // 2] * 2 + [self.side], dtype=torch.int32)
        self.register_buffer("box", center.repeat(count, config.seeds_per_image, 1))
        self.register_buffer("color_axes", torch.eye(encoder.channels))
        self.register_buffer("color_mean", torch.full((encoder.channels,), 0.5))
        self.dropout = nn.Dropout(config.dropout)
        self.head = build_mlp(*(w for w in (encoder.dim, config.hidden, self.num_classes) if w))

    def begin(self, context: Context) -> None:
        """Compute the principal axes of color on up to 1,024 images, and sample the seeds."""
        order = context.rng.unsharded.permutation(len(context.source)).cpu()
        image = augment.to_float(context.source.__getitems__(order[:1024]).image)
        pixel = image.permute(0, 2, 3, 1).flatten(0, 2)  # (M, C)
        self.color_mean.copy_(pixel.mean(0))
        self.color_axes.copy_(torch.linalg.eigh(pixel.T.cov().view_as(self.color_axes)).eigenvectors.T)
        self.sample_seeds(context, order)

    def sample_seeds(self, context: Context, order: Tensor) -> None:
        """Sample seeds from the first images of `order` (N,), without replacement, in proportion to the images' energy."""
        u = (
            context.rng.child("seeds")
            .unsharded.uniform(len(order), self.config.seeds_per_image, 3)
            .cpu()
            .double()
        )
        chunk, enough = (
            max(16, min(256, PIXELS // self.encoder.size**2)),
            CANDIDATES * self.config.num_classes,
        )
        found, processed, valid = [], 0, 0
        for some, numbers in zip(order.split(chunk), u.split(chunk), strict=True):
            found.append(self.candidates(augment.to_float(context.source.__getitems__(some).image), numbers))
            processed, valid = processed + len(some), valid + int((found[-1][1] > 0).sum())
            if processed >= enough and valid >= self.num_classes:
                break
        box, energy = map(torch.cat, zip(*found, strict=True))
        index, u = order[:processed], u[:processed]
        energy = energy if energy.any() else torch.ones_like(energy)
        fits = energy > 0
        arrival = torch.where(
            fits, -(1 - u[..., 2]).log() / energy, torch.inf
        )  # exponential clocks of rate `energy`
        first = arrival.flatten().argsort()[: self.num_classes]
        chosen = torch.zeros_like(fits).flatten().index_fill(0, first, True).view_as(fits) & fits
        kept = fits & (
            fits.cumsum(1) <= chosen.sum(1, keepdim=True)
        )  # an image's first seeds, in the order of placing
        number = kept.flatten().cumsum(0).view_as(kept) - 1
        label = torch.full_like(self.label, -1, device="cpu")
        label[index] = torch.where(kept, number, -1)
        self.label.copy_(label)
        self.box[index.to(self.box.device)] = box.to(self.box)

    def candidates(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), (B, P, 3) in [0, 1) -> P seeds per image, (B, P, 3), and its energy, 0 for seeds that do not fit.

        The scale of a seed is uniform; its position is sampled in proportion to the mean squared gradient within the patch
        (PAMI, sec. 2). An image's energy is the mean of that over all of the smallest patches (released sampler).
        """
        sums, size = integral_image(squared_gradient(x)), x.shape[-1]
        side = torch.tensor(self.sides)[(u[..., 0] * len(self.sides)).long()]  # (B, P)
        mean = patch_energy(sums, self.side, border_margin(self.side, size)).mean((1, 2))
        box, energy = side[..., None].repeat(1, 1, 3), torch.zeros(side.shape).double()
        for k, one in itertools.product(range(side.shape[1]), self.sides):
            of, margin = (side[:, k] == one).nonzero()[:, 0], border_margin(one, size)
            each = patch_energy(sums[of], one, margin)
            free = far_from(box[of, :k], one, margin, each.shape[-1])
            corner, total = sample_position(each * free, u[of, k, 1])
            box[of, k, :2] = corner + margin
            energy[of, k] = torch.where(total > 0, mean[of], 0.0)
        return box, energy

    def begin_epoch(self, context: Context) -> Tensor | None:
        """Merge similar seeds at the start of later rounds. The sampling weights draw all seeds equally often."""
        now = context.progress
        if self.config.merge_threshold and now.cycle and now.first_of_cycle:
            self.merge_classes(context)
        count = (self.label >= 0).sum(1)
        return count.float() if (count != count[0]).any() else None

    @torch.no_grad()
    def merge_classes(self, context: Context) -> None:
        """Merge the classes of mutual nearest seeds whose cosine similarity is above `merge_threshold`."""
        which = (self.label >= 0).nonzero()  # (S, 2)
        self.eval()
        rows = []
        for index, k in (some.unbind(1) for some in which.split(256)):
            batch = context.source.__getitems__(index.cpu()).to(index.device)
            rows.append(self.features(self.seed_patches(augment.to_float(batch.image), self.box[index, k])))
        self.train()
        z = torch.cat(rows)
        cosine, nearest = (found[:, 0] for found in neighbors.nearest(z, z, 1, exclude_self=True))
        row = torch.arange(len(z), device=z.device)
        pair = (nearest[nearest] == row) & (row < nearest) & (cosine > self.config.merge_threshold)
        index, k = which.unbind(1)
        label = self.label[index, k]
        root = torch.arange(int(label.max()) + 1, device=z.device)
        root[label[nearest[pair]]] = label[pair]
        while not torch.equal(root, root[root]):  # chains of merges
            root = root[root]
        merged = root.unique(return_inverse=True)[1]  # old class -> new class
        self.label[index, k] = merged[label]
        for values in self.head[-1].parameters():
            total = torch.zeros_like(values).index_add_(0, merged, values[: len(merged)])
            count = merged.bincount(minlength=len(values)).clamp(min=1)
            values.copy_(total / count.view(-1, *[1] * (values.ndim - 1)))

    # ---- the puzzle

    def seed_patches(self, x: Tensor, box: Tensor) -> Tensor:
        """The undistorted patches at `box` (B, 3): (B, C, p, p)."""
        center, side = center_and_side(box)
        return crop_rotated(x, center, side, torch.zeros_like(side), self.side)

    def distort_geometry(self, x: Tensor, box: Tensor, u: Tensor) -> Tensor:
        """Crop the seed at `box` (B, 3) from the image with the translation, rotation and scale given by `u` (6, B)."""
        c, (center, side) = self.config, center_and_side(box)
        center = center + c.translation * side[:, None] * (2 * u[:2].T - 1)
        angle = math.radians(c.rotation) * (2 * u[2] - 1)
        return crop_rotated(x, center, side * log_uniform(u[3], *c.scale), angle, self.side)

    def distort_color(self, x: Tensor, u: Tensor) -> Tensor:
        """Change the contrast along the principal axes of color, then hue, saturation and value, as given by `u` (10, B)."""
        c, (p, q, m, n) = self.config, u[3:7, :, None, None]
        offset = c.hsv_offset * (2 * u[7:, :, None, None] - 1)  # (3, B, 1, 1)
        if x.shape[1] == 1:
            value = x[:, 0] ** log_uniform(p, *c.hsv_power) * log_uniform(m, *c.hsv_factor) + offset[0]
            return value.clamp(0, 1)[:, None]
        factor = log_uniform(u[:3].T, *c.pca_contrast)  # (B, 3)
        matrix = torch.einsum(
            "ad,ba,ae->bde", self.color_axes, factor, self.color_axes
        )  # project, scale, project back
        mean = self.color_mean.view(3, 1, 1)
        x = (torch.einsum("bde,behw->bdhw", matrix, x - mean) + mean).clamp(0, 1)
        hue, chroma, value = rgb_to_hcv(x)
        saturation = chroma / value.clamp(min=1e-8)
        value = (value ** log_uniform(p, *c.hsv_power) * log_uniform(m, *c.hsv_factor) + offset[0]).clamp(
            0, 1
        )
        saturation = saturation ** log_uniform(q, *c.hsv_power) * log_uniform(n, *c.hsv_factor) + offset[1]
        return hcv_to_rgb(hue + 6 * offset[2], saturation.clamp(0, 1) * value, value)

    def sample_seed(self, batch: Batch, rng: Rng) -> Tensor:
        """(B,): which of its seeds each image shows."""
        has = self.label[batch.index] >= 0  # (B, P)
        threshold = rng.child("seed").uniform(len(batch), 1) * has.sum(1, keepdim=True)
        return (has.cumsum(1) > threshold).int().argmax(1)

    def pretext(self, batch: Batch, rng: Rng) -> Copies:
        copy = rng.integers(len(batch), high=self.config.copies or 2**31)
        k = self.sample_seed(batch, rng)
        u = hash_uniform(batch.index * self.label.shape[1] + k, copy).T  # (DRAWS, B)
        image = self.distort_geometry(augment.to_float(batch.image), self.box[batch.index, k], u[:6])
        return Copies(self.distort_color(image, u[6:]), self.label[batch.index, k])

    # ---- the network

    def features(self, image: Tensor) -> Tensor:
        if self.input_side != self.side:
            image = F.interpolate(image, size=(self.input_side,) * 2, mode="bilinear")
        return self.encoder(image)["pool"]

    def logits(self, pretext: Copies) -> Tensor:
        logits = self.head(self.dropout(self.features(pretext.image)))
        return logits[:, : int(self.label.max()) + 1]  # (B, classes)

    def loss(self, pretext: Copies) -> Loss:
        logits = self.logits(pretext)
        accuracy = (logits.argmax(1) == pretext.label).float().mean()
        return Loss(F.cross_entropy(logits, pretext.label, ignore_index=-1), {"accuracy": accuracy})  # eq. 1

    def predict(self, pretext: Copies) -> Mapping[str, Tensor]:
        return {"label": self.logits(pretext).argmax(1)}

    def show(
        self, pretext: Copies, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        place = self.box[batch.index, self.sample_seed(batch, rng)]
        seeds, size = self.seed_patches(augment.to_float(batch.image), place), batch.image.shape[-1]
        for i, seed in enumerate(pretext.label):
            top, left, side = (x / size for x in place[i].tolist())
            known = int(seed) >= 0
            name = f"seed {int(seed) + 1}" if known else "none: the image shows nothing"
            caption = Caption("Which seed patch is this a copy of?", name)
            if answers:
                predicted = answers["label"][i]
                right = (bool(predicted == seed),) if known else ()
                caption = replace(caption, predicted=f"seed {int(predicted) + 1}", parts_correct=right)
            yield Puzzle(
                [Panel("distorted copy", pretext.image[i])],
                [
                    Panel("seed", seeds[i]),
                    Panel("in the image", batch.image[i], [Frame((left, top, left + side, top + side))]),
                ],
                captions=[caption],
            )

    def export(self) -> Encoder:
        return self.encoder


class Published(ExemplarCNN):
    """Initialization of the classifier, learning rates and weight decay as in the released network."""

    def __init__(self, config: Config, encoder: Encoder, count: int):
        super().__init__(config, encoder, count)
        classifier: Any = self.head[-1]
        nn.init.normal_(classifier.weight, std=0.005)
        nn.init.zeros_(classifier.bias)

    def groups(self) -> Iterable[dict[str, Any]]:
        rest = dict(self.named_parameters())
        for stage, (_, decay) in released_layers(self.encoder).items():
            yield {"params": [rest.pop(f"encoder.net.{stage}.0.weight")], "decay_scale": decay}
        yield {"params": [rest.pop(f"head.{len(self.head) - 1}.weight")]} | CLASSIFIER
        yield {"params": [p for p in rest.values() if p.ndim > 1]}
        yield {"params": [p for p in rest.values() if p.ndim <= 1], "vectors": True}
