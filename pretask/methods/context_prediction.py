"""Context prediction: two patches of an image; where does the second lie, seen from the first?

Doersch, Gupta, Efros: Unsupervised Visual Representation Learning by Context Prediction, ICCV 2015,
arXiv:1505.05192, which has no numbered equations; numbers without another source are those of the released code,
cdoersch/deepcontext at 5307282 (train.py). Nine patches are cut from a 3 x 3 grid with gaps. Every patch is seen alone,
and only the head sees two. It must not tell the places by lines that run on (gap and jitter), by the color fringes of
lenses (color dropping or projection), by brightness, or by traces of scaling (sec. 3.1).

Cost: nine patches go through the network for each image, and each is used in many pairs.

**Differs**, all recipes: images have one size and are cropped to a share of their area, which is scaled to that size
(released: to 150,000 to 450,000 px, keeping the aspect); a grid of 3 x 3 lies in it with room for the jitter (released: as
many cells as fit from an origin within the first pitch, and patches that jitter out are pushed back inside); one grid of
an image a step (released: four in a row); the size to which some patches are made coarse is drawn once a step, and scaling
down averages (released: for each patch, by caffe.io.resize); the noise in dropped channels loses its mean as well; the RMS
of a patch counts as a quarter of a gray level at least.

`:paper` follows the released run, an input with an RMS of 50 included, but batch norms keep the statistics of about the
last ten steps for evaluation (Caffe's default: of the last thousand), and layers before them have no bias, which they would take away. The text of the paper has
384 maps in conv2 and a momentum of .999, where the released code has 256 and none.

By default, besides: a small ResNet whose map is averaged, one hidden layer, of 512, 8 of the 40 pairs, AdamW along half a
cosine, colors projected (the paper's other way), crops of half the area at least.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import TileEncoder
from pretask.limits import Count, Part, Share, Weight, between
from pretask.methods.base.method import Method, MethodConfig
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Source, UserError

SIDE = 3
PATCHES = SIDE * SIDE
PLACES = 8
AXIS = torch.tensor([[-1.0, 2.0, -1.0]])  # from magenta to green
PROJECTION = torch.eye(3) - AXIS.T @ AXIS / (AXIS @ AXIS.T)
"""takes the green-magenta axis out of a colour (sec. 3.1)"""


def pairs() -> Tensor:
    """(40, 3): every two neighbouring cells of the grid, in both orders, and the place of the second.

    Places are numbered by rows: 0 1 2 above, 3 left, 4 right, 5 6 7 below.
    """
    found = []
    for first in range(PATCHES):
        for second in range(PATCHES):
            down, right = second // SIDE - first // SIDE, second % SIDE - first % SIDE
            if max(abs(down), abs(right)) == 1:
                cell = SIDE * (down + 1) + right + 1
                found.append([first, second, cell - (cell > PLACES // 2)])
    return torch.tensor(found)


@dataclass(frozen=True)
class Config(MethodConfig):
    """Say where a second patch lies, seen from the first."""

    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=3e-3, weight_decay=0.01)

    pairs: Annotated[int, *between(1, 40)] = 8
    """that are asked for each image, of the 40 that the grid has"""
    patch: Part = 0.22
    """side of a patch, as a share of the image's; three of them, two gaps and the jitter leave a tenth for the grid to move"""
    gap: Weight = 0.5
    """between patches, as a share of their side"""
    jitter: Weight = 7 / 96
    """by which a patch may lie elsewhere in each direction, as a share of its side; always inside the image"""
    zoom: Part = 0.5
    """smallest share of the image's area that is shown"""
    colour: Literal["drop", "project", "keep"] = "project"
    """against fringes: keep one channel of a patch and put noise into the others, or project all onto two colours"""
    coarse: Share = 0.33
    """probability that a patch is made coarse, by scaling it down and up"""
    hidden: Count = 512
    """width of the head's hidden layers"""
    layers: Count = 1
    """hidden layers of the head, the first with batch norm"""
    flat: bool = False
    """a patch is described by its whole last map in place of the map's mean"""

    def build(self, encoder: Encoder, source: Source) -> "ContextPrediction":
        return ContextPrediction(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """The released run, with --size 400: patches of 96 px, 504 a step, 1.7 million steps at one learning rate (README).

    The loss is there the sum over the pairs of a step (train.py:82), here their mean: 1e-5 times 56 images of 40 pairs.
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
        drops=(1.0,),
    )

    pairs: Annotated[int, *between(1, 40)] = 40
    """all of them"""
    patch: Part = 0.24
    """96 of 400 px"""
    zoom: Part = 1 / 3
    """150,000 of 450,000 px"""
    colour: Literal["drop", "project", "keep"] = "drop"
    """as in the released run"""
    hidden: Count = 4096
    """fc6, fc7 and fc8"""
    layers: Count = 2
    """fc7 and fc8"""
    flat: bool = True
    """3 x 3 x 256 numbers"""

    def build(self, encoder: Encoder, source: Source) -> "ContextPrediction":
        method = super().build(encoder, source)
        for layer in [*method.column, *method.head]:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(
                    layer.weight, nonlinearity="linear"
                )  # Caffe's xavier: by the inputs alone
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        return method


@dataclass(frozen=True)
class Neighbours:
    patch: Tensor  # (B, 9, C, p, p), rows from the top
    first: Tensor  # (B, K) of the nine
    second: Tensor  # (B, K)
    place: Tensor  # (B, K) of the second, seen from the first


def plain_norm(width: int) -> nn.Module:
    """Batch norm without gain and bias, which could silence a unit for good (footnote 3 of the paper)."""
    return nn.BatchNorm1d(width, affine=False)


class ContextPrediction(Method[Neighbours]):
    pairs: Tensor  # (40, 3)

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config = config
        self.side = int(config.patch * encoder.size)
        self.pitch = self.side + int(config.gap * self.side)
        self.reach = round(config.jitter * self.side)
        self.spare = encoder.size - 2 * self.pitch - self.side - 2 * self.reach
        if self.spare < 0:
            raise UserError(
                f"three patches of {config.patch:g} of an image, two gaps of {config.gap:g} of a patch and a jitter of "
                f"{config.jitter:g} are wider than the image; give a smaller --patch, --gap or --jitter"
            )
        if self.side < 4:
            raise UserError(
                f"images of {encoder.size} px give patches of {self.side} px; "
                f"give --size {math.ceil(4 / config.patch)} or more"
            )
        self.register_buffer("pairs", pairs(), persistent=False)
        self.patches = TileEncoder(encoder, self.side, config.flat)
        self.column = nn.Sequential(
            nn.Linear(self.patches.dim, config.hidden, bias=False),
            plain_norm(config.hidden),
            nn.ReLU(inplace=True),
        )
        hidden: list[nn.Module] = []
        for i in range(config.layers):  # fc7 has a norm, fc8 has none (train.py:78-79)
            wide, norm = (2 * config.hidden, [plain_norm(config.hidden)]) if i == 0 else (config.hidden, [])
            hidden += [nn.Linear(wide, config.hidden, bias=not norm), *norm, nn.ReLU(inplace=True)]
        self.head = nn.Sequential(*hidden, nn.Linear(config.hidden, PLACES))

    # ---- the puzzle

    def cut(self, x: Tensor, rng: Rng) -> Tensor:
        """(B, C, H, W) -> the nine patches of a grid that lies anywhere, each moved a little, (B, 9, C, p, p).

        The grid keeps away from the border by the jitter, which would otherwise push outer patches inwards alone.
        """
        b, cells = len(x), torch.arange(PATCHES, device=x.device)
        corner = torch.stack([cells // SIDE, cells % SIDE], 1) * self.pitch  # (9, 2)
        corner = corner + rng.integers(b, 1, 2, high=self.spare + 1)  # (B, 9, 2), and the jitter
        corner = corner + rng.integers(b, PATCHES, 2, high=2 * self.reach + 1)
        return images.windows(x, corner, self.side)

    def coarsened(self, patch: Tensor, rng: Rng) -> Tensor:
        """Scaled down to 1 % of the area at least and up again, each patch with probability `coarse`.

        The side is drawn once for all patches of a step, so that they can be scaled together.
        """
        area = rng.whole.uniform(1, low=(10 / 96) ** 2, high=(95 / 96) ** 2).item()
        low, flat = max(1, int(area**0.5 * self.side)), patch.flatten(0, 1)
        down = F.interpolate(flat, size=(low, low), mode="bilinear", antialias=True)
        rough = F.interpolate(down, size=patch.shape[-2:], mode="bilinear").view_as(patch)
        return torch.where(rng.coin(*patch.shape[:2], 1, 1, 1, p=self.config.coarse), rough, patch)

    def pretext(self, batch: Batch, rng: Rng) -> Neighbours:
        x = images.to_float(batch.image)
        x = images.resized_crop(x, x.shape[-1], rng, (self.config.zoom, 1.0), (1.0, 1.0))
        patch = self.coarsened(self.cut(x, rng), rng)
        if x.shape[1] == 3 and self.config.colour == "drop":
            patch = dropped(patch, rng)
        elif x.shape[1] == 3 and self.config.colour == "project":
            patch = torch.einsum("dc,bpchw->bpdhw", PROJECTION.to(x.device), patch)
        patch = patch - patch.mean((-2, -1), keepdim=True)  # train.py:103, in every channel
        size = patch.square().mean((2, 3, 4), keepdim=True).sqrt()
        asked = rng.orders(len(x), len(self.pairs))[:, : self.config.pairs]  # (B, K)
        return Neighbours(patch / size.clamp(min=1e-3), *self.pairs[asked].unbind(-1))

    # ---- the solver

    def logits(self, pretext: Neighbours) -> Tensor:
        b = len(pretext.patch)
        described, _ = self.patches(pretext.patch.flatten(0, 1))  # (9·B, D)
        patch = self.column(described).view(b, PATCHES, -1)
        row = torch.arange(b, device=patch.device)[:, None]
        both = torch.cat([patch[row, pretext.first], patch[row, pretext.second]], -1)  # (B, K, 2·hidden)
        return self.head(both.flatten(0, 1)).view(*pretext.place.shape, PLACES)

    def loss(self, pretext: Neighbours) -> Loss:
        logits = self.logits(pretext)
        accuracy = (logits.argmax(-1) == pretext.place).float().mean()
        return Loss(F.cross_entropy(logits.flatten(0, 1), pretext.place.flatten()), {"accuracy": accuracy})

    def solve(self, pretext: Neighbours) -> Mapping[str, Tensor]:
        return {"place": self.logits(pretext).argmax(-1)}

    def export(self) -> Encoder:
        return self.patches.encoder


def dropped(patch: Tensor, rng: Rng) -> Tensor:
    """(B, T, 3, p, p): one random channel of each patch is kept; faint noise, half a grey level, is in the others."""
    kept = F.one_hot(rng.integers(*patch.shape[:2], high=3), 3)[..., None, None] > 0
    return torch.where(kept, patch, rng.uniform(*patch.shape, low=-0.5 / 255, high=0.5 / 255))
