"""The training loop, on Lightning Fabric.

All randomness is a function of (seed, step) and all state is in the checkpoint. A run that is killed at any moment and
resumed therefore ends with the same weights, bit for bit on a CPU.
"""

import copy
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from itertools import chain, count
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretask import methods
from pretask.config import TrainConfig, lr_factor, weight_decay_factor
from pretask.data import loader
from pretask.encoders import fast_conv
from pretask.encoders.layers import trained_encoder
from pretask.errors import Stopped
from pretask.methods.base.context import Context, Finished
from pretask.methods.base.method import Method
from pretask.rng import Rng
from pretask.runtime import distributed, files, signals
from pretask.runtime.device import attention_kernel
from pretask.train import checkpoint, continuing
from pretask.train.logger import RunLogger
from pretask.train.pacing import Budget, Pace
from pretask.train.plan import Plan
from pretask.train.requirements import check_norms
from pretask.types import AUX_FIELDS, Batch, Loss, Progress, Source, UserError

if TYPE_CHECKING:
    from pretask.runtime.lightning import Fabric

SAVE_EVERY = 60.0
"""seconds between two checkpoints"""
TIMED = 20
"""maximum number of steps timed for a first estimate of how many fit into a budget"""
TRIED = 3
"""steps timed in each training stage of a method; the fastest counts"""


class FabricModule(nn.Module):
    """The module that Fabric wraps. Fabric traverses arguments and results but rejects frozen dataclasses, hence Opaque."""

    def __init__(self, method: Method[Any]):
        super().__init__()
        self.method = method

    def forward(self, opaque: "Opaque") -> tuple[Tensor, dict[str, Tensor], Any]:
        with attention_kernel():
            loss: Loss = self.method(opaque.pretext)
        return loss.total, dict(loss.parts), loss.carry


class Opaque:
    """Hides a pretext from Fabric."""

    def __init__(self, pretext: Any):
        self.pretext = pretext


