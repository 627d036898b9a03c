"""Normals and depth: scores by hand and by loops, pooled over pixels, and a decoder that is trained."""

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


def turned(n: torch.Tensor, degrees: float) -> torch.Tensor:
    """Each normal turned by so many degrees, about any axis across it."""
    side = F.normalize(torch.linalg.cross(n, unit(*n.shape, seed=1), dim=1), dim=1)
    return n * math.cos(math.radians(degrees)) + side * math.sin(math.radians(degrees))


# ---- normals


def test_the_same_normals_are_off_by_nothing():
    n = unit(3, 3, 8, 8)
    found = numbers(normals.compare([(n, n)]))
    assert found["mean"] == pytest.approx(0, abs=0.05) and found["median"] < 0.1
    assert [found[f"within {d:g}"] for d in WITHIN] == [100, 100, 100]


@pytest.mark.parametrize(("degrees", "within"), [(90, 0), (29.5, 1), (22, 2), (11, 3), (180, 0)])
def test_turned_normals_are_off_by_the_angle(degrees: float, within: int):
    n = unit(2, 3, 8, 8)
    found = numbers(normals.compare([(turned(n, degrees), n)]))
    assert found["mean"] == pytest.approx(degrees, abs=0.05)
    assert found["median"] == pytest.approx(degrees, abs=0.1)
    shares = [found[f"within {d:g}"] for d in WITHIN]
    assert shares == [0] * (3 - within) + [100] * within


def test_the_length_of_what_is_found_does_not_matter():
    n, other = unit(2, 3, 8, 8), unit(2, 3, 8, 8, seed=2)
    one = numbers(normals.compare([(other, n)]))
    assert numbers(normals.compare([(7 * other, n)])) == pytest.approx(one)
    assert normals.loss(0.01 * other, n).item() == pytest.approx(normals.loss(other, n).item(), abs=1e-6)


def test_unknown_normals_count_nowhere():
    n = unit(2, 3, 8, 8)
    found = n.clone()
    found[:, :, :4] = turned(n, 90)[:, :, :4]
    n[:, :, :4] = 0
    assert numbers(normals.compare([(found, n)]))["mean"] == pytest.approx(0, abs=0.05)
    assert normals.loss(found, n).item() == pytest.approx(0, abs=1e-6)
    assert normals.loss(found, 0 * n) == 0


def test_angles_are_pooled_over_pixels_and_not_over_images():
    n = unit(2, 3, 8, 8)
    found = torch.cat([turned(n, 20)[:1], turned(n, 40)[1:]])
    n[1, :, 1:] = 0  # the second image has 8 pixels, the first 64
    scores = numbers(normals.compare([(found[:1], n[:1]), (found[1:], n[1:])]))
    assert scores["mean"] == pytest.approx((64 * 20 + 8 * 40) / 72, abs=0.01)
    assert scores["within 22.5"] == pytest.approx(100 * 64 / 72)
    assert scores["median"] == pytest.approx(20, abs=0.1)


def test_the_median_is_that_of_all_angles():
    n = unit(4, 3, 16, 16)
    found = n + 0.5 * Rng(3, "noise").normal(4, 3, 16, 16)
    n[:, :, ::3] = 0
    off = angle(found, n)[known(n)]
    ordered = sorted(off.tolist())
    low, high = ordered[(len(off) - 1) // 2], ordered[len(off) // 2]
    assert low - 0.1 <= numbers(normals.compare([(found, n)]))["median"] <= high + 0.1


def test_intervals_hold_the_score_and_are_wider_for_fewer_images():
    n = unit(60, 3, 4, 4)
    angles = Rng(0, "angles").uniform(60, low=0, high=60).tolist()
    found = torch.cat([turned(each[None], a) for each, a in zip(n, angles, strict=True)])
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


def test_errors_of_depth_are_those_made_by_hand():
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
    again = {each.metric: each.bootstrap for each in dense.task_scores(errors, depth.metrics, 2, 0, {})}
    assert {round(float(v), 3) for v in again["rmse"]} == {1.0, 1.414, 1.612, 3.0} - {1.414}


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


def test_flipping_a_map_flips_its_normals():
    n = unit(2, 3, 4, 6)
    seen = dense.flip_map(n, "normals")
    for column in range(6):
        assert torch.equal(seen[:, 0, :, column], -n[:, 0, :, 5 - column])
        assert torch.equal(seen[:, 1:, :, column], n[:, 1:, :, 5 - column])
    z = torch.rand(2, 1, 4, 6)
    assert torch.equal(dense.flip_map(z, "depth"), z.flip(3))


NETS = ["resnet_small:width=8", "vit_tiny_patch16_224:patch_size=8,embed_dim=48,depth=4"]


@pytest.mark.parametrize("name", NETS)
def test_a_decoder_sees_every_stage_and_answers_for_every_pixel(name: str):
    net = dense.EncoderDecoder(encoders.build(name, 3, 32), 3).eval()
    assert len(net.stages) > 1 and len(net.stages) == len(net.norms)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)


