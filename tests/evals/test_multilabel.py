"""Several labels per image: mean average precision against scikit-learn, probes on features with options scores, the whole
evaluation on small images, and a one-line error from protocols for single labels."""

import json
import os

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from small import quick_scores

import pretask
from pretask import data as sources
from pretask import encoders
from pretask.cli import main
from pretask.data import LabeledDataset
from pretask.data.arrays import Arrays
from pretask.evals import finetune, linear_probe, multilabel
from pretask.evals.features import Features
from pretask.evals.holdout import split, splits, strata
from pretask.evals.protocol import evaluate
from pretask.evals.scores import Measurement
from pretask.reports import html, table
from pretask.reports.features import neighbor_rows
from pretask.rng import Rng
from pretask.types import UserError

NAME = "resnet_small:width=4,stages=2"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick_scores(monkeypatch)
    monkeypatch.setattr(finetune, "STEPS", 2)


def features(n: int, seed: int = 0, noise: float = 0.0) -> Features:
    """Four classes, each present in an image with probability 0.3, and one feature for each class."""
    rng = np.random.default_rng(seed)
    label = torch.from_numpy((rng.random((n, 4)) < 0.3).astype(np.int8))
    x = label.float() + noise * torch.from_numpy(rng.normal(size=(n, 4))).float()
    unrelated = torch.from_numpy(rng.normal(size=(n, 6))).float()
    return Features({"stage1": unrelated, "pool": x}, label, list("abcd"), "made")


def pictures(n: int, seed: int = 0, name: str = "made") -> LabeledDataset:
    """16 px: classes r, g and b are the brightness of a channel; no image has class never."""
    rng = np.random.default_rng(seed)
    label = (rng.random((n, 4)) < 0.4).astype(np.int8) * np.array([1, 1, 1, 0], np.int8)
    image = rng.integers(0, 60, (n, 3, 16, 16)) + 150 * label[:, :3, None, None].astype(int)
    return LabeledDataset(
        Arrays(name, torch.from_numpy(image.astype(np.uint8))),
        torch.from_numpy(label),
        ["r", "g", "b", "never"],
    )


def encoder(seed: int = 0):
    torch.manual_seed(seed)
    return encoders.build(NAME, 3, 16)


def scored(train: LabeledDataset, test: LabeledDataset | None = None, **options):
    return evaluate([encoder()], train, test, name="own", centers=5, progress=False, **options)


# ---- average precision


@pytest.mark.parametrize("digits", [0, 1, 6])
def test_average_precision_matches_scikit_learn_with_and_without_ties(digits):
    rng = np.random.default_rng(0)
    score, label = rng.normal(size=(50, 4)).round(digits), (rng.random((50, 4)) < 0.3).astype(np.int8)
    found = multilabel.average_precisions(torch.from_numpy(score), torch.from_numpy(label))
    assert found == pytest.approx(
        [average_precision_score(y, s) for y, s in zip(label.T, score.T, strict=True)]
    )


def test_resampled_scores_equal_those_of_repeated_samples():
    some = features(40, noise=1.0)
    weight = multilabel.bootstrap_weights(40, 3)
    found = multilabel.map_result(
        Measurement("linear mAP", "pool"), [some.stages["pool"]], some.label, weight
    )
    score, label = some.stages["pool"].numpy(), some.label.numpy()
    assert found.value == pytest.approx(100 * average_precision_score(label, score))
    for r in (0, 7):
        index = np.repeat(np.arange(40), weight[1 + r].astype(int))
        expected = 100 * average_precision_score(label[index], score[index])
        assert found.bootstrap is not None and found.bootstrap[r] == pytest.approx(expected)


def test_a_resample_without_images_of_a_class_skips_that_class():
    score, label = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]]), torch.tensor([[1, 1], [0, 0], [0, 0]])
    weight = np.array([[1, 1, 1], [0, 2, 1]])
    found = multilabel.map_result(Measurement("knn mAP"), [score], label, weight)
    assert found.value == pytest.approx(100 * (1 + 1 / 3) / 2) and found.bootstrap == pytest.approx([0.0])


