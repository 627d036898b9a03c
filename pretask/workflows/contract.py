"""What must hold for every method, on any images: run by the tests on made-up ones, by `pretask check` on yours.

Each check is a function of a Case whose docstring is the sentence it proves; it raises Broken where it does not.
Answers attached to the wrong images pass all of these: each method owes an undo test of its own.
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
from lightning_fabric import Fabric
from torch import Tensor

from pretask import encoders
from pretask.config import TrainConfig
from pretask.data import loader
from pretask.methods import Method, MethodConfig
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.train import weights
from pretask.train.logger import RunLogger
from pretask.train.monitor import feature_stats
from pretask.train.plan import Plan
from pretask.train.trainer import Trainer
from pretask.transforms import augment
from pretask.types import Batch, Loss, Source

STEPS = 60
"""updates that a solver gets to learn one batch by heart"""


class Broken(Exception):
    """A sentence of the contract does not hold; says how it was seen."""


def holds(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Broken(otherwise)


@dataclass
class Case:
    """One method on one source: everything a check may use. `fresh` builds the same method anew."""

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

    def begun(self, place: int = 0) -> Method[Any]:
        """A fresh method, ready for the first epoch of round `place`."""
        method, cycles = self.fresh(), self.train.cycles
        plan = Plan.of(2 * cycles * max(1, len(self.source) // len(self.batch)), 1, cycles)
        at = plan.at(place * plan.steps // cycles)
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


def remembered(method: Method[Any]) -> dict[str, Tensor]:
    """Everything saved but the running statistics of batch norms, which any forward pass in training moves."""
    state = method.state_dict()
    return {k: v.clone() for k, v in state.items() if "running_" not in k and "num_batches" not in k}


# ---- the sentences


def puzzle_is_pure(case: Case) -> None:
    """The puzzle is a function of images and rng."""
    method = case.begun()
    before = torch.get_rng_state()
    same, again, other = (tensors(case.puzzle(method, seed)) for seed in (1, 1, 2))
    holds(
        all(map(torch.equal, same, again)),
        "the same rng gave another puzzle; draw from the rng you are given",
    )
    holds(not all(map(torch.equal, same, other)), "another rng gave the same puzzle; nothing in it is random")
    holds(torch.equal(before, torch.get_rng_state()), "it drew from torch's global generator")
    holds(not any(t.requires_grad for t in same), "the puzzle carries a gradient")


def puzzle_is_shared(case: Case) -> None:
    """Two processes make the puzzles that one would make."""
    method, half = case.begun(), len(case.batch) // 2
    with torch.no_grad():
        whole = tensors(method.pretext(case.batch.rows(slice(0, 2 * half)), Rng(1)))
        parts = [
            tensors(method.pretext(case.batch.rows(slice(r * half, (r + 1) * half)), Rng(1, shard=(r, 2))))
            for r in (0, 1)
        ]
    for together, first, second in zip(whole, *parts, strict=True):
        joined = torch.cat([first, second]) if first.ndim else first
        close = joined.shape == together.shape and torch.allclose(joined.float(), together.float(), atol=1e-5)
        holds(
            close,
            "halves of a batch got other puzzles; draw with the batch as first dimension, or rng.unsharded",
        )


def loss_writes_nothing(case: Case) -> None:
    """The loss reads buffers and writes none."""
    method = case.begun()
    puzzle, before = case.puzzle(method), remembered(method)
    first, second = (at_same_chance(method.loss, puzzle).total for _ in range(2))
    holds(first.shape == (), f"the loss has shape {tuple(first.shape)}, not ()")
    holds(torch.allclose(first, second), f"the same puzzle cost {first:.6f}, then {second:.6f}")
    changed = [k for k, v in remembered(method).items() if not torch.equal(v, before[k])]
    holds(not changed, f"it wrote {', '.join(changed)}; put what is to be remembered into Loss.carry")


def at_same_chance(loss: Callable[[Any], Loss], puzzle: Any) -> Loss:
    """The loss with the dropout that it had the last time, as the loop seeds each step."""
    torch.manual_seed(0)
    return loss(puzzle)


def parameters_learn(case: Case) -> None:
    """Every trained parameter gets a gradient at some time of the run."""
    alive: set[str] = set()
    for place in range(case.train.cycles):
        method = case.begun(place)
        for seed in (1, 2):
            method.loss(case.puzzle(method, seed)).total.backward()
        alive |= {n for n, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    dead = [n for n, p in case.fresh().named_parameters() if p.requires_grad and n not in alive]
    holds(not dead, f"no gradient reaches {', '.join(dead[:4])}{' …' if len(dead) > 4 else ''}")


def one_batch_is_learnt(case: Case) -> None:
    """One batch can be learnt by heart."""
    method = case.begun()
    puzzle = case.puzzle(method)
    optimizer = torch.optim.AdamW(method.groups(), lr=3e-3, weight_decay=0.0)
    costs = []
    for _ in range(STEPS):
        loss = method.loss(puzzle)
        costs.append(loss.total.item())
        if costs[-1] < 0.5 * costs[0]:
            break
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    holds(all(map(math.isfinite, costs)), "the loss is not finite")
    holds(
        costs[-1] < 0.95 * costs[0],
        f"the loss went from {costs[0]:.4f} to {costs[-1]:.4f} in {STEPS} updates",
    )


def gray_gives_no_clue(case: Case) -> None:
    """On images that show nothing, the answer cannot be known."""
    method = case.begun()
    nothing = dataclasses.replace(case.batch, image=torch.full_like(case.batch.image, 128))
    optimizer = torch.optim.AdamW(method.groups(), lr=3e-3)
    for step in range(STEPS // 2):
        loss = method.loss(case.puzzle(method, step, nothing))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    puzzle = case.puzzle(method, STEPS, nothing)
    with torch.no_grad():
        solved = method.predict(puzzle)
    for name, answer in solved.items():
        truth = getattr(puzzle, name)
        if truth.ndim <= 2 and not truth.is_floating_point():
            common = truth.flatten().bincount().max() / truth.numel()
            right = (answer == truth).float().mean()
            holds(
                bool(right <= common + 0.2),
                f"{name} was right in {right:.0%} of the cases without an image; chance is {common:.0%}",
            )


def features_differ(case: Case) -> None:
    """The features of different images differ after a few steps."""
    before = case.fresh().export()
    with tempfile.TemporaryDirectory() as folder:
        after = trained(case, Path(folder), steps=8).export()
    image = augment.to_float(case.batch.image)
    with torch.no_grad():
        first, now = (feature_stats(e.eval()(image)["pool"]) for e in (before, after))
    holds(math.isfinite(now.relative_variance), "the features are not finite after 8 steps")
    left = now.relative_variance / max(first.relative_variance, 1e-12)
    holds(left > 0.01, f"{left:.2%} of the untrained features' variance is left after 8 steps: collapse")


def export_survives_the_disk(case: Case) -> None:
    """The exported encoder gives the same features after it was saved and loaded."""
    encoder = case.begun().export().eval()
    image = augment.to_float(case.batch.image)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        weights.save_encoder(encoder, Path(folder))
        again = encoders.build(case.encoder, case.source.channels, case.source.size).eval()
        weights.load_encoder_weights(again, Path(folder))
        one, other = encoder(image), again(image)
    holds(
        list(one)[-1] == "pool" and one["pool"].ndim == 2,
        f"its last stage is {list(one)[-1]}, not rows of pool",
    )
    same = all(torch.equal(one[stage], other[stage]) for stage in one)
    holds(same, "its features changed on the way")


def resume_is_exact(case: Case) -> None:
    """A run that was cut off and resumed ends with the weights of an uninterrupted one."""
    steps = max(6, 2 * case.train.cycles)
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts:
        expected = trained(case, Path(whole), steps).state_dict()
        trained(case, Path(parts), steps, stop=steps // 2 + 1)
        resumed = trained(case, Path(parts), steps).state_dict()
    other = [k for k, v in expected.items() if not torch.equal(v, resumed[k])]
    holds(
        not other,
        f"{', '.join(other[:4])}{' …' if len(other) > 4 else ''} differ; what is remembered must be a buffer",
    )


def trained(case: Case, folder: Path, steps: int, stop: int | None = None) -> Method[Any]:
    """The case's method after `steps` steps of its own recipe, or cut off in front of step `stop`."""

    class Cut(Exception):
        pass

    def cut(row: Any) -> None:
        if stop is not None and row["step"] + 1 == stop:
            trainer.save(stop)
            raise Cut

    fabric = Fabric(accelerator="cpu", devices=1)
    method = case.fresh()
    trainer = Trainer(fabric, method, case.source, case.train, folder, workers=1)
    plan = Plan.of(steps, trainer.per_pass, case.train.cycles)
    with contextlib.suppress(Cut):
        trainer.fit(plan, RunLogger(folder, case.train.batch, True, None, cut))
    return method


CHECKS: list[Callable[[Case], None]] = [
    puzzle_is_pure,
    puzzle_is_shared,
    loss_writes_nothing,
    parameters_learn,
    one_batch_is_learnt,
    gray_gives_no_clue,
    features_differ,
    export_survives_the_disk,
    resume_is_exact,
]


def outcome(check: Callable[[Case], None], case: Case) -> str | None:
    """None if the sentence holds, else how it was seen to fail."""
    try:
        check(copy.copy(case))
    except Broken as seen:
        return str(seen)
    return None
