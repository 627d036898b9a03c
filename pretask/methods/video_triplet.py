"""Video triplets: ranking loss on the first and last patch of a track, with patches of other clips as negatives.

Wang, Gupta: Unsupervised Learning of Visual Representations using Videos, ICCV 2015, arXiv:1505.00687. The paper's
text was not read: numbers without another source are those of the released code, xiaolonw/caffe-video_triplet, and
those of the paper are marked as from memory or as summarized by others. `pretask track` hard_mining the positive pairs
(tracking.py): the first and last patch of a track. The negatives of a pair are patches of other clips in its batch: random
ones in the first part of the run, then half of them hard negatives in the released prototxt, all of them in the paper.

Cost: two images per sample, and B·2B similarities; with several processes, negatives are from all of them.

**Differs:**
by default patches are also cropped and color-jittered, each independently, so that the position and tint of a clip do not
identify it (released: only flipped); the head is a separate module with batch norm instead of the end of the network, without
the final ReLU of the released network, so that cosines can be negative. In `:paper`, the margin is the paper's from memory,
0.5, where the released prototxt has 1 (its readme also mentions 0.5); the subtracted mean is one color, that of ImageNet, where
the released code subtracts the mean image of its patches; both stages are in one run, where the released launch script starts
from the weights of an earlier run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import build_mlp
from pretask.limits import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFraction,
    PositiveInt,
    UnitInterval,
    between,
)
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method
from pretask.methods.base.views import ViewConfig
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.transforms import augment
from pretask.types import Batch, Loss, Progress, Source, UserError
from pretask.viz.puzzle import Caption, Panel, Puzzle

NEGATIVES = 4
"""negatives per pair (neg_num); hard ones are sampled from the same number of most similar candidates"""


@dataclass(frozen=True)
class Config(ViewConfig):
    """Rank the last patch of a track above patches of other clips."""

    family: ClassVar[str] = "multimodal and synthetic"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=200, batch=64, lr=1e-3, weight_decay=0.01)
    needs: ClassVar[frozenset[str]] = frozenset({"tracked", "clip"})

    side: PositiveFraction = 1.0
    """side of the encoder's input, as a fraction of the mined patch's"""
    margin: NonNegativeFloat = 0.5
    """margin between the cosine distances of negatives and positives (released prototxt: 1)"""
    hard_start: UnitInterval = 0.25
    """fraction of the run after which hard negatives are used (readme: start without)"""
    num_hard: Annotated[int, *between(0, NEGATIVES)] = 2
    """hard ones among the four negatives (hard_ratio 0.5; the paper: all, according to a summary)"""
    hidden: NonNegativeInt = 512
    """width of the head's hidden layer; 0: no head, the encoder's features are compared"""
    width: PositiveInt = 128
    """dimension of the head's output"""

    def build(self, encoder: Encoder, source: Source) -> "VideoTriplet":
        return VideoTriplet(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """The released run, with --size 227: CaffeNet on 8 million patches, SGD, 50 pairs per step, 400,000 steps.

    `--num-hard 2 --margin 1` is the loss of the released prototxt.
    """

    encoder: ClassVar[str] = "caffenet:fc7=1024,dropout=0"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=5,
        batch=50,
        optimizer="sgd",
        lr=1e-3,
        weight_decay=5e-4,
        warmup=0.0,
        milestones=(0.25, 0.5, 0.75),
        bias_lr_scale=2.0,
    )

    views: augment.ViewAugmentation = augment.ViewAugmentation(
        crop=(1.0, 1.0), jitter=0.0, jitter_p=0.0, gray=0.0
    )
    """only horizontal flips"""
    hard_start: UnitInterval = 150 / 400
    """fraction of the run (150,000 steps, according to a summary of the paper: coguo.com/1747746327.html)"""
    num_hard: Annotated[int, *between(0, NEGATIVES)] = 4
    """all negatives are the hardest (the same summary)"""
    hidden: NonNegativeInt = 0
    """fc7 is compared, after its ReLU"""


@dataclass(frozen=True)
class Tracked:
    image: Tensor  # (B, C, H, W) the first patch of a track
    tracked: Tensor  # (B, C, H, W) the last patch
    clip: Tensor  # (B,) index of the clip
    draw: Tensor  # (B, 2, 2B) in [0, 1), determine the hard and the random negatives in the batch


def sample_negatives(similarity: Tensor, allowed: Tensor, draw: Tensor, hard: int) -> Tensor:
    """Similarities to candidates and whether these are allowed (P, M), draws (P, 2, M) -> mask (P, M) of up to NEGATIVES
    negatives.

    `hard` of them are sampled from the NEGATIVES most similar, the others from all that remain.
    """
    hardest = top_mask(similarity, allowed, NEGATIVES)
    first = top_mask(draw[:, 0], hardest, hard)
    return first | top_mask(draw[:, 1], allowed & ~first, NEGATIVES - hard)


