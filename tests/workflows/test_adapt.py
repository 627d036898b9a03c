"""Adapting weights: what is tried, what is kept, what is said; an interrupted search goes on."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small import quick_scores

import pretask
from pretask import data, encoders, methods
from pretask.cli.main import main
from pretask.encoders.saved import save_encoder
from pretask.errors import UserError
from pretask.evals import linear_probe
from pretask.evals.features import Features
from pretask.evals.holdout import splits
from pretask.evals.paired import Verdict, folds
from pretask.train import run
from pretask.train.pacing import Budget
from pretask.train.plan import Plan
from pretask.train.run import Run
from pretask.workflows import adapt as adapting
from pretask.workflows import length, pretrain, search
from pretask.workflows.adapt import FROZEN, Adapted, adapt
from pretask.workflows.search import Comparison, Score, Trial

LABELED = "synthetic:60:16"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return written(tmp_path_factory.mktemp("given") / "weights")


def written(folder: Path, spec: str = "resnet_small:width=8", scale: float = 1.0) -> str:
    torch.manual_seed(4)
    encoder = encoders.build(spec, 3, 16)
    with torch.no_grad():
        for p in encoder.parameters():
            p.mul_(scale)
    folder.mkdir()
    save_encoder(encoder, folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick_scores(monkeypatch)


class Endless(Budget):
    """Never replans."""

    def is_due(self, step, single):
        return False


def shorten(patch: pytest.MonkeyPatch) -> list[str]:
    """Two steps for each trial, however long its budget. Returns the methods that are trained from now on."""
    done = []

    def trained(job, *, on_log=None, train=pretrain.pretrain):
        done.append(job.method)
        return train(job, on_log=on_log)

    patch.setattr(pretrain, "pretrain", trained)
    patch.setattr(pretrain, "Budget", Endless)
    patch.setattr(
        length, "new_plan", lambda _, trainer, __: Plan.of(2, trainer.per_pass, trainer.train.cycles)
    )
    return done


@pytest.fixture
def short(monkeypatch):
    return shorten(monkeypatch)


def small(weights, out, labels=LABELED, **more):
    return adapt(weights, "synthetic:64:16", labels, out=out, budget="20m", progress=False, **more)


@pytest.fixture(scope="module")
def finished(weights, tmp_path_factory) -> tuple[Adapted, list[str]]:
    """A search with seed 3, and the methods that it trained."""
    with pytest.MonkeyPatch.context() as patch:
        quick_scores(patch)
        done = shorten(patch)
        return small(weights, tmp_path_factory.mktemp("finished") / "out", seed=3), done


@pytest.fixture
def trials(finished, tmp_path) -> Path:
    """A copy of that search's folder, as if it was interrupted while the result was written."""
    return shutil.copytree(
        finished[0].folder, tmp_path / "out", ignore=shutil.ignore_patterns(adapting.RESULT)
    )


# ---- what is kept


def test_original_weights_are_kept_unless_a_candidate_is_better(weights, finished):
    """After two steps at a small learning rate nothing is better."""
    found, trained = finished
    assert trained == ["diet", "byol", "simclr"] and found.chosen == FROZEN
    assert list(found.comparison.scores) == [FROZEN, "diet", "byol", "simclr"]
    original, kept = (pretask.load(place).state_dict() for place in (weights, str(found.folder)))
    assert all(torch.equal(kept[name], value) for name, value in original.items())
    said = " ".join(found.sentences())
    assert "No gain over the weights as they are can be shown" in said and "holds them unchanged" in said
    assert (
        f"With 60 labeled images a gain of {found.smallest_gain:.1f} points or more would have shown" in said
    )


