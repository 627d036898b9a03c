"""Comparing methods: what is tried, what is chosen, what is said; an interrupted comparison goes on."""

import json
import shutil
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import Forked, wait_until
from small import quick_scores

from pretask import data, encoders
from pretask.encoders.saved import save_encoder
from pretask.errors import UserError
from pretask.evals import finetune
from pretask.evals.linear_probe import Choice, Probe
from pretask.evals.stage_probe import StageProbe
from pretask.train.pacing import Budget
from pretask.train.plan import Plan
from pretask.train.run import Run
from pretask.workflows import compare as comparing
from pretask.workflows import effort, length, pretrain, rungs
from pretask.workflows.candidates import candidate, usual
from pretask.workflows.compare import Compared, compare, resume
from pretask.workflows.rungs import State
from pretask.workflows.subject import INITIAL

TINY = "resnet_small:width=8"


class Endless(Budget):
    """Never replans."""

    def is_due(self, step, single):
        return False


@pytest.fixture(autouse=True)
def trained(monkeypatch) -> list[str]:
    """Runs of two steps, however long their budget. Returns the folders of the runs that are trained from now on."""
    return shorten(monkeypatch)


def shorten(patch: pytest.MonkeyPatch) -> list[str]:
    done = []

    def recorded(job, *, on_log=None, train=pretrain.pretrain):
        done.append(job.folder.name)
        return train(job, on_log=on_log)

    quick_scores(patch)
    patch.setattr(pretrain, "pretrain", recorded)
    patch.setattr(pretrain, "Budget", Endless)
    patch.setattr(
        length, "new_plan", lambda _, trainer, __: Plan.of(2, trainer.per_pass, trainer.train.cycles)
    )
    patch.setattr(finetune, "STEPS", 2)
    return done


