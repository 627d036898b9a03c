"""A plan is a list of (step, steps), and all else is a function of it: exact, without jumps, and as it was before the list."""

import math
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest

from pretask.config import TrainConfig
from pretask.train.plan import FEWEST, RAMP, Plan, cautions, entries_of, lengthening
from pretask.train.trainer import rate


def some_plan(number, lengthened=False):
    """Up to six entries; an entry at the end of the one before where runs are lengthened as well."""
    draw = Random(number).randint
    plan = Plan.of(draw(1, (12, 200)[number % 2]), draw(1, 60), draw(1, 6))
    for _ in range(draw(0, 5)):
        first = plan.entries[-1][0] + 1
        step = plan.steps if lengthened and not draw(0, 3) else draw(first, max(first, plan.steps - 1))
        if step < plan.steps or lengthened:
            plan = plan.changed(step, step + draw(1, (300, 3)[draw(0, 1)]))
    return plan


def in_equal_epochs(steps, per_pass, rounds, step):
    """Where a step stands in a run whose number of steps never changes, by one formula."""
    epochs = rounds * math.ceil(max(1, math.ceil(steps / per_pass)) / rounds)
    epoch = min(((step + 1) * epochs - 1) // steps, epochs - 1)
    first, stop = (e * steps // epochs for e in (epoch, epoch + 1))
    return {
        "epoch": epoch,
        "epochs": epochs,
        "start": first,
        "length": stop - first,
        "round": epoch * rounds // epochs,
        "first_of_round": epoch % (epochs // rounds) == 0,
        "begins": Fraction(epoch, epochs),
        "ends": Fraction(epoch + 1, epochs),
        "fraction": step / steps,
        "done": (step + 1) / steps,
        "steps": steps,
        "ramp": 1.0,
        "lengthened": 0,
    }


@pytest.mark.parametrize("number", range(200))
def test_with_one_entry_all_steps_stand_where_equal_epochs_put_them(number):
    draw = Random(number).randint
    steps, per_pass, rounds = draw(1, (12, 300)[number % 2]), draw(1, 60), draw(1, 6)
    plan = Plan.of(steps, per_pass, rounds)
    for step in range(steps):
        at = plan.at(step)
        expected = in_equal_epochs(steps, per_pass, rounds, step)
        assert {name: getattr(at, name) for name in expected} == expected
    assert plan.epochs == expected["epochs"]


@pytest.mark.parametrize("number", range(200))
def test_the_schedule_has_no_jump_never_stands_still_and_comes_to_its_end(number):
    plan = some_plan(number)
    for before, now in pairwise(plan.at(step) for step in range(plan.steps)):
        assert before.fraction < before.done == now.fraction
        assert before.round <= now.round
    last = plan.at(plan.steps - 1)
    assert plan.at(0).fraction == 0 and last.done == 1 and last.ends == 1


@pytest.mark.parametrize("number", range(200))
def test_epochs_have_every_step_once_and_no_more_of_them_than_a_pass(number):
    plan = some_plan(number, lengthened=True)
    epochs = {}
    for step in range(plan.steps):
        at = plan.at(step)
        epochs.setdefault(at.epoch, []).append(at)
    assert list(epochs) == sorted(epochs) and plan.at(plan.steps - 1).epoch == plan.epochs - 1
    for steps in epochs.values():
        assert steps[0].step == steps[0].start
        assert len(steps) <= steps[0].length <= plan.per_pass
        planned = {(at.start, at.length, at.begins, at.ends, at.round, at.first_of_round) for at in steps}
        assert len(planned) == 1, "what was planned when an epoch began stays for all of it"


@pytest.mark.parametrize("number", range(100))
def test_what_a_plan_says_of_a_step_does_not_depend_on_later_entries(number):
    whole = some_plan(number, lengthened=True)
    for made in range(1, len(whole.entries)):
        first = Plan(whole.entries[:made], whole.per_pass, whole.rounds)
        assert all(first.at(step) == whole.at(step) for step in range(whole.entries[made][0]))


def test_a_round_ends_with_its_share_of_the_schedule_however_it_is_stretched():
    plan = Plan.of(100, 10, 5).changed(10, 1000).changed(500, 700).changed(650, 2000)
    for before, now in pairwise(plan.at(step) for step in range(plan.steps)):
        if now.round > before.round:
            assert before.fraction < now.round / 5 <= now.done
            assert now.first_of_round and now.begins == Fraction(now.round, 5)


def test_an_epoch_in_progress_keeps_its_order_and_its_end_where_there_is_room():
    plan = Plan.of(100, 10).changed(13, 1000)
    before, now, after = (plan.at(step) for step in (12, 19, 20))
    assert (now.epoch, now.start, now.length) == (before.epoch, before.start, before.length) == (1, 10, 10)
    assert (after.epoch, after.start) == (2, 20)


def test_where_others_were_to_follow_it_an_epoch_makes_room_for_a_last_one():
    """A method that does its last work as the last epoch begins would else have none."""
    plan = Plan.of(100, 10).changed(13, 18)
    assert [plan.at(step).epoch for step in range(10, 18)] == [1] * 3 + [2] * 5
    assert plan.at(12).ends < 1 == plan.at(13).ends
    assert plan.at(10).length == 10, "its order was drawn for as many"


def test_the_last_epoch_in_progress_is_the_last_one_of_a_shorter_run():
    plan = Plan.of(100, 10).changed(93, 96)
    assert [plan.at(step).epoch for step in range(90, 96)] == [9] * 6


# ---- a finished run that is lengthened


def test_a_lengthened_run_follows_the_schedule_of_the_longer_one():
    plan, long = Plan.of(400, 40, 2).changed(400, 1000), Plan.of(1000, 40, 2)
    assert plan.at(399).done == 1
    for step in range(400, 1000):
        assert plan.at(step).fraction == long.at(step).fraction == step / 1000
        assert plan.at(step).round == long.at(step).round
    assert plan.at(400).first_of_round and not plan.at(440).first_of_round
    assert [plan.at(step).lengthened for step in (0, 399, 400, 999)] == [0, 0, 400, 400]


def test_its_learning_rate_rises_anew_over_a_hundredth_of_what_is_new():
    plan, train, group = Plan.of(400, 40).changed(400, 2400), TrainConfig(warmup=0.0), {"peak": 2.0}
    ramp = round(RAMP * 2000)
    rates = [rate(group, train, plan.at(400 + step)) for step in range(2 * ramp)]
    full = [2.0 * (1 + math.cos(math.pi * (400 + step) / 2400)) / 2 for step in range(2 * ramp)]
    assert rates == pytest.approx([f * min(1, step / ramp) for step, f in enumerate(full)])
    assert rates[0] == 0 and rates[ramp] == pytest.approx(full[ramp])
    steady = [rate({**group, "steady": True}, train, plan.at(step)) for step in (0, 400, 410, 420)]
    assert steady == pytest.approx([2.0, 0.0, 1.0, 2.0])
    shortened = plan.changed(1000, 1200)
    assert shortened.at(410).ramp == plan.at(410).ramp and shortened.at(1100).ramp == 1


def test_an_entry_takes_the_place_of_those_for_its_step_and_later():
    plan = Plan.of(100, 10).changed(20, 200).changed(50, 300)
    assert plan.changed(20, 80).entries == ((0, 100), (20, 80))
    assert plan.changed(0, 80).entries == ((0, 80),)
    lengthened = Plan.of(100, 10).changed(100, 200)
    assert lengthened.changed(100, 150).entries == ((0, 100), (100, 150))
    assert lengthening(lengthened.changed(120, 500).entries) == (100, 100)


# ---- what a card says


def card(*entries, n=100, batch=10, rounds=1):
    plan = Plan(entries, n // batch, rounds)
    return {"n": n, "train": {"batch": batch, "rounds": rounds}, **plan.as_card()}


def test_a_card_keeps_the_list_and_older_cards_have_one_entry():
    assert entries_of(card((0, 300), (40, 900))) == ((0, 300), (40, 900))
    assert card((0, 300), (40, 900))["steps"] == 900
    assert entries_of({"steps": 300}) == ((0, 300),)


def test_a_run_too_short_to_mean_anything_says_so_and_how_long_it_should_be():
    assert cautions(card((0, FEWEST))) == []
    [few] = cautions(card((0, FEWEST - 1)))
    assert few.startswith("too short to mean anything: 199 steps, 19.9 passes") and "200 steps" in few
    [passes] = cautions(card((0, 1000), n=10_000))
    assert "1.0 passes over the images; give it 200 steps and 2 passes or more" in passes
    assert cautions(card((0, 2000), n=10_000)) == []
    [rounds] = cautions(card((0, 3 * FEWEST - 1), rounds=3))
    assert "600 steps" in rounds and cautions(card((0, 3 * FEWEST), rounds=3)) == []


def test_a_lengthened_run_says_that_it_is_none_of_so_many_steps():
    said = "lengthened at step 1,000 from a finished run, which is not the same as 2,000 steps from the start"
    assert cautions(card((0, 500), (90, 1000), (1000, 2000))) == [said]
    assert cautions(card((0, 500), (90, 1000))) == []
