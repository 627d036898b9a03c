"""Speed of a run, and the number of steps that fit into a time budget.

Machines are often shared: when threads of two programs wait for each other, steps take up to a hundred times as long,
for seconds or for the rest of the run. A budget is therefore not divided by the time of the first steps. Instead, speed
is measured throughout the run and the rest of the run is replanned.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import mul
from statistics import mean

from pretask.train.plan import Plan
from pretask.types import Progress

Clock = Callable[[], float]

ENTRIES = 20
"""maximum number of plan entries: one for each 5 % of a budget"""
SLACK = 0.02
"""fraction of the budget by which a run may miss its end before the plan is changed for that reason only"""
WINDOW = 30.0
"""seconds over which speed is measured in a run without a budget"""


class Pace:
    """Measures seconds per step and seconds between epochs, and estimates the time left."""

    def __init__(self, window: float = WINDOW, clock: Clock = time.monotonic):
        self.window, self.clock = window, clock
        self.prepared = 0.0  # total seconds between epochs
        self.between: dict[bool, deque[float]] = {True: deque(maxlen=1), False: deque(maxlen=8)}
        self.marks: deque[tuple[float, int]] = deque()  # (seconds spent in steps, step)
        self.checking = self.saving = 0.0  # seconds of the last feature check, and of the last checkpoint
        self.closing = 0.0  # seconds of work after training, such as the report
        self.costs = [1.0]  # seconds per step in each training stage; stages take equal fractions of the run

    @property
    def ending(self) -> float:
        """Seconds from the last step to the end: a feature check, a checkpoint, the encoder, and the caller's work."""
        return self.checking + 2 * self.saving + self.closing

    @contextmanager
    def preparing(self, progress: Progress) -> Iterator[None]:
        """Measure a method's work before an epoch. First epochs of cycles often need more, so they are measured separately."""
        began = self.clock()
        yield
        took = self.clock() - began
        self.prepared += took
        self.between[progress.first_of_cycle].append(took)

    def mark(self, step: int) -> None:
        """Record the time before a step; marks older than the window are dropped."""
        now = self.clock() - self.prepared
        if self.marks and self.marks[-1][1] == step:
            return
        self.marks.append((now, step))
        while len(self.marks) > 2 and self.marks[1][0] <= now - self.window:
            self.marks.popleft()

    def forget(self) -> None:
        """Drop all but the last two marks, since the speed has changed."""
        self.marks = deque(list(self.marks)[-2:])

    def per_step(self) -> float:
        """Seconds per step over the window."""
        return quotient(self.marks[0], self.marks[-1])

    def recent_per_step(self) -> float:
        """Seconds per step between the last two marks."""
        return quotient(self.marks[-2], self.marks[-1])

    def per_epoch(self, first_of_cycle: bool = False) -> float:
        """Seconds of work before an epoch."""
        return mean(self.between[first_of_cycle] or [0.0])

    def left(self, plan: Plan, step: int, per_step: float) -> float:
        """Seconds until the last step is done."""
        epochs, cycles = remaining(plan.at(step))
        between = epochs * self.per_epoch() + cycles * self.per_epoch(first_of_cycle=True)
        return (plan.steps - step) * per_step + between

    def eta(self, plan: Plan, step: int) -> float:
        """Seconds until the end of everything, for the display."""
        if step == plan.steps:
            return self.ending
        began, first = self.marks[0]
        per_cost = (self.clock() - self.prepared - began) / self.work(plan, first, step)
        per_step = per_cost * self.work(plan, step, plan.steps) / (plan.steps - step)
        return self.left(plan, step, per_step) + self.ending

    def work(self, plan: Plan, start: int, stop: int) -> float:
        """Cost of the steps from `start` to `stop`."""
        stages = len(self.costs)
        low, high = (plan.at(step).fraction if step < plan.steps else 1.0 for step in (start, stop))
        parts = [max(0.0, min(high, (i + 1) / stages) - max(low, i / stages)) for i in range(stages)]
        return (stop - start) * sum(map(mul, parts, self.costs)) / (high - low)

    def steps_within(self, plan: Plan, step: int, per_step: float, seconds: float) -> int:
        """Total steps of a run whose steps from `step` on take `seconds`; at least one step is left."""
        _, cycles = remaining(plan.at(step))
        seconds -= cycles * self.per_epoch(first_of_cycle=True)
        return step + max(1, int(seconds / (per_step + self.per_epoch() / plan.per_pass)))