def small(out, methods=("rotnet", "simclr", "byol", "vicreg"), **more) -> Compared:
    options = {"encoders": (TINY,), "seeds": 2, "budget": "10h", "progress": False} | more
    return compare("synthetic:64:16", "synthetic:120:16", out=out, methods=methods, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Compared, list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        done = shorten(patch)
        return small(tmp_path_factory.mktemp("finished") / "out"), done


def test_all_candidates_train_once_in_each_rung_and_finalists_with_all_seeds(finished):
    found, done = finished
    first, second, last = found.rungs
    assert set(first.held_out) == {"rotnet", "simclr", "byol", "vicreg"}
    kept = sorted(first.held_out, key=lambda name: -first.held_out[name].value)[:3]
    assert set(second.held_out) == set(kept)
    runs = [line for line in found.lines if line.role == "run"]
    assert 2 <= len(runs) <= 4 and all(len(line.values) == 2 for line in runs)
    assert set(last.held_out) == {line.name for line in runs} and last.seconds > second.seconds
    expected = [f"{name}-1-s0" for name in first.held_out] + [f"{name}-2-s0" for name in second.held_out]
    expected += [f"{line.name}-3-s{seed}" for line in runs for seed in (0, 1)]
    assert sorted(done) == sorted(expected)
    assert second.seconds == pytest.approx(3 * first.seconds, rel=0.1)


def test_table_has_the_rows_without_training_and_the_decision_is_one_of_its_rows(finished):
    found, _ = finished
    assert [line.role for line in found.lines].count("run") >= 2
    assert {line.role for line in found.lines} == {"run", "untrained", "pixels", "patches"}
    assert [line.accuracy for line in found.lines] == sorted(
        (line.accuracy for line in found.lines), reverse=True
    )
    assert found.lines[0].gap is None and all(line.gap is not None for line in found.lines[1:])
    assert found.decision.use in [line.name for line in found.lines]
    assert comparing.TRAINED in found.curves and len(found.curves) == 3


def test_result_is_written_as_json(finished):
    found, _ = finished
    content = json.loads((found.folder / comparing.RESULT).read_text())
    assert content == json.loads(found.to_json())
    assert content["use"] == found.decision.use and content["data"]["n_test"] == 24
    assert [row["name"] for row in content["rows"]] == [line.name for line in found.lines]
    assert content["plan"]["candidates"] == [4, 3, 3] and content["plan"]["seeds"] == 2
    assert content["plan"]["seconds"] == [round(rung.seconds, 1) for rung in found.rungs]


def test_interrupted_comparison_goes_on_and_ends_the_same(finished, tmp_path, trained):
    """After the first rung, as if a run of the second was killed, and its folder is not there yet."""
    found, before = finished
    out = shutil.copytree(found.folder, tmp_path / "out")
    state = State.read(out)
    for name in before[4:]:
        shutil.rmtree(out / rungs.RUNS / name)
    (out / comparing.RESULT).unlink()
    state.lengths = state.lengths[:1]
    state.write(out)
    again = resume(out, progress=False)
    assert trained == before[4:]
    assert [(line.name, line.values) for line in again.lines] == [
        (line.name, line.values) for line in found.lines
    ]
    assert again.decision == found.decision and again.seconds > found.seconds
    assert (
        State.read(out).scored == state.scored
    )  # features that are there already say nothing of the time of new ones


@pytest.mark.parametrize("moment", ["state.json", "runs/*-2-s0/DONE", "runs/*-3-s1/run.json"])
def test_a_comparison_that_is_killed_goes_on_and_ends_the_same(moment, finished, tmp_path):
    out = tmp_path / "out"
    words: list[Any] = ["compare", "--data", "synthetic:64:16", "--labels", "synthetic:120:16", "--out", out]
    words += ["--encoders", TINY, "--seeds", 2, "--budget", "10h", "--methods", "rotnet,simclr,byol,vicreg"]
    going = Forked(tmp_path / "printed", *words)
    wait_until(lambda: any(out.glob(moment)), going)
    going.send_signal(signal.SIGKILL)
    assert going.wait() == -signal.SIGKILL
    again = resume(out, progress=False)
    assert [(line.name, line.values) for line in again.lines] == [
        (line.name, line.values) for line in finished[0].lines
    ]


def test_finished_comparison_is_read_without_training(finished, tmp_path, trained):
    out = shutil.copytree(finished[0].folder, tmp_path / "out")
    assert resume(out, progress=False).decision == finished[0].decision and not trained


def test_methods_are_added_to_a_finished_comparison(finished, tmp_path, trained):
    out = shutil.copytree(finished[0].folder, tmp_path / "out")
    found = resume(out, ["barlow_twins"], progress=False)
    assert trained == ["barlow_twins-3-s0", "barlow_twins-3-s1"]
    before = {line.name: line.values for line in finished[0].lines}
    after = {line.name: line.values for line in found.lines}
    assert after.pop("barlow_twins") and after == before
    (out / comparing.RESULT).unlink()
    with pytest.raises(UserError, match="is not finished; resume it first, then add methods"):
        resume(out, ["moco"])


def test_other_settings_are_refused(finished, tmp_path):
    out = shutil.copytree(finished[0].folder, tmp_path / "out")
    with pytest.raises(
        UserError, match=r"is a comparison with other settings \(seeds\); choose another --out"
    ):
        small(out, seeds=3)
    with pytest.raises(UserError, match="is not a comparison"):
        resume(tmp_path)


def test_a_candidate_that_fails_is_left_out_with_the_reason(tmp_path, monkeypatch):
    def failing(job, *, on_log=None, train=pretrain.pretrain):
        if job.method == "byol":
            raise UserError("the loss is not finite")
        return train(job, on_log=on_log)

    monkeypatch.setattr(pretrain, "pretrain", failing)
    found = small(tmp_path / "out", ("rotnet", "simclr", "byol"), seeds=1)
    assert found.left_out == {"byol": "the loss is not finite"}
    assert {line.name for line in found.lines if line.role == "run"} == {"rotnet", "simclr"}


def test_nothing_is_chosen_by_test_labels(tmp_path):
    """With other labels of the same test images the rungs are the same, and the table differs."""
    source = data.open_labeled("synthetic:60:16")
    image = source.__getitems__(torch.arange(60)).image.permute(0, 2, 3, 1).numpy()
    names = [source.classes[k] for k in source.label.tolist()]
    moved = [names[(k + 7) % 60] for k in range(60)]
    first, other = (
        small(tmp_path / place, ("rotnet", "simclr"), seeds=1, test=(image, labels))
        for place, labels in (("a", names), ("b", moved))
    )
    assert [rung.held_out for rung in first.rungs] == [rung.held_out for rung in other.rungs]
    assert {line.name: line.values for line in first.lines} != {
        line.name: line.values for line in other.lines
    }


# ---- candidates


def test_usual_candidates_are_of_unlike_kinds_and_fit_the_encoder():
    images = data.open("synthetic:64:32")
    for spec in (
        TINY,
        "vit_tiny_patch16_224:patch_size=8,embed_dim=48,depth=2,num_heads=3,dynamic_img_size=True",
    ):
        net = encoders.build(spec, 3, 32)
        chosen = [*usual([net], None, images)]
        assert [each.method for each in chosen[5:]] == ["text_topic", "video_triplet", "cross_domain"]
        assert not any(each.from_weights for each in chosen)
        for each in chosen[:5]:
            assert candidate(each, None, images, False).encoder == net.name
    assert "mae" in [each.method for each in chosen]


def test_published_weights_are_continued_distilled_and_scored_as_they_are(tmp_path, trained):
    torch.manual_seed(4)
    (tmp_path / "weights").mkdir()
    save_encoder(encoders.build(TINY, 3, 16), tmp_path / "weights")
    given = str(tmp_path / "weights")
    found = small(tmp_path / "out", ("diet", "distill"), init=given, encoders=(), seeds=1)
    assert {name.partition("-1-")[0] for name in trained[:2]} == {"diet-continued", "distill"}
    frozen = next(line for line in found.lines if line.role == "published")
    assert frozen.name == INITIAL and len(frozen.values) == 1


def test_several_encoders_are_trained_and_named(tmp_path, trained):
    """Weights are continued in their own architecture; what learns from them as a teacher, or from scratch, trains each of the others."""
    torch.manual_seed(4)
    (tmp_path / "weights").mkdir()
    save_encoder(encoders.build("resnet_small:width=12", 3, 16), tmp_path / "weights")
    options: Any = {
        "encoders": (TINY, "resnet_small:width=16"),
        "init": str(tmp_path / "weights"),
        "seeds": 1,
    }
    found = small(tmp_path / "out", ("byol", "distill"), **options)
    first = [name.removesuffix("-1-s0") for name in trained[:3]]
    assert first == ["byol-continued", "distill-resnet_small-width=8", "distill-resnet_small-width=16"]
    widths = {name: Run(found.folder / rungs.RUNS / f"{name}-1-s0").card["encoder"] for name in first}
    assert [widths[name].partition("=")[2] for name in first] == ["12", "8", "16"]
    untrained = [line.name for line in found.lines if line.role == "untrained"]
    assert sorted(untrained) == [f"untrained {spec}" for spec in ("resnet_small:width=16", TINY)]


def test_what_cannot_be_trained_is_left_out_with_the_reason(tmp_path):
    with pytest.raises(UserError, match=r"needs two methods, and 1 can be trained: .*mae masks patches"):
        small(tmp_path / "out", ("simclr", "mae"))


# ---- bad input


def test_bad_labels_and_methods_are_refused_before_training(tmp_path, trained):
    for labels, methods, said in (
        ("missing/", (), "missing"),
        ("synthetic:64:16", ("simclr", "simclrr"), "simclrr"),
    ):
        with pytest.raises(UserError, match=said):
            compare(
                "synthetic:64:16",
                labels,
                out=tmp_path / "out",
                methods=methods,
                encoders=(TINY,),
                progress=False,
            )
    with pytest.raises(UserError, match=r"--budget 5s is too short for 2 candidates and 3 seeds"):
        compare(
            "synthetic:64:16", "synthetic:64:16", out=tmp_path / "out", methods=("simclr", "byol"), budget="5s",
            encoders=(TINY,), progress=False,
        )  # fmt: skip
    assert not trained


def test_the_two_best_and_what_cannot_be_distinguished_from_them_are_finalists():
    rng = torch.Generator().manual_seed(0)
    rate = {"a": 0.9, "b": 0.8, "c": 0.8, "d": 0.8, "e": 0.8, "f": 0.2}
    probes: Any = {
        name: StageProbe(
            "pool",
            Choice(1.0, p, lambda: Probe(torch.zeros(2, 1), torch.zeros(2))),
            (torch.rand(2000, generator=rng) < p).double(),
        )
        for name, p in rate.items()
    }
    best: Any = [SimpleNamespace(name=name) for name in rate]
    assert [each.name for each in rungs.finalists(best, probes)] == ["a", "b", "c", "d"]
    assert [each.name for each in rungs.finalists([best[0], best[1], best[5]], probes)] == ["a", "b"]


@pytest.mark.parametrize("match", ["samples", "flops"])
def test_runs_are_matched_by_samples_or_flops(match, tmp_path, monkeypatch):
    """The lengths that a rung gave its runs."""
    monkeypatch.setattr(effort, "TIMED", 0.01)
    found = small(tmp_path / "out", ("rotnet", "simclr"), match=match, seeds=1)
    costs = State.read(found.folder).costs
    for rung in (1, 2):
        cards = {
            name: Run(found.folder / rungs.RUNS / f"{name}-{rung}-s0").card for name in ("rotnet", "simclr")
        }
        asked = {name: card["settings"]["steps"] for name, card in cards.items()}
        spent = [asked[name] * costs[name]["images" if match == "samples" else "flops"] for name in asked]
        assert spent[0] == pytest.approx(spent[1], rel=0.01)