def test_better_candidate_becomes_a_run_that_commands_take(short, tmp_path, monkeypatch):
    """Weights of 0 show nothing of an image; a run whose encoder is a random one sees at least its brightness."""
    label = np.arange(60) % 4
    bright = np.broadcast_to((60 * label)[:, None, None, None], (60, 16, 16, 3)).astype(np.uint8)
    blind = written(tmp_path / "blind", scale=0.0)
    seeing = encoders.build("resnet_small:width=8", 3, 16)

    def trained(self, images, on_log=None, train=Trial.trained):
        made = train(self, images, on_log)
        if self.method == "byol":
            save_encoder(seeing, made.folder)
        return Run(made.folder)

    monkeypatch.setattr(Trial, "trained", trained)
    found = small(blind, tmp_path / "out", labels=(bright, label))
    assert found.chosen == "byol" and found.comparison.verdicts["byol"].low > 0
    kept = Run(tmp_path / "out")
    assert run.title(kept.card) == "byol" and (kept.folder / run.DONE).exists()
    state = kept.encoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in seeing.state_dict().items())
    assert "byol is better than the weights as they are by" in " ".join(found.sentences())
    assert (
        main(["embed", str(kept.folder), "--data", "synthetic:8:16", "--out", str(tmp_path / "f.parquet")])
        == 0
    )


def comparison(**verdicts: tuple[float, float, float]) -> Comparison:
    """name -> inner accuracy, gain, p."""
    scores = {FROZEN: Score(50.0, np.full(10, 50.0))}
    scores |= {name: Score(inner, np.full(10, 50.0 + gain)) for name, (inner, gain, _) in verdicts.items()}
    found = {name: Verdict(gain, gain - 1, gain + 1, p, 1.0) for name, (_, gain, p) in verdicts.items()}
    return Comparison(scores, found)


def test_of_better_candidates_the_inner_folds_choose():
    """Not the outer ones, which are for the verdict."""
    assert comparison(a=(60, 5, 0.01), b=(62, 3, 0.01), c=(70, 2, 0.2)).chosen == "b"
    assert comparison(a=(60, 5, 0.06), b=(62, -3, 0.01)).chosen == FROZEN


def test_probes_see_no_held_out_image():
    """Outer accuracy by a probe whose penalty is chosen and which is fitted without the fold, as written out here."""
    torch.manual_seed(0)
    label = torch.arange(60) % 3
    x = torch.eye(3, 5)[label] + torch.randn(60, 5)
    parts = folds(label, 0)
    found = search.score(Features({"pool": x}, label, ["a", "b", "c"], "x"), parts, None, 7)
    part = parts[3]
    choice = linear_probe.choose(x[part.fit], label[part.fit], 3, splits(label[part.fit], 7))
    right = choice.probe.predict(x[part.test]) == label[part.test]
    assert found.outer[3] == pytest.approx(100 * right.double().mean().item())
    changed = x.clone()
    changed[part.test] = 100.0
    again = search.score(Features({"pool": changed}, label, ["a", "b", "c"], "x"), parts[3:4], None, 7)
    whole = search.score(Features({"pool": x}, label, ["a", "b", "c"], "x"), parts[3:4], None, 7)
    assert again.inner == whole.inner


def test_verdict_is_on_the_test_images_if_there_are_any(weights, short, trials):
    found = small(weights, trials, test="synthetic:200:16", seed=3)
    assert not short
    assert found.data["n_test"] == 200 and all(len(s.outer) == 200 for s in found.comparison.scores.values())
    assert {*found.comparison.scores[FROZEN].outer.tolist()} <= {0.0, 100.0}


def test_labeled_images_that_cannot_be_read_are_left_out_of_the_folds():
    """All candidates are scored on the same others."""
    labeled = data.open_labeled(LABELED)
    labeled.ledger.mark_unreadable(7, "7.jpg", "truncated")
    encoder = encoders.build("resnet_small:width=8", 3, 16)
    found = search.compare({"a": encoder, "b": encoder}, labeled, progress=False)
    assert found.verdicts["b"].gain == 0 and len(found.scores["a"].outer) == 25


# ---- what is tried


def test_candidates_depend_on_the_network(tmp_path):
    assert adapting.candidate_methods(encoders.build("resnet_small:width=8", 3, 16)) == (
        "diet",
        "byol",
        "simclr",
    )
    vit = encoders.build("vit_tiny_patch16_224:patch_size=4,embed_dim=24,depth=1,num_heads=2", 3, 16)
    assert adapting.candidate_methods(vit) == ("diet", "dinov2", "simclr")


