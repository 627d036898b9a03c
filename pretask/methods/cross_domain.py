"""Cross-domain multi-task learning: predict contours, depth and normals of rendered scenes, with adversarial adaptation.

Ren, Lee: Cross-Domain Self-supervised Multi-task Feature Learning using Synthetic Imagery, CVPR 2018,
arXiv:1711.09082. Of the paper only the abstract and the first page were available, so its equations have no numbers
here: "released" is jason718/game-feature-learning at ae9b48a, the source of every number without another source; its
lines are those of src/. A renderer provides the three targets for free. For features that transfer to photographs, a
discriminator classifies a feature map as rendered or photographed, and the encoder is trained to make it predict
"photograph". The discriminator also gets earlier maps, from two replay buffers. `pretask render` makes scenes.

Cost: one rendered image and one photograph per sample, and full-size maps from three heads; a replay buffer holds 128 maps
(3 MB each by default).

**Differs**, in the losses: contour pixels have the same total weight as all other pixels (`pos_weight`), where the released
code weights both classes by the count of the whole image, not of the crop; images with few contours are left out of the
contour loss, where the released loader replaces them; depth and normals are compared only where they are known, where the
released code uses log(1e-8) for unknown depths and a fixed direction for unknown normals; the depth loss is by default
Eigen's (arXiv:1406.2283, eq. 3) per image, where the released code adds the squared mean over the batch.

In the adversarial training: discriminator and encoder are updated together, so the encoder's loss uses the discriminator of
the step before; in the released loop (model.py:181-199) the discriminator is updated first, on the maps of the same batch,
and the encoder's loss uses the updated one. By default, for short runs, the discriminator's learning rate is ten times higher.

In the images: contours are the pixels next to another instance, where the paper applies the Canny detector to instance masks
(sec. 3.1, as quoted by an author in issue 4 of the released code); scenes are cropped to their central square, where the
released ones are squeezed to a square, as photographs are here too (`:paper`; by default they are squeezed to the canvas and
cropped like scenes); their maps are downscaled by nearest neighbor, normals by the mean direction, where the released loader
smooths all of them. In `:paper` 0.449 is subtracted from every channel, where the released code subtracts the channel's mean
on ImageNet, 0.485, 0.456 or 0.406 (by default (x - 0.5) / 0.25). Crops can include the image's last row and column, which
released ones never do.

Otherwise: batch norms use the whole batch instead of the part on each of 8 GPUs; the learning rate drops as in the released
settings, which the released loop does not apply; by default weights have torch's initialization, except in heads and
discriminator. With several processes, a map is replaced by one that the buffer held before the step, or one of the same process.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, Optimizer

from pretask.config import TrainConfig
from pretask.encoders import Encoder, smallest_accepted
from pretask.limits import NonNegativeFloat, PositiveFraction, PositiveInt, UnitInterval
from pretask.methods.base.method import Method, MethodConfig, Minimum
from pretask.rng import Rng
from pretask.runtime import distributed
from pretask.transforms import augment
from pretask.types import Batch, Loss, Progress, Source, UserError
from pretask.viz.puzzle import Caption, Contours, Depth, Normals, Panel, Puzzle

KERNEL = 3
"""kernel size of the discriminator's first layer"""
BUFFER = 128
"""capacity of each replay buffer, feature maps"""
BETAS = (0.5, 0.999)
"""betas of Adam"""
GAIN = 0.02
"""gain of the initialization of heads and discriminator, and in `:paper` of the encoder (networks.py:12)"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Predict contours, depth and normals of rendered scenes, with features adapted to photographs."""

    family: ClassVar[str] = "multimodal and synthetic"
    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=32, lr=1e-3, weight_decay=0.0)
    needs: ClassVar[frozenset[str]] = frozenset({"depth", "normals", "instances", "photographs"})

    crop: PositiveFraction = 227 / 256
    """side of the random crop, as a fraction of the image's"""
    squeeze: bool = False
    """scale whole photographs to the size of a crop instead of cropping them"""
    contours: NonNegativeFloat = 1.0
    """weight of the contour loss, 0 removes it (weights: released alexnet.yaml)"""
    normals: NonNegativeFloat = 10.0
    """weight of the normal loss"""
    depth: NonNegativeFloat = 5.0
    """weight of the depth loss"""
    adversarial: NonNegativeFloat = 0.05
    """weight of the encoder's adversarial loss; if too large, it dominates the tasks"""
    sign: Literal["eigen", "released"] = "eigen"
    """sign of the squared mean error in the depth loss: subtracted (scale-invariant), or added as released"""
    min_contours: UnitInterval = 350 / 227**2
    """smallest fraction of contour pixels for which an image is in the contour loss (released: 350 pixels)"""
    feature_layer: str = ""
    """stage whose feature map the discriminator gets; none: the last but one"""
    width: PositiveInt = 64
    """channels of the heads"""
    kernels: tuple[PositiveInt, ...] = ()
    """kernel sizes of the heads' layers, each of which doubles the map; none: 4, for as many layers as needed"""
    discriminator: PositiveInt = 128
    """channels of the discriminator"""
    discriminator_lr: NonNegativeFloat = 1e-2
    """peak learning rate of the discriminator, by SGD"""

    def resolve_feature_layer(self, encoder: Encoder) -> str:
        """The stage whose feature map the discriminator gets. Raises UserError if the encoder has no such map."""
        names = list(encoder.sides)
        layer = self.feature_layer or names[max(0, len(names) - 2)] if names else ""
        if not names:
            raise UserError(f"cross_domain needs feature maps, and {encoder.name} has none; try resnet_small")
        if layer not in encoder.sides:
            raise UserError(f"{encoder.name} has no map {layer}; expected --feature-layer {', '.join(names)}")
        return layer

    def smallest_side(self, encoder: Encoder) -> Minimum:
        """The discriminator's first layer needs a map of KERNEL x KERNEL; found by trying."""
        layer = self.resolve_feature_layer(encoder)

        def takes(size: int) -> bool:
            return encoder.map_side(layer, round(self.crop * size)) >= KERNEL

        return Minimum(smallest_accepted(takes, encoder.size) or 1, "or an earlier --feature-layer")

    def build(self, encoder: Encoder, source: Source) -> "CrossDomain":
        layer = self.resolve_feature_layer(encoder)
        if encoder.channels == 1:
            raise UserError("cross_domain selects one channel of color images, but these images are gray")
        return CrossDomain(self, encoder, layer)


