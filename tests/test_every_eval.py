"""What must hold for every evaluation in pretask/evals, whatever it measures.

An evaluation is a module that is called on features; the other modules of the folder make features, splits,
intervals or the whole. A new one is named here, or the first test fails.
"""

import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pretask import evals
from pretask.evals import clustering, fewshot, knn, linear, retrieval, spread
from pretask.rng import Rng

AROUND = {"baselines", "evaluate", "features", "holdout", "interval", "measure"}
CLASSES = 4
N, Q, D = 240, 90, 12


def features(seed: int = 0) -> dict[str, Tensor]:
    """Training and test features of overlapping classes."""
    rng = Rng(seed, "features")
    middle = 1.5 * rng.normal(CLASSES, D)
    label, truth = rng.integers(N, high=CLASSES), rng.integers(Q, high=CLASSES)
    x, unseen = middle[label] + rng.normal(N, D), middle[truth] + rng.normal(Q, D)
    return {"x": x, "label": label, "unseen": unseen, "truth": truth}


def per_sample(hits: dict[int, Tensor]) -> Tensor:
    return torch.stack([*hits.values()], 1)


def numbers(found: dict[str, float]) -> Tensor:
    return torch.tensor([*found.values()]).double()


PREDICT: dict[str, Callable[..., Tensor]] = {
    "knn": lambda x, label, unseen, truth: knn.knn(x, label, unseen, CLASSES, k=10),
    "linear": lambda x, label, unseen, truth: linear.fit(x, label, CLASSES, 0.01).predict(unseen),
    "fewshot": lambda x, label, unseen, truth: fewshot.fewshot(x, label, unseen, truth, CLASSES, 5, seed=0).T,
    "clustering": lambda x, label, unseen, truth: clustering.matched(
        truth, clustering.cluster(unseen, CLASSES, seed=0)
    ),
    "retrieval": lambda x, label, unseen, truth: per_sample(retrieval.hits(unseen, truth)),
}
"""evaluation -> what it says of each test sample (Q, …)"""
ALL = PREDICT | {"spread": lambda x, label, unseen, truth: numbers(spread.spread(unseen))}
CHOOSE: dict[str, Callable[..., Any]] = {
    "knn": lambda x, label, held, truth: knn.choose(x, label, held, truth, CLASSES),
    "linear": lambda x, label, held, truth: linear.choose(x, label, held, truth, CLASSES).penalty,
}
every = pytest.mark.parametrize("name", ALL)


def test_every_module_of_the_folder_is_held_to_this():
    assert {m.name for m in pkgutil.iter_modules(evals.__path__)} == {*ALL, *AROUND}


@every
def test_it_leaves_its_inputs_and_the_random_state_alone(name):
    given, state = features(), torch.random.get_rng_state()
    ALL[name](**given)
    if name in CHOOSE:
        CHOOSE[name](*given.values())
    assert all(torch.equal(given[k], v) for k, v in features().items())
    assert torch.equal(torch.random.get_rng_state(), state)


@every
def test_equal_seeds_give_equal_answers_whatever_was_drawn_before(name):
    torch.manual_seed(1)
    one = ALL[name](**features())
    torch.manual_seed(2)
    assert torch.equal(one, ALL[name](**features()))


@every
def test_half_precision_says_what_the_same_numbers_in_single_precision_say(name):
    given = features() | {k: features()[k].half() for k in ("x", "unseen")}
    single = given | {k: given[k].float() for k in ("x", "unseen")}
    assert torch.equal(ALL[name](**given), ALL[name](**single))
    if name in CHOOSE:
        assert CHOOSE[name](*given.values()) == CHOOSE[name](*single.values())


@pytest.mark.parametrize("name", PREDICT)
def test_test_samples_in_another_order_get_their_own_answers(name):
    given = features()
    order = Rng(1).permutation(Q)
    moved = given | {k: given[k][order] for k in ("unseen", "truth")}
    assert torch.equal(PREDICT[name](**given)[order], PREDICT[name](**moved))


@pytest.mark.parametrize("name", ["knn", "linear"])  # a few-shot draw goes by the place of a sample
def test_training_samples_in_another_order_are_the_same_training_set(name):
    given = features()
    order = Rng(2).permutation(N)
    moved = given | {k: given[k][order] for k in ("x", "label")}
    changed = (PREDICT[name](**given) != PREDICT[name](**moved)).sum()
    assert changed <= {"knn": 0, "linear": 1}[name]  # one may lie on the edge that rounding moves
    assert CHOOSE[name](*given.values()) == CHOOSE[name](*moved.values())


def test_spread_knows_no_order():
    x = features()["unseen"]
    torch.testing.assert_close(numbers(spread.spread(x)), numbers(spread.spread(x[Rng(3).permutation(Q)])))


@pytest.mark.parametrize("name", PREDICT)
def test_classes_that_lie_apart_are_told_apart(name):
    given = features()
    given["x"] += 50 * torch.eye(D)[given["label"]]
    given["unseen"] += 50 * torch.eye(D)[given["truth"]]
    found = PREDICT[name](**given)
    if name in ("knn", "linear"):
        found = found == given["truth"]
    assert found.all()


@pytest.mark.parametrize("name", ["knn", "linear", "fewshot"])
def test_classes_without_training_samples_are_never_predicted(name):
    given = features()
    there = given["label"] != 1
    found = PREDICT[name](given["x"][there], given["label"][there], given["unseen"], given["truth"])
    if name == "fewshot":
        assert not found[given["truth"] == 1].any() and found.any()
    else:
        assert set(found.tolist()) <= {0, 2, 3}
