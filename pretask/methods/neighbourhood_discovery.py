"""Neighbourhood discovery (AND): every image is a class, until the surest take their nearest neighbour in.

Huang, Dong, Gong, Zhu: Unsupervised Deep Learning by Neighbourhood Discovery, ICML 2019, arXiv:1904.11567;
numbers without another source are those of the released code, Raymond-sci/AND at f94c07f. A bank holds one unit vector
per image. Each round begins by ranking the images by how undecided they are among all others, and joins a growing share
of them, the anchors, with their nearest neighbor: 0, 25, 50, 75 and 100 % in five rounds.

Equations (the paper's text was not at hand, so they have lines of the code in place of numbers):
p_ij = exp(x_i·m_j/τ) / Σ_k exp(x_i·m_k/τ), x_i the view's unit vector and m_j a bank row (lib/criterion.py:21);
an instance costs -log p_ii (criterion.py:42-44), an anchor -log Σ_j p_ij over itself and its neighborhood N_k(i)
(criterion.py:30-34), both in `likelihoods`; a batch the sum of them over its size (:46), in `loss`;
the entropy H_i = -Σ_j p_ij log p_ij of a bank row among all (lib/ans_discovery.py:107), by which anchors are chosen
(:114), and N_k(i), the k nearest others (:159-162), in `discover`; the bank's m_i ← (m_i + x_i)/2, at unit length
(lib/non_parametric_classifier.py:52-57), in `after_step`.

How often an image and its neighbor are of one class, the consistency that the code logs by "cheat labels"
(ans_discovery.py:165-175), is in the report: a run keeps what each round began with, in neighbors-1.safetensors and so on, and
the report reads the labels of the run's images, if they have any. Training never does.

**Differs**, all recipes: pixels are normalized by 0.5 and 0.25, not by CIFAR-10's mean and deviation; the order in which
brightness, contrast, saturation and hue change is drawn once a batch, not for each image; the most similar others are
found for all images, not for the anchors alone, which makes no difference; PyTorch of that time drew the gains of batch
norms uniformly in [0, 1] (from memory), ours are 1; of each round the code saves the weights that are best on
test images (main.py:176-192), ours are the last. By default, besides: a narrow ResNet with a halving stem and pooled
shortcuts, 50 epochs in all, half a cosine with a warmup in each round, views of 3/4 of the side, mirrored half of the time;
biases and gains do not decay.

Cost: the softmax is over all N images, B·N numbers a step (51 MB for 256 of 50,000); a discovery compares all
with all, N²·D multiplications once a round, in blocks, so that its memory does not grow with N² (7 s for
50,000 on two cores). The bank takes 512 bytes an image.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.limits import Count, Part, Positive, Share, Weight
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method, MethodConfig
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Progress, Source, UserError

BLOCK = 2**24
"""similarities held at once during a discovery (64 MB)"""
FOUND = "neighbors-{}.safetensors"
"""in the run's folder: what each round began with, for the report"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Tell every image from all others, then join the surest with their neighbours, round by round."""

    encoder: ClassVar[str] = "resnet_small:width=32"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=50,
        batch=64,
        optimizer="sgd",
        lr=0.03,
        nesterov=True,
        weight_decay=5e-4,
        warmup=0.02,
        rounds=5,
    )

    temperature: Positive = 0.1
    """of the softmax over all images"""
    neighbours: Count = 1
    """that an anchor is joined with"""
    width: Count = 128
    """of a bank row"""
    keep: Share = 0.5
    """share of a bank row that stays when its image is seen again"""
    crop: Part = 0.2
    """smallest share of the area that a view shows"""
    side: Part = 0.75
    """of a view, as a share of the image's; smaller views, and more of them in the same time"""
    jitter: Weight = 0.4
    """strength of the change of brightness, contrast, saturation and hue"""
    grey: Share = 0.2
    """probability of losing all colour"""
    flip: Share = 0.5
    """probability of a left-right flip"""

    def build(self, encoder: Encoder, source: Source) -> "NeighbourhoodDiscovery":
        if len(source) <= self.neighbours:
            raise UserError(
                f"{self.neighbours} neighbours need more than {len(source)} images; "
                "add images or lower --neighbours"
            )
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
        drops=(0.6, 0.8),
        rounds=5,
        nesterov=True,
        decay_all=True,
    )

    side: Part = 1.0
    """full size"""
    flip: Share = 0.0
    """commented out in the released configuration"""


@dataclass(frozen=True)
class View:
    image: Tensor  # (B, C, H, W), one random view of each image
    index: Tensor  # (B,) which image it is a view of


