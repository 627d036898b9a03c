"""Evaluation of a run: the table, the JSON, runs with other seeds, error messages, the demo."""

import json
import shutil

import numpy as np
import pytest
import torch
from small import quick_scores
from torch.testing import assert_close

import pretask
from pretask import data as sources
from pretask import encoders
from pretask.cli.main import main
from pretask.data import demo
from pretask.encoders.saved import SHAPE
from pretask.evals import finetune, nonlinear_probes
from pretask.methods import rotnet
from pretask.reports import report
from pretask.types import UserError

FAST = ["--encoder", "resnet_small:width=8", "--batch", "16", "--steps", "6"]
DATA = ["--data", "synthetic:120:16", "--test", "synthetic:60:16"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick_scores(monkeypatch)


def train(out, **more):
    """As `pretask pretrain` with FAST, without the report."""
    known = {"encoder": "resnet_small:width=8", "batch": 16, "steps": 6, "quiet": True}
    return pretask.pretrain("rotnet", "synthetic:64:16", out, **known, **more).folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "rotnet-s0")


@pytest.fixture(scope="module")
def scored(trained):
    """The scores of that run."""
    with pytest.MonkeyPatch.context() as patch:
        quick_scores(patch)
        return pretask.evaluate(trained, DATA[1], DATA[3], progress=False)


def test_json_is_the_only_standard_output_and_is_saved_in_the_run(trained, capfd):
    assert main(["evaluate", str(trained), *DATA, "--json"]) == 0
    shown = capfd.readouterr()
    scores = json.loads(shown.out)
    assert json.loads(next((trained / "scores").glob("*.json")).read_text()) == scores
    assert {r["role"]: r["name"] for r in scores["rows"]} == {
        "run": "rotnet", "untrained": "untrained resnet_small:width=8", "pixels": "raw pixels", "patches": "k-means patches"
    }  # fmt: skip
    stages = {r["stage"] for r in scores["rows"] if r["role"] == "run" and r["metric"] == "linear"}
    assert stages == {"stem", "stage1", "stage2", "stage3", "pool"}
    assert "report.html" in shown.err and "k-means patches" in (trained / "report.html").read_text()


def test_the_table_shows_every_row_within_80_columns(trained, capfd):
    assert main(["evaluate", str(trained), *DATA]) == 0
    shown = capfd.readouterr().out
    for name in ("rotnet", "untrained", "raw pixels", "k-means patches", "best stage", "RankMe", "95%"):
        assert name in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("data", [DATA, DATA[:2]])
def test_the_report_reuses_the_features_that_were_scored(data, trained, monkeypatch):
    shown = []
    monkeypatch.setattr(report, "pooled", lambda *_: pytest.fail("embedded again"))
    monkeypatch.setattr(report.features, "neighbor_rows", lambda z, x, *_: shown.append((z, x)) or [])
    assert main(["evaluate", str(trained), *data]) == 0
    ((z, x),) = shown
    assert len(z) == (60 if data is DATA else 120)
    assert_close(z, encoders.pooled(pretask.load(trained).encoder, x), atol=1e-5, rtol=0)


def test_without_a_test_set_a_fifth_is_held_out(trained, capfd):
    assert main(["evaluate", str(trained), "--data", "synthetic:120:16", "--json"]) == 0
    data = json.loads(capfd.readouterr().out)["data"]
    assert (data["n_train"], data["n_test"]) == (96, 24)


def test_arrays_and_files_get_the_same_scores(trained, tmp_path):
    source = sources.open_labeled("synthetic:120:16")
    images = source.images.image.permute(0, 2, 3, 1).numpy()
    label = source.label.numpy()
    np.savez(tmp_path / "x.npz", images=images, labels=label, class_names=np.array(source.classes))
    from_arrays = pretask.evaluate(trained, (images, label), progress=False)
    from_file = pretask.evaluate(pretask.load(trained), tmp_path / "x.npz", progress=False)
    assert [r.value for r in from_arrays.rows] == [r.value for r in from_file.rows]
    with pytest.raises(UserError, match="120 images came with 119 labels"):
        pretask.evaluate(trained, (images, label[1:]), progress=False)
    with pytest.raises(UserError, match="pair"):
        pretask.evaluate(trained, images[0, 0, 0, 0], progress=False)


