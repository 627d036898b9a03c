"""Encoders: any timm model by its timm name, or one of the classic nets in `classic.py`.

`build("resnet18")`, `build("vit_tiny_patch16_224:patch_size=4")`, `build("nin4")`. Arguments after the colon go to
`timm.create_model` (or to the classic net) as they are, but for `sees`: "resnet18:sees=lightness" is a net of one
channel that gets the lightness of the images it is given. timm's name of published weights, as in
"vit_base_patch16_224.mae", is that of the same net, whose weights are drawn anew, with the mean and deviation of pixels that
those weights were trained with: ImageNet's, where the plain name has 0.5 and 0.5.
"""

import ast
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pretask.encoders import classic
from pretask.transforms import augment as images
from pretask.types import UserError

SEES: Mapping[str, Callable[[Tensor], Tensor]] = {"lightness": images.lightness, "mean": images.mean}
"""what is left of a colour image, (B, 3, H, W) -> (B, 1, H, W), before a net gets it"""

STAGES = 4
"""of a plain transformer, whose blocks are all alike, this many are looked at"""
AT_ONCE = 256
"""images of a pass without gradients, at most"""
PIXELS = 1 << 18
"""and pixels on a CPU: maps of 256 images of 96 px leave its cache, which takes half as long again as 28 of them do"""


class Encoder(nn.Module):
    """(B, C, H, W) in [0, 1] -> {stage: (B, D, h, w), …, "pool": (B, dim)}, from shallow to deep.

    It normalises its input by its own mean and standard deviation, so that everything outside, from the puzzles
    to an exported ONNX file, deals in plain pixels.
    """

    mean: Tensor  # (C, 1, 1)
    std: Tensor

    def __init__(
        self, name: str, net: nn.Module, channels: int, size: int, mean: Any, std: Any, sees: str = ""
    ):
        super().__init__()
        self.name, self.net, self.channels, self.size, self.sees = name, net, channels, size, sees
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        with torch.no_grad():
            was_training = net.training
            stages = self.eval()(torch.zeros(1, channels, size, size))
            self.train(was_training)
        self.widths: dict[str, int] = {stage: x.shape[1] for stage, x in stages.items()}
        self.sides: dict[str, int] = {stage: x.shape[-1] for stage, x in stages.items() if x.ndim == 4}
        """of the stages that are maps, from shallow to deep"""

    @property
    def dim(self) -> int:
        return self.widths["pool"]

    @torch.no_grad()
    def side(self, share: float) -> int:
        """`share` of the image's side, in pixels; all of it for a net that takes images of one size alone."""
        wanted, was_training = round(share * self.size), self.training
        try:
            self.eval()(torch.zeros(1, self.channels, wanted, wanted))
        except (RuntimeError, AssertionError):  # a fixed grid of tokens, a layer that takes all pixels
            return self.size
        finally:
            self.train(was_training)
        return wanted

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.stages(self.normalised(self.seen(image)))

    def seen(self, image: Tensor) -> Tensor:
        """What the net is given of an image, in [0, 1]: one channel if the spec says so."""
        return SEES[self.sees](image) if self.sees else image

    def normalised(self, seen: Tensor) -> Tensor:
        """By the mean and standard deviation of what the net is given."""
        if seen.shape[1] != len(self.mean):  # else it would be broadcast, and nobody told
            raise ValueError(f"{self.name} is given {len(self.mean)} channels, not {seen.shape[1]}")
        return (seen - self.mean) / self.std

    def look(self, seen: Tensor) -> dict[str, Tensor]:
        """The stages of what is `seen` of an image, for a method whose puzzle holds no more."""
        return self.stages(self.normalised(seen))

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """The same for an input that is already normalised."""
        raise NotImplementedError


class Timm(Encoder):
    """A timm model without its classifier; stages are `forward_intermediates`, pool is its own pooling."""

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        net: Any = self.net
        depth = len(net.feature_info)
        blocks = [round(depth * (i + 1) / STAGES) - 1 for i in range(STAGES)] if depth > 6 else None
        final, maps = net.forward_intermediates(x, indices=blocks)
        named = {f"stage{i + 1}": m for i, m in enumerate(maps)}
        return named | {"pool": net.forward_head(final, pre_logits=True)}


