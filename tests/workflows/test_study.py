"""The study of a run: fewer images, fewer labels, feature drift, supervised pretraining; rows, report and error messages."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import pretask
from pretask import data as sources
from pretask import encoders
from pretask.cli.main import main
from pretask.data import loader, store, stream
from pretask.data.subset import draw_subset
from pretask.encoders import Encoder
from pretask.encoders.saved import WEIGHTS
from pretask.evals import baselines, fewshot, finetune, protocol
from pretask.evals.features import Features
from pretask.rng import Rng
from pretask.runtime import files
from pretask.train import logger, run, trainer
from pretask.types import Batch, UserError
from pretask.workflows import study

FAST = {"encoder": "resnet_small:width=8", "steps": 6, "batch": 16, "quiet": True}
DATA = ["--data", "synthetic:120:16", "--test", "synthetic:60:16"]
N = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images whose red value is their position."""
    at = tmp_path_factory.mktemp("photos")
    for i in range(N):
        Image.new("RGB", (16, 16), (i, 255 - i, 7)).save(at / f"{i:03d}.png")
    return at


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "rotnet-s0"
    return pretask.pretrain("rotnet", "synthetic:64:16", out, **FAST).folder


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(finetune, "STEPS", 3)


def red(batch: Batch) -> list[int]:
    return batch.image[:, 0, 0, 0].tolist()


def whole(source) -> Batch:
    return source.__getitems__(torch.arange(len(source)))


# ---- a fraction of a source


def test_a_fraction_is_random_by_seed_and_nested_in_larger_fractions(folder):
    source = sources.open(folder)
    small, large, other = (
        red(whole(draw_subset(source, s, seed))) for s, seed in ((0.1, 0), (0.3, 0), (0.1, 1))
    )
    assert (len(small), len(large)) == (8, 24) and set(small) < set(large) and len(set(large)) == 24
    assert small != other and max(large) > 60 and min(large) < 20
    assert draw_subset(source, 1.0, 0) is source


@pytest.mark.parametrize("kind", ["memory", "workers", "store"])
def test_a_fraction_of_any_source_is_numbered_from_0_and_has_its_own_images(kind, folder, tmp_path):
    source = sources.open(folder, size=16, cache_mb=0 if kind == "workers" else 64)
    if kind == "store":
        store.prepare(source, tmp_path / "store", progress=False)
        source = sources.open(tmp_path / "store")
    source.ledger.bad["gone.png"] = "empty"
    some = draw_subset(source, 0.3, 0)
    own = red(whole(draw_subset(sources.open(folder), 0.3, 0)))
    order = Rng(5).permutation(len(some))
    batches = list(loader.epoch(some, order, 10, workers=2))
    assert torch.equal(torch.cat([b.index for b in batches]), order)
    assert [r for b in batches for r in red(b)] == [own[i] for i in order.tolist()]
    assert some.files(torch.tensor([0, 3])) == [f"{own[i]:03d}.png" for i in (0, 3)]
    assert some.ledger.bad == {"gone.png": "empty"} and some.provides == source.provides and some.size == 16


