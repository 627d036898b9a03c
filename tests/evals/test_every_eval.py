"""Properties of all evaluations in pretask/evals.

An evaluation is a module that is called on features, or on an encoder that it reads or fine-tunes; the other modules of
the folder compute features, splits and intervals, or run all evaluations. The first test fails until a new module is
listed here. The tasks of `pretask transfer` are listed in pretask/tasks/__init__.py and tested in test_transfer.py.
"""

import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pretask import data, encoders, evals
from pretask.data import LabeledDataset
from pretask.data.subset import LabeledSubset
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
from pretask.evals.holdout import Splits, splits
from pretask.evals.measure import Chosen, Result
from pretask.ops import kmeans
from pretask.rng import Rng

OTHER_MODULES = {
    "average_precision",
    "bands",
    "baselines",
    "calibration",
    "confidence",
    "decision",
    "features",
    "forecast",
    "head",
    "holdout",
    "label_curve",
    "leaks",
    "measure",
    "multilabel",
    "paired",
    "protocol",
    "ranking",
    "scores",
    "stage_probe",
}
CLASSES = 4
N, Q, D = 240, 90, 12


def features(seed: int = 0) -> dict[str, Tensor]:
    """Training and test features of overlapping classes."""
    rng = Rng(seed, "features")
    center = 1.5 * rng.normal(CLASSES, D)
    label, truth = rng.integers(N, high=CLASSES), rng.integers(Q, high=CLASSES)
    x, unseen = center[label] + rng.normal(N, D), center[truth] + rng.normal(Q, D)
    return {"x": x, "label": label, "unseen": unseen, "truth": truth}


def per_sample(hits: dict[int, Tensor]) -> Tensor:
    return torch.stack([*hits.values()], 1)


def numbers(found: dict[str, float]) -> Tensor:
    return torch.tensor([*found.values()]).double()


def score_text_retrieval(x: Tensor, label: Tensor, unseen: Tensor, truth: Tensor) -> Tensor:
    """Whether the nearest text, each of which describes one class, is of the sample's class."""
    logits = linear_probe.fit(x, label, CLASSES, 0.01).logits(unseen)
    divergence = text_retrieval.kl_divergence(torch.nn.functional.one_hot(truth, CLASSES) + 0.01, logits)
    return text_retrieval.hits(divergence.T, truth[:, None] == truth, 1)


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
"""evaluation -> its result for each test sample (Q, …)"""
ALL = PREDICT | {
    "label_free": lambda x, label, unseen, truth: numbers(label_free.metrics(unseen)),
    "cka": lambda x, label, unseen, truth: numbers(vars(cka.cka(unseen, unseen.abs()))),
}
CHOOSE: dict[str, Callable[..., Any]] = {
    "knn": lambda x, label, ways: knn.choose(x, label, CLASSES, ways),
    "linear_probe": lambda x, label, ways: linear_probe.choose(x, label, CLASSES, ways).penalty,
}
every = pytest.mark.parametrize("name", ALL)
ZERO_PROBE = linear_probe.Probe(torch.zeros(CLASSES, 1), torch.zeros(CLASSES))
CHOSEN = Chosen(
    1, {s: linear_probe.Choice(0.1, 0.5, lambda: ZERO_PROBE) for s in ("stem", "stage1", "stage2")}
)
ON_ENCODER: dict[str, Callable[..., Iterator[Result]]] = {
    "finetune": lambda *given: finetune.score_finetuned(*given, seed=0, run=0, progress=False),
    "nonlinear_probes": lambda *given: nonlinear_probes.score_probes(*given, CHOSEN, seed=0, progress=False),
    "svm": lambda *given: svm.score_svm(*given, seed=0, progress=False),
}
"""evaluation -> its results for an encoder, a training set and a test set"""
on_encoder = pytest.mark.parametrize("name", ON_ENCODER)


def test_every_module_of_the_folder_is_listed_here():
    assert {m.name for m in pkgutil.iter_modules(evals.__path__)} == {
        *ALL,
        *ON_ENCODER,
        *OTHER_MODULES,
    }


