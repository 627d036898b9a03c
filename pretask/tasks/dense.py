"""A map foreseen for every pixel from an encoder's maps: what the scores of normals and depth share.

Frozen, the encoder's maps are those of evaluation mode, and are read off linearly, see `readout.py`. Unfrozen, the encoder
learns with a light decoder of four convolutions on top of it: the row that labels alone would give, or what a run is worth
as a start. Both see all map stages on one grid, so that no stage has to be chosen on held-out images. Whatever is not known
of a map has no say, in learning nor in a score.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretask import data as sources
from pretask.config import TrainConfig
from pretask.data.base import Images
from pretask.encoders import Encoder
from pretask.encoders.classic import conv
from pretask.evals.features import batches
from pretask.evals.finetune import descend, passes
from pretask.rng import Rng
from pretask.runtime.device import autocast
from pretask.tasks import linear_readout as readout
from pretask.tasks.base import Found, Plan, canvas, draws
from pretask.tasks.linear_readout import BATCH, Target, mirror, on_grid, resized, stages_of
from pretask.transforms import augment as images
from pretask.types import Source, UserError

WIDTH = 64
"""channels of the decoder"""
SIDE = 64
"""pixels of the images, of encoders that take any size; their own if that is larger"""
PICTURES = 6
TUNES = True
BLOCKS = 5
"""of scenes that are both learnt from and foreseen"""
STEPS = 1000
TRAIN = TrainConfig(batch=16, lr=1e-3, weight_decay=0.01, warmup=0.05)
"""AdamW; not tuned, neither for encoders that know something nor for those that do not"""

Loss = Callable[[Tensor, Tensor], Tensor]
"""(B, K, H, W) foreseen and true -> () over the pixels that are known"""


class Scenes:
    """Scenes to foresee maps of, or some of them; opened at the size that an encoder takes."""

    def __init__(self, spec: str, max_bad: float, progress: bool):
        self.spec, self.known = spec, {"max_bad": max_bad, "progress": progress}
        listed = sources.open(spec, max_bad=max_bad, cache_mb=0)
        self.name, self.bad = listed.name, listed.ledger.bad
        self.index = torch.arange(len(listed))
        self.opened: dict[tuple[int, int], Images] = {}

    def __len__(self) -> int:
        return len(self.index)

    def some(self, index: Tensor, name: str) -> "Scenes":
        part = copy.copy(self)
        part.index, part.name = self.index[index], name
        return part

    def order(self, seed: int) -> None:
        """None are set aside: all are foreseen, see `turns`."""

    def turns(self, test: "Scenes") -> Iterator[tuple["Scenes", "Scenes"]]:
        """What to learn from and what to foresee: these and those, or, of the same scenes, every block in a row in turn,
        since frames of one film look alike."""
        if self.opened is not test.opened or not self.index.equal(test.index):
            yield self, test
            return
        for block in torch.arange(len(self)).tensor_split(min(BLOCKS, len(self))):
            rest = torch.ones(len(self), dtype=torch.bool).index_fill(0, block, False).nonzero()[:, 0]
            yield self.some(rest, self.name), self.some(block, self.name)

    def at(self, size: int, channels: int) -> Images:
        """All of them, at one size, opened once."""
        if (size, channels) not in self.opened:
            self.opened[size, channels] = sources.open(self.spec, size=size, channels=channels, **self.known)
        return self.opened[size, channels]

    def true(self, name: str) -> Iterator[Tensor]:
        """Batches of a map (B, K, H, W), at the size that was opened first."""
        source = next(iter(self.opened.values()), None) or self.at(SIDE, 3)
        return (each.aux[name] for each in batches(source, BATCH, self.index))


@dataclass(frozen=True)
class Pooled:
    """Of each test image, its share in scores that are pooled over all valid pixels: no image is a mean of its own."""

    sums: dict[str, Tensor]  # (N,) float64 each, of a score over the image's valid pixels
    pixels: Tensor  # (N,) float64 valid pixels

    def means(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """(R, N) how often each image was drawn -> (R,) each; without, () of the images as they are."""
        drawn = torch.ones_like(self.pixels) if rows is None else rows.double()
        return {name: drawn @ x / (drawn @ self.pixels) for name, x in self.sums.items()}


class Judged(Protocol):
    """What is known of the errors in N test images."""

    def scores(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """() each; of (R, N), how often each image was drawn, (R,) each."""
        ...


def scored(
    errors: Judged, evals: Mapping[str, str], n: int, seed: int, notes: Mapping[str, Any]
) -> list[Found]:
    """The numbers of n test images that are named in `evals`, with what they would be on test sets drawn anew."""
    value, again = errors.scores(), errors.scores(torch.from_numpy(draws(n, seed)))
    return [Found(e, float(value[e]), again[e].numpy(), notes) for e in evals]


# ---- what a task has


def load(spec: str, max_bad: float, progress: bool) -> Scenes:
    return Scenes(spec, max_bad, progress)


def matched(train: Scenes, test: Scenes) -> tuple[Scenes, Scenes]:
    return train, test


def check(encoder: Encoder, plan: Plan) -> None:
    canvas(encoder, plan, SIDE)
    stages_of(encoder)


def classes(train: Scenes) -> list[str]:
    return []


def shown(train: Scenes, encoder: Encoder, plan: Plan) -> None:
    """Nothing that a class could be made of."""


def taken(
    name: str,
    outputs: int,
    loss: Loss,
    target: Target,
    encoder: Encoder,
    train: Scenes,
    test: Scenes,
    plan: Plan,
) -> tuple[Iterator[tuple[Tensor, Tensor, Tensor]], dict[str, Any]]:
    """Let encoders foresee the test scenes: images, what is foreseen and what is true, batch by batch; and the settings."""
    side = canvas(encoder, plan, SIDE)
    for scenes in (train, test):
        check_provided(scenes.at(side, encoder.channels), name)
    told = {"device": plan.device, "progress": plan.progress}
    notes: dict[str, Any] = {"size": test.at(side, encoder.channels).size, "frozen": not plan.tuned}
    if plan.tuned:
        notes |= {"steps": plan.steps or STEPS}

    def maps() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for learned, unseen in train.turns(test):
            known, asked = (scenes.at(side, encoder.channels) for scenes in (learned, unseen))
            more = {"index": learned.index, **told}
            if plan.tuned:
                net = fit(encoder, known, name, outputs, loss, steps=notes["steps"], seed=plan.run, **more)
            else:
                net = readout.fit(encoder, known, name, target, **more)
            yield from foreseen(net, asked, name, unseen.index, plan.device)

    return maps(), notes


def watched(
    maps: Iterator[tuple[Tensor, Tensor, Tensor]],
    paint: Callable[[Tensor], Tensor],
    pictures: list[Mapping[str, Tensor]],
    n: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What is foreseen and what is true, batch by batch; a few of all n are also painted, far from each other in a film."""
    number, shown = count(), set(torch.linspace(0, n - 1, PICTURES).long().tolist())
    for image, found, true in maps:
        for x, f, t in zip(image, found, true, strict=True):
            if next(number) in shown:
                pictures.append({"image": x.expand(3, -1, -1), "truth": paint(t), "found": paint(f)})
        yield found, true


