"""The plan of a comparison: its rungs fill the budget, and a budget that is too small says what works."""

import pytest

from pretask.errors import UserError
from pretask.workflows import halving
from pretask.workflows.halving import Costs, final_length, plan, planned

COSTS = Costs(spent=60.0, run=10.0, test=5.0, end=120.0)


def total(found, costs=COSTS) -> float:
    """Seconds of the whole command."""
    runs = [*found.counts[:-1], found.counts[-1] * found.seeds]
    training = sum(count * (length + costs.run) for count, length in zip(runs, found.lengths, strict=True))
    return costs.spent + costs.end + training + runs[-1] * costs.test


@pytest.mark.parametrize(("candidates", "seeds"), [(5, 3), (6, 3), (9, 1), (3, 3), (2, 5)])
def test_plan_fills_the_budget_with_runs_three_times_as_long_in_each_rung(candidates, seeds):
    found = plan(3600, candidates, seeds, COSTS)
    assert total(found) == pytest.approx(3600)
    assert found.counts[0] == candidates and found.counts[-1] == min(halving.FINALISTS, candidates)
    assert list(found.counts) == sorted(found.counts, reverse=True)
    for shorter, longer in zip(found.lengths, found.lengths[1:], strict=False):
        assert longer == pytest.approx(3 * shorter)


def test_six_candidates_train_in_three_rungs_and_half_of_them_go_on():
    found = plan(3600, 6, 3, COSTS)
    assert list(found.counts) == [6, 3, 3]
    unit = (3600 - 180 - 18 * 10 - 9 * 5) / (6 + 3 * 3 + 9 * 9)
    assert found.lengths[0] == pytest.approx(unit)
    assert found.sentence.startswith(
        "6 candidates · 3 rungs of 0:33, 1:40 and about 5:00 a run · 3 finalists × 3 seeds"
    )


def test_smaller_budgets_get_two_rungs_and_too_small_ones_the_smallest_that_works():
    assert len(plan(1500, 6, 3, COSTS).counts) == 3 and len(plan(900, 6, 3, COSTS).counts) == 2
    assert list(plan(3600, 3, 3, COSTS).counts) == [3, 3]
    with pytest.raises(
        UserError, match=r"--budget 300s is too short for 6 candidates and 3 seeds.*give (\d+)s"
    ) as refused:
        plan(300, 6, 3, COSTS)
    least = int(str(refused.value).partition("give ")[2].partition("s")[0])
    assert plan(least, 6, 3, COSTS).lengths[0] == pytest.approx(halving.SHORTEST, abs=0.1)
    with pytest.raises(UserError):
        plan(least - 2, 6, 3, COSTS)


def test_later_rungs_are_planned_from_what_is_left():
    """A slow start shortens the later rungs instead of the end."""
    late = Costs(spent=1800.0, run=20.0, test=5.0, end=120.0)
    assert total(planned(3600, [3, 3], 3, late), late) == pytest.approx(3600)


@pytest.mark.parametrize("finalists", [2, 3, 4])
def test_finalists_share_what_is_left(finalists):
    length = final_length(3600, finalists, 3, COSTS)
    assert finalists * 3 * (length + COSTS.run + COSTS.test) == pytest.approx(3600 - COSTS.spent - COSTS.end)
