"""Stacked denoising autoencoder: train layer by layer, each to reconstruct its clean input from a corrupted one.

Vincent, Larochelle, Lajoie, Bengio, Manzagol: Stacked Denoising Autoencoders: Learning Useful Representations
in a Deep Network with a Local Denoising Criterion, JMLR 11 (2010) 3371-3408; not on arXiv. The authors' laboratory
published a reference, lisa-lab/DeepLearningTutorials at 11c4651 (code/dA.py, code/SdA.py). Layers are trained one after
another: a layer's input, and so its target, is the output of the trained layers below for the clean image; corruption does not
propagate to the layers above.

Equations (the paper's text was not available, so lines of the reference replace numbers): y = s(W x̃ + b), s
the logistic sigmoid (dA.py:224), is a layer of the encoder; z = s(W' y + b') with W' = Wᵀ (dA.py:184, 231), or without s
for inputs that are not probabilities, `make_decoder`; x̃, x corrupted (dA.py:218), `corrupt`; L_H(x, z) = -Σ_j x_j log z_j +
(1 - x_j) log(1 - z_j) (dA.py:243) or |x - z|², `reconstruction_errors`; α Σ_{j ∈ J(x̃)} + β Σ_{j ∉ J(x̃)} of its terms, J the
corrupted components (sec. 3.3), `emphasized_loss`; the loss of a batch is the mean (dA.py:249).

The paper's network is `mlp`: sigmoid layers with tied decoders. Any other chain of layers works as well (`resnet_small`, timm's
ResNets and ConvNeXts): a layer is then a stage, whole positions of a map are corrupted (otherwise one remaining color of a
pixel would reveal the others), and the decoder is a convolution.

A trained stack of sigmoid layers generates images, `sample`, shown in the report: up to the top layer without noise, then down
with each unit of a code sampled from its probability; the probabilities of the pixels are shown (the paper's samples from
memory, and as ohjay/sdae, which is not the authors', implements its figure 15: generate_samples.py at 35c7aa5).

Cost: a step runs the layers below forward and one layer forward and backward, so never more than the whole encoder.

**Differs**: there is no fine-tuning, which is half of the paper: its test error is measured by docs/results/stacks.py;
fine-tuning in the evaluation (`--finetune`) is another recipe. `:paper` is the reference's run, not one of the paper's, whose learning rates,
epochs and noise were chosen by validation for each dataset; its batches have 20 images instead of one, at 20 times the
learning rate, in random instead of file order, from all given images (reference: 50,000). By default, besides: AdamW with a
cosine schedule per layer, 25 % masking of an exact number of components. `:conv`, and any encoder other than `mlp`, is not the
paper's: linear outputs and squared errors for layers that do not end in a sigmoid, convolutions as decoders, corruption of
whole positions.
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
from pretask.limits import NonNegativeFloat, UnitInterval
from pretask.methods.base.context import Context
from pretask.methods.base.method import Gallery, Method, MethodConfig
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.types import Batch, Loss, Source, UserError
from pretask.viz.puzzle import Panel, Puzzle, reconstruction

Noise = Literal["masking", "salt_and_pepper", "gaussian"]
SAMPLES = 6
"""samples per image in the report"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Reconstruct the clean input from a corrupted one, layer by layer."""

    family: ClassVar[str] = "masked and predictive"
    encoder: ClassVar[str] = "mlp"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=30, batch=128, lr=1e-3, weight_decay=0.0, cycles=3)

    noise: Noise = "masking"
    """masking sets components to 0, salt_and_pepper to the smallest or largest value; gaussian adds noise to all"""
    corruption_level: tuple[UnitInterval, ...] = (0.25,)
    """fraction of corrupted components, or standard deviation of gaussian noise; one for all layers or one per layer"""
    exact: bool = True
    """corrupt the same number of components in every sample; no: each independently"""
    alpha: NonNegativeFloat = 1.0
    """weight of the loss on corrupted components (sec. 3.3)"""
    beta: NonNegativeFloat = 1.0
    """weight of the loss on the other components; 0: full emphasis"""
    tied: bool = True
    """decode sigmoid layers with their own transposed matrix; other layers always have separate decoders"""

    def build(self, encoder: Encoder, source: Source) -> "StackedDenoising":
        return StackedDenoising(self, encoder)


