"""Rotation decoupling: one half of the features tells the turn of an image, the other half which image it is.

Feng, Xu, Tao: Self-Supervised Representation Learning by Rotation Feature Decoupling, CVPR 2019; numbers without another
source are those of the released code, philiptheother/FeatureDecoupling at 8722d7a (pytorch_feature_decoupling/). All four
turns of an image are seen at once, as in RotNet. From the first half a classifier reads the turn. The second half should be
the same for all four turns, and its mean over them should find the image's own row in a bank of all images
(noise-contrastive estimation, NCE). Some images look upright in several turns (a ball, a flower): at the end of the run a
turned copy counts the less, the more upright it looks.

How upright it looks is said by RotNets that never saw the image, made in the same run, so that one command does it all:
two small ones learn beside the network, each from one random half of the images. When the weights are due, each of them
judges the other's half, once and for good, and learns no more.

The log has two accuracies: `accuracy` is that of the classifier, and `accuracy_second` what the same classifier, which never
learns from the second half, reads from that (released: `prec_rot` and `prec_inv` of an evaluation, DecouplingModel.py:170
and :171; here of every training step). While the first rises, the second should stay near chance, 25 %.

Cost: the two RotNets together see every puzzle once, up to then, which makes a step 1.4 times as long by default;
judging passes every image through one of them in four turns. A bank row takes 512 bytes an image; a step reads B·K of
them (34 MB by default).

Equations (the paper's text was not at hand, so they have lines of the code in place of numbers), of image i in turn r with
halves f1 and f2 of its features, L = λ_c L_rot + λ_r L_irr + λ_n L_inst with all λ 1 (algorithms/DecouplingModel.py:107):
L_rot = 1/4B Σ w_ir CE(c(f1_ir), r), w_ir = 1 at first (:98) and then 1 - p_ir^γ, γ = 2, for r > 0 (:100 and :36), in `loss`
and `weights`; L_irr, the mean squared distance of f2_ir from its mean over r, f̄2_i (:102), in `variance`; L_inst, NCE of
v_i = L2(W f̄2_i): P(i|v) = exp(v·V_i/τ)/Z among K drawn rows, "eq 5.1", "eq 5.2" and "equation 6 in ref. A"
(architectures/NCECriterion.py:24-37), in `nce`; Z, N times the mean of exp(v·V/τ) over the first batch
(architectures/NCEAverage.py:103), and V_i ← L2((V_i + v_i)/2), in `after_step`.

**Differs**, all recipes: the released weights come as a file that another run left, here two RotNets make them within the
run. The RotNets have group norms, not batch norms: how many images of a half a batch holds is chance, and differs among
processes. One optimizer, not three of the same settings. The NCE needs no epsilon (released: 1e-7 in denominators), since
it is computed from logarithms. f̄2 is not held constant in L_irr, which leaves its gradient the same. Pixels are normalized
by 0.5 and 0.25, not by ImageNet's mean and deviation. PyTorch of that time drew the gains of batch norms uniformly in
[0, 1] (from memory), ours are 1. By default, besides: a small ResNet, whose pooled features a layer widens before they are
split, as the wide layers of the paper's AlexNet do, τ 0.2, 1,024 negatives, AdamW; and the learning rate falls along a
cosine, which leaves more of it for the weighted part (5 %) than the released restart does (1 %).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretask import encoders
from pretask.config import TrainConfig
from pretask.encoders import Encoder, pooled
from pretask.limits import Count, Natural, Part, Positive, Share, Weight, Within
from pretask.methods import rotnet
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.types import Batch, Loss, Progress, Source, UserError

TURNS = len(rotnet.ANGLES)


@dataclass(frozen=True)
class Config(rotnet.CropConfig):
    """Tell the turn of an image from one half of its features, and which image it is from the other."""

    half: Natural = 256
    """numbers in each half of the features, made of the pooled ones by a layer; 0: the pooled ones are split (paper)"""
    width: Count = 128
    """of a bank row"""
    temperature: Positive = 0.2
    """of the similarity to a bank row (released: 0.07, at which rows that become alike, as in small sets, cost too much)"""
    negatives: Count = 1024
    """bank rows beside an image's own (released: 4096); one less than there are images, at most"""
    keep: Share = 0.5
    """share of a bank row that stays when its image is seen again"""
    late: Within = 0.15
    """share of the run, at its end, in which turned copies are weighted (released: 35 of 245 epochs); in whole epochs"""
    exponent: Weight = 2.0
    """of the probability p that a turned copy stands upright, which then counts 1 - p^exponent"""
    judge: str = "resnet_small:width=16"
    """encoder of the two RotNets that tell p"""

    def build(self, encoder: Encoder, source: Source) -> Method[Any]:
        if len(source) < 2:
            raise UserError(f"{source.name} has {len(source)} image; to tell one from others takes 2 or more")
        if not self.half and encoder.dim % 2:
            raise UserError(f"{encoder.name} has {encoder.dim} features, which have no half; give --half 256")
        return RotationDecoupling(self, encoder, len(source))