def test_the_encoder_learns_with_its_decoder_and_the_one_given_stays(scenes, encoder):
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


class Some:
    """Scenes whose maps are changed."""

    def __init__(self, scenes, change):
        self.scenes, self.change = scenes, change
        self.name, self.provides = scenes.name, scenes.provides

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitems__(self, index):
        batch = self.scenes.__getitems__(index)
        return replace(batch, aux={name: self.change(batch.aux[name]) for name in ("normals", "depth")})


def half_known(x: torch.Tensor) -> torch.Tensor:
    """The upper 18 rows: of the places there, some whole and some half."""
    x = x.clone()
    x[:, :, 18:] = 0
    return x


def by_hand(encoder, scenes, name: str, target, index: torch.Tensor) -> tuple[list, list, list]:
    """Features, targets and weights, position by position."""
    batch = scenes.__getitems__(index)
    rows, aims, counts = [], [], []
    for mirrored in (False, True):
        image, true = batch.image.float() / 255, batch.aux[name]
        if mirrored:
            image, true = image.flip(3), dense.flip_map(true, name)
        with torch.no_grad():
            stages = encoder.eval()(image)
        maps = [linear_readout.resize(stages[s], (8, 8)) for s in linear_readout.map_stages(encoder)]
        aim, known = target(true)
        for i in range(len(index)):
            for y in range(8):
                for x in range(8):
                    rows.append(torch.cat([m[i, :, y, x] for m in maps]).tolist())
                    at = (i, slice(None), slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))
                    sure = known[at][0] > 0
                    counts.append(sure.sum().item() / 16)
                    aims.append(aim[at][:, sure].mean(1).tolist() if sure.any() else [0.0] * aim.shape[1])
    return rows, aims, counts


@pytest.mark.parametrize("task", [normals, depth], ids=["normals", "depth"])
def test_the_readout_is_ridge_regression_on_all_places_as_another_library_solves_it(task, scenes, encoder):
    from sklearn.linear_model import Ridge

    name, known = task.name, Some(scenes, half_known)
    rows, aims, counts = (np.array(x) for x in by_hand(encoder, known, name, task.target, torch.arange(10)))
    assert set(counts) == {0, 0.5, 1}
    index = torch.arange(10)
    moments = linear_readout.second_moments(encoder, known, name, task.target, index, "cpu", False)
    width = rows.shape[1]
    scale = np.sqrt(np.cov(rows.T, aweights=counts, ddof=0).diagonal())
    for penalty in (0.1, 1e-3):
        weight, bias = linear_readout.solve(moments, width, penalty)
        peer = Ridge(alpha=penalty * counts.sum(), solver="cholesky").fit(rows / scale, aims, counts)
        assert np.allclose(weight.T, peer.coef_ / scale, rtol=1e-3, atol=1e-5)
        assert np.allclose(bias, peer.intercept_, rtol=1e-3, atol=1e-4)
        off = counts[:, None] * (rows @ weight.numpy() + bias.numpy() - aims) ** 2
        assert linear_readout.squared_error(moments, weight, bias) == pytest.approx(off.sum(), rel=1e-3)


