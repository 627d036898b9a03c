"""LeJEPA: predict the mean of an image's global views, with SIGReg pushing embeddings towards an isotropic
Gaussian.

Balestriero, LeCun: LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics, 2025,
arXiv:2511.08544. There is no teacher, predictor or stop-gradient: collapse is prevented by SIGReg, a
normality test along random directions that are drawn again every step. With several processes it is computed
over the batches of all of them. Every view predicts the mean of the global views (sec. 5.1, eq. 7): the two
large ones, or all if all are augmented alike. The paper names two equations by words, (SIGReg) and (LeJEPA);
they and eq. 7 were read in sergio-alberto-dlm/knowledge_robot_learning,
wiki/papers/balestriero_2025_lejepa.md, which quotes its third version.

**Differs:** for networks other than transformers, the paper's algorithm 2 counts local views as global as
well; eq. 7 sums the squares over an embedding's dimensions, here they are averaged, and the integral of the
paper's algorithm 1 goes from -5 to 5, here to 3 by symmetry (both as in the released demo). In `:paper`: the
demo probes the 512 numbers of a layer after the transformer, which here belongs to the projector, so the
transformer's own 384 are exported; crops are taken from an image already resized to 128 px, not to 160; the
blur kernel is a tenth of the image side, not 7 px.

Cost of SIGReg: views · batch · slices · 17 sines and cosines.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.heads import build_mlp
from pretask.limits import NonNegativeInt, PositiveFraction, PositiveFractions, PositiveInt, UnitInterval
from pretask.methods.base.views import MultiCrop, MultiCropConfig, MultiCropMethod
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.transforms import augment
from pretask.types import Batch, Loss, Source

KNOTS, T_MAX = 17, 3.0
"""nodes of the integral over the characteristic functions, and its upper limit (released code)"""


@dataclass(frozen=True)
class Config(MultiCropConfig):
    """Predict the mean of the global views, with embeddings pushed towards an isotropic Gaussian."""

    family: ClassVar[str] = "redundancy reduction"
    lambda_: UnitInterval = 0.02
    """λ, weight of SIGReg; 1 - λ is that of the prediction loss (released demo; sec. 6.1: 0.05)"""
    num_slices: PositiveInt = 256
    """random directions along which normality is tested (paper: 256 to 1024)"""
    embed_dim: NonNegativeInt = 0
    """width of a linear layer in front of the projector (released demo: 512); 0: none"""
    width: PositiveInt = 64
    """output width of the projector"""
    hidden: PositiveInt = 512
    """width of the projector's two hidden layers (released: 2048)"""

    def build(self, encoder: Encoder, source: Source) -> "LeJEPA":
        return LeJEPA(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """ViT-S/8 on Imagenette, with --size 128: AdamW, 800 epochs, 4 views of 128 px (demo, `MINIMAL.md`)."""

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

    side: PositiveFraction = 1.0
    """full size"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(
        crop=(0.08, 1.0), jitter=1.0, blur=0.5, solarize=0.2
    )
    """of all four views"""
    local_crops: NonNegativeInt = 2
    """two more views, augmented like the others"""
    local_size: PositiveFraction = 1.0
    """full size"""
    local_scale: PositiveFractions = (0.08, 1.0)
    """as the others"""
    embed_dim: NonNegativeInt = 512
    """the demo's replacement of the classifier"""
    width: PositiveInt = 16
    """output width"""
    hidden: PositiveInt = 2048
    """width of the hidden layers"""


@dataclass(frozen=True)
class SlicedMultiCrop(MultiCrop):
    seed: Tensor  # () seed of the random directions


def random_directions(width: int, count: int, rng: Rng) -> Tensor:
    """(width, count): unit columns, uniform over all directions."""
    return F.normalize(rng.normal(width, count), dim=0)


def sigreg(z: Tensor, along: Tensor) -> Tensor:
    """Sketched isotropic Gaussian regularization (SIGReg) of (…, B, D) along unit columns (D, M): a mean over
    … and columns.

    Epps-Pulley statistic of z·a against N(0, 1): B ∫ |φ̂(t) - φ(t)|² φ(t) dt with φ(t) = exp(-t²/2), by the
    trapezoidal rule on [0, 3], doubled because the integrand is even. About 1 for a Gaussian, 0.40 B for
    zeros.
    """
    t = torch.linspace(0, T_MAX, KNOTS, device=z.device)
    phi = (-(t**2) / 2).exp()
    weight = phi * 2 * T_MAX / (KNOTS - 1)
    weight[[0, -1]] /= 2
    angle = (z @ along)[..., None] * t  # (…, B, M, T)
    error = (angle.cos().mean(-3) - phi).square() + angle.sin().mean(-3).square()  # (…, M, T)
    return z.shape[-2] * (error @ weight).mean()


class LeJEPA(MultiCropMethod):
    pretext_task = "Joint embedding, regularized to a Gaussian"

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__(config, encoder)
        c, dim = config, config.embed_dim or encoder.dim
        embed = [nn.Linear(encoder.dim, dim)] if c.embed_dim else []
        self.projector = nn.Sequential(*embed, *build_mlp(dim, c.hidden, c.hidden, c.width))
        alike = (c.local_size, c.local_scale) == (c.side, c.views.crop)
        self.num_global = 2 + c.local_crops if alike else 2

    def pretext(self, batch: Batch, rng: Rng) -> SlicedMultiCrop:
        views = super().pretext(batch, rng)
        seed = rng.child("directions").unsharded.integers(1, high=2**31)[0]
        return SlicedMultiCrop(views.view1, views.view2, views.local_views, seed)

    def loss(self, pretext: MultiCrop) -> Loss:
        assert isinstance(pretext, SlicedMultiCrop)
        c = self.config
        z = self.forward_views(self.projector, pretext).float()  # (2 + V, B, D)
        every = distributed.gather(z.transpose(0, 1).contiguous()).transpose(0, 1)
        along = random_directions(c.width, c.num_slices, Rng(int(pretext.seed), "directions")).to(z.device)
        prediction = (z - z[: self.num_global].mean(0)).square().mean()  # eq. 7
        with torch.autocast(z.device.type, enabled=False):
            sigreg_loss = sigreg(every, along)
        total = (1 - c.lambda_) * prediction + c.lambda_ * sigreg_loss  # eq. (LeJEPA)
        return Loss(total, {"prediction": prediction, "sigreg": sigreg_loss})
