"""Anchor Neighbourhood Discovery (AND): instance discrimination, then classes of anchors joined with their nearest neighbors.

Huang, Dong, Gong, Zhu: Unsupervised Deep Learning by Neighbourhood Discovery, ICML 2019, arXiv:1904.11567;
numbers without another source are those of the released code, Raymond-sci/AND at f94c07f. A memory bank holds one unit vector
per image. Each round starts by ranking the images by the entropy of their similarity to all images, and joins a growing
fraction with the lowest entropy, the anchors, with their nearest neighbors: 0, 25, 50, 75 and 100 % in five rounds.

Equations (the paper's text was not available, so lines of the code replace numbers):
p_ij = exp(x_i·m_j/τ) / Σ_k exp(x_i·m_k/τ), x_i the view's unit vector and m_j a row of the bank (lib/criterion.py:21);
the loss of an instance is -log p_ii (criterion.py:42-44), of an anchor -log Σ_j p_ij over itself and its neighborhood N_k(i)
(criterion.py:30-34), both in `negative_log_likelihoods`; that of a batch is their mean (:46), in `loss`;
the entropy H_i = -Σ_j p_ij log p_ij of a row of the bank among all (lib/ans_discovery.py:107), by which anchors are selected
(:114), and N_k(i), the k nearest others (:159-162), in `discover`; the bank's m_i ← (m_i + x_i)/2, normalized
(lib/non_parametric_classifier.py:52-57), in `after_step`.

The consistency, how often an image and its neighbor have the same class, which the code logs with "cheat labels"
(ans_discovery.py:165-175), is shown in the report: a run saves the neighborhoods of each round, in neighbors-1.safetensors and
so on, and the report reads the labels of the run's images, if they have any. Training never does.

**Differs**, all recipes: pixels are normalized by 0.5 and 0.25, not by CIFAR-10's mean and standard deviation; the order of the
changes of brightness, contrast, saturation and hue is drawn once per batch, not per image; neighbors are searched for all
images, not only for anchors, with the same result; PyTorch of that time initialized the gains of batch norms uniformly in
[0, 1] (from memory), here they start at 1; the code saves the weights of each round that are best on test images
(main.py:176-192), here the last ones are kept. By default, besides: a narrow ResNet with a strided stem and pooled shortcuts,
50 epochs in total, a cosine schedule with warmup in each round, views of 3/4 of the side, flips with probability 0.5; no
weight decay of biases and gains.

Cost: the softmax is over all N images, B·N numbers per step (51 MB for 256 of 50,000); a discovery compares all pairs,
N²·D multiplications once per round, in blocks, so that its memory does not grow with N² (7 s for 50,000 on two cores). The
bank takes 512 bytes per image.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.limits import NonNegativeFloat, PositiveFloat, PositiveFraction, PositiveInt, UnitInterval
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method, MethodConfig, Minimum
from pretask.methods.base.views import IndexedView, show_indexed_views
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.types import Batch, Loss, Progress, Source
from pretask.viz.puzzle import Puzzle

BLOCK = 2**24
"""similarities held in memory at once during a discovery (64 MB)"""
FOUND = "neighbors-{}.safetensors"
"""file in the run's folder: the neighborhoods of each round, for the report"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Discriminate instances, then join low-entropy images with their nearest neighbors, round by round."""

    family: ClassVar[str] = "contrastive"
    encoder: ClassVar[str] = "resnet_small:width=32"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=50,
        batch=64,
        optimizer="sgd",
        lr=0.03,
        nesterov=True,
        weight_decay=5e-4,
        warmup=0.02,
        cycles=5,
    )

    temperature: PositiveFloat = 0.1
    """temperature of the softmax over all images"""
    neighbors: PositiveInt = 1
    """nearest neighbors that an anchor is joined with"""
    width: PositiveInt = 128
    """dimension of the embeddings in the memory bank"""
    bank_momentum: UnitInterval = 0.5
    """fraction of a row of the bank that is kept when its image is seen again"""
    crop: PositiveFraction = 0.2
    """smallest fraction of the image's area in a view"""
    side: PositiveFraction = 0.75
    """side of a view, as a fraction of the image's; smaller views train faster"""
    jitter: NonNegativeFloat = 0.4
    """strength of the jitter of brightness, contrast, saturation and hue"""
    gray: UnitInterval = 0.2
    """probability of conversion to grayscale"""
    flip: UnitInterval = 0.5
    """probability of a horizontal flip"""

    def fewest_images(self) -> Minimum:
        """An anchor and its neighbors need at least one negative."""
        return Minimum(self.neighbors + 2, "or lower --neighbors" if self.neighbors > 1 else "")

    def build(self, encoder: Encoder, source: Source) -> "NeighbourhoodDiscovery":
        return NeighbourhoodDiscovery(self, encoder, len(source))


@dataclass(frozen=True)
class Paper(Config):
    """The released CIFAR-10 run: ResNet-18 with a 3x3 stem, five rounds of 200 epochs, no flip."""

    encoder: ClassVar[str] = "resnet_small:blocks=2,stages=4,stride=1,strided=True"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=1000,
        batch=128,
        optimizer="sgd",
        lr=0.03,
        weight_decay=5e-4,
        warmup=0.0,
        milestones=(0.6, 0.8),
        cycles=5,
        nesterov=True,
        decay_all=True,
    )

    side: PositiveFraction = 1.0
    """full size"""
    flip: UnitInterval = 0.0
    """commented out in the released configuration"""