class Trainer:
    """A run in progress: method, source, optimizers, and the state needed to resume."""

    def __init__(
        self,
        fabric: "Fabric",
        method: Method[Any],
        source: Source,
        train: TrainConfig,
        folder: Path,
        seed: int = 0,
        workers: int | None = None,
    ):
        check(method, source, train)
        self.fabric, self.method, self.source, self.train = fabric, method, source, train
        self.folder, self.seed, self.workers = folder, seed, workers
        self.ready = False  # whether `method.begin` was called
        self.files: dict[str, bytes] = {}  # files that the method leaves in the run's folder
        self.since, self.spent = (
            time.monotonic(),
            0.0,
        )  # spent: seconds of training before the run was resumed
        self.begun = -1  # last epoch for which `begin_epoch` was called
        self.weights: Tensor | None = None  # (N,) sampling weights of this epoch

        method.to(fabric.device).train()
        fast_conv.accelerate(method)
        if distributed.world() > 1:
            distributed.synchronize_norms(method)
        self.module = FabricModule(method)
        self.fabric_module = fabric.setup_module(self.module)
        self.optimizers: list[Optimizer] = method.optimizers(train)
        for group in (g for o in self.optimizers for g in o.param_groups):
            group |= {"peak": group["lr"], "decay": group["weight_decay"]}
        self.pull = continuing.Pull(trained_encoder(method), train.pull) if train.pull else None
        self.fabric_optimizers: list[Any] = [fabric.setup_optimizers(o) for o in self.optimizers]

    # ---- one step

    def step(self, batch: Batch, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """One training step: pretext, loss, backward, update, `after_step`. Returns the loss and its parts."""
        shard = distributed.rank(), distributed.world()
        rng = Rng(self.seed, "pretext", progress.step, device=self.fabric.device, shard=shard)
        torch.manual_seed(rng.generator.initial_seed() ^ shard[0])  # for dropout and the like
        distributed.unshard(self.module)
        with torch.no_grad():
            pretext = self.method.pretext(batch.only(self.method.needs).to(self.fabric.device), rng)
        total, parts, carry = self.fabric_module(Opaque(pretext))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.fabric.backward(total)
        for optimizer, stepper in zip(self.optimizers, self.fabric_optimizers, strict=True):
            if self.train.clip:
                self.fabric.clip_gradients(self.fabric_module, stepper, max_norm=self.train.clip)
            for group in optimizer.param_groups:
                group["lr"] = group_lr(group, self.train, progress)
                group["weight_decay"] = group["decay"] * weight_decay_factor(self.train, progress.fraction)
            stepper.step()
        if self.pull:
            groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
            self.pull.apply({p: group["lr"] for group in groups for p in group["params"]})
        with torch.no_grad():
            self.method.after_step(distributed.gather_rows(carry), progress)
        return total.detach(), {name: value.detach() for name, value in parts.items()}

    def batches(self, progress: Progress) -> Iterator[Batch]:
        """This process's batches for the rest of an epoch: in random order, or sampled by weight."""
        rng, n = Rng(self.seed, "order", progress.epoch), len(self.source)
        order = rng.permutation(n) if self.weights is None else rng.choice(n, self.weights.cpu())
        order = order[: progress.length * self.train.batch]
        first, shard = progress.step - progress.start, (distributed.rank(), distributed.world())
        return loader.epoch(self.source, order, self.train.batch, first, shard, self.workers)

    def prepare(self, progress: Progress, pace: Pace) -> None:
        """Call the method's `begin_epoch`, unless the checkpoint was saved after that."""
        if self.begun < progress.epoch:
            with pace.preparing(progress), self.summon_full_params():
                self.weights = self.method.begin_epoch(self.context(progress))
            self.begun = progress.epoch

    def publish(self) -> None:
        """Write the method's files into the run's folder."""
        while self.files:
            name, content = self.files.popitem()
            if self.fabric.is_global_zero:
                files.write(self.folder / name, lambda file, content=content: file.write(content))

    def context(self, progress: Progress) -> Context:
        rng = Rng(self.seed, "begin", progress.epoch, device=self.fabric.device)
        return Context(self.source, self.optimizers, progress, rng, self.files)

    def summon_full_params(self) -> AbstractContextManager[None]:
        """Within the block every process holds the full weights, even if they are sharded."""
        return distributed.summon_full_params(self.module)

    # ---- state

    def state(self, step: int) -> dict[str, Any]:
        """Everything needed to resume; all processes must call it together."""
        return {
            "step": step,
            "seconds": self.spent + time.monotonic() - self.since,
            "begun": self.begun,
            "weights": self.weights,
            "method": distributed.to_full(self.method.state_dict()),
            "optimizers": [distributed.to_full(o.state_dict()) for o in self.optimizers],
            "records": distributed.gather_objects(self.source.ledger.state()),
        }

    def restore(self, state: Mapping[str, Any]) -> int:
        """Restore a saved state; returns the next step."""
        own = self.method.state_dict()
        checkpoint.load_method(
            self.method, {k: distributed.to_sharded(x, own.get(k)) for k, x in state["method"].items()}
        )
        for i, (optimizer, saved) in enumerate(zip(self.optimizers, state["optimizers"], strict=True)):
            checkpoint.load_optimizer(optimizer, shard_optimizer_state(saved, optimizer), f"optimizers.{i}")
        self.begun, self.weights = state["begun"], state["weights"]
        for found in state["records"]:
            self.source.ledger.restore(found)
        return state["step"]

    def save(self, step: int) -> None:
        state = self.state(step)
        if self.fabric.is_global_zero:
            checkpoint.save(self.folder / checkpoint.LATEST, state)

    def begin(self) -> int:
        """The first step: the checkpoint's, or 0 after calling the method's `begin`, which happens once."""
        latest = self.folder / checkpoint.LATEST
        if latest.exists():
            with files.restoring_from(latest):
                state = checkpoint.load(latest)
                self.spent = state["seconds"]
                step = self.restore(state)
            if not self.ready:
                with self.summon_full_params():
                    self.method.restored(self.context(Plan.of(1, 1).at(0)))
                self.ready = True
            return step
        if not self.ready:
            with self.summon_full_params():
                self.method.begin(self.context(Plan.of(1, 1).at(0)))
            self.ready = True
        return 0

    # ---- the run

    def fit(
        self,
        plan: Plan,
        logger: RunLogger,
        pace: Pace | None = None,
        budget: Budget | None = None,
        record: Callable[[Plan], None] = lambda plan: None,
    ) -> Plan:
        """Train to the end of `plan`, or until the method is finished. Returns the final plan.

        With a budget the plan changes as the run proceeds; the first process calls `record` with each new plan before it
        takes effect.
        """
        pace = pace or Pace()
        step = self.begin()
        logger.start(plan.at(step), pace)
        saved = self.save_timed(step, pace, logger)
        progress = plan.at(step)
        pace.mark(step)
        with suppress(Finished), signals.catch_signals() as requests:
            while step < plan.steps:
                self.prepare(progress, pace)
                self.publish()
                epoch = progress.epoch
                for batch in logger.time_data_wait(self.batches(progress)):
                    loss, parts = self.step(batch, progress)
                    lr = self.optimizers[0].param_groups[0]["lr"]
                    finite = logger.log_step(progress, plan, loss, parts, lr)
                    step += 1
                    request = distributed.max_over_processes(requests.pending)
                    late = finite and self.fabric.broadcast(time.monotonic() - saved > SAVE_EVERY)
                    if request or late:
                        logger.check_finite(progress)
                        saved = self.save_timed(step, pace, logger)
                        requests.clear()
                    if request in signals.CODES:
                        self.stop(step, plan, signals.CODES[request])
                    if budget is None and finite:
                        pace.mark(step)
                    elif budget is not None:
                        plan = self.replan(plan, step, budget, record)
                    progress = plan.at(step)
                    if progress.epoch > epoch or step == plan.steps:
                        break
        self.save(step)
        logger.end(plan.at(step))
        self.fabric.barrier()
        return plan

    def stop(self, step: int, plan: Plan, code: int) -> NoReturn:
        """End a saved run once all processes arrive here."""
        self.fabric.barrier()
        raise Stopped(
            f"stopped after step {step} of {plan.steps}, which is saved; resume with: "
            f"pretask pretrain --resume {quote(str(self.folder))}",
            code,
        )

    def save_timed(self, step: int, pace: Pace, logger: RunLogger) -> float:
        """Save a checkpoint and record how long it takes; returns the time at which it was saved."""
        began = time.monotonic()
        self.save(step)
        saved = time.monotonic()
        pace.saving = saved - began
        pace.checking = logger.checking
        return saved

    def replan(self, plan: Plan, step: int, budget: Budget, record: Callable[[Plan], None]) -> Plan:
        """The plan from `step` on, decided by the first process. A single process also replans by the clock."""
        single = distributed.world() == 1
        if step >= plan.steps or not budget.is_due(step, single):
            return plan
        found = budget.replan(plan, step) if self.fabric.is_global_zero else (None, 0)
        steps, budget.due_at = self.fabric.broadcast(found)
        if steps is None:
            return plan
        plan = plan.changed(step, steps)
        if self.fabric.is_global_zero:
            record(plan)
        return plan

    def fastest_step(self, plan: Plan, seconds: float) -> float:
        """Seconds of the fastest of as many real steps as fit into `seconds`; the state is restored afterwards."""
        step = self.begin()
        before, progress = copy.deepcopy(self.state(step)), plan.at(step)
        self.prepare(progress, Pace())
        batches = chain.from_iterable(self.batches(progress) for _ in count())
        began, taken = time.perf_counter(), [self.time_step(batches, progress)]
        while self.fabric.broadcast(len(taken) < TIMED and time.perf_counter() - began < seconds):
            taken.append(self.time_step(batches, progress))
        self.restore(before)
        return self.fabric.broadcast(min(taken))

    def costs(self, plan: Plan) -> list[float]:
        """Seconds of a step in each training phase of the method; the state is restored afterwards."""
        phases, found = self.method.phases, []
        if phases == 1:
            return [1.0]
        before = copy.deepcopy(self.state(self.begin()))
        for phase in range(phases):
            middle = bisect_left(
                range(plan.steps - 1), (phase + 0.5) / phases, key=lambda step: plan.at(step).fraction
            )
            progress, self.begun = plan.at(middle), -1
            self.prepare(progress, Pace())
            batches = chain.from_iterable(self.batches(progress) for _ in count())
            found.append(min(self.time_step(batches, progress) for _ in range(TRIED)))
        self.restore(before)
        return found

    def time_step(self, batches: Iterator[Batch], progress: Progress) -> float:
        """Seconds of one training step."""
        began = time.perf_counter()
        self.step(next(batches), progress)
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    @property
    def per_pass(self) -> int:
        """Steps in one pass over the source; a last incomplete batch is dropped."""
        return len(self.source) // self.train.batch


def group_lr(group: dict[str, Any], train: TrainConfig, progress: Progress) -> float:
    """Learning rate of a parameter group at a step; see Method.groups."""
    if progress.fraction < group.get("after", 0.0):
        return 0.0
    factor = 1.0 if group.get("steady") else lr_factor(train, progress.fraction)
    return group["peak"] * factor * progress.ramp


def shard_optimizer_state(saved: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """A full optimizer state, sharded like the parameters it belongs to."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    sharded = {
        i: {name: distributed.to_sharded(value, weights[i]) for name, value in state.items()}
        for i, state in saved["state"].items()
    }
    return saved | {"state": sharded}


def check_provided(method: Method[Any], source: Source) -> None:
    """UserError if the source lacks an auxiliary field that the method needs."""
    missing = sorted(method.needs - source.provides)
    if missing:
        raise UserError(
            f"{methods.name_of(method)} needs {' and '.join(AUX_FIELDS[name] for name in missing)}; "
            f"{source.name} provides {', '.join(sorted(source.provides)) or 'images only'}"
        )


def check(method: Method[Any], source: Source, train: TrainConfig) -> None:
    """UserError if method, source and training config do not fit together."""
    check_provided(method, source)
    if len(source) < train.batch:
        raise UserError(
            f"{source.name} has {len(source)} image{'s' * (len(source) != 1)}, fewer than one batch of {train.batch}; "
            f"add images or set --batch {len(source)} or less"
        )
    if train.batch == 1:
        check_norms(method, source)