def test_trials_are_runs_from_the_weights_with_equal_shares_of_the_time(weights, finished):
    for name in ("diet", "byol", "simclr"):
        made = Run(finished[0].folder / "trials" / name)
        settings = run.parse_card(made.card)[1]
        assert settings.init == weights and settings.budget == "340s" and settings.seed == 3
        expected = dataclasses.replace(methods.recipe(name)().train_for_continuing(), batch=64)
        assert run.parse_card(made.card)[3] == expected
        assert made.initial is not None


def test_method_that_cannot_train_is_left_out_and_named(weights, short, tmp_path, monkeypatch, capsys):
    def refuse(self, encoder, source):
        raise UserError("byol needs a moon")

    monkeypatch.setattr(methods.recipe("byol"), "build", refuse)
    found = small(weights, tmp_path / "out")
    assert list(found.comparison.scores) == [FROZEN, "diet", "simclr"]
    assert "byol was not tried: byol needs a moon" in " ".join(found.sentences())
    assert "byol is left out: byol needs a moon" in " ".join(capsys.readouterr().err.split())


def test_interrupted_search_goes_on_and_uses_what_is_there(weights, short, tmp_path):
    def interrupt(row):
        if len(short) == 2 and row["step"] == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(weights, tmp_path / "out", on_log=interrupt)
    assert short == ["diet", "byol"] and not (tmp_path / "out" / "adapt.json").exists()
    finished = (tmp_path / "out" / "trials" / "diet" / run.DONE).stat().st_mtime_ns
    short.clear()
    found = small(weights, tmp_path / "out")
    assert "diet" not in short and "simclr" in short and len(found.comparison.scores) == 4
    assert (tmp_path / "out" / "trials" / "diet" / run.DONE).stat().st_mtime_ns == finished
    with pytest.raises(UserError, match="holds a finished search; choose another --out"):
        small(weights, tmp_path / "out")


def test_other_settings_are_refused_before_anything_is_trained(weights, short, trials):
    with pytest.raises(
        UserError, match=r"trials/diet is a run with other settings \(seed\); choose another --out"
    ):
        small(weights, trials, seed=1)
    assert short == []


# ---- what is said


def words(weights: str, out: Path) -> list[str]:
    given = ["--data", "synthetic:64:16", "--labels", LABELED, "--out", str(out), "--seed", "3"]
    return ["adapt", weights, *given]


def test_json_is_the_only_standard_output(weights, short, tmp_path, capsys):
    assert main([*words(weights, tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"] == FROZEN
    assert [row["name"] for row in found["rows"]] == [FROZEN, "diet", "byol", "simclr"]
    assert found == json.loads((tmp_path / "out" / "adapt.json").read_text())
    assert found["data"]["n_labeled"] == 60 and found["rows"][1]["better"] is False


def test_table_has_a_row_a_candidate_with_its_gain(weights, trials, capsys):
    assert main(words(weights, trials)) == 0
    out = capsys.readouterr().out
    assert "gain, points" in out and "no clear difference" in out and FROZEN in out
    assert "corrected t over folds" in " ".join(out.split())
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": "synthetic:9:16"},
            "a class has . labeled images?; a comparison needs 4 or more of each class",
        ),
        ({"labels": "multi"}, "--labels"),
        ({"what": "nowhere"}, "no weights at nowhere"),
        ({"budget": "soon"}, "soon"),
        ({"out": "full"}, "exists; choose another --out"),
        ({"what": encoders.build("resnet_small:width=8", 3, 16)}, "weights that have a name or a folder"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(change, message, weights, short, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.txt").write_text("mine")
    images = np.zeros((12, 16, 16, 3), np.uint8)
    if change.get("labels") == "multi":
        change = {"labels": (images, np.eye(12, 3, dtype=int) + np.eye(12, 3, 1, dtype=int))}
    given = {
        "what": weights,
        "data": "synthetic:64:16",
        "labels": LABELED,
        "out": "out",
        "budget": "20m",
        **change,
    }
    given["out"] = tmp_path / given["out"]
    with pytest.raises(UserError, match=message):
        adapt(**given, progress=False)
    assert short == []