def negative_log_likelihoods(
    z: Tensor, bank: Tensor, index: Tensor, neighbor: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """-log p_ii and -log(p_ii + Σ p_ij over the neighbors j), p_ij = exp(x_i·m_j/τ) / Σ_k exp(x_i·m_k/τ), with x_i as z.

    z (B, D) and bank (N, D) unit rows, index (B,) and neighbor (B, k) rows of the bank -> (B,), (B,).
    """
    with torch.autocast(z.device.type, enabled=False):  # bfloat16 rounds a logit of 10 by up to 0.03
        logits = z.float() @ bank.T / temperature  # (B, N)
    log_p = logits.log_softmax(1)
    own = log_p.gather(1, index[:, None])  # (B, 1)
    joint = torch.cat([own, log_p.gather(1, neighbor)], 1).logsumexp(1)
    return -own[:, 0], -joint


def discover(bank: Tensor, k: int, temperature: float, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """The entropy H_i of each row's similarity to all rows, itself included, and its k nearest others N_k(i).

    bank (N, D) -> entropy (N,) of softmax(m_i·M/τ), neighbors (N, k), nearest first; N x N values are never held at once.
    """
    n = len(bank)
    entropy, neighbor = bank.new_empty(n), torch.empty(n, k, dtype=torch.int64, device=bank.device)
    for rows in torch.arange(n, device=bank.device).split(max(1, block // n)):
        similarity = bank[rows] @ bank.T  # (R, N)
        log_p = (similarity / temperature).log_softmax(1)
        entropy[rows] = -(log_p.exp() * log_p).sum(1)
        similarity.scatter_(1, rows[:, None], -torch.inf)  # rows are not their own neighbors
        neighbor[rows] = similarity.topk(k).indices
    return entropy, neighbor


class NeighbourhoodDiscovery(Method[IndexedView]):
    pretext_task = "Instance discrimination with neighborhoods"
    bank: Tensor  # (N, D) embeddings of all images
    neighbor: Tensor  # (N, k) nearest others at the last discovery
    anchor: Tensor  # (N,) bool, whether an image is joined with its neighbors

    def __init__(self, config: Config, encoder: Encoder, count: int):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.head = nn.Linear(encoder.dim, config.width)
        self.side = encoder.side(config.side)
        self.register_buffer("bank", torch.zeros(count, config.width))
        self.register_buffer("neighbor", torch.zeros(count, config.neighbors, dtype=torch.int64))
        self.register_buffer("anchor", torch.zeros(count, dtype=torch.bool))

    def begin(self, context: Context) -> None:
        bound = math.sqrt(3 / self.config.width)  # mean squared length of the rows is 1; 0.1531 for 128
        self.bank.copy_(context.rng.unsharded.uniform(*self.bank.shape, low=-bound, high=bound))

    def begin_epoch(self, context: Context) -> None:
        now = context.progress
        if not now.first_of_cycle:
            return
        count = len(self.bank) * now.cycle // max(1, now.cycles - 1)
        self.anchor.zero_()
        if count:
            entropy, neighbor = discover(self.bank, self.config.neighbors, self.config.temperature)
            self.neighbor.copy_(neighbor)
            self.anchor[entropy.argsort(stable=True)[:count]] = True
            found = {"anchor": self.anchor, "neighbor": neighbor.int(), "entropy": entropy}
            context.files[FOUND.format(now.cycle)] = save({name: x.cpu() for name, x in found.items()})

    def pretext(self, batch: Batch, rng: Rng) -> IndexedView:
        c = self.config
        x = augment.to_float(batch.image)
        x = augment.resized_crop(x, self.side, rng, (c.crop, 1.0))
        x = augment.color_jitter(x, rng, c.jitter, c.jitter, c.jitter, c.jitter)
        x = augment.gray(x, rng, c.gray) if x.shape[1] == 3 else x
        return IndexedView(augment.flip(x, rng, c.flip), batch.index)

    def project(self, image: Tensor) -> Tensor:
        return F.normalize(self.head(self.encoder(image)["pool"]).float(), dim=1)  # (B, D)

    def loss(self, pretext: IndexedView) -> Loss:
        z, i = self.project(pretext.image), pretext.index
        t = self.config.temperature
        instance, joined = negative_log_likelihoods(z, self.bank, i, self.neighbor[i], t)
        anchor = self.anchor[i]
        parts = {
            "instance": instance.mean(),  # over all images, comparable between rounds
            "anchor": (joined * anchor).sum() / anchor.sum().clamp(min=1),
            "anchors": anchor.float().mean(),
        }
        return Loss(torch.where(anchor, joined, instance).mean(), parts, carry=(i, z.detach()))

    def after_step(self, carry: Any, progress: Progress) -> None:
        i, z = carry
        self.bank[i] = F.normalize(torch.lerp(z, self.bank[i], self.config.bank_momentum), dim=1)

    def predict(self, pretext: IndexedView) -> Mapping[str, Tensor]:
        return {"index": (self.project(pretext.image) @ self.bank.T).argmax(1)}

    def show(
        self, pretext: IndexedView, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        c, at = self.config, augment.positions(batch.image)
        at = augment.resized_crop(at, self.side, rng, (c.crop, 1.0))
        return show_indexed_views(pretext, answers, batch, augment.extent(at))

    def export(self) -> Encoder:
        return self.encoder
