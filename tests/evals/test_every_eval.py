"""What must hold for every evaluation in pretask/evals, whatever it measures.

An evaluation is a module that is called on features, or on an encoder that it looks into or trains on; the other
modules of the folder make features, splits, intervals or the whole. A new one is named here, or the first test fails. A
task of `pretask transfer` is named in pretask/tasks/__init__.py and held to what test_transfer.py says of every task.
"""

import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pretask import data, encoders, evals
from pretask.data import LabeledDataset
from pretask.encoders import Encoder
from pretask.evals import (
    cka,
    cluster_metrics,
    fewshot,
    finetune,
    knn,
    label_free,
    linear_probe,
    nonlinear_probes,
    retrieval,
    svm,
    text_retrieval,
    track_retrieval,
)
from pretask.evals.holdout import Part, Splits, splits
from pretask.evals.measure import Chosen, Result
from pretask.ops import kmeans
from pretask.rng import Rng

AROUND = {
    "average_precision",
    "baselines",
    "confidence",
    "features",
    "forecast",
    "holdout",
    "measure",
    "multilabel",
    "protocol",
    "scores",
}
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


def score_text_retrieval(x: Tensor, label: Tensor, unseen: Tensor, truth: Tensor) -> Tensor:
    """Whether the first of all texts, each about its own class, is one of the sample's class."""
    logits = linear_probe.fit(x, label, CLASSES, 0.01).logits(unseen)
    apart = text_retrieval.kl_divergence(torch.nn.functional.one_hot(truth, CLASSES) + 0.01, logits)
    return text_retrieval.hits(apart.T, truth[:, None] == truth, 1)


PREDICT: dict[str, Callable[..., Tensor]] = {
    "knn": lambda x, label, unseen, truth: knn.knn(x, label, unseen, CLASSES, k=10),
    "linear_probe": lambda x, label, unseen, truth: linear_probe.fit(x, label, CLASSES, 0.01).predict(unseen),
    "fewshot": lambda x, label, unseen, truth: fewshot.fewshot(x, label, unseen, truth, CLASSES, 5, seed=0).T,
    "cluster_metrics": lambda x, label, unseen, truth: cluster_metrics.hungarian_correct(
        truth, kmeans.cluster(unseen, CLASSES, seed=0)
    ),
    "text_retrieval": lambda x, label, unseen, truth: score_text_retrieval(x, label, unseen, truth),
    "track_retrieval": lambda x, label, unseen, truth: torch.stack(
        [
            r.correct
            for r in track_retrieval.score_tracks(unseen, 2 * unseen, ~torch.eye(len(unseen)).bool())
            if r.correct is not None
        ],
        1,
    ),
    "retrieval": lambda x, label, unseen, truth: per_sample(retrieval.hits(unseen, truth)),
}
"""evaluation -> what it says of each test sample (Q, …)"""
ALL = PREDICT | {
    "label_free": lambda x, label, unseen, truth: numbers(label_free.metrics(unseen)),
    "cka": lambda x, label, unseen, truth: numbers(vars(cka.cka(unseen, unseen.abs()))),
}
CHOOSE: dict[str, Callable[..., Any]] = {
    "knn": lambda x, label, ways: knn.choose(x, label, CLASSES, ways),
    "linear_probe": lambda x, label, ways: linear_probe.choose(x, label, CLASSES, ways).penalty,
}
every = pytest.mark.parametrize("name", ALL)
NOTHING = linear_probe.Probe(torch.zeros(CLASSES, 1), torch.zeros(CLASSES))
CHOSEN = Chosen(1, {s: linear_probe.Choice(0.1, 0.5, lambda: NOTHING) for s in ("stem", "stage1", "stage2")})
THROUGH: dict[str, Callable[..., Iterator[Result]]] = {
    "finetune": lambda *given: finetune.score_finetuned(*given, seed=0, run=0, progress=False),
    "nonlinear_probes": lambda *given: nonlinear_probes.score_probes(*given, CHOSEN, seed=0, progress=False),
    "svm": lambda *given: svm.score_svm(*given, seed=0, progress=False),
}
"""evaluation -> what it finds of an encoder, a training set and a test set"""
through = pytest.mark.parametrize("name", THROUGH)


def test_every_module_of_the_folder_is_held_to_this():
    assert {m.name for m in pkgutil.iter_modules(evals.__path__)} == {
        *ALL,
        *THROUGH,
        *AROUND,
    }


