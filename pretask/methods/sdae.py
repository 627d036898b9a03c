"""Stacked denoising autoencoder: each layer sees its input damaged and must give it back undamaged.

Vincent, Larochelle, Lajoie, Bengio, Manzagol: Stacked Denoising Autoencoders: Learning Useful Representations
in a Deep Network with a Local Denoising Criterion, JMLR 11 (2010) 3371-3408; not on arXiv. The authors' laboratory
published a reference, lisa-lab/DeepLearningTutorials at 11c4651 (code/dA.py, code/SdA.py). Layers are trained one after
another: a layer's input, and so its target, is what the finished layers below make of the clean image; noise is never
handed up.

Equations (the paper's text was not at hand, so they have lines of the reference in place of numbers): y = s(W x̃ + b), s
the logistic sigmoid (dA.py:224), is a layer of the encoder; z = s(W' y + b') with W' = Wᵀ (dA.py:184, 231), or without s
for inputs that are no probabilities, `decoder`; x̃, x damaged (dA.py:218), `damage`; L_H(x, z) = -Σ_j x_j log z_j +
(1 - x_j) log(1 - z_j) (dA.py:243) or |x - z|², `errors`; α Σ_{j ∈ J(x̃)} + β Σ_{j ∉ J(x̃)} of its terms, J what was damaged
(sec. 3.3), `emphasised`; a batch costs the mean (dA.py:249).

The paper's net is `mlp`: sigmoid layers, decoded by their own matrix transposed. Any other chain of layers
works as well (`resnet_small`, timm's ResNets and ConvNeXts): a layer is then a stage, noise falls on whole
positions of a map (a pixel that keeps one of its colours would give the others away), and a decoder of one
convolution looks back.

A trained stack of sigmoid layers draws images, `sample`, shown in the report: up to the top without noise, then down, each
unit of a code on or off by its probability, and of the pixels the probabilities (the paper's samples from memory, and as ohjay/sdae,
which is not the authors', reads its figure 15: generate_samples.py at 35c7aa5).

Cost: a step runs the layers below forward and one layer forward and backward, so never more than the whole
encoder.

**Differs**: nothing here is fine-tuned, which is half of the paper: its test error is measured by docs/results/stacks.py, and
what `pretask evaluate` does with `--finetune` is another recipe. `:paper` is the
reference's run, not one of the paper's, whose learning rates, epochs and noise were chosen by validation for each data
set; its batches hold 20 images, not one, at 20 times the rate, drawn in random order, not in that of the file, from all
the images that are given (reference: 50,000). By default, besides: AdamW along half a cosine for each layer, 25 % masking
of an exact number of components. `:conv`, and any net that is no `mlp`, is not the paper's: linear outputs and squared
errors where a layer ends in no sigmoid, convolutions as decoders, noise on whole positions.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Classic, Encoder
from pretask.limits import Share, Weight
from pretask.methods.base.context import Context
from pretask.methods.base.method import Gallery, Method, MethodConfig
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Source, UserError

Noise = Literal["masking", "salt_and_pepper", "gaussian"]
SAMPLES = 6
"""of each image, in the report"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Give back the undamaged input from a damaged one, layer after layer."""

    encoder: ClassVar[str] = "mlp"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=128, lr=1e-3, weight_decay=0.0, rounds=3)

    noise: Noise = "masking"
    """masking sets components to 0; salt_and_pepper to the least or greatest value; gaussian adds to all"""
    amount: tuple[Share, ...] = (0.25,)
    """share of the components, or standard deviation of gaussian; one for all layers or one each"""
    exact: bool = True
    """the same number of damaged components in every sample; otherwise each falls by its own coin"""
    alpha: Weight = 1.0
    """weight of the loss on damaged components (sec. 3.3)"""
    beta: Weight = 1.0
    """weight of the loss on the others; 0 is full emphasis"""
    tied: bool = True
    """sigmoid layers decode by their own matrix transposed; others always have a decoder of their own"""

    def build(self, encoder: Encoder, source: Source) -> "StackedDenoising":
        return StackedDenoising(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """The LISA reference on MNIST: 3 x 1000 units, 15 epochs a layer, masking of 10, 20 and 30 %.

    It steps after every image at 0.001; batches of 20 at 0.02 sum up to the same steps.
    """

    encoder: ClassVar[str] = "mlp"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=45,
        batch=20,
        optimizer="sgd",
        lr=0.02,
        momentum=0.0,
        weight_decay=0.0,
        warmup=0.0,
        drops=(1.0,),
        rounds=3,
    )

    amount: tuple[Share, ...] = (0.1, 0.2, 0.3)
    """share of the components that is damaged, layer by layer"""
    exact: bool = False
    """a coin for each component"""


@dataclass(frozen=True)
class Conv(Config):
    """The same on a small ResNet for colour images: four stages, the loss on hidden pixels alone."""

    encoder: ClassVar[str] = "resnet_small"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=40, batch=128, lr=1e-3, weight_decay=0.0, rounds=4)

    beta: Weight = 0.0
    """full emphasis: a convolution copies what it can see"""


