"""Average precision: golden values, each definition against a slow implementation, ties, resampled test sets."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from pretask.evals import average_precision

GOLDEN = {"11-point": 0.7695, "all-point": 0.7679, "step": 0.7470}
"""average precision of LABELS in decreasing order of score, computed by hand from the definitions"""
LABELS = np.array([1, 0, 1, 1, 0, 0, 1, 0])
ALL = average_precision.DEFINITIONS | {"101-point": average_precision.coco}


def ap(name, score, right, **more):
    return ALL[name](average_precision.curve(np.asarray(score, float), np.asarray(right), **more))


def slow(name, score, right, positives=None):
    """The definition, threshold by threshold."""
    positives = sum(right) if positives is None else positives
    points = []
    for threshold in sorted(set(score), reverse=True):
        found = [bool(r) for s, r in zip(score, right, strict=True) if s >= threshold]
        points.append((sum(found) / positives, sum(found) / len(found)))
    if name in ("11-point", "101-point"):
        n = 10 if name == "11-point" else 100
        best = [max([p for r, p in points if r >= k / n - 1e-12], default=0.0) for k in range(n + 1)]
        return sum(best) / (n + 1)
    total, before = 0.0, 0.0
    for i, (r, p) in enumerate(points):
        total += (r - before) * (max(q for _, q in points[i:]) if name == "all-point" else p)
        before = r
    return total


@pytest.mark.parametrize("name", GOLDEN)
def test_the_three_definitions_give_their_golden_values(name):
    assert round(ap(name, -np.arange(8), LABELS)[0], 4) == GOLDEN[name]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_average_precision_matches_the_definition(name, ties):
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 40, 41):
        score, right = rng.normal(size=n), rng.random(n) < 0.4
        right[0] = True
        score = score.round(0) if ties else score
        assert ap(name, score, right)[0] == pytest.approx(slow(name, score.tolist(), right.tolist()))


@pytest.mark.parametrize("name", ALL)
def test_positives_without_a_score_count_as_missed(name):
    """A detector that finds two of five objects, the second after a false positive."""
    score, right = [0.9, 0.8, 0.7], [1, 0, 1]
    assert ap(name, score, right, positives=5.0)[0] == pytest.approx(slow(name, score, right, 5))
    assert ap(name, [], [], positives=5.0)[0] == 0


@pytest.mark.parametrize("name", ALL)
def test_a_perfect_ranking_scores_1_and_no_positives_give_nan(name):
    assert ap(name, [4, 3, 2, 1], [1, 1, 0, 0])[0] == 1
    assert np.isnan(ap(name, [4, 3, 2, 1], [0, 0, 0, 0])[0])


def test_step_matches_scikit_learn():
    rng = np.random.default_rng(1)
    score, right = rng.normal(size=200).round(1), rng.random(200) < 0.2
    assert ap("step", score, right)[0] == pytest.approx(average_precision_score(right, score))


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_tied_scores_does_not_matter(name):
    score, right = np.array([1.0, 1, 1, 0, 0]), np.array([1, 0, 0, 1, 0])
    assert ap(name, score, right)[0] == ap(name, score[::-1], right[::-1])[0]


@pytest.mark.parametrize("name", ALL)
def test_a_weighted_test_set_equals_one_with_repeated_samples(name):
    rng = np.random.default_rng(2)
    score, right = rng.normal(size=30).round(1), rng.random(30) < 0.4
    weight = rng.multinomial(30, np.full(30, 1 / 30), size=5)
    for one, times in zip(ap(name, score, right, weight=weight), weight, strict=True):
        assert one == pytest.approx(slow(name, score.repeat(times).tolist(), right.repeat(times).tolist()))


def test_the_mean_skips_classes_without_positives():
    each = [np.array([0.2, np.nan, np.nan]), np.array([0.4, 0.6, np.nan])]
    assert average_precision.mean_over_classes(each).tolist() == pytest.approx([0.3, 0.6, 0])