def test_random_order_scores_about_the_fraction_of_positives():
    label = (torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)) < 0.25).to(torch.int8)
    assert multilabel.chance(label, 0) == pytest.approx(25, abs=1)


# ---- the protocol


def test_the_probe_matches_one_logistic_regression_per_class():
    some, penalty = features(80, noise=0.5), 0.01
    x, label = some.stages["pool"], some.label
    design = linear_probe.Design(x)
    probe = design.probe(multilabel.BinaryProblem(design, label, 4).solve(penalty, tolerance=1e-9)[0])
    rows = ((x - x.mean(0)) / x.std(0, correction=0)).double().numpy()
    for k in range(4):
        slow = LogisticRegression(C=1 / (penalty * 80), tol=1e-8, max_iter=1000).fit(rows, label[:, k])
        assert probe.logits(x)[:, k].numpy() == pytest.approx(slow.decision_function(rows), abs=2e-3)


def test_the_knn_score_is_the_fraction_of_votes_for_the_class():
    similarity, index = torch.tensor([[1.0, 0.93]]), torch.tensor([[2, 0]])
    label = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 0]], dtype=torch.int8)
    first, second = np.exp(1 / 0.07), np.exp(0.93 / 0.07)
    found = multilabel.vote_fractions(similarity, index, label)
    assert found.tolist() == [pytest.approx([second / (first + second), 1.0, 0.0])]


def test_features_that_show_the_classes_score_100_and_noise_scores_chance():
    train, test = features(110), features(100, seed=1)
    found = {(r.title, r.stage): r for r in multilabel.measure(train, test, multilabel.choose(train, 4, 0))}
    assert found["linear mAP", "pool"].value == pytest.approx(100)
    assert found["knn mAP", "pool"].value > 99
    assert found["best linear mAP", ""].notes["stage"] == "pool"
    assert found["100 images mAP", "pool"].value > 99
    chance = multilabel.chance(test.label, 0)
    noise = found["linear mAP", "stage1"]
    assert noise.bootstrap is not None and abs(noise.value - chance) < 4 * noise.bootstrap.std() + 3


