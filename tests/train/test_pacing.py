"""A budget is kept, whatever a machine does meanwhile: whole runs by a clock that is no clock."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from pretask.train.pacing import ENTRIES, Budget, Pace
from pretask.train.plan import Plan

STEP = 0.03
"""seconds of a step on a machine with nothing else to do"""


@dataclass
class Machine:
    """Makes the steps of a run of `seconds` in no time at all, at the cost that is told for each moment of it."""

    seconds: float = 100.0
    cost: object = lambda now: STEP  # share of the budget gone -> seconds of a step
    between: object = lambda progress: 0.0  # seconds before an epoch
    rounds: int = 1
    closing: float = 6.0
    alone: bool = True
    now: float = 1000.0
    at: list = field(default_factory=list)  # the share of the budget gone at each entry

    def step(self):
        self.now += self.cost((self.now - 1000) / self.seconds)

    def ran(self):
        """The plan as it came to be, and the share of the budget that it took."""
        pace = Pace(self.seconds / ENTRIES, lambda: self.now)
        pace.closing = self.closing
        budget = Budget(self.seconds, self.now, pace)
        self.now += 8  # of getting ready
        began, taken = self.now, []
        while not taken or (self.now - began < 0.03 * self.seconds and len(taken) < 20):
            before = self.now
            self.step()
            taken.append(self.now - before)
        plan, begun, step = Plan.of(max(1, int(budget.left() / min(taken))), 50, self.rounds), -1, 0
        pace.mark(0)
        while step < plan.steps:
            progress = plan.at(step)
            if progress.epoch > begun:
                with pace.preparing(progress):
                    self.now += self.between(progress)
                begun = progress.epoch
            self.step()
            step += 1
            if step < plan.steps and budget.is_due(step, self.alone):
                steps, budget.due_at = budget.look(plan, step)
                if steps is not None:
                    plan = plan.changed(step, steps)
                    self.at.append((self.now - 1000) / self.seconds)
        return plan, (self.now + self.closing - 1000) / self.seconds


LOADS = {
    "none": lambda now: STEP,
    "first third": lambda now: 3 * STEP if now < 1 / 3 else STEP,
    "middle third": lambda now: 3 * STEP if 1 / 3 < now < 2 / 3 else STEP,
    "last third": lambda now: 3 * STEP if now > 2 / 3 else STEP,
    "slow first steps": lambda now: 35 * STEP if now < 0.15 else STEP,
    "slow for long": lambda now: 35 * STEP if now < 0.6 else STEP,
    "slow in the middle": lambda now: 35 * STEP if 0.4 < now < 0.6 else STEP,
    "slow at the end": lambda now: 10 * STEP if now > 0.9 else STEP,
    "faster all along": lambda now: STEP * (3 - 2.5 * now),
}


@pytest.mark.parametrize("seconds", [60, 100, 600])
@pytest.mark.parametrize("load", LOADS)
def test_a_run_ends_with_its_budget_however_fast_its_steps_are_meanwhile(load, seconds):
    machine = Machine(seconds, LOADS[load])
    plan, took = machine.ran()
    assert 0.95 < took < 1.03
    assert len(plan.entries) <= ENTRIES
    assert plan.at(plan.steps - 1).fraction > 0.85, (
        "little of the schedule is left out where a run has to stop"
    )


@pytest.mark.parametrize("load", [name for name in LOADS if "third" in name or name == "none"])
def test_there_is_one_entry_for_each_twentieth_of_the_budget_at_most(load):
    machine = Machine(300.0, LOADS[load])
    machine.ran()
    twentieths = [int(ENTRIES * share) for share in machine.at]
    assert len(set(twentieths)) == len(twentieths)


def test_first_steps_that_are_slow_are_made_up_for():
    """35 times as slow for as long as they are timed: 27 steps were planned, and thousands fit."""
    machine = Machine(300.0, lambda now: 35 * STEP if now < 0.06 else STEP)
    plan, took = machine.ran()
    assert plan.entries[0][1] < 300 and plan.steps > 8000 and 0.95 < took < 1.03


def test_a_steady_machine_needs_no_new_plan():
    plan, _ = Machine(300.0).ran()
    assert len(plan.entries) == 1


def test_the_first_guess_is_kept_for_the_rest_of_its_twentieth_though_the_first_step_is_slow():
    now = [16.0]  # of 100, in the fourth twentieth
    pace = Pace(5.0, lambda: now[0])
    budget, plan = Budget(100.0, 0.0, pace), Plan.of(800, 50)
    pace.mark(0)
    found = []
    for step in range(1, 21):
        now[0] += 0.3
        found.append((now[0], budget.look(plan, step)[0]))
    assert all(steps is None for when, steps in found if when < 20)
    assert next(steps for when, steps in found if when >= 20) is not None


def test_steps_of_a_tenth_of_the_budget_are_few_and_in_time():
    plan, took = Machine(60.0, lambda now: 6.0).ran()
    assert 4 <= plan.steps <= 8 and 0.9 <= took <= 1.1


def test_a_speed_that_goes_up_and_down_all_the_time_takes_no_more_entries_than_there_are():
    machine = Machine(300.0, lambda now: 35 * STEP if int(20 * now) % 2 else STEP)
    plan, took = machine.ran()
    assert 3 < len(plan.entries) <= ENTRIES and 0.9 < took < 1.1


@pytest.mark.parametrize("load", [name for name in LOADS if "third" in name or name == "none"])
def test_several_processes_that_look_at_the_same_steps_keep_it_too(load):
    _, took = Machine(300.0, LOADS[load], alone=False).ran()
    assert 0.95 < took < 1.05


@pytest.mark.parametrize("seconds", [60, 300])
def test_work_between_epochs_has_its_time(seconds):
    plan, took = Machine(seconds, between=lambda progress: seconds / 60).ran()
    assert 0.93 < took < 1.03
    assert len(plan.entries) <= ENTRIES


@pytest.mark.parametrize("seconds", [60, 300])
def test_work_before_each_round_has_its_time_though_the_first_round_has_none(seconds):
    between = lambda progress: seconds / 15 if progress.round and progress.first_of_round else 0.0  # noqa: E731
    plan, took = Machine(seconds, between=between, rounds=5).ran()
    assert 0.93 < took < 1.03
    assert {plan.at(step).round for step in range(plan.steps)} == set(range(5))


@pytest.mark.parametrize("work", [{False: 0.0, True: 0.0}, {False: 2.0, True: 0.0}, {False: 0.0, True: 9.0}])
def test_what_fits_takes_the_seconds_that_there_are_with_all_work_between(work):
    pace, plan = Pace(), Plan.of(1000, 50, 5)
    for first, seconds in work.items():
        pace.between[first].append(seconds)
    fits = plan.changed(120, pace.fitting(plan, 120, 0.1, 100.0))
    assert pace.left(fits, 120, 0.1) == pytest.approx(100.0, abs=6.0)
    assert pace.fitting(plan, 120, 0.1, -5.0) == 121, "a run that is late makes one more step"


# ---- what a reader is told


def test_what_is_left_is_steps_epochs_rounds_and_the_end():
    now = [0.0]
    pace, plan = Pace(30.0, lambda: now[0]), Plan.of(100, 10, 2)
    pace.looking, pace.saving, pace.closing = 1.0, 2.0, 4.0
    pace.mark(0)
    for step in range(60):
        progress = plan.at(step)
        if step == progress.start:
            with pace.preparing(progress):
                now[0] += 3.0 if progress.first_of_round else 0.5
        now[0] += 0.1
        pace.mark(step + 1)
    assert pace.to_the_end(plan, 60) == pytest.approx(40 * 0.1 + 4 * 0.5 + 1 + 2 * 2 + 4)
    assert pace.to_the_end(plan, 100) == 9.0


def test_the_speed_is_that_of_the_last_seconds():
    now = [0.0]
    pace = Pace(10.0, lambda: now[0])
    for step in range(200):
        pace.mark(step)
        now[0] += 1.0 if step < 100 else 0.1
    assert pace.per_step() == pytest.approx(0.1, rel=0.1)
    assert len(pace.marks) < 120


def test_what_is_left_is_right_within_a_fifth_after_a_minute_of_a_run_by_steps():
    told, end = [], 0.0
    now = [0.0]
    pace, plan = Pace(30.0, lambda: now[0]), Plan.of(3000, 50)
    pace.mark(0)
    for step in range(3000):
        progress = plan.at(step)
        if step == progress.start:
            with pace.preparing(progress):
                now[0] += 0.7
        now[0] += 0.05 * (1 + (step % 7) / 7)
        pace.mark(step + 1)
        told.append((now[0], pace.to_the_end(plan, step + 1)))
    end = now[0]
    late = [(left, end - when) for when, left in told if when > 60 and end - when > 5]
    assert late and all(left == pytest.approx(true, rel=0.2) for left, true in late)
    assert all(b <= a + 3 for a, b in pairwise(left for left, _ in late)), "it does not go up again"


@pytest.mark.parametrize("costs", [[1.0, 1.0, 1.0], [3.0, 1.0, 2.0], [0.02, 0.5, 0.1]])
@pytest.mark.parametrize("entries", [((0, 300),), ((0, 900), (30, 300))])
def test_parts_that_learn_in_turn_are_known_to_take_unlike_times(costs, entries):
    """The work before and after a step, each step counted by its part's cost, is that of the slow sum."""
    pace, plan = Pace(), Plan(entries, 100, 3)
    pace.costs = costs
    cost = [costs[min(2, int(3 * plan.at(step).fraction))] for step in range(300)]
    for start, stop in ((30, 300), (40, 41), (90, 130), (131, 299)):
        assert pace.work(plan, start, stop) == pytest.approx(sum(cost[start:stop]), rel=0.02, abs=max(costs))


def test_what_is_left_is_told_by_the_cost_of_the_parts_that_are_to_come():
    now, costs = [0.0], [1.0, 0.25, 0.5]
    pace, plan = Pace(30.0, lambda: now[0]), Plan.of(300, 100, 3)
    pace.costs = [2 * cost for cost in costs]
    pace.mark(0)
    for step in range(300):
        now[0] += 0.1 * costs[step // 100]
        if step in (50, 150, 250):
            assert pace.to_the_end(plan, step + 1) == pytest.approx(17.5 - now[0], rel=0.03)
        pace.mark(step + 1)
