"""Non-linear probes: a multi-layer perceptron and a block of convolutions on a frozen map.

RotNet's two (Gidaris et al. 2018, arXiv:1803.07728, released code), with its optimiser and the shape of its schedule.
Differs: 500 steps in place of 100 epochs; the map is computed once, without augmentation, where RotNet shifts and
flips; maps larger than 8 x 8 are average-pooled to that, and kept in half precision; the map is the one that a linear
probe does best on among held-out training samples, and the last weights are scored, where RotNet's configurations
select an epoch by test accuracy.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import AT_ONCE, Encoder
from pretask.encoders.classic import conv
from pretask.encoders.heads import projector
from pretask.evals.features import embed
from pretask.evals.finetune import cost, descend, passes
from pretask.evals.measure import Chosen, Result, accuracy
from pretask.types import Labelled

SIDE = 8
"""of a map, at most: what RotNet's last maps have"""
MEMORY = 1 << 31
"""bytes that the maps of a training set may take; those of more or wider ones are pooled further"""
WIDTH = 192
"""channels of the convolutions"""
STEPS = 500
"""of one probe: seconds (mlp), a minute or more of one core (conv)"""
SGD = TrainConfig(batch=128, optimizer="sgd", lr=0.1, weight_decay=5e-4, warmup=0.0, drop=0.2)
TRAIN: Mapping[str, TrainConfig] = {
    "mlp": replace(SGD, drops=(0.2, 0.4, 0.45)),  # epochs 20, 40 and 45 of 100
    "conv": replace(SGD, drops=(0.35, 0.7, 0.85)),
}


def mlp(channels: int, side: int, classes: int) -> nn.Sequential:
    """(B, C, s, s) -> (B, K): two hidden layers of 20 units a class."""
    hidden = min(20 * classes, 2048)
    return nn.Sequential(nn.Flatten(), *projector(channels * side**2, hidden, hidden, classes))


def block(channels: int, classes: int) -> nn.Sequential:
    """(B, C, s, s) -> (B, K): one more block of the network in network, averaged over its places."""
    convolutions = conv(channels, WIDTH, 3), conv(WIDTH, WIDTH, 1), conv(WIDTH, WIDTH, 1)
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, classes))


class Map(nn.Module):
    """One stage of an encoder, in the form that `embed` takes."""

    def __init__(self, encoder: Encoder, stage: str):
        super().__init__()
        self.encoder, self.stage = encoder, stage
        self.train(encoder.training)  # to which `embed` returns

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.encoder(image)[self.stage]
        return {"map": x, "pool": x.mean((2, 3))}


def maps(encoder: Encoder) -> list[str]:
    """The stages that have more than one place, from shallow to deep."""
    return [stage for stage, side in encoder.sides.items() if side > 1]


def by_maps(
    encoder: Encoder,
    train: Labelled,
    test: Labelled,
    chosen: Chosen,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Iterator[Result]:
    """Both probes on the map that `chosen` found best; none of an encoder without maps. The encoder stays as it is."""
    stages = maps(encoder)
    if not stages:
        return
    stage, known = chosen.best(stages), {"device": device, "progress": progress}
    channels = encoder.widths[stage]
    width = min(SIDE**2 * channels, MEMORY // 2 // len(train))
    shown, unseen = (embed(Map(encoder, stage), part, width=width, **known) for part in (train, test))
    side = math.isqrt(shown.stages["map"].shape[1] // channels)
    x, y = (each.stages["map"].view(-1, channels, side, side) for each in (shown, unseen))
    for name in ("mlp", "conv"):
        head = fit(name, x, shown.label, len(train.classes), seed, device, progress)
        with torch.no_grad():
            said = torch.cat([head(rows.float().to(device)).argmax(1).cpu() for rows in y.split(AT_ONCE)])
        yield accuracy(name, "", said == unseen.label, {"stage": stage, "side": side})


@torch.random.fork_rng(devices=[])
def fit(
    name: str,
    x: Tensor,
    label: Tensor,
    classes: int,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> nn.Sequential:
    """Maps (N, C, s, s), (N,) -> the probe of that name after STEPS steps."""
    train, (n, channels, side, _) = TRAIN[name], x.shape
    batch = min(train.batch, n)
    torch.manual_seed(seed)
    head = mlp(channels, side, classes) if name == "mlp" else block(channels, classes)
    head.to(device).train()
    losses = (
        cost(head, x[rows].float().to(device), label[rows].to(device))
        for rows in passes(n, batch, STEPS, seed).split(batch)
    )
    optimizer = torch.optim.SGD(
        head.parameters(), momentum=train.momentum, nesterov=True, weight_decay=train.weight_decay
    )
    descend(optimizer, losses, train, STEPS, f"{name} probe", progress)
    return head.eval()