@every
def test_it_leaves_its_inputs_and_the_random_state_alone(name):
    given, state = features(), torch.random.get_rng_state()
    ALL[name](**given)
    if name in CHOOSE:
        CHOOSE[name](given["x"], given["label"], splits(given["label"], 0))
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
        ways = splits(given["label"], 0)
        assert CHOOSE[name](given["x"], given["label"], ways) == CHOOSE[name](
            single["x"], given["label"], ways
        )


@pytest.mark.parametrize("name", PREDICT)
def test_test_samples_in_another_order_get_their_own_answers(name):
    given = features()
    order = Rng(1).permutation(Q)
    moved = given | {k: given[k][order] for k in ("unseen", "truth")}
    assert torch.equal(PREDICT[name](**given)[order], PREDICT[name](**moved))


@pytest.mark.parametrize("name", ["knn", "linear_probe"])  # a few-shot draw goes by the place of a sample
def test_training_samples_in_another_order_are_the_same_training_set(name):
    given = features()
    order = Rng(2).permutation(N)
    moved = given | {k: given[k][order] for k in ("x", "label")}
    changed = (PREDICT[name](**given) != PREDICT[name](**moved)).sum()
    assert changed <= {"knn": 0, "linear_probe": 1}[name]  # one may lie on the edge that rounding moves
    ways, now = splits(given["label"], 0), order.argsort()  # where each sample has gone
    along = Splits(now[ways.fit], ways.fit_mask, now[ways.held_out], ways.held_out_mask)
    chosen = CHOOSE[name](given["x"], given["label"], ways)
    assert chosen == CHOOSE[name](moved["x"], moved["label"], along)


def test_label_free_metrics_do_not_depend_on_order():
    x = features()["unseen"]
    torch.testing.assert_close(
        numbers(label_free.metrics(x)), numbers(label_free.metrics(x[Rng(3).permutation(Q)]))
    )


@pytest.mark.parametrize("name", PREDICT)
def test_separated_classes_are_classified_correctly(name):
    given = features()
    given["x"] += 50 * torch.eye(D)[given["label"]]
    given["unseen"] += 50 * torch.eye(D)[given["truth"]]
    found = PREDICT[name](**given)
    if name in ("knn", "linear_probe"):
        found = found == given["truth"]
    assert found.all()


@pytest.mark.parametrize("name", ["knn", "linear_probe", "fewshot"])
def test_classes_without_training_samples_are_never_predicted(name):
    given = features()
    there = given["label"] != 1
    found = PREDICT[name](given["x"][there], given["label"][there], given["unseen"], given["truth"])
    if name == "fewshot":
        assert not found[given["truth"] == 1].any() and found.any()
    else:
        assert set(found.tolist()) <= {0, 2, 3}


# ---- evaluations that are called on an encoder


def encoder() -> Encoder:
    torch.manual_seed(0)
    return encoders.build("resnet_small:width=4,stages=2", 3, 16)


def looked(name: str, net: Encoder, test: LabeledDataset | Part) -> Tensor:
    """(R, Q) correctness of R results on each test image."""
    train = data.open_labeled("synthetic:64:16")
    return torch.stack([r.correct for r in THROUGH[name](net, train, test) if r.correct is not None])


@pytest.fixture
def pictures(monkeypatch) -> LabeledDataset:
    for module in (finetune, nonlinear_probes):
        monkeypatch.setattr(module, "STEPS", 2)
    return data.open_labeled("synthetic:48:16")


@through
def test_the_encoder_and_the_random_state_are_left_alone(name, pictures):
    net = encoder()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.random.get_rng_state()
    looked(name, net, pictures)
    assert torch.equal(torch.random.get_rng_state(), state) and net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


@through
def test_what_was_drawn_before_and_the_order_of_the_test_set_have_no_say(name, pictures):
    net, order = encoder(), Rng(1).permutation(48)
    torch.manual_seed(1)
    one = looked(name, net, pictures)
    torch.manual_seed(2)
    assert torch.equal(one[:, order], looked(name, net, Part(pictures, order, "moved")))


@through
def test_no_answer_depends_on_the_test_labels(name, pictures):
    """Each image gets one answer: over all constant labels, every image is right exactly once."""
    net, once = encoder(), 0
    for k in range(CLASSES):
        once = once + looked(
            name, net, LabeledDataset(pictures.images, torch.full((48,), k), pictures.classes)
        )
    assert torch.equal(once, torch.ones_like(once))
