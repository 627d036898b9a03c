"""LeJEPA: all views of an image should lie together, and the images should be spread like a round Gaussian.

Balestriero, LeCun: LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics, 2025,
arXiv:2511.08544. No teacher, no predictor, no stopped gradient: what keeps all images from getting the same features is
SIGReg, a test of normality along random directions that are drawn anew at every step. With several processes it is of
the batches of all of them. Every view foresees the mean of the global views (sec. 5.1, eq. 7): the large ones, or all
where all are drawn alike. The paper names two equations by words, (SIGReg) and (LeJEPA); they and eq. 7 were read
in sergio-alberto-dlm/knowledge_robot_learning, wiki/papers/balestriero_2025_lejepa.md, which quotes its third version.

**Differs:** for a net that is no transformer, the paper's algorithm 2 counts small views as global as well; eq. 7 adds up
the squares of an embedding's numbers, here they are averaged, and the integral of the paper's algorithm 1 goes from -5 to 5,
here to 3 by symmetry (both as in the released demo). In `:paper`:
the demo probes the 512 numbers of a layer behind the transformer, which here belongs to the projector, so the
transformer's own 384 are exported; crops are of an image already reduced to 128 px, not to 160; a blur has a window of a
tenth of the side, not of 7 px.

Cost of SIGReg: views · batch · directions · 17 sines and cosines.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import projector
from pretask.limits import Count, Natural, Part, Parts, Share
from pretask.methods.base.views import Crops, CropsConfig, OfCrops
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Source

NODES, REACH = 17, 3.0
"""of the integral: where the characteristic functions are compared, from 0 to 3 (released code)"""


@dataclass(frozen=True)
class Config(CropsConfig):
    """Bring all views of an image together, and spread the images like a round Gaussian."""

    gaussian: Share = 0.02
    """λ, weight of the test of normality; 1 - λ is that of the distance between views (released demo; sec. 6.1: 0.05)"""
    directions: Count = 256
    """along which normality is tested (256 to 1024 in the paper)"""
    embedding: Natural = 0
    """of a linear layer in front of the projector (512 in the released demo); 0: none"""
    width: Count = 64
    """of the projection"""
    hidden: Count = 512
    """of the projector's two hidden layers (2048 in the released code)"""

    def build(self, encoder: Encoder, source: Source) -> "LeJEPA":
        return LeJEPA(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ViT-S/8 on Imagenette, with --size 128: AdamW, 800 epochs, 4 views of 128 px (released demo, `MINIMAL.md`)."""

    encoder: ClassVar[str] = "vit_small_patch8_224:drop_path_rate=0.1"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=800,
        batch=256,
        lr=2e-3,
        lr_start=2e-5,
        lr_end=1e-3,
        weight_decay=0.05,
        decay_all=True,
        warmup=1 / 800,
    )

    side: Part = 1.0
    """full size"""
    views: images.Views = images.Views(crop=(0.08, 1.0), jitter=1.0, blur=0.5, solarize=0.2)
    """of all four"""
    small: Natural = 2
    """two more, drawn as the others are"""
    small_side: Part = 1.0
    """full size"""
    small_crop: Parts = (0.08, 1.0)
    """as of the others"""
    embedding: Natural = 512
    """what the demo has in place of a classifier"""
    width: Count = 16
    """of the projection"""
    hidden: Count = 2048
    """of the hidden layers"""


@dataclass(frozen=True)
class Sketched(Crops):
    seed: Tensor  # () of the directions


def directions(width: int, count: int, rng: Rng) -> Tensor:
    """(width, count): unit columns, evenly from all directions."""
    return F.normalize(rng.normal(width, count), dim=0)


def sigreg(z: Tensor, along: Tensor) -> Tensor:
    """Sketched isotropic Gaussian regularization (SIGReg) of (…, B, D), along unit columns (D, M): a mean over … and columns.

    Epps and Pulley's statistic of z·a against N(0, 1): B ∫ |φ̂(t) - φ(t)|² φ(t) dt with φ(t) = exp(-t²/2), by the
    trapezoidal rule on [0, 3], doubled because the integrand is even. About 1 for a Gaussian, 0.40 B for zeros.
    """
    t = torch.linspace(0, REACH, NODES, device=z.device)
    phi = (-(t**2) / 2).exp()
    weight = phi * 2 * REACH / (NODES - 1)
    weight[[0, -1]] /= 2
    angle = (z @ along)[..., None] * t  # (…, B, M, T)
    error = (angle.cos().mean(-3) - phi).square() + angle.sin().mean(-3).square()  # (…, M, T)
    return z.shape[-2] * (error @ weight).mean()


class LeJEPA(OfCrops):
    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        c, dim = config, config.embedding or encoder.dim
        embed = [nn.Linear(encoder.dim, dim)] if c.embedding else []
        self.head = nn.Sequential(*embed, *projector(dim, c.hidden, c.hidden, c.width))
        alike = (c.small_side, c.small_crop) == (c.side, c.views.crop)
        self.num_global = 2 + c.small if alike else 2

    def pretext(self, batch: Batch, rng: Rng) -> Sketched:
        views = super().pretext(batch, rng)
        seed = rng.child("directions").whole.integers(1, high=2**31)[0]
        return Sketched(views.left, views.right, views.small, seed)

    def loss(self, pretext: Crops) -> Loss:
        assert isinstance(pretext, Sketched)
        c = self.config
        z = self.through(self.head, pretext).float()  # (2 + V, B, D)
        every = distributed.gather(z.transpose(0, 1).contiguous()).transpose(0, 1)
        along = directions(c.width, c.directions, Rng(int(pretext.seed), "directions")).to(z.device)
        apart = (z - z[: self.num_global].mean(0)).square().mean()  # eq. 7
        with torch.autocast(z.device.type, enabled=False):
            normality = sigreg(every, along)
        total = (1 - c.gaussian) * apart + c.gaussian * normality  # eq. (LeJEPA)
        return Loss(total, {"apart": apart, "normality": normality})
