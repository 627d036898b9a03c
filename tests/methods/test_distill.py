"""Distillation: its targets and loss as slow loops, its teacher, stored views, and LightlyTrain's recipe."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import quick_scores, teacher, undrawn
from torch.testing import assert_close

import pretask
from pretask import api, data, encoders
from pretask.cli.main import main
from pretask.config import RunConfig
from pretask.encoders.saved import save_encoder
from pretask.errors import UserError
from pretask.methods import distill
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.runtime import files
from pretask.train import checkpoint, run, trainer
from pretask.train.plan import Plan
from pretask.transforms import augment
from pretask.workflows import job as jobs
from pretask.workflows import pretrain as pretraining
from pretask.workflows.subject import TEACHER

PLAIN = augment.ViewAugmentation(crop=(1.0, 1.0), flip=0.0, jitter_p=0.0, gray=0.0)
TINY_VIT = "vit_tiny_patch16_224:patch_size=4,embed_dim=48,depth=2,num_heads=3"


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:64:32")


def saved_at(folder: Path, spec: str, size: int, channels: int = 3) -> str:
    torch.manual_seed(5)
    folder.mkdir(parents=True)
    save_encoder(encoders.build(spec, channels, size), folder)
    return str(folder)


def begun(source, config, encoder="resnet_small:width=16"):
    torch.manual_seed(0)
    method = config.build(encoders.build(encoder, source.channels, source.size), source).train()
    method.begin(Context(source, [], Plan.of(1, 1).at(0), Rng(0, "begin")))
    return method


def puzzle(method, source, n=16, seed=0):
    return method.puzzle(source.__getitems__(torch.arange(n)), seed)


# ---- the targets


def test_targets_are_the_teachers_components_of_the_same_view(source):
    """By the singular vectors of the centered features; the sign of an axis is free."""
    method = begun(source, distill.Config(teacher=teacher(), dims=8, views=PLAIN))
    net = method.frozen.encoder
    image = source.__getitems__(torch.arange(64)).image / 255
    p = puzzle(method, source, 64)
    assert_close(p.image, image, atol=1e-5, rtol=0)
    found = net(p.image)
    dense = F.adaptive_avg_pool2d(found[method.teacher_stage], method.grid).flatten(2).transpose(1, 2)
    fitted = net(image)
    fitted_dense = F.adaptive_avg_pool2d(fitted[method.teacher_stage], method.grid).flatten(2).transpose(1, 2)
    for own, rows, target in (
        (found["pool"], fitted["pool"], p.target[:, 0]),
        (dense.flatten(0, 1), fitted_dense.flatten(0, 1), p.target[:, 1:].flatten(0, 1)),
    ):
        center = rows.double().mean(0)
        axes = torch.linalg.svd(rows.double() - center, full_matrices=False).Vh[:8]
        expected = (own.double() - center) @ axes.T
        sign = (expected * target).sum(0).sign()
        assert_close(target.double(), expected * sign, rtol=1e-3, atol=1e-4)
        variance = target.var(0)
        assert (variance[:-1] >= variance[1:] * 0.999).all()


def test_components_that_do_not_exist_are_0(source):
    """Of a teacher with fewer features than dims."""
    method = begun(source, distill.Config(teacher=teacher(), dims=500))
    width = method.frozen.encoder.dim
    target = puzzle(method, source).target
    assert target.shape[2] == 500 and (target[..., width:] == 0).all()
    assert (target[:, 0, : width // 2] != 0).any()


def test_both_networks_see_the_same_view(source):
    method, seen = begun(source, distill.Config(teacher=teacher())), []
    method.frozen.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    p = puzzle(method, source)
    method.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    method.loss(p)
    assert torch.equal(torch.cat(seen[:-1]), seen[-1]) and torch.equal(seen[-1], p.image)


def test_teacher_sees_views_of_its_own_size(source, tmp_path):
    config = distill.Config(teacher=f"resnet18@{tmp_path / 'w.safetensors'}", teacher_size=48, views=PLAIN)
    from safetensors.torch import save_file

    torch.manual_seed(3)
    net = encoders.build("resnet18", 3, 48)
    save_file(dict(net.net.state_dict()), tmp_path / "w.safetensors")
    method = begun(source, config)
    image = source.__getitems__(torch.arange(4)).image / 255
    larger = F.interpolate(image, size=(48, 48), mode="bilinear", antialias=True)
    assert_close(method.features(image)[0], net.eval()(larger)["pool"], rtol=1e-4, atol=1e-5)
    assert method.frozen.encoder.size == 32


def test_teachers_side_is_rounded_up_to_whole_patches(source, tmp_path):
    from safetensors.torch import save_file

    spec = "vit_small_patch14_dinov2:embed_dim=48,depth=2,num_heads=3"
    torch.manual_seed(3)
    save_file(dict(encoders.build(spec, 3, 42).net.state_dict()), tmp_path / "w.safetensors")
    for asked, used in ((None, 98), (28, 28), (29, 42)):
        config = distill.Config(teacher=f"{spec}@{tmp_path / 'w.safetensors'}", teacher_size=asked)
        assert config.open_teacher(source).takes == used
    assert encoders.side_of_whole_patches("resnet18", 33) == encoders.side_of_whole_patches("nin3", 33) == 33


# ---- the loss


def slow_loss(method, p, config):
    """The formula in the docstring, one vector at a time."""
    pool, dense = (x.detach().tolist() for x in method.predictions(p.image))

    def apart(a, b):
        if not config.normalize:
            return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
        dot, one, other = (sum(x * y for x, y in zip(u, v, strict=True)) for u, v in ((a, b), (a, a), (b, b)))
        return 1 - dot / math.sqrt(one * other)

    target = p.target.tolist()
    b, places = len(target), len(target[0]) - 1
    first = sum(apart(pool[i], target[i][0]) for i in range(b)) / b
    second = sum(apart(dense[i][k], target[i][1 + k]) for i in range(b) for k in range(places)) / (b * places)
    return config.pooled * first + config.dense * second


@pytest.mark.parametrize("normalize", [True, False])
def test_loss_is_the_weighted_distance_of_pooled_and_dense_features(source, normalize):
    config = distill.Config(teacher=teacher(), dims=8, normalize=normalize, pooled=0.7, dense=0.2)
    method = begun(source, config)
    p = puzzle(method, source, 4)
    assert_close(method.loss(p).total.item(), slow_loss(method, p, config), rtol=1e-4, atol=0)


def test_untrained_loss_is_1_for_each_part_and_that_of_the_teacher_itself_0(source):
    """An untrained student's directions are unrelated to the targets. The teacher with heads that project is perfect."""
    method = begun(source, distill.Config(teacher=teacher(), dims=8, views=PLAIN), "resnet_small:width=8")
    parts = method.loss(puzzle(method, source, 64)).parts
    assert parts["pooled"].item() == pytest.approx(1, abs=0.35)
    assert parts["dense"].item() == pytest.approx(1, abs=0.35)
    method.encoder = method.frozen.encoder
    method.stage = method.teacher_stage
    for head, name in ((method.head, "pool"), (method.dense_head, "map")):
        axes, center = getattr(method, f"{name}_axes"), getattr(method, f"{name}_center")
        head[0] = torch.nn.Linear(*axes.shape)
        with torch.no_grad():
            head[0].weight.copy_(axes.T)
            head[0].bias.copy_(-center @ axes)
    parts = method.loss(puzzle(method, source, 64)).parts
    assert parts["pooled"] < 1e-5 and parts["dense"] < 1e-5