@dataclass(frozen=True)
class Damaged:
    image: Tensor  # (B, C, H, W), as it is
    damaged: Tensor  # (B, …) the layer's input after the noise; an image for the first layer
    clean: Tensor  # (B, D) the layer's input before the noise, in a row
    chosen: Tensor  # (B, D) bool, the components that the noise fell on, whether or not it changed them


def damage(
    x: Tensor, noise: Noise, amount: float, rng: Rng, exact: bool = True, bounded: bool = True
) -> tuple[Tensor, Tensor]:
    """(B, …) -> a damaged copy, and (B, D) bool where the noise fell; `bounded` values are in [0, 1].

    What is left is not scaled up, unlike in dropout.
    """
    if noise == "gaussian":
        return x + amount * rng.normal(*x.shape), torch.ones_like(x.flatten(1), dtype=torch.bool)
    places = (1, *x.shape[2:]) if x.ndim == 4 else x.shape[1:]  # of a map, all channels at once
    d, where = prod(places), rng.child("where")
    chosen = where.orders(len(x), d) < round(amount * d) if exact else where.coin(len(x), d, p=amount)
    chosen = chosen.view(len(x), *places).expand_as(x)
    value = torch.zeros_like(x)
    if noise == "salt_and_pepper":
        row = (len(x), *[1] * (x.ndim - 1))
        low = value if bounded else x.flatten(1).amin(1).view(row)
        high = torch.ones_like(x) if bounded else x.flatten(1).amax(1).view(row)
        value = torch.where(rng.child("value").coin(*x.shape, p=0.5), high, low)
    return torch.where(chosen, value, x), chosen.flatten(1)


def errors(output: Tensor, clean: Tensor, bounded: bool) -> Tensor:
    """(B, D), of each component: cross-entropy of a sigmoid output, squared error of a linear one."""
    if bounded:
        return F.binary_cross_entropy_with_logits(output, clean, reduction="none")
    return (output - clean) ** 2


def emphasised(errors: Tensor, chosen: Tensor, alpha: float, beta: float) -> Tensor:
    """α Σ_j∈J ℓ_j + β Σ_j∉J ℓ_j, J the chosen components (sec. 3.3); (B, D) -> mean over the batch."""
    return torch.where(chosen, alpha * errors, beta * errors).sum(1).mean()


class Transposed(nn.Module):
    """Decodes by the matrix of the layer that it belongs to."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.of = (linear,)  # in a tuple: the matrix is the encoder's parameter, not a second one
        self.bias = nn.Parameter(torch.zeros(linear.in_features))

    def forward(self, code: Tensor) -> Tensor:
        return F.linear(code, self.of[0].weight.T, self.bias)


def decoder(layer: nn.Module, shape: torch.Size, code: torch.Size, tied: bool) -> nn.Module:
    """Code (B, …) -> (B, D), the layer's input of `shape` in a row, before any sigmoid."""
    linear = [m for m in layer.modules() if isinstance(m, nn.Linear)]
    if tied and ends_in_sigmoid(layer) and len(linear) == 1:
        return Transposed(linear[0])
    if len(code) == 1:
        return nn.Linear(code[0], prod(shape))
    channels, *side = shape
    return nn.Sequential(
        nn.Upsample(size=tuple(side)), nn.Conv2d(code[0], channels, 3, padding=1), nn.Flatten()
    )


def ends_in_sigmoid(layer: nn.Module) -> bool:
    return isinstance(list(layer.modules())[-1], nn.Sigmoid)


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """In evaluation mode: batch norms use what they have learnt and learn nothing more."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def parts(net: nn.Module, ends: list[str], above: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules in order, by path; a container inside which a stage ends is opened."""
    for name, child in net.named_children():
        path = f"{above}{name}"
        if any(end.startswith(f"{path}.") for end in ends):
            yield from parts(child, ends, f"{path}.")
        else:
            yield path, child


def layers(encoder: Encoder) -> list[nn.Sequential]:
    """The encoder's stages in order, each with what stands between it and the one before; no head."""
    net: Any = encoder.net
    ends = (
        [name for name, _ in net.named_children()]
        if isinstance(encoder, Classic)
        else [info["module"] for info in list(net.feature_info)]
    )
    chain, layer = [], []
    for path, module in parts(net, ends):
        layer.append(module)
        if path in ends:
            chain.append(nn.Sequential(*layer))
            layer = []
    return chain


@torch.no_grad()
def is_chain(encoder: Encoder) -> bool:
    """Whether the layers, one after the other, compute what the encoder does."""
    shape = (1, encoder.channels, encoder.size, encoder.size)
    image = torch.linspace(0, 1, prod(shape), device=encoder.mean.device).view(shape)
    with at_rest(encoder):
        x = (image - encoder.mean) / encoder.std
        try:
            for layer in layers(encoder):
                x = layer(x)
        except Exception:  # whatever a net that is no chain does with a wrong input
            return False
        deepest = list(encoder(image).values())[-2]  # the last is the pool
    return x.shape == deepest.shape and torch.allclose(x, deepest, rtol=1e-3, atol=1e-4)


