"""JULE: images are put into clusters, the network learns the clusters, and by what it has learnt clusters merge.

Yang, Parikh, Batra: Joint Unsupervised Learning of Deep Representations and Image Clusters, CVPR 2016,
arXiv:1604.03628; numbers without another source are those of the released Torch code, jwyang/JULE.torch at 69bdfd8
(train.lua, criterions/TripletEmbedding.lua). The run begins with chains of nearest neighbors in raw pixels, about a
quarter as many clusters as images. A period trains on the clusters there are; then all images are embedded and a share
`unroll` of the clusters merges, period by period, until `clusters` are left, and the last period trains on those.
`pretask cluster` then clusters the images anew by what was learned in the end, merging as the run did.

Two objectives, of triplets of an image i, another image j of its cluster and an image k of another cluster:
the Torch code's, max(0, γ·|x_i - x_j|² - |x_i - x_k|² + m) with γ = 1 (`jule:paper`, `margin_loss`), and the paper's,
the weighted triplets -(γ·A(x_i, x_j) - A(x_i, x_k)) of affinities A with γ = 2 (`jule:paperaffinity`, `affinity_loss`).
The paper's text was not at hand: its objective, eq. 11 as its author calls it (issue 2 of the released code), and γ are from
memory, and the other equations stand here without numbers.

Cost: before each period one pass over the images, N²·160 multiplications for the nearest neighbors, in blocks, and the
merging of maths/agglomeration.py: 70,000 images take minutes. Triplets of a batch are made of its own images, P pairs of
a cluster times 20 numbers.

**Differs**, all recipes: the periods share the run's epochs evenly, so a short run merges several times at once (released:
20 epochs each); images of more than 1,024 numbers are reduced before their pixels are compared; negatives are spread
evenly over the batch, all of its images being one order, and may repeat where there are fewer than 20 (released: at
random, without repetition, one less than the batch has clusters where it has 20 or fewer); gradients are those of the
loss (the criterion overwrites its anchors by γ - 1 times themselves before it uses them again, so that with γ = 1 nothing
but the anchors is moved, TripletEmbedding.lua:53); images are embedded in evaluation mode (released: for merging in
training mode, by the statistics of 100 images at a time); what is said in maths/agglomeration.py. The affinities of the
weighted triplets are exp(-d² / mean d² of the batch), as in jwyang/JULE-Caffe (graphlinkage_loss_layer.cpp), and their
negatives are of any other cluster: one far away has almost no affinity, nor gradient. The loss is a mean; the paper's is,
from memory, a sum over the K_c - 1 nearest clusters. JULE-Caffe, the code of the paper by its README, has a third
objective still, the mean of 1 - A in clusters plus that of max(0, A - 0.5) among them.

By default, besides: the learning rate falls along half a cosine; momentum is Nesterov's; matrices alone decay; the last
period trains on the wanted clusters; a few outliers do not end as a cluster. `jule:paper`: see there.

Where a cluster has one image in a batch it makes no pair, so of many small clusters in a large set little is learned:
take large batches.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.limits import Count, Part, Share, Weight
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method, MethodConfig
from pretask.ops import agglomerative as agglomeration
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Source, UserError

NUMBERS = 1024
"""of an image, at most, when its pixels are compared: 32 px in grey, 18 in colour"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Tell clusters of images apart, merge the nearest, and begin again with fewer."""

    encoder: ClassVar[str] = "jule"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=80, batch=100, optimizer="sgd", lr=0.01, nesterov=True, weight_decay=5e-5, warmup=0.0
    )

    clusters: Count = 10
    """that are left in the end; the only thing to be known of the images"""
    unroll: Part = 0.2
    """η: share of the clusters that merges between two periods (paper: 0.9, faces 0.2)"""
    loss: Literal["margin", "affinity"] = "margin"
    """of triplets: the released code's, on squared distances, or the paper's, weighted and on affinities"""
    margin: Weight = 0.2
    """m: by how much another cluster's image should be further away (0.2 to 1)"""
    own: Weight = 1.0
    """γ: weight of the images' own cluster (released: 1, with the margin; 2 with affinities, from memory)"""
    negatives: Count = 20
    """of other clusters for each pair; one less than there are clusters, if that is fewer"""
    width: Count = 160
    """of the embedding, a vector of length 1"""
    neighbours: Count = 10
    """K_s: links of an image, for merging, also by `pretask cluster` (10 to 100; fewer for few images)"""
    rivals: Count = 5
    """K_c: neighbouring clusters of which the one to merge with should stand out (1 to 10)"""
    smallest: Share = agglomeration.SMALLEST
    """share of the mean size below which an outlier's cluster is not kept as one of the `clusters` (paper: all are)"""
    exact: bool = True
    """affinities as if computed anew after each merge; False: the released code's fast mode, which leaves some out"""
    refine: bool = True
    """the last period trains on the wanted `clusters`; False: the run ends before they are reached"""

    def build(self, encoder: Encoder, source: Source) -> "Jule":
        if not 2 <= self.clusters <= len(source) // 2:
            raise UserError(
                f"{len(source)} images cannot end as {self.clusters} clusters; "
                f"expected --clusters from 2 to {len(source) // 2}"
            )
        return Jule(self, encoder, len(source))