def test_an_unreadable_image_is_replaced_by_one_of_the_same_fraction(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    own = red(whole(draw_subset(sources.open(folder), 0.3, 0)))
    (tmp_path / f"{own[2]:03d}.png").write_bytes(b"no image")
    some = draw_subset(sources.open(tmp_path, size=16, cache_mb=0), 0.3, 0)
    assert red(whole(some)) == [*own[:2], own[3], *own[3:]] and f"{own[2]:03d}.png" in some.ledger.bad


def test_a_run_on_a_fraction_sees_only_its_images_and_loads_with_them(folder, tmp_path, monkeypatch):
    seen: list[Batch] = []
    step = trainer.Trainer.step
    monkeypatch.setattr(
        trainer.Trainer, "step", lambda self, batch, at: seen.append(batch) or step(self, batch, at)
    )
    made = pretask.pretrain(
        "neighbourhood_discovery", folder, tmp_path / "run", fraction=0.3, epochs=5, **(FAST | {"batch": 8})
    )
    own = red(whole(draw_subset(sources.open(folder), 0.3, 0)))
    shown = {(i, r) for batch in seen for i, r in zip(batch.index.tolist(), red(batch), strict=True)}
    assert shown <= set(enumerate(own)) and len(shown) > 20
    assert made.card["n"] == 24 and made.card["settings"]["fraction"] == 0.3 and len(made.method.bank) == 24
    assert red(whole(made.source)) == own


def test_an_interrupted_run_on_a_fraction_resumes_to_the_same_weights(tmp_path, monkeypatch):
    settings = {"fraction": 0.4, **FAST}
    images = sources.open("synthetic:64:16").image
    one = pretask.pretrain("neighbourhood_discovery", images, tmp_path / "whole", **settings)
    log_step = logger.RunLogger.log_step

    def stop(self, progress, *rest):
        if progress.step == 3:
            raise KeyboardInterrupt
        return log_step(self, progress, *rest)

    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(logger.RunLogger, "log_step", stop)
    with pytest.raises(KeyboardInterrupt):
        pretask.pretrain("neighbourhood_discovery", images, tmp_path / "cut", **settings)
    monkeypatch.setattr(logger.RunLogger, "log_step", log_step)
    with pytest.raises(UserError, match="26 images, but the array holds"):
        pretask.pretrain(None, images[:32], resume=tmp_path / "cut", quiet=True)
    two = pretask.pretrain(None, images, resume=tmp_path / "cut", quiet=True)
    assert [row["step"] for row in files.read_rows(two.folder / run.LOG)] == list(range(6))
    assert (one.folder / WEIGHTS).read_bytes() == (two.folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("fraction", "hint"),
    [("0", "above 0"), ("1.5", "above 0"), ("nan", "above 0"), ("0.005", "use at least 0.016")],
)
def test_invalid_fractions_are_refused_in_one_line(fraction, hint, tmp_path, capsys):
    words = [
        "pretrain",
        "rotnet",
        "--data",
        "synthetic:64:16",
        "--out",
        str(tmp_path / "r"),
        "--fraction",
        fraction,
    ]
    assert main(words) == 2
    err = capsys.readouterr().err.strip()
    assert (
        hint in err and "--fraction" in err and len(err.splitlines()) == 1 and not (tmp_path / "r").exists()
    )


def test_a_fraction_of_a_stream_is_refused():
    rows = object.__new__(stream.Stream)
    rows.name = "rows"
    with pytest.raises(UserError, match="pretask prepare"):
        draw_subset(rows, 0.5, 0)


# ---- labels


LABEL = torch.arange(4).repeat_interleave(torch.tensor([1, 4, 30, 100]))[Rng(0).permutation(135)]


def test_label_fractions_are_stratified_random_by_seed_and_nested():
    few, more, every = (study.labels(LABEL, fraction, 0) for fraction in (0.01, 0.1, 1.0))
    assert LABEL[few].bincount().tolist() == [1, 1, 1, 1]
    assert LABEL[more].bincount().tolist() == [1, 1, 3, 10]
    assert set(few.tolist()) < set(more.tolist()) < set(every.tolist()) == set(range(135))
    assert not torch.equal(more, study.labels(LABEL, 0.1, 1))


def features(seed: int = 0) -> tuple[Features, Features]:
    rng = Rng(seed, "study")
    middle, names = 1.5 * rng.normal(4, 12), list("abcd")
    label, truth = rng.integers(200, high=4), rng.integers(90, high=4)
    made = [Features({"pool": middle[k] + rng.normal(len(k), 12)}, k, names, "x") for k in (label, truth)]
    return made[0], made[1]


def test_with_few_labels_the_probe_equals_the_few_shot_probe():
    train, test = features()
    x, y = (f.stages["pool"] for f in (train, test))
    few = fewshot.draw(train.label, 3, 0, 0)
    expected = fewshot.fewshot(x, train.label, y, test.label, 4, 3, 0)[0]
    found = study.few_probed((train, test), few).correct
    assert (
        found is not None and (found != expected).sum() <= 1
    )  # rounding may change one prediction at the decision boundary


@pytest.mark.parametrize("fraction", [0.02, 0.3])
def test_omitted_and_test_labels_do_not_affect_predictions(fraction):
    """Changed labels of the omitted training images and of the test set give the same predictions."""
    train, test = features()
    few = study.labels(train.label, fraction, 0)
    other = (train.label + 1) % 4
    other[few] = train.label[few]
    changed = Features(train.stages, other, train.classes, train.source)
    one, two = (study.few_probed((each, test), few) for each in (train, changed))
    assert one.correct is not None and two.correct is not None and torch.equal(one.correct, two.correct)
    once: Tensor | int = 0
    for k in range(4):
        constant = Features(test.stages, torch.full((90,), k), test.classes, test.source)
        once = once + study.few_probed((train, constant), few).correct
    assert torch.equal(once, torch.ones(90).double())


def test_fine_tuning_uses_only_the_labels_of_the_fraction(monkeypatch):
    source = sources.open_labeled("synthetic:120:16")
    few = study.labels(source.label, 0.1, 0)
    other = (source.label + 1) % 4
    other[few] = source.label[few]
    torch.manual_seed(0)
    net = encoders.build("resnet_small:width=4,stages=2", 3, 16)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    heads = []
    for label in (source.label, other):
        bench = study.Bench(sources.LabeledDataset(source.images, label, source.classes), source, False)
        heads.append(study.Subject("x", net, 0, "run", bench).tuned(few).head.weight)
    assert torch.equal(*heads)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


# ---- the command


def rows(found: dict, ask: str, **where) -> list[dict]:
    return [r for r in found["answers"][ask]["rows"] if all(r.get(k) == v for k, v in where.items())]


@pytest.fixture(scope="module")
def found(trained, tmp_path_factory):
    """The JSON of the three default questions, and the fine-tunings: (number of labels, layer decay)."""
    fits, real = [], finetune.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "STEPS", 3)
        patch.setattr(
            finetune,
            "fit",
            lambda *given, **known: fits.append((len(given[2]), given[6])) or real(*given, **known),
        )
        made = study.study(trained, DATA[1], DATA[3], fractions=(0.5, 0.001, 0.002, 1.0), progress=False)
    return json.loads(made.to_json()), fits


