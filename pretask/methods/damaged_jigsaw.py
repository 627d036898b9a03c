"""Damaged jigsaw: predict the permutation of grayscale tiles, inpaint the missing tile, and colorize the others.

Kim, Cho, Yoo, Kweon: Learning Image Representations by Completing Damaged Jigsaw Puzzles, WACV 2018,
arXiv:1802.01880. Nine tiles are shuffled, one is removed and the others are converted to grayscale. One encoder, which
processes each tile separately, has three heads: the permutation, the color of the eight tiles, and the content of the ninth.
With the weights of two heads at 0, only the third is trained, on the same puzzle (the paper's "complicated" single tasks).
By default some images keep their color, so that the features can use it later; they are left out of the color loss.

**Differs**, as far as known: no code was released, and only the abstract of the paper was available. These choices are our
own: colors are predicted in CIELab on a grid of 8 x 8, a and b of the eight tiles, and L as well of the ninth ("generate the
missing content"); the loss is the squared error of each channel divided by its typical variance, so that predicting the mean
costs about 1; the permutation loss is divided by ln N, so that chance costs 1. The paper's recipe is that of jigsaw, with its
network and its scaling of tiles to gray levels, and has equal weights for the three losses; by default colors have a lower
weight, which gives better features in short runs. The permutation set maximizes the smallest distance, because with a missing
tile, two permutations that differ in two tiles could differ visibly in only one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import TileEncoder, build_mlp
from pretask.limits import (
    AtLeastTwo,
    FractionBelowOne,
    NonNegativeFloat,
    PositiveFraction,
    PositiveInt,
    UnitInterval,
)
from pretask.methods import jigsaw
from pretask.methods.base.method import Method, Minimum
from pretask.methods.jigsaw import (
    TILES,
    DistanceStat,
    TileGrid,
    cut_tiles,
    draw_extra_labels,
    normalize_tiles,
    permutation_loss,
    permutation_set,
    permute_embeddings,
    shuffle_tiles,
)
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.transforms.color import LAB_MEAN, LAB_STD, lab_to_rgb, rgb_to_lab
from pretask.types import Batch, Loss, Source, UserError
from pretask.viz import puzzle
from pretask.viz.puzzle import Panel, Puzzle

GRID = 8
"""side of the grid of predicted colors in a tile"""


@dataclass(frozen=True)
class Config(jigsaw.Config):
    """Predict the permutation of gray tiles, inpaint the missing tile, and colorize the others."""

    family: ClassVar[str] = "pretext tasks"
    distance_stat: DistanceStat = "minimum"
    """statistic of a permutation's distances to the earlier ones that is maximized: the mean or the minimum"""
    gray: UnitInterval = 0.7
    """probability that the tiles of an image are converted to grayscale (paper: 1)"""
    order: NonNegativeFloat = 1.0
    """weight of the permutation loss; 0 removes it"""
    color: NonNegativeFloat = 0.3
    """weight of the colorization loss of the eight tiles (paper's recipe: 1)"""
    inpaint: NonNegativeFloat = 0.3
    """weight of the inpainting loss of the missing tile (paper's recipe: 1)"""

    def smallest_batch(self) -> Minimum:
        """The inpainting head has a batch norm."""
        return Minimum(2)

    def build(self, encoder: Encoder, source: Source) -> Method[Any]:
        if encoder.channels != 3:
            raise UserError(
                f"damaged_jigsaw needs color images, but {source.name} has {encoder.channels} channel"
            )
        if not self.order + self.color + self.inpaint > 0:
            raise UserError("--order, --color and --inpaint are all 0; at least one must be positive")
        return DamagedJigsaw(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """With --size 255: network, tiles, permutations and schedule of jigsaw:paper; this paper's own were not available."""

    encoder: ClassVar[str] = jigsaw.Paper.encoder
    train: ClassVar[TrainConfig] = jigsaw.Paper.train

    num_permutations: AtLeastTwo = jigsaw.Paper.num_permutations
    """size of the permutation set, of 362,880 possible ones"""
    tile: PositiveFraction = jigsaw.Paper.tile
    """64 of 85 pixels"""
    gray: UnitInterval = 1.0
    """all images"""
    color: NonNegativeFloat = 1.0
    """equal to the weight of the permutation"""
    inpaint: NonNegativeFloat = 1.0
    """equal to the weight of the permutation"""
    flip: UnitInterval = jigsaw.Paper.flip
    """none in the released code of jigsaw"""
    shuffles: PositiveInt = jigsaw.Paper.shuffles
    """one per image"""
    width: PositiveInt = jigsaw.Paper.width
    """dimension of a tile's embedding"""
    hidden: PositiveInt = jigsaw.Paper.hidden
    """width of the heads' hidden layers"""
    dropout: FractionBelowOne = jigsaw.Paper.dropout
    """dropout rate of the tile embeddings"""
    flatten: bool = jigsaw.Paper.flatten
    """3 x 3 x 256 features"""


@dataclass(frozen=True)
class Damaged:
    tile: Tensor  # (B, 9, 3, t, t), in shuffled order, most of them gray; the missing one is black
    gray: Tensor  # (B,) whether an image was converted to grayscale
    missing: Tensor  # (B,) position of the missing tile in the shuffled order
    permutation: Tensor  # (B, 9) the cell that each tile came from
    label: Tensor  # (B,) index of the permutation in the set
    extra_labels: Tensor  # (B, K - 1) further permutations of the same tiles that the head predicts
    target: Tensor  # (B, 9, 3, t, t) all tiles in color


class DamagedJigsaw(Method[Damaged]):
    pretext_task = "Jigsaw puzzle with gray and missing tiles"
    permutations: Tensor  # (N, 9)

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.grid = config, TileGrid.from_config(config, encoder.size)
        self.register_buffer(
            "permutations",
            permutation_set(config.num_permutations, config.distance, config.distance_stat),
            persistent=False,
        )
        self.tiles = TileEncoder(encoder, self.grid.side, config.flatten)
        self.embed = nn.Sequential(
            nn.Linear(self.tiles.dim, config.width), nn.ReLU(inplace=True), nn.Dropout(config.dropout)
        )
        self.mask_token = nn.Parameter(torch.zeros(config.width))  # the embedding of every missing tile
        self.order = build_mlp(TILES * config.width, config.hidden, config.num_permutations)
        self.context = nn.Linear(TILES * config.width, config.width)
        self.fuse = nn.Conv2d(self.tiles.channels + config.width, config.width, 1)
        self.color = nn.Conv2d(config.width, 2, 3, padding=1)
        self.inpaint = build_mlp(config.width + TILES, config.hidden, 3 * GRID * GRID)

    def pretext(self, batch: Batch, rng: Rng) -> Damaged:
        tile, gray = cut_tiles(augment.to_float(batch.image), self.grid, self.config, rng)
        target, permutation, label = shuffle_tiles(tile, self.permutations, rng)
        missing = rng.integers(len(tile), high=TILES)
        light = rgb_to_lab(target.flatten(0, 1))[:, :1].view_as(target[:, :, :1]) / 100
        visible = torch.arange(TILES, device=tile.device) != missing[:, None]  # (B, 9)
        shown = torch.where(gray[:, None, None, None, None], light, target) * visible[:, :, None, None, None]
        extra_labels = draw_extra_labels(tile, self.config, rng)
        return Damaged(shown, gray, missing, permutation, label, extra_labels, target)

    def outputs(self, pretext: Damaged) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the permutations (B, K, N), and standardized ab of the eight tiles (8·B, 2, 8, 8) and Lab of the
        missing one (B, 3, 8, 8)."""
        b, missing = len(pretext.tile), pretext.missing
        visible = torch.arange(TILES, device=missing.device) != missing[:, None]
        pool, last = self.tiles(
            normalize_tiles(pretext.tile[visible], self.config)
        )  # of eight tiles, (8·B, …)
        tile_embedding = self.embed(pool)
        embedding = self.mask_token.to(tile_embedding.dtype).repeat(b, TILES, 1)
        embedding[visible] = tile_embedding
        context = self.context(embedding.flatten(1))  # (B, width)
        spatial = context.repeat_interleave(TILES - 1, 0)[..., None, None].expand(-1, -1, *last.shape[-2:])
        maps = F.interpolate(self.fuse(torch.cat([last, spatial], 1)), size=(GRID,) * 2, mode="bilinear")
        inpainted = self.inpaint(torch.cat([context, F.one_hot(missing, TILES).to(context.dtype)], 1))
        extra = self.permutations[pretext.extra_labels]
        rows = permute_embeddings(embedding, pretext.permutation, extra).flatten(2)
        logits = self.order(rows.flatten(0, 1)).view(*rows.shape[:2], -1)
        return logits, self.color(maps.relu()), inpainted.view(b, 3, GRID, GRID)

    def loss(self, pretext: Damaged) -> Loss:
        logits, color, inpainted = self.outputs(pretext)
        visible = torch.arange(TILES, device=logits.device) != pretext.missing[:, None]
        target = standardize_lab(rgb_to_lab(pretext.target.flatten(0, 1)))
        target = F.adaptive_avg_pool2d(target, GRID).unflatten(0, visible.shape)  # (B, 9, 3, 8, 8)
        color_loss = (color.float() - target[visible][:, 1:]).square().mean((1, 2, 3))  # (8·B,)
        gray = pretext.gray.repeat_interleave(TILES - 1)
        order, accuracy = permutation_loss(logits, pretext)
        parts = {
            "order": order / math.log(len(self.permutations)),
            "color": (color_loss * gray).mean(),  # over a count that is the same in every process
            "inpaint": (inpainted.float() - target[~visible]).square().mean(),
        }
        total = sum(getattr(self.config, name) * value for name, value in parts.items())
        return Loss(torch.as_tensor(total), parts | accuracy)

    def predict(self, pretext: Damaged) -> Mapping[str, Tensor]:
        """Visible tiles show the predicted colors on their own lightness; the lightness of the missing one is predicted."""
        logits, color, inpainted = self.outputs(pretext)
        label = logits[:, 0].argmax(1)
        visible = torch.arange(TILES, device=logits.device) != pretext.missing[:, None]
        shown, gray = pretext.tile[visible], pretext.gray.repeat_interleave(TILES - 1)[:, None, None, None]
        light = torch.where(gray, 100 * shown[:, :1], rgb_to_lab(shown)[:, :1])
        color, inpainted = (
            F.interpolate(x, size=shown.shape[-2:], mode="bilinear")
            for x in (
                unstandardize_lab(color.float(), [1, 2]),
                unstandardize_lab(inpainted.float(), [0, 1, 2]),
            )
        )
        target = torch.empty_like(pretext.tile)
        target[visible] = lab_to_rgb(torch.cat([light, color], 1))
        target[~visible] = lab_to_rgb(inpainted)
        return {"label": label, "permutation": self.permutations[label], "target": target}

    def show(
        self, pretext: Damaged, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        for i, (tile, whole, order) in enumerate(
            zip(pretext.tile, pretext.target, pretext.permutation, strict=True)
        ):
            shown = jigsaw.board(tile, torch.arange(TILES), order)
            missing = int(pretext.missing[i])
            tiles = [puzzle.Tile(label="?") if n == missing else one for n, one in enumerate(shown.tiles)]
            own = [(answers["target"][i], answers["permutation"][i])] if answers else []
            yield Puzzle(
                [Panel("damaged tiles", puzzle.Board(tiles))],
                [Panel("in order and in color", jigsaw.board(whole, order, order))],
                [
                    Panel("network", jigsaw.board(seen, predicted, order, mark_correct=True))
                    for seen, predicted in own
                ],
                [jigsaw.ordered(order, *(predicted for _, predicted in own))],
            )

    def export(self) -> Encoder:
        return self.tiles.encoder


def standardize_lab(lab: Tensor) -> Tensor:
    """(M, 3, h, w) -> each channel standardized by its mean and standard deviation in photographs."""
    mean, std = (lab.new_tensor(of)[:, None, None] for of in (LAB_MEAN, LAB_STD))
    return (lab - mean) / std


def unstandardize_lab(x: Tensor, channels: Sequence[int]) -> Tensor:
    """The inverse of `standardize_lab`, for some of the channels L, a, b."""
    mean, std = (x.new_tensor(of)[channels, None, None] for of in (LAB_MEAN, LAB_STD))
    return x * std + mean
