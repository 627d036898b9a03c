"""Rotation feature decoupling: one half of the features predicts the rotation, the other half discriminates instances.

Feng, Xu, Tao: Self-Supervised Representation Learning by Rotation Feature Decoupling, CVPR 2019; numbers without another
source are those of the released code, philiptheother/FeatureDecoupling at 8722d7a (pytorch_feature_decoupling/). All four
rotations of an image share a batch, as in RotNet. A classifier predicts the rotation from the first half. The second half
should be the same for all four rotations; its mean over them is contrasted with a memory bank of all images
(noise-contrastive estimation, NCE). Some images look upright in several rotations (a ball, a flower): at the end of the run,
rotated copies are weighted down by how upright they look.

Uprightness is predicted by two cross-fitted RotNets within the same run: two small RotNets train alongside the network, each
on one random half of the images. When the weighting starts, each predicts the uprightness of the other's half once, and
both stop training.

The log has two accuracies: `accuracy` of the classifier on the first half, and `accuracy_second` of the same classifier
applied to the second half, from which it never learns (released: `prec_rot` and `prec_inv` of an evaluation,
DecouplingModel.py:170 and :171; here of every training step). While the first rises, the second should stay near chance, 25 %.

Cost: each training image passes through one of the two RotNets until the weighting starts, which makes a step 1.4 times as
long by default; predicting uprightness passes every image through one of them in four rotations. A row of the bank takes
512 bytes; a step reads B·K of them (34 MB by default).

Equations (the paper's text was not available, so lines of the code replace numbers), of image i in rotation r with halves f1
and f2 of its features: L = λ_c L_rot + λ_r L_irr + λ_n L_inst with all λ 1 (algorithms/DecouplingModel.py:107).
L_rot = 1/4B Σ w_ir CE(c(f1_ir), r), w_ir = 1 at first (:98) and then 1 - p_ir^γ, γ = 2, for r > 0 (:100 and :36), in `loss`
and `rotation_weights`; L_irr, the mean squared distance of f2_ir from its mean over r, f̄2_i (:102), in `variance`; L_inst,
NCE of v_i = L2(W f̄2_i): P(i|v) = exp(v·V_i/τ)/Z among K sampled rows, "eq 5.1", "eq 5.2" and "equation 6 in ref. A"
(architectures/NCECriterion.py:24-37), in `nce`; Z, N times the mean of exp(v·V/τ) over the first batch
(architectures/NCEAverage.py:103), and V_i ← L2((V_i + v_i)/2), in `after_step`.

**Differs**, all recipes: the released weights w come from a file made by another run; here two RotNets compute them within
the run. The RotNets have group norms instead of batch norms, because the number of images of a half in a batch is random
and differs between processes. One optimizer replaces three with the same settings. The NCE needs no epsilon (released: 1e-7
in denominators), since it is computed from logarithms. f̄2 is not detached in L_irr, which does not change the gradient.
Pixels are normalized by 0.5 and 0.25, not by ImageNet's mean and standard deviation. PyTorch of that time initialized the
gains of batch norms uniformly in [0, 1] (from memory), here they start at 1. By default, besides: a small ResNet, whose pooled
features are widened by a layer before the split, like the wide layers of the paper's AlexNet; τ 0.2, 1,024 negatives, AdamW;
and a cosine learning-rate schedule, which leaves more of it for the weighted part (5 %) than the released restart (1 %).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretask import encoders
from pretask.config import TrainConfig
from pretask.encoders import Encoder, pooled
from pretask.limits import (
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    UnitInterval,
)
from pretask.methods import rotnet
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method, Minimum
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.types import Batch, Loss, Progress, Source, UserError
from pretask.viz.puzzle import Puzzle

ROTATIONS = len(rotnet.ANGLES)


@dataclass(frozen=True)
class Config(rotnet.CropConfig):
    """Predict the rotation from one half of the features, and discriminate instances by the other."""

    family: ClassVar[str] = "pretext tasks"
    half_dim: NonNegativeInt = 256
    """dimension of each half, made from the pooled features by a linear layer; 0: the pooled features are split (paper)"""
    width: PositiveInt = 128
    """dimension of the embeddings in the memory bank"""
    temperature: PositiveFloat = 0.2
    """temperature of the similarities to the bank (released: 0.07, too low for small datasets, whose rows become alike)"""
    num_negatives: PositiveInt = 1024
    """rows of the bank sampled as negatives (released: 4096); at most the number of images less one"""
    bank_momentum: UnitInterval = 0.5
    """fraction of a row of the bank that is kept when its image is seen again"""
    weighted_fraction: OpenUnitInterval = 0.15
    """fraction of the run, at its end, in which rotated copies are weighted (released: 35 of 245 epochs); whole epochs"""
    weight_exponent: NonNegativeFloat = 2.0
    """exponent γ of the weight 1 - p^γ of a rotated copy that is upright with probability p"""
    rotnet_encoder: str = "resnet_small:width=16"
    """encoder of the two RotNets that predict p"""

    def fewest_images(self) -> Minimum:
        """Instance discrimination needs at least one negative."""
        return Minimum(2)

    def build(self, encoder: Encoder, source: Source) -> Method[Any]:
        if not self.half_dim and encoder.dim % 2:
            raise UserError(
                f"{encoder.name} has an odd number of features, {encoder.dim}; give --half-dim 256"
            )
        return RotationDecoupling(self, encoder, len(source))


@dataclass(frozen=True)
class Paper(Config):
    """The released ImageNet run, with --size 224: AlexNet, batch 192, SGD, 245 epochs, weighted after the first 210."""

    encoder: ClassVar[str] = "alexnet_bn"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=245,
        batch=192,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        warmup=0.0,
        milestones=(90 / 245, 130 / 245, 190 / 245, 230 / 245),
        undo_milestones=(210 / 245,),
        nesterov=True,
        decay_all=True,
    )

    crop: PositiveFraction = 0.08
    """smallest fraction of the image's area in a crop"""
    side: PositiveFraction = 1.0
    """full size"""
    half_dim: NonNegativeInt = 0
    """2048 of 4096 features"""
    temperature: PositiveFloat = 0.07
    """temperature of the similarities to the bank"""
    num_negatives: PositiveInt = 4096
    """of 1.28 million rows"""
    weighted_fraction: OpenUnitInterval = 35 / 245
    """the learning rate restarts at a hundredth of its peak"""
    rotnet_encoder: str = "alexnet_bn"
    """that of RotNet"""


