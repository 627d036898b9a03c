"""The contract that every method must satisfy on any images. The tests run it on synthetic images, `pretask check` on yours.

Each check is a function of a Case, and its docstring is the sentence it checks. It raises Violation if the sentence is
false. These checks do not notice answers attached to the wrong images, so each method also needs an undo test.
"""

import contextlib
import copy
import dataclasses
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretask import encoders
from pretask.config import TrainConfig
from pretask.data import loader
from pretask.encoders import saved
from pretask.methods import Method, MethodConfig
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.runtime.lightning import Fabric
from pretask.train.logger import RunLogger
from pretask.train.monitor import feature_stats
from pretask.train.plan import Plan
from pretask.train.trainer import Trainer
from pretask.transforms import augment
from pretask.types import Batch, Loss, Source

STEPS = 60
"""number of updates in which a method must overfit one batch"""


class Violation(Exception):
    """A sentence of the contract is false; the message says what was observed."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Violation(message)


@dataclass
class Case:
    """One method on one source. `fresh` builds the method with the same initial weights each time."""

    config: MethodConfig
    source: Source
    encoder: str
    batch: Batch

    @classmethod
    def of(cls, config: MethodConfig, source: Source, encoder: str | None = None, batch: int = 16) -> "Case":
        return cls(config, source, config.spec(encoder), loader.sample(source, batch))

    @property
    def train(self) -> TrainConfig:
        return dataclasses.replace(self.config.train, batch=len(self.batch))

    def fresh(self) -> Method[Any]:
        torch.manual_seed(0)
        return self.config.build(self.config.build_encoder(self.encoder, self.source), self.source).train()

    def started(self, cycle: int = 0) -> Method[Any]:
        """A fresh method, ready for the first epoch of a cycle."""
        method, cycles = self.fresh(), self.train.cycles
        plan = Plan.of(2 * cycles * max(1, len(self.source) // len(self.batch)), 1, cycles)
        at = plan.at(cycle * plan.steps // cycles)
        context = Context(self.source, method.optimizers(self.train), at, Rng(0, "begin"))
        method.begin(context)
        method.begin_epoch(context)
        return method

    def puzzle(self, method: Method[Any], seed: int = 1, batch: Batch | None = None) -> Any:
        with torch.no_grad():
            return method.pretext(batch or self.batch, Rng(seed))


def tensors(puzzle: Any) -> list[Tensor]:
    values = [getattr(puzzle, f.name) for f in dataclasses.fields(puzzle)]
    return [v for v in values if isinstance(v, Tensor)]


def saved_state(method: Method[Any]) -> dict[str, Tensor]:
    """All saved state except the running statistics of batch norms, which every forward pass in training mode changes."""
    state = method.state_dict()
    return {k: v.clone() for k, v in state.items() if "running_" not in k and "num_batches" not in k}


# ---- the checks


def puzzle_is_pure(case: Case) -> None:
    """The puzzle is a function of the images and the rng."""
    method = case.started()
    before = torch.get_rng_state()
    same, again, other = (tensors(case.puzzle(method, seed)) for seed in (1, 1, 2))
    require(
        all(map(torch.equal, same, again)),
        "the same rng gave different puzzles; draw only from the rng passed to pretext",
    )
    require(
        not all(map(torch.equal, same, other)), "different rngs gave the same puzzle; nothing in it is random"
    )
    require(torch.equal(before, torch.get_rng_state()), "pretext used torch's global random generator")
    require(not any(t.requires_grad for t in same), "the puzzle requires a gradient")


def puzzle_is_the_same_in_two_processes(case: Case) -> None:
    """Two processes make the same puzzles as one process."""
    method, half = case.started(), len(case.batch) // 2
    with torch.no_grad():
        whole = tensors(method.pretext(case.batch.rows(slice(0, 2 * half)), Rng(1)))
        parts = [
            tensors(method.pretext(case.batch.rows(slice(r * half, (r + 1) * half)), Rng(1, shard=(r, 2))))
            for r in (0, 1)
        ]
    for together, first, second in zip(whole, *parts, strict=True):
        joined = torch.cat([first, second]) if first.ndim else first
        close = joined.shape == together.shape and torch.allclose(joined.float(), together.float(), atol=1e-5)
        require(
            close,
            "two halves of a batch got other puzzles than the whole batch; draw with the batch as first dimension, or from rng.unsharded",
        )


def loss_writes_nothing(case: Case) -> None:
    """The loss does not change any buffer."""
    method = case.started()
    puzzle, before = case.puzzle(method), saved_state(method)
    first, second = (with_same_dropout(method.loss, puzzle).total for _ in range(2))
    require(first.shape == (), f"the loss has shape {tuple(first.shape)}, not ()")
    require(torch.allclose(first, second), f"the loss of the same puzzle was {first:.6f}, then {second:.6f}")
    changed = [k for k, v in saved_state(method).items() if not torch.equal(v, before[k])]
    require(
        not changed,
        f"the loss changed {', '.join(changed)}; return new state in Loss.carry and write it in after_step",
    )


def with_same_dropout(loss: Callable[[Any], Loss], puzzle: Any) -> Loss:
    """The loss with the same dropout in every call; the training loop also seeds each step."""
    torch.manual_seed(0)
    return loss(puzzle)


def parameters_learn(case: Case) -> None:
    """Every trained parameter gets a gradient at some point in the run."""
    alive: set[str] = set()
    for cycle in range(case.train.cycles):
        method = case.started(cycle)
        for seed in (1, 2):
            method.loss(case.puzzle(method, seed)).total.backward()
        alive |= {n for n, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    dead = [n for n, p in case.fresh().named_parameters() if p.requires_grad and n not in alive]
    require(not dead, f"no gradient reaches {', '.join(dead[:4])}{' …' if len(dead) > 4 else ''}")


def one_batch_can_be_overfitted(case: Case) -> None:
    """One batch can be overfitted."""
    method = case.started()
    puzzle = case.puzzle(method)
    optimizer = torch.optim.AdamW(method.groups(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        loss = method.loss(puzzle)
        losses.append(loss.total.item())
        if losses[-1] < 0.5 * losses[0]:
            break
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    require(all(map(math.isfinite, losses)), "the loss is not finite")
    require(
        losses[-1] < 0.95 * losses[0],
        f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f} in {STEPS} updates",
    )


def blank_images_give_no_answer(case: Case) -> None:
    """On blank images the answer cannot be predicted."""
    method = case.started()
    blank = dataclasses.replace(case.batch, image=torch.full_like(case.batch.image, 128))
    optimizer = torch.optim.AdamW(method.groups(), lr=3e-3)
    for step in range(STEPS // 2):
        loss = method.loss(case.puzzle(method, step, blank))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    puzzle = case.puzzle(method, STEPS, blank)
    with torch.no_grad():
        predicted = method.predict(puzzle)
    for name, answer in predicted.items():
        truth = getattr(puzzle, name)
        if truth.ndim <= 2 and not truth.is_floating_point():
            common = truth.flatten().bincount().max() / truth.numel()
            right = (answer == truth).float().mean()
            require(
                bool(right <= common + 0.2),
                f"{name} was predicted correctly for {right:.0%} of blank images; chance is {common:.0%}",
            )


def features_differ(case: Case) -> None:
    """The features of different images differ after a few steps."""
    before = case.fresh().export()
    with tempfile.TemporaryDirectory() as folder:
        after = trained(case, Path(folder), steps=8).export()
    image = augment.to_float(case.batch.image)
    with torch.no_grad():
        first, now = (feature_stats(e.eval()(image)["pool"]) for e in (before, after))
    require(math.isfinite(now.relative_variance), "the features are not finite after 8 steps")
    left = now.relative_variance / max(first.relative_variance, 1e-12)
    require(left > 0.01, f"{left:.2%} of the untrained features' variance is left after 8 steps: collapse")


def export_survives_the_disk(case: Case) -> None:
    """The exported encoder gives the same features after saving and loading."""
    encoder = case.started().export().eval()
    image = augment.to_float(case.batch.image)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        saved.save_encoder(encoder, Path(folder))
        again = encoders.build(case.encoder, case.source.channels, case.source.size).eval()
        saved.load_encoder_weights(again, Path(folder))
        one, other = encoder(image), again(image)
    require(
        list(one)[-1] == "pool" and one["pool"].ndim == 2,
        f"its last stage is {list(one)[-1]}, expected pool with shape (B, D)",
    )
    same = all(torch.equal(one[stage], other[stage]) for stage in one)
    require(same, "its features changed")


def resume_is_exact(case: Case) -> None:
    """An interrupted and resumed run ends with the weights of an uninterrupted one."""
    steps = max(6, 2 * case.train.cycles)
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts:
        expected = trained(case, Path(whole), steps).state_dict()
        trained(case, Path(parts), steps, stop=steps // 2 + 1)
        resumed = trained(case, Path(parts), steps).state_dict()
    other = [k for k, v in expected.items() if not torch.equal(v, resumed[k])]
    require(
        not other,
        f"{', '.join(other[:4])}{' …' if len(other) > 4 else ''} differ; keep all state in buffers",
    )


def trained(case: Case, folder: Path, steps: int, stop: int | None = None) -> Method[Any]:
    """The method after `steps` steps of its recipe, or interrupted before step `stop`."""

    class Interrupted(Exception):
        pass

    def interrupt(row: Any) -> None:
        if stop is not None and row["step"] + 1 == stop:
            trainer.save(stop)
            raise Interrupted

    fabric = Fabric(accelerator="cpu", devices=1)
    method = case.fresh()
    trainer = Trainer(fabric, method, case.source, case.train, folder, workers=1)
    plan = Plan.of(steps, trainer.per_pass, case.train.cycles)
    with contextlib.suppress(Interrupted):
        trainer.fit(plan, RunLogger(folder, case.train.batch, True, None, interrupt))
    return method


CHECKS: list[Callable[[Case], None]] = [
    puzzle_is_pure,
    puzzle_is_the_same_in_two_processes,
    loss_writes_nothing,
    parameters_learn,
    one_batch_can_be_overfitted,
    blank_images_give_no_answer,
    features_differ,
    export_survives_the_disk,
    resume_is_exact,
]


def run_check(check: Callable[[Case], None], case: Case) -> str | None:
    """None if the check passes, otherwise what was observed."""
    try:
        check(copy.copy(case))
    except Violation as found:
        return str(found)
    return None
