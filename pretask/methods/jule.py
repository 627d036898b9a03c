"""JULE: joint unsupervised learning of features and clusters by alternating triplet training and agglomerative clustering.

Yang, Parikh, Batra: Joint Unsupervised Learning of Deep Representations and Image Clusters, CVPR 2016,
arXiv:1604.03628; numbers without another source are those of the released Torch code, jwyang/JULE.torch at 69bdfd8
(train.lua, criterions/TripletEmbedding.lua). The initial clusters are chains of nearest neighbors in raw pixels, about a
quarter as many as images. Each period trains on the current clusters; then all images are embedded and a fraction
`unrolling_rate` of the clusters is merged, until `clusters` are left; the last period trains on those.
`pretask cluster` then clusters the images from scratch by the final features, with the run's merging options.

Two objectives, on triplets of an image i, another image j of its cluster and an image k of another cluster:
the Torch code's, max(0, γ·|x_i - x_j|² - |x_i - x_k|² + m) with γ = 1 (`jule:paper`, `margin_loss`), and the paper's,
the weighted triplets -(γ·A(x_i, x_j) - A(x_i, x_k)) of affinities A with γ = 2 (`jule:paperaffinity`, `affinity_loss`).
The paper's text was not available: its objective, eq. 11 as its author calls it (issue 2 of the released code), and γ are from
memory, and the other equations have no numbers here.

Cost: before each period one pass over the images, N²·160 multiplications for the nearest neighbors, in blocks, and the
merging of ops/agglomerative.py: minutes for 70,000 images. A batch has 20 triplets for each of its P pairs of images of
the same cluster.

**Differs**, all recipes: the run's epochs are divided evenly among the periods, so short runs merge several times at once
(released: 20 epochs each); images of more than 1,024 values are downscaled before their pixels are compared; negatives are
evenly spaced over the batch and repeat if there are fewer than 20 (released: at random without replacement, one less than the
batch has clusters if it has 20 or fewer); gradients are those of the loss (the released criterion overwrites its anchors by
γ - 1 times themselves before it uses them again, so that with γ = 1 only the anchors are moved, TripletEmbedding.lua:53);
images are embedded in eval mode (released: for merging in training mode, with the statistics of 100 images at a time); the
differences listed in ops/agglomerative.py. The affinities of the weighted triplets are exp(-d² / mean d² of the batch), as in
jwyang/JULE-Caffe (graphlinkage_loss_layer.cpp), and their negatives are from any other cluster; distant ones have almost no
affinity and gradient. The loss is a mean; the paper's is, from memory, a sum over the K_c - 1 nearest clusters. JULE-Caffe,
according to its README the code of the paper, has a third objective, the mean of 1 - A within clusters plus that of
max(0, A - 0.5) between clusters.

By default, besides: cosine learning-rate schedule; Nesterov momentum; weight decay of matrices only; the last period trains on
the final clusters; a few outliers cannot be a final cluster. For `jule:paper` see there.

A cluster with one image in a batch has no pair, so little is learned from many small clusters in a large dataset: use large
batches.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.limits import AtLeastTwo, NonNegativeFloat, PositiveFraction, PositiveInt, UnitInterval
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method, MethodConfig, Minimum
from pretask.ops import agglomerative
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.transforms import augment
from pretask.types import Batch, Loss, Source
from pretask.viz.puzzle import Board, Caption, Panel, Puzzle, Tile

MAX_VALUES = 1024
"""largest number of pixel values of an image when pixels are compared: 32 px in gray, 18 px in color"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Train on clusters of images, merge the nearest ones, and continue with fewer."""

    family: ClassVar[str] = "clustering"
    encoder: ClassVar[str] = "jule"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=80, batch=100, optimizer="sgd", lr=0.01, nesterov=True, weight_decay=5e-5, warmup=0.0
    )

    clusters: AtLeastTwo = 10
    """number of final clusters"""
    unrolling_rate: PositiveFraction = 0.2
    """η: fraction of the clusters that is merged between two periods (paper: 0.9, faces 0.2)"""
    loss: Literal["margin", "affinity"] = "margin"
    """triplet loss: the released code's on squared distances, or the paper's weighted one on affinities"""
    margin: NonNegativeFloat = 0.2
    """m: margin of the triplet loss (0.2 to 1)"""
    positive_weight: NonNegativeFloat = 1.0
    """γ: weight of the positive (released: 1 in the margin loss; 2 in the affinity loss, from memory)"""
    num_negatives: PositiveInt = 20
    """negatives per pair; at most the number of clusters less one"""
    width: PositiveInt = 160
    """dimension of the embedding, which has length 1"""
    neighbors: PositiveInt = 10
    """K_s: nearest neighbors in the graph for merging, also in `pretask cluster` (10 to 100; fewer for few images)"""
    neighbor_clusters: PositiveInt = 5
    """K_c: neighboring clusters in the local-structure term of the merging criterion (1 to 10)"""
    smallest: UnitInterval = agglomerative.SMALLEST
    """fraction of the mean size below which outliers cannot be one of the final `clusters` (paper: no limit)"""
    exact: bool = True
    """recompute affinities after each merge; no: the released code's fast mode, which omits some terms"""
    refine: bool = True
    """the last period trains on the final `clusters`; no: the run ends before they are reached"""

    def fewest_images(self) -> Minimum:
        """The initial chains of nearest neighbors have at least two images each."""
        return Minimum(2 * self.clusters, "or lower --clusters")

    def smallest_batch(self) -> Minimum:
        """A triplet has two images of one cluster and one of another."""
        return Minimum(3)

    def build(self, encoder: Encoder, source: Source) -> "Jule":
        return Jule(self, encoder, len(source))


