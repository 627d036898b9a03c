"""Damaged jigsaw: nine tiles are shuffled, one is missing, the others have lost their colour; mend all three.

Kim, Cho, Yoo, Kweon: Learning Image Representations by Completing Damaged Jigsaw Puzzles, WACV 2018,
arXiv:1802.01880. One network, which sees each tile alone, serves three heads: the order of the tiles, the colour of
the eight, what the ninth showed. Setting the weights of two heads to 0 leaves the third by itself on the same puzzle
(the paper's "complicated" single tasks). By default some images keep their colour, so that the features can use it
later; their colour is not asked for.

**Differs**, as far as one can tell: no code was released, and of the paper only the abstract could be read. These are
this file's own choices: tiles are painted in CIELab at 8 x 8 places, the eight in a and b, the ninth in L as well
("generate the missing content"); each channel is scored by the squared error, in units of its usual variance, so
that answering its mean costs about 1; the order is scored in units of ln N, so that guessing costs 1. The paper's
recipe is that of jigsaw, network and all, tiles in gray levels included, and gives the three equal weight; by default
colors count less, which makes better features within minutes. The list of orders makes the smallest distance large,
because with a hole two orders that differ in two tiles could look the same but for one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import TileEncoder, projector
from pretask.limits import Below, Count, Part, Several, Share, Weight
from pretask.methods import jigsaw
from pretask.methods.base.method import Method
from pretask.methods.jigsaw import (
    TILES,
    Board,
    Spread,
    cut,
    guessed,
    levelled,
    others,
    permutation_set,
    reordered,
    shuffled,
)
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Source, UserError

PLACES = 8
"""of a tile, along each side, whose colour is asked for"""


@dataclass(frozen=True)
class Config(jigsaw.Config):
    """Name the order of grey tiles of which one is missing, paint it, and give the others their colour."""

    spread: Spread = "minimum"
    """what of an order's distances to those before it is made large: their mean or their minimum"""
    grey: Share = 0.7
    """probability that the tiles of an image lose their colour (the paper: 1)"""
    order: Weight = 1.0
    """weight of the order; 0 leaves it out"""
    colour: Weight = 0.3
    """weight of the colour of the eight tiles (the paper's recipe: 1)"""
    inpaint: Weight = 0.3
    """weight of the missing tile (the paper's recipe: 1)"""

    def build(self, encoder: Encoder, source: Source) -> Method[Any]:
        if encoder.channels != 3:
            raise UserError(
                f"damaged_jigsaw asks for colours, but {source.name} has {encoder.channels} channel"
            )
        if not self.order + self.colour + self.inpaint > 0:
            raise UserError("--order, --colour and --inpaint are all 0; give at least one a weight")
        return DamagedJigsaw(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """With --size 255: network, tiles, orders and schedule of jigsaw:paper, for the paper's own could not be read."""

    encoder: ClassVar[str] = jigsaw.Paper.encoder
    train: ClassVar[TrainConfig] = jigsaw.Paper.train

    orders: Several = jigsaw.Paper.orders
    """of the 362,880 that there are"""
    tile: Part = jigsaw.Paper.tile
    """64 of 85 pixels"""
    grey: Share = 1.0
    """all images"""
    colour: Weight = 1.0
    """the weight of the order"""
    inpaint: Weight = 1.0
    """the weight of the order"""
    flip: Share = jigsaw.Paper.flip
    """none in the released code of jigsaw"""
    shuffles: Count = jigsaw.Paper.shuffles
    """of an image each time"""
    width: Count = jigsaw.Paper.width
    """numbers by which a tile is described to the heads"""
    hidden: Count = jigsaw.Paper.hidden
    """width of the heads' hidden layers"""
    dropout: Below = jigsaw.Paper.dropout
    """of what describes a tile"""
    flat: bool = jigsaw.Paper.flat
    """3 x 3 x 256 numbers"""


@dataclass(frozen=True)
class Damaged:
    tile: Tensor  # (B, 9, 3, t, t), most of them grey, as they stand after the shuffle; the missing one is black
    grey: Tensor  # (B,) whether an image has lost its colour
    missing: Tensor  # (B,) slot of the missing one
    order: Tensor  # (B, 9) the cell that each came from
    entry: Tensor  # (B,) of the list
    others: Tensor  # (B, K - 1) entries of the further orders that the head is asked for
    whole: Tensor  # (B, 9, 3, t, t) the tiles in colour


class DamagedJigsaw(Method[Damaged]):
    orders: Tensor  # (N, 9)

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.board = config, Board.of(config, encoder.size)
        self.register_buffer(
            "orders", permutation_set(config.orders, config.distance, config.spread), persistent=False
        )
        self.tiles = TileEncoder(encoder, self.board.side, config.flat)
        self.column = nn.Sequential(
            nn.Linear(self.tiles.dim, config.width), nn.ReLU(inplace=True), nn.Dropout(config.dropout)
        )
        self.hole = nn.Parameter(
            torch.zeros(config.width)
        )  # how a missing tile is described, the same for all images
        self.order = projector(TILES * config.width, config.hidden, config.orders)
        self.context = nn.Linear(TILES * config.width, config.width)
        self.around = nn.Conv2d(self.tiles.channels + config.width, config.width, 1)
        self.colour = nn.Conv2d(config.width, 2, 3, padding=1)
        self.inpaint = projector(config.width + TILES, config.hidden, 3 * PLACES * PLACES)

    def pretext(self, batch: Batch, rng: Rng) -> Damaged:
        tile, plain = cut(images.to_float(batch.image), self.board, self.config, rng)
        whole, order, entry = shuffled(tile, self.orders, rng)
        missing = rng.integers(len(tile), high=TILES)
        light = images.lab(whole.flatten(0, 1))[:, :1].view_as(whole[:, :, :1]) / 100
        there = torch.arange(TILES, device=tile.device) != missing[:, None]  # (B, 9)
        seen = torch.where(plain[:, None, None, None, None], light, whole) * there[:, :, None, None, None]
        return Damaged(seen, plain, missing, order, entry, others(tile, self.config, rng), whole)

    def answers(self, pretext: Damaged) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the orders (B, K, N), ab of the eight tiles (8·B, 2, 8, 8) and Lab of the ninth (B, 3, 8, 8), as
        `scaled` has them."""
        b, missing = len(pretext.tile), pretext.missing
        there = torch.arange(TILES, device=missing.device) != missing[:, None]
        seen, last = self.tiles(levelled(pretext.tile[there], self.config))  # of eight tiles, (8·B, …)
        column = self.column(seen)
        board = self.hole.to(column.dtype).repeat(b, TILES, 1)
        board[there] = column
        context = self.context(board.flatten(1))  # (B, width)
        around = context.repeat_interleave(TILES - 1, 0)[..., None, None].expand(-1, -1, *last.shape[-2:])
        maps = F.interpolate(self.around(torch.cat([last, around], 1)), size=(PLACES,) * 2, mode="bilinear")
        hole = self.inpaint(torch.cat([context, F.one_hot(missing, TILES).to(context.dtype)], 1))
        boards = reordered(board, pretext.order, self.orders[pretext.others]).flatten(2)
        logits = self.order(boards.flatten(0, 1)).view(*boards.shape[:2], -1)
        return logits, self.colour(maps.relu()), hole.view(b, 3, PLACES, PLACES)

    def loss(self, pretext: Damaged) -> Loss:
        logits, colour, hole = self.answers(pretext)
        there = torch.arange(TILES, device=hole.device) != pretext.missing[:, None]
        true = scaled(images.lab(pretext.whole.flatten(0, 1)))
        true = F.adaptive_avg_pool2d(true, PLACES).unflatten(0, there.shape)  # (B, 9, 3, 8, 8)
        cost = (colour.float() - true[there][:, 1:]).square().mean((1, 2, 3))  # (8·B,)
        asked = pretext.grey.repeat_interleave(TILES - 1)
        order, accuracy = guessed(logits, pretext)
        parts = {
            "order": order / math.log(len(self.orders)),
            "colour": (cost * asked).mean(),  # over a count that is the same in every process
            "inpaint": (hole.float() - true[~there]).square().mean(),
        }
        total = sum(getattr(self.config, name) * value for name, value in parts.items())
        return Loss(torch.as_tensor(total), parts | accuracy)

    def solve(self, pretext: Damaged) -> Mapping[str, Tensor]:
        """Tiles are painted in the answered colours on the lightness that is seen; of the ninth that is answered too."""
        logits, colour, hole = self.answers(pretext)
        entry = logits[:, 0].argmax(1)
        there = torch.arange(TILES, device=hole.device) != pretext.missing[:, None]
        seen, grey = pretext.tile[there], pretext.grey.repeat_interleave(TILES - 1)[:, None, None, None]
        light = torch.where(grey, 100 * seen[:, :1], images.lab(seen)[:, :1])
        colour, hole = (
            F.interpolate(x, size=seen.shape[-2:], mode="bilinear")
            for x in (unscaled(colour.float(), [1, 2]), unscaled(hole.float(), [0, 1, 2]))
        )
        whole = torch.empty_like(pretext.tile)
        whole[there] = images.from_lab(torch.cat([light, colour], 1))
        whole[~there] = images.from_lab(hole)
        return {"entry": entry, "order": self.orders[entry], "whole": whole}

    def export(self) -> Encoder:
        return self.tiles.encoder


def scaled(lab: Tensor) -> Tensor:
    """(M, 3, h, w) -> each channel less its mean in photographs, in units of its standard deviation there."""
    mean, spread = (lab.new_tensor(of)[:, None, None] for of in (images.LAB_MEAN, images.LAB_SPREAD))
    return (lab - mean) / spread


def unscaled(x: Tensor, channels: Sequence[int]) -> Tensor:
    """The inverse of `scaled`, of some of the channels L, a, b."""
    mean, spread = (x.new_tensor(of)[channels, None, None] for of in (images.LAB_MEAN, images.LAB_SPREAD))
    return x * spread + mean
