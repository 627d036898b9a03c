"""Encoders: any timm model by its timm name, or one of the papers' networks in `classic.py`.

`build("resnet18")`, `build("vit_tiny_patch16_224:patch_size=4")`, `build("nin4")`. Arguments after the colon
are passed to `timm.create_model` (or to the function in `classic.py`), except `sees`:
"resnet18:sees=lightness" is a one-channel network on the lightness of its input images. timm's name of
pretrained weights, as in "vit_base_patch16_224.mae", means the same network, randomly initialized, with the
pixel mean and standard deviation of those weights: ImageNet's, where the plain name has 0.5 and 0.5.
"""

import ast
import difflib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.encoders import classic
from pretask.errors import first_line, out_of_memory
from pretask.transforms import augment
from pretask.transforms.color import channel_mean, rgb_to_lightness
from pretask.transforms.ranges import UNKNOWN, Range
from pretask.types import UserError

SEES: Mapping[str, Callable[[Tensor], Tensor]] = {"lightness": rgb_to_lightness, "mean": channel_mean}
"""reductions of a color image to one channel, (B, 3, H, W) -> (B, 1, H, W), applied before the network"""

STAGES = 4
"""blocks that serve as stages of a network without a hierarchy, such as a vision transformer"""
MAX_BATCH = 256
"""largest batch of a pass without gradients, images"""
MAX_SIDE = 1024
"""side in pixels at which the search for the smallest accepted image gives up"""
CPU_PIXELS = 1 << 18
"""pixels of an inference batch on a CPU: 28 images of 96 px fit in its cache; 256 take 1.5 times as long per image"""