def inverse_decay_milestones(end: float, power: float, drop: float) -> tuple[float, ...]:
    """Fractions of a run at which factors of `drop` approximate (1 + end · fraction)^-power within a factor of √drop."""
    milestones = []
    while (at := (drop ** (-(len(milestones) + 0.5) / power) - 1) / end) < 1:
        milestones.append(at)
    return tuple(milestones)


@dataclass(frozen=True)
class Paper(Config):
    """The released Torch code on MNIST's 10,000 test images: two convolutions, three periods of 20 epochs, fast mode.

    About 2,500 clusters at first, then 250 and 25; train.lua stops when merging reaches 10. Its optimizer, torch/optim
    sgd.lua, uses the momentum as dampening by default: v ← 0.9·v + (1 - 0.9)·g. Ours is v ← 0.9·v + g, with a v ten times as
    large, so a tenth of the learning rate gives the same steps, including the weight decay, which is part of g. (Only the
    first gradient is not dampened there.) Its learning rate is 0.01·(1 + 0.0001·step)^-0.75, here in steps of 5 %, over
    6,000 steps.
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
        milestones=inverse_decay_milestones(end=1e-4 * 6000, power=0.75, drop=0.95),
        gamma=0.95,
    )

    neighbors: PositiveInt = 20
    """nearest neighbors in the graph"""
    exact: bool = False
    """the released code's default"""
    smallest: UnitInterval = 0.0
    """no limit"""
    unrolling_rate: PositiveFraction = 0.9
    """for all datasets except faces"""
    refine: bool = False
    """train.lua stops when the final clusters are reached"""

    def build_encoder(self, encoder: str, source: Source) -> Encoder:
        """Gains of batch norms are initialized uniformly in [0, 1], as in torch/nn BatchNormalization.lua."""
        drawn = super().build_encoder(encoder, source)
        for module in drawn.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight)
        return drawn


