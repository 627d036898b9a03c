"""What decides a run besides the method's own knobs: how long, how fast, in which steps."""

import math
from dataclasses import dataclass
from typing import Literal

from pretask.limits import Below, Count, Share, Weight


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast."""

    epochs: Count = 100
    """passes over the source; --steps and --budget take its place"""
    batch: Count = 256
    """images per step, over all processes"""
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """update rule"""
    lr: Weight = 1e-3
    """peak learning rate"""
    lr_start: Weight = 0.0
    """learning rate at the start of the warmup"""
    lr_end: Weight = 0.0
    """learning rate at the end of the cosine"""
    vector_lr: Weight = 1.0
    """factor of the learning rate of gains and biases (Caffe's nets: 2)"""
    momentum: Below = 0.9
    """of sgd and lars"""
    nesterov: bool = False
    """sgd and lars look ahead by the momentum"""
    weight_decay: Weight = 0.05
    """of matrices"""
    weight_decay_end: Weight | None = None
    """where the weight decay ends, along half a cosine; none: it stays"""
    decay_all: bool = False
    """gains and biases decay as well; under lars, what decays also has its step fitted to its length"""
    warmup: Share = 0.05
    """fraction of a round that the learning rate rises"""
    drops: tuple[Share, ...] = ()
    """fractions of a round at which the learning rate falls by `drop`; none: half a cosine to `lr_end`"""
    drop: Weight | tuple[Weight, ...] = 0.1
    """factor of each fall, or of one after the other"""
    rises: tuple[Share, ...] = ()
    """fractions of a round at which one fall is taken back"""
    clip: Weight = 0.0
    """largest norm of the gradient; 0: no limit"""
    rounds: Count = 1
    """how often the learning rate's course is run, one after the other"""


def schedule(train: TrainConfig, fraction: float) -> float:
    """Share of the peak learning rate at `fraction` of the run, the same course in every round."""
    f = fraction * train.rounds % 1.0
    if f < train.warmup:
        return mixed(share(train.lr_start, train.lr), 1.0, f / train.warmup)
    if train.drops:
        falls = sum(f >= at for at in train.drops) - sum(f >= at for at in train.rises)
        return train.drop**falls if isinstance(train.drop, int | float) else math.prod(train.drop[:falls])
    return mixed(1.0, share(train.lr_end, train.lr), half_cosine((f - train.warmup) / (1 - train.warmup)))


def decay(train: TrainConfig, fraction: float) -> float:
    """Share of the first weight decay at `fraction` of the run."""
    if train.weight_decay_end is None:
        return 1.0
    return mixed(1.0, share(train.weight_decay_end, train.weight_decay), half_cosine(fraction))


def mixed(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def share(end: float, peak: float) -> float:
    """Of a peak that may be 0: then there is nothing to rise from or to fall to."""
    return end / peak if peak else 0.0


def half_cosine(fraction: float) -> float:
    """From 0 to 1, slowly at both ends."""
    return (1 - math.cos(math.pi * fraction)) / 2