def top_mask(value: Tensor, allowed: Tensor, count: int) -> Tensor:
    """(P, M) -> mask of the `count` largest allowed values in each row, or of all allowed ones if there are fewer."""
    count = min(count, value.shape[1])
    best = value.masked_fill(~allowed, -torch.inf).topk(count, 1).indices
    return torch.zeros_like(allowed).scatter(1, best, True) & allowed


def ranking_loss(
    first: Tensor, last: Tensor, clip: Tensor, draw: Tensor, margin: float, hard: int
) -> tuple[Tensor, Tensor]:
    """Hinges max(0, D(a, p) - D(a, n) + M) + max(0, D(a, p) - D(p, n) + M) of every pair a, p, D = 1 - cosine (released
    RankHardLoss; the paper's hinge is the first of the two).

    first, last (B, D) unit rows, clip (B,), draw (B, 2, 2B). Negatives n are from other clips and violate the margin to a.
    The sum is divided by NEGATIVES·2B, regardless of the number of hinges. Also returns the fraction of pairs whose
    similarity is above that of the first patch to all patches of other clips.
    """
    candidates, clips = torch.cat([first, last]), torch.cat([clip, clip])
    positive = (first * last).sum(1, keepdim=True)  # (B, 1)
    of_first, of_last = first @ candidates.T, last @ candidates.T  # (B, 2B)
    others = clip[:, None] != clips
    allowed = others & (of_first - positive + margin > 0)
    chosen = sample_negatives(of_first.detach(), allowed, draw, hard)
    hinges = (of_first - positive + margin).relu() + (of_last - positive + margin).relu()
    total = (hinges * chosen).sum() / (NEGATIVES * 2 * len(first))
    accuracy = (of_first.masked_fill(~others, -torch.inf).amax(1) < positive[:, 0]).float().mean()
    return total, accuracy


class VideoTriplet(Method[Tracked]):
    pretext_task = "Triplet ranking of tracked patches"
    needs = Config.needs
    hard_mining: Tensor  # () whether hard negatives are in use

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.side = encoder.side(config.side)
        self.head = build_mlp(encoder.dim, config.hidden, config.width) if config.hidden else nn.Identity()
        self.register_buffer("hard_mining", torch.zeros((), dtype=torch.bool))

    def begin(self, context: Context) -> None:
        if len(context.gather("clip").unique()) < 2:
            raise UserError(
                f"{context.source.name} has tracks of one clip, but negatives are from other clips; track two or more"
            )

    def pretext(self, batch: Batch, rng: Rng) -> Tracked:
        c, (x, y) = self.config, map(augment.to_float, (batch.image, batch.aux["tracked"]))
        draw = rng.child("negative").uniform(len(batch), 2, 2 * len(batch) * rng.shard[1])
        return Tracked(
            c.views(x, self.side, rng.child("first")),
            c.views(y, self.side, rng.child("last")),
            batch.aux["clip"],
            draw,
        )

    def embed(self, pretext: Tracked) -> tuple[Tensor, Tensor]:
        both = torch.cat([pretext.image, pretext.tracked])
        z = F.normalize(self.head(self.encoder(both)["pool"]).float(), dim=1)
        first, last = z.chunk(2)
        return first, last  # (B, D) each

    def loss(self, pretext: Tracked) -> Loss:
        first, last = (distributed.gather(z) for z in self.embed(pretext))
        clip, draw = distributed.gather_rows((pretext.clip, pretext.draw))
        hard = self.config.num_hard if self.hard_mining else 0
        with torch.autocast(first.device.type, enabled=False):  # hinges are small differences
            total, accuracy = ranking_loss(first, last, clip, draw, self.config.margin, hard)
        return Loss(total, {"accuracy": accuracy, "hard_mining": self.hard_mining.float()})

    def after_step(self, carry: Any, progress: Progress) -> None:
        self.hard_mining.fill_(progress.done >= self.config.hard_start)

    def predict(self, pretext: Tracked) -> Mapping[str, Tensor]:
        first, last = self.embed(pretext)
        return {"tracked": pretext.tracked[(first @ last.T).argmax(1)]}

    def show(
        self, pretext: Tracked, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        caption = Caption("Which patch shows the same object a moment later?", "the left one")
        for i, tracked in enumerate(pretext.tracked):
            foreign = (pretext.clip != pretext.clip[i]).roll(-i).int()
            other = (i + int(foreign.argmax())) % len(foreign)  # the next one; itself, if all are of one clip
            shown = Puzzle(
                [Panel("tracked patch", pretext.image[i])],
                [Panel("a moment later", tracked), Panel("of another clip", pretext.tracked[other])],
                captions=[caption],
            )
            if answers:
                chosen = answers["tracked"][i]
                own = torch.equal(chosen, tracked)
                answered = replace(
                    caption, predicted="the same object" if own else "another patch", parts_correct=(own,)
                )
                shown = replace(
                    shown, predicted=[Panel("network's choice", chosen, correct=own)], captions=[answered]
                )
            yield shown

    def export(self) -> Encoder:
        return self.encoder
