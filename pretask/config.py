"""What decides a run besides the method's own knobs: how long, how fast, in which steps."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast."""

    epochs: int = 100
    """passes over the source; --steps and --budget take its place"""
    batch: int = 256
    """images per step, over all processes"""
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """update rule; sgd and lars use Nesterov momentum"""
    lr: float = 1e-3
    """peak learning rate"""
    momentum: float = 0.9
    """of sgd and lars"""
    weight_decay: float = 0.05
    """of matrices; gains and biases are free"""
    warmup: float = 0.05
    """fraction of a round that the learning rate rises"""
    drops: tuple[float, ...] = ()
    """fractions of a round at which the learning rate falls by `drop`; none: half a cosine to 0"""
    drop: float = 0.1
    """factor of each fall"""
    rises: tuple[float, ...] = ()
    """fractions of a round at which one fall is taken back"""
    clip: float = 0.0
    """largest norm of the gradient; 0: no limit"""
    rounds: int = 1
    """how often the learning rate's course is run, one after the other"""


def schedule(train: TrainConfig, fraction: float) -> float:
    """Share of the peak learning rate at `fraction` of the run, the same course in every round."""
    f = fraction * train.rounds % 1.0
    if f < train.warmup:
        return f / train.warmup
    if train.drops:
        return train.drop ** (sum(f >= at for at in train.drops) - sum(f >= at for at in train.rises))
    return (1 + math.cos(math.pi * (f - train.warmup) / (1 - train.warmup))) / 2
