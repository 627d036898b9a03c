"""Published weights through every command, and runs that continue from them compared with them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small import quick_scores

import pretask
from pretask import encoders
from pretask.cli.main import main
from pretask.evals.scores import Difference, Row, Scores
from pretask.reports import verdict

NET = "resnet_small:width=16"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick_scores(monkeypatch)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("published") / "weights.safetensors"
    save_file(encoders.build(NET, 3, 16).net.state_dict(), path)
    return f"{NET}@{path}"


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """Two classes that differ in brightness, as one file."""
    rng = np.random.default_rng(0)
    label = np.arange(80) % 2
    image = rng.integers(0, 120, (80, 16, 16, 3)) + 100 * label[:, None, None, None]
    path = tmp_path_factory.mktemp("data") / "two.npz"
    np.savez(path, images=image.astype(np.uint8), labels=label)
    return str(path)


def test_scores_are_printed_and_kept_where_out_says(weights, labeled, tmp_path, capfd):
    words = ["evaluate", weights, "--data", labeled, "--size", "16", "--json", "--out", str(tmp_path)]
    assert main(words) == 0
    out, err = capfd.readouterr()
    rows = json.loads(out)["rows"]
    assert {row["role"] for row in rows} == {"published", "untrained", "pixels", "patches"}
    assert f"encoder tensors from {weights}; images of 16 px, mean 0.5 0.5 0.5" in err.replace("\n", "")
    assert len([*(tmp_path / "scores").glob("*.json")]) == 1


def test_a_page_of_published_weights(weights, labeled, tmp_path, capsys):
    pretask.evaluate(weights, labeled, size=16, out=tmp_path, progress=False)
    assert main(["report", weights, "--data", labeled, "--size", "16", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Nearest neighbors" in page and "Feature map" in page and "Scores" in page
    assert "Repeat this run" not in page
    assert "pretask pretrain simclr" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "WEIGHTS"], "a report of published weights needs --data and --out"),
        (["study", "WEIGHTS", "--data", "DATA", "--ask", "data"], "need a run to repeat"),
        (["study", "WEIGHTS", "--data", "DATA", "--seeds", "2"], "need a run to repeat"),
        (["evaluate", "WEIGHTS", "--data", "DATA", "--supervised"], "need a run to repeat"),
    ],
)
def test_what_needs_a_run_is_refused(words, said, weights, labeled, capsys):
    words = [{"WEIGHTS": weights, "DATA": labeled}.get(word, word) for word in words]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_an_export_of_published_weights(weights, tmp_path, capsys):
    made = str(tmp_path / "encoder.pt2")
    assert main(["export", weights, "--to", "torch", "--size", "16", "--out", made]) == 0
    assert "5 noise images" in capsys.readouterr().err
    x = torch.rand(2, 3, 16, 16)
    own = pretask.load(weights, encoders_input(16))
    program = torch.export.load(made).module()
    torch.testing.assert_close(program(x)["pool"], own(x)["pool"])


def encoders_input(size):
    from pretask.config import InputConfig

    return InputConfig(size)


def test_clusters_of_published_weights(weights, labeled, tmp_path, capsys):
    out = tmp_path / "clusters"
    words = ["cluster", weights, "--data", labeled, "--clusters", "2", "--size", "16", "--out", str(out)]
    assert main(words) == 0
    assert (out / "cluster-000.png").exists()


def test_a_study_of_published_weights(weights, labeled, monkeypatch):
    monkeypatch.setattr("pretask.evals.finetune.STEPS", 2)
    found = pretask.study(weights, labeled, ask=["labels"], fractions=(1.0,), size=16, progress=False)
    assert {row.role for row in found.answers["labels"].rows} == {"published", "untrained"}


# ---- compared with the weights it started from


def test_a_continued_run_has_a_row_of_the_weights_it_started_from(weights, labeled, tmp_path):
    made = pretask.pretrain(
        "simclr", labeled, tmp_path / "run", init=weights, steps=4, batch=16, size=16, quiet=True
    )
    scores = pretask.evaluate(made, labeled, progress=False)
    alone = pretask.evaluate(weights, labeled, size=16, progress=False)
    for metric in ("knn", "linear"):
        assert scores.get("published", metric).value == alone.get("published", metric).value
    assert any(d.minus_role == "published" and d.low is not None for d in scores.differences)
    assert "compared with published weights, frozen: training" in " ".join(verdict.against_published(scores))


def row(name, role, value, shots):
    return Row(
        "few-shot",
        "pool",
        shots,
        name=name,
        role=role,
        value=value,
        low=None,
        high=None,
        n=9,
        values=(),
        chosen=(),
    )


def scores_of(own, other):
    rows = [row("simclr", "run", value, shots) for shots, value in own.items()]
    rows += [row("published weights, frozen", "published", value, shots) for shots, value in other.items()]
    about = {"name": "simclr", "minus": "published weights, frozen", "minus_role": "published"}
    difference = Difference("knn", "pool", value=3.0, low=1.0, high=5.0, **about)
    return Scores({}, rows, [difference], [], {}, {})


def test_the_label_equivalent_is_read_off_the_curve_of_the_published_weights():
    """Between 10 and 100 labels on a logarithmic scale: 31.6 are half way."""
    said = [*verdict.against_published(scores_of({1: 20, 10: 55, 100: 80}, {1: 10, 10: 50, 100: 60}))]
    assert said == [
        "kNN compared with published weights, frozen: training helped, +3.0 points [+1.0, +5.0].",
        "With 10 labels a class it reaches 55.0 %; published weights, frozen, reach that with 31.6 labels a class.",
    ]


@pytest.mark.parametrize(("value", "bound"), [(70.0, "more than 10"), (5.0, "fewer than 1")])
def test_beyond_the_curve_the_label_equivalent_is_a_bound(value, bound):
    _, said = verdict.against_published(scores_of({1: 1.0, 10: value}, {1: 10, 10: 50}))
    assert said.endswith(f"reach that with {bound} labels a class.")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(1.0, 5.0, "helped"), (-5.0, -1.0, "harmed"), (-1.0, 2.0, "has no clear effect")],
)
def test_the_summary_says_whether_training_helped(low, high, said):
    about = {"name": "a", "minus": "b", "minus_role": "published"}
    assert said in verdict.effect(
        Difference("knn", "pool", value=(low + high) / 2, low=low, high=high, **about)
    )