def test_the_three_default_questions_are_answered(found, trained):
    answer, fits = found
    assert list(answer["answers"]) == ["data", "labels", "change"] == list(study.USUAL)
    data = {(r["fraction"], r["images"], r["role"], r["metric"]) for r in rows(answer, "data")}
    fractions = ((0.0, 0, "untrained"), (0.5, 32, "run"), (1.0, 64, "run"))
    assert data == {(*fraction, e) for fraction in fractions for e in ("knn", "linear")}
    labels = {(r["fraction"], r["images"], r["role"], r["metric"]) for r in rows(answer, "labels")}
    assert labels == {
        (*fraction, role, e)
        for fraction in ((0.001, 4), (0.5, 61), (1.0, 120))
        for role in ("run", "untrained")
        for e in ("linear", "finetune")
    }
    stages = [r["stage"] for r in rows(answer, "change", role="run")]
    assert stages == ["stem", "stage1", "stage2", "stage3", "pool"] == [
        r["stage"] for r in rows(answer, "change", role="untrained")
    ]  # fmt: skip
    for row in (r for ask in study.USUAL for r in rows(answer, ask)):
        top = 1 if row["metric"] == "cka" else 100
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= top and row["n"] == 60
        assert row["name"] == ("rotnet" if row["role"] == "run" else "untrained resnet_small:width=8")
    assert len(answer["answers"]["data"]["skipped"]) == 2  # fractions smaller than a batch
    assert len(answer["answers"]["labels"]["skipped"]) == 1  # the same images as before
    both = finetune.DECAY, 1.0  # of the run, and of the network from scratch
    fits = [fit for fit in fits if fit[0] != 64]  # without the trial steps that estimate the duration
    assert fits == [
        (n, decay) for n in (4, 61, 120) for decay in both
    ]  # those on all labels also answer "change"