def test_the_chosen_k_is_best_on_held_out_images():
    """On a short arc all similarities are close: blocks of a class need few neighbors, a weak trend needs many."""
    angle = torch.linspace(0, 0.3, 200)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    blocks = (torch.arange(200) // 10 % 2)[:, None].to(torch.int8)
    trend = (torch.rand(200, generator=torch.Generator().manual_seed(0)) < angle / 0.3)[:, None].to(
        torch.int8
    )
    ways = splits(strata(blocks), 0)
    assert multilabel.choose_k(x, blocks, ways, (2, 100)) == 2
    assert multilabel.choose_k(x, trend, ways, (2, 100)) == 100


def test_the_chosen_penalty_is_best_on_held_out_images():
    some = features(25, noise=1.0)
    x = torch.cat([some.stages["pool"], torch.randn(25, 40, generator=torch.Generator().manual_seed(0))], 1)
    ways = splits(strata(some.label), 0)
    choice = linear_probe.choose(
        x, some.label, 4, ways, multilabel.BinaryProblem, metric=multilabel.held_out_map
    )
    problem = multilabel.BinaryProblem(
        design := linear_probe.Design(x), some.label[ways.fit], 4, ways.fit_mask, ways.fit
    )

    def score(penalty: float) -> float:
        weight, bias = design.fold(problem.solve(penalty))
        held = linear_probe.logits(design.rows[ways.held_out], weight, bias)
        found = []
        for logits, held_out_mask in zip(held.unbind(1), ways.held_out_mask, strict=True):
            label = some.label[ways.held_out][held_out_mask]
            found.append(
                [
                    average_precision_score(label[:, k], logits[held_out_mask][:, k])
                    if label[:, k].any()
                    else np.nan
                    for k in range(4)
                ]
            )
        return float(np.nanmean(np.nanmean(found, 0)))

    assert choice.score == pytest.approx(score(choice.penalty), abs=0.01)
    assert choice.score >= max(score(penalty) for penalty in (1.0, 1e-3)) - 0.01


def test_held_out_images_are_random_over_all_images():
    label = features(50).label
    kept, out = split(strata(label), Rng(0, "test"))
    assert (len(kept), len(out)) == (40, 10) and not set(kept.tolist()) & set(out.tolist())
    ways = splits(strata(label), 0)
    assert ways.held_out_mask.sum(0).unique().numel() == 1  # all equally often


# ---- the whole evaluation


@pytest.fixture(scope="module")
def once():
    with pytest.MonkeyPatch.context() as patch:
        quick_scores(patch)
        patch.setattr(finetune, "STEPS", 2)
        return scored(pictures(110), pictures(60, 1, "unseen"), supervised_steps=2, finetune=True)


def test_every_row_has_all_map_metrics_and_no_accuracy(once):
    rows = list(dict.fromkeys(r.name for r in once.rows))
    others = [f"untrained {NAME}", "raw pixels", "k-means patches", f"supervised {NAME}"]
    assert rows == ["own", *others]
    frozen = ["knn mAP", "linear mAP", "best linear mAP", "10 images mAP", "100 images mAP"]
    tuned = ["finetune 100 images mAP", "finetune mAP"]
    free = ["rankme", "alpha", "std", "cosine", "stability", "lidar"]
    for row in rows:
        expected = (
            frozen
            + (free if "patches" not in row and "pixels" not in row else free[:-1])
            + (tuned if row in ("own", others[0]) else [])
        )
        assert list(dict.fromkeys(r.title for r in once.rows if r.name == row)) == expected
    for r in once.rows:
        if r.metric not in free:
            assert r.low <= r.value <= r.high and r.n == 60
    assert json.loads(once.to_json())["data"]["classes"] == ["r", "g", "b"]


def test_classes_visible_in_the_pixels_score_above_chance(once):
    pixels = once.get("pixels", "linear mAP")
    assert pixels.value > 95 and pixels.low > once.data["chance"] + 10
    assert 30 < once.data["chance"] < 60


def test_differences_equal_those_of_the_values_and_are_paired(once):
    own, other = (once.get(f, "linear mAP", "pool") for f in ("run", "pixels"))
    found = next(d for d in once.differences if (d.minus_role, d.metric) == ("pixels", "linear mAP"))
    assert found.value == pytest.approx(own.value - other.value)
    assert found.low <= found.value <= found.high
    same = scored(pictures(60), pictures(30, 1), untrained=[encoder()])
    zero = next(d for d in same.differences if d.minus_role == "untrained")
    assert (zero.low, zero.value, zero.high) == (0, 0, 0)


def test_classes_that_are_not_scored_are_listed(once):
    assert any("not in the mean" in s and "never (1 of 4 classes)" in s for s in once.skipped)
    assert any("no 1000 images mAP" in s and "110 training images" in s for s in once.skipped)


def test_classes_are_matched_by_name_and_unmatched_ones_are_skipped():
    train, test = pictures(60), pictures(40, 1, "unseen")
    test.label, test.classes = test.label[:, [2, 3, 0]], ["b", "new", "r"]
    a, b, skipped = multilabel.align_classes(train, test)
    assert a.classes == b.classes == ["r", "b"]
    assert torch.equal(a.label, train.label[:, [0, 2]]) and torch.equal(b.label, test.label[:, [2, 0]])
    assert "g, never, new (3 of 5 classes)" in skipped[0]


def test_a_class_that_every_image_has_is_skipped():
    train, test = pictures(60), pictures(40, 1)
    for each in (train, test):
        each.label[:, 3] = 1
    assert multilabel.align_classes(train, test)[0].classes == ["r", "g", "b"]


def test_without_a_test_set_a_fifth_of_all_images_is_held_out():
    found = scored(pictures(50))
    assert found.data["n_train"] == 40 and found.data["n_test"] == 10
    assert "at random" in found.protocol["split"]


def test_the_tables_name_the_metric(once):
    from rich.console import Console

    with open(os.devnull, "w") as nowhere:
        console = Console(width=80, record=True, file=nowhere)
        console.print(table.render(once))
    shown = console.export_text()
    assert "kNN, mAP" in shown and "best stage, mAP" in shown and "fine-tuned, mAP" in shown
    assert "images in random order" in " ".join(shown.split()) and "…" not in shown
    titles = {t.title: t for t in html.tables(once.rows)}
    assert "Linear probe at each stage, mAP" in titles
    assert "Linear probe on few labeled images" in titles and "Frozen features" in titles
    assert "kNN, mAP" in titles["Frozen features"].columns


def test_sets_without_a_common_class_are_an_error():
    train, test = pictures(60), pictures(40, 1)
    test.label[:] = 0
    with pytest.raises(UserError, match="no class in common"):
        scored(train, test)


def test_single_label_and_multi_label_sets_are_refused_together():
    one = sources.open_labeled("synthetic:40:16")
    for train, test in ((pictures(60), one), (one, pictures(60))):
        with pytest.raises(UserError, match=r"several labels per image, and .* has one"):
            scored(train, test)


def test_the_report_names_all_labels_and_marks_neighbors_that_share_one():
    some = pictures(20)
    label = torch.tensor([[1, 1, 0, 0]] * 10 + [[0, 1, 1, 0]] * 5 + [[0, 0, 0, 0]] * 5, dtype=torch.int8)
    rows = neighbor_rows(torch.randn(20, 4), some.images.image, label, some.classes, count=2)  # type: ignore[attr-defined]
    names = {one.name for line in rows for one in line}
    assert names <= {"r, g", "g, b", ""} and "r, g" in names
    query, *others = rows[0]
    assert query.name == "r, g" and all(one.same == (one.name != "") for one in others)


# ---- the commands


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    known = {"encoder": NAME, "steps": 1, "batch": 8, "quiet": True}
    return pretask.pretrain(
        "rotnet", "synthetic:32:16", tmp_path_factory.mktemp("run") / "own", **known
    ).folder


@pytest.fixture
def hot(tmp_path) -> str:
    some = pictures(90)
    image = some.images.image.permute(0, 2, 3, 1).numpy()  # type: ignore[attr-defined]
    np.savez(tmp_path / "hot.npz", images=image, labels=some.label.numpy(), class_names=some.classes)
    return str(tmp_path / "hot.npz")


def test_a_run_is_scored_and_reported(run, hot, capfd):
    assert main.main(["evaluate", str(run), "--data", hot, "--json"]) == 0
    scores = json.loads(capfd.readouterr().out)
    assert scores["data"]["classes"] == ["r", "g", "b"] and scores["data"]["n_test"] == 18
    page = (run / "report.html").read_text()
    assert "share a class with their query" in page and "linear probe, mAP" in page


@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray, list, tuple])
def test_arrays_and_lists_in_memory_are_scored(kind, run):
    some = pictures(90)
    label: object = some.label
    if kind is np.ndarray:
        label = some.label.numpy().astype(bool)
    elif kind is not torch.Tensor:
        label = [kind(row.nonzero().flatten().tolist()) for row in some.label]
    found = pretask.evaluate(run, (some.images.image, label))  # type: ignore[attr-defined]
    unlabeled = (
        int((some.label.sum(1) == 0).sum()) if kind in (list, tuple) else 0
    )  # an empty list means unlabeled
    assert found.data["n_train"] + found.data["n_test"] == 90 - unlabeled
    assert found.data["classes"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "RUN", "--svm", "--data"],
        ["evaluate", "RUN", "--nonlinear", "--data"],
        ["study", "RUN", "--data"],
        ["pretrain", "rotnet", "--data", "synthetic:32:16", "--steps", "1", "--out", "OUT", "--monitor"],
    ],
)
def test_single_label_commands_refuse_multi_label_data_in_one_line(words, run, hot, tmp_path, capfd):
    named = {"RUN": str(run), "OUT": str(tmp_path / "other")}
    assert main.main([*(named.get(str(w), str(w)) for w in words), hot]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "hot has several labels per image (4 classes), but" in error and "needs one" in error


def test_clusters_are_made_without_a_score(run, hot, tmp_path, capfd):
    out = tmp_path / "clusters"
    assert (
        main.main(["cluster", str(run), "--data", hot, "--clusters", "3", "--out", str(out), "--json"]) == 0
    )
    output = capfd.readouterr()
    assert json.loads(output.out)["nmi"] is None
    assert "NMI and ACC need one, so clusters are not scored" in output.err