class StackedDenoising(Method[Damaged]):
    """Each of L layers learns for 1/L of the epochs; a run in L rounds restarts the learning rate with each.

    No layer is ever frozen by a flag: those below run without gradient, those above not at all.
    """

    partial = True
    stage: Tensor  # () the layer that learns, from 0

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        if not is_chain(encoder):
            raise UserError(
                f"sdae trains layer by layer, and {encoder.name} is no plain chain of layers; "
                "try mlp, resnet_small, resnet18 or convnext_atto"
            )
        chain, decoders = layers(encoder), []
        if len(config.amount) not in (1, len(chain)):
            raise UserError(
                f"{len(config.amount)} amounts of noise for the {len(chain)} layers of {encoder.name}; "
                "give one for all or one for each"
            )
        self.shapes: list[torch.Size] = []  # of each layer's input
        x = torch.zeros(1, encoder.channels, encoder.size, encoder.size)
        with torch.no_grad(), at_rest(encoder):
            for layer in chain:
                code = layer(x)
                self.shapes.append(x.shape[1:])
                decoders.append(decoder(layer, x.shape[1:], code.shape[1:], config.tied))
                x = code
        self.decoders, self.turns = nn.ModuleList(decoders), len(chain)
        self.bounded = [True, *(ends_in_sigmoid(layer) for layer in chain[:-1])]  # inputs that are in [0, 1]
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))

    def begin_epoch(self, context: Context) -> None:
        now, count = context.progress, len(self.shapes)
        if (now.ends - now.begins) * count > 1:
            raise UserError(
                f"the {count} layers of {self.encoder.name} are trained one after another, which takes "
                f"{count} epochs or more, not {now.epochs}; add --rounds {count}"
            )
        self.stage.fill_(int(now.begins * count))

    @torch.no_grad()
    def codes(self, image: Tensor) -> Tensor:
        """What the layers below make of clean images; the same for as long as this one learns."""
        x = image
        for s in range(int(self.stage)):
            with at_rest(layers(self.encoder)[s]):
                x = self.encode(s, x)
        return x.float()

    def encode(self, s: int, x: Tensor) -> Tensor:
        if s == 0:
            x = (x - self.encoder.mean) / self.encoder.std
        return layers(self.encoder)[s](x)

    def pretext(self, batch: Batch, rng: Rng) -> Damaged:
        c, s = self.config, int(self.stage)
        image = images.to_float(batch.image)
        clean = self.codes(image)
        amount = c.amount[s % len(c.amount)]
        damaged, chosen = damage(clean, c.noise, amount, rng, c.exact, self.bounded[s])
        return Damaged(image, damaged, clean.flatten(1), chosen)

    def loss(self, pretext: Damaged) -> Loss:
        s = int(self.stage)
        output = self.decoders[s](self.encode(s, pretext.damaged)).float()  # (B, D)
        of_each = errors(output, pretext.clean, self.bounded[s])
        total = emphasised(of_each, pretext.chosen, self.config.alpha, self.config.beta)
        restored = output.sigmoid() if self.bounded[s] else output
        return Loss(
            total,
            {
                "layer": self.stage + 1.0,
                "damage": F.mse_loss(pretext.damaged.flatten(1), pretext.clean),
                "left": F.mse_loss(restored, pretext.clean),
            },
        )

    def solve(self, pretext: Damaged) -> Mapping[str, Tensor]:
        """The image as the decoders, from the learning layer down, restore it."""
        s = int(self.stage)
        x = self.encode(s, pretext.damaged)
        for below in range(s, -1, -1):
            x = self.decode(below, x)
        return {"image": x}

    def sample(self, image: Tensor, rng: Rng) -> Tensor:
        """Another image with the same code: up without noise, then down, each unit of a code on or off by its probability.

        Images (B, C, H, W) in [0, 1] -> (B, C, H, W), of the pixels their probabilities. Only sigmoid layers have any.
        """
        s, x = int(self.stage), image
        for layer in range(s + 1):
            x = self.encode(layer, x)
        for layer in range(s, -1, -1):
            x = (rng.child("code", layer).uniform(*x.shape) < x).to(x.dtype)
            x = self.decode(layer, x)
        return x

    def decode(self, s: int, code: Tensor) -> Tensor:
        """A layer's code -> its input, (B, …)."""
        x = self.decoders[s](code)
        return (x.sigmoid() if self.bounded[s] else x).view(len(x), *self.shapes[s])

    def gallery(self, image: Tensor, rng: Rng) -> Gallery | None:
        if not all(map(ends_in_sigmoid, layers(self.encoder))):
            return None
        columns = {f"sample {i + 1}": self.sample(image, rng.child("sample", i)) for i in range(SAMPLES)}
        about = (
            "Left an image, then others that the stack draws from the code of its top layer: going down, each unit of "
            "a code is on or off by its probability, and what is shown are the probabilities of the pixels."
        )
        return Gallery("Samples from the stack", about, {"image": image} | columns)

    def export(self) -> Encoder:
        return self.encoder