@dataclass(frozen=True)
class Paper(Config):
    """The LISA reference on MNIST: 3 x 1000 units, 15 epochs per layer, masking of 10, 20 and 30 %.

    Its batch size is 1 with learning rate 0.001; batches of 20 at 0.02 are equivalent to first order.
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
        milestones=(1.0,),
        cycles=3,
    )

    corruption_level: tuple[UnitInterval, ...] = (0.1, 0.2, 0.3)
    """fraction of corrupted components, per layer"""
    exact: bool = False
    """each component is corrupted independently"""


@dataclass(frozen=True)
class Conv(Config):
    """A small ResNet for color images: four stages, loss only on masked pixels."""

    encoder: ClassVar[str] = "resnet_small"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=40, batch=128, lr=1e-3, weight_decay=0.0, cycles=4)

    beta: NonNegativeFloat = 0.0
    """full emphasis, because a convolution can copy visible pixels"""


@dataclass(frozen=True)
class Corrupted:
    image: Tensor  # (B, C, H, W), clean
    corrupted: Tensor  # (B, …) the layer's corrupted input; an image for the first layer
    clean: Tensor  # (B, D) the layer's clean input, flattened
    mask: Tensor  # (B, D) bool, the components selected for corruption, whether or not their value changed


def corrupt(
    x: Tensor, noise: Noise, level: float, rng: Rng, exact: bool = True, bounded: bool = True
) -> tuple[Tensor, Tensor]:
    """(B, …) -> a corrupted copy, and the mask of corrupted components (B, D); `bounded` values are in [0, 1].

    Unlike in dropout, the remaining components are not scaled up.
    """
    if noise == "gaussian":
        return x + level * rng.normal(*x.shape), torch.ones_like(x.flatten(1), dtype=torch.bool)
    shape = (1, *x.shape[2:]) if x.ndim == 4 else x.shape[1:]  # all channels of a position together
    d, where = prod(shape), rng.child("where")
    mask = where.orders(len(x), d) < round(level * d) if exact else where.coin(len(x), d, p=level)
    mask = mask.view(len(x), *shape).expand_as(x)
    value = torch.zeros_like(x)
    if noise == "salt_and_pepper":
        row = (len(x), *[1] * (x.ndim - 1))
        low = value if bounded else x.flatten(1).amin(1).view(row)
        high = torch.ones_like(x) if bounded else x.flatten(1).amax(1).view(row)
        value = torch.where(rng.child("value").coin(*x.shape, p=0.5), high, low)
    return torch.where(mask, value, x), mask.flatten(1)


def reconstruction_errors(output: Tensor, clean: Tensor, bounded: bool) -> Tensor:
    """(B, D) per component: cross-entropy of a sigmoid output, squared error of a linear one."""
    if bounded:
        return F.binary_cross_entropy_with_logits(output, clean, reduction="none")
    return (output - clean) ** 2


def emphasized_loss(errors: Tensor, mask: Tensor, alpha: float, beta: float) -> Tensor:
    """α Σ_j∈J ℓ_j + β Σ_j∉J ℓ_j, J the corrupted components (sec. 3.3); (B, D) -> mean over the batch."""
    return torch.where(mask, alpha * errors, beta * errors).sum(1).mean()


class TiedDecoder(nn.Module):
    """Decodes with the transposed matrix of an encoder layer."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = (linear,)  # a tuple, so that the matrix is not registered a second time
        self.bias = nn.Parameter(torch.zeros(linear.in_features))

    def forward(self, code: Tensor) -> Tensor:
        return F.linear(code, self.linear[0].weight.T, self.bias)


def make_decoder(layer: nn.Module, shape: torch.Size, code: torch.Size, tied: bool) -> nn.Module:
    """A decoder from codes (B, …) to the layer's flattened input (B, D) of `shape`, before any sigmoid."""
    linear = [m for m in layer.modules() if isinstance(m, nn.Linear)]
    if tied and ends_in_sigmoid(layer) and len(linear) == 1:
        return TiedDecoder(linear[0])
    if len(code) == 1:
        return nn.Linear(code[0], prod(shape))
    channels, *side = shape
    return nn.Sequential(
        nn.Upsample(size=tuple(side)), nn.Conv2d(code[0], channels, 3, padding=1), nn.Flatten()
    )


def ends_in_sigmoid(layer: nn.Module) -> bool:
    return isinstance(list(layer.modules())[-1], nn.Sigmoid)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Temporarily put a module into eval mode: batch norms use their running statistics and do not update them."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def submodules(net: nn.Module, ends: list[str], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules in order with their paths; containers inside which a stage ends are descended into."""
    for name, child in net.named_children():
        path = f"{prefix}{name}"
        if any(end.startswith(f"{path}.") for end in ends):
            yield from submodules(child, ends, f"{path}.")
        else:
            yield path, child


def layers(encoder: Encoder) -> list[nn.Sequential]:
    """The encoder's stages in order, each including the modules between it and the stage before; without the head."""
    net: Any = encoder.net
    ends = (
        [name for name, _ in net.named_children()]
        if isinstance(encoder, Classic)
        else [info["module"] for info in list(net.feature_info)]
    )
    chain, layer = [], []
    for path, module in submodules(net, ends):
        layer.append(module)
        if path in ends:
            chain.append(nn.Sequential(*layer))
            layer = []
    return chain


@torch.no_grad()
def is_chain(encoder: Encoder) -> bool:
    """Whether the composition of the layers equals the encoder."""
    shape = (1, encoder.channels, encoder.size, encoder.size)
    image = torch.linspace(0, 1, prod(shape), device=encoder.mean.device).view(shape)
    with eval_mode(encoder):
        x = (image - encoder.mean) / encoder.std
        try:
            for layer in layers(encoder):
                x = layer(x)
        except Exception:  # a network that is not a chain can fail in any way on a wrong input
            return False
        deepest = list(encoder(image).values())[-2]  # the last is the pool
    return x.shape == deepest.shape and torch.allclose(x, deepest, rtol=1e-3, atol=1e-4)


