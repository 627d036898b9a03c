"""Jigsaw: shuffle nine tiles of an image and predict which permutation of a fixed set was used.

Noroozi, Favaro: Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles, ECCV 2016,
arXiv:1603.09246. The encoder processes each tile separately; only the head sees all nine, in shuffled order (sec. 3.1). A
gap between tiles, normalization of each tile, and shifts of the color channels against each other, which hide chromatic
aberration, prevent shortcuts by low-level cues (sec. 3.2). "Released" is MehdiNoroozi/JigsawPuzzleSolver at 8041c58, its
first commit; later ones belong to another paper.

**Differs:** by default the head predicts eight permutations of each image, and images are flipped. The recipe has the 1,000
permutations of the paper (table 4); the released settings name a list of 100, with 1,000 outputs. Tiles have mean 0 and
standard deviation 1, as in the paper; the released code only subtracts the mean from pixels of 0 to 255, and its
initialization assumes this scale, so the recipe's network first multiplies by 47, the standard deviation of a tile in gray
levels. Gray images and channel shifts are those of the paper; the released code has neither. Photographs are cropped to
their central square and scaled to 255 px; the released tool (generate_jps_dataset.cpp) crops the central 255 px of images
that were scaled before.

Cost: the set is computed once, by comparing each of its entries with all 362,880 permutations of nine (3 s for 1,000).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import permutations
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import TileEncoder
from pretask.limits import (
    AtLeastTwo,
    FractionBelowOne,
    NonNegativeInt,
    PositiveFraction,
    PositiveInt,
    UnitInterval,
)
from pretask.methods.base.method import Method, MethodConfig, Minimum
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.transforms.color import luma
from pretask.types import Batch, Loss, Source, UserError
from pretask.viz import puzzle
from pretask.viz.puzzle import Caption, Panel, Puzzle

SIDE = 3
TILES = SIDE * SIDE
SMALLEST = 8
"""smallest side of a tile, pixels"""
Distance = Literal["maximal", "middle", "minimal"]
DistanceStat = Literal["mean", "minimum"]


@dataclass(frozen=True)
class Config(MethodConfig):
    """Predict the permutation of nine shuffled tiles of an image."""

    family: ClassVar[str] = "pretext tasks"
    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=3e-3, weight_decay=0.01)

    num_permutations: AtLeastTwo = 100
    """size of the permutation set, of 362,880 possible ones"""
    distance: Distance = "maximal"
    """Hamming distance between the permutations of the set: maximal, that of random ones, or minimal (table 4)"""
    distance_stat: DistanceStat = "mean"
    """statistic of a permutation's distances to the earlier ones that is maximized: the mean (paper) or the minimum"""
    window: PositiveFraction = 1.0
    """side of the square that is divided into nine cells, as a fraction of the image's; its position is random"""
    tile: PositiveFraction = 0.75
    """side of a tile, as a fraction of its cell's; its position in the cell is random"""
    normalize: bool = True
    """scale each channel of each tile to mean 0 and standard deviation 1 (sec. 3.2; without it 43.5 not 52.6, table 5)"""
    channel_shift: NonNegativeInt = 1
    """largest vertical and horizontal shift of a tile's color channel, pixels"""
    gray: UnitInterval = 0.3
    """probability that an image is converted to grayscale (sec. 3.2)"""
    flip: UnitInterval = 0.5
    """probability that an image is flipped before it is cut into tiles"""
    shuffles: PositiveInt = 8
    """permutations that the head predicts per image; each tile is encoded once for all (paper: 1)"""
    width: PositiveInt = 128
    """dimension of a tile's embedding"""
    hidden: PositiveInt = 512
    """width of the head's hidden layer"""
    dropout: FractionBelowOne = 0.0
    """dropout rate in the head's two layers"""
    flatten: bool = False
    """represent a tile by its whole last feature map instead of the map's mean"""

    def smallest_side(self, encoder: Encoder) -> Minimum:
        cell = math.ceil((SMALLEST - 0.5) / self.tile)
        return Minimum(math.ceil(SIDE * cell / self.window), "or a larger --tile or --window")

    def build(self, encoder: Encoder, source: Source) -> Method[Any]:
        return Jigsaw(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """The released run, with --size 255: context-free network, cells of 85 px, tiles of 64 px, 350,000 steps."""

    encoder: ClassVar[str] = "cfn"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=70,
        batch=256,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        warmup=0.0,
        milestones=(100 / 350, 200 / 350, 300 / 350),
        bias_lr_scale=2.0,
    )

    num_permutations: AtLeastTwo = 1000
    """size of the permutation set, of 362,880 possible ones"""
    tile: PositiveFraction = 64 / 85
    """64 of 85 pixels"""
    channel_shift: NonNegativeInt = 2
    """pixels, of 64"""
    flip: UnitInterval = 0.0
    """none in the released code"""
    shuffles: PositiveInt = 1
    """one per image"""
    width: PositiveInt = 1024
    """fc6"""
    hidden: PositiveInt = 4096
    """fc7"""
    dropout: FractionBelowOne = 0.5
    """after fc6 and fc7"""
    flatten: bool = True
    """3 x 3 x 256 features"""

    def build(self, encoder: Encoder, source: Source) -> Method[Any]:
        method = Jigsaw(self, encoder)
        for layer, std, bias in ((method.fc6, 0.005, 1.0), (method.fc7, 0.005, 1.0), (method.fc8, 0.01, 0.0)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.constant_(layer.bias, bias)
        return method


@dataclass(frozen=True)
class Shuffled:
    tile: Tensor  # (B, 9, C, t, t), in shuffled order
    permutation: Tensor  # (B, 9) the cell that each tile came from, in raster order
    label: Tensor  # (B,) index of the permutation in the set
    extra_labels: Tensor  # (B, K - 1) further permutations of the same tiles that the head predicts


@cache
def permutation_set(
    count: int, distance: Distance = "maximal", distance_stat: DistanceStat = "mean", seed: int = 0
) -> Tensor:
    """(count, 9): different permutations of nine tiles (algorithm 1).

    The first is random. Each next one has the largest mean Hamming distance to those already chosen or, with
    `distance_stat` "minimum", the largest minimum distance, and among equal minima the largest mean. `distance` "minimal"
    takes the smallest mean, "middle" random permutations. Ties are broken at random: the first one in lexicographic order
    would have the same mean but differ from a chosen permutation in only two tiles.
    """
    return _permutation_set(count, distance, distance_stat, seed).clone()


@lru_cache(maxsize=16)
def _permutation_set(count: int, distance: Distance, distance_stat: DistanceStat, seed: int) -> Tensor:
    every = torch.from_numpy(np.array(list(permutations(range(TILES))), dtype=np.uint8).T.copy())  # (9, 9!)
    if not 2 <= count <= every.shape[1]:
        raise UserError(
            f"--num-permutations {count}: expected 2 to {every.shape[1]:,}, the permutations of {TILES} tiles"
        )
    rng = Rng(seed, "orders")
    if distance == "middle":
        return every[:, rng.permutation(every.shape[1])[:count]].T.long()
    chosen = [int(rng.integers(1, high=every.shape[1]))]
    total = torch.zeros(every.shape[1], dtype=torch.int32)
    least = torch.full_like(total, TILES)
    while len(chosen) < count:
        hamming = (every != every[:, chosen[-1:]]).sum(0, dtype=torch.int32)
        total, least = total + hamming, torch.minimum(least, hamming)
        score = least * (TILES * count) + total if distance_stat == "minimum" else total.clone()
        score = -score if distance == "minimal" else score
        score[chosen] = torch.iinfo(score.dtype).min
        best = (score == score.max()).nonzero().flatten()
        chosen.append(int(best[rng.integers(1, high=len(best))]))
    return every[:, chosen].T.long()


@dataclass(frozen=True)
class TileGrid:
    """Sides of a cell and of a tile, pixels."""

    cell: int
    side: int

    @classmethod
    def from_config(cls, config: Config, size: int) -> "TileGrid":
        cell = int(config.window * size) // SIDE
        return cls(cell, round(config.tile * cell))

    def cut(self, x: Tensor, shift: Tensor | int, rng: Rng) -> Tensor:
        """(B, C, H, W) -> one tile from each of nine cells, (B, 9, C, t, t); shift (B, 9, C, 2) moves channels."""
        b, size, cells = len(x), x.shape[-1], torch.arange(TILES, device=x.device)
        origin = torch.stack([cells // SIDE, cells % SIDE], 1) * self.cell  # (9, 2)
        corner = origin + rng.integers(b, 1, 2, high=size - SIDE * self.cell + 1)  # of each cell
        corner = corner + rng.integers(b, TILES, 2, high=self.cell - self.side + 1)  # of each tile, (B, 9, 2)
        return augment.windows(x, (corner[:, :, None] + shift).clamp(0, size - self.side), self.side)


class Jigsaw(Method[Shuffled]):
    pretext_task = "Jigsaw puzzle"
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
        self.fc6 = nn.Linear(self.tiles.dim, config.width)  # applied to each tile
        self.fc7 = nn.Linear(TILES * config.width, config.hidden)
        self.fc8 = nn.Linear(config.hidden, config.num_permutations)
        self.dropout = nn.Dropout(config.dropout)

    def pretext(self, batch: Batch, rng: Rng) -> Shuffled:
        tile, gray = cut_tiles(augment.to_float(batch.image), self.grid, self.config, rng)
        tile = torch.where(gray[:, None, None, None, None], luma(tile), tile)
        return Shuffled(
            *shuffle_tiles(tile, self.permutations, rng), draw_extra_labels(tile, self.config, rng)
        )

    def logits(self, pretext: Shuffled) -> Tensor:
        """Logits of the N permutations for the tiles as shown and for each extra permutation, (B, K, N)."""
        b, tile = len(pretext.tile), pretext.tile.flatten(0, 1)  # (9·B, C, t, t)
        pool, _ = self.tiles(normalize_tiles(tile, self.config))
        embedding = self.dropout(self.fc6(pool).relu()).view(b, TILES, -1)
        extra = self.permutations[pretext.extra_labels]
        rows = permute_embeddings(embedding, pretext.permutation, extra).flatten(2)
        return self.fc8(self.dropout(self.fc7(rows).relu()))

    def loss(self, pretext: Shuffled) -> Loss:
        return Loss(*permutation_loss(self.logits(pretext), pretext))

    def predict(self, pretext: Shuffled) -> Mapping[str, Tensor]:
        label = self.logits(pretext)[:, 0].argmax(1)
        return {"label": label, "permutation": self.permutations[label]}

    def show(
        self, pretext: Shuffled, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        for i, (tile, order) in enumerate(zip(pretext.tile, pretext.permutation, strict=True)):
            own = [answers["permutation"][i]] if answers else []
            yield Puzzle(
                [Panel("shuffled tiles", board(tile, torch.arange(TILES), order))],
                [Panel("in order", board(tile, order, order))],
                [Panel("network", board(tile, predicted, order, mark_correct=True)) for predicted in own],
                [ordered(order, *own)],
            )

    def export(self) -> Encoder:
        return self.tiles.encoder


def cut_tiles(x: Tensor, grid: TileGrid, config: Config, rng: Rng) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) -> nine tiles of each image (B, 9, C, t, t), and which images are to be grayscale (B,).

    The channels of grayscale images are not shifted. Images are flipped with probability `config.flip`.
    """
    x, largest = augment.flip(x, rng, config.flip), config.channel_shift
    gray = rng.coin(len(x), p=config.gray)
    shift = rng.integers(len(x), TILES, x.shape[1], 2, high=2 * largest + 1) - largest
    return grid.cut(x, shift * ~gray[:, None, None, None], rng), gray


def shuffle_tiles(tile: Tensor, permutations: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 9, …) -> shuffled tiles, their permutations (B, 9), and the indices of those among `permutations` (B,)."""
    label = rng.integers(len(tile), high=len(permutations))
    permutation = permutations[label]
    return tile[torch.arange(len(tile), device=tile.device)[:, None], permutation], permutation, label


def normalize_tiles(tile: Tensor, config: Config) -> Tensor:
    """(M, C, t, t) in [0, 1] -> the input of the encoder."""
    return augment.standardize(tile) if config.normalize else tile - 0.5


def draw_extra_labels(tile: Tensor, config: Config, rng: Rng) -> Tensor:
    """(B, K - 1): indices of further random permutations in which the head sees the tiles."""
    return rng.integers(len(tile), config.shuffles - 1, high=config.num_permutations)


def permute_embeddings(embedding: Tensor, permutation: Tensor, extra: Tensor) -> Tensor:
    """Tile embeddings (B, 9, D) in the order `permutation` (B, 9) -> as they are, then in each of `extra`
    (B, K - 1, 9): (B, K, 9, D)."""
    row = torch.arange(len(embedding), device=embedding.device)
    cell = embedding[row[:, None], permutation.argsort(1)]  # in raster order
    return torch.cat([embedding[:, None], cell[row[:, None, None], extra]], 1)


def permutation_loss(logits: Tensor, pretext: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """(B, K, N) -> the cross-entropy over all K permutations, and the accuracy."""
    label = torch.cat([pretext.label[:, None], pretext.extra_labels], 1)
    accuracy = (logits.argmax(2) == label).float().mean()
    return F.cross_entropy(logits.flatten(0, 1), label.flatten()), {"accuracy": accuracy}


def board(tile: Tensor, place: Tensor, order: Tensor, mark_correct: bool = False) -> puzzle.Board:
    """Tiles (9, C, t, t), each at its `place` (9,) and labeled with its original cell, 1 to 9. If the network puts two tiles
    into one cell, another stays empty."""
    cells = [puzzle.Tile()] * TILES
    for x, at, cell in zip(tile, place.tolist(), order.tolist(), strict=True):
        cells[at] = puzzle.Tile(x, str(cell + 1), at == cell if mark_correct else None)
    return puzzle.Board(cells)


def ordered(order: Tensor, predicted: Tensor | None = None) -> Caption:
    """The original cell of each tile, counted from 1, in the order shown."""
    true, answer = ([] if x is None else [cell + 1 for cell in x.tolist()] for x in (order, predicted))
    right = tuple(a == b for a, b in zip(true, answer, strict=True)) if answer else ()
    return Caption("Tile order?", " ".join(map(str, true)), " ".join(map(str, answer)), right)