def check_provided(source: Source, name: str) -> None:
    if name not in source.provides:
        has = ", ".join(sorted(source.provides)) or "images alone"
        raise UserError(
            f"{source.name} has no {name} ({has}); give scenes with {name}, such as scenes:FOLDER"
        )


# ---- the decoder


class Decoded(nn.Module):
    """An encoder below a decoder: (B, C, H, W) in [0, 1] -> (B, K, H, W)."""

    def __init__(self, encoder: Encoder, outputs: int):
        super().__init__()
        self.encoder = encoder.requires_grad_(True)
        self.stages = stages = stages_of(encoder)
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

    def forward(self, image: Tensor) -> Tensor:
        found = self.encoder(image)
        maps = [norm(found[s].float()) for s, norm in zip(self.stages, self.norms, strict=True)]
        return resized(self.decoder(on_grid(maps, image)).float(), image.shape[2:])


@torch.random.fork_rng(devices=[])
def fit(
    encoder: Encoder,
    source: Source,
    name: str,
    outputs: int,
    loss: Loss,
    *,
    index: Tensor | None = None,
    steps: int = STEPS,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Decoded:
    """An encoder with a decoder for the map `name` of the scenes at `index`, all by default; a copy learns, not the encoder
    itself."""
    check_provided(source, name)
    index = torch.arange(len(source)) if index is None else index
    torch.manual_seed(seed)  # of the decoder, and of what an encoder drops
    net = Decoded(copy.deepcopy(encoder), outputs).to(device).train()
    batch = min(TRAIN.batch, len(index))
    optimizer = torch.optim.AdamW(net.parameters(), TRAIN.lr, weight_decay=TRAIN.weight_decay)
    losses = (
        step_loss(net, x, y, loss) for x, y in mirrored(source, name, index, batch, steps, seed, device)
    )
    descend(optimizer, losses, TRAIN, steps, f"{name}, end to end", progress)
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


@torch.no_grad()
def foreseen(
    net: nn.Module, source: Source, name: str, index: Tensor | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images (B, C, H, W), maps (B, K, H, W) as the net foresees them and as they are, of the scenes at `index`, on the
    CPU."""
    for each in batches(source, BATCH, index):
        yield each.image, net(images.to_float(each.image.to(device))).float().cpu(), each.aux[name]
