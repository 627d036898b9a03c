"""Jigsaw: nine tiles of an image are shuffled; in which of the listed orders do they stand?

Noroozi, Favaro: Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles, ECCV 2016,
arXiv:1603.09246. Every tile is seen alone, and only the head sees all nine, in their order (sec. 3.1). Tiles of
neighbouring cells are kept from fitting by a gap, by their own brightness and contrast, and by channels that are
moved against each other, which hides the colour fringes of lenses (sec. 3.2). "Released" is
MehdiNoroozi/JigsawPuzzleSolver at 8041c58, its first commit; later ones are of another paper.

**Differs:** by default each puzzle is asked in eight orders and images are flipped. The recipe's list has the 1,000
orders of the paper (table 4); the released settings name a list of 100, beside 1,000 outputs. Tiles have mean 0 and
deviation 1, as in the paper; the released code takes the mean alone off pixels of 0 to 255, and its first weights are
made for that, so the column of the recipe begins by multiplying by 47, a tile's deviation in gray levels. Gray images
and fringes are those of the paper; the released code has neither. Photographs are cut to their central square and scaled
to 255 px; the released tool (generate_jps_dataset.cpp) cuts 255 px out of the middle of images that were scaled before.

Cost: the list is made once, by comparing each of its entries with all 362,880 orders of nine (3 s for 1,000).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import TileEncoder
from pretask.limits import Below, Count, Natural, Part, Several, Share
from pretask.methods.base.method import Method, MethodConfig
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Source, UserError

SIDE = 3
TILES = SIDE * SIDE
Distance = Literal["maximal", "middle", "minimal"]
Spread = Literal["mean", "minimum"]


@dataclass(frozen=True)
class Config(MethodConfig):
    """Name the order in which nine tiles of an image stand."""

    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=64, lr=3e-3, weight_decay=0.01)

    orders: Several = 100
    """in the list, of the 362,880 that there are"""
    distance: Distance = "maximal"
    """Hamming distance of the listed orders from each other: as large as it gets, that of random ones, or as small
    (table 4)"""
    spread: Spread = "mean"
    """what of an order's distances to those before it is made large: their mean, as in the paper, or their minimum"""
    window: Part = 1.0
    """side of the square that is cut into nine cells, as a share of the image's; smaller ones lie anywhere"""
    tile: Part = 0.75
    """side of a tile, as a share of its cell's; it lies anywhere in it"""
    normalise: bool = True
    """each channel of each tile to mean 0 and deviation 1 (sec. 3.2; without it 43.5 of 52.6 in table 5)"""
    fringe: Natural = 1
    """pixels by which a channel of a tile is moved at most, up or down and left or right"""
    grey: Share = 0.3
    """probability that an image loses its colour (sec. 3.2)"""
    flip: Share = 0.5
    """probability that an image is flipped before it is cut"""
    shuffles: Count = 8
    """orders that the head is asked for each time; tiles are described once for all (the paper: 1)"""
    width: Count = 128
    """numbers by which a tile is described to the head"""
    hidden: Count = 512
    """width of the head's hidden layer"""
    dropout: Below = 0.0
    """of the head's two layers"""
    flat: bool = False
    """a tile is described by its whole last map in place of the map's mean"""

    def build(self, encoder: Encoder, source: Source) -> Method[Any]:
        return Jigsaw(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """The released run, with --size 255: context-free network, cells of 85 px, tiles of 64, 350,000 steps."""

    encoder: ClassVar[str] = "cfn"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=70,
        batch=256,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        warmup=0.0,
        drops=(100 / 350, 200 / 350, 300 / 350),
        vector_lr=2.0,
    )

    orders: Several = 1000
    """of the 362,880 that there are"""
    tile: Part = 64 / 85
    """64 of 85 pixels"""
    fringe: Natural = 2
    """pixels, of 64"""
    flip: Share = 0.0
    """none in the released code"""
    shuffles: Count = 1
    """of an image each time"""
    width: Count = 1024
    """fc6"""
    hidden: Count = 4096
    """fc7"""
    dropout: Below = 0.5
    """after fc6 and fc7"""
    flat: bool = True
    """3 x 3 x 256 numbers"""

    def build(self, encoder: Encoder, source: Source) -> Method[Any]:
        method = Jigsaw(self, encoder)
        for layer, std, bias in ((method.fc6, 0.005, 1.0), (method.fc7, 0.005, 1.0), (method.fc8, 0.01, 0.0)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.constant_(layer.bias, bias)
        return method


@dataclass(frozen=True)
class Shuffled:
    tile: Tensor  # (B, 9, C, t, t), as they stand after the shuffle
    order: Tensor  # (B, 9) the cell that each came from, rows from the top
    entry: Tensor  # (B,) of the list
    others: Tensor  # (B, K - 1) entries of the further orders that the head is asked for


@cache
def permutation_set(
    count: int, distance: Distance = "maximal", spread: Spread = "mean", seed: int = 0
) -> Tensor:
    """(count, 9): different orders of nine tiles (algorithm 1).

    The first is random. Then comes the one whose Hamming distances to the chosen have the largest mean or, with
    `spread` "minimum", the largest minimum, and of equal minima the largest mean; `distance` "minimal" takes the
    smallest mean, "middle" any order. Ties are broken at random: the first of them in dictionary order would be a
    near twin of one that is there already, as good by the mean, and a puzzle that two tiles decide.
    """
    every = torch.from_numpy(np.array(list(permutations(range(TILES))), dtype=np.uint8).T.copy())  # (9, 9!)
    if not 2 <= count <= every.shape[1]:
        raise UserError(
            f"a list of {count} orders was asked for; there are 2 to {every.shape[1]:,} of {TILES} tiles"
        )
    rng = Rng(seed, "orders")
    if distance == "middle":
        return every[:, rng.permutation(every.shape[1])[:count]].T.long()
    chosen = [int(rng.integers(1, high=every.shape[1]))]
    total = torch.zeros(every.shape[1], dtype=torch.int32)
    least = torch.full_like(total, TILES)
    while len(chosen) < count:
        far = (every != every[:, chosen[-1:]]).sum(0, dtype=torch.int32)
        total, least = total + far, torch.minimum(least, far)
        worth = least * (TILES * count) + total if spread == "minimum" else total.clone()
        worth = -worth if distance == "minimal" else worth
        worth[chosen] = torch.iinfo(worth.dtype).min
        best = (worth == worth.max()).nonzero().flatten()
        chosen.append(int(best[rng.integers(1, high=len(best))]))
    return every[:, chosen].T.long()


@dataclass(frozen=True)
class Board:
    """Where tiles lie: `cell` and `side` of a tile in an image, pixels."""

    cell: int
    side: int

    @classmethod
    def of(cls, config: Config, size: int) -> "Board":
        cell = int(config.window * size) // SIDE
        side = round(config.tile * cell)
        if side < 8:
            least = math.ceil(SIDE * math.ceil(7.5 / config.tile) / config.window)
            raise UserError(f"images of {size} px give tiles of {side} px; give --size {least} or more")
        return cls(cell, side)

    def cut(self, x: Tensor, fringe: Tensor | int, rng: Rng) -> Tensor:
        """(B, C, H, W) -> a tile out of each of nine cells, (B, 9, C, t, t); fringe (B, 9, C, 2) moves channels."""
        b, size, cells = len(x), x.shape[-1], torch.arange(TILES, device=x.device)
        origin = torch.stack([cells // SIDE, cells % SIDE], 1) * self.cell  # (9, 2)
        corner = origin + rng.integers(b, 1, 2, high=size - SIDE * self.cell + 1)  # of each cell
        corner = corner + rng.integers(b, TILES, 2, high=self.cell - self.side + 1)  # of each tile, (B, 9, 2)
        return images.windows(x, (corner[:, :, None] + fringe).clamp(0, size - self.side), self.side)


class Jigsaw(Method[Shuffled]):
    orders: Tensor  # (N, 9)

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.board = config, Board.of(config, encoder.size)
        self.register_buffer(
            "orders", permutation_set(config.orders, config.distance, config.spread), persistent=False
        )
        self.tiles = TileEncoder(encoder, self.board.side, config.flat)
        self.fc6 = nn.Linear(self.tiles.dim, config.width)  # of each tile alone
        self.fc7 = nn.Linear(TILES * config.width, config.hidden)
        self.fc8 = nn.Linear(config.hidden, config.orders)
        self.dropout = nn.Dropout(config.dropout)

    def pretext(self, batch: Batch, rng: Rng) -> Shuffled:
        tile, plain = cut(images.to_float(batch.image), self.board, self.config, rng)
        tile = torch.where(plain[:, None, None, None, None], images.luma(tile), tile)
        return Shuffled(*shuffled(tile, self.orders, rng), others(tile, self.config, rng))

    def logits(self, pretext: Shuffled) -> Tensor:
        """Scores of the orders in the list for the order that is shown and for each of the others, (B, K, N)."""
        b, tile = len(pretext.tile), pretext.tile.flatten(0, 1)  # (9·B, C, t, t)
        described, _ = self.tiles(levelled(tile, self.config))
        column = self.dropout(self.fc6(described).relu()).view(b, TILES, -1)
        boards = reordered(column, pretext.order, self.orders[pretext.others]).flatten(2)
        return self.fc8(self.dropout(self.fc7(boards).relu()))

    def loss(self, pretext: Shuffled) -> Loss:
        return Loss(*guessed(self.logits(pretext), pretext))

    def solve(self, pretext: Shuffled) -> Mapping[str, Tensor]:
        entry = self.logits(pretext)[:, 0].argmax(1)
        return {"entry": entry, "order": self.orders[entry]}

    def export(self) -> Encoder:
        return self.tiles.encoder


def cut(x: Tensor, board: Board, config: Config, rng: Rng) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) -> nine tiles of each image (B, 9, C, t, t), and whether they are to lose their colour (B,).

    Those that are have no fringes. Images are flipped as `config` says.
    """
    x, reach = images.flip(x, rng, config.flip), config.fringe
    plain = rng.coin(len(x), p=config.grey)
    fringe = rng.integers(len(x), TILES, x.shape[1], 2, high=2 * reach + 1) - reach
    return board.cut(x, fringe * ~plain[:, None, None, None], rng), plain


def shuffled(tile: Tensor, orders: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 9, …) -> the tiles in one of the orders (N, 9), that order (B, 9), and its entry in the list (B,)."""
    entry = rng.integers(len(tile), high=len(orders))
    order = orders[entry]
    return tile[torch.arange(len(tile), device=tile.device)[:, None], order], order, entry


def levelled(tile: Tensor, config: Config) -> Tensor:
    """(M, C, t, t) in [0, 1] -> as the network takes them."""
    return images.standardise(tile) if config.normalise else tile - 0.5


def others(tile: Tensor, config: Config, rng: Rng) -> Tensor:
    """(B, K - 1): entries of further orders in which the head sees the tiles of an image."""
    return rng.integers(len(tile), config.shuffles - 1, high=config.orders)


def reordered(board: Tensor, order: Tensor, orders: Tensor) -> Tensor:
    """(B, 9, D) descriptions of tiles that stand in `order` (B, 9) -> as they stand, then in each of `orders`
    (B, K - 1, 9): (B, K, 9, D)."""
    row = torch.arange(len(board), device=board.device)
    cell = board[row[:, None], order.argsort(1)]  # back in rows
    return torch.cat([board[:, None], cell[row[:, None, None], orders]], 1)


def guessed(logits: Tensor, pretext: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """(B, K, N) -> the cross-entropy of all K orders, and the share of those that were named rightly."""
    entry = torch.cat([pretext.entry[:, None], pretext.others], 1)
    accuracy = (logits.argmax(2) == entry).float().mean()
    return F.cross_entropy(logits.flatten(0, 1), entry.flatten()), {"accuracy": accuracy}
