"""What a method is: a puzzle made from images, and the loss of solving it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from pretask import encoders
from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.types import Batch, Loss, Progress, Source

P = TypeVar("P")


@dataclass(frozen=True)
class MethodConfig:
    """Knobs of one method, with the recipe it is trained by. `build` is the way to a module."""

    encoder: ClassVar[str] = "resnet18"
    sees: ClassVar[str] = ""
    """what of an image any encoder gets, by a name of encoders.SEES; "": all of it"""
    train: ClassVar[TrainConfig] = TrainConfig()
    needs: ClassVar[frozenset[str]] = frozenset()
    """names that the method reads from Batch.aux"""

    def spec(self, encoder: str | None = None) -> str:
        """The encoder to build: `encoder`, or the recipe's, that sees what it may."""
        return encoders.seeing(encoder or self.encoder, self.sees)

    def draw(self, encoder: str, source: Source) -> Encoder:
        """The network of that name with its first weights; they are drawn here where the paper says how."""
        return encoders.build(encoder, source.channels, source.size)

    def build(self, encoder: Encoder, source: Source) -> "Method[Any]":
        """The method, untrained, on `encoder`, whose weights stay what they are: teachers are copies of it.

        `source` tells its length and image size, no more.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Gallery:
    """Pictures for the report: columns by name, each (B, 1 or 3, H, W), a row for each image."""

    title: str
    about: str
    columns: Mapping[str, Tensor]


class Method(nn.Module, ABC, Generic[P]):
    """A pretext task and its solver.

    Required:  `pretext` makes the puzzle, `loss` scores the solver, `export` names what is kept.
    Optional:  `solve`, `compared`, `meanings`, `gallery`, `begin`, `begin_epoch`, `after_step`, `groups`, `optimizers`.

    Whatever a method remembers between steps is a buffer or a parameter: then it is saved, and a resumed run
    continues exactly. P is a frozen dataclass of tensors whose rows are samples; `preview` draws its images
    (B, 1 or 3, H, W) and prints its numbers (B,) below them.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """names this method reads from Batch.aux; checked before the first step"""
    partial: ClassVar[bool] = False
    """some steps leave some parameters without gradient (greedy stages)"""
    terminal: ClassVar[bool] = False
    """what the last epoch does cannot be taken back (clusters that are merged), so a finished run is not made longer"""
    turns: int = 1
    """parts that learn one after another, each for an equal share of the run; their steps may take unlike times"""
    linkage: Mapping[str, Any] = MappingProxyType({})
    """how `pretask cluster` merges images, by arguments of `agglomeration.cluster`; none: as by any other features"""

    @abstractmethod
    def pretext(self, batch: Batch, rng: Rng) -> P:
        """The puzzle of one step: a function of batch, rng and buffers; computed without gradient."""

    @abstractmethod
    def loss(self, pretext: P) -> Loss:
        """Score the solver. Reads buffers, never writes them: what to write goes into `carry`."""

    @abstractmethod
    def export(self) -> Encoder:
        """The network that evaluation sees."""

    @torch.no_grad()
    def puzzle(self, batch: Batch, *keys: int | str) -> P:
        """Of a batch from anywhere: the puzzle on the method's own device, by the draws of these keys."""
        device = next(self.parameters()).device
        return self.pretext(batch.only(self.needs).to(device), Rng(*keys, device=device))

    def solve(self, pretext: P) -> Mapping[str, Tensor]:
        """The solver's own answers, under the names of the puzzle's fields: (B,) numbers or (B, C, H, W) images."""
        return {}

    def compared(self, pool: Tensor) -> Tensor:
        """Pooled features (N, D) -> vectors of length 1 by which images are alike or not, where they are clustered."""
        return F.normalize(pool.float(), dim=1)

    def meanings(self) -> Mapping[str, Sequence[str]]:
        """For people: what the numbers in some fields of the puzzle stand for, from 0 on."""
        return {}

    def gallery(self, image: Tensor, rng: Rng) -> Gallery | None:
        """For people: what else the trained method makes of images (B, C, H, W) in [0, 1], beside its puzzles."""

    def begin(self, context: Context) -> None:
        """Once, before the first epoch: fit topics, choose seeds, fill a memory bank."""

    def begin_epoch(self, context: Context) -> Tensor | None:
        """Before each epoch: cluster, advance a curriculum. May return (N,) sampling weights; may raise Finished."""

    def after_step(self, carry: Any, progress: Progress) -> None:
        """After the optimiser's step: move a teacher, write a memory bank, follow a schedule.

        Where processes share out the weights (`--strategy fsdp`), each has its part of them here: enough for what
        is done weight by weight, such as a moving average. Everywhere else the weights are whole.
        """

    def groups(self) -> Iterable[dict[str, Any]]:
        """Optimizer groups: matrices, then gains and biases ("vectors"), which decay where the recipe says so.

        "lr_scale" and "decay_scale" are factors of a group's own, or it has its "weight_decay". The learning rate of a "steady" group never falls; one
        with "after" stands still up to that fraction of the run.
        """
        trained = [p for p in self.parameters() if p.requires_grad]
        yield {"params": [p for p in trained if p.ndim > 1]}
        yield {"params": [p for p in trained if p.ndim <= 1], "vectors": True}

    def optimizers(self, train: TrainConfig) -> list[Optimizer]:
        """One, unless two players learn by different rules; all of them step after one backward."""
        from timm.optim._optim_factory import (
            create_optimizer_v2,  # longer to import than torch; only training needs it
        )

        groups = [ruled(group, train) for group in self.groups() if group["params"]]
        kind = {"sgd": ("momentum", "nesterov"), "lars": ("lars", "nlars"), "adamw": ("adamw", "adamw")}
        rule: dict[str, Any] = {"fused": True} if train.optimizer == "adamw" else {"momentum": train.momentum}
        return [create_optimizer_v2(groups, opt=kind[train.optimizer][train.nesterov], lr=train.lr, **rule)]

    def forward(self, pretext: P) -> Loss:
        return self.loss(pretext)


def ruled(group: dict[str, Any], train: TrainConfig) -> dict[str, Any]:
    """A group with its learning rate and weight decay."""
    vectors = group.get("vectors", False)
    lr_scale = group.get("lr_scale", train.vector_lr if vectors else 1.0)
    decay_scale = group.get("decay_scale", float(train.decay_all) if vectors else 1.0)
    return {"lr": lr_scale * train.lr, "weight_decay": decay_scale * train.weight_decay} | group
