"""Video triplets: what was tracked through a clip is nearer to itself a moment later than to things of other clips.

Wang, Gupta: Unsupervised Learning of Visual Representations using Videos, ICCV 2015, arXiv:1505.00687. The paper's
text was not read: numbers without another source are those of the released code, xiaolonw/caffe-video_triplet, and
the paper's own are marked as remembered or as summarized by others. `pretask track` mines the pairs (tracking.py):
the first and the last patch of a track. Each pair is held against negatives of other clips in its batch: all of them
drawn at random in the first part of the run, then half of them hard ones in the released prototxt, all of them in the
paper.

Cost: two images a sample, and B·2B similarities; with several processes the negatives are those of all.

**Differs:**
by default patches are also cropped, and their colors changed, each by itself, so that neither place nor tint of a
clip gives it away (released: mirrored alone); the head is not the end of the network but a part of its own, with
batch norm, and ends without the ReLU of the released net, which lets cosines be negative. Of `:paper`, the margin is
the paper's as remembered, 0.5, where the released prototxt has 1 (its readme names 0.5 as well); the mean that is
taken off is one color, that of ImageNet, where the released code takes off a mean picture of its patches; one run
goes through both stages, where the released launch script names the weights of an earlier run to start from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import projector
from pretask.limits import Count, Natural, Part, Share, Weight, between
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method
from pretask.methods.base.views import ViewsConfig
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Progress, Source, UserError

NEGATIVES = 4
"""of each pair (neg_num); the hard ones among them are drawn from as many"""


@dataclass(frozen=True)
class Config(ViewsConfig):
    """Tell what a tracked thing looks like a moment later from things of other clips."""

    train: ClassVar[TrainConfig] = TrainConfig(epochs=200, batch=64, lr=1e-3, weight_decay=0.01)
    needs: ClassVar[frozenset[str]] = frozenset({"tracked", "clip"})

    side: Part = 1.0
    """of a patch that is seen, as a share of the patch that was mined"""
    margin: Weight = 0.5
    """by how much a negative should be further away than the partner, in cosine (released prototxt: 1)"""
    hard: Share = 0.25
    """part of the run after which negatives are hard ones (readme: start without)"""
    mined: Annotated[int, *between(0, NEGATIVES)] = 2
    """hard ones of the four negatives then (hard_ratio 0.5; the paper: all, by a summary)"""
    hidden: Natural = 512
    """width of the head's hidden layer; 0: no head, the network's own features are compared"""
    width: Count = 128
    """of what is compared, behind a head"""

    def build(self, encoder: Encoder, source: Source) -> "VideoTriplet":
        return VideoTriplet(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """With --size 227: CaffeNet on 8 million patches, SGD, 50 pairs a step, 400,000 steps (released code).

    `--mined 2 --margin 1` is the loss of the released prototxt.
    """

    encoder: ClassVar[str] = "caffenet:fc7=1024,dropout=0"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=5,
        batch=50,
        optimizer="sgd",
        lr=1e-3,
        weight_decay=5e-4,
        warmup=0.0,
        drops=(0.25, 0.5, 0.75),
        vector_lr=2.0,
    )

    views: images.Views = images.Views(crop=(1.0, 1.0), jitter=0.0, jitter_p=0.0, grey=0.0)
    """mirrored, no more"""
    hard: Share = 150 / 400
    """part of the run (150,000 steps, by a summary of the paper: coguo.com/1747746327.html)"""
    mined: Annotated[int, *between(0, NEGATIVES)] = 4
    """the hardest of all (the same summary)"""
    hidden: Natural = 0
    """fc7 is what is compared, behind its ReLU"""


@dataclass(frozen=True)
class Tracked:
    image: Tensor  # (B, C, H, W) the first patch of a track
    tracked: Tensor  # (B, C, H, W) the last
    clip: Tensor  # (B,) which clip it is from
    draw: Tensor  # (B, 2, 2B) in [0, 1), decide which patches of the batch are its negatives, hard ones and others


def negatives(similarity: Tensor, allowed: Tensor, draw: Tensor, hard: int) -> Tensor:
    """(P, M) similarities to candidates, which of them may be chosen, draws (P, 2, M) -> (P, M) which are: NEGATIVES or
    fewer.

    `hard` of them are drawn from the NEGATIVES most similar, the others from all that are left.
    """
    hardest = chosen(similarity, allowed, NEGATIVES)
    first = chosen(draw[:, 0], hardest, hard)
    return first | chosen(draw[:, 1], allowed & ~first, NEGATIVES - hard)


def chosen(value: Tensor, allowed: Tensor, count: int) -> Tensor:
    """(P, M) -> in each row the `count` largest values of those that are allowed, or all of these if they are fewer."""
    count = min(count, value.shape[1])
    best = value.masked_fill(~allowed, -torch.inf).topk(count, 1).indices
    return torch.zeros_like(allowed).scatter(1, best, True) & allowed


def ranking(
    first: Tensor, last: Tensor, clip: Tensor, draw: Tensor, margin: float, hard: int
) -> tuple[Tensor, Tensor]:
    """Hinges max(0, D(a, p) - D(a, n) + M) + max(0, D(a, p) - D(p, n) + M) of every pair a, p, D = 1 - cosine (released
    RankHardLoss; the paper's hinge is the first of the two).

    first, last (B, D) unit rows, clip (B,), draw (B, 2, 2B). Negatives n are of other clips, and of those that violate the
    margin to a. The sum is divided by NEGATIVES·2B, however many hinges there are. Also the share of pairs that are each
    other's nearest among all of other clips.
    """
    everything, clips = torch.cat([first, last]), torch.cat([clip, clip])
    near = (first * last).sum(1, keepdim=True)  # (B, 1)
    of_first, of_last = first @ everything.T, last @ everything.T  # (B, 2B)
    others = clip[:, None] != clips
    allowed = others & (of_first - near + margin > 0)
    taken = negatives(of_first.detach(), allowed, draw, hard)
    hinges = (of_first - near + margin).relu() + (of_last - near + margin).relu()
    total = (hinges * taken).sum() / (NEGATIVES * 2 * len(first))
    right = (of_first.masked_fill(~others, -torch.inf).amax(1) < near[:, 0]).float().mean()
    return total, right


class VideoTriplet(Method[Tracked]):
    needs = Config.needs
    mines: Tensor  # () whether negatives are hard yet

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.side = encoder.side(config.side)
        self.head = projector(encoder.dim, config.hidden, config.width) if config.hidden else nn.Identity()
        self.register_buffer("mines", torch.zeros((), dtype=torch.bool))

    def begin(self, context: Context) -> None:
        if len(context.gather("clip").unique()) < 2:
            raise UserError(
                f"{context.source.name} has tracks of one clip, and negatives are of others; track two clips or more"
            )

    def pretext(self, batch: Batch, rng: Rng) -> Tracked:
        c, (x, y) = self.config, map(images.to_float, (batch.image, batch.aux["tracked"]))
        draw = rng.child("negative").uniform(len(batch), 2, 2 * len(batch) * rng.share[1])
        return Tracked(
            c.views(x, self.side, rng.child("first")),
            c.views(y, self.side, rng.child("last")),
            batch.aux["clip"],
            draw,
        )

    def embedded(self, pretext: Tracked) -> tuple[Tensor, Tensor]:
        both = torch.cat([pretext.image, pretext.tracked])
        z = F.normalize(self.head(self.encoder(both)["pool"]).float(), dim=1)
        first, last = z.chunk(2)
        return first, last  # (B, D) each

    def loss(self, pretext: Tracked) -> Loss:
        first, last = (distributed.gather(z) for z in self.embedded(pretext))
        clip, draw = distributed.gather_rows((pretext.clip, pretext.draw))
        hard = self.config.mined if self.mines else 0
        with torch.autocast(first.device.type, enabled=False):  # hinges are small differences
            total, right = ranking(first, last, clip, draw, self.config.margin, hard)
        return Loss(total, {"nearest": right, "hard": self.mines.float()})

    def after_step(self, carry: Any, progress: Progress) -> None:
        self.mines.fill_(progress.done >= self.config.hard)

    def solve(self, pretext: Tracked) -> Mapping[str, Tensor]:
        first, last = self.embedded(pretext)
        return {"tracked": pretext.tracked[(first @ last.T).argmax(1)]}

    def export(self) -> Encoder:
        return self.encoder
