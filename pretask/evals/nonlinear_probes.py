"""Non-linear probes: a multilayer perceptron and a block of convolutions on a frozen map.

RotNet's two probes (Gidaris et al. 2018, arXiv:1803.07728, released code), with its optimizer and the shape of its
schedule. **Differs:** 500 steps in place of 100 epochs; the map is computed once, without augmentation, while RotNet
shifts and flips; maps larger than 8 x 8 are average-pooled to that size and stored in half precision; the map is the one
whose linear probe does best on held-out training samples, and the last weights are scored, while RotNet's
configurations select an epoch by test accuracy.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import MAX_BATCH, Encoder
from pretask.encoders.classic import conv
from pretask.encoders.heads import build_mlp
from pretask.evals.features import embed
from pretask.evals.finetune import autocast_loss, epoch_orders, optimize
from pretask.evals.measure import Chosen, Result, accuracy
from pretask.types import LabeledSource

SIDE = 8
"""maximum side of a map: that of RotNet's last maps"""
MEMORY = 1 << 31
"""maximum bytes for the maps of a training set; larger ones are pooled further"""
WIDTH = 192
"""channels of the convolutions"""
STEPS = 500
"""training steps per probe: seconds (mlp), or a minute or more on one core (conv)"""
SGD = TrainConfig(batch=128, optimizer="sgd", lr=0.1, weight_decay=5e-4, warmup=0.0, gamma=0.2)
TRAIN: Mapping[str, TrainConfig] = {
    "mlp": replace(SGD, milestones=(0.2, 0.4, 0.45)),  # epochs 20, 40 and 45 of 100
    "conv": replace(SGD, milestones=(0.35, 0.7, 0.85)),
}


def mlp(channels: int, side: int, classes: int) -> nn.Sequential:
    """(B, C, s, s) -> (B, K): two hidden layers of 20 units per class."""
    hidden = min(20 * classes, 2048)
    return nn.Sequential(nn.Flatten(), *build_mlp(channels * side**2, hidden, hidden, classes))


def conv_block(channels: int, classes: int) -> nn.Sequential:
    """(B, C, s, s) -> (B, K): one more network-in-network block with global average pooling."""
    convolutions = conv(channels, WIDTH, 3), conv(WIDTH, WIDTH, 1), conv(WIDTH, WIDTH, 1)
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, classes))


class StageMap(nn.Module):
    """One stage of an encoder, in the form that `embed` takes."""

    def __init__(self, encoder: Encoder, stage: str):
        super().__init__()
        self.encoder, self.stage = encoder, stage
        self.train(encoder.training)  # the mode that `embed` restores

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.encoder(image)[self.stage]
        return {"map": x, "pool": x.mean((2, 3))}


def map_stages(encoder: Encoder) -> list[str]:
    """The stages whose maps are larger than 1 x 1, from shallow to deep."""
    return [stage for stage, side in encoder.sides.items() if side > 1]


def score_probes(
    encoder: Encoder,
    train: LabeledSource,
    test: LabeledSource,
    chosen: Chosen,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Iterator[Result]:
    """Both probes on the map that is best according to `chosen`; nothing for an encoder without maps. The encoder is not
    changed."""
    stages = map_stages(encoder)
    if not stages:
        return
    stage, options = chosen.best(stages), {"device": device, "progress": progress}
    channels = encoder.widths[stage]
    width = min(SIDE**2 * channels, MEMORY // 2 // len(train))
    train_features, test_features = (
        embed(StageMap(encoder, stage), source, width=width, **options) for source in (train, test)
    )
    side = math.isqrt(train_features.stages["map"].shape[1] // channels)
    x, x_test = (
        each.stages["map"].view(-1, channels, side, side) for each in (train_features, test_features)
    )
    for name in ("mlp", "conv"):
        probe = fit(name, x, train_features.label, len(train.classes), seed, device, progress)
        with torch.no_grad():
            predicted = torch.cat(
                [probe(rows.float().to(device)).argmax(1).cpu() for rows in x_test.split(MAX_BATCH)]
            )
        yield accuracy(name, "", predicted == test_features.label, {"stage": stage, "side": side})


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
    """Maps (N, C, s, s), (N,) -> the probe of that name, trained for STEPS steps."""
    train, (n, channels, side, _) = TRAIN[name], x.shape
    batch = min(train.batch, n)
    torch.manual_seed(seed)
    probe = mlp(channels, side, classes) if name == "mlp" else conv_block(channels, classes)
    probe.to(device).train()
    losses = (
        autocast_loss(probe, x[rows].float().to(device), label[rows].to(device))
        for rows in epoch_orders(n, batch, STEPS, seed).split(batch)
    )
    optimizer = torch.optim.SGD(
        probe.parameters(), momentum=train.momentum, nesterov=True, weight_decay=train.weight_decay
    )
    optimize(optimizer, losses, train, STEPS, f"{name} probe", progress)
    return probe.eval()