def test_fractions_0_and_1_equal_the_scores_of_evaluate(found, trained, monkeypatch):
    monkeypatch.setattr(baselines, "SAMPLES", 2000)  # of k-means patches, which do not matter here
    train, test = (sources.open_labeled(spec) for spec in (DATA[1], DATA[3]))
    scores = protocol.evaluate(
        [pretask.load(trained).encoder], train, test, name="rotnet", progress=False, centers=8
    )
    for fraction, role in ((1.0, "run"), (0.0, "untrained")):
        for e in ("knn", "linear"):
            row, expected = (
                rows(found[0], "data", fraction=fraction, metric=e)[0],
                scores.get(role, e, "pool"),
            )
            assert expected is not None and row["value"] == expected.value and row["low"] == expected.low
    for role in ("run", "untrained"):
        row, expected = (
            rows(found[0], "labels", fraction=1.0, role=role, metric="linear")[0],
            scores.get(role, "linear", "pool"),
        )
        assert expected is not None and row["value"] == expected.value


def test_the_repeated_run_differs_only_in_its_fraction_and_is_reused(found, trained, monkeypatch):
    part = trained / "study" / "fraction-0.5"
    one, two = run.load(trained).card, run.load(part).card
    assert two["settings"]["fraction"] == 0.5 and two["n"] == 32
    assert all(one[k] == two[k] for k in ("seed", "steps", "train", "config", "encoder", "data"))
    monkeypatch.setattr(trainer.Trainer, "fit", lambda *_: pytest.fail("trained again"))
    again = study.study(trained, DATA[1], DATA[3], ask=["data"], fractions=[0.5], progress=False)
    assert [r.value for r in again.answers["data"].rows] == [r["value"] for r in rows(found[0], "data")]
    assert "change" in again.answers and study.read(trained) == [again]


def test_cka_is_1_for_an_unchanged_network_and_lower_for_a_changed_one(trained, monkeypatch):
    def same(net: Encoder, *_, **__):
        return finetune.Classifier(net, torch.nn.Linear(net.dim, 4)).eval()

    def other(net: Encoder, *_, **__):
        torch.manual_seed(9)
        return same(encoders.build(net.name, 3, 16))

    similarity = []
    for fit in (same, other):
        monkeypatch.setattr(finetune, "fit", fit)
        answer = study.study(trained, DATA[1], DATA[3], ask=["change"], progress=False).answers["change"]
        similarity.append([row.value for row in answer.rows])
    assert similarity[0] == pytest.approx([1.0] * 10, abs=1e-9) and max(similarity[1]) < 0.999


def test_answers_are_in_json_on_disk_in_the_report_and_in_the_table(found, trained, capfd):
    assert main(["study", str(trained), *DATA, "--ask", "change", "--json"]) == 0
    shown = capfd.readouterr()
    answer = json.loads(shown.out)
    assert answer == json.loads((trained / "study" / "synthetic-60-16.json").read_text())
    assert set(answer) == {"schema", "method", "data", "protocol", "answers", "cautions", "records"}
    assert "report.html" in shown.err and answer["cautions"][0].startswith("too short")
    page = (trained / "report.html").read_text()
    for words in (
        "Pretraining on fewer images",
        "Scoring with fewer labels",
        "Feature drift in fine-tuning",
        "from scratch",
        "32 (50 %)",
        'href="#study"',
    ):
        assert words in page
    assert main(["study", str(trained), *DATA, "--ask", "data", "--fractions", "0.5"]) == 0
    shown = capfd.readouterr().out
    for words in ("0 (untrained)", "64 (100 %)", "from scratch", "stage3", "CKA"):
        assert words in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_several_seeds_repeat_every_fraction(trained, tmp_path):
    made = study.study(trained, DATA[1], DATA[3], ask=["data"], fractions=[0.5], seeds=2, progress=False)
    row = made.answers["data"].rows[2]
    assert made.answers["data"].seeds == [0, 1] and row.fraction == 0.5 and len(row.values) == 2
    other_seed = run.load(trained.with_name("rotnet-s1") / "study" / "fraction-0.5")
    assert other_seed.card["seed"] == 1 and other_seed.card["settings"]["fraction"] == 0.5