@dataclass(frozen=True)
class Paper(Config):
    """AlexNet on ImageNet, and --size 224: batch 192, SGD, 245 epochs, weighted after the first 210 (released code)."""

    encoder: ClassVar[str] = "alexnet_bn"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=245,
        batch=192,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        warmup=0.0,
        drops=(90 / 245, 130 / 245, 190 / 245, 230 / 245),
        rises=(210 / 245,),
        nesterov=True,
        decay_all=True,
    )

    crop: Part = 0.08
    """smallest share of the area that is shown"""
    side: Part = 1.0
    """full size"""
    half: Natural = 0
    """2048 of 4096 features"""
    temperature: Positive = 0.07
    """of the similarity to a bank row"""
    negatives: Count = 4096
    """of 1.28 million bank rows"""
    late: Within = 35 / 245
    """with the learning rate back at a hundredth of its peak"""
    judge: str = "alexnet_bn"
    """RotNet's own"""


@dataclass(frozen=True)
class Turned(rotnet.Turned):
    index: Tensor  # (B,) which image it is
    negative: Tensor  # (B, K) bank rows to tell it from; its own may be among them


def nce(similarity: Tensor, constant: Tensor, count: int) -> Tensor:
    """L_inst = -log P_i/(P_i + K/N) - Σ_k log (K/N)/(P_k + K/N), P = exp(v·V/τ)/Z, over the mean of the batch.

    similarity (B, 1 + K) v·V/τ, that to the own row first; Z as `constant`; N as `count`.
    """
    odds = similarity - (constant * (similarity.shape[1] - 1) / count).log()  # log P/(K/N)
    return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(1)).mean()


def variance(half: Tensor) -> Tensor:
    """L_irr of f2 (B, 4, D): mean squared distance from the mean of the four turns, 0 if they are the same."""
    return half.var(1, correction=0).mean()


def weights(upright: Tensor, exponent: float) -> Tensor:
    """How upright each of the four turns looks, p -> what it counts, w (B, 4); the one that is upright counts in full."""
    weight = 1 - upright**exponent
    return torch.cat([torch.ones_like(weight[:, :1]), weight[:, 1:]], 1)


def due(now: Progress, late: float) -> bool:
    """Whether the last `late` of a run has begun, to the nearest epoch: in the last one it has, in the first it never has."""
    width = (
        now.ends - now.begins
    )  # of an epoch; were all as long, this would be number begins / width of 1 / width
    return now.epoch > 0 and now.begins / width >= min(round((1 - late) / width), 1 / width - 1)


def alone(encoder: Encoder) -> Encoder:
    """The encoder with group norms for batch norms: what it makes of an image depends on no other."""
    for module in list(encoder.modules()):
        for name, norm in module.named_children():
            if isinstance(norm, _BatchNorm):
                group = nn.GroupNorm(math.gcd(8, norm.num_features), norm.num_features)
                act = getattr(norm, "act", None)  # timm fuses the activation
                setattr(module, name, nn.Sequential(group, act) if act else group)
    return encoder