def likelihoods(
    z: Tensor, bank: Tensor, index: Tensor, neighbour: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """-log p_ii and -log(p_ii + Σ p_ij over the neighbors j), p_ij = exp(x_i·m_j/τ) / Σ_k exp(x_i·m_k/τ), x_i as z.

    z (B, D) and bank (N, D) unit rows, index (B,), neighbour (B, k) positions in the bank -> (B,), (B,).
    """
    with torch.autocast(z.device.type, enabled=False):  # a logit of 10 in bfloat16 is off by up to 0.03
        logits = z.float() @ bank.T / temperature  # (B, N)
    log_p = logits.log_softmax(1)
    own = log_p.gather(1, index[:, None])  # (B, 1)
    joint = torch.cat([own, log_p.gather(1, neighbour)], 1).logsumexp(1)
    return -own[:, 0], -joint


def discover(bank: Tensor, k: int, temperature: float, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """How undecided each row is among all, itself included, H_i, and its k nearest others, N_k(i).

    bank (N, D) -> entropy (N,) of softmax(m_i·M/τ), neighbours (N, k), nearest first; never N x N at once.
    """
    n = len(bank)
    entropy, neighbour = bank.new_empty(n), torch.empty(n, k, dtype=torch.int64, device=bank.device)
    for rows in torch.arange(n, device=bank.device).split(max(1, block // n)):
        similarity = bank[rows] @ bank.T  # (R, N)
        log_p = (similarity / temperature).log_softmax(1)
        entropy[rows] = -(log_p.exp() * log_p).sum(1)
        similarity.scatter_(1, rows[:, None], -torch.inf)  # oneself is no neighbour
        neighbour[rows] = similarity.topk(k).indices
    return entropy, neighbour


class NeighbourhoodDiscovery(Method[View]):
    bank: Tensor  # (N, D) what is remembered of each image
    neighbour: Tensor  # (N, k) nearest others, as of the last discovery
    anchor: Tensor  # (N,) bool, joined with its neighbours

    def __init__(self, config: Config, encoder: Encoder, count: int):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.head = nn.Linear(encoder.dim, config.width)
        self.side = encoder.side(config.side)
        self.register_buffer("bank", torch.zeros(count, config.width))
        self.register_buffer("neighbour", torch.zeros(count, config.neighbours, dtype=torch.int64))
        self.register_buffer("anchor", torch.zeros(count, dtype=torch.bool))

    def begin(self, context: Context) -> None:
        bound = math.sqrt(3 / self.config.width)  # rows of length 1 on average, 0.1531 for 128
        self.bank.copy_(context.rng.whole.uniform(*self.bank.shape, low=-bound, high=bound))

    def begin_epoch(self, context: Context) -> None:
        now = context.progress
        if not now.first_of_round:
            return
        count = len(self.bank) * now.round // max(1, now.rounds - 1)
        self.anchor.zero_()
        if count:
            entropy, neighbour = discover(self.bank, self.config.neighbours, self.config.temperature)
            self.neighbour.copy_(neighbour)
            self.anchor[entropy.argsort(stable=True)[:count]] = True
            found = {"anchor": self.anchor, "neighbor": neighbour.int(), "entropy": entropy}
            context.files[FOUND.format(now.round)] = save({name: x.cpu() for name, x in found.items()})

    def pretext(self, batch: Batch, rng: Rng) -> View:
        c = self.config
        x = images.to_float(batch.image)
        x = images.resized_crop(x, self.side, rng, (c.crop, 1.0))
        x = images.jitter(x, rng, c.jitter, c.jitter, c.jitter, c.jitter)
        x = images.grey(x, rng, c.grey) if x.shape[1] == 3 else x
        return View(images.flip(x, rng, c.flip), batch.index)

    def project(self, image: Tensor) -> Tensor:
        return F.normalize(self.head(self.encoder(image)["pool"]).float(), dim=1)  # (B, D)

    def loss(self, pretext: View) -> Loss:
        z, i = self.project(pretext.image), pretext.index
        instance, joined = likelihoods(z, self.bank, i, self.neighbour[i], self.config.temperature)
        anchor = self.anchor[i]
        parts = {
            "instance": instance.mean(),  # of all, so that rounds compare
            "anchor": (joined * anchor).sum() / anchor.sum().clamp(min=1),
            "anchors": anchor.float().mean(),
        }
        return Loss(torch.where(anchor, joined, instance).mean(), parts, carry=(i, z.detach()))

    def after_step(self, carry: Any, progress: Progress) -> None:
        i, z = carry
        self.bank[i] = F.normalize(torch.lerp(z, self.bank[i], self.config.keep), dim=1)

    def solve(self, pretext: View) -> Mapping[str, Tensor]:
        return {"index": (self.project(pretext.image) @ self.bank.T).argmax(1)}

    def export(self) -> Encoder:
        return self.encoder
