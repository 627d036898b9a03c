"""Training curves of the results: means and ranges over runs, against values computed by hand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "results"))
import curves


def log(count: int, offset: float) -> list[dict]:
    return [
        {"step": i, "epoch": 0, "loss": i + offset} | ({"late": 1.0} if i >= count // 2 else {})
        for i in range(count)
    ]


def test_points_are_means_over_parts_of_the_run_and_ranges_over_runs():
    found = curves.curve([log(100, 0.0), log(100, 10.0)])
    assert found["runs"] == 2 and found["step"] == list(range(1, 100, 2))
    loss = found["columns"]["loss"]
    assert loss["low"] == [i + 0.5 for i in range(0, 100, 2)]
    assert loss["mean"] == [i + 5.5 for i in range(0, 100, 2)]
    assert loss["high"] == [i + 10.5 for i in range(0, 100, 2)]
    assert found["columns"]["late"]["mean"] == [None] * 25 + [1.0] * 25
    assert "epoch" not in found["columns"]


def test_runs_of_different_lengths_are_compared_at_the_same_fraction():
    found = curves.curve([log(100, 0.0), log(200, 0.0)])
    assert found["step"][0] == 2 and found["step"][-1] == 149  # mean of 1 and 3, of 99 and 199
    assert found["columns"]["loss"]["mean"][0] == pytest.approx((0.5 + 1.5) / 2)


def test_a_run_with_fewer_rows_than_points_repeats_them():
    found = curves.curve([log(10, 0.0)])
    assert len(found["step"]) == curves.POINTS
    assert found["step"][0] == 0 and found["step"][-1] == 9 and found["step"] == sorted(found["step"])