@dataclass(frozen=True)
class PaperAffinity(Paper):
    """The same with the paper's objective, weighted triplets of affinities, and the momentum of its Caffe code.

    The paper's results are from jwyang/JULE-Caffe, whose SGD has no dampening, so the learning rate of its
    lenet_solver_unsup.prototxt, 0.01, is unchanged.
    """

    train: ClassVar[TrainConfig] = dataclasses.replace(Paper.train, lr=0.01)

    loss: Literal["margin", "affinity"] = "affinity"
    """weighted triplets"""
    positive_weight: NonNegativeFloat = 2.0
    """γ (from memory)"""


@dataclass(frozen=True)
class Clustered:
    image: Tensor  # (B, C, H, W)
    label: Tensor  # (B,) cluster
    draw: Tensor  # (B,) in [0, 1), determines the negatives


def triplets(label: Tensor, draw: Tensor, num_negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B,), (B,) -> anchors (P,), positives (P,), negatives (P, T): batch indices of every pair of a cluster, once.

    The T negatives are evenly spaced over the images of other clusters, from an offset determined by `draw`. If the batch
    has only one cluster, there are no triplets.
    """
    same = label[:, None] == label
    others = (~same).sum(1)  # (B,)
    anchor, positive = (same.triu(1) & (others > 0)[:, None]).nonzero().T
    order = same.long().argsort(dim=1, stable=True)  # (B, B), images of other clusters first
    steps = torch.arange(num_negatives, device=label.device) / num_negatives
    position = ((draw[anchor] + draw[positive])[:, None] + steps) % 1  # (P, T)
    count = others[anchor][:, None]
    column = (position * count).long().minimum(count - 1)
    return anchor, positive, order[anchor].gather(1, column)


def margin_loss(
    z: Tensor, index: tuple[Tensor, Tensor, Tensor], positive_weight: float, margin: float
) -> Tensor:
    """Mean of max(0, γ·|a - p|² - |a - n|² + m) over the triplets of z (B, D), TripletEmbedding.lua:38-43; 0 if none."""
    near, far = distances(z, index)
    return mean((positive_weight * near[:, None] - far + margin).relu())


def affinity_loss(z: Tensor, index: tuple[Tensor, Tensor, Tensor], positive_weight: float) -> Tensor:
    """Mean of γ·(1 - A(a, p)) + A(a, n), A = exp(-d² / mean d²): the paper's weighted triplets plus a constant, γ."""
    near, far = distances(z, index)
    scale = (2 - 2 * z.detach().mean(0).square().sum()).clamp(min=1e-6)  # mean of all squared distances
    return mean(positive_weight * (1 - (-near / scale).exp())[:, None] + (-far / scale).exp())