class Encoder(nn.Module):
    """(B, C, H, W) in [0, 1] -> {stage: (B, D, h, w), …, "pool": (B, dim)}, from shallow to deep.

    It normalizes its input by its own mean and standard deviation, so that everything outside, from puzzles
    to an exported ONNX file, uses plain pixels.
    """

    mean: Tensor  # (C, 1, 1)
    std: Tensor
    range: Range
    """values mapped to 0 and 1, for images that are not 8-bit; set by the run that trained the encoder"""
    takes: int | None = None
    """side in pixels to which images are resized before the network; None: they are not resized"""

    def __init__(
        self, name: str, net: nn.Module, channels: int, size: int, mean: Any, std: Any, sees: str = ""
    ):
        super().__init__()
        self.name, self.net, self.channels, self.size, self.sees = name, net, channels, size, sees
        self.range = UNKNOWN
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        with torch.no_grad():
            was_training = net.training
            stages = self.eval()(torch.zeros(1, channels, size, size))
            self.train(was_training)
        self.widths: dict[str, int] = {stage: x.shape[1] for stage, x in stages.items()}
        self.sides: dict[str, int] = {stage: x.shape[-1] for stage, x in stages.items() if x.ndim == 4}
        """map sides of the stages that are maps, from shallow to deep"""

    @property
    def dim(self) -> int:
        return self.widths["pool"]

    def normalize_by(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Normalize the input by other statistics, one number or one for each channel; None: unchanged."""
        for own, new in ((self.mean, mean), (self.std, std)):
            if new is not None:
                own.copy_(torch.tensor(match_channels(tuple(new), len(own))).view(-1, 1, 1))

    @torch.no_grad()
    def side(self, fraction: float) -> int:
        """`fraction` of the image side in pixels; the full side for networks with a fixed input size."""
        side, was_training = round(fraction * self.size), self.training
        try:
            self.eval()(torch.zeros(1, self.channels, side, side))
        except (RuntimeError, AssertionError):  # a fixed token grid, or a layer on all pixels
            return self.size
        finally:
            self.train(was_training)
        return side

    @torch.no_grad()
    def map_side(self, stage: str, side: int) -> int:
        """Side of a stage's map for images of `side` pixels; 0 if they are too small for the network."""
        was_training = self.training
        try:
            image = torch.zeros(1, self.channels, side, side, device=self.mean.device)
            return self.eval()(image)[stage].shape[-1]
        except (RuntimeError, AssertionError):
            return 0
        finally:
            self.train(was_training)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.stages(self.normalized(self.select_input(image)))

    def resize_input(self, size: int) -> None:
        """Take images of `size` pixels instead, and resize them to its own side: for a teacher of images of another size."""
        self.takes, self.size = self.size, size

    def select_input(self, image: Tensor) -> Tensor:
        """The network's input channels, in [0, 1]: the image, or one channel computed from it."""
        if self.takes and self.takes != image.shape[-1]:
            image = F.interpolate(image, size=(self.takes,) * 2, mode="bilinear", antialias=True)
        return SEES[self.sees](image) if self.sees else image

    def normalized(self, seen: Tensor) -> Tensor:
        """The selected input, normalized by mean and standard deviation."""
        if seen.shape[1] != len(self.mean):  # it would be broadcast silently
            raise ValueError(f"{self.name} expects {len(self.mean)} channels, got {seen.shape[1]}")
        return (seen - self.mean) / self.std

    def forward_input(self, seen: Tensor) -> dict[str, Tensor]:
        """The stages for an input from `select_input`, for methods whose puzzle holds nothing else."""
        return self.stages(self.normalized(seen))

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """The stages for an input that is already normalized."""
        raise NotImplementedError


class Timm(Encoder):
    """A timm model without its classifier: stages of `forward_intermediates` and its own pooling."""

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        net: Any = self.net
        depth = len(net.feature_info)
        blocks = [round(depth * (i + 1) / STAGES) - 1 for i in range(STAGES)] if depth > 6 else None
        final, maps = net.forward_intermediates(x, indices=blocks)
        named = {f"stage{i + 1}": m for i, m in enumerate(maps)}
        return named | {"pool": net.forward_head(final, pre_logits=True)}


class Classic(Encoder):
    """A network of `classic.py`: a sequence of named stages, each a map or a vector."""

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for stage, module in self.net.named_children():
            x = named[stage] = module(x)
        return named | {"pool": x.mean((2, 3)) if x.ndim == 4 else x}


def inference_batch(size: int, device: torch.device | str) -> int:
    """Batch size without gradients for images of `size` pixels: on a CPU, small enough for its cache."""
    return MAX_BATCH if torch.device(device).type == "cuda" else max(8, min(MAX_BATCH, CPU_PIXELS // size**2))


@torch.no_grad()
def pooled(encoder: Encoder, image: Tensor, stage: str = "pool") -> Tensor:
    """(N, C, H, W) uint8 -> a stage averaged over positions, (N, D), on the CPU, in evaluation mode.

    The encoder's mode is restored.
    """
    was_training, device = encoder.training, encoder.mean.device
    encoder.eval()
    rows = []
    for some in image.split(inference_batch(encoder.size, device)):
        found = encoder(augment.to_float(some.to(device)))[stage]
        rows.append((found.mean((2, 3)) if found.ndim == 4 else found).float().cpu())
    encoder.train(was_training)
    return torch.cat(rows)


class BuildError(UserError):
    """A network cannot be built with these arguments, or for images of this size."""


def build(spec: str, channels: int = 3, size: int = 224) -> Encoder:
    """The encoder named by `spec`, for images of `channels` x `size` x `size`, randomly initialized.

    A transformer is built for this image size. Raises UserError for an unknown name, and for images that are
    too small, with the smallest side that the network accepts.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # the error below says so
            return create(spec, channels, size)
    except BuildError:
        with warnings.catch_warnings(action="ignore"):
            least = smallest_side(spec, channels, size)
        if least is None:
            raise
        raise UserError(
            f"encoder {spec!r} needs images of {least} px or more, got {size}; set --size {least} or more, "
            "or another --encoder"
        ) from None


def smallest_side(spec: str, channels: int, above: int) -> int | None:
    """The smallest side above `above` that the network accepts; None if the side is not the problem."""

    def takes(size: int) -> bool:
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):  # shapes only
                create(spec, channels, size)
        except Exception:  # whatever a network raises for too few pixels, or on the meta device
            return False
        return True

    return smallest_accepted(takes, above)


def smallest_accepted(takes: Callable[[int], bool], start: int) -> int | None:
    """The smallest side that `takes` accepts, as all larger ones do, from `start` on; None above MAX_SIDE."""
    low, high = 0, start
    while not takes(high):
        low, high = high, 2 * high
        if high > MAX_SIDE:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if takes(middle) else (middle, high)
    return high


def create(spec: str, channels: int, size: int) -> Encoder:
    """As `build`, but raises BuildError with the library's message if the images are not accepted."""
    name, arguments = parse(spec)
    sees = arguments.pop("sees", "")
    if sees and sees not in SEES:
        raise UserError(f"encoder {spec!r}: sees must be one of {', '.join(SEES)}")
    if sees and channels != 3:
        raise UserError(f"encoder {spec!r} sees the {sees} of color images; these have {channels} channel")
    inner = 1 if sees else channels
    try:
        if name in classic.NETS:
            net = classic.NETS[name](channels=inner, size=size, **arguments)
            mean, std = classic.NORMALIZATION.get(name, ((0.5,), 0.25))
            return Classic(spec, net, channels, size, match_channels(mean, inner), (std,) * inner, sees)
        import timm  # slower to import than torch, and classic networks do not need it

        if not timm.is_model(name):
            near = difflib.get_close_matches(name, [*classic.NETS, *timm.list_models()], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "pretask list --encoders shows all"
            raise UserError(f"unknown encoder {name!r}; {hint}")
        net = timm.create_model(
            name,
            num_classes=0,
            in_chans=inner,
            **size_arguments(name, size),
            **arguments,
        )
        check_patches(spec, net, size)
        config: Any = net.pretrained_cfg
        mean, std = match_channels(config["mean"], inner), match_channels(config["std"], inner)
        return Timm(spec, net, channels, size, mean, std, sees)
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError, ZeroDivisionError) as wrong:
        if out_of_memory(wrong):
            raise
        raise BuildError(
            f"encoder {spec!r} does not take {channels} x {size} x {size} images: {first_line(wrong)}"
        ) from None


def check_patches(spec: str, net: Any, size: int) -> None:
    """UserError if a transformer's patches would not cover the whole image."""
    from timm.layers.patch_embed import PatchEmbed

    embed: Any = getattr(net, "patch_embed", None)
    unpadded = isinstance(embed, PatchEmbed) and not embed.dynamic_img_pad
    sides: Any = embed.patch_size if unpadded else (1,)
    patch = max(sides)
    if size % patch:
        fits = [side for side in (size // patch * patch, (size // patch + 1) * patch) if side]
        raise UserError(
            f"encoder {spec!r} has patches of {patch} px, which do not divide images of {size} px; "
            f"set --size {' or '.join(map(str, fits))}, or an --encoder with another patch_size"
        )


def side_of_whole_patches(spec: str, side: int) -> int:
    """The smallest side of `side` pixels or more that the network's patches divide; `side` itself without patches."""
    from timm.layers.patch_embed import PatchEmbed

    name, _ = parse(spec)
    if name in classic.NETS:
        return side
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        import timm

        net = timm.create_model(name, **{k: v for k, v in parse(spec)[1].items() if k != "sees"})
    embed: Any = getattr(net, "patch_embed", None)
    sides: Any = embed.patch_size if isinstance(embed, PatchEmbed) else (1,)
    patch = max(sides)
    return -(-side // patch) * patch


def with_sees(spec: str, sees: str) -> str:
    """`spec` with its `sees` argument."""
    return f"{spec}{',' if ':' in spec.removeprefix('timm:') else ':'}sees={sees}" if sees else spec


def with_dynamic_size(spec: str) -> str:
    """`spec` of a transformer with a fixed token grid for images of any size; any other spec as it is."""
    name, arguments = parse(spec)
    if name in classic.NETS or not size_arguments(name, 1) or "dynamic_img_size" in arguments:
        return spec
    return f"{spec}{',' if arguments else ':'}dynamic_img_size=True"


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """ "name:key=value,…" -> (name, {key: value}); values are Python literals or plain words."""
    name, _, rest = spec.removeprefix("timm:").partition(":")
    arguments: dict[str, Any] = {}
    for part in filter(None, re.split(r",(?![^(\[]*[)\]])", rest)):  # commas that are not in brackets
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"encoder {spec!r}: {part!r} should read key=value")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return name, arguments


def size_arguments(name: str, size: int) -> Mapping[str, Any]:
    """The image size for models with a fixed token grid; nothing for convolutional ones."""
    import timm

    fixed = timm.get_pretrained_cfg(name)
    return {"img_size": size} if fixed is not None and fixed.fixed_input_size else {}


def match_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Statistics of three channels, or one for all, for `channels` channels; another number gets their mean."""
    return values if channels == len(values) else (sum(values) / len(values),) * channels
