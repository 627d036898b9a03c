"""Runs keep their time budget whatever the machine does: simulated runs with a fake clock."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from pretask.train.pacing import ENTRIES, Budget, Pace
from pretask.train.plan import Plan

STEP = 0.03
"""seconds per step on an idle machine"""


@dataclass
class Machine:
    """Simulates a run with a budget of `seconds`, whose steps take `cost` at each moment."""

    seconds: float = 100.0
    cost: object = lambda now: STEP  # fraction of the budget used -> seconds per step
    between: object = lambda progress: 0.0  # seconds before an epoch
    cycles: int = 1
    closing: float = 6.0
    single: bool = True
    now: float = 1000.0
    at: list = field(default_factory=list)  # fraction of the budget used at each entry

    def step(self):
        self.now += self.cost((self.now - 1000) / self.seconds)

    def ran(self):
        """The final plan, and the fraction of the budget used."""
        pace = Pace(self.seconds / ENTRIES, lambda: self.now)
        pace.closing = self.closing
        budget = Budget(self.seconds, self.now, pace)
        self.now += 8  # startup
        began, taken = self.now, []
        while not taken or (self.now - began < 0.03 * self.seconds and len(taken) < 20):
            before = self.now
            self.step()
            taken.append(self.now - before)
        plan, begun, step = Plan.of(max(1, int(budget.left() / min(taken))), 50, self.cycles), -1, 0
        pace.mark(0)
        while step < plan.steps:
            progress = plan.at(step)
            if progress.epoch > begun:
                with pace.preparing(progress):
                    self.now += self.between(progress)
                begun = progress.epoch
            self.step()
            step += 1
            if step < plan.steps and budget.is_due(step, self.single):
                steps, budget.due_at = budget.replan(plan, step)
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
def test_run_ends_with_its_budget_at_any_speed(load, seconds):
    machine = Machine(seconds, LOADS[load])
    plan, took = machine.ran()
    assert 0.95 < took < 1.03
    assert len(plan.entries) <= ENTRIES
    assert plan.at(plan.steps - 1).fraction > 0.85, "a run that has to stop skips little of its schedule"


@pytest.mark.parametrize("load", [name for name in LOADS if "third" in name or name == "none"])
def test_each_twentieth_of_the_budget_has_at_most_one_entry(load):
    machine = Machine(300.0, LOADS[load])
    machine.ran()
    twentieths = [int(ENTRIES * used) for used in machine.at]
    assert len(set(twentieths)) == len(twentieths)


def test_slow_first_steps_do_not_shorten_the_run():
    """Steps are 35 times slower while they are timed: 27 steps are planned at first, but thousands fit."""
    machine = Machine(300.0, lambda now: 35 * STEP if now < 0.06 else STEP)
    plan, took = machine.ran()
    assert plan.entries[0][1] < 300 and plan.steps > 8000 and 0.95 < took < 1.03


def test_constant_speed_needs_no_new_plan():
    plan, _ = Machine(300.0).ran()
    assert len(plan.entries) == 1


def test_first_estimate_holds_for_the_rest_of_its_twentieth():
    now = [16.0]  # of 100, in the fourth twentieth
    pace = Pace(5.0, lambda: now[0])
    budget, plan = Budget(100.0, 0.0, pace), Plan.of(800, 50)
    pace.mark(0)
    found = []
    for step in range(1, 21):
        now[0] += 0.3
        found.append((now[0], budget.replan(plan, step)[0]))
    assert all(steps is None for when, steps in found if when < 20)
    assert next(steps for when, steps in found if when >= 20) is not None


def test_steps_that_take_a_tenth_of_the_budget_end_in_time():
    plan, took = Machine(60.0, lambda now: 6.0).ran()
    assert 4 <= plan.steps <= 8 and 0.9 <= took <= 1.1


def test_alternating_speed_does_not_exceed_the_number_of_entries():
    machine = Machine(300.0, lambda now: 35 * STEP if int(20 * now) % 2 else STEP)
    plan, took = machine.ran()
    assert 3 < len(plan.entries) <= ENTRIES and 0.9 < took < 1.1


@pytest.mark.parametrize("load", [name for name in LOADS if "third" in name or name == "none"])
def test_several_processes_keep_the_budget(load):
    _, took = Machine(300.0, LOADS[load], single=False).ran()
    assert 0.95 < took < 1.05


@pytest.mark.parametrize("seconds", [60, 300])
def test_work_between_epochs_is_part_of_the_budget(seconds):
    plan, took = Machine(seconds, between=lambda progress: seconds / 60).ran()
    assert 0.93 < took < 1.03
    assert len(plan.entries) <= ENTRIES


@pytest.mark.parametrize("seconds", [60, 300])
def test_work_before_each_cycle_but_the_first_is_part_of_the_budget(seconds):
    between = lambda progress: seconds / 15 if progress.cycle and progress.first_of_cycle else 0.0  # noqa: E731
    plan, took = Machine(seconds, between=between, cycles=5).ran()
    assert 0.93 < took < 1.03
    assert {plan.at(step).cycle for step in range(plan.steps)} == set(range(5))


@pytest.mark.parametrize("work", [{False: 0.0, True: 0.0}, {False: 2.0, True: 0.0}, {False: 0.0, True: 9.0}])
def test_steps_within_a_time_account_for_work_between_epochs(work):
    pace, plan = Pace(), Plan.of(1000, 50, 5)
    for first, seconds in work.items():
        pace.between[first].append(seconds)
    fits = plan.changed(120, pace.steps_within(plan, 120, 0.1, 100.0))
    assert pace.left(fits, 120, 0.1) == pytest.approx(100.0, abs=6.0)
    assert pace.steps_within(plan, 120, 0.1, -5.0) == 121, "a late run makes one more step"


# ---- time left


def test_eta_adds_up_steps_epochs_cycles_and_closing_work():
    now = [0.0]
    pace, plan = Pace(30.0, lambda: now[0]), Plan.of(100, 10, 2)
    pace.checking, pace.saving, pace.closing = 1.0, 2.0, 4.0
    pace.mark(0)
    for step in range(60):
        progress = plan.at(step)
        if step == progress.start:
            with pace.preparing(progress):
                now[0] += 3.0 if progress.first_of_cycle else 0.5
        now[0] += 0.1
        pace.mark(step + 1)
    assert pace.eta(plan, 60) == pytest.approx(40 * 0.1 + 4 * 0.5 + 1 + 2 * 2 + 4)
    assert pace.eta(plan, 100) == 9.0


def test_speed_is_measured_over_the_last_seconds():
    now = [0.0]
    pace = Pace(10.0, lambda: now[0])
    for step in range(200):
        pace.mark(step)
        now[0] += 1.0 if step < 100 else 0.1
    assert pace.per_step() == pytest.approx(0.1, rel=0.1)
    assert len(pace.marks) < 120


def test_eta_is_within_20_percent_after_the_first_minute():
    etas, now = [], [0.0]
    pace, plan = Pace(30.0, lambda: now[0]), Plan.of(3000, 50)
    pace.mark(0)
    for step in range(3000):
        progress = plan.at(step)
        if step == progress.start:
            with pace.preparing(progress):
                now[0] += 0.7
        now[0] += 0.05 * (1 + (step % 7) / 7)
        pace.mark(step + 1)
        etas.append((now[0], pace.eta(plan, step + 1)))
    end = now[0]
    late = [(left, end - when) for when, left in etas if when > 60 and end - when > 5]
    assert late and all(left == pytest.approx(true, rel=0.2) for left, true in late)
    assert all(b <= a + 3 for a, b in pairwise(left for left, _ in late)), "it never increases"


@pytest.mark.parametrize("costs", [[1.0, 1.0, 1.0], [3.0, 1.0, 2.0], [0.02, 0.5, 0.1]])
@pytest.mark.parametrize("entries", [((0, 300),), ((0, 900), (30, 300))])
def test_work_weighs_steps_by_the_cost_of_their_stage(costs, entries):
    """The work between two steps equals the sum of the costs of the steps."""
    pace, plan = Pace(), Plan(entries, 100, 3)
    pace.costs = costs
    cost = [costs[min(2, int(3 * plan.at(step).fraction))] for step in range(300)]
    for start, stop in ((30, 300), (40, 41), (90, 130), (131, 299)):
        assert pace.work(plan, start, stop) == pytest.approx(sum(cost[start:stop]), rel=0.02, abs=max(costs))


def test_eta_uses_the_cost_of_the_remaining_stages():
    now, costs = [0.0], [1.0, 0.25, 0.5]
    pace, plan = Pace(30.0, lambda: now[0]), Plan.of(300, 100, 3)
    pace.costs = [2 * cost for cost in costs]
    pace.mark(0)
    for step in range(300):
        now[0] += 0.1 * costs[step // 100]
        if step in (50, 150, 250):
            assert pace.eta(plan, step + 1) == pytest.approx(17.5 - now[0], rel=0.03)
        pace.mark(step + 1)