def test_either_part_can_be_left_out(source, tmp_path):
    pooled_only = begun(source, distill.Config(teacher=teacher(), dense=0.0))
    assert pooled_only.dense_head is None and set(pooled_only.loss(puzzle(pooled_only, source)).parts) == {
        "pooled",
        "teacher_s",
    }
    dense_only = begun(source, distill.Config(teacher=teacher(), pooled=0.0))
    assert dense_only.head is None and set(dense_only.loss(puzzle(dense_only, source)).parts) == {
        "dense",
        "teacher_s",
    }
    flat = saved_at(tmp_path / "flat", "mlp:width=8", 32)
    with pytest.raises(UserError, match="mlp:width=8 has no feature maps; give --dense 0"):
        begun(source, distill.Config(teacher=flat))


def test_maps_of_different_sides_are_compared_on_the_coarser_grid(source, tmp_path):
    vit = saved_at(tmp_path / "vit", TINY_VIT, 32)
    method = begun(source, distill.Config(teacher=vit))
    own, given = (distill.predicted_map(net, 32)[1] for net in (method.encoder, method.frozen.encoder))
    assert given == 8 and method.grid == min(own, given) and own != given


def test_deepest_map_of_four_positions_a_side_is_predicted():
    lite = encoders.build("tf_efficientnet_lite0", 3, 64)
    assert lite.sides == {"stage1": 32, "stage2": 16, "stage3": 8, "stage4": 4, "stage5": 2}
    assert distill.predicted_map(lite, 64) == ("stage4", 4)
    assert distill.predicted_map(lite, 32) == ("stage3", 4)
    assert distill.predicted_map(encoders.build("mlp:width=8", 3, 16), 16) == ("pool", 0)