@every
def test_inputs_and_the_random_state_are_unchanged(name):
    given, state = features(), torch.random.get_rng_state()
    ALL[name](**given)
    if name in CHOOSE:
        CHOOSE[name](given["x"], given["label"], splits(given["label"], 0))
    assert all(torch.equal(given[k], v) for k, v in features().items())
    assert torch.equal(torch.random.get_rng_state(), state)


@every
def test_results_do_not_depend_on_earlier_random_numbers(name):
    torch.manual_seed(1)
    one = ALL[name](**features())
    torch.manual_seed(2)
    assert torch.equal(one, ALL[name](**features()))


@every
def test_half_precision_gives_the_results_of_the_same_values_in_single_precision(name):
    given = features() | {k: features()[k].half() for k in ("x", "unseen")}
    single = given | {k: given[k].float() for k in ("x", "unseen")}
    assert torch.equal(ALL[name](**given), ALL[name](**single))
    if name in CHOOSE:
        ways = splits(given["label"], 0)
        assert CHOOSE[name](given["x"], given["label"], ways) == CHOOSE[name](
            single["x"], given["label"], ways
        )


@pytest.mark.parametrize("name", PREDICT)
def test_reordering_test_samples_reorders_their_results(name):
    given = features()
    order = Rng(1).permutation(Q)
    moved = given | {k: given[k][order] for k in ("unseen", "truth")}
    assert torch.equal(PREDICT[name](**given)[order], PREDICT[name](**moved))


@pytest.mark.parametrize("name", ["knn", "linear_probe"])  # few-shot draws depend on positions
def test_the_order_of_training_samples_does_not_matter(name):
    given = features()
    order = Rng(2).permutation(N)
    moved = given | {k: given[k][order] for k in ("x", "label")}
    changed = (PREDICT[name](**given) != PREDICT[name](**moved)).sum()
    assert (
        changed <= {"knn": 0, "linear_probe": 1}[name]
    )  # one sample may be on a decision boundary, which rounding moves
    ways, now = splits(given["label"], 0), order.argsort()  # new position of each sample
    reordered = Splits(now[ways.fit], ways.fit_mask, now[ways.held_out], ways.held_out_mask)
    chosen = CHOOSE[name](given["x"], given["label"], ways)
    assert chosen == CHOOSE[name](moved["x"], moved["label"], reordered)


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
    present = given["label"] != 1
    found = PREDICT[name](given["x"][present], given["label"][present], given["unseen"], given["truth"])
    if name == "fewshot":
        assert not found[given["truth"] == 1].any() and found.any()
    else:
        assert set(found.tolist()) <= {0, 2, 3}


# ---- evaluations of an encoder


def encoder() -> Encoder:
    torch.manual_seed(0)
    return encoders.build("resnet_small:width=4,stages=2", 3, 16)


def correctness(name: str, net: Encoder, test: LabeledDataset | LabeledSubset) -> Tensor:
    """(R, Q): whether each of R results is correct on each test image."""
    train = data.open_labeled("synthetic:64:16")
    return torch.stack([r.correct for r in ON_ENCODER[name](net, train, test) if r.correct is not None])


@pytest.fixture
def pictures(monkeypatch) -> LabeledDataset:
    for module in (finetune, nonlinear_probes):
        monkeypatch.setattr(module, "STEPS", 2)
    return data.open_labeled("synthetic:48:16")


@on_encoder
def test_the_encoder_and_the_random_state_are_unchanged(name, pictures):
    net = encoder()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.random.get_rng_state()
    correctness(name, net, pictures)
    assert torch.equal(torch.random.get_rng_state(), state) and net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


@on_encoder
def test_results_on_an_encoder_do_not_depend_on_earlier_random_numbers_or_test_order(name, pictures):
    net, order = encoder(), Rng(1).permutation(48)
    torch.manual_seed(1)
    one = correctness(name, net, pictures)
    torch.manual_seed(2)
    assert torch.equal(one[:, order], correctness(name, net, LabeledSubset(pictures, order, "moved")))


@on_encoder
def test_predictions_do_not_depend_on_the_test_labels(name, pictures):
    """An image gets one prediction, so over all constant labels it is correct exactly once."""
    net, once = encoder(), 0
    for k in range(CLASSES):
        once = once + correctness(
            name, net, LabeledDataset(pictures.images, torch.full((48,), k), pictures.classes)
        )
    assert torch.equal(once, torch.ones_like(once))