def inverse_falls(end: float, power: float, drop: float) -> tuple[float, ...]:
    """Fractions of a run at which falls by `drop` follow (1 + end · fraction)^-power, within a factor of √drop."""
    falls = []
    while (at := (drop ** (-(len(falls) + 0.5) / power) - 1) / end) < 1:
        falls.append(at)
    return tuple(falls)


@dataclass(frozen=True)
class Paper(Config):
    """MNIST's 10,000 test images by the released Torch code: two convolutions, three periods of 20 epochs, the fast mode.

    About 2,500 clusters at first, then 250 and 25; train.lua ends its training when 10 are reached, which merging alone
    brings about. Its optimizer, torch/optim sgd.lua, dampens each new gradient by the momentum where nothing else is said:
    v ← 0.9·v + (1 - 0.9)·g. Ours adds it whole, v ← 0.9·v + g, to a v ten times as long, so the same steps take a tenth of
    the learning rate; that of the weight decay, a part of g, is the same as well. (The first gradient alone counts there
    in full.) Its learning rate is 0.01·(1 + 0.0001·step)^-0.75, here in falls of 5 %, of 6,000 steps.
    """

    encoder: ClassVar[str] = "jule:pools=1"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=60,
        batch=100,
        optimizer="sgd",
        lr=0.001,  # 0.01 · (1 - 0.9), the dampening
        weight_decay=5e-5,
        decay_all=True,
        warmup=0.0,
        drops=inverse_falls(end=1e-4 * 6000, power=0.75, drop=0.95),
        drop=0.95,
    )

    neighbours: Count = 20
    """links"""
    exact: bool = False
    """the released code's default"""
    smallest: Share = 0.0
    """every cluster counts"""
    unroll: Part = 0.9
    """of all but the faces"""
    refine: bool = False
    """train.lua stops on reaching the wanted clusters"""

    def draw(self, encoder: str, source: Source) -> Encoder:
        """Gains of batch norms are uniform in [0, 1], as torch/nn BatchNormalization.lua draws them."""
        drawn = super().draw(encoder, source)
        for module in drawn.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight)
        return drawn


@dataclass(frozen=True)
class PaperAffinity(Paper):
    """The same with the paper's own objective, weighted triplets of affinities, and the momentum of its Caffe code.

    The paper's numbers were made by jwyang/JULE-Caffe, whose SGD dampens nothing: the learning rate of its
    lenet_solver_unsup.prototxt, 0.01, is taken as it is.
    """

    train: ClassVar[TrainConfig] = dataclasses.replace(Paper.train, lr=0.01)

    loss: Literal["margin", "affinity"] = "affinity"
    """weighted triplets"""
    own: Weight = 2.0
    """γ (from memory)"""


@dataclass(frozen=True)
class Clustered:
    image: Tensor  # (B, C, H, W)
    label: Tensor  # (B,) the cluster that it is in
    draw: Tensor  # (B,) in [0, 1), decides its negatives


def triplets(label: Tensor, draw: Tensor, negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B,), (B,) -> anchors (P,), positives (P,), negatives (P, T): places in the batch of every pair of a cluster, once.

    Negatives are of other clusters, T at equal steps around all there are, from a place that the draws decide.
    None of a cluster that has the batch to itself.
    """
    same = label[:, None] == label
    others = (~same).sum(1)  # (B,)
    anchor, positive = (same.triu(1) & (others > 0)[:, None]).nonzero().T
    order = same.long().argsort(dim=1, stable=True)  # (B, B), in each row the others first
    steps = torch.arange(negatives, device=label.device) / negatives
    turn = ((draw[anchor] + draw[positive])[:, None] + steps) % 1  # (P, T)
    count = others[anchor][:, None]
    place = (turn * count).long().minimum(count - 1)
    return anchor, positive, order[anchor].gather(1, place)


def margin_loss(z: Tensor, places: tuple[Tensor, Tensor, Tensor], own: float, margin: float) -> Tensor:
    """Mean of max(0, γ·|a - p|² - |a - n|² + m) over the triplets of z (B, D), TripletEmbedding.lua:38-43; 0 of none."""
    near, far = distances(z, places)
    return mean((own * near[:, None] - far + margin).relu())


def affinity_loss(z: Tensor, places: tuple[Tensor, Tensor, Tensor], own: float) -> Tensor:
    """Mean of γ·(1 - A(a, p)) + A(a, n), A = exp(-d² / mean d²): the paper's weighted triplets but for a constant, γ."""
    near, far = distances(z, places)
    scale = (2 - 2 * z.detach().mean(0).square().sum()).clamp(min=1e-6)  # mean of all squared distances
    return mean(own * (1 - (-near / scale).exp())[:, None] + (-far / scale).exp())


