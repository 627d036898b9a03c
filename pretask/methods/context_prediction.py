"""Context prediction: predict the relative position of two neighboring patches of an image.

Doersch, Gupta, Efros: Unsupervised Visual Representation Learning by Context Prediction, ICCV 2015,
arXiv:1505.05192, which has no numbered equations; numbers without another source are those of the released code,
cdoersch/deepcontext at 5307282 (train.py). Nine patches are cut from a 3 x 3 grid with gaps. The encoder processes each patch
separately, and only the head sees two. Shortcuts are prevented: continuing lines by the gap and the jitter, chromatic
aberration by color dropping or projection, brightness by normalization, resampling artifacts by random downsampling (sec. 3.1).

Cost: nine patches per image pass through the network, and each is used in many pairs.

**Differs**, all recipes: images have one size and are cropped to a fraction of their area, which is scaled to that size
(released: to 150,000 to 450,000 px, keeping the aspect ratio); it holds one 3 x 3 grid with room for the jitter (released: as
many cells as fit from an origin within the first pitch, and patches that jitter out are pushed back inside); one grid per
image and step (released: four in a row); the size to which some patches are downsampled is drawn once per step, and
downsampling averages (released: for each patch, by caffe.io.resize); the mean of the noise in dropped channels is subtracted
too; the RMS of a patch is clamped to at least a quarter of a gray level.

`:paper` follows the released run, including an input RMS of 50, but the running statistics of batch norm cover about ten steps
(Caffe's default: a thousand), and layers before batch norms have no bias, which they would cancel. The paper's text has
384 channels in conv2 and a momentum of .999; the released code has 256 and no momentum.

By default, besides: a small ResNet with average pooling, one hidden layer of 512, 8 of the 40 pairs, AdamW with a cosine
schedule, color projection (the paper's alternative), crops of at least half of the area.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import TileEncoder
from pretask.limits import NonNegativeFloat, PositiveFraction, PositiveInt, UnitInterval, between
from pretask.methods.base.method import Method, MethodConfig, Minimum
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.types import Batch, Loss, Source, UserError
from pretask.viz.puzzle import Board, Frame, Panel, Puzzle, Tile, choice

SIDE = 3
PATCHES = SIDE * SIDE
POSITIONS = 8
NAMES = (
    "upper left",
    "above",
    "upper right",
    "left",
    "right",
    "lower left",
    "below",
    "lower right",
)
"""of the eight positions"""
SMALLEST = 4
"""smallest side of a patch, pixels"""
AXIS = torch.tensor([[-1.0, 2.0, -1.0]])  # from magenta to green
PROJECTION = torch.eye(3) - AXIS.T @ AXIS / (AXIS @ AXIS.T)
"""removes the green-magenta axis from a color (sec. 3.1)"""


def neighbor_pairs() -> Tensor:
    """(40, 3): all ordered pairs of neighboring grid cells, and the position of the second relative to the first.

    Positions are in raster order: 0 1 2 above, 3 left, 4 right, 5 6 7 below.
    """
    found = []
    for first in range(PATCHES):
        for second in range(PATCHES):
            down, right = second // SIDE - first // SIDE, second % SIDE - first % SIDE
            if max(abs(down), abs(right)) == 1:
                cell = SIDE * (down + 1) + right + 1
                found.append([first, second, cell - (cell > POSITIONS // 2)])
    return torch.tensor(found)


@dataclass(frozen=True)
class Config(MethodConfig):
    """Predict the position of a second patch relative to the first."""

    family: ClassVar[str] = "pretext tasks"
    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=3e-3, weight_decay=0.01)

    num_pairs: Annotated[int, *between(1, 40)] = 8
    """pairs to predict per image, of the 40 in the grid"""
    patch: PositiveFraction = 0.22
    """side of a patch, as a fraction of the image's; with the gaps and the jitter, a tenth is left to place the grid"""
    gap: NonNegativeFloat = 0.5
    """gap between patches, as a fraction of their side"""
    jitter: NonNegativeFloat = 7 / 96
    """largest shift of a patch in each direction, as a fraction of its side; patches stay inside the image"""
    crop: PositiveFraction = 0.5
    """smallest fraction of the image's area in a crop"""
    color: Literal["drop", "project", "keep"] = "project"
    """against chromatic aberration: replace two channels of a patch by noise, or project out the green-magenta axis"""
    downsample: UnitInterval = 0.33
    """probability that a patch is downsampled and upsampled again"""
    hidden: PositiveInt = 512
    """width of the head's hidden layers"""
    num_layers: PositiveInt = 1
    """number of hidden layers of the head; the first has batch norm"""
    flatten: bool = False
    """represent a patch by its whole last feature map instead of the map's mean"""

    def smallest_side(self, encoder: Encoder) -> Minimum:
        return Minimum(math.ceil(SMALLEST / self.patch), "or a larger --patch")

    def build(self, encoder: Encoder, source: Source) -> "ContextPrediction":
        return ContextPrediction(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """The released run, with --size 400: patches of 96 px, 504 per step, 1.7 million steps at a constant rate (README).

    The released loss is the sum over the pairs of a step (train.py:82), ours the mean, so the learning rate is 1e-5 times 56
    images times 40 pairs.
    """

    encoder: ClassVar[str] = "context_alexnet"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=74,
        batch=56,
        optimizer="sgd",
        lr=0.0224,  # 1e-5 · 56 · 40
        momentum=0.0,
        weight_decay=0.0,
        warmup=0.0,
        milestones=(1.0,),
    )

    num_pairs: Annotated[int, *between(1, 40)] = 40
    """all pairs"""
    patch: PositiveFraction = 0.24
    """96 of 400 px"""
    crop: PositiveFraction = 1 / 3
    """150,000 of 450,000 px"""
    color: Literal["drop", "project", "keep"] = "drop"
    """color dropping, as in the released run"""
    hidden: PositiveInt = 4096
    """fc6, fc7 and fc8"""
    num_layers: PositiveInt = 2
    """fc7 and fc8"""
    flatten: bool = True
    """3 x 3 x 256 features"""

    def build(self, encoder: Encoder, source: Source) -> "ContextPrediction":
        method = super().build(encoder, source)
        for layer in [*method.embed, *method.head]:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(
                    layer.weight, nonlinearity="linear"
                )  # Caffe's xavier uses only fan-in
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        return method