@dataclass(frozen=True)
class Rotated(rotnet.Rotated):
    index: Tensor  # (B,) of the image in the source
    negative: Tensor  # (B, K) rows of the bank; the image's own may be among them


def nce(similarity: Tensor, constant: Tensor, count: int) -> Tensor:
    """L_inst = -log P_i/(P_i + K/N) - Σ_k log (K/N)/(P_k + K/N), P = exp(v·V/τ)/Z, averaged over the batch.

    similarity (B, 1 + K) is v·V/τ, the positive first; `constant` is Z, `count` is N.
    """
    odds = similarity - (constant * (similarity.shape[1] - 1) / count).log()  # log P/(K/N)
    return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(1)).mean()


def variance(half: Tensor) -> Tensor:
    """L_irr of f2 (B, 4, D): mean squared distance from the mean over the four rotations."""
    return half.var(1, correction=0).mean()


def rotation_weights(upright: Tensor, gamma: float) -> Tensor:
    """Probabilities p (B, 4) that each rotation is upright -> weights w (B, 4); the unrotated image has weight 1."""
    weight = 1 - upright**gamma
    return torch.cat([torch.ones_like(weight[:, :1]), weight[:, 1:]], 1)


def weighting_begun(now: Progress, fraction: float) -> bool:
    """Whether the last `fraction` of the run has begun, to the nearest epoch; always in the last epoch, never in the first."""
    width = (
        now.ends - now.begins
    )  # of this epoch; if all were as long, this would be epoch begins / width of 1 / width
    return now.epoch > 0 and now.begins / width >= min(round((1 - fraction) / width), 1 / width - 1)


def group_norms(encoder: Encoder) -> Encoder:
    """Replace the batch norms of an encoder by group norms, so that an image's features depend on no other image."""
    for module in list(encoder.modules()):
        for name, norm in module.named_children():
            if isinstance(norm, _BatchNorm):
                group = nn.GroupNorm(math.gcd(8, norm.num_features), norm.num_features)
                act = getattr(norm, "act", None)  # timm fuses the activation
                setattr(module, name, nn.Sequential(group, act) if act else group)
    return encoder


