"""Tables of equal rows rarely have a best one, planted gaps are found as often as the table says, and the formulas as written."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from pretask.evals import paired
from pretask.evals.ranking import Ranking, rank


def table(rng: np.random.Generator, gaps, seeds=3, images=1000, spread=1.0, fixed=0) -> Ranking:
    """Rows whose accuracies differ by `gaps`, in points, on images that are more or less difficult, with seeds that differ by
    `spread` points; the last `fixed` rows have a single run."""
    difficulty, rows = rng.normal(size=images) * 1.5, {}
    for k, gap in enumerate(gaps):
        own = difficulty + 0.7 * rng.normal(size=images)  # rows err on different images
        several = k < len(gaps) - fixed
        points = gap + spread * rng.normal(size=(seeds if several else 1, 1)) * several
        rows[str(k)] = torch.from_numpy(
            rng.random((len(points), images)) < 1 / (1 + np.exp(-own)) + points / 100
        )
    return rank(rows)


def frequency(count, found, *gaps, **more) -> float:
    rng = np.random.default_rng(0)
    return sum(found(table(rng, gaps, **more)) for _ in range(count)) / count


def alone(found: Ranking) -> bool:
    return len(found.leading) == 1


def test_of_equal_rows_none_is_best():
    """In 2,000 tables; nor is one worse than the leader, which would often be so if only comparisons with it counted."""
    assert frequency(1000, alone, 0, 0) <= 0.05
    assert frequency(500, alone, 0, 0, 0, 0) <= 0.05
    assert frequency(500, lambda found: len(found.leading) < 7, *[0] * 7, fixed=3) <= 0.05


@pytest.mark.parametrize("gap", [2, 5, 10])
def test_planted_gaps_are_found_as_often_as_the_table_says(gap):
    rng, said, found = np.random.default_rng(gap), [], []
    for _ in range(500):
        one = table(rng, (gap, 0), spread=0.5, images=2000)
        said.append(next(iter(one.gaps.values())).power(gap))
        found.append(one.leader == "0" and alone(one))
    assert np.mean(found) == pytest.approx(np.mean(said), abs=0.08)


def test_gap_is_welchs_over_images_and_seeds_at_holms_level():
    rng = np.random.default_rng(1)
    rows = {
        name: torch.from_numpy(rng.random((seeds, 200)) < p)
        for name, seeds, p in (("a", 3, 0.8), ("b", 2, 0.6), ("c", 1, 0.5))
    }
    found, raw = rank(rows), {}
    assert list(found.scores) == ["a", "b", "c"]
    for pair in (("a", "b"), ("a", "c"), ("b", "c")):
        one, other = (100 * rows[name].double().numpy() for name in pair)
        sample = one.mean(0) - other.mean(0)
        parts = [(sample.var(ddof=1) / 200, 199)]
        parts += [(row.mean(1).var(ddof=1) / len(row), len(row) - 1) for row in (one, other) if len(row) > 1]
        error = math.sqrt(sum(v for v, _ in parts))
        freedom = error**4 / sum(v**2 / df for v, df in parts)
        raw[pair] = sample.mean(), error, freedom, 2 * student.sf(abs(sample.mean()) / error, freedom)
    adjusted = paired.holm({pair: p for pair, (*_, p) in raw.items()})
    for name in "bc":
        gap, (value, error, freedom, _) = found.gaps[name], raw["a", name]
        p, level = adjusted["a", name]
        margin = student.isf(level / 2, freedom) * error
        assert (gap.value, gap.low, gap.high, gap.p) == pytest.approx(
            (value, value - margin, value + margin, p)
        )


def test_a_row_without_any_difference_is_not_distinguished():
    right = torch.ones(1, 50)
    found = rank({"one": right, "other": right})
    assert (
        found.leading == ["one", "other"] and found.gaps["other"].p == 1 and found.gaps["other"].power(1) == 1
    )
