"""The contract of a method: a pretext task made from images, and the loss on it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from pretask import encoders
from pretask.config import TrainConfig, continued
from pretask.encoders import Encoder
from pretask.encoders.layers import depth_scales, trained_encoder
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.types import Batch, Loss, Progress, Source
from pretask.viz.puzzle import Puzzle, generic_puzzles

P = TypeVar("P")


class Minimum(NamedTuple):
    """The smallest value that a method accepts, and what else the user can do if theirs is too small."""

    value: int
    hint: str = ""


@dataclass(frozen=True)
class MethodConfig:
    """Hyperparameters of a method and the recipe that trains it; `build` makes the module."""

    family: ClassVar[str] = "your own"
    """group of methods in `pretask list` and on the site"""
    encoder: ClassVar[str] = "resnet18"
    sees: ClassVar[str] = ""
    """what part of an image the encoder gets, a key of encoders.SEES; "": the whole image"""
    train: ClassVar[TrainConfig] = TrainConfig()
    continues: ClassVar[bool] = False
    """whether the recipe is for continuing from weights, so that `--init` does not change it and is required"""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Batch.aux fields that the method reads"""

    def resolved(self) -> Self:
        """The config with absolute paths. Raises UserError, before images are opened, for settings that cannot work."""
        return self

    def for_continuing(self) -> Self:
        """The config with the hyperparameters that suit continuing from given weights, where they differ."""
        return self

    def train_for_continuing(self) -> TrainConfig:
        """The training recipe for continuing from given weights."""
        return self.train if self.continues else continued(self.train)

    def open_teacher(self, source: Source) -> Encoder | None:
        """The frozen encoder that the method learns from, as a row of the scores; None: it learns from none. Raises UserError."""

    def spec(self, encoder: str | None = None) -> str:
        """The encoder spec to build, with the input restriction of `sees`: `encoder`, or the recipe's own."""
        return encoders.with_sees(encoder or self.encoder, self.sees)

    def build_encoder(self, encoder: str, source: Source) -> Encoder:
        """The encoder with its initial weights; overridden where the paper has its own initialization."""
        return encoders.build(encoder, source.channels, source.size)

    def smallest_side(self, encoder: Encoder) -> Minimum:
        """Smallest image side in pixels. The encoder's own minimum is checked before."""
        return Minimum(1)

    def fewest_images(self) -> Minimum:
        """Fewest images to train on; at least one batch is needed in any case."""
        return Minimum(1)

    def most_images(self) -> int | None:
        """Most images to train on; of more, a random part is used. None: any number."""

    def smallest_batch(self) -> Minimum:
        """Smallest batch over all processes: 2 or more for contrastive losses and batch statistics."""
        return Minimum(1)

    def build(self, encoder: Encoder, source: Source) -> "Method[Any]":
        """The untrained method on `encoder`, whose weights stay as they are; a teacher is a copy of it.

        Only the length and the image size of `source` may be read.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Gallery:
    """Pictures for the report: named columns, each (B, 1 or 3, H, W), with one row per image."""

    title: str
    about: str
    columns: Mapping[str, Tensor]


class Method(nn.Module, ABC, Generic[P]):
    """A pretext task and the network that learns it.

    Required:  `pretext` makes the puzzle, `loss` scores the network on it, `export` returns the encoder.
    Optional:  `predict`, `show`, `cluster_embedding`, `topic_head`, `answer_names`, `gallery`, `begin`, `begin_epoch`,
               `after_step`, `groups`, `optimizers`.

    Everything that a method remembers between steps is a buffer or a parameter: it is then saved, and a
    resumed run continues exactly. P is a frozen dataclass of tensors whose rows are samples; without a `show`,
    `preview` draws its images (B, 1 or 3, H, W) and prints its numbers (B,) below them.
    """

    pretext_task: ClassVar[str] = ""
    """what the field calls it: the title above its pictures; none: the method's name"""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Batch.aux fields that the method reads; checked before the first step"""
    has_unused_params: ClassVar[bool] = False
    """whether some parameters get no gradient in some steps (greedy layer-wise stages)"""
    terminal: ClassVar[bool] = False
    """whether the last epoch cannot be undone (merged clusters), so that a finished run cannot be extended"""
    phases: int = 1
    """training phases in sequence, each an equal fraction of the run; their steps may differ in speed"""
    cluster_options: Mapping[str, Any] = MappingProxyType({})
    """arguments of `agglomerative.cluster` for `pretask cluster`; empty: its defaults"""

    @abstractmethod
    def pretext(self, batch: Batch, rng: Rng) -> P:
        """The puzzle of one step: a function of batch, rng and buffers, computed without gradient."""

    @abstractmethod
    def loss(self, pretext: P) -> Loss:
        """Score the network on the puzzle. Reads buffers, never writes them: `carry` goes to `after_step`."""

    @abstractmethod
    def export(self) -> Encoder:
        """The encoder that evaluation uses."""

    @torch.no_grad()
    def puzzle(self, batch: Batch, *keys: int | str) -> P:
        """The puzzle of a batch from any device, on the method's device, with the random stream of `keys`."""
        device = next(self.parameters()).device
        return self.pretext(batch.only(self.needs).to(device), Rng(*keys, device=device))

    def predict(self, pretext: P) -> Mapping[str, Tensor]:
        """The network's answers, by the puzzle's field names: (B,) numbers or (B, C, H, W) images."""
        return {}

    def show(self, pretext: P, answers: Mapping[str, Tensor], batch: Batch, rng: Rng) -> Iterable[Puzzle]:
        """For display: each puzzle as pictures with a line of text, and what `predict` answered, if given.

        The puzzle was made from `batch` by the draws of `rng`, which starts over here: the same crops of other maps of
        the images, such as `augment.positions`, show where the crops lie.
        """
        return generic_puzzles(pretext, answers, self.answer_names())

    @torch.no_grad()
    def illustrate(self, batch: Batch, *keys: int | str, solved: bool = False) -> list[Puzzle]:
        """The puzzles of a batch, made with the random keys `keys`, for drawing; `solved`: with the network's answers."""
        device = next(self.parameters()).device
        pretext = self.puzzle(batch, *keys)
        answers = self.predict(pretext) if solved else {}
        batch = batch.only(self.needs).to(device)
        return list(self.show(pretext, answers, batch, Rng(*keys, device=device)))

    def cluster_embedding(self, pool: Tensor) -> Tensor:
        """(N, D) pooled features -> unit vectors by whose similarity images are clustered."""
        return F.normalize(pool.float(), dim=1)

    def topic_head(self) -> Callable[[Tensor], Tensor] | None:
        """A map from pooled features (N, D) to logits (N, K) of the run's topics; None if the method learns no topics."""

    def answer_names(self) -> Mapping[str, Sequence[str]]:
        """For display: field of the puzzle -> names of its values 0, 1, …."""
        return {}

    def gallery(self, image: Tensor, rng: Rng) -> Gallery | None:
        """For the report: further outputs of the trained method on images (B, C, H, W) in [0, 1]."""

    def begin(self, context: Context) -> None:
        """Called once, before the first epoch: fit topics, choose seeds, fill a memory bank."""

    def restored(self, context: Context) -> None:
        """Called once, when a run was resumed and its state loaded: compute again what need not be saved."""

    def begin_epoch(self, context: Context) -> Tensor | None:
        """Called before each epoch. May return (N,) sampling weights or raise Finished."""

    def after_step(self, carry: Any, progress: Progress) -> None:
        """Called after the optimizer's step: update a teacher, a memory bank, a schedule.

        With sharded weights (`--strategy fsdp`) each process holds only its shard here, which is enough for
        elementwise updates such as a moving average. In all other hooks the weights are complete.
        """

    def groups(self) -> Iterable[dict[str, Any]]:
        """Parameter groups: matrices, then vectors (gains and biases), which decay only if the recipe says
        so.

        "lr_scale" and "decay_scale" multiply the recipe's values; "weight_decay" replaces its value. The
        learning rate of a "steady" group is never annealed; a group with "after" is frozen up to that
        fraction of the run.
        """
        trained = [p for p in self.parameters() if p.requires_grad]
        yield {"params": [p for p in trained if p.ndim > 1]}
        yield {"params": [p for p in trained if p.ndim <= 1], "vectors": True}

    def optimizers(self, train: TrainConfig) -> list[Optimizer]:
        """One optimizer, or two for two players; all step after one backward pass."""
        from timm.optim._optim_factory import (
            create_optimizer_v2,  # slower to import than torch, and only training needs it
        )

        groups = [with_rates(group, train) for group in self.groups() if group["params"]]
        if (train.encoder_lr_scale, train.layer_decay, train.head_first) != (1.0, 1.0, 0.0):
            groups = by_depth(groups, trained_encoder(self), train)
        kind = {"sgd": ("momentum", "nesterov"), "lars": ("lars", "nlars"), "adamw": ("adamw", "adamw")}
        rule: dict[str, Any] = {"fused": True} if train.optimizer == "adamw" else {"momentum": train.momentum}
        return [create_optimizer_v2(groups, opt=kind[train.optimizer][train.nesterov], lr=train.lr, **rule)]

    def forward(self, pretext: P) -> Loss:
        return self.loss(pretext)


