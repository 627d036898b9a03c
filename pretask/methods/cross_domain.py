"""Cross-domain tasks: foresee contours, depth and normals of rendered scenes, by features that photographs could have.

Ren, Lee: Cross-Domain Self-supervised Multi-task Feature Learning using Synthetic Imagery, CVPR 2018,
arXiv:1711.09082. Of the paper only the abstract and the first page could be read, so its equations have no numbers
here: "released" is jason718/game-feature-learning at ae9b48a, the source of every number that names no other, its
lines those of src/. A renderer knows three answers for nothing. So that what is learnt holds for photographs too, a
judge looks at a map of features and says from which of the two it comes; the trunk is trained to be taken for
photographs. The judge also sees earlier maps, out of two pools. `pretask render` makes scenes.

Cost: an image and a photograph a sample, and maps of full size from three heads; a pool keeps 128 maps (3 MB each by
default).

**Differs**, in the losses: contours weigh as much as all that is none (`pos_weight`), where the released code weighs
both alike, by the count of the whole image, not of the crop; an image with few contours has no say about them, where
the released loader draws another; depth and normals are compared where they are known, where the released code takes an
unknown depth for log(1e-8) and an unknown normal for a direction; and depth by default by Eigen's loss
(arXiv:1406.2283, eq. 3) of each image, where the released code adds the mean's square over the batch.

In the game: judge and trunk step together, so that the trunk is scored by the judge of one step before; in the released
loop (model.py:181-199) the judge steps first, on the maps of the same batch, and the trunk is scored by the judge that
has. By default, for short runs, the judge learns ten times as fast.

In the images: contours are the pixels next to which another thing begins, where the paper runs Canny's detector on the
masks of instances (sec. 3.1, as an author quotes it in issue 4 of the released code); scenes are cut to their central square, where released ones are squeezed to one, as photographs are here
too (`:paper`; by default they are squeezed to the canvas and cropped as scenes are), and their maps are reduced by the
nearest pixel, normals by the mean direction, where the released loader smooths all of them. Every channel enters less
0.449 in `:paper`, where the released one enters less its own mean in ImageNet, 0.485, 0.456 or 0.406 (by default less
0.5, in units of 0.25). Crops may end with the image's last row and column, which released ones never do.

In the rest: batch norms see the whole batch, not each of 8 GPUs its part; the learning rate falls as the released
settings say, which the released loop forgets; by default weights begin as torch draws them, but for heads and judge.
Over several processes a map is exchanged for one that the pool held before the step or that came from the same process.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, Optimizer

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.limits import Count, Part, Share, Weight
from pretask.methods.base.method import Method, MethodConfig
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Progress, Source, UserError

POOL = 128
"""maps of each kind that are remembered"""
BETAS = (0.5, 0.999)
"""of Adam"""
GAIN = 0.02
"""of the first weights of heads and judge, and in `:paper` of the trunk (networks.py:12)"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Foresee contours, depth and normals of rendered scenes, by features that photographs could have."""

    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=32, lr=1e-3, weight_decay=0.0)
    needs: ClassVar[frozenset[str]] = frozenset({"depth", "normals", "instances", "photographs"})

    crop: Part = 227 / 256
    """share of the image's side that is shown, anywhere in it"""
    whole: bool = False
    """a photograph is scaled to the size of a crop, in place of being cropped itself"""
    contours: Weight = 1.0
    """weight of the task, 0 to leave it out (weights: released alexnet.yaml)"""
    normals: Weight = 10.0
    """weight"""
    depth: Weight = 5.0
    """weight"""
    adversary: Weight = 0.05
    """weight of being taken for a photograph; much more, and features serve the judge instead of the tasks"""
    sign: Literal["eigen", "released"] = "eigen"
    """whether a depth that is wrong by a factor costs less than others, or more"""
    fewest: Share = 350 / 227**2
    """share of contour pixels below which an image has no say about contours (released: 350 pixels)"""
    tap: str = ""
    """stage whose map the judge sees; none: the last but one"""
    width: Count = 64
    """channels of the heads"""
    kernels: tuple[Count, ...] = ()
    """of the heads' layers, each of which doubles the map; none: 4, as often as it takes to come to the image"""
    judge: Count = 128
    """channels of the judge"""
    judge_lr: Weight = 1e-2
    """peak learning rate of the judge, by SGD"""

    def build(self, encoder: Encoder, source: Source) -> "CrossDomain":
        names = list(encoder.sides)
        tap = self.tap or names[max(0, len(names) - 2)] if names else ""
        if tap not in encoder.sides:
            raise UserError(
                f"{encoder.name} has no map {tap or 'to foresee from'}; expected --tap {', '.join(names) or 'of another net'}"
            )
        if encoder.channels == 1:
            raise UserError("cross_domain takes one channel of colour images; these are grey already")
        return CrossDomain(self, encoder, tap)


