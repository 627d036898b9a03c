"""Everything about a run's length is an exact function of its plan, a list of (step, steps), without jumps."""

import math
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest

from pretask.config import TrainConfig
from pretask.train.plan import MIN_STEPS, RAMP, Plan, cautions, entries_of, lengthening
from pretask.train.trainer import group_lr


def some_plan(number, lengthened=False):
    """A random plan of up to six entries; with `lengthened`, some of them extend a finished run."""
    draw = Random(number).randint
    plan = Plan.of(draw(1, (12, 200)[number % 2]), draw(1, 60), draw(1, 6))
    for _ in range(draw(0, 5)):
        first = plan.entries[-1][0] + 1
        step = plan.steps if lengthened and not draw(0, 3) else draw(first, max(first, plan.steps - 1))
        if step < plan.steps or lengthened:
            plan = plan.changed(step, step + draw(1, (300, 3)[draw(0, 1)]))
    return plan


def in_equal_epochs(steps, per_pass, cycles, step):
    """Reference: position of a step in a run whose number of steps never changes."""
    epochs = cycles * math.ceil(max(1, math.ceil(steps / per_pass)) / cycles)
    epoch = min(((step + 1) * epochs - 1) // steps, epochs - 1)
    first, stop = (e * steps // epochs for e in (epoch, epoch + 1))
    return {
        "epoch": epoch,
        "epochs": epochs,
        "start": first,
        "length": stop - first,
        "cycle": epoch * cycles // epochs,
        "first_of_cycle": epoch % (epochs // cycles) == 0,
        "begins": Fraction(epoch, epochs),
        "ends": Fraction(epoch + 1, epochs),
        "fraction": step / steps,
        "done": (step + 1) / steps,
        "steps": steps,
        "ramp": 1.0,
        "lengthened": 0,
    }


@pytest.mark.parametrize("number", range(200))
def test_plan_with_one_entry_has_equal_epochs(number):
    draw = Random(number).randint
    steps, per_pass, cycles = draw(1, (12, 300)[number % 2]), draw(1, 60), draw(1, 6)
    plan = Plan.of(steps, per_pass, cycles)
    for step in range(steps):
        at = plan.at(step)
        expected = in_equal_epochs(steps, per_pass, cycles, step)
        assert {name: getattr(at, name) for name in expected} == expected
    assert plan.epochs == expected["epochs"]


@pytest.mark.parametrize("number", range(200))
def test_schedule_is_continuous_strictly_increasing_and_complete(number):
    plan = some_plan(number)
    for before, now in pairwise(plan.at(step) for step in range(plan.steps)):
        assert before.fraction < before.done == now.fraction
        assert before.cycle <= now.cycle
    last = plan.at(plan.steps - 1)
    assert plan.at(0).fraction == 0 and last.done == 1 and last.ends == 1


@pytest.mark.parametrize("number", range(200))
def test_epochs_contain_every_step_once_and_are_no_longer_than_a_pass(number):
    plan = some_plan(number, lengthened=True)
    epochs = {}
    for step in range(plan.steps):
        at = plan.at(step)
        epochs.setdefault(at.epoch, []).append(at)
    assert list(epochs) == sorted(epochs) and plan.at(plan.steps - 1).epoch == plan.epochs - 1
    for steps in epochs.values():
        assert steps[0].step == steps[0].start
        assert len(steps) <= steps[0].length <= plan.per_pass
        planned = {(at.start, at.length, at.begins, at.ends, at.cycle, at.first_of_cycle) for at in steps}
        assert len(planned) == 1, "what was planned at the start of an epoch holds for all of it"


@pytest.mark.parametrize("number", range(100))
def test_position_of_a_step_does_not_depend_on_later_entries(number):
    whole = some_plan(number, lengthened=True)
    for made in range(1, len(whole.entries)):
        first = Plan(whole.entries[:made], whole.per_pass, whole.cycles)
        assert all(first.at(step) == whole.at(step) for step in range(whole.entries[made][0]))


def test_cycles_end_at_equal_fractions_of_a_stretched_schedule():
    plan = Plan.of(100, 10, 5).changed(10, 1000).changed(500, 700).changed(650, 2000)
    for before, now in pairwise(plan.at(step) for step in range(plan.steps)):
        if now.cycle > before.cycle:
            assert before.fraction < now.cycle / 5 <= now.done
            assert now.first_of_cycle and now.begins == Fraction(now.cycle, 5)


def test_epoch_in_progress_keeps_its_end_if_there_is_room():
    plan = Plan.of(100, 10).changed(13, 1000)
    before, now, after = (plan.at(step) for step in (12, 19, 20))
    assert (now.epoch, now.start, now.length) == (before.epoch, before.start, before.length) == (1, 10, 10)
    assert (after.epoch, after.start) == (2, 20)


def test_epoch_in_progress_makes_room_for_a_last_epoch():
    """Some methods do their last work when the last epoch begins."""
    plan = Plan.of(100, 10).changed(13, 18)
    assert [plan.at(step).epoch for step in range(10, 18)] == [1] * 3 + [2] * 5
    assert plan.at(12).ends < 1 == plan.at(13).ends
    assert plan.at(10).length == 10, "its order was drawn for that many steps"


def test_last_epoch_in_progress_stays_the_last_of_a_shorter_run():
    plan = Plan.of(100, 10).changed(93, 96)
    assert [plan.at(step).epoch for step in range(90, 96)] == [9] * 6


# ---- extending a finished run


def test_extended_run_follows_the_schedule_of_the_longer_run():
    plan, long = Plan.of(400, 40, 2).changed(400, 1000), Plan.of(1000, 40, 2)
    assert plan.at(399).done == 1
    for step in range(400, 1000):
        assert plan.at(step).fraction == long.at(step).fraction == step / 1000
        assert plan.at(step).cycle == long.at(step).cycle
    assert plan.at(400).first_of_cycle and not plan.at(440).first_of_cycle
    assert [plan.at(step).lengthened for step in (0, 399, 400, 999)] == [0, 0, 400, 400]


def test_extended_run_warms_up_over_one_percent_of_the_new_steps():
    plan, train, group = Plan.of(400, 40).changed(400, 2400), TrainConfig(warmup=0.0), {"peak": 2.0}
    ramp = round(RAMP * 2000)
    rates = [group_lr(group, train, plan.at(400 + step)) for step in range(2 * ramp)]
    full = [2.0 * (1 + math.cos(math.pi * (400 + step) / 2400)) / 2 for step in range(2 * ramp)]
    assert rates == pytest.approx([f * min(1, step / ramp) for step, f in enumerate(full)])
    assert rates[0] == 0 and rates[ramp] == pytest.approx(full[ramp])
    steady = [group_lr({**group, "steady": True}, train, plan.at(step)) for step in (0, 400, 410, 420)]
    assert steady == pytest.approx([2.0, 0.0, 1.0, 2.0])
    shortened = plan.changed(1000, 1200)
    assert shortened.at(410).ramp == plan.at(410).ramp and shortened.at(1100).ramp == 1


def test_new_entry_replaces_entries_at_its_step_and_later():
    plan = Plan.of(100, 10).changed(20, 200).changed(50, 300)
    assert plan.changed(20, 80).entries == ((0, 100), (20, 80))
    assert plan.changed(0, 80).entries == ((0, 80),)
    lengthened = Plan.of(100, 10).changed(100, 200)
    assert lengthened.changed(100, 150).entries == ((0, 100), (100, 150))
    assert lengthening(lengthened.changed(120, 500).entries) == (100, 100)


# ---- the plan in run.json


def card(*entries, n=100, batch=10, cycles=1):
    plan = Plan(entries, n // batch, cycles)
    return {"n": n, "train": {"batch": batch, "cycles": cycles}, **plan.as_card()}


def test_card_stores_all_entries():
    assert entries_of(card((0, 300), (40, 900))) == ((0, 300), (40, 900))
    assert card((0, 300), (40, 900))["steps"] == 900


def test_caution_for_a_short_run_names_the_minimum_length():
    assert cautions(card((0, MIN_STEPS))) == []
    [few] = cautions(card((0, MIN_STEPS - 1)))
    assert few.startswith("too short to be meaningful: 199 steps, 19.9 passes") and "200 steps" in few
    [passes] = cautions(card((0, 1000), n=10_000))
    assert "1.0 passes over the images; give it at least 200 steps and 2 passes" in passes
    assert cautions(card((0, 2000), n=10_000)) == []
    [cycles] = cautions(card((0, 3 * MIN_STEPS - 1), cycles=3))
    assert "600 steps" in cycles and cautions(card((0, 3 * MIN_STEPS), cycles=3)) == []


def test_caution_for_an_extended_run():
    caution = "extended at step 1,000 from a finished run, which differs from 2,000 steps from the start"
    assert cautions(card((0, 500), (90, 1000), (1000, 2000))) == [caution]
    assert cautions(card((0, 500), (90, 1000))) == []