def by_depth(groups: Iterable[dict[str, Any]], encoder: Encoder, train: TrainConfig) -> list[dict[str, Any]]:
    """The groups, with those that hold parameters of the encoder split by layer, each with its own learning rate and start."""
    scales = depth_scales(encoder, train.layer_decay)
    scale = {p: train.encoder_lr_scale * scales[name] for name, p in encoder.net.named_parameters()}
    found: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[tuple[float, bool], list[Tensor]] = {}
        for p in group["params"]:
            parts.setdefault((scale.get(p, 1.0), p in scale), []).append(p)
        for (own, inside), params in parts.items():
            after = {"after": max(train.head_first, group.get("after", 0.0))} if inside else {}
            found.append({**group, "params": params, "lr": group["lr"] * own, **after})
    return sorted(found, key=lambda group: -group["lr"])  # the first one's rate is logged


def with_rates(group: dict[str, Any], train: TrainConfig) -> dict[str, Any]:
    """A parameter group with its learning rate and weight decay."""
    vectors = group.get("vectors", False)
    lr_scale = group.get("lr_scale", 1.0) * (train.bias_lr_scale if vectors else 1.0)
    decay_scale = group.get("decay_scale", float(train.decay_all) if vectors else 1.0)
    return {"lr": lr_scale * train.lr, "weight_decay": decay_scale * train.weight_decay} | group