class RotationDecoupling(Method[Rotated]):
    pretext_task = "Rotation prediction with decoupled features"
    has_unused_params = True  # the RotNets stop training once they have predicted uprightness
    bank: Tensor  # (N, D) embeddings of all images
    constant: Tensor  # () Z of the NCE, 0 before the first step
    fold: Tensor  # (N,) which of the two RotNets trains on an image
    upright: Tensor  # (N, 4) probability that each rotation is upright, by the other RotNet; 0 before it is predicted

    def __init__(self, config: Config, encoder: Encoder, count: int):
        super().__init__()
        self.config, self.encoder = config, encoder
        half = config.half_dim or encoder.dim // 2
        layer = [nn.Linear(encoder.dim, 2 * half, bias=False), nn.BatchNorm1d(2 * half), nn.ReLU()]
        self.widen = nn.Sequential(*layer if config.half_dim else [])
        self.head = nn.Linear(half, ROTATIONS)
        self.embed = nn.Linear(half, config.width)
        self.rotnet1, self.rotnet2 = (
            rotnet.RotNet(
                config, group_norms(encoders.build(config.rotnet_encoder, encoder.channels, encoder.size))
            )
            for _ in range(2)
        )
        self.side = max(encoder.side(config.side), self.rotnet1.side)
        self.num_negatives = min(config.num_negatives, count - 1)
        self.register_buffer("bank", torch.zeros(count, config.width))
        self.register_buffer("constant", torch.zeros(()))
        self.register_buffer("fold", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("upright", torch.zeros(count, ROTATIONS))

    def begin(self, context: Context) -> None:
        context.source.__getitems__(torch.arange(1))  # a stream, which has no indices, fails here at once
        bound = math.sqrt(3 / self.config.width)  # mean squared length of the rows is 1; 0.1531 for 128
        self.bank.copy_(context.rng.unsharded.uniform(*self.bank.shape, low=-bound, high=bound))
        self.fold.copy_(context.rng.child("fold").unsharded.permutation(len(self.fold)) % 2)

    def begin_epoch(self, context: Context) -> None:
        if not self.upright.any() and weighting_begun(context.progress, self.config.weighted_fraction):
            self.predict_uprightness(context.source)

    @torch.no_grad()
    def predict_uprightness(self, source: Source) -> None:
        """Each RotNet predicts, for all images it was not trained on, how upright each rotation is."""
        for fold, net in enumerate((self.rotnet1, self.rotnet2)):
            for rows in (self.fold != fold).nonzero()[:, 0].split(1024):
                image = source.__getitems__(rows.cpu()).image
                for rotation in range(ROTATIONS):
                    pool = pooled(net.encoder, image.rot90(rotation, (2, 3))).to(rows.device)
                    self.upright[rows, rotation] = net.head(pool).softmax(1)[:, 0]

    def pretext(self, batch: Batch, rng: Rng) -> Rotated:
        views = rotnet.rotated(batch.image, self.side, self.config.crop, rng)
        negative = rng.child("negative").integers(len(batch), self.num_negatives, high=len(self.bank))
        return Rotated(views.image, views.rotation, batch.index, negative)

    def split_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(4·B, C, H, W) -> rotation-discriminative and rotation-irrelevant features, (4·B, D) each."""
        rotation, instance = self.widen(self.encoder(image)["pool"]).float().chunk(2, 1)
        return rotation, instance

    def loss(self, pretext: Rotated) -> Loss:
        f1, f2 = self.split_features(pretext.image)
        f2 = f2.unflatten(0, (-1, ROTATIONS))  # (B, 4, D)
        logits, weight = (
            self.head(f1),
            rotation_weights(self.upright[pretext.index], self.config.weight_exponent),
        )
        rotation = (weight.flatten() * F.cross_entropy(logits, pretext.rotation, reduction="none")).mean()
        v = F.normalize(self.embed(f2.mean(1)).float(), dim=1)  # (B, D)
        rows = torch.cat([pretext.index[:, None], pretext.negative], 1)  # (B, 1 + K)
        with torch.autocast(v.device.type, enabled=False):  # bfloat16 rounds a similarity of 5 by up to 0.02
            similarity = torch.einsum("bd,bkd->bk", v, self.bank[rows]) / self.config.temperature
        sums = len(self.bank) * similarity.detach().exp().mean(1)  # (B,), estimates of Z
        constant = self.constant if self.constant > 0 else distributed.mean(sums.mean())
        instance, irrelevance = nce(similarity, constant, len(self.bank)), variance(f2)
        rotnets = self.rotnet_loss(pretext)
        with torch.no_grad():
            second = (self.head(f2.flatten(0, 1)).argmax(1) == pretext.rotation).float().mean()
        parts = {
            "accuracy": (logits.argmax(1) == pretext.rotation).float().mean(),
            "accuracy_second": second,
            "rotation": rotation,
            "weight": weight.mean(),
            "irrelevance": irrelevance,
            "instance": instance,
            "rotnets": rotnets,
        }
        total = rotation + irrelevance + instance + rotnets
        return Loss(total, parts, carry=(pretext.index, v.detach(), sums))

    def rotnet_loss(self, pretext: Rotated) -> Tensor:
        """Sum of the losses of the two RotNets, each on its own fold; 0 once they have predicted uprightness."""
        total = torch.zeros((), device=pretext.image.device)
        if self.upright.any():
            return total
        fold = self.fold[pretext.index].repeat_interleave(ROTATIONS)
        for k, net in enumerate((self.rotnet1, self.rotnet2)):
            own = rotnet.Rotated(pretext.image[fold == k], pretext.rotation[fold == k])
            loss = F.cross_entropy(net.logits(own), own.rotation, reduction="sum")
            total = total + loss / (len(fold) / 2)  # the expected fold size: the same in one process or many
        return total

    def after_step(self, carry: Any, progress: Progress) -> None:
        i, v, sums = carry
        self.constant.copy_(torch.where(self.constant > 0, self.constant, sums.mean()))
        self.bank[i] = F.normalize(torch.lerp(v, self.bank[i], self.config.bank_momentum), dim=1)

    def predict(self, pretext: Rotated) -> Mapping[str, Tensor]:
        rotation, _ = self.split_features(pretext.image)
        return {"rotation": self.head(rotation).argmax(1)}

    def answer_names(self) -> Mapping[str, Sequence[str]]:
        return {"rotation": [f"{angle}°" for angle in rotnet.ANGLES]}

    def show(
        self, pretext: Rotated, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        return rotnet.rotations(pretext, rotnet.ANGLES, answers.get("rotation"))

    def export(self) -> Encoder:
        return self.encoder
