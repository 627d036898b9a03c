"""The whole evaluation on small synthetic images: all rows, choices without the test set, errors."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from small import quick_scores
from torch import nn
from torch.testing import assert_close

from pretask import data as sources
from pretask import encoders
from pretask.data import LabeledDataset
from pretask.data.arrays import Arrays
from pretask.encoders import Encoder
from pretask.evals import baselines, fewshot, finetune, knn, label_free, linear_probe, nonlinear_probes
from pretask.evals.features import Features, embed
from pretask.evals.holdout import split, splits
from pretask.evals.measure import Chosen, choose, score_clusters, score_probes
from pretask.evals.protocol import combine_runs, evaluate
from pretask.evals.scores import Measurement, Scores
from pretask.ops.kmeans import cluster
from pretask.reports import table
from pretask.rng import Rng
from pretask.types import UserError

NAME = "resnet_small:width=4,stages=2"
OTHERS = [f"untrained {NAME}", "raw pixels", "k-means patches"]
TRAIN = sources.open_labeled("synthetic:120:16")
TEST = sources.open_labeled("synthetic:64:16")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick_scores(monkeypatch)


def encoder(seed: int = 100) -> Encoder:
    torch.manual_seed(seed)
    return encoders.build(NAME, 3, 16)


def scored(*nets: Encoder, train=TRAIN, test: LabeledDataset | None = TEST, **options) -> Scores:
    return evaluate(list(nets) or [encoder()], train, test, name="own", centers=5, progress=False, **options)


def some(
    source: LabeledDataset, index: torch.Tensor, classes: list[str] | None = None, label=None
) -> LabeledDataset:
    image = source.__getitems__(index).image
    label = source.label[index] if label is None else label
    return LabeledDataset(Arrays("some", image), label, classes or source.classes)


def per_class(source: LabeledDataset, *counts: int) -> torch.Tensor:
    """Positions of the given numbers of samples of class 0, 1, …"""
    return torch.cat([(source.label == c).nonzero().flatten()[:n] for c, n in enumerate(counts)])


@pytest.fixture(scope="module")
def once():
    with pytest.MonkeyPatch.context() as patch:
        quick_scores(patch)
        return scored(supervised_steps=2)


# ---- rows and JSON


def test_every_table_has_all_baseline_rows(once):
    rows = list(dict.fromkeys(r.name for r in once.rows))
    assert rows == ["own", *OTHERS, f"supervised {NAME}"]
    assert {r.name for r in once.rows if r.role == "run"} == {"own"}
    assert f"supervised {NAME}" not in {r.name for r in scored().rows}
    titles = ["knn", "linear", "best linear", "1-shot", "5-shot", "10-shot", "nmi", "ari", "acc",
             "recall@1", "recall@2", "recall@4", "recall@8", "rankme", "alpha", "std", "cosine", "stability"]  # fmt: skip
    for row in rows:
        of_views = [] if row in ("raw pixels", "k-means patches") else ["lidar"]
        assert list(dict.fromkeys(r.title for r in once.rows if r.name == row)) == titles + of_views
    stages = [r.stage for r in once.rows if r.name == "own" and r.metric == "linear"]
    assert stages == ["stem", "stage1", "stage2", "pool"]


@pytest.mark.parametrize(
    ("name", "shown_as"),
    [
        ("untrained vit_tiny_patch16_224:patch_size=4,embed_dim=128", "untrained vit_tiny_patch16_224 "),
        ("untrained vit_little_patch16_reg1_gap_256_with_a_longer_name.sbb_in12k_ft_in1k", "ft_in1k "),
    ],
)
def test_long_encoder_names_do_not_truncate_numbers_at_80_columns(once, name, shown_as):
    rows = [replace(r, name=name) if r.role == "untrained" else r for r in once.rows]
    with open(os.devnull, "w") as nowhere:
        console = Console(width=80, record=True, file=nowhere)
        console.print(table.render(replace(once, rows=rows)))
    shown = console.export_text()
    assert "…" not in shown and all(len(line) <= 80 for line in shown.splitlines())
    assert shown_as in shown and table.cell(once.get("run", "knn")) in shown


def test_the_json_is_valid_and_contains_no_nan(once):
    def refuse(constant: str):
        raise AssertionError(constant)

    document = json.loads(once.to_json(), parse_constant=refuse)
    keys = {"schema", "data", "protocol", "rows", "differences", "skipped", "seconds", "records", "leaks"}
    assert set(document) == keys
    assert document["data"] == {"train": TRAIN.name, "n_train": 120, "test": TEST.name, "n_test": 64,
                            "classes": TRAIN.classes}  # fmt: skip


def test_every_value_is_within_its_interval(once):
    for r in once.rows:
        if r.metric in ("rankme", "alpha", "std", "cosine", "stability", "lidar"):
            assert r.low is None and r.high is None
        else:
            assert r.low <= r.value <= r.high
            assert 0 <= r.value <= 100 or r.metric == "ari"
        assert r.n == 64 and r.values == [pytest.approx(r.value)]


def test_differences_equal_those_of_the_rows(once):
    assert {d.minus for d in once.differences} == {*OTHERS, f"supervised {NAME}"}
    for d in once.differences:
        own, other = once.find("own", d), once.find(d.minus, d)
        assert other.role == d.minus_role
        assert d.value == pytest.approx(own.value - other.value)
        assert d.low <= d.value <= d.high


def test_difference_of_an_encoder_from_itself_is_exactly_zero():
    found = scored(baselines.untrained(encoder(), 0), seeds=[0])
    none = [d for d in found.differences if d.minus == f"untrained {NAME}"]
    assert [(d.value, d.low, d.high) for d in none] == [(0, 0, 0)] * 3


def test_the_best_stage_row_has_the_value_of_the_chosen_stage(once):
    for row in ("run", "untrained", "pixels", "patches"):
        best = once.get(row, "best linear")
        stage = best.chosen[0]["stage"]
        assert best.value == once.get(row, "linear", stage).value


def test_scores_are_written_to_the_folder_of_the_run(once, tmp_path):
    path = once.write(tmp_path)
    assert path == tmp_path / "scores" / "synthetic-64-16.json"
    assert json.loads(path.read_text()) == json.loads(once.to_json())


# ---- choices without the test set


def settings(scores: Scores) -> list[object]:
    return [
        (r.name, r.key, {k: c[k] for k in ("k", "penalty", "stage") if k in c})
        for r in scores.rows
        for c in r.chosen
    ]


def test_no_choice_depends_on_the_test_labels_or_images(once):
    shuffled = some(TEST, torch.arange(64), label=TEST.label[Rng(0).permutation(64)])
    found = scored(test=shuffled, supervised_steps=2)
    assert settings(found) == settings(once)
    assert once.get("patches", "linear").value > found.get("patches", "linear").value
    fewer = scored(test=some(TEST, torch.arange(20, 60)), supervised_steps=2)
    assert settings(fewer) == settings(once)


def test_k_and_penalties_are_chosen_on_the_same_splits_of_the_training_samples(monkeypatch):
    label = Rng(0, "held out").integers(200, high=3)
    x = torch.arange(200).float()[:, None]
    calls = []
    for module in (knn, linear_probe):
        monkeypatch.setattr(module, "choose", lambda *given: calls.append(given))
    choose(Features({"map": x, "pool": x}, label, [*"abc"], "toy"), 3, seed=0)
    assert len(calls) == 3  # k, and the penalty of each stage
    assert all(torch.equal(given[0], x) and torch.equal(given[1], label) for given in calls)
    assert all(torch.equal(given[3].fit_mask, splits(label, 0).fit_mask) for given in calls)


def test_the_best_stage_has_the_highest_held_out_accuracy_and_the_deepest_of_ties_wins():
    rng = Rng(0, "stages")
    label = rng.integers(120, high=3)
    plain, noise = torch.eye(3)[label] + 0.1 * rng.normal(120, 3), rng.normal(120, 3)
    names = [*"abc"]
    assert (
        choose(Features({"one": noise, "two": plain, "pool": noise}, label, names, ""), 3, 0).stage == "two"
    )
    assert (
        choose(Features({"one": plain, "two": plain, "pool": noise}, label, names, ""), 3, 0).stage == "two"
    )


def test_the_probe_chosen_for_a_stage_is_the_one_that_is_scored():
    label = torch.arange(90) % 3
    stages = {"map": torch.eye(3)[label], "pool": Rng(0, "noise").normal(90, 3)}
    data = Features(stages, label, [*"abc"], "toy")
    good, bad = (
        linear_probe.Probe(torch.eye(3), torch.zeros(3)),
        linear_probe.Probe(torch.zeros(3, 3), torch.zeros(3)),
    )
    chosen = Chosen(
        1,
        {
            "map": linear_probe.Choice(0.01, 0.4, lambda: good),
            "pool": linear_probe.Choice(0.01, 0.3, lambda: bad),
        },
    )
    one, best, other = score_probes(data, chosen)
    assert (one.metric, one.stage, one.value) == ("linear", "map", 100)
    assert (best.metric, best.notes["stage"], best.value) == ("best linear", "map", 100)
    assert (other.metric, other.stage) == ("linear", "pool") and other.value == pytest.approx(100 / 3)


def test_classes_numbered_differently_are_matched_by_name(once):
    backwards = some(TEST, torch.arange(64), TEST.classes[::-1], 3 - TEST.label)
    for one, other in zip(scored(test=backwards).rows, once.rows, strict=False):
        assert replace(one, data="") == replace(other, data="")


def test_a_test_set_with_fewer_classes_is_matched_by_name():
    two = some(TEST, per_class(TEST, 0, 10, 0, 10))
    renamed = LabeledDataset(two.images, (two.label == 3).long(), [TEST.classes[1], TEST.classes[3]])
    one, other = scored(test=two), scored(test=renamed)
    assert [r.value for r in one.rows] == [r.value for r in other.rows]


def test_classes_missing_from_the_training_set_are_named():
    strange = LabeledDataset(TEST.images, TEST.label, [*TEST.classes[:3], "unicorn"])
    with pytest.raises(UserError, match=r"classes that the training set lacks: unicorn; expected only ball"):
        scored(test=strange)
    silent = some(TRAIN, per_class(TRAIN, 20, 20, 20, 0))  # has the name, but no image
    with pytest.raises(UserError, match="lacks: tree"):
        scored(train=silent)


def test_without_a_test_set_a_fifth_of_each_class_is_held_out():
    data = scored(test=None).data
    kept, out = split(TRAIN.label, Rng(0, "test"))
    assert (data["n_train"], data["n_test"]) == (len(kept), len(out)) == (96, 24)
    fraction = TRAIN.label[out].bincount() / TRAIN.label.bincount()
    assert ((fraction - 0.2).abs() < 0.02).all()


@pytest.mark.parametrize("test", [TEST, None])
def test_on_features_gets_features_in_the_order_of_the_images(test):
    seen = []
    net = encoder()
    scored(net, encoder(7), test=test, seeds=(0, 1), on_features=lambda *given: seen.append(given))
    ((source, pool),) = seen  # of the first encoder only
    assert source is (test or TRAIN)
    assert_close(pool, embed(net, source, progress=False).stages["pool"], atol=1e-5, rtol=0)


def test_on_features_gets_no_features_if_an_image_could_not_be_read():
    broken = some(TEST, torch.arange(30))
    broken.ledger.mark_unreadable(7, "7.jpg", "truncated")
    seen = []
    scored(test=broken, on_features=lambda *given: seen.append(given))
    assert seen == [(broken, None)]


# ---- optional scores


@pytest.fixture(scope="module")
def more():
    with pytest.MonkeyPatch.context() as patch:
        quick_scores(patch)
        patch.setattr(finetune, "STEPS", 3)
        patch.setattr(nonlinear_probes, "STEPS", 3)
        yield scored(encoder(100), encoder(101), seeds=[8, 9], finetune=True, nonlinear=True, svm=True)


OPTIONAL = [
    *(Measurement(metric) for metric in ("mlp", "conv", "svm")),
    Measurement("finetune", shots=10),
    Measurement("finetune"),
]
KEYS = [each.key for each in OPTIONAL]


def test_optional_scores_are_rows_of_the_run_and_the_untrained_encoder(more, once):
    for row in ("own", *OTHERS):
        there = [r.key for r in more.rows if r.name == row and r.key in KEYS]
        assert there == (KEYS if row in ("own", OTHERS[0]) else [])
    assert not {r.key for r in once.rows} & {*KEYS}
    assert more.skipped == ["no 100-shot, finetune 100-shot: class 'tent' has 27 training images"]
    for what in OPTIONAL:
        for row in (more.find("own", what), more.find(OTHERS[0], what)):
            assert row.stage == "" and len(row.values) == 2 and row.seeds == [8, 9] and row.n == 64
            assert row.low <= row.value <= row.high
    stages = [c["stage"] for c in more.get("run", "mlp").chosen]
    assert {*stages} <= {"stem", "stage1", "stage2"}
    json.loads(more.to_json())


def test_optional_scores_are_compared_with_the_untrained_encoder_only(more):
    of = [(d.minus, d.key) for d in more.differences if d.key in KEYS]
    assert sorted(of, key=str) == sorted(((OTHERS[0], key) for key in KEYS), key=str)
    for d in more.differences:
        if d.key in KEYS:
            own, other = more.find("own", d), more.find(OTHERS[0], d)
            assert d.value == pytest.approx(own.value - other.value)
            assert d.low <= d.value <= d.high


def test_untrained_encoders_have_no_layer_decay_and_each_run_has_its_own_draw(monkeypatch):
    calls = []
    monkeypatch.setattr(finetune, "score_finetuned", lambda *a, **k: calls.append((a[0], k)) or iter(()))
    scored(encoder(100), encoder(101), seeds=[8, 9], seed=5, finetune=True)
    assert [(k["decay"], k["run"], k["seed"]) for _, k in calls] == [
        (finetune.DECAY, 8, 5), (finetune.DECAY, 9, 5), (1.0, 8, 5), (1.0, 9, 5)
    ]  # fmt: skip
    fresh = baselines.untrained(encoder(), 8).state_dict()
    assert all(torch.equal(v, fresh[k]) for k, v in calls[2][0].state_dict().items() if "running" not in k)


def test_fine_tuning_matches_the_classes_of_the_test_set_by_name(more, monkeypatch):
    monkeypatch.setattr(finetune, "STEPS", 3)
    monkeypatch.setattr(nonlinear_probes, "STEPS", 3)
    backwards = some(TEST, torch.arange(64), TEST.classes[::-1], 3 - TEST.label)
    options = {"seeds": [8, 9], "finetune": True, "nonlinear": True, "svm": True}
    found = scored(encoder(100), encoder(101), test=backwards, **options)
    for what in OPTIONAL:
        assert found.find("own", what).values == more.find("own", what).values


def test_missing_probes_of_an_encoder_without_maps_are_explained():
    net = encoders.build("mlp:width=8,depth=2", 3, 16)
    found = scored(net, nonlinear=True)
    assert found.get("run", "mlp") is None and found.get("run", "conv") is None
    assert found.skipped[-1] == "no mlp, conv: mlp:width=8,depth=2 has no map larger than 1 x 1"


# ---- several seeds


def test_several_runs_are_one_row_with_the_values_of_each():
    nets = [encoder(100), encoder(101)]
    both = scored(*nets, seeds=[8, 9])
    chosen = [c["stage"] for c in both.get("untrained", "best linear").chosen]
    assert len(set(chosen)) == 2  # each run has its own best stage
    for net, seed, place in zip(nets, (8, 9), (0, 1), strict=True):
        single = scored(net, seeds=[seed])
        for r in single.rows:
            row = both.find(r.name, r)
            assert row.values[place % len(row.values)] == pytest.approx(r.value)
            assert row.value == pytest.approx(sum(row.values) / len(row.values))
    assert {r.name: r.seeds for r in both.rows} == {
        "own": [8, 9], f"untrained {NAME}": [8, 9], "raw pixels": [0], "k-means patches": [0]
    }  # fmt: skip
    linear = both.get("run", "linear", "pool")
    low, high = min(linear.values), max(linear.values)
    assert linear.low < low < high < linear.high
    with pytest.raises(UserError, match="1 encoders and 2 seeds"):
        scored(encoder(), seeds=[0, 1])


def test_intervals_of_nmi_and_ari_are_centered_on_the_value():
    """Resampled sets contain duplicates, which raise the agreement, so their quantiles are too high."""
    rng = Rng(0, "interval")
    label = rng.integers(200, high=10)
    x = rng.normal(200, 5) + 0.8 * rng.normal(10, 5)[label]
    test = Features({"pool": x}, label, [*"abcdefghij"], "toy")
    found = cluster(x, 10, seed=0)
    drawn = [rng.integers(200, high=200) for _ in range(400)]
    reference = {"nmi": normalized_mutual_info_score, "ari": adjusted_rand_score}
    nmi, ari, acc = combine_runs([list(score_clusters(test, 0))], 0, name="own", role="run")
    assert acc.low < acc.value < acc.high
    for row in (nmi, ari):
        deviation = 100 * np.std([reference[row.metric](label[i], found[i]) for i in drawn])
        assert row.value == pytest.approx(100 * reference[row.metric](label, found))
        assert row.high - row.value == pytest.approx(1.97 * deviation, rel=0.2)
        assert row.value - row.low == pytest.approx(row.high - row.value)


# ---- small and unusable data


@pytest.mark.parametrize("count", [4, 9, 99])
def test_numbers_of_shots_above_the_smallest_class_are_listed_as_skipped(count):
    train = some(sources.open_labeled("synthetic:600:16"), torch.arange(600))
    train = some(train, per_class(train, 110, 110, count, 110))
    found = scored(train=train, test=some(TEST, torch.arange(20)))
    there = [s for s in fewshot.SHOTS if s <= count]
    missing = ", ".join(f"{s}-shot" for s in fewshot.SHOTS if s > count)
    assert found.skipped == [f"no {missing}: class 'tent' has {count} training images"]
    assert {r.shots for r in found.rows if r.metric == "few-shot"} == {*there}


def test_a_single_class_is_refused():
    with pytest.raises(UserError, match=r"some \(80 %\) has 1 class; scores need at least 2"):
        scored(train=some(TRAIN, per_class(TRAIN, 10)), test=None)


@pytest.mark.parametrize(("count", "test"), [(1, None), (1, TEST), (2, None)])
def test_single_images_cannot_be_held_out(count, test):
    with pytest.raises(UserError, match="give at least one class 3 images or more"):
        scored(train=some(TRAIN, per_class(TRAIN, *[count] * 4)), test=test)


def test_two_images_per_class_and_one_test_image_are_enough():
    found = scored(train=some(TRAIN, per_class(TRAIN, 2, 2, 2, 2)), test=some(TEST, torch.tensor([3])))
    assert found.get("run", "knn").n == 1 and found.get("run", "recall", k=1) is None
    assert found.get("run", "cosine") is None and found.get("run", "knn").value in (0, 100)


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match="has images of 3 x 24 px, the encoder takes 3 x 16"):
        scored(train=sources.open_labeled("synthetic:20:24"))


def collapsed(value: float) -> Encoder:
    """An encoder with the same features for every image."""
    net = encoder()
    for weight in net.parameters():
        nn.init.constant_(weight, 0.0 if weight.ndim > 1 else value)
    return net


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_encoder_scores_at_chance(value):
    found = scored(collapsed(value))
    json.loads(found.to_json())
    most = 100 * TEST.label.bincount().max().item() / 64
    for metric in ("knn", "linear", "best linear", "acc"):
        assert 0 <= found.get("run", metric).value <= most
    for shots in (1, 10):
        assert 0 <= found.get("run", "few-shot", shots=shots).value <= most
    assert found.get("run", "nmi").value == pytest.approx(0, abs=1e-9)
    assert found.get("run", "std").value == pytest.approx(0, abs=1e-6)
    assert found.get("run", "rankme").value == pytest.approx(math.ceil(value), abs=0.01)
    assert found.get("run", "alpha") is None


def test_one_collapsed_run_removes_only_the_scores_that_it_lacks():
    found = scored(encoder(), collapsed(1.0), seeds=[0, 1])
    assert found.get("run", "alpha") is None and found.get("untrained", "alpha") is not None
    assert len(found.get("run", "knn").values) == 2
    first, second = found.get("run", "rankme").values
    assert first > 1.1 and second == pytest.approx(1, abs=0.01)
    assert set(label_free.metrics(torch.ones(3, 2))) == {"rankme", "alpha", "std", "cosine"}


def test_a_diverged_run_is_a_one_line_error():
    net = encoder()
    nn.init.constant_(net.net.stage2[0].body[0].weight, torch.nan)
    with pytest.raises(UserError, match="the run has diverged") as error:
        scored(net)
    assert "\n" not in str(error.value)