class RotationDecoupling(Method[Turned]):
    partial = True  # the RotNets learn no more once they have judged
    bank: Tensor  # (N, D) what is remembered of each image
    constant: Tensor  # () Z of the NCE, 0 before the first step
    fold: Tensor  # (N,) which of the two RotNets learns from an image
    upright: Tensor  # (N, 4) how upright each turn looks to the other one, 0 before it was asked

    def __init__(self, config: Config, encoder: Encoder, count: int):
        super().__init__()
        self.config, self.encoder = config, encoder
        half = config.half or encoder.dim // 2
        layer = [nn.Linear(encoder.dim, 2 * half, bias=False), nn.BatchNorm1d(2 * half), nn.ReLU()]
        self.layer = nn.Sequential(*layer if config.half else [])
        self.head = nn.Linear(half, TURNS)
        self.describe = nn.Linear(half, config.width)
        self.first, self.second = (
            rotnet.RotNet(config, alone(encoders.build(config.judge, encoder.channels, encoder.size)))
            for _ in range(2)
        )
        self.side = max(encoder.side(config.side), self.first.side)
        self.negatives = min(config.negatives, count - 1)
        self.register_buffer("bank", torch.zeros(count, config.width))
        self.register_buffer("constant", torch.zeros(()))
        self.register_buffer("fold", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("upright", torch.zeros(count, TURNS))

    def begin(self, context: Context) -> None:
        context.source.__getitems__(torch.arange(1))  # a stream says at once that no image is found again
        bound = math.sqrt(3 / self.config.width)  # rows of length 1 on average, 0.1531 for 128
        self.bank.copy_(context.rng.whole.uniform(*self.bank.shape, low=-bound, high=bound))
        self.fold.copy_(context.rng.child("fold").whole.permutation(len(self.fold)) % 2)

    def begin_epoch(self, context: Context) -> None:
        if not self.upright.any() and due(context.progress, self.config.late):
            self.ask(context.source)

    @torch.no_grad()
    def ask(self, source: Source) -> None:
        """Each RotNet says of every image that it has not learned from how upright its turns look."""
        for fold, judge in enumerate((self.first, self.second)):
            for rows in (self.fold != fold).nonzero()[:, 0].split(1024):
                image = source.__getitems__(rows.cpu()).image
                for turn in range(TURNS):
                    pool = pooled(judge.encoder, image.rot90(turn, (2, 3))).to(rows.device)
                    self.upright[rows, turn] = judge.head(pool).softmax(1)[:, 0]

    def pretext(self, batch: Batch, rng: Rng) -> Turned:
        four = rotnet.turned(batch.image, self.side, self.config.crop, rng)
        negative = rng.child("negative").integers(len(batch), self.negatives, high=len(self.bank))
        return Turned(four.image, four.turn, batch.index, negative)

    def halves(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(4·B, C, H, W) -> what tells the turn and what does not, (4·B, D) each."""
        turning, lasting = self.layer(self.encoder(image)["pool"]).float().chunk(2, 1)
        return turning, lasting

    def loss(self, pretext: Turned) -> Loss:
        turning, lasting = self.halves(pretext.image)
        lasting = lasting.unflatten(0, (-1, TURNS))  # (B, 4, D)
        logits, weight = self.head(turning), weights(self.upright[pretext.index], self.config.exponent)
        rotation = (weight.flatten() * F.cross_entropy(logits, pretext.turn, reduction="none")).mean()
        v = F.normalize(self.describe(lasting.mean(1)).float(), dim=1)  # (B, D)
        rows = torch.cat([pretext.index[:, None], pretext.negative], 1)  # (B, 1 + K)
        with torch.autocast(v.device.type, enabled=False):  # bfloat16 rounds a similarity of 5 by up to 0.02
            similarity = torch.einsum("bd,bkd->bk", v, self.bank[rows]) / self.config.temperature
        sums = len(self.bank) * similarity.detach().exp().mean(1)  # (B,), Z as each image sees it
        constant = self.constant if self.constant > 0 else distributed.mean(sums.mean())
        instance, irrelevance = nce(similarity, constant, len(self.bank)), variance(lasting)
        judges = self.learn(pretext)
        with torch.no_grad():
            second = (self.head(lasting.flatten(0, 1)).argmax(1) == pretext.turn).float().mean()
        parts = {
            "accuracy": (logits.argmax(1) == pretext.turn).float().mean(),
            "accuracy_second": second,
            "rotation": rotation,
            "weight": weight.mean(),
            "irrelevance": irrelevance,
            "instance": instance,
            "judges": judges,
        }
        total = rotation + irrelevance + instance + judges
        return Loss(total, parts, carry=(pretext.index, v.detach(), sums))

    def learn(self, pretext: Turned) -> Tensor:
        """What the two RotNets pay for the turns of images of their own; nothing once they have judged."""
        cost = torch.zeros((), device=pretext.image.device)
        if self.upright.any():
            return cost
        fold = self.fold[pretext.index].repeat_interleave(TURNS)
        for k, judge in enumerate((self.first, self.second)):
            own = rotnet.Turned(pretext.image[fold == k], pretext.turn[fold == k])
            paid = F.cross_entropy(judge.logits(own), own.turn, reduction="sum")
            cost = cost + paid / (len(fold) / 2)  # a batch's expected share: the same in one process or many
        return cost

    def after_step(self, carry: Any, progress: Progress) -> None:
        i, v, sums = carry
        self.constant.copy_(torch.where(self.constant > 0, self.constant, sums.mean()))
        self.bank[i] = F.normalize(torch.lerp(v, self.bank[i], self.config.keep), dim=1)

    def solve(self, pretext: Turned) -> Mapping[str, Tensor]:
        turning, _ = self.halves(pretext.image)
        return {"turn": self.head(turning).argmax(1)}

    def meanings(self) -> Mapping[str, Sequence[str]]:
        return {"turn": [f"{angle}°" for angle in rotnet.ANGLES]}

    def export(self) -> Encoder:
        return self.encoder