def test_a_fraction_of_a_run_on_a_fraction_is_a_subset_of_its_images(tmp_path):
    half = pretask.pretrain("rotnet", "synthetic:64:16", tmp_path / "half", fraction=0.5, **FAST)
    quarter = study.part(half, 0.5, None)
    both, less = (set(map(tuple, whole(r.source).image.flatten(1).tolist())) for r in (half, quarter))
    assert len(less) == 16 and less < both


def test_a_repeated_run_with_another_fraction_is_refused(trained, tmp_path):
    made = pretask.pretrain("rotnet", "synthetic:64:16", tmp_path / "r", **FAST)
    pretask.pretrain(
        "rotnet", "synthetic:64:16", tmp_path / "r" / "study" / "fraction-0.5", fraction=0.4, **FAST
    )
    with pytest.raises(UserError, match="differ in fraction"):
        study.part(made, 0.5, None)


def test_a_card_without_a_fraction_is_refused(trained):
    card = run.load(trained).card
    del card["settings"]["fraction"]
    with pytest.raises(UserError, match=r"missing settings\.fraction"):
        run.parse_card(card)


# ---- pretraining with labels


@pytest.fixture(scope="module")
def supervised(trained) -> dict:
    """The JSON of the question "supervised", and `parts`: the data and number of steps of each supervised network."""
    parts, real = [], baselines.supervised
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "CLASSES", (2, 3, 10))
        patch.setattr(
            baselines,
            "supervised",
            lambda net, part, steps, *given, **known: (
                parts.append((part, steps)) or real(net, part, steps, *given, **known)
            ),
        )
        made = study.study(
            trained, DATA[1], DATA[3], ask=["supervised"], fractions=(0.5, 0.001), progress=False
        )
    return json.loads(made.to_json()) | {"parts": parts}