def test_an_encoder_without_a_run_gets_the_same_scores(trained, scored):
    encoder = pretask.load(trained).encoder
    own = [r for r in pretask.evaluate(encoder, DATA[1], DATA[3], progress=False).rows if r.role == "run"]
    of_run = [r for r in scored.rows if r.role == "run"]
    assert [r.value for r in own] == [r.value for r in of_run]
    with pytest.raises(UserError, match="--seeds"):
        pretask.evaluate(encoder, DATA[1], seeds=2)


def test_seeds_repeat_the_run_and_reuse_finished_runs_next_to_it(trained, scored, capfd):
    assert main(["evaluate", str(trained), *DATA, "--seeds", "2", "--json"]) == 0
    row = next(r for r in json.loads(capfd.readouterr().out)["rows"] if r["metric"] == "linear")
    assert row["seeds"] == [0, 1] and len(row["values"]) == 2
    other_seed = trained.with_name("rotnet-s1")
    one, other = (pretask.load(f).card for f in (trained, other_seed))
    assert other["seed"] == 1 and other["steps"] == one["steps"] and other["train"] == one["train"]
    before = (other_seed / "encoder.safetensors").stat().st_mtime_ns
    again = pretask.evaluate(trained, DATA[1], DATA[3], seeds=2, progress=False)
    assert (other_seed / "encoder.safetensors").stat().st_mtime_ns == before
    both = again.get("run", "linear", "pool")
    single = [scored, pretask.evaluate(other_seed, DATA[1], DATA[3], progress=False)]
    assert both is not None and both.values == [one.get("run", "linear", "pool").value for one in single]


def mnist(root):
    """A dataset in torchvision's file format, which is found by --root."""
    (root / "MNIST" / "raw").mkdir(parents=True)
    for part, n in (("train", 120), ("t10k", 60)):
        pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28), np.uint8)
        for what, kind, shape, content in (
            ("images-idx3", 3, (n, 28, 28), pixels),
            ("labels-idx1", 1, (n,), (np.arange(n) % 10).astype(np.uint8)),
        ):
            head = np.array([0x800 + kind, *shape], ">i4").tobytes()
            (root / "MNIST" / "raw" / f"{part}-{what}-ubyte").write_bytes(head + content.tobytes())
    return ["--root", str(root)]


def test_the_report_finds_a_dataset_in_root(tmp_path, capsys):
    """After pretrain, after evaluate, and with the report command."""
    root, run = mnist(tmp_path / "sets"), str(tmp_path / "run")
    words = ["pretrain", "rotnet", "--data", "mnist", "--monitor", "mnist:test", "--out", run, *root, *FAST]
    assert main(words) == 0, capsys.readouterr().err
    assert main(["evaluate", run, "--data", "mnist", "--test", "mnist:test", *root]) == 0
    assert main(["report", run, "--data", "mnist:test", *root]) == 0
    assert "Feature map" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("fault", ["the data", "the run"])
def test_run_and_data_are_checked_before_other_seeds_are_trained(fault, trained, tmp_path, capsys):
    run, data = tmp_path / "rotnet-s0", DATA[1] if fault == "the run" else str(tmp_path / "nowhere")
    shutil.copytree(trained, run)
    if fault == "the run":
        (run / "encoder.json").unlink()
    assert main(["evaluate", str(run), "--data", data, "--seeds", "2"]) == 2
    assert ("--resume" if fault == "the run" else "nowhere") in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["rotnet-s0"]


def test_a_run_with_the_expected_name_but_other_settings_is_refused(trained, tmp_path, capsys):
    for seed, lr in ((0, 0.1), (1, 0.2)):
        train(tmp_path / f"r-s{seed}", lr=lr, seed=seed)
    assert main(["evaluate", str(tmp_path / "r-s0"), *DATA, "--seeds", "2"]) == 2
    assert "differ in train" in capsys.readouterr().err


