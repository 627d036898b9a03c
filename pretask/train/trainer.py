"""The one training loop, on Lightning Fabric.

Everything random is a function of (seed, step), and everything remembered is in the checkpoint, so a run that was
killed at any moment and resumed ends with the same weights, bit for bit on a CPU.
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
from pretask.config import TrainConfig, decay, schedule
from pretask.data import loader
from pretask.encoders import fast_conv as convolutions
from pretask.errors import Stopped
from pretask.methods.base.context import Context, Finished
from pretask.methods.base.method import Method
from pretask.rng import Rng
from pretask.runtime import distributed, signals
from pretask.runtime import files as checkpoint
from pretask.runtime.device import attention
from pretask.train.logger import Journal
from pretask.train.pacing import Budget, Pace
from pretask.train.plan import Plan
from pretask.types import AUX, Batch, Loss, Progress, Source, UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SAVE_EVERY = 60.0
"""seconds between two checkpoints"""
TIMED = 20
"""steps, at most, that are timed for a first guess at how many fit into a budget"""
TRIED = 3
"""steps of each part that learns in its turn, of which the fastest counts"""


class Solver(nn.Module):
    """What Fabric wraps. Its engine looks into arguments and results but refuses frozen dataclasses, hence Sealed."""

    def __init__(self, method: Method[Any]):
        super().__init__()
        self.method = method

    def forward(self, sealed: "Sealed") -> tuple[Tensor, dict[str, Tensor], Any]:
        with attention():
            loss: Loss = self.method(sealed.pretext)
        return loss.total, dict(loss.parts), loss.carry


class Sealed:
    def __init__(self, pretext: Any):
        self.pretext = pretext


class Trainer:
    """One run in progress: what is trained, on what, and what has to be remembered to go on."""

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
        self.ready = False  # whether the method has begun
        self.files: dict[str, bytes] = {}  # what it has learned, for a reader
        self.since, self.spent = time.monotonic(), 0.0  # seconds until the run was cut off
        self.begun = -1  # the last epoch that `begin_epoch` has prepared
        self.weights: Tensor | None = None  # (N,) sampling weights of this epoch

        method.to(fabric.device).train()
        convolutions.quicken(method)
        if distributed.world() > 1:
            distributed.synchronise_norms(method)
        self.wrapped = Solver(method)
        self.solver = fabric.setup_module(self.wrapped)
        self.optimizers: list[Optimizer] = method.optimizers(train)
        for group in (g for o in self.optimizers for g in o.param_groups):
            group |= {"peak": group["lr"], "decay": group["weight_decay"]}
        self.steppers: list[Any] = [fabric.setup_optimizers(o) for o in self.optimizers]

    # ---- one step

    def step(self, batch: Batch, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """Puzzle, loss, gradient, update, memory. Returns the loss and its parts."""
        share = distributed.rank(), distributed.world()
        rng = Rng(self.seed, "pretext", progress.step, device=self.fabric.device, share=share)
        torch.manual_seed(rng.generator.initial_seed() ^ share[0])  # for dropout and its like
        distributed.unshard(self.wrapped)
        with torch.no_grad():
            pretext = self.method.pretext(batch.only(self.method.needs).to(self.fabric.device), rng)
        total, parts, carry = self.solver(Sealed(pretext))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.fabric.backward(total)
        for optimizer, stepper in zip(self.optimizers, self.steppers, strict=True):
            if self.train.clip:
                self.fabric.clip_gradients(self.solver, stepper, max_norm=self.train.clip)
            for group in optimizer.param_groups:
                group["lr"] = rate(group, self.train, progress)
                group["weight_decay"] = group["decay"] * decay(self.train, progress.fraction)
            stepper.step()
        with torch.no_grad():
            self.method.after_step(distributed.gather_rows(carry), progress)
        return total.detach(), {name: value.detach() for name, value in parts.items()}

    def batches(self, progress: Progress) -> Iterator[Batch]:
        """This process's batches of the rest of an epoch: a random order, or draws by weight."""
        rng, n = Rng(self.seed, "order", progress.epoch), len(self.source)
        order = rng.permutation(n) if self.weights is None else rng.choice(n, self.weights.cpu())
        order = order[: progress.length * self.train.batch]
        first, share = progress.step - progress.start, (distributed.rank(), distributed.world())
        return loader.epoch(self.source, order, self.train.batch, first, share, self.workers)

    def prepare(self, progress: Progress, pace: Pace) -> None:
        """Let the method prepare its epoch, unless a checkpoint says that it already has."""
        if self.begun < progress.epoch:
            with pace.preparing(progress), self.whole():
                self.weights = self.method.begin_epoch(self.context(progress))
            self.begun = progress.epoch

    def publish(self) -> None:
        """Write what the method has left for a reader into the run's folder."""
        while self.files:
            name, content = self.files.popitem()
            if self.fabric.is_global_zero:
                checkpoint.write(self.folder / name, lambda file, content=content: file.write(content))

    def context(self, progress: Progress) -> Context:
        rng = Rng(self.seed, "begin", progress.epoch, device=self.fabric.device)
        return Context(self.source, self.optimizers, progress, rng, self.files)

    def whole(self) -> AbstractContextManager[None]:
        """In here the method may be used in any way, where its weights are shared out among the processes."""
        return distributed.whole(self.wrapped)

    # ---- memory

    def state(self, step: int) -> dict[str, Any]:
        """Everything that must be remembered; all processes ask for it together."""
        return {
            "step": step,
            "seconds": self.spent + time.monotonic() - self.since,
            "begun": self.begun,
            "weights": self.weights,
            "method": distributed.gathered(self.method.state_dict()),
            "optimizers": [distributed.gathered(o.state_dict()) for o in self.optimizers],
            "records": self.source.ledger.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> int:
        """Back to a saved state; returns the step to go on with."""
        own = self.method.state_dict()
        self.method.load_state_dict(
            {k: distributed.parted(x, own.get(k)) for k, x in state["method"].items()}
        )
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(shared_out(saved, optimizer))
        self.begun, self.weights = state["begun"], state["weights"]
        self.source.ledger.restore(state["records"])
        return state["step"]

    def save(self, step: int) -> None:
        state = self.state(step)
        if self.fabric.is_global_zero:
            checkpoint.save(self.folder / checkpoint.LATEST, state)

    def begin(self) -> int:
        """The step to start from: a checkpoint's, or 0 after the method has begun, which it does once."""
        latest = self.folder / checkpoint.LATEST
        if latest.exists():
            with checkpoint.belonging(latest):
                state = checkpoint.load(latest)
                self.spent = state["seconds"]
                return self.restore(state)
        if not self.ready:
            with self.whole():
                self.method.begin(self.context(Plan.of(1, 1).at(0)))
            self.ready = True
        return 0

    # ---- the run

    def fit(
        self,
        plan: Plan,
        journal: Journal,
        pace: Pace | None = None,
        budget: Budget | None = None,
        record: Callable[[Plan], None] = lambda plan: None,
    ) -> Plan:
        """Train to the end of `plan`, or until the method has nothing left to learn. Returns the plan as it came to be.

        With a budget it is planned anew as the run goes on; the first process lets `record` keep each new plan before
        it is used.
        """
        pace = pace or Pace()
        step = self.begin()
        journal.start(plan.at(step), pace)
        saved = self.keep(step, pace, journal)
        progress = plan.at(step)
        pace.mark(step)
        with suppress(Finished), signals.heard() as ears:
            while step < plan.steps:
                self.prepare(progress, pace)
                self.publish()
                epoch = progress.epoch
                for batch in journal.waiting(self.batches(progress)):
                    loss, parts = self.step(batch, progress)
                    lr = self.optimizers[0].param_groups[0]["lr"]
                    sound = journal.note(progress, plan, loss, parts, lr)
                    step += 1
                    asked = distributed.largest(ears.asked)
                    late = sound and self.fabric.broadcast(time.monotonic() - saved > SAVE_EVERY)
                    if asked or late:
                        journal.check(progress)
                        saved = self.keep(step, pace, journal)
                        ears.done()
                    if asked in signals.CODES:
                        self.stop(step, plan, signals.CODES[asked])
                    if budget is None and sound:
                        pace.mark(step)
                    elif budget is not None:
                        plan = self.replanned(plan, step, budget, record)
                    progress = plan.at(step)
                    if progress.epoch > epoch or step == plan.steps:
                        break
        self.save(step)
        journal.end(plan.at(step))
        self.fabric.barrier()
        return plan

    def stop(self, step: int, plan: Plan, code: int) -> NoReturn:
        """End a run that is saved, when all processes are here."""
        self.fabric.barrier()
        raise Stopped(
            f"stopped after step {step} of {plan.steps}, which is saved; go on with: "
            f"pretask pretrain --resume {quote(str(self.folder))}",
            code,
        )

    def keep(self, step: int, pace: Pace, journal: Journal) -> float:
        """Save, and note how long that takes; returns when it was done."""
        began = time.monotonic()
        self.save(step)
        saved = time.monotonic()
        pace.saving = saved - began
        pace.looking = journal.looking
        return saved

    def replanned(self, plan: Plan, step: int, budget: Budget, record: Callable[[Plan], None]) -> Plan:
        """The plan from `step` on, as the first process decides it. Where it is alone it looks at the clock between times."""
        alone = distributed.world() == 1
        if step >= plan.steps or not budget.is_due(step, alone):
            return plan
        found = budget.look(plan, step) if self.fabric.is_global_zero else (None, 0)
        steps, budget.due_at = self.fabric.broadcast(found)
        if steps is None:
            return plan
        plan = plan.changed(step, steps)
        if self.fabric.is_global_zero:
            record(plan)
        return plan

    def fastest_step(self, plan: Plan, seconds: float) -> float:
        """Seconds that the fastest of some real steps took, of as many as `seconds` allow; their traces are wiped out."""
        step = self.begin()
        before, progress = copy.deepcopy(self.state(step)), plan.at(step)
        self.prepare(progress, Pace())
        batches = chain.from_iterable(self.batches(progress) for _ in count())
        began, taken = time.perf_counter(), [self.timed(batches, progress)]
        while self.fabric.broadcast(len(taken) < TIMED and time.perf_counter() - began < seconds):
            taken.append(self.timed(batches, progress))
        self.restore(before)
        return self.fabric.broadcast(min(taken))

    def costs(self, plan: Plan) -> list[float]:
        """Seconds of a step of each part that learns in its turn, timed beforehand; the traces are wiped out."""
        turns, found = self.method.turns, []
        if turns == 1:
            return [1.0]
        before = copy.deepcopy(self.state(self.begin()))
        for turn in range(turns):
            middle = bisect_left(
                range(plan.steps - 1), (turn + 0.5) / turns, key=lambda step: plan.at(step).fraction
            )
            progress, self.begun = plan.at(middle), -1
            self.prepare(progress, Pace())
            batches = chain.from_iterable(self.batches(progress) for _ in count())
            found.append(min(self.timed(batches, progress) for _ in range(TRIED)))
        self.restore(before)
        return found

    def timed(self, batches: Iterator[Batch], progress: Progress) -> float:
        """Seconds for one step."""
        began = time.perf_counter()
        self.step(next(batches), progress)
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    @property
    def per_pass(self) -> int:
        """Steps in one pass over the source; a last, short batch is left out."""
        return len(self.source) // self.train.batch


def rate(group: dict[str, Any], train: TrainConfig, progress: Progress) -> float:
    """A group's learning rate at a step; see Method.groups."""
    if progress.fraction < group.get("after", 0.0):
        return 0.0
    share = 1.0 if group.get("steady") else schedule(train, progress.fraction)
    return group["peak"] * share * progress.ramp


def shared_out(saved: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """What an optimizer remembers of each weight, shared out as the weight is."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    shared = {
        i: {name: distributed.parted(value, weights[i]) for name, value in memory.items()}
        for i, memory in saved["state"].items()
    }
    return saved | {"state": shared}


def check_provided(method: Method[Any], source: Source) -> None:
    """Raises UserError if the method needs to know more of each image than there is."""
    missing = sorted(method.needs - source.provides)
    if missing:
        raise UserError(
            f"{methods.called(method)} needs {' and '.join(AUX[name] for name in missing)}; "
            f"{source.name} provides {', '.join(sorted(source.provides)) or 'images alone'}"
        )


def check(method: Method[Any], source: Source, train: TrainConfig) -> None:
    """Raises UserError if these three cannot go together."""
    check_provided(method, source)
    if len(source) < train.batch:
        raise UserError(
            f"{source.name} has {len(source)} images, fewer than one batch of {train.batch}; "
            f"add images or set --batch {len(source)} or less"
        )