class StackedDenoising(Method[Corrupted]):
    pretext_task = "Layer-wise denoising"
    """Each of L layers is trained for 1/L of the epochs; with L rounds, each starts with a new learning-rate schedule.

    Layers are not frozen by flags: those below run without gradient, those above do not run.
    """

    has_unused_params = True
    stage: Tensor  # () index of the layer in training

    def __init__(self, config: Config, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        if not is_chain(encoder):
            raise UserError(
                f"sdae trains layer by layer, and {encoder.name} is not a chain of layers; "
                "try mlp, resnet_small, resnet18 or convnext_atto"
            )
        chain, decoders = layers(encoder), []
        if len(config.corruption_level) not in (1, len(chain)):
            raise UserError(
                f"--corruption-level has {len(config.corruption_level)} values for the {len(chain)} layers of "
                f"{encoder.name}; give one for all or one per layer"
            )
        self.shapes: list[torch.Size] = []  # of each layer's input
        x = torch.zeros(1, encoder.channels, encoder.size, encoder.size)
        with torch.no_grad(), eval_mode(encoder):
            for layer in chain:
                code = layer(x)
                self.shapes.append(x.shape[1:])
                decoders.append(make_decoder(layer, x.shape[1:], code.shape[1:], config.tied))
                x = code
        self.decoders, self.phases = nn.ModuleList(decoders), len(chain)
        self.bounded = [
            True,
            *(ends_in_sigmoid(layer) for layer in chain[:-1]),
        ]  # whether inputs are in [0, 1]
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))

    def begin_epoch(self, context: Context) -> None:
        now, count = context.progress, len(self.shapes)
        if (now.ends - now.begins) * count > 1:
            raise UserError(
                f"the {count} layers of {self.encoder.name} are trained one after another, which needs at least "
                f"{count} epochs, not {now.epochs}; add --rounds {count}"
            )
        self.stage.fill_(int(now.begins * count))

    @torch.no_grad()
    def clean_input(self, image: Tensor) -> Tensor:
        """The input of the layer in training for clean images; constant while that layer is trained."""
        x = image
        for s in range(int(self.stage)):
            with eval_mode(layers(self.encoder)[s]):
                x = self.encode(s, x)
        return x.float()

    def encode(self, s: int, x: Tensor) -> Tensor:
        if s == 0:
            x = (x - self.encoder.mean) / self.encoder.std
        return layers(self.encoder)[s](x)

    def pretext(self, batch: Batch, rng: Rng) -> Corrupted:
        c, s = self.config, int(self.stage)
        image = augment.to_float(batch.image)
        clean = self.clean_input(image)
        level = c.corruption_level[s % len(c.corruption_level)]
        corrupted, mask = corrupt(clean, c.noise, level, rng, c.exact, self.bounded[s])
        return Corrupted(image, corrupted, clean.flatten(1), mask)

    def loss(self, pretext: Corrupted) -> Loss:
        s = int(self.stage)
        output = self.decoders[s](self.encode(s, pretext.corrupted)).float()  # (B, D)
        errors = reconstruction_errors(output, pretext.clean, self.bounded[s])
        total = emphasized_loss(errors, pretext.mask, self.config.alpha, self.config.beta)
        reconstruction = output.sigmoid() if self.bounded[s] else output
        return Loss(
            total,
            {
                "layer": self.stage + 1.0,
                "input_mse": F.mse_loss(pretext.corrupted.flatten(1), pretext.clean),
                "output_mse": F.mse_loss(reconstruction, pretext.clean),
            },
        )

    def predict(self, pretext: Corrupted) -> Mapping[str, Tensor]:
        """The image reconstructed by the decoders, from the layer in training down."""
        s = int(self.stage)
        x = self.encode(s, pretext.corrupted)
        for below in range(s, -1, -1):
            x = self.decode(below, x)
        return {"image": x}

    def sample(self, image: Tensor, rng: Rng) -> Tensor:
        """Sample images from the code of an image: up without noise, then down, sampling each unit of a code.

        Images (B, C, H, W) in [0, 1] -> pixel probabilities (B, C, H, W). Only for sigmoid layers.
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
            "An image, then samples that the stack generates from its top-layer code: on the way down, each unit of "
            "a code is sampled from its probability; the probabilities of the pixels are shown."
        )
        return Gallery("Samples from the stack", about, {"image": image} | columns)

    def show(
        self, pretext: Corrupted, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        code = f"codes of layer {int(self.stage)}"
        for i, image in enumerate(pretext.image):
            own = [answers["image"][i]] if answers else []
            damaged = pretext.corrupted[i] if not self.stage else image
            yield Puzzle(
                [Panel("image, to be encoded and damaged" if self.stage else "damaged", damaged)],
                [Panel("image", image)],
                [Panel("network", x) for x in own],
                [
                    reconstruction(
                        "What was there before the noise?", code if self.stage else "the image", image, *own
                    )
                ],
            )

    def export(self) -> Encoder:
        return self.encoder