@dataclass(frozen=True)
class Paper(Config):
    """The released run: --size 256, CaffeNet with wide convolutions at its end, 30 epochs of a million scenes."""

    encoder: ClassVar[str] = "scene_alexnet"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=30, batch=224, lr=1e-3, weight_decay=0.0, warmup=0.0, drops=(0.6, 0.9)
    )

    whole: bool = True
    """227 x 227 pixels, whatever the photograph's shape (train.py:29)"""
    tap: str = "conv5"
    """the best of those that were tried"""
    sign: Literal["eigen", "released"] = "released"
    """of the mean's square"""
    kernels: tuple[Count, ...] = (3, 3, 5, 3)
    """from 13 to 227 pixels"""
    judge: Count = 512
    """channels"""
    judge_lr: Weight = 1e-3
    """peak learning rate"""

    def draw(self, encoder: str, source: Source) -> Encoder:
        drawn = super().draw(encoder, source)
        drawn.apply(start)  # so small that the eps of the first batch norms counts (model.py:53)
        return drawn


@dataclass(frozen=True)
class Scene:
    image: Tensor  # (B, C, H, W) one channel of a rendered scene, in the place of all
    photograph: Tensor  # (B, C, H, W) one channel of a photograph
    contours: Tensor  # (B, 1, H, W) 1 where two things meet
    depth: Tensor  # (B, 1, H, W) metres, 0 where it is not known
    normals: Tensor  # (B, 3, H, W) unit vectors, 0 where they are not known
    draw: Tensor  # (B, 2, 2) in [0, 1), whether each kind of map is exchanged for one of the pool, and for which


# ---- the three tasks


def outlines(instances: Tensor) -> Tensor:
    """(B, 1, H, W) ids -> 1.0 where the 3 x 3 pixels around are not all of one thing."""
    x = instances.float()
    return (F.max_pool2d(x, 3, 1, 1) != -F.max_pool2d(-x, 3, 1, 1)).float()