def quotient(one: tuple[float, int], other: tuple[float, int]) -> float:
    """Seconds per step between two marks."""
    return max(1e-6, (other[0] - one[0]) / (other[1] - one[1]))


def remaining(now: Progress) -> tuple[int, int]:
    """Number of epochs still to be prepared that do not begin a cycle, and of those that do."""
    new = now.step == now.start
    cycles = now.cycles - now.cycle - 1 + (new and now.first_of_cycle)
    return max(0, now.epochs - now.epoch - 1 + new - cycles), cycles


class Budget:
    """Decides when to replan so that a run ends in time.

    A plan that is too long is harmless, since it is shortened later; one that is too short rushes through its schedule.
    The first estimate therefore uses the fastest step timed. After each 5 % of the budget the rest is replanned from the
    recent speed. A run that would end in a quarter of the time left is replanned at once. The last entry is reserved
    for a run that is late when its time is over, which stops after the next step.
    """

    def __init__(self, seconds: float, began: float, pace: Pace):
        self.seconds, self.began, self.pace = seconds, began, pace
        self.made = 1  # entries so far
        self.bucket = -1  # the 5 % of the budget with the last entry; set by the first call of `replan`
        self.due = 0.0  # clock time of the next call
        self.due_at = 1  # latest step of the next call, which all processes agree on

    def left(self) -> float:
        """Seconds for training."""
        return self.began + self.seconds - self.pace.clock() - self.pace.ending

    def is_due(self, step: int, single: bool) -> bool:
        """Whether to replan now. Several processes, where `single` is False, decide by the step, which is the same in all."""
        return step >= self.due_at or (single and self.pace.clock() >= self.due)

    def replan(self, plan: Plan, step: int) -> tuple[int | None, int]:
        """New total number of steps, or None if unchanged, and the step at which to replan next."""
        self.pace.mark(step)
        steps, every = self.steps(plan, step), SLACK / 2 * self.seconds
        self.due = self.pace.clock() + every
        soon = min(int(every / self.pace.recent_per_step()), ((steps or plan.steps) - step) // 2)
        return steps, step + max(1, soon)

    def steps(self, plan: Plan, step: int) -> int | None:
        """New total number of steps, or None if unchanged."""
        pace, left, slack = self.pace, self.left(), SLACK * self.seconds
        bucket, last = (
            int(ENTRIES * (1 - rest / self.seconds)) for rest in (left + pace.ending, pace.ending)
        )
        self.bucket = bucket if self.bucket < 0 else self.bucket
        soon = pace.left(plan, step, pace.recent_per_step())
        if left - soon > max(3 * soon, slack) and self.made < ENTRIES - 1:
            pace.forget()
            return self.enter(bucket, pace.steps_within(plan, step, pace.recent_per_step(), left))
        if left < pace.per_epoch():
            late = pace.left(plan, step, pace.per_step()) > slack and plan.steps > step + 1
            return self.enter(bucket, step + 1) if late else None
        if not (self.bucket < bucket < last and self.made <= bucket):
            return None
        steps = pace.steps_within(plan, step, pace.per_step(), left)
        return self.enter(bucket, steps) if abs(steps - plan.steps) > 0.01 * plan.steps else None

    def enter(self, bucket: int, steps: int) -> int:
        self.made, self.bucket = self.made + 1, bucket
        return steps