def distances(z: Tensor, index: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Squared distances of z (B, D) unit rows, from anchors to positives (P,) and to negatives (P, T)."""
    anchor, positive, negative = index
    squared = 2 - 2 * z @ z.T
    return squared[anchor, positive], squared[anchor[:, None], negative]


def mean(x: Tensor) -> Tensor:
    """Mean of all elements; 0 with gradient 0 if there are none."""
    return x.sum() / max(1, x.numel())


class Jule(Method[Clustered]):
    pretext_task = "Joint clustering and representation learning"
    terminal = True  # the final number of clusters has been reached
    label: Tensor  # (N,) the cluster of each image
    initial_clusters: Tensor  # () number of clusters at the beginning

    def __init__(self, config: Config, encoder: Encoder, count: int):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.cluster_options = {
            "num_neighbors": config.neighbors,
            "neighbor_clusters": config.neighbor_clusters,
            "exact": config.exact,
            "smallest": config.smallest,
            "unrolling_rate": 1.0 if config.exact else config.unrolling_rate,
        }
        self.head = nn.Linear(encoder.dim, config.width)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("label", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("initial_clusters", torch.zeros((), dtype=torch.int64))

    # ---- clusters

    def begin(self, context: Context) -> None:
        """Initialize the clusters by chains of nearest neighbors in raw pixels."""
        agglomerative.load_kernel()  # reports a missing package now instead of after the first period
        parts = torch.arange(len(self.label)).split(1024)
        rows = [flat_pixels(augment.to_float(context.source.__getitems__(i).image)) for i in parts]
        _, nearest = agglomerative.neighbors(torch.cat(rows).to(self.label.device), 1)
        self.label.copy_(agglomerative.neighbor_chains(nearest[:, 0]))
        self.initial_clusters.copy_(self.label.max() + 1)

    def begin_epoch(self, context: Context) -> None:
        """Merge clusters down to the number of this epoch's period."""
        c = self.config
        counts = agglomerative.merge_schedule(int(self.initial_clusters), c.clusters, c.unrolling_rate)
        if not c.refine:
            counts = counts[:-1] or counts
        period = math.ceil(context.progress.ends * len(counts)) - 1  # the last epoch is in the last period
        if int(self.label.max()) + 1 > counts[period]:
            self.merge(self.cluster_embedding(context.embed(self.encoder)), counts[period])

    @torch.no_grad()
    def merge(self, z: Tensor, clusters: int) -> None:
        c = self.config
        distance, index = agglomerative.neighbors(z, min(c.neighbors, len(z) - 1))
        merged = agglomerative.agglomerate(
            agglomerative.affinity_graph(distance, index),
            self.label,
            z,
            clusters,
            neighbor_clusters=c.neighbor_clusters,
            exact=c.exact,
            final_clusters=c.clusters,
            smallest=c.smallest,
        )
        self.label.copy_(merged)

    @torch.no_grad()
    def cluster_embedding(self, pool: Tensor) -> Tensor:
        """Pooled features (N, D) -> the embeddings (N, 160) that are clustered."""
        return F.normalize(self.head(pool.to(self.label.device)).float(), dim=1)

    # ---- the puzzle and its loss

    def pretext(self, batch: Batch, rng: Rng) -> Clustered:
        image = augment.to_float(batch.image)
        return Clustered(image, self.label[batch.index], rng.uniform(len(batch)))

    def loss(self, pretext: Clustered) -> Loss:
        c = self.config
        z = F.normalize(self.head(self.encoder(pretext.image)["pool"]).float(), dim=1)  # (B, D)
        z = distributed.gather(z)  # pairs are formed over the batch of all processes
        label, draw = distributed.gather_rows((pretext.label, pretext.draw))
        num_negatives = max(1, min(c.num_negatives, int(self.label.max())))
        index = triplets(label, draw, num_negatives)
        with torch.autocast(z.device.type, enabled=False):  # differences of distances are small
            if c.loss == "margin":
                total = margin_loss(z, index, c.positive_weight, c.margin)
            else:
                total = affinity_loss(z, index, c.positive_weight)
            near, far = distances(z.detach(), index)
        accuracy = mean((near[:, None] < far).float())
        pairs = torch.tensor(float(len(near)), device=z.device)
        parts = {"triplet_accuracy": accuracy, "pairs": pairs, "clusters": self.label.max() + 1.0}
        return Loss(total, parts)

    def show(
        self, pretext: Clustered, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        for i, (image, label) in enumerate(zip(pretext.image, pretext.label, strict=True)):
            same = (pretext.label == label).index_fill(0, torch.tensor(i, device=label.device), False)
            tiles = [Tile(x) for x in pretext.image[same][:4]]
            board = Board(tiles or [Tile(label="none here")], columns=2 if len(tiles) > 1 else 1)
            yield Puzzle(
                [Panel("image", image)],
                [Panel("others of its cluster", board)],
                captions=[Caption("Which images are of the same cluster?", f"cluster {int(label) + 1}")],
            )

    def export(self) -> Encoder:
        return self.encoder


def flat_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1] -> pixels (B, D), downscaled to at most MAX_VALUES; rows longer than 1 are scaled to 1."""
    side = math.isqrt(MAX_VALUES // x.shape[1])
    if x.shape[2] * x.shape[3] > side**2:
        x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    pixels = x.flatten(1)
    return pixels / pixels.norm(dim=1, keepdim=True).clamp(min=1)