def distances(z: Tensor, places: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Squared ones of z (B, D) unit rows, from anchors to positives (P,) and to negatives (P, T)."""
    anchor, positive, negative = places
    squared = 2 - 2 * z @ z.T
    return squared[anchor, positive], squared[anchor[:, None], negative]


def mean(x: Tensor) -> Tensor:
    """Of all numbers; 0 of none, with a gradient of 0."""
    return x.sum() / max(1, x.numel())


class Jule(Method[Clustered]):
    terminal = True  # there are as few clusters as were asked for
    label: Tensor  # (N,) the cluster of each image
    first: Tensor  # () clusters at the beginning

    def __init__(self, config: Config, encoder: Encoder, count: int):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.linkage = {
            "neighbours_each": config.neighbours,
            "rivals": config.rivals,
            "exact": config.exact,
            "smallest": config.smallest,
            "unroll": 1.0 if config.exact else config.unroll,
        }
        self.head = nn.Linear(encoder.dim, config.width)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("label", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("first", torch.zeros((), dtype=torch.int64))

    # ---- clusters

    def begin(self, context: Context) -> None:
        """Chains of nearest neighbours in raw pixels."""
        agglomeration.compiled()  # a missing package is told now, not after the first period
        parts = torch.arange(len(self.label)).split(1024)
        rows = [raw(images.to_float(context.source.__getitems__(i).image)) for i in parts]
        _, nearest = agglomeration.neighbours(torch.cat(rows).to(self.label.device), 1)
        self.label.copy_(agglomeration.chains(nearest[:, 0]))
        self.first.copy_(self.label.max() + 1)

    def begin_epoch(self, context: Context) -> None:
        """Merge as far as the period that this epoch is in."""
        counts = agglomeration.course(int(self.first), self.config.clusters, self.config.unroll)
        if not self.config.refine:
            counts = counts[:-1] or counts
        due = math.ceil(context.progress.ends * len(counts)) - 1  # the last epoch is in the last one
        if int(self.label.max()) + 1 > counts[due]:
            self.merge(self.compared(context.embed(self.encoder)), counts[due])

    @torch.no_grad()
    def merge(self, z: Tensor, clusters: int) -> None:
        c = self.config
        distance, index = agglomeration.neighbours(z, min(c.neighbours, len(z) - 1))
        merged = agglomeration.agglomerate(
            agglomeration.graph(distance, index),
            self.label,
            z,
            clusters,
            rivals=c.rivals,
            exact=c.exact,
            wanted=c.clusters,
            smallest=c.smallest,
        )
        self.label.copy_(merged)

    @torch.no_grad()
    def compared(self, pool: Tensor) -> Tensor:
        """Pooled features (N, D) -> embeddings (N, 160) by which images are clustered."""
        return F.normalize(self.head(pool.to(self.label.device)).float(), dim=1)

    # ---- the puzzle and its solver

    def pretext(self, batch: Batch, rng: Rng) -> Clustered:
        image = images.to_float(batch.image)
        return Clustered(image, self.label[batch.index], rng.uniform(len(batch)))

    def loss(self, pretext: Clustered) -> Loss:
        c = self.config
        z = F.normalize(self.head(self.encoder(pretext.image)["pool"]).float(), dim=1)  # (B, D)
        z = distributed.gather(z)  # pairs are of the batch of all processes
        label, draw = distributed.gather_rows((pretext.label, pretext.draw))
        many = max(1, min(c.negatives, int(self.label.max())))
        places = triplets(label, draw, many)
        with torch.autocast(z.device.type, enabled=False):  # a difference of distances is small
            if c.loss == "margin":
                total = margin_loss(z, places, c.own, c.margin)
            else:
                total = affinity_loss(z, places, c.own)
            near, far = distances(z.detach(), places)
        closer = mean((near[:, None] < far).float())
        pairs = torch.tensor(float(len(near)), device=z.device)
        return Loss(total, {"closer": closer, "pairs": pairs, "clusters": self.label.max() + 1.0})

    def export(self) -> Encoder:
        return self.encoder


def raw(x: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1] -> pixels (B, D), reduced to at most NUMBERS; rows longer than 1 are shortened to 1."""
    side = math.isqrt(NUMBERS // x.shape[1])
    if x.shape[2] * x.shape[3] > side**2:
        x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    pixels = x.flatten(1)
    return pixels / pixels.norm(dim=1, keepdim=True).clamp(min=1)