def test_the_penalty_is_the_best_on_the_last_fifth_of_the_scenes(scenes, encoder):
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
def test_a_readout_answers_for_every_pixel_and_leaves_the_encoder_as_it_is(name: str, scenes):
    encoder = encoders.build(name, 3, 32).train()
    before = copy.deepcopy(encoder.state_dict())
    net = linear_readout.fit(
        encoder, scenes, "normals", normals.target, index=torch.arange(8), progress=False
    )
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    assert encoder.training and not net.encoder.training
    for state in (encoder.state_dict(), net.encoder.state_dict()):
        assert all(torch.equal(before[k], v) for k, v in state.items())


def test_a_readout_of_one_scene_and_of_nothing_known_gives_numbers(scenes, encoder):
    known = {"index": torch.arange(1), "progress": False}
    net = linear_readout.fit(encoder, scenes, "depth", depth.target, **known)
    assert net(torch.rand(1, 3, 32, 32)).isfinite().all()
    nothing = Some(scenes, torch.zeros_like)
    assert not linear_readout.fit(encoder, nothing, "depth", depth.target, **known)(
        torch.rand(1, 3, 32, 32)
    ).any()


@pytest.mark.parametrize("frozen", [True, False], ids=["read off", "decoded"])
def test_predictions_are_better_than_a_constant(frozen: bool, scenes, encoder):
    known = {"index": torch.arange(72), "progress": False}
    test = torch.arange(72, 96)
    learnt = scenes.__getitems__(torch.arange(72)).aux
    true = scenes.__getitems__(test).aux

    def fit(task: dense.DenseTask):
        if frozen:
            return linear_readout.fit(encoder, scenes, task.name, task.target, **known)
        return dense.fit(encoder, scenes, task, steps=60, **known)

    net = fit(normals)
    found = normals.compare((f, t) for _, f, t in dense.predict(net, scenes, "normals", test))
    same = learnt["normals"].mean((0, 2, 3), keepdim=True).expand(24, -1, 32, 32)
    assert len(found.counts) == 24
    assert numbers(found)["mean"] < 0.6 * numbers(normals.compare([(same, true["normals"])]))["mean"]
    net = fit(depth)
    found = depth.compare((meters(f), t) for _, f, t in dense.predict(net, scenes, "depth", test))
    same = meters(learnt["depth"].log().mean()).expand(24, 1, 32, 32)
    assert numbers(found)["absrel"] < 0.6 * numbers(depth.compare([(same, true["depth"])]))["absrel"]


# ---- the tasks


@pytest.mark.parametrize("task", [normals, depth], ids=["normals", "depth"])
def test_a_task_beats_one_answer_for_all_pixels_and_an_encoder_that_learns_too_answers_otherwise(
    task, encoder
):
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
    learnt, asked, fit, foreseen = [], [], linear_readout.fit, dense.predict

    def fitted(*words, index, **more):
        learnt.append(index.tolist())
        return fit(*words, index=index, **more)

    def told(net, source, name, index, device):
        asked.append(index.tolist())
        return foreseen(net, source, name, index, device)

    monkeypatch.setattr(linear_readout, "fit", fitted)
    monkeypatch.setattr(dense, "predict", told)
    found = normals.evaluate(encoder, train, test, Plan(None, 32, progress=False)).scores
    assert [i for block in asked for i in block] == [*range(13)] and len(asked) == dense.BLOCKS
    assert all(block == [*range(block[0], block[-1] + 1)] for block in asked)
    assert all(
        sorted(rest + block) == [*range(13)] for rest, block in zip(learnt, asked, strict=True)
    )  # and none twice
    assert found[0].metric == "mean" and len(found[0].bootstrap) > 100
    given = normals.load(
        "synthetic:13:32", OpenOptions(progress=False)
    )  # the same place twice is what was asked for
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
    for scores, still in ((frozen, True), (tuned, False)):
        own, fresh, _ = (r for r in scores.rows if r.metric == "mean")
        assert [c["frozen"] for r in (own, fresh) for c in r.chosen] == [still, still]
        assert scores.path(made.folder).is_file() and scores.data["n_test"] == 20
    with pytest.raises(UserError, match="--finetune is for normals and depth"):
        pretask.transfer(made, "nowhere", task="detection", finetune=True)
    with pytest.raises(UserError, match="in no steps; leave out --steps, or give --finetune"):
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
