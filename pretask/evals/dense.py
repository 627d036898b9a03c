"""A map foreseen for every pixel, by a light decoder on an encoder's maps: what the scores of normals and depth share.

All map stages of the encoder are brought to one grid and concatenated; the convolutions choose among them, so that no
stage has to be chosen on held-out images. Frozen, the encoder's maps are those of evaluation mode, and only the decoder
learns. Unfrozen, everything else being the same, the encoder learns with it: the row that labels alone would give.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask import images
from pretask.config import TrainConfig
from pretask.device import autocast
from pretask.encoders import Encoder
from pretask.encoders.classic import conv
from pretask.evals.features import batches
from pretask.evals.finetune import descend, passes
from pretask.rng import Rng
from pretask.types import Source, UserError

WIDTH = 64
"""channels of the decoder"""
GRID = 4
"""pixels that a place of the decoder's grid covers, a side; the map is enlarged to the image from there"""
STEPS = 1000
TRAIN = TrainConfig(batch=16, lr=1e-3, weight_decay=0.01, warmup=0.05)
"""AdamW; not tuned, neither for encoders that know something nor for those that do not"""
BATCH = 32
"""images at once when scored"""

Loss = Callable[[Tensor, Tensor], Tensor]
"""(B, K, H, W) foreseen and true -> () over the pixels that are known"""


@dataclass(frozen=True)
class Pooled:
    """Of each test image, its share in scores that are pooled over all valid pixels: no image is a mean of its own."""

    sums: dict[str, Tensor]  # (N,) float64 each, of a score over the image's valid pixels
    pixels: Tensor  # (N,) float64 valid pixels

    def means(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """(R, N) how often each image was drawn -> (R,) each; without, () of the images as they are."""
        drawn = torch.ones_like(self.pixels) if rows is None else rows.double()
        return {name: drawn @ x / (drawn @ self.pixels) for name, x in self.sums.items()}


class Decoded(nn.Module):
    """An encoder below a decoder: (B, C, H, W) in [0, 1] -> (B, K, H, W)."""

    def __init__(self, encoder: Encoder, outputs: int, frozen: bool):
        super().__init__()
        self.encoder, self.frozen = encoder.requires_grad_(not frozen), frozen
        if not (stages := [stage for stage, side in encoder.sides.items() if side > 1]):
            raise UserError(f"{encoder.name} has no maps, and a map is to be foreseen; use another encoder")
        self.stages = stages
        widths = [encoder.widths[stage] for stage in stages]
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(width, affine=False) for width in widths
        )  # stages count alike
        self.decoder = nn.Sequential(
            conv(sum(widths), WIDTH, 1),
            conv(WIDTH, WIDTH, 3),
            conv(WIDTH, WIDTH, 3),
            nn.Conv2d(WIDTH, outputs, 3, padding=1),
        )

    def train(self, mode: bool = True) -> "Decoded":
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found = self.encoder(image)
        size = [max(1, side // GRID) for side in image.shape[2:]]
        grids = [
            resized(norm(found[s].float()), size) for s, norm in zip(self.stages, self.norms, strict=True)
        ]
        return resized(self.decoder(torch.cat(grids, 1)).float(), image.shape[2:])


def resized(x: Tensor, size: list[int] | torch.Size) -> Tensor:
    """(B, D, h, w) -> (B, D, *size), with anti-aliasing where it shrinks."""
    if list(x.shape[2:]) == list(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", antialias=True)


@torch.random.fork_rng(devices=[])
def fit(
    encoder: Encoder,
    source: Source,
    name: str,
    outputs: int,
    loss: Loss,
    *,
    frozen: bool = True,
    index: Tensor | None = None,
    steps: int = STEPS,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Decoded:
    """A decoder for the map `name` of the scenes at `index`, all by default; the encoder itself stays as it is."""
    if name not in source.provides:
        has = ", ".join(sorted(source.provides)) or "images alone"
        raise UserError(
            f"{source.name} has no {name} ({has}); give scenes with {name}, such as scenes:FOLDER"
        )
    index = torch.arange(len(source)) if index is None else index
    torch.manual_seed(seed)  # of the decoder, and of what an encoder drops
    net = Decoded(copy.deepcopy(encoder), outputs, frozen).to(device).train()
    batch = min(TRAIN.batch, len(index))
    weights = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, TRAIN.lr, weight_decay=TRAIN.weight_decay)
    kind = f"{name}, {'frozen' if frozen else 'end to end'}"
    losses = (
        step_loss(net, x, y, loss) for x, y in mirrored(source, name, index, batch, steps, seed, device)
    )
    descend(optimizer, losses, TRAIN, steps, kind, progress)
    return net.eval()


def step_loss(net: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    with autocast(x.device):
        foreseen = net(x)
    return loss(foreseen.float(), y)


def mirrored(
    source: Source, name: str, index: Tensor, batch: int, steps: int, seed: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` batches of images (B, C, H, W) in [0, 1] and maps (B, K, H, W), half of them mirrored."""
    order = index[passes(len(index), batch, steps, seed)]
    for step, each in enumerate(batches(source, batch, order)):
        x, y = images.to_float(each.image.to(device)), each.aux[name].to(device)
        turned = Rng(seed, "dense", step, device=device).coin(len(x), 1, 1, 1, p=0.5)
        yield torch.where(turned, x.flip(3), x), torch.where(turned, mirror(y, name), y)


def mirror(y: Tensor, name: str) -> Tensor:
    """What a mirror shows: left and right change places, and a normal that pointed right points left."""
    flipped = y.flip(3)
    if name != "normals":
        return flipped
    return flipped * flipped.new_tensor([-1.0, 1.0, 1.0]).view(1, 3, 1, 1)


@torch.no_grad()
def foreseen(
    net: nn.Module, source: Source, name: str, index: Tensor | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Maps (B, K, H, W) as the net foresees them and as they are, of the scenes at `index`, on the CPU."""
    for each in batches(source, BATCH, index):
        yield net(images.to_float(each.image.to(device))).float().cpu(), each.aux[name]