class Classic(Encoder):
    """A net of `classic.py`: a sequence of named stages, each a map or a row of numbers."""

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for stage, module in self.net.named_children():
            x = named[stage] = module(x)
        return named | {"pool": x.mean((2, 3)) if x.ndim == 4 else x}


def at_once(size: int, device: torch.device | str) -> int:
    """Images of `size` pixels for a pass without gradients: on a CPU so few that their maps stay near its cache."""
    return AT_ONCE if torch.device(device).type == "cuda" else max(8, min(AT_ONCE, PIXELS // size**2))


@torch.no_grad()
def pooled(encoder: Encoder, image: Tensor, stage: str = "pool") -> Tensor:
    """(N, C, H, W) uint8 -> a stage averaged over its places, (N, D), on the CPU, in evaluation mode; the encoder's
    mode is restored."""
    was_training, device = encoder.training, encoder.mean.device
    encoder.eval()
    rows = []
    for some in image.split(at_once(encoder.size, device)):
        found = encoder(images.to_float(some.to(device)))[stage]
        rows.append((found.mean((2, 3)) if found.ndim == 4 else found).float().cpu())
    encoder.train(was_training)
    return torch.cat(rows)


def build(spec: str, channels: int = 3, size: int = 224, pretrained: bool = False) -> Encoder:
    """The encoder that `spec` names, for images of `channels` x `size` x `size`; weights drawn anew.

    A transformer is built for this image size. Raises UserError for a name that neither timm nor this package has.
    """
    name, arguments = parse(spec)
    sees = arguments.pop("sees", "")
    if sees and sees not in SEES:
        raise UserError(f"encoder {spec!r}: sees is one of {', '.join(SEES)}")
    if sees and channels != 3:
        raise UserError(f"encoder {spec!r} sees the {sees} of colour images; these have {channels} channel")
    inner = 1 if sees else channels
    if name in classic.NETS:
        try:
            net = classic.NETS[name](channels=inner, size=size, **arguments)
        except TypeError as wrong:
            raise UserError(f"encoder {spec!r}: {wrong}") from None
        mean, std = classic.LEVELS.get(name, ((0.5,), 0.25))
        return Classic(spec, net, channels, size, fitted(mean, inner), (std,) * inner, sees)
    import timm  # takes longer to import than torch, and classic nets do without

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*classic.NETS, *timm.list_models()], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "pretask list --encoders shows what there is"
        raise UserError(f"no encoder is called {name!r}; {hint}")
    try:
        net = timm.create_model(
            name, pretrained=pretrained, num_classes=0, in_chans=inner, **sized(name, size), **arguments
        )
        config: Any = net.pretrained_cfg
        mean, std = fitted(config["mean"], inner), fitted(config["std"], inner)
        return Timm(spec, net, channels, size, mean, std, sees)
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError) as wrong:
        raise UserError(
            f"encoder {spec!r} does not take {channels} x {size} x {size} images: {wrong}"
        ) from None


def seeing(spec: str, sees: str) -> str:
    """`spec`, told what the net sees."""
    return f"{spec}{',' if ':' in spec.removeprefix('timm:') else ':'}sees={sees}" if sees else spec


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """ "name:key=value,…" -> (name, {key: value}); values are Python literals or plain words."""
    name, _, rest = spec.removeprefix("timm:").partition(":")
    arguments: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"encoder {spec!r}: {part!r} should read key=value")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return name, arguments


def sized(name: str, size: int) -> Mapping[str, Any]:
    """Models with a fixed grid of tokens are told the image size; convolutions take any."""
    import timm

    fixed = timm.get_pretrained_cfg(name)
    return {"img_size": size} if fixed is not None and fixed.fixed_input_size else {}


def fitted(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Statistics of three channels for as many as there are; grey gets their mean."""
    return values if channels == len(values) else (sum(values) / len(values),) * channels
