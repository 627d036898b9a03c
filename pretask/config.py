"""Configuration of a run besides the method's own hyperparameters: training, data, hardware."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pretask.limits import (
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Seed,
    UnitInterval,
)
from pretask.reading import DEFAULT_READING, Reading

CONTINUED_LR, CONTINUED_DECAY, CONTINUED_WARMUP, CONTINUED_HEAD_FIRST = 0.1, 0.9, 0.1, 0.1
"""learning-rate factors of the encoder and from layer to layer, and fractions of the run for warmup and for the heads alone, when it
starts from weights"""


@dataclass(frozen=True)
class TrainConfig:
    """Training hyperparameters: length, batch, optimizer and learning-rate schedule."""

    epochs: PositiveInt = 100
    """passes over the source; replaced by --steps or --budget"""
    batch: PositiveInt = 256
    """images per step, over all processes"""
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """optimizer"""
    lr: NonNegativeFloat = 1e-3
    """peak learning rate"""
    lr_start: NonNegativeFloat = 0.0
    """learning rate at the start of the warmup"""
    lr_end: NonNegativeFloat = 0.0
    """learning rate at the end of the cosine schedule"""
    bias_lr_scale: NonNegativeFloat = 1.0
    """learning-rate factor of biases and normalization gains (2 in Caffe's networks)"""
    momentum: FractionBelowOne = 0.9
    """momentum of sgd and lars"""
    nesterov: bool = False
    """Nesterov momentum for sgd and lars"""
    encoder_lr_scale: PositiveFloat = 1.0
    """learning-rate factor of the encoder; heads have 1"""
    layer_decay: PositiveFraction = 1.0
    """learning-rate factor from each layer of the encoder to the one before it; 1: all layers have the same rate"""
    head_first: UnitInterval = 0.0
    """fraction of the run, at its start, in which only the heads are trained (LP-FT, arXiv:2202.10054)"""
    freeze: NonNegativeInt = 0
    """stages of the encoder, of four, that are not trained, from the input on"""
    freeze_norms: bool = False
    """keep the statistics, gains and biases of the encoder's batch norms as they are"""
    lora: NonNegativeInt = 0
    """rank of low-rank adapters in a transformer's attention, the only part of the encoder that is then trained
    (LoRA, arXiv:2106.09685); 0: none"""
    pull: NonNegativeFloat = 0.0
    """pull of the encoder toward its initial weights, decoupled like AdamW's weight decay (L2-SP, arXiv:1802.01483); 0: none"""
    weight_decay: NonNegativeFloat = 0.05
    """weight decay of weight matrices"""
    weight_decay_end: NonNegativeFloat | None = None
    """final weight decay, reached along half a cosine; none: constant"""
    decay_all: bool = False
    """also decay biases and gains; with lars, parameters that decay also get the layer-wise step size"""
    warmup: UnitInterval = 0.05
    """fraction of a cycle used for linear warmup"""
    milestones: tuple[UnitInterval, ...] = ()
    """fractions of a cycle at which the learning rate is multiplied by `gamma`; none: half a cosine to `lr_end`"""
    gamma: NonNegativeFloat | tuple[NonNegativeFloat, ...] = 0.1
    """learning-rate factor at every milestone, or one factor per milestone"""
    undo_milestones: tuple[UnitInterval, ...] = ()
    """fractions of a cycle at which the last multiplication by `gamma` is undone"""
    clip: NonNegativeFloat = 0.0
    """maximum gradient norm; 0: no clipping"""
    cycles: PositiveInt = 1
    """number of times the learning-rate schedule runs, one after the other"""


def continued(train: TrainConfig) -> TrainConfig:
    """The recipe for continuing from given weights instead of random ones (`--init`): new heads are trained first, then the
    encoder, which moves less, its first layers least, with the batch norms of the weights."""
    return replace(
        train,
        freeze_norms=True,
        encoder_lr_scale=min(train.encoder_lr_scale, CONTINUED_LR),
        layer_decay=min(train.layer_decay, CONTINUED_DECAY),
        warmup=max(train.warmup, CONTINUED_WARMUP),
        head_first=max(train.head_first, CONTINUED_HEAD_FIRST),
    )


def lr_factor(train: TrainConfig, fraction: float) -> float:
    """Learning rate at `fraction` of the run, relative to the peak; the same schedule in every cycle."""
    f = fraction * train.cycles % 1.0
    if f < train.warmup:
        return lerp(ratio(train.lr_start, train.lr), 1.0, f / train.warmup)
    if train.milestones:
        drops = sum(f >= at for at in train.milestones) - sum(f >= at for at in train.undo_milestones)
        return train.gamma**drops if isinstance(train.gamma, int | float) else math.prod(train.gamma[:drops])
    return lerp(1.0, ratio(train.lr_end, train.lr), half_cosine((f - train.warmup) / (1 - train.warmup)))


def weight_decay_factor(train: TrainConfig, fraction: float) -> float:
    """Weight decay at `fraction` of the run, relative to the initial one."""
    if train.weight_decay_end is None:
        return 1.0
    return lerp(1.0, ratio(train.weight_decay_end, train.weight_decay), half_cosine(fraction))


def lerp(start: float, end: float, weight: float) -> float:
    return start + (end - start) * weight


def ratio(end: float, peak: float) -> float:
    """end / peak, or 0 if the peak is 0."""
    return end / peak if peak else 0.0


def half_cosine(fraction: float) -> float:
    """From 0 to 1 along half a cosine."""
    return (1 - math.cos(math.pi * fraction)) / 2


@dataclass(frozen=True)
class RunConfig:
    """What a run trains on, for how long, on which hardware, and where it writes."""

    data: str
    """a folder of images, a .npz, .parquet or .tar file, hf:NAME, or a torchvision name such as cifar10"""
    out: Path | None = None
    """folder of the run, which must not exist (default: runs/METHOD-DATA-sSEED)"""
    encoder: str | None = None
    """a timm model or a classic network; timm arguments follow a colon: vit_tiny_patch16_224:patch_size=4"""
    size: PositiveInt | None = None
    """image side in pixels (default: as stored in arrays; for folders, from the files, 160 at most)"""
    steps: PositiveInt | None = None
    """length of the run in steps, instead of --epochs"""
    budget: str | None = None
    """length of the run in time, such as 90s, 10m or 2h, from start to report; runs as many steps as fit"""
    plan: Path | None = None
    """a run whose plan of steps is replayed, instead of --steps, --budget and --epochs"""
    fraction: PositiveFraction = 1.0
    """fraction of the images to train on, drawn at random by the seed"""
    seed: Seed = 0
    """random seed of weights, data order and puzzles"""
    init: str | None = None
    """weights to start from: a run, timm:NAME, ARCH@FILE, or a folder of timm or transformers; a FILE alone with --encoder"""
    init_partial: bool = False
    """accept weights that lack some of the encoder's tensors, which then keep their random values"""
    mean: tuple[UnitInterval, ...] | None = None
    """mean of the input, from 0 to 1, one value or one per channel (default: that of the weights, or of the architecture)"""
    std: tuple[PositiveFloat, ...] | None = None
    """standard deviation of the input, likewise"""
    monitor: str | None = None
    """labeled images for an online kNN score; training never sees them"""
    workers: PositiveInt | None = None
    """number of processes that decode images (default: one fewer than cores, 8 at most)"""
    devices: PositiveInt | Literal["auto"] = "auto"
    """number of training processes on this machine: one per GPU, or 1 on a CPU"""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """with several processes, each holds the whole network (ddp) or a shard of it (fsdp)"""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """hardware to train on"""
    precision: Literal["auto", "bf16-mixed", "32-true"] = "auto"
    """number format; auto: bf16 where the hardware supports it natively"""
    reading: Reading = DEFAULT_READING


@dataclass(frozen=True)
class InputConfig:
    """The input of published weights; runs have their own."""

    size: PositiveInt | None = None
    """image side in pixels, for published weights (default: the side that they were trained at; a run has its own)"""
    mean: tuple[UnitInterval, ...] | None = None
    """mean of the input, from 0 to 1, one value or one per channel, for published weights (default: the architecture's)"""
    std: tuple[PositiveFloat, ...] | None = None
    """standard deviation of the input, likewise"""


DEFAULT_INPUT = InputConfig()


@dataclass(frozen=True)
class ReadoutConfig:
    """Which features of an encoder are used."""

    stage: str = "pool"
    """stage of the encoder whose features are used, such as stage2; best: the one that scored best in `pretask evaluate`"""
    grid: PositiveInt | None = None
    """side of the grid that the stage's map is averaged to; 1: one mean per channel (default: the finest grid with 4,096 values, as in
    `pretask evaluate`)"""


DEFAULT_READOUT = ReadoutConfig()


@dataclass(frozen=True)
class Changes:
    """What a resumed run may change; everything else keeps the run's own settings."""

    steps: PositiveInt | None = None
    """total length in steps, including those already done; replaces the planned length"""
    budget: str | None = None
    """training time from now on, such as 90s, 10m or 2h; replaces the planned length"""
    devices: PositiveInt | Literal["auto"] = "auto"
    """processes to continue with"""
    data: str | None = None
    """new path of the training images, if they were moved; they must be the same images"""
    monitor: str | None = None
    """new path of the labeled images of --monitor"""
    root: Path | None = None
    """new folder of torchvision datasets"""


UNCHANGED = Changes()