@dataclass(frozen=True)
class PatchPairs:
    patch: Tensor  # (B, 9, C, p, p), raster order
    first: Tensor  # (B, K) index of the first patch, 0 … 8
    second: Tensor  # (B, K)
    position: Tensor  # (B, K) of the second relative to the first, 0 … 7


def norm_without_affine(width: int) -> nn.Module:
    """Batch norm without gain and bias, which could permanently silence a unit (footnote 3 of the paper)."""
    return nn.BatchNorm1d(width, affine=False)


class ContextPrediction(Method[PatchPairs]):
    pretext_task = "Relative patch position"
    pairs: Tensor  # (40, 3)

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config = config
        self.side = int(config.patch * encoder.size)
        self.pitch = self.side + int(config.gap * self.side)
        self.max_jitter = round(config.jitter * self.side)
        self.slack = encoder.size - 2 * self.pitch - self.side - 2 * self.max_jitter
        if self.slack < 0:
            raise UserError(
                f"three patches (--patch {config.patch:g}), two gaps (--gap {config.gap:g}) and the jitter "
                f"(--jitter {config.jitter:g}) are wider than the image; give a smaller --patch, --gap or --jitter"
            )
        self.register_buffer("pairs", neighbor_pairs(), persistent=False)
        self.patches = TileEncoder(encoder, self.side, config.flatten)
        self.embed = nn.Sequential(
            nn.Linear(self.patches.dim, config.hidden, bias=False),
            norm_without_affine(config.hidden),
            nn.ReLU(inplace=True),
        )
        hidden: list[nn.Module] = []
        for i in range(config.num_layers):  # fc7 has a norm, fc8 has none (train.py:78-79)
            wide, norm = (
                (2 * config.hidden, [norm_without_affine(config.hidden)]) if i == 0 else (config.hidden, [])
            )
            hidden += [nn.Linear(wide, config.hidden, bias=not norm), *norm, nn.ReLU(inplace=True)]
        self.head = nn.Sequential(*hidden, nn.Linear(config.hidden, POSITIONS))

    # ---- the puzzle

    def cut_patches(self, x: Tensor, rng: Rng) -> Tensor:
        """(B, C, H, W) -> the nine jittered patches of a randomly placed grid, (B, 9, C, p, p).

        The grid stays away from the border by the largest jitter; otherwise outer patches could only move inwards.
        """
        b, cells = len(x), torch.arange(PATCHES, device=x.device)
        corner = torch.stack([cells // SIDE, cells % SIDE], 1) * self.pitch  # (9, 2)
        corner = corner + rng.integers(b, 1, 2, high=self.slack + 1)  # (B, 9, 2), the grid's origin
        corner = corner + rng.integers(b, PATCHES, 2, high=2 * self.max_jitter + 1)
        return augment.windows(x, corner, self.side)

    def downsample_patches(self, patch: Tensor, rng: Rng) -> Tensor:
        """Downsample each patch with probability `downsample`, to at least 1 % of the area, and upsample it again.

        The low resolution is drawn once per step, so that all patches are scaled in one call.
        """
        area = rng.unsharded.uniform(1, low=(10 / 96) ** 2, high=(95 / 96) ** 2).item()
        low, flat = max(1, int(area**0.5 * self.side)), patch.flatten(0, 1)
        down = F.interpolate(flat, size=(low, low), mode="bilinear", antialias=True)
        coarse = F.interpolate(down, size=patch.shape[-2:], mode="bilinear").view_as(patch)
        return torch.where(rng.coin(*patch.shape[:2], 1, 1, 1, p=self.config.downsample), coarse, patch)

    def pretext(self, batch: Batch, rng: Rng) -> PatchPairs:
        x = augment.to_float(batch.image)
        x = augment.resized_crop(x, x.shape[-1], rng, (self.config.crop, 1.0), (1.0, 1.0))
        patch = self.downsample_patches(self.cut_patches(x, rng), rng)
        if x.shape[1] == 3 and self.config.color == "drop":
            patch = drop_channels(patch, rng)
        elif x.shape[1] == 3 and self.config.color == "project":
            patch = torch.einsum("dc,bpchw->bpdhw", PROJECTION.to(x.device), patch)
        patch = patch - patch.mean((-2, -1), keepdim=True)  # train.py:103, in every channel
        rms = patch.square().mean((2, 3, 4), keepdim=True).sqrt()
        chosen = rng.orders(len(x), len(self.pairs))[:, : self.config.num_pairs]  # (B, K)
        return PatchPairs(patch / rms.clamp(min=1e-3), *self.pairs[chosen].unbind(-1))

    # ---- the network

    def logits(self, pretext: PatchPairs) -> Tensor:
        b = len(pretext.patch)
        pool, _ = self.patches(pretext.patch.flatten(0, 1))  # (9·B, D)
        embedding = self.embed(pool).view(b, PATCHES, -1)
        row = torch.arange(b, device=pool.device)[:, None]
        both = torch.cat(
            [embedding[row, pretext.first], embedding[row, pretext.second]], -1
        )  # (B, K, 2·hidden)
        return self.head(both.flatten(0, 1)).view(*pretext.position.shape, POSITIONS)

    def loss(self, pretext: PatchPairs) -> Loss:
        logits = self.logits(pretext)
        accuracy = (logits.argmax(-1) == pretext.position).float().mean()
        return Loss(F.cross_entropy(logits.flatten(0, 1), pretext.position.flatten()), {"accuracy": accuracy})

    def predict(self, pretext: PatchPairs) -> Mapping[str, Tensor]:
        return {"position": self.logits(pretext).argmax(-1)}

    def show(
        self, pretext: PatchPairs, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        """The first pair of every image, its patches as the network sees them."""
        at = augment.positions(batch.image)
        at = augment.resized_crop(at, at.shape[-1], rng, (self.config.crop, 1.0), (1.0, 1.0))
        boxes = augment.extent(self.cut_patches(at, rng)).tolist()
        for i, image in enumerate(batch.image):
            first, second, place = (int(x[i, 0]) for x in (pretext.first, pretext.second, pretext.position))
            center, patch = (
                0.5 + pretext.patch[i, n] / pretext.patch[i].abs().quantile(0.99) / 2 for n in (first, second)
            )
            predicted = int(answers["position"][i, 0]) if answers else None
            tiles = [Tile(label="?") for _ in NAMES]
            tiles.insert(POSITIONS // 2, Tile(center))
            frames = [Frame(box, role="other") for n, box in enumerate(boxes[i]) if n not in (first, second)]
            frames += [Frame(boxes[i][first]), Frame(boxes[i][second], "?", "second")]
            own = []
            if predicted is not None:
                cell = predicted + (predicted >= POSITIONS // 2)
                right = predicted == place
                there = [Tile(patch, correct=right) if n == cell else t for n, t in enumerate(tiles)]
                own = [Panel("network", Board([t if t.image is not None else Tile() for t in there]))]
            yield Puzzle(
                [Panel("this patch", patch), Panel("belongs where?", Board(tiles))],
                [Panel("answer", image, frames)],
                own,
                [choice("Where does the left patch belong?", NAMES, pretext.position[i, 0], predicted)],
            )

    def export(self) -> Encoder:
        return self.patches.encoder


def drop_channels(patch: Tensor, rng: Rng) -> Tensor:
    """Keep one random channel of each patch (B, T, 3, p, p); replace the others by noise of up to half a gray level."""
    kept = F.one_hot(rng.integers(*patch.shape[:2], high=3), 3)[..., None, None] > 0
    return torch.where(kept, patch, rng.uniform(*patch.shape, low=-0.5 / 255, high=0.5 / 255))