@dataclass(frozen=True)
class Paper(Config):
    """The released run, with --size 256: CaffeNet with wide final convolutions, 30 epochs of a million scenes."""

    encoder: ClassVar[str] = "scene_alexnet"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=30, batch=224, lr=1e-3, weight_decay=0.0, warmup=0.0, milestones=(0.6, 0.9)
    )

    squeeze: bool = True
    """to 227 x 227 pixels, for photographs of any shape (train.py:29)"""
    feature_layer: str = "conv5"
    """the best of the paper's choices"""
    sign: Literal["eigen", "released"] = "released"
    """the squared mean is added"""
    kernels: tuple[PositiveInt, ...] = (3, 3, 5, 3)
    """from 13 to 227 pixels"""
    discriminator: PositiveInt = 512
    """channels"""
    discriminator_lr: NonNegativeFloat = 1e-3
    """peak learning rate"""

    def build_encoder(self, encoder: str, source: Source) -> Encoder:
        drawn = super().build_encoder(encoder, source)
        drawn.apply(init_xavier)  # so small that the eps of the first batch norms matters (model.py:53)
        return drawn


@dataclass(frozen=True)
class Scene:
    image: Tensor  # (B, C, H, W) one channel of a rendered scene, repeated
    photograph: Tensor  # (B, C, H, W) one channel of a photograph, repeated
    contours: Tensor  # (B, 1, H, W) 1 at the boundaries of instances
    depth: Tensor  # (B, 1, H, W) meters, 0 where unknown
    normals: Tensor  # (B, 3, H, W) unit vectors, 0 where unknown
    draw: Tensor  # (B, 2, 2) in [0, 1), for each domain: whether to replace a map by one of the buffer, and by which


# ---- the three tasks


def instance_contours(instances: Tensor) -> Tensor:
    """(B, 1, H, W) ids -> 1.0 where the surrounding 3 x 3 pixels have different ids."""
    x = instances.float()
    return (F.max_pool2d(x, 3, 1, 1) != -F.max_pool2d(-x, 3, 1, 1)).float()