def test_views_are_mixed_with_their_neighbors():
    view = Rng(1).uniform(5, 3, 4, 4)
    found = distill.mixed(view, Rng(2))
    share = float(Rng(2, "mixup").unsharded.uniform(1))
    for i, other in enumerate((1, 0, 3, 2, 4)):
        assert_close(found[i], (1 - share) * view[i] + share * view[other])
    shares = [float(Rng(seed, "mixup").unsharded.uniform(1)) for seed in range(200)]
    assert min(shares) < 0.1 and max(shares) > 0.9


# ---- the teacher


def test_checkpoint_does_not_hold_the_teacher_and_it_does_not_change(source, tmp_path):
    config = distill.Config(teacher=saved_at(tmp_path / "large", "resnet_small:width=64", 32))
    method = begun(source, config, "resnet_small:width=4")
    assert not any("frozen" in name for name in method.state_dict())
    assert sum(p.numel() for p in method.parameters()) < sum(
        p.numel() for p in method.frozen.encoder.parameters()
    )
    assert not any(p.requires_grad for p in method.frozen.encoder.parameters())
    before = {k: v.clone() for k, v in method.frozen.encoder.state_dict().items()}
    method.loss(puzzle(method, source)).total.backward()
    assert all(torch.equal(v, before[k]) for k, v in method.frozen.encoder.state_dict().items())
    assert not method.frozen.encoder.training


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    undrawn(monkeypatch)


def student(out, steps=4, **config):
    return api.pretrain(
        "distill", "synthetic:64:32", out, encoder="resnet_small:width=8", steps=steps, batch=16, quiet=True,
        config={"teacher": teacher(), **config},
    )  # fmt: skip


def test_teachers_time_is_a_column_of_the_log(tmp_path):
    made = student(tmp_path / "run")
    rows = files.read_rows(made.folder / run.LOG)
    assert all(0 < row["teacher_s"] < 10 for row in rows)


def test_scores_have_a_row_of_the_teacher_also_in_words(tmp_path, capsys, monkeypatch):
    quick_scores(monkeypatch)
    made = student(tmp_path / "run")
    scores = pretask.evaluate(made, "synthetic:200:32")
    row = scores.get("published", "knn")
    assert row.name == TEACHER
    expected = pretask.evaluate(made.teacher, "synthetic:200:32").get("run", "knn")
    assert row.value == expected.value
    assert main(["evaluate", str(made.folder), "--data", "synthetic:200:32"]) == 0
    assert f"kNN compared with {TEACHER}" in " ".join(capsys.readouterr().out.split())


def test_run_can_be_scored_without_its_teacher_but_not_resumed_with_another(tmp_path, capsys):
    place = saved_at(tmp_path / "teacher", "resnet_small:width=8", 32)
    made = student(tmp_path / "run", teacher=place)
    torch.manual_seed(6)
    save_encoder(encoders.build("resnet_small:width=8", 3, 32), Path(place))
    with pytest.raises(UserError, match=r"weights of the teacher .* have changed since the run began"):
        api.pretrain(None, resume=made.folder, steps=8, quiet=True)
    Path(place).rename(tmp_path / "moved")
    scores = pretask.evaluate(run.Run(made.folder), "synthetic:200:32")
    assert scores.get("run", "knn") and not scores.get("published", "knn")
    assert f"no row of the teacher: no weights at {place}" in " ".join(capsys.readouterr().err.split())


def test_card_has_the_absolute_path_of_the_teacher(tmp_path, monkeypatch):
    saved_at(tmp_path / "teacher", "resnet_small:width=8", 32)
    monkeypatch.chdir(tmp_path)
    made = student(tmp_path / "run", teacher="teacher")
    assert made.card["config"]["teacher"] == str(tmp_path / "teacher")


