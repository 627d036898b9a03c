"""How fast a run goes, and how many steps of it fit into a budget of time.

A machine is rarely a run's own: where threads of two programs wait for each other, steps take up to a hundred times as
long, for seconds or for the rest of the run. So a budget is never divided by what the first steps took. The speed is
measured as the run goes on, and what is left of the run is planned anew.
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
"""of a plan, at most: one for each 5 % of a budget"""
SLACK = 0.02
"""share of the budget by which its end may be missed before a plan is changed for it alone"""
WINDOW = 30.0
"""seconds over which the speed of a run without a budget is measured"""


class Pace:
    """Seconds that steps take lately, those of the work between epochs, and so the seconds that are left."""

    def __init__(self, window: float = WINDOW, clock: Clock = time.monotonic):
        self.window, self.clock = window, clock
        self.prepared = 0.0  # seconds between epochs, all in all
        self.between: dict[bool, deque[float]] = {True: deque(maxlen=1), False: deque(maxlen=8)}
        self.marks: deque[tuple[float, int]] = deque()  # (seconds of steps, step)
        self.looking = self.saving = (
            0.0  # seconds of the last look at the features, and of the last checkpoint
        )
        self.closing = 0.0  # what comes after a run, such as its report
        self.costs = [1.0]  # of a step of each part that learns in its turn, all for equal shares of the run

    @property
    def ending(self) -> float:
        """Seconds from the last step to the very end: a look, a checkpoint, the encoder, and what the caller does then."""
        return self.looking + 2 * self.saving + self.closing

    @contextmanager
    def preparing(self, progress: Progress) -> Iterator[None]:
        """In here a method prepares an epoch. Rounds often begin with more work, so their first epochs count by themselves."""
        began = self.clock()
        yield
        took = self.clock() - began
        self.prepared += took
        self.between[progress.first_of_round].append(took)

    def mark(self, step: int) -> None:
        """Note the time before a step; what lies further back than the window is forgotten."""
        now = self.clock() - self.prepared
        if self.marks and self.marks[-1][1] == step:
            return
        self.marks.append((now, step))
        while len(self.marks) > 2 and self.marks[1][0] <= now - self.window:
            self.marks.popleft()

    def forget(self) -> None:
        """All but the last two marks: the speed has changed."""
        self.marks = deque(list(self.marks)[-2:])

    def per_step(self) -> float:
        """Seconds, over the window."""
        return quotient(self.marks[0], self.marks[-1])

    def lately(self) -> float:
        """Seconds per step between the last two marks."""
        return quotient(self.marks[-2], self.marks[-1])

    def per_epoch(self, first_of_round: bool = False) -> float:
        """Seconds of work before it."""
        return mean(self.between[first_of_round] or [0.0])

    def left(self, plan: Plan, step: int, per_step: float) -> float:
        """Seconds until the last step is done."""
        epochs, rounds = ahead(plan.at(step))
        between = epochs * self.per_epoch() + rounds * self.per_epoch(first_of_round=True)
        return (plan.steps - step) * per_step + between

    def to_the_end(self, plan: Plan, step: int) -> float:
        """Seconds until everything is over, as a reader is told."""
        if step == plan.steps:
            return self.ending
        began, first = self.marks[0]
        per_cost = (self.clock() - self.prepared - began) / self.work(plan, first, step)
        per_step = per_cost * self.work(plan, step, plan.steps) / (plan.steps - step)
        return self.left(plan, step, per_step) + self.ending

    def work(self, plan: Plan, start: int, stop: int) -> float:
        """What the steps from one to another cost."""
        turns = len(self.costs)
        low, high = (plan.at(step).fraction if step < plan.steps else 1.0 for step in (start, stop))
        shares = [max(0.0, min(high, (t + 1) / turns) - max(low, t / turns)) for t in range(turns)]
        return (stop - start) * sum(map(mul, shares, self.costs)) / (high - low)

    def fitting(self, plan: Plan, step: int, per_step: float, seconds: float) -> int:
        """Steps of the whole run, of which those from `step` on take so many seconds; at least one is left."""
        _, rounds = ahead(plan.at(step))
        seconds -= rounds * self.per_epoch(first_of_round=True)
        return step + max(1, int(seconds / (per_step + self.per_epoch() / plan.per_pass)))


def quotient(one: tuple[float, int], other: tuple[float, int]) -> float:
    return max(1e-6, (other[0] - one[0]) / (other[1] - one[1]))


def ahead(now: Progress) -> tuple[int, int]:
    """How many epochs are to be prepared that do not begin a round, and how many that do."""
    new = now.step == now.start
    rounds = now.rounds - now.round - 1 + (new and now.first_of_round)
    return max(0, now.epochs - now.epoch - 1 + new - rounds), rounds


class Budget:
    """When to plan anew, so that a run ends in time.

    A plan that is too long does no harm, since it is shortened later; one that is too short runs through its schedule
    at once. So the first guess takes the fastest step that was timed, each 5 % of the budget the rest is planned by the
    speed of the last ones, and a run that would be over in a quarter of the time left is planned anew on the spot. The last
    entry is kept for a run that is late when its time is over: it stops after the next step.
    """

    def __init__(self, seconds: float, began: float, pace: Pace):
        self.seconds, self.began, self.pace = seconds, began, pace
        self.made, self.bucket = (
            1,
            -1,
        )  # entries, and which 5 % had the last one; the first look finds that out
        self.due = 0.0  # when to look again, on the clock
        self.due_at = 1  # at which step at the latest, which several processes have to agree on

    def left(self) -> float:
        """Seconds for training."""
        return self.began + self.seconds - self.pace.clock() - self.pace.ending

    def is_due(self, step: int, alone: bool) -> bool:
        """Whether to look now; a process that is not `alone` goes by the step, which is the same in all of them."""
        return step >= self.due_at or (alone and self.pace.clock() >= self.due)

    def look(self, plan: Plan, step: int) -> tuple[int | None, int]:
        """How many steps the run has from now on, None if as many as planned, and at which step to look again."""
        self.pace.mark(step)
        steps, every = self.steps(plan, step), SLACK / 2 * self.seconds
        self.due = self.pace.clock() + every
        soon = min(int(every / self.pace.lately()), ((steps or plan.steps) - step) // 2)
        return steps, step + max(1, soon)

    def steps(self, plan: Plan, step: int) -> int | None:
        pace, left, slack = self.pace, self.left(), SLACK * self.seconds
        bucket, last = (
            int(ENTRIES * (1 - rest / self.seconds)) for rest in (left + pace.ending, pace.ending)
        )
        self.bucket = bucket if self.bucket < 0 else self.bucket
        soon = pace.left(plan, step, pace.lately())
        if left - soon > max(3 * soon, slack) and self.made < ENTRIES - 1:
            pace.forget()
            return self.enter(bucket, pace.fitting(plan, step, pace.lately(), left))
        if left < pace.per_epoch():
            late = pace.left(plan, step, pace.per_step()) > slack and plan.steps > step + 1
            return self.enter(bucket, step + 1) if late else None
        if not (self.bucket < bucket < last and self.made <= bucket):
            return None
        steps = pace.fitting(plan, step, pace.per_step(), left)
        return self.enter(bucket, steps) if abs(steps - plan.steps) > 0.01 * plan.steps else None

    def enter(self, bucket: int, steps: int) -> int:
        self.made, self.bucket = self.made + 1, bucket
        return steps