def test_supervised_flag_adds_a_row(trained, capfd):
    assert main(["evaluate", str(trained), *DATA, "--supervised", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert ("supervised", "supervised resnet_small:width=8") in {(r["role"], r["name"]) for r in rows}


def test_finetune_nonlinear_and_svm_flags_add_columns(trained, capfd, monkeypatch):
    for module in (finetune, nonlinear_probes):
        monkeypatch.setattr(module, "STEPS", 2)
    assert main(["evaluate", str(trained), *DATA, "--finetune", "--nonlinear", "--svm"]) == 0
    shown = capfd.readouterr().out
    for heading in (
        "MLP probe",
        "conv probe",
        "quadrant SVM",
        "tuned 10-shot",
        "fine-tuned",
        "finetune: ",
        "against untrained",
    ):
        assert heading in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "Nonlinear probes" in (trained / "report.html").read_text()
    assert main(["evaluate", str(trained), *DATA, "--finetune", "--json"]) == 0
    scores = json.loads(capfd.readouterr().out)
    assert {r["role"] for r in scores["rows"] if r["metric"] == "finetune"} == {"run", "untrained"}
    assert not {"mlp", "svm"} & {r["metric"] for r in scores["rows"]}


MISTAKES = {
    "no run": (["evaluate", "no/such/run", *DATA], "no weights at no/such/run"),
    "no labels": (["evaluate", "RUN", "--data", "FOLDER"], "has no class folders"),
    "seeds": (["evaluate", "RUN", *DATA, "--seeds", "0"], "--seeds 0"),
    "seeds of timm": (["evaluate", "timm:no_such_net", *DATA, "--seeds", "2"], "is not a run"),
    "timm name": (["evaluate", "timm:resnt18", *DATA], "did you mean"),
    "flag": (["evaluate", "RUN", *DATA, "--seed", "2"], "--seeds"),
    "no subject": (["evaluate", *DATA], "needs a RUN"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_user_errors_are_one_line_with_exit_code_2(mistake, trained, tmp_path, capsys):
    words, hint = MISTAKES[mistake]
    pixels = torch.zeros(8, 8, dtype=torch.uint8).numpy()
    from PIL import Image

    for i in range(3):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    words = [{"RUN": str(trained), "FOLDER": str(tmp_path)}.get(word, word) for word in words]
    assert main(words) == 2
    err = capsys.readouterr().err.strip()
    assert hint in err and len(err.splitlines()) == 1


def test_the_error_for_an_unfinished_run_names_the_resume_command(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "cut")
    (folder / SHAPE).unlink()
    assert main(["evaluate", str(folder), *DATA]) == 2
    assert f"pretask pretrain --resume {folder}" in capsys.readouterr().err


def test_the_demo_pretrains_evaluates_and_reports(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(demo, "COUNTS", {"train": 400, "test": 150})
    monkeypatch.setattr(rotnet.Config, "encoder", "resnet_small:width=8")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--budget", "5s"]) == 0
    shown = capfd.readouterr()
    assert "k-means patches" in shown.out and "runs/demo/report.html" in shown.err
    left = {p.name for p in (tmp_path / "runs" / "demo").iterdir()}
    assert left >= {"report.html", "preview.png", "scores", "DONE", "encoder.safetensors"}
    assert main(["demo"]) == 2 and "exists" in capfd.readouterr().err


def test_a_run_with_learning_rate_zero_equals_its_untrained_row(tmp_path):
    """MAE initializes its weights itself, so timm's initialization would give a different untrained network."""
    small = "vit_tiny_patch16_224:patch_size=4,embed_dim=48,depth=2,num_heads=4,global_pool=avg,fc_norm=False"
    unchanged = pretask.pretrain(
        "mae", "synthetic:64:16", tmp_path / "mae-s0", encoder=small, steps=2, batch=16, lr=0.0, quiet=True
    )
    scores = pretask.evaluate(unchanged, DATA[1], DATA[3], seeds=2, progress=False)
    ours, untrained = (
        [(r.key, r.values) for r in scores.rows if r.role == role] for role in ("run", "untrained")
    )
    assert ours == untrained and len(ours) > 10
    found = pretask.study(unchanged, DATA[1], DATA[3], ask=["data"], fractions=[1.0], progress=False)
    initial, final = (
        [r.value for r in found.answers["data"].rows if r.fraction == fraction] for fraction in (0, 1)
    )
    assert initial == final