def test_gray_images_and_a_teacher_of_another_size(tmp_path):
    """Published weights are adapted to the channels; a run's are not."""
    gray = np.random.default_rng(0).integers(0, 256, (32, 24, 24), dtype=np.uint8)
    options = {"encoder": "resnet_small:width=8", "steps": 2, "batch": 16, "quiet": True}
    from safetensors.torch import save_file

    torch.manual_seed(3)
    save_file(dict(encoders.build("resnet18", 3, 64).net.state_dict()), tmp_path / "w.safetensors")
    named = f"resnet18@{tmp_path / 'w.safetensors'}"
    assert (
        api.pretrain("distill", gray, tmp_path / "a", config={"teacher": named}, **options).card["channels"]
        == 1
    )
    with pytest.raises(UserError, match=r"the teacher .* takes images of 3 channels, and these have 1"):
        api.pretrain("distill", gray, tmp_path / "b", config={"teacher": teacher()}, **options)
    assert student(tmp_path / "c").teacher.takes == 16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "distill learns from a teacher: give --teacher"),
        (["--teacher", "nowhere"], "no weights at nowhere; expected"),
        (["--teacher", "timm:resnet19"], "unknown encoder 'resnet19'"),
        (["--teacher", "HERE", "--pooled", "0", "--dense", "0"], "--pooled 0 --dense 0 leave no loss"),
        (
            ["--teacher", "HERE", "--mixup", "--stored-views", "2"],
            "--mixup makes views of two images",
        ),
    ],
)
def test_mistakes_are_one_line_before_images_are_opened(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "open", lambda *_, **__: pytest.fail("images were opened"))
    words = [teacher() if word == "HERE" else word for word in flags]
    assert (
        main(["pretrain", "distill", "--data", "synthetic:64:32", "--out", str(tmp_path / "run"), *words])
        == 2
    )
    assert message in capsys.readouterr().err


# ---- stored views


def test_stored_features_are_those_of_the_view(source):
    method = begun(source, distill.Config(teacher=teacher(), stored_views=3))
    p = puzzle(method, source, 32, seed=4)
    assert_close(p.target, method.targets(p.image), rtol=2e-3, atol=2e-3)
    method.stored = None
    assert torch.equal(puzzle(method, source, 32, seed=4).image, p.image)


def test_every_image_has_its_own_few_views(source):
    method = begun(source, distill.Config(teacher=teacher(), stored_views=3))
    seen = {}
    for seed in range(20):
        order = Rng(seed, "order").permutation(64)[:16]
        batch = source.__getitems__(order)
        for index, view in zip(order.tolist(), method.puzzle(batch, seed).image, strict=True):
            seen.setdefault(index, set()).add(view.numpy().tobytes())
    assert max(map(len, seen.values())) == 3
    assert len(set.union(*seen.values())) == sum(map(len, seen.values()))


def test_every_stored_view_has_its_own_draws(source):
    method = begun(source, distill.Config(teacher=teacher(), stored_views=3))
    draws = torch.cat([method.row_rng(torch.arange(64), k).uniform(64, 2) for k in range(3)])
    assert len(draws.unique(dim=0)) == 3 * 64


def test_resumed_run_with_stored_views_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole = student(tmp_path / "whole", steps=8, stored_views=2)
    state = checkpoint.load(whole.folder / checkpoint.LATEST)
    assert not any("stored" in name for name in state["method"])

    def interrupt(row):
        if row["step"] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
    config = distill.Config(teacher=teacher(), stored_views=2)
    settings = RunConfig("synthetic:64:32", tmp_path / "cut", encoder="resnet_small:width=8", steps=8)
    job = jobs.fresh("distill", settings, config, dataclasses.replace(config.train, batch=16))
    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain(job, on_log=interrupt)
    assert checkpoint.load(tmp_path / "cut" / checkpoint.LATEST)["step"] == 4
    resumed = api.pretrain(None, resume=tmp_path / "cut", quiet=True)
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(resumed.encoder.state_dict()[name], value), name


def test_memory_of_stored_features_is_said_before_the_work(source, capsys, monkeypatch):
    config = distill.Config(teacher=teacher(), stored_views=3, dims=100)
    monkeypatch.setattr(distill.Distill, "row_rng", lambda *_: pytest.fail("work began"))
    with pytest.raises(BaseException, match="work began"):
        begun(source, config)
    said = " ".join(capsys.readouterr().err.split())
    grid = distill.predicted_map(encoders.build("resnet_small:width=8", 3, 16), 16)[1]
    size = 64 * 3 * (1 + grid**2) * 100 * 2 / 1e6
    assert f"storing the teacher's features of 3 views of 64 images: {size:,.0f} MB of memory" in said


def test_student_learns_what_the_teacher_knows(tmp_path):
    """After 60 steps its directions agree with those of the teacher on images that it has not seen."""
    made = student(tmp_path / "run", steps=60)
    unseen = data.open("synthetic:128:32").__getitems__(torch.arange(64, 128))
    method = made.method
    p = method.puzzle(unseen, 9)
    with torch.no_grad():
        parts = method.loss(p).parts
    assert parts["pooled"] < 0.7 and parts["dense"] < 0.7
    shuffled = dataclasses.replace(p, target=p.target.roll(1, 0))
    with torch.no_grad():
        assert method.loss(shuffled).parts["pooled"] > parts["pooled"] + 0.1