def contour_loss(logits: Tensor, contours: Tensor, min_fraction: float) -> Tensor:
    """Binary cross-entropy with equal total weight of contour and other pixels in each image; mean over pixels.

    The weight of the n contour pixels is (H·W - n) / n, as released (model.py:151), but only for contours.
    """
    fraction = contours.mean((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    pos_weight = (1 - fraction) / fraction.clamp(min=1 / contours[0].numel())
    loss = F.binary_cross_entropy_with_logits(logits, contours, pos_weight=pos_weight, reduction="none")
    return masked_mean(loss.mean((1, 2, 3)), fraction.flatten() >= min_fraction)


def normal_loss(predicted: Tensor, normals: Tensor) -> Tensor:
    """Mean of 1 - cos between vectors (B, 3, H, W) of any length and unit normals, where known (model.py:148)."""
    cosine = (F.normalize(predicted, dim=1) * normals).sum(1)
    return masked_mean(1 - cosine, normals.square().sum(1) > 0.5)


def depth_loss(predicted: Tensor, depth: Tensor, sign: str) -> Tensor:
    """½ (mean e² ∓ ½ (mean e)²) of the errors e of log depth (B, 1, H, W), where known.

    "eigen": minus, with means per image; "released": plus, with means over the batch (model.py:134-137).
    """
    known = depth > 0
    error = torch.where(known, predicted - depth.clamp(min=1e-3).log(), 0.0)
    if sign == "released":
        count = mean_count(known)
        center = distributed.gather((error.sum() / count)[None]).mean()  # over the batch of all processes
        return 0.5 * (error.square().sum() / count + 0.5 * center.square())
    count = known.sum((1, 2, 3)).clamp(min=1)
    square, center = error.square().sum((1, 2, 3)) / count, error.sum((1, 2, 3)) / count
    return 0.5 * (square - 0.5 * center.square()).mean()


def masked_mean(x: Tensor, known: Tensor) -> Tensor:
    """Mean of x where known; 0 with gradient 0 if nothing is known."""
    return (x * known).sum() / mean_count(known)


def mean_count(known: Tensor) -> Tensor:
    """Number of known elements averaged over processes, so that averaged losses equal those of one process; at least 1."""
    return distributed.mean(known.sum().float()).clamp(min=1)


class Head(nn.Sequential):
    """Transposed convolutions from a feature map to `out` channels at the image's size."""

    def __init__(self, channels: int, side: int, size: int, c: Config, out: int):
        kernels = c.kernels or (4,) * max(1, round(math.log2(size / side)))
        layers: list[nn.Module] = []
        for number, kernel in enumerate(kernels):
            last = number == len(kernels) - 1
            i, o = (c.width if number else channels), (out if last else c.width)
            padding = 0 if kernel % 2 else kernel // 2 - 1
            layers.append(
                nn.ConvTranspose2d(i, o, kernel, 2, padding, bias=last)
            )  # batch norm cancels a bias
            layers += [] if last else [nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
        super().__init__(*layers)
        self.apply(init_xavier)
        self.size = size

    def forward(self, input: Tensor) -> Tensor:
        x = super().forward(input).float()
        return x if x.shape[-1] == self.size else F.interpolate(x, size=(self.size,) * 2, mode="bilinear")


# ---- the discriminator


def patch_discriminator(channels: int, width: int) -> nn.Sequential:
    """(B, C, h, w) -> (B, 1, h', w') logits of "photograph", one per patch."""

    def block(i: int, kernel: int, stride: int) -> list[nn.Module]:
        layer = nn.Conv2d(i, width, kernel, stride, bias=False)
        return [layer, nn.BatchNorm2d(width), nn.LeakyReLU(0.2, inplace=True)]

    net = nn.Sequential(*block(channels, 3, 2), *block(width, 1, 1), nn.Conv2d(width, 1, 1))
    return net.apply(init_xavier)


def init_xavier(layer: nn.Module) -> None:
    """Xavier-normal weights with gain GAIN; gains of batch norms normal around 1."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_normal_(layer.weight, GAIN)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, GAIN)


class ReplayBuffer(nn.Module):
    """Feature maps of earlier steps. Until it is full, all maps are stored; then half of the new ones replace old ones."""

    maps: Tensor  # (BUFFER, C, h, w)
    count: Tensor  # () number of stored maps

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.register_buffer("maps", torch.zeros(BUFFER, channels, side, side))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def slots(self, draw: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws (B, 2) of the maps from `first` on in the batch -> (B,) each: the slot of a map, whether it is stored, and
        whether an older one is returned for it (utils.py:24-44)."""
        slot = self.count + first + torch.arange(len(draw), device=draw.device)
        new, swap = slot < BUFFER, draw[:, 0] < 0.5
        return torch.where(new, slot, (draw[:, 1] * BUFFER).long()), new | swap, swap & ~new

    def sample(self, maps: Tensor, draw: Tensor) -> Tensor:
        """(B, C, h, w) -> the same maps, some replaced by older ones; nothing is stored yet.

        Maps are processed in order: one can be replaced by another that the same batch has just stored.
        """
        slot, stored, replaced = self.slots(draw, distributed.rank() * len(draw))
        at = torch.arange(len(draw), device=draw.device)
        before = (slot[:, None] == slot) & stored & (at < at[:, None])  # (B, B): stored in the slot earlier
        last = torch.where(before, at, -1).amax(1)
        older = torch.where((last >= 0)[:, None, None, None], maps[last], self.maps[slot])
        available = (last >= 0) | (slot < self.count)
        return torch.where((replaced & available)[:, None, None, None], older, maps)

    def store(self, maps: Tensor, draw: Tensor) -> None:
        slot, stored, _ = self.slots(draw, 0)
        at = torch.arange(len(draw), device=draw.device)
        stored &= ~((slot[:, None] == slot) & stored & (at > at[:, None])).any(
            1
        )  # the last one in a slot remains
        self.maps[slot[stored]] = maps[stored].float()
        self.count.copy_((self.count + len(maps)).clamp(max=BUFFER))


class CrossDomain(Method[Scene]):
    pretext_task = "Contours, depth and normals of rendered scenes"
    needs = Config.needs

    def __init__(self, config: Config, encoder: Encoder, feature_layer: str):
        super().__init__()
        self.config, self.encoder, self.feature_layer = config, encoder, feature_layer
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
        channels, side = stages[feature_layer].shape[1:3]
        self.discriminator = patch_discriminator(channels, config.discriminator)
        self.rendered, self.photographed = ReplayBuffer(channels, side), ReplayBuffer(channels, side)

    def pretext(self, batch: Batch, rng: Rng) -> Scene:
        room = batch.image.shape[-1] - self.side

        def cut(x: Tensor, corner: Tensor) -> Tensor:
            return augment.windows(x, corner, self.side)[:, 0]

        scene_corner, photo_corner = (
            rng.child(name).integers(len(batch), 1, 2, high=room + 1) for name in ("crop", "photograph")
        )
        photograph = augment.to_float(batch.aux["photographs"])
        if self.config.squeeze:
            photograph = F.interpolate(photograph, size=(self.side,) * 2, mode="bilinear", antialias=True)
        else:
            photograph = cut(photograph, photo_corner)
        image = one_channel(
            augment.to_float(cut(batch.image, scene_corner)), rng.child("channel", "rendered")
        )
        photograph = one_channel(photograph, rng.child("channel", "photograph"))
        depth, normals, instances = (
            cut(batch.aux[name], scene_corner) for name in ("depth", "normals", "instances")
        )
        draw = rng.child("pool").uniform(len(batch), 2, 2)
        return Scene(image, photograph, instance_contours(instances), depth, normals, draw)

    def outputs(self, stages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of the three heads, before activations: logits, log depth, and normals of any length."""
        return {name: head(stages[self.last]) for name, head in self.heads.items()}

    def loss(self, pretext: Scene) -> Loss:
        c, stages = self.config, self.encoder(pretext.image)
        outputs = self.outputs(stages)
        parts = {
            "contours": contour_loss(outputs["contours"], pretext.contours, c.min_contours),
            "normals": normal_loss(outputs["normals"], pretext.normals),
            "depth": depth_loss(outputs["depth"], pretext.depth, c.sign),
        }
        rendered = stages[self.feature_layer]
        with torch.no_grad():  # photographs only train the discriminator
            photographed = self.encoder(pretext.photograph)[self.feature_layer]
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fooled = functional_call(self.discriminator, frozen, (rendered,)).float()
        # adversarial: -log D(rendered); discriminator: -½ [log(1 - D(rendered)) + log D(photograph)] (model.py:160, 168-178)
        parts["adversarial"] = F.binary_cross_entropy_with_logits(fooled, torch.ones_like(fooled))
        fake = self.discriminator(self.rendered.sample(rendered.detach(), pretext.draw[:, 0])).float()
        real = self.discriminator(self.photographed.sample(photographed, pretext.draw[:, 1])).float()
        fake_loss = F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        real_loss = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        parts["discriminator"] = (fake_loss + real_loss) / 2
        weights = {
            "contours": c.contours,
            "normals": c.normals,
            "depth": c.depth,
            "adversarial": c.adversarial,
        }
        total = parts["discriminator"] + sum(weight * parts[name] for name, weight in weights.items())
        parts["discriminator_accuracy"] = ((fake < 0).float().mean() + (real > 0).float().mean()) / 2
        return Loss(total, parts, carry=(rendered.detach(), photographed, pretext.draw))

    def after_step(self, carry: Any, progress: Progress) -> None:
        rendered, photographed, draw = carry
        self.rendered.store(rendered, draw[:, 0])
        self.photographed.store(photographed, draw[:, 1])

    def groups(self) -> Iterable[dict[str, Any]]:
        excluded = {id(p) for p in self.discriminator.parameters()}
        for group in super().groups():
            yield group | {"params": [p for p in group["params"] if id(p) not in excluded]}

    def optimizers(self, train: TrainConfig) -> list[Optimizer]:
        """The configured optimizer, by default Adam, for encoder and heads; SGD for the discriminator."""
        (own,) = super().optimizers(train)
        for group in own.param_groups:
            group |= {"betas": BETAS} if "betas" in group else {}
        lr = self.config.discriminator_lr
        return [own, SGD(self.discriminator.parameters(), lr, momentum=0.9, weight_decay=5e-4)]

    def predict(self, pretext: Scene) -> Mapping[str, Tensor]:
        outputs = self.outputs(self.encoder(pretext.image))
        return {
            "contours": outputs["contours"].sigmoid(),
            "depth": outputs["depth"].exp(),
            "normals": F.normalize(outputs["normals"], dim=1),
        }

    def show(self, pretext: Scene, answers: Mapping[str, Tensor], batch: Batch, rng: Rng) -> Iterator[Puzzle]:
        question, answer = "How is the scene laid out?", "contours, depth and surface normals"
        for i, (image, depth) in enumerate(zip(pretext.image, pretext.depth, strict=True)):
            known = depth > 0
            span = (float(depth[known].min()), float(depth.max())) if known.any() else (0.0, 1.0)
            shown = Puzzle(
                [Panel("rendered, one channel", image)],
                maps(vars(pretext), i, span, image),
                captions=[Caption(question, answer)],
            )
            if answers:
                off = masked_mean((answers["depth"][i] - depth).abs(), known)
                answered = Caption(question, answer, f"≈ depth off by {float(off):.1f} m on average")
                shown = replace(
                    shown, predicted=maps(answers, i, span, image, "network: "), captions=[answered]
                )
            yield shown

    def export(self) -> Encoder:
        return self.encoder


def one_channel(x: Tensor, rng: Rng) -> Tensor:
    """(B, C, H, W) -> one channel, the same for the whole batch, repeated: colors would reveal the renderer."""
    return x[:, rng.unsharded.integers(1, high=x.shape[1])].expand_as(x)


def maps(
    of: Mapping[str, Tensor], i: int, span: tuple[float, float], image: Tensor, whose: str = ""
) -> list[Panel]:
    """The three answers to the i-th image, to be drawn; `span` of the depth, meters."""
    return [
        Panel(f"{whose}contours", image, [Contours(of["contours"][i, 0])]),
        Panel(f"{whose}depth", Depth(of["depth"][i], span)),
        Panel(f"{whose}surface normals", Normals(of["normals"][i])),
    ]
