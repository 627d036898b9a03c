"""Normals and depth: metrics by hand and in loops, pooled over pixels; the decoder; the linear readout."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pretask
from pretask import data as sources
from pretask import encoders
from pretask.data.base import OpenOptions
from pretask.rng import Rng
from pretask.tasks import base, dense, linear_readout
from pretask.tasks.base import Plan
from pretask.tasks.depth import Depth, meters
from pretask.tasks.normals import WITHIN, Normals, angle, known
from pretask.types import UserError

normals, depth = Normals(), Depth()
LEVEL = torch.tensor([0.0, -1.0, 0.0]).view(1, 3, 1, 1)


def numbers(errors: dense.Errors) -> dict[str, float]:
    return {name: float(value) for name, value in errors.scores().items()}


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(Rng(seed, "unit").normal(*shape), dim=1)


def rotated(n: torch.Tensor, degrees: float) -> torch.Tensor:
    """Each normal rotated by `degrees` about a random perpendicular axis."""
    side = F.normalize(torch.linalg.cross(n, unit(*n.shape, seed=1), dim=1), dim=1)
    return n * math.cos(math.radians(degrees)) + side * math.sin(math.radians(degrees))


# ---- normals


def test_equal_normals_have_an_angle_of_0():
    n = unit(3, 3, 8, 8)
    found = numbers(normals.compare([(n, n)]))
    assert found["mean"] == pytest.approx(0, abs=0.05) and found["median"] < 0.1
    assert [found[f"within {d:g}"] for d in WITHIN] == [100, 100, 100]


@pytest.mark.parametrize(("degrees", "within"), [(90, 0), (29.5, 1), (22, 2), (11, 3), (180, 0)])
def test_rotated_normals_have_the_angle_of_the_rotation(degrees: float, within: int):
    n = unit(2, 3, 8, 8)
    found = numbers(normals.compare([(rotated(n, degrees), n)]))
    assert found["mean"] == pytest.approx(degrees, abs=0.05)
    assert found["median"] == pytest.approx(degrees, abs=0.1)
    fractions = [found[f"within {d:g}"] for d in WITHIN]
    assert fractions == [0] * (3 - within) + [100] * within


def test_the_length_of_predicted_normals_does_not_matter():
    n, other = unit(2, 3, 8, 8), unit(2, 3, 8, 8, seed=2)
    one = numbers(normals.compare([(other, n)]))
    assert numbers(normals.compare([(7 * other, n)])) == pytest.approx(one)
    assert normals.loss(0.01 * other, n).item() == pytest.approx(normals.loss(other, n).item(), abs=1e-6)


def test_unknown_normals_are_ignored():
    n = unit(2, 3, 8, 8)
    found = n.clone()
    found[:, :, :4] = rotated(n, 90)[:, :, :4]
    n[:, :, :4] = 0
    assert numbers(normals.compare([(found, n)]))["mean"] == pytest.approx(0, abs=0.05)
    assert normals.loss(found, n).item() == pytest.approx(0, abs=1e-6)
    assert normals.loss(found, 0 * n) == 0


def test_angles_are_pooled_over_pixels_and_not_over_images():
    n = unit(2, 3, 8, 8)
    found = torch.cat([rotated(n, 20)[:1], rotated(n, 40)[1:]])
    n[1, :, 1:] = 0  # the second image has 8 pixels, the first 64
    scores = numbers(normals.compare([(found[:1], n[:1]), (found[1:], n[1:])]))
    assert scores["mean"] == pytest.approx((64 * 20 + 8 * 40) / 72, abs=0.01)
    assert scores["within 22.5"] == pytest.approx(100 * 64 / 72)
    assert scores["median"] == pytest.approx(20, abs=0.1)


def test_the_median_is_over_all_known_pixels():
    n = unit(4, 3, 16, 16)
    found = n + 0.5 * Rng(3, "noise").normal(4, 3, 16, 16)
    n[:, :, ::3] = 0
    off = angle(found, n)[known(n)]
    ordered = sorted(off.tolist())
    low, high = ordered[(len(off) - 1) // 2], ordered[len(off) // 2]
    assert low - 0.1 <= numbers(normals.compare([(found, n)]))["median"] <= high + 0.1


def test_intervals_contain_the_score_and_are_wider_for_fewer_images():
    n = unit(60, 3, 4, 4)
    angles = Rng(0, "angles").uniform(60, low=0, high=60).tolist()
    found = torch.cat([rotated(each[None], a) for each, a in zip(n, angles, strict=True)])
    many, few = (normals.compare([(found[:k], n[:k])]) for k in (60, 10))
    for each in dense.task_scores(many, normals.metrics, 60, 0, {}):
        assert each.value == pytest.approx(numbers(many)[each.metric])
        assert each.bootstrap.min() <= each.value <= each.bootstrap.max()
    spread, wider = (
        dense.task_scores(errors, {"mean": ""}, n, 0, {})[0].bootstrap.std()
        for errors, n in ((many, 60), (few, 10))
    )
    assert spread == pytest.approx(torch.tensor(angles).std().item() / 60**0.5, rel=0.1)
    assert wider > 1.5 * spread


# ---- depth


def test_depth_errors_match_those_computed_by_hand():
    true = torch.tensor([[1.0, 2.0], [4.0, 0.0]])[None, None]
    found = torch.tensor([[1.2, 3.0], [2.0, 9.0]])[None, None]  # ratios 1.2, 1.5, 2; the last is unknown
    scores = numbers(depth.compare([(found, true)]))
    assert scores["rmse"] == pytest.approx(((0.04 + 1 + 4) / 3) ** 0.5)
    assert scores["absrel"] == pytest.approx(100 * (0.2 + 0.5 + 0.5) / 3)
    assert scores["delta1"] == pytest.approx(100 / 3)  # below 1.25
    assert scores["delta2"] == pytest.approx(200 / 3)  # below 1.5625
    assert scores["delta3"] == pytest.approx(200 / 3)  # below 1.953
    assert numbers(depth.compare([(true, true)])) == pytest.approx(
        {"rmse": 0, "absrel": 0, "delta1": 100, "delta2": 100, "delta3": 100}
    )


def test_rmse_is_the_root_of_the_mean_over_all_pixels():
    true = torch.ones(2, 1, 4, 4)
    true[1, :, 1:] = 0
    found = torch.stack([torch.full((1, 4, 4), 2.0), torch.full((1, 4, 4), 4.0)])
    errors = depth.compare([(found[:1], true[:1]), (found[1:], true[1:])])
    assert numbers(errors)["rmse"] == pytest.approx(((16 * 1 + 4 * 9) / 20) ** 0.5)
    resampled = {each.metric: each.bootstrap for each in dense.task_scores(errors, depth.metrics, 2, 0, {})}
    assert {round(float(v), 3) for v in resampled["rmse"]} == {1.0, 1.414, 1.612, 3.0} - {1.414}


def test_the_depth_loss_is_relative_and_ignores_unknown_pixels():
    true = Rng(0, "z").uniform(2, 1, 4, 4, low=1, high=9)
    true[:, :, 0] = 0
    log = torch.where(true > 0, true, 1).log()
    assert depth.loss(log + 0.1, true).item() == pytest.approx(0.1, abs=1e-6)
    assert depth.loss(log, 0 * true) == 0
    assert torch.allclose(meters(log)[true > 0], true[true > 0])


# ---- the decoder


@pytest.fixture(scope="module")
def scenes():
    return sources.open("synthetic:96:32")


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return encoders.build("resnet_small:width=8", 3, 32)


def test_flipping_a_map_negates_the_x_component_of_normals():
    n = unit(2, 3, 4, 6)
    seen = dense.flip_map(n, "normals")
    for column in range(6):
        assert torch.equal(seen[:, 0, :, column], -n[:, 0, :, 5 - column])
        assert torch.equal(seen[:, 1:, :, column], n[:, 1:, :, 5 - column])
    z = torch.rand(2, 1, 4, 6)
    assert torch.equal(dense.flip_map(z, "depth"), z.flip(3))


NETS = ["resnet_small:width=8", "vit_tiny_patch16_224:patch_size=8,embed_dim=48,depth=4"]


@pytest.mark.parametrize("name", NETS)
def test_the_decoder_uses_every_stage_and_predicts_every_pixel(name: str):
    net = dense.EncoderDecoder(encoders.build(name, 3, 32), 3).eval()
    assert len(net.stages) > 1 and len(net.stages) == len(net.norms)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)


def test_the_encoder_is_trained_with_the_decoder_and_the_given_one_is_unchanged(scenes, encoder):
    before = copy.deepcopy(encoder.state_dict())
    known = {"steps": 3, "progress": False, "index": torch.arange(20)}
    net, again = (dense.fit(encoder, scenes, depth, **known) for _ in range(2))
    weights = dict(net.encoder.named_parameters())
    assert all(not torch.equal(before[k], w) for k, w in weights.items() if w.ndim == 4)
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    assert all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_unknown_pixels_give_no_gradient(encoder):
    net = dense.EncoderDecoder(encoder, 3).train()
    x = torch.rand(2, 3, 32, 32)
    normals.loss(net(x), torch.zeros(2, 3, 32, 32)).backward()
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


# ---- the readout


class ChangedMaps:
    """Scenes with changed maps."""

    def __init__(self, scenes, change):
        self.scenes, self.change = scenes, change
        self.name, self.provides = scenes.name, scenes.provides

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitems__(self, index):
        batch = self.scenes.__getitems__(index)
        return replace(batch, aux={name: self.change(batch.aux[name]) for name in ("normals", "depth")})


def half_known(x: torch.Tensor) -> torch.Tensor:
    """Only the upper 18 rows are known: four rows of grid positions, and half of the fifth."""
    x = x.clone()
    x[:, :, 18:] = 0
    return x


def by_hand(encoder, scenes, name: str, target, index: torch.Tensor) -> tuple[list, list, list]:
    """Features, targets and weights, position by position."""
    batch = scenes.__getitems__(index)
    rows, targets, counts = [], [], []
    for mirrored in (False, True):
        image, true = batch.image.float() / 255, batch.aux[name]
        if mirrored:
            image, true = image.flip(3), dense.flip_map(true, name)
        with torch.no_grad():
            stages = encoder.eval()(image)
        maps = [linear_readout.resize(stages[s], (8, 8)) for s in linear_readout.map_stages(encoder)]
        goal, known = target(true)
        for i in range(len(index)):
            for y in range(8):
                for x in range(8):
                    rows.append(torch.cat([m[i, :, y, x] for m in maps]).tolist())
                    at = (i, slice(None), slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))
                    sure = known[at][0] > 0
                    counts.append(sure.sum().item() / 16)
                    targets.append(
                        goal[at][:, sure].mean(1).tolist() if sure.any() else [0.0] * goal.shape[1]
                    )
    return rows, targets, counts


@pytest.mark.parametrize("task", [normals, depth], ids=["normals", "depth"])
def test_the_readout_matches_scikit_learns_ridge_regression(task, scenes, encoder):
    from sklearn.linear_model import Ridge

    name, known = task.name, ChangedMaps(scenes, half_known)
    rows, targets, counts = (
        np.array(x) for x in by_hand(encoder, known, name, task.target, torch.arange(10))
    )
    assert set(counts) == {0, 0.5, 1}
    index = torch.arange(10)
    moments = linear_readout.second_moments(encoder, known, name, task.target, index, "cpu", False)
    width = rows.shape[1]
    scale = np.sqrt(np.cov(rows.T, aweights=counts, ddof=0).diagonal())
    for penalty in (0.1, 1e-3):
        weight, bias = linear_readout.solve(moments, width, penalty)
        reference = Ridge(alpha=penalty * counts.sum(), solver="cholesky").fit(rows / scale, targets, counts)
        assert np.allclose(weight.T, reference.coef_ / scale, rtol=1e-3, atol=1e-5)
        assert np.allclose(bias, reference.intercept_, rtol=1e-3, atol=1e-4)
        off = counts[:, None] * (rows @ weight.numpy() + bias.numpy() - targets) ** 2
        assert linear_readout.squared_error(moments, weight, bias) == pytest.approx(off.sum(), rel=1e-3)


def test_the_chosen_penalty_is_the_best_on_the_last_fifth_of_the_scenes(scenes, encoder):
    index, errors = torch.arange(30), []
    encoder.eval()
    for penalty in linear_readout.PENALTIES:
        first = linear_readout.second_moments(
            encoder, scenes, "depth", depth.target, index[:24], "cpu", False
        )
        last = linear_readout.second_moments(encoder, scenes, "depth", depth.target, index[24:], "cpu", False)
        width = len(first) - 2
        errors.append(linear_readout.squared_error(last, *linear_readout.solve(first, width, penalty)))
    best = linear_readout.PENALTIES[errors.index(min(errors))]
    assert len(set(errors)) == len(errors) and best != linear_readout.PENALTIES[0]
    whole = linear_readout.second_moments(encoder, scenes, "depth", depth.target, index, "cpu", False)
    weight, bias = linear_readout.solve(whole, width, best)
    net = linear_readout.fit(encoder, scenes, "depth", depth.target, index=index, progress=False)
    assert torch.allclose(net.weight[:, :, 0, 0].T.double(), weight, rtol=1e-4, atol=1e-6)
    assert torch.allclose(net.bias.double(), bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_the_readout_predicts_every_pixel_and_does_not_change_the_encoder(name: str, scenes):
    encoder = encoders.build(name, 3, 32).train()
    before = copy.deepcopy(encoder.state_dict())
    net = linear_readout.fit(
        encoder, scenes, "normals", normals.target, index=torch.arange(8), progress=False
    )
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    assert encoder.training and not net.encoder.training
    for state in (encoder.state_dict(), net.encoder.state_dict()):
        assert all(torch.equal(before[k], v) for k, v in state.items())


def test_the_readout_is_finite_for_one_scene_and_0_without_known_pixels(scenes, encoder):
    known = {"index": torch.arange(1), "progress": False}
    net = linear_readout.fit(encoder, scenes, "depth", depth.target, **known)
    assert net(torch.rand(1, 3, 32, 32)).isfinite().all()
    nothing = ChangedMaps(scenes, torch.zeros_like)
    assert not linear_readout.fit(encoder, nothing, "depth", depth.target, **known)(
        torch.rand(1, 3, 32, 32)
    ).any()


@pytest.mark.parametrize("frozen", [True, False], ids=["readout", "decoder"])
def test_predictions_are_better_than_a_constant(frozen: bool, scenes, encoder):
    known = {"index": torch.arange(72), "progress": False}
    test = torch.arange(72, 96)
    train = scenes.__getitems__(torch.arange(72)).aux
    true = scenes.__getitems__(test).aux

    def fit(task: dense.DenseTask):
        if frozen:
            return linear_readout.fit(encoder, scenes, task.name, task.target, **known)
        return dense.fit(encoder, scenes, task, steps=60, **known)

    net = fit(normals)
    found = normals.compare((f, t) for _, f, t in dense.predict(net, scenes, "normals", test))
    constant = train["normals"].mean((0, 2, 3), keepdim=True).expand(24, -1, 32, 32)
    assert len(found.counts) == 24
    assert numbers(found)["mean"] < 0.6 * numbers(normals.compare([(constant, true["normals"])]))["mean"]
    net = fit(depth)
    found = depth.compare((meters(f), t) for _, f, t in dense.predict(net, scenes, "depth", test))
    constant = meters(train["depth"].log().mean()).expand(24, 1, 32, 32)
    assert numbers(found)["absrel"] < 0.6 * numbers(depth.compare([(constant, true["depth"])]))["absrel"]


# ---- the tasks


@pytest.mark.parametrize("task", [normals, depth], ids=["normals", "depth"])
def test_a_task_beats_a_constant_prediction_and_fine_tuning_changes_the_score(task, encoder):
    data = task.load("synthetic:60:32", OpenOptions(progress=False))
    train, test = data.subset(torch.arange(48), "train"), data.subset(torch.arange(48, 60), "test")
    plan = Plan(40, 32, progress=False)
    frozen, tuned = (task.evaluate(encoder, train, test, replace(plan, finetune=t)) for t in (False, True))
    name, constant = task.floor(train, test, plan)
    first = next(iter(task.metrics))
    low, middle, high = (each.scores[0] for each in (tuned, frozen, constant))
    assert {low.metric, middle.metric, high.metric} == {first} and name.startswith("one ")
    assert middle.value < high.value and low.value != middle.value
    assert [f.metric for f in frozen.scores] == list(task.metrics)
    assert len(frozen.pictures) == dense.PICTURES
    assert all(p["truth"].shape == p["predicted"].shape == (3, 32, 32) for p in frozen.pictures)
    spread = [48, 50, 52, 54, 56, 59]
    for picture, own in zip(
        frozen.pictures, test.open_at(32, 3).__getitems__(torch.tensor(spread)).image, strict=True
    ):
        assert picture["image"].equal(own), "from the first of the test images to the last"
    assert task.image_labels(train, encoder, plan) is None


def test_every_frame_is_predicted_once_by_a_network_trained_on_other_blocks(encoder, monkeypatch):
    train, test = base.split_off_test(normals.load("synthetic:13:32", OpenOptions(progress=False)), 0)
    trained_on, predicted_on, fit, predict = [], [], linear_readout.fit, dense.predict

    def recorded_fit(*words, index, **more):
        trained_on.append(index.tolist())
        return fit(*words, index=index, **more)

    def recorded_predict(net, source, name, index, device):
        predicted_on.append(index.tolist())
        return predict(net, source, name, index, device)

    monkeypatch.setattr(linear_readout, "fit", recorded_fit)
    monkeypatch.setattr(dense, "predict", recorded_predict)
    found = normals.evaluate(encoder, train, test, Plan(None, 32, progress=False)).scores
    assert [i for block in predicted_on for i in block] == [*range(13)] and len(predicted_on) == dense.BLOCKS
    assert all(block == [*range(block[0], block[-1] + 1)] for block in predicted_on)
    assert all(
        sorted(rest + block) == [*range(13)] for rest, block in zip(trained_on, predicted_on, strict=True)
    )  # each frame in exactly one of both
    assert found[0].metric == "mean" and len(found[0].bootstrap) > 100
    given = normals.load(
        "synthetic:13:32", OpenOptions(progress=False)
    )  # a given test set is used as it is, even if it equals the training set
    assert len(list(train.folds(given))) == 1
    few = normals.load("synthetic:3:32", OpenOptions(progress=False))
    assert [(len(a), len(b)) for a, b in few.folds(few)] == [(2, 1)] * 3


def test_only_dense_tasks_can_be_fine_tuned(tmp_path: Path):
    made = pretask.pretrain(
        "rotnet", "synthetic:64:32", tmp_path / "run", steps=1, encoder="resnet_small:width=8"
    )
    known = {"task": "normals", "progress": False}
    frozen = pretask.transfer(made, "synthetic:20:32", **known)
    tuned = pretask.transfer(made, "synthetic:20:32", finetune=True, steps=2, **known)
    assert (frozen.data["task"], tuned.data["task"]) == ("normals", "fine-tuned normals")
    for scores, is_frozen in ((frozen, True), (tuned, False)):
        own, fresh, _ = (r for r in scores.rows if r.metric == "mean")
        assert [c["frozen"] for r in (own, fresh) for c in r.chosen] == [is_frozen, is_frozen]
        assert scores.path(made.folder).is_file() and scores.data["n_test"] == 20
    with pytest.raises(UserError, match="--finetune is for normals and depth"):
        pretask.transfer(made, "nowhere", task="detection", finetune=True)
    with pytest.raises(UserError, match="without steps; leave out --steps, or give --finetune"):
        pretask.transfer(made, "synthetic:20:32", steps=2, **known)
    with pytest.raises(UserError, match="leave out --supervised"):
        pretask.transfer(made, "synthetic:20:32", task="depth", finetune=True, supervised=True)


def test_colors_of_predicted_maps():
    facing = torch.tensor([0.0, 0.0, -1.0]).view(3, 1, 1)
    assert normals.colored(2 * facing).flatten().tolist() == [127, 127, 0]
    assert normals.colored(0 * facing).flatten().tolist() == [0, 0, 0]
    shown = depth.colored(torch.tensor([[[0.0, 0.5, 1.0, 4.0]]]))
    assert shown[0, 0].tolist() == [0, 255, 127, 31]


def test_data_that_cannot_be_scored_is_a_one_line_error(scenes, encoder):
    class Bare:
        name, provides = "photos", frozenset()

    known = {"steps": 1, "progress": False}
    with pytest.raises(UserError, match=r"photos has no depth \(only images\); give scenes with depth"):
        dense.fit(encoder, Bare(), depth, **known)
    with pytest.raises(UserError, match="has no maps"):
        dense.fit(encoders.build("mlp:width=8", 3, 32), scenes, depth, **known)