def contour_loss(logits: Tensor, contours: Tensor, fewest: float) -> Tensor:
    """Binary cross-entropy in which the contours of an image weigh as much as all else in it; mean over pixels.

    The weight is (H·W - n) / n of n contour pixels, as released (model.py:151), but of contours alone.
    """
    share = contours.mean((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    heavy = (1 - share) / share.clamp(min=1 / contours[0].numel())
    loss = F.binary_cross_entropy_with_logits(logits, contours, pos_weight=heavy, reduction="none")
    return mean(loss.mean((1, 2, 3)), share.flatten() >= fewest)


def normal_loss(found: Tensor, normals: Tensor) -> Tensor:
    """Mean of 1 - cos between vectors (B, 3, H, W) of any length and unit ones, where these are known (model.py:148)."""
    cosine = (F.normalize(found, dim=1) * normals).sum(1)
    return mean(1 - cosine, normals.square().sum(1) > 0.5)


def depth_loss(found: Tensor, depth: Tensor, sign: str) -> Tensor:
    """½ (mean e² ∓ ½ (mean e)²) of errors e of log depth (B, 1, H, W), where it is known.

    "eigen": the means of each image, and minus; "released": those of the batch, and plus (model.py:134-137).
    """
    known = depth > 0
    error = torch.where(known, found - depth.clamp(min=1e-3).log(), 0.0)
    if sign == "released":
        count = counted(known)
        centre = distributed.gather((error.sum() / count)[None]).mean()  # of the batch of all processes
        return 0.5 * (error.square().sum() / count + 0.5 * centre.square())
    count = known.sum((1, 2, 3)).clamp(min=1)
    square, centre = error.square().sum((1, 2, 3)) / count, error.sum((1, 2, 3)) / count
    return 0.5 * (square - 0.5 * centre.square()).mean()


def mean(x: Tensor, known: Tensor) -> Tensor:
    """Of x where it is known; 0 of nothing, with a gradient of 0."""
    return (x * known).sum() / counted(known)


def counted(known: Tensor) -> Tensor:
    """How many are known, on average over the processes, so that their means are those of one; 1 at least."""
    return distributed.mean(known.sum().float()).clamp(min=1)


class Head(nn.Sequential):
    """From a map to one of the image's size, with so many channels."""

    def __init__(self, channels: int, side: int, size: int, c: Config, out: int):
        kernels = c.kernels or (4,) * max(1, round(math.log2(size / side)))
        layers: list[nn.Module] = []
        for number, kernel in enumerate(kernels):
            last = number == len(kernels) - 1
            i, o = (c.width if number else channels), (out if last else c.width)
            padding = 0 if kernel % 2 else kernel // 2 - 1
            layers.append(nn.ConvTranspose2d(i, o, kernel, 2, padding, bias=last))  # else a norm takes it out
            layers += [] if last else [nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
        super().__init__(*layers)
        self.apply(start)
        self.size = size

    def forward(self, input: Tensor) -> Tensor:
        x = super().forward(input).float()
        return x if x.shape[-1] == self.size else F.interpolate(x, size=(self.size,) * 2, mode="bilinear")


# ---- the judge


def judge(channels: int, width: int) -> nn.Sequential:
    """(B, C, h, w) -> (B, 1, h', w') logits of a photograph, one for each patch."""

    def block(i: int, kernel: int, stride: int) -> list[nn.Module]:
        layer = nn.Conv2d(i, width, kernel, stride, bias=False)
        return [layer, nn.BatchNorm2d(width), nn.LeakyReLU(0.2, inplace=True)]

    net = nn.Sequential(*block(channels, 3, 2), *block(width, 1, 1), nn.Conv2d(width, 1, 1))
    return net.apply(start)


def start(layer: nn.Module) -> None:
    """Xavier's normal weights, and batch norms near 1."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_normal_(layer.weight, GAIN)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, GAIN)


class Pool(nn.Module):
    """Earlier maps. Until it is full it takes every map; then half of the new ones are exchanged with old ones."""

    maps: Tensor  # (POOL, C, h, w)
    held: Tensor  # () how many there are

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.register_buffer("maps", torch.zeros(POOL, channels, side, side))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))

    def places(self, draw: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 2) draws of the maps from `first` on in the batch -> (B,) where each goes, whether it does, and in
        exchange for an older one (utils.py:24-44)."""
        place = self.held + first + torch.arange(len(draw), device=draw.device)
        new, swap = place < POOL, draw[:, 0] < 0.5
        return torch.where(new, place, (draw[:, 1] * POOL).long()), new | swap, swap & ~new

    def seen(self, maps: Tensor, draw: Tensor) -> Tensor:
        """(B, C, h, w) -> the same, some of them older ones; nothing is remembered yet.

        Maps come one after the other: one may be exchanged for another that the batch has just put into the pool.
        """
        place, goes, old = self.places(draw, distributed.rank() * len(draw))
        at = torch.arange(len(draw), device=draw.device)
        before = (place[:, None] == place) & goes & (at < at[:, None])  # (B, B): who has put one there before
        last = torch.where(before, at, -1).amax(1)
        older = torch.where((last >= 0)[:, None, None, None], maps[last], self.maps[place])
        there = (last >= 0) | (place < self.held)
        return torch.where((old & there)[:, None, None, None], older, maps)

    def remember(self, maps: Tensor, draw: Tensor) -> None:
        place, goes, _ = self.places(draw, 0)
        at = torch.arange(len(draw), device=draw.device)
        goes &= ~((place[:, None] == place) & goes & (at > at[:, None])).any(1)  # of one place the last stays
        self.maps[place[goes]] = maps[goes].float()
        self.held.copy_((self.held + len(maps)).clamp(max=POOL))


class CrossDomain(Method[Scene]):
    needs = Config.needs

    def __init__(self, config: Config, encoder: Encoder, tap: str):
        super().__init__()
        self.config, self.encoder, self.tap = config, encoder, tap
        self.side = encoder.side(config.crop)
        with torch.no_grad():
            stages = self.eval().encoder(torch.zeros(1, encoder.channels, self.side, self.side))
        self.train()
        self.last = [name for name, x in stages.items() if x.ndim == 4][-1]
        channels, side = stages[self.last].shape[1:3]
        self.heads = nn.ModuleDict(
            {
                name: Head(channels, side, self.side, config, out)
                for name, out in (("contours", 1), ("depth", 1), ("normals", 3))
            }
        )
        channels, side = stages[tap].shape[1:3]
        if side < 3:
            raise UserError(
                f"the map {tap} is of {side} x {side} places, and a judge needs 3 x 3; give larger images"
            )
        self.judge = judge(channels, config.judge)
        self.rendered, self.photographed = Pool(channels, side), Pool(channels, side)

    def pretext(self, batch: Batch, rng: Rng) -> Scene:
        room = batch.image.shape[-1] - self.side

        def cut(x: Tensor, corner: Tensor) -> Tensor:
            return images.windows(x, corner, self.side)[:, 0]

        here, there = (
            rng.child(name).integers(len(batch), 1, 2, high=room + 1) for name in ("crop", "photograph")
        )
        beside = images.to_float(batch.aux["photographs"])
        if self.config.whole:
            beside = F.interpolate(beside, size=(self.side,) * 2, mode="bilinear", antialias=True)
        else:
            beside = cut(beside, there)
        image = one_channel(images.to_float(cut(batch.image, here)), rng.child("channel", "rendered"))
        photograph = one_channel(beside, rng.child("channel", "photograph"))
        depth, normals, instances = (cut(batch.aux[name], here) for name in ("depth", "normals", "instances"))
        draw = rng.child("pool").uniform(len(batch), 2, 2)
        return Scene(image, photograph, outlines(instances), depth, normals, draw)

    def foreseen(self, stages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: head(stages[self.last]) for name, head in self.heads.items()}

    def loss(self, pretext: Scene) -> Loss:
        c, stages = self.config, self.encoder(pretext.image)
        found = self.foreseen(stages)
        parts = {
            "contours": contour_loss(found["contours"], pretext.contours, c.fewest),
            "normals": normal_loss(found["normals"], pretext.normals),
            "depth": depth_loss(found["depth"], pretext.depth, c.sign),
        }
        rendered = stages[self.tap]
        with torch.no_grad():  # photographs teach the judge alone
            real = self.encoder(pretext.photograph)[self.tap]
        held = {name: p.detach() for name, p in self.judge.named_parameters()}
        fooled = functional_call(self.judge, held, (rendered,)).float()
        # adversary: -log D(rendered); judge: -½ [log(1 - D(rendered)) + log D(photograph)] (model.py:160, 168-178)
        parts["adversary"] = F.binary_cross_entropy_with_logits(fooled, torch.ones_like(fooled))
        made = self.judge(self.rendered.seen(rendered.detach(), pretext.draw[:, 0])).float()
        true = self.judge(self.photographed.seen(real, pretext.draw[:, 1])).float()
        judged = F.binary_cross_entropy_with_logits(made, torch.zeros_like(made))
        parts["judge"] = (judged + F.binary_cross_entropy_with_logits(true, torch.ones_like(true))) / 2
        weights = {"contours": c.contours, "normals": c.normals, "depth": c.depth, "adversary": c.adversary}
        total = parts["judge"] + sum(weight * parts[name] for name, weight in weights.items())
        parts["told apart"] = ((made < 0).float().mean() + (true > 0).float().mean()) / 2
        return Loss(total, parts, carry=(rendered.detach(), real, pretext.draw))

    def after_step(self, carry: Any, progress: Progress) -> None:
        rendered, real, draw = carry
        self.rendered.remember(rendered, draw[:, 0])
        self.photographed.remember(real, draw[:, 1])

    def groups(self) -> Iterable[dict[str, Any]]:
        judged = {id(p) for p in self.judge.parameters()}
        for group in super().groups():
            yield group | {"params": [p for p in group["params"] if id(p) not in judged]}

    def optimizers(self, train: TrainConfig) -> list[Optimizer]:
        """Of trunk and heads as it is asked for, by default Adam; SGD of the judge."""
        (own,) = super().optimizers(train)
        for group in own.param_groups:
            group |= {"betas": BETAS} if "betas" in group else {}
        return [own, SGD(self.judge.parameters(), self.config.judge_lr, momentum=0.9, weight_decay=5e-4)]

    def solve(self, pretext: Scene) -> Mapping[str, Tensor]:
        found = self.foreseen(self.encoder(pretext.image))
        return {
            "contours": found["contours"].sigmoid(),
            "depth": found["depth"].exp(),
            "normals": F.normalize(found["normals"], dim=1),
        }

    def export(self) -> Encoder:
        return self.encoder


def one_channel(x: Tensor, rng: Rng) -> Tensor:
    """(B, C, H, W) -> one channel, the same of the whole batch, in the place of all: colours tell who rendered."""
    return x[:, rng.whole.integers(1, high=x.shape[1])].expand_as(x)