def test_the_run_is_compared_on_fewer_images_labels_and_classes(supervised, trained):
    found = {(r["axis"], r["at"], r["role"]) for r in rows(supervised, "supervised")}
    images = {
        ("images", 32, "run"),
        ("images", 61, "supervised"),
        ("images", 64, "run"),
        ("images", 120, "supervised"),
    }
    labels = {("labels", n, role) for n in (61, 120) for role in ("run", "supervised")}
    classes = {("classes", k, role) for k in (2, 3, 4) for role in ("run", "supervised")}
    assert found == images | labels | classes
    assert len(supervised["answers"]["supervised"]["skipped"]) == 1  # a fraction smaller than a batch
    # each network is trained once, for as many images as the run saw
    steps = max(1, 6 * 16 // baselines.SUPERVISED.batch)
    assert [(len(p), len(p.classes), s) for p, s in supervised["parts"]] == [
        (61, 4, steps), (120, 4, steps), (120, 2, steps), (120, 3, steps)]  # fmt: skip
    for e in ("knn", "linear"):  # on the other axes the run has the same scores
        whole = rows(supervised, "supervised", axis="images", at=64, role="run", metric=e)[0]["value"]
        other = [r for r in rows(supervised, "supervised", role="run", metric=e) if r["axis"] != "images"]
        assert {r["value"] for r in other} == {whole}
    part = run.load(trained / "study" / "fraction-0.5").card
    assert part["n"] == 32  # reused from the question "data"


def test_classes_are_merged_whole_into_groups_of_about_equal_size(supervised):
    label = sources.open_labeled("synthetic:120:16").label
    for part, groups in zip((p for p, _ in supervised["parts"][2:]), (2, 3), strict=True):
        pairs = set(zip(label[part.index].tolist(), part.label.tolist(), strict=True))
        assert len(pairs) == 4 and {group for _, group in pairs} == set(range(groups))
        sizes = [sum(g == group for _, g in pairs) for group in range(groups)]
        assert max(sizes) - min(sizes) <= 1


def test_supervised_with_all_labels_equals_the_supervised_row_of_evaluate(supervised, trained, monkeypatch):
    monkeypatch.setattr(baselines, "SAMPLES", 2000)
    train, test = (sources.open_labeled(spec) for spec in (DATA[1], DATA[3]))
    known = {"name": "rotnet", "progress": False, "centers": 8, "supervised_steps": 1}
    scores = protocol.evaluate([pretask.load(trained).encoder], train, test, **known)
    for e in ("knn", "linear"):
        expected = scores.get("supervised", e, "pool")
        for axis, at in (("images", 120), ("labels", 120), ("classes", 4)):
            row = rows(supervised, "supervised", axis=axis, at=at, role="supervised", metric=e)[0]
            assert expected is not None and row["value"] == expected.value


def test_omitted_labels_do_not_affect_supervised_training():
    source = sources.open_labeled("synthetic:120:16")
    few = study.labels(source.label, 0.1, 0)
    other = (source.label + 1) % 4
    other[few] = source.label[few]
    torch.manual_seed(0)
    net = encoders.build("resnet_small:width=4,stages=2", 3, 16)
    nets = []
    for label in (source.label, other):
        bench = study.Bench(sources.LabeledDataset(source.images, label, source.classes), source, False)
        nets.append(study.supervised(study.Subject("x", net, 0, "run", bench), 0.1, 4, 2).encoder)
    assert all(torch.equal(v, nets[1].state_dict()[k]) for k, v in nets[0].state_dict().items())


def test_unreadable_images_are_not_used_for_supervised_training(monkeypatch):
    source = sources.open_labeled("synthetic:120:16")
    monkeypatch.setattr(study, "readable", lambda _: torch.arange(60, 120))
    seen = []
    monkeypatch.setattr(baselines, "supervised", lambda net, part, *_, **__: seen.append(part) or net)
    net = encoders.build("resnet_small:width=4,stages=2", 3, 16)
    subject = study.Subject("x", net, 0, "run", study.Bench(source, source, False))
    for fraction, groups in ((0.5, 4), (1.0, 2)):
        study.supervised(subject, fraction, groups, 2)
    few, every = seen
    assert few.index.min() >= 60 and torch.equal(few.label, source.label[few.index])
    assert every.index.tolist() == list(range(60, 120))


def test_the_table_and_the_report_show_each_axis_separately(supervised, trained, capfd):
    assert main(["study", str(trained), *DATA, "--ask", "change"]) == 0  # earlier answers are kept
    shown = capfd.readouterr().out
    page = (trained / "report.html").read_text()
    for words in ("on fewer images", "with fewer labels", "with fewer classes", "supervised, linear"):
        assert words in shown and words in page
    (saved,) = study.read(trained)  # with the answers of other tests
    skipped = [reason for answer in saved.answers.values() for reason in answer.skipped]
    assert len(saved.answers["supervised"].skipped) == 1
    for reason in skipped:
        assert " ".join(shown.split()).count(reason) == skipped.count(reason)


MISTAKES = {
    "no run": (["study", "no/such/run", *DATA], "no weights at no/such/run"),
    "timm": (["study", "timm:resnet18", *DATA, "--ask", "data"], "is not a run"),
    "no labels": (["study", "RUN", "--data", "FOLDER"], "has no class folders"),
    "fraction": (["study", "RUN", *DATA, "--fractions", "0.1", "2"], "--fractions 0.1 2.0 is out of range"),
    "question": (["study", "RUN", *DATA, "--ask", "speed"], "speed"),
    "no question": (["study", "RUN", *DATA, "--ask"], "--ask"),
    "seeds": (["study", "RUN", *DATA, "--seeds", "0"], "--seeds 0"),
    "cut off": (["study", "CUT", *DATA], "pretask pretrain --resume"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_user_errors_are_one_line_with_exit_code_2(mistake, trained, folder, tmp_path, capsys):
    words, hint = MISTAKES[mistake]
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / run.CARD).write_text((trained / run.CARD).read_text())
    paths = {"RUN": str(trained), "FOLDER": str(folder), "CUT": str(tmp_path / "cut")}
    assert main([paths.get(word, word) for word in words]) == 2
    err = capsys.readouterr().err.strip()
    assert hint in err and len(err.splitlines()) == 1
