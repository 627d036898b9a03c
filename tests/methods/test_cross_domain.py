"""Cross-domain tasks: each loss against its formula, a judge and a trunk that never move each other, pools that hold 128."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.testing import assert_close

from pretask import data as sources
from pretask import encoders, methods
from pretask.data import loader
from pretask.methods import cross_domain
from pretask.methods.cross_domain import POOL, Paper, Pool, contour_loss, depth_loss, normal_loss, outlines
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.types import UserError

SOURCE = "synthetic:64:32"


def method(**knobs):
    source = sources.open(SOURCE)
    torch.manual_seed(0)
    config = methods.recipe("cross_domain")(**knobs)
    return config.build(encoders.build("resnet_small:width=8", 3, 32), source), source


def step(made, source, number: int = 0, batch: int = 16):
    """One step of the run; its parts."""
    puzzle = made.puzzle(loader.sample(source, batch, Rng(number)), number)
    optimizers = made.optimizers(made.config.train)
    loss = made.loss(puzzle)
    loss.total.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    made.after_step(loss.carry, Plan.of(10, 10).at(number))
    return loss.parts


# ---- the three tasks


def test_outlines_are_where_the_nine_pixels_around_are_not_all_of_one_thing():
    ids = Rng(1).integers(2, 1, 9, 9, high=2).int() * 7
    expected = torch.zeros(2, 1, 9, 9)
    for b in range(2):
        for i in range(9):
            for j in range(9):
                around = ids[b, 0, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
                expected[b, 0, i, j] = float(len(around.unique()) > 1)
    assert torch.equal(outlines(ids), expected)
    assert not outlines(torch.full((1, 1, 5, 5), 9, dtype=torch.int32)).any()


def test_contours_weigh_as_much_as_all_else_in_an_image():
    logits, contours = Rng(1).normal(3, 1, 6, 6), (Rng(2).uniform(3, 1, 6, 6) < 0.2).float()
    expected = []
    for x, t in zip(logits, contours, strict=True):
        n = float(t.sum())
        weight = (36 - n) / n
        each = [
            -weight * math.log(1 / (1 + math.exp(-v))) if y else -math.log(1 - 1 / (1 + math.exp(-v)))
            for v, y in zip(x.flatten().tolist(), t.flatten().tolist(), strict=True)
        ]
        expected.append(sum(each) / 36)
    assert_close(contour_loss(logits, contours, 0.0).item(), sum(expected) / 3, rtol=1e-4, atol=1e-5)


def test_the_released_weights_are_not_these():
    """There the weight multiplies what is no contour as well, and the balance is lost."""
    contours = torch.zeros(1, 1, 10, 10)
    contours[..., 0] = 1.0
    unsure = torch.zeros_like(contours, requires_grad=True)
    contour_loss(unsure, contours, 0.0).backward()
    assert_close(unsure.grad.sum(), torch.tensor(0.0), atol=1e-6, rtol=0)  # both sides pull alike
    released = F.binary_cross_entropy_with_logits(unsure, contours, weight=torch.tensor(9.0))
    (pull,) = torch.autograd.grad(released, unsure)
    assert pull.sum() > 1


def test_an_image_with_few_contours_has_no_say():
    contours = torch.zeros(2, 1, 20, 20)
    contours[0, 0, 3] = contours[1, 0, 3, :2] = 1.0
    wrong = torch.stack([20 * (2 * contours[0] - 1), torch.full((1, 20, 20), 9.0)])
    assert contour_loss(wrong, contours, 350 / 227**2) < 1e-6
    assert contour_loss(wrong, contours, 0.0) > 1
    assert contour_loss(wrong, torch.zeros_like(contours), 0.1) == 0


def test_perfect_answers_cost_nothing():
    source = sources.open(SOURCE)
    puzzle = method()[0].puzzle(loader.sample(source, 8), 1)
    assert contour_loss(60 * (2 * puzzle.contours - 1), puzzle.contours, 0.0) < 1e-6
    assert normal_loss(3 * puzzle.normals, puzzle.normals) < 1e-6
    for sign in ("eigen", "released"):
        assert depth_loss(puzzle.depth.log(), puzzle.depth, sign) < 1e-9


def test_normals_at_a_right_angle_cost_1_and_opposite_ones_2():
    n = F.normalize(Rng(1).normal(2, 3, 5, 5), dim=1)
    across = torch.linalg.cross(n, F.normalize(Rng(2).normal(2, 3, 5, 5), dim=1), dim=1)
    assert_close(normal_loss(across, n).item(), 1.0, atol=1e-5, rtol=0)
    assert_close(normal_loss(-2 * n, n).item(), 2.0, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("sign", "expected"), [("released", 0.0675), ("eigen", 0.0225)])
def test_a_depth_that_is_wrong_by_a_factor_costs_as_it_is_said(sign, expected):
    depth = 1 + 4 * Rng(1).uniform(3, 1, 6, 6)
    assert_close(depth_loss(depth.log() + 0.3, depth, sign).item(), expected, rtol=1e-4, atol=1e-6)


def test_depth_loss_is_eigens_formula_of_each_image():
    depth, found = 1 + 4 * Rng(1).uniform(3, 1, 4, 4), Rng(2).normal(3, 1, 4, 4)
    depth[1, 0, :2] = 0
    total = 0.0
    for x, d in zip(found, depth, strict=True):
        errors = [
            f - math.log(t) for f, t in zip(x.flatten().tolist(), d.flatten().tolist(), strict=True) if t > 0
        ]
        n = len(errors)
        total += 0.5 * (sum(e**2 for e in errors) / n - 0.5 * sum(errors) ** 2 / n**2) / 3
    assert_close(depth_loss(found, depth, "eigen").item(), total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sign", ["eigen", "released"])
def test_what_is_not_known_costs_nothing_and_pulls_at_nothing(sign):
    depth, normals = torch.ones(2, 1, 4, 4), torch.zeros(2, 3, 4, 4)
    normals[:, 2] = -1.0
    depth[:, :, 0], normals[:, :, 0] = 0.0, 0.0
    for loss, truth, width in ((depth_loss, depth, 1), (normal_loss, normals, 3)):
        given = (truth, sign) if loss is depth_loss else (truth,)
        found = Rng(1).normal(2, width, 4, 4).requires_grad_()
        loss(found, *given).backward()
        assert not found.grad[:, :, 0].any() and found.grad[:, :, 1:].abs().sum() > 0
    nothing = torch.zeros(2, 1, 4, 4)
    assert depth_loss(torch.ones(2, 1, 4, 4), nothing, sign) == 0
    assert normal_loss(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)) == 0


@pytest.mark.parametrize("sign", ["eigen", "released"])
def test_halves_of_a_batch_with_unlike_parts_known_cost_together_what_the_whole_does(sign, monkeypatch):
    """As two processes share it: the mean of their losses, each with the counts of both on average."""
    depth, normals = 1 + Rng(1).uniform(4, 1, 6, 6), F.normalize(Rng(2).normal(4, 3, 6, 6), dim=1)
    depth[:2, :, :4], normals[:2, :, :4] = 0.0, 0.0
    far, facing = Rng(3).normal(4, 1, 6, 6), Rng(4).normal(4, 3, 6, 6)
    whole = depth_loss(far, depth, sign), normal_loss(facing, normals)
    halves, counts, centres = ((0, 2), (2, 4)), [], []
    for a, b in halves:  # what each would tell the other
        counts.append([(depth[a:b] > 0).sum().float(), (normals[a:b].square().sum(1) > 0.5).sum().float()])
    mean = [sum(c[k] for c in counts) / 2 for k in (0, 1)]
    error = torch.where(depth > 0, far - depth.clamp(min=1e-3).log(), 0.0)
    centres = torch.stack([error[a:b].sum() / mean[0] for a, b in halves])
    monkeypatch.setattr(cross_domain.distributed, "gather", lambda x: centres)
    found = torch.zeros(2)
    for a, b in halves:
        for k, loss in enumerate(
            (
                lambda a, b: depth_loss(far[a:b], depth[a:b], sign),
                lambda a, b: normal_loss(facing[a:b], normals[a:b]),
            )
        ):
            monkeypatch.setattr(cross_domain.distributed, "mean", lambda x, k=k: mean[k])
            found[k] += loss(a, b) / 2
    assert_close(found, torch.stack(whole))


# ---- the puzzle


def test_maps_are_cut_where_the_image_is():
    """Found again by its pixels, each cut is at one place of the scene, in the image and in every map."""
    made, source = method()
    made.side = 24
    batch = loader.sample(source, 8)
    puzzle = made.puzzle(batch, 3)
    whole = batch.image.float() / 255
    places = set()
    for b in range(8):
        at = [
            (i, j, c)
            for i in range(9)
            for j in range(9)
            for c in range(3)
            if torch.equal(whole[b, c, i : i + 24, j : j + 24], puzzle.image[b, 0])
        ]
        assert len(at) == 1
        i, j, _ = at[0]
        places.add((i, j))
        for name in ("depth", "normals"):
            assert torch.equal(batch.aux[name][b, :, i : i + 24, j : j + 24], getattr(puzzle, name)[b])
        inside = outlines(batch.aux["instances"][b, None])[0, :, i + 1 : i + 23, j + 1 : j + 23]
        assert torch.equal(inside, puzzle.contours[b, :, 1:-1, 1:-1])
    assert len(places) > 3


def test_one_channel_stands_for_all_and_it_is_the_same_of_the_whole_batch():
    made, source = method()
    batch, channels = loader.sample(source, 8), set()
    for seed in range(12):
        puzzle = made.puzzle(batch, seed)
        drawn = []
        for shown, whole in ((puzzle.image, batch.image), (puzzle.photograph, batch.aux["photographs"])):
            assert torch.equal(shown[:, 0], shown[:, 1]) and torch.equal(shown[:, 0], shown[:, 2])
            mean = shown[:, 0].mean((1, 2))
            far = (
                whole.float().mean((2, 3)) / 255 - mean[:, None]
            ).abs()  # a cut has nearly the mean of its channel
            drawn.append(int(far.sum(0).argmin()))
        channels.add(tuple(drawn))
    assert len({a for a, _ in channels}) == len({b for _, b in channels}) == 3
    assert any(a != b for a, b in channels)


def test_a_photograph_is_shown_whole_in_the_papers_recipe():
    """A ramp from black to white: scaled to the crop's side, it still ends as it began (train.py:29); a crop of it does not
    reach both ends."""
    made, source = method(whole=Paper().whole)
    made.side = 24
    batch = loader.sample(source, 4)
    ramp = torch.linspace(0, 255, 32).round().to(torch.uint8).expand(4, 3, 32, 32)
    batch = replace(batch, aux={**batch.aux, "photographs": ramp})
    shown = made.puzzle(batch, 1).photograph
    assert shown.shape == (4, 3, 24, 24) and shown.std(2).max() < 1e-6
    ours = torch.from_numpy(
        np.array(Image.fromarray(ramp[0, 0].numpy()).resize((24, 24), Image.Resampling.BILINEAR))
    )
    assert_close(255 * shown[0, 0], ours.float(), atol=0.6, rtol=0)  # as torchvision's Resize
    assert shown[:, :, 0, -1].min() - shown[:, :, 0, 0].max() > 0.95


# ---- two players


def moved(before: dict, net: nn.Module) -> bool:
    return any(not torch.equal(v, before[k]) for k, v in net.named_parameters())


def snapshot(net: nn.Module) -> dict:
    return {k: v.detach().clone() for k, v in net.named_parameters()}


def test_the_judges_loss_never_reaches_the_trunk_and_the_trunks_never_the_judge():
    made, source = method()
    puzzle = made.puzzle(loader.sample(source, 16), 1)
    trunk, judge = [*made.encoder.parameters()], [*made.judge.parameters()]
    parts = made.loss(puzzle).parts
    both = [*trunk, *made.heads.parameters()]
    assert all(
        g is None for g in torch.autograd.grad(parts["judge"], both, allow_unused=True, retain_graph=True)
    )
    for name in ("adversary", "contours", "depth", "normals"):
        found = torch.autograd.grad(parts[name], judge, allow_unused=True, retain_graph=True)
        assert all(g is None for g in found), name
    assert any(g is not None for g in torch.autograd.grad(parts["adversary"], trunk, allow_unused=True))


def test_photographs_never_move_the_trunk():
    ends = []
    for grey in (False, True):
        made, source = method()
        made.encoder.apply(lambda m: setattr(m, "momentum", 0.0) if isinstance(m, nn.BatchNorm2d) else None)
        puzzle = made.puzzle(loader.sample(source, 16), 1)
        if grey:
            puzzle.photograph.fill_(0.5)
        loss = made.loss(puzzle).total
        ends.append(torch.autograd.grad(loss, [*made.encoder.parameters(), *made.heads.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_judge_that_stands_still_is_told_from_one_that_learns():
    for rate in (1e-3, 0.0):
        made, source = method(judge_lr=rate)
        judge, trunk = snapshot(made.judge), snapshot(made.encoder)
        step(made, source)
        assert moved(trunk, made.encoder)
        still = all(torch.equal(v, judge[k]) for k, v in made.judge.named_parameters())
        assert still == (rate == 0)


def test_without_the_adversary_the_trunk_does_not_mind_the_judge():
    made, source = method(adversary=0.0)
    puzzle = made.puzzle(loader.sample(source, 16), 1)
    trunk = [*made.encoder.parameters()]
    before = torch.autograd.grad(made.loss(puzzle).total, trunk)
    for p in made.judge.parameters():
        p.data.mul_(3.0)
    after = torch.autograd.grad(made.loss(puzzle).total, trunk)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_trunk_wants_to_be_taken_for_photographs_and_the_judge_to_tell():
    """By hand, from the logits of a judge that is in evaluation mode, so that it can be asked again."""
    made, source = method()
    for p in made.judge.parameters():
        p.data.mul_(5.0)
    made.judge.eval()
    puzzle = made.puzzle(loader.sample(source, 16), 1)
    parts = made.loss(puzzle).parts
    rendered, real = (
        made.judge(made.encoder(x)[made.tap]).flatten().tolist() for x in (puzzle.image, puzzle.photograph)
    )
    photo = [-math.log(1 / (1 + math.exp(-v))) for v in rendered]
    assert_close(parts["adversary"].item(), sum(photo) / len(photo), rtol=1e-4, atol=1e-6)
    told = [-math.log(1 - 1 / (1 + math.exp(-v))) for v in rendered]
    true = [-math.log(1 / (1 + math.exp(-v))) for v in real]
    expected = (sum(told) / len(told) + sum(true) / len(true)) / 2
    assert_close(parts["judge"].item(), expected, rtol=1e-4, atol=1e-6)
    right = [v < 0 for v in rendered] + [v > 0 for v in real]
    assert_close(parts["told apart"].item(), sum(right) / len(right))


def test_the_judge_begins_at_the_toss_of_a_coin():
    made, source = method()
    parts = made.loss(made.puzzle(loader.sample(source, 16), 1)).parts
    assert_close(parts["judge"].item(), math.log(2), atol=0.02, rtol=0)
    assert_close(parts["adversary"].item(), math.log(2), atol=0.02, rtol=0)
    assert_close(parts["contours"].item(), 2 * math.log(2) * 0.9, atol=0.15, rtol=0)


# ---- pools


class SlowPool:
    """One map after the other, as utils.py:24-44 of the released code queries its pool; draws are given."""

    def __init__(self):
        self.held = []

    def query(self, maps, draw):
        returned = []
        for new, (exchanged, which) in zip(maps, draw.tolist(), strict=True):
            if len(self.held) < POOL:
                self.held.append(new)
                returned.append(new)
            elif exchanged < 0.5:
                place = int(which * POOL)
                returned.append(self.held[place])
                self.held[place] = new
            else:
                returned.append(new)
        return torch.stack(returned)


@pytest.mark.parametrize("batch", [10, 224])
def test_a_pool_answers_as_the_released_one_does_map_by_map(batch):
    """A batch of 224, the released one, fills the pool and exchanges maps with itself in the very first step."""
    pool, slow = Pool(2, 1), SlowPool()
    for number in range(40 if batch == 10 else 4):
        maps, draw = Rng(number).normal(batch, 2, 1, 1), Rng(number, "draw").uniform(batch, 2)
        seen = pool.seen(maps, draw)
        assert torch.equal(seen, slow.query(maps, draw)), number
        pool.remember(maps, draw)
        assert int(pool.held) == len(slow.held) == min(POOL, batch * (number + 1))
        assert torch.equal(pool.maps[: int(pool.held)], torch.stack(slow.held)), number


def test_a_second_process_is_given_no_map_that_is_not_there(monkeypatch):
    """Of a first batch over two processes, the second has the places from 112 on; what lies before it has not seen."""
    monkeypatch.setattr(cross_domain.distributed, "rank", lambda: 1)
    maps = 1 + Rng(1).uniform(112, 2, 1, 1)
    seen = Pool(2, 1).seen(maps, Rng(2).uniform(112, 2))
    assert (seen > 0).all() and not torch.equal(seen, maps)


def test_what_is_exchanged_stays_in_the_pool():
    pool = Pool(1, 1)
    pool.remember(torch.arange(float(POOL)).view(-1, 1, 1, 1), torch.zeros(POOL, 2))
    draw = torch.tensor([[0.1, 0.5], [0.9, 0.25]])
    new = torch.tensor([500.0, 600.0]).view(-1, 1, 1, 1)
    assert pool.seen(new, draw).flatten().tolist() == [64.0, 600.0]
    pool.remember(new, draw)
    assert pool.maps[64].item() == 500.0 and pool.maps[32].item() == 32.0


def test_the_loss_leaves_the_pools_and_a_step_fills_them():
    made, source = method()
    step(made, source)
    assert int(made.rendered.held) == int(made.photographed.held) == 16
    assert not torch.equal(made.rendered.maps[:16], made.photographed.maps[:16])
    assert "rendered.maps" in made.state_dict()


# ---- the paper


def test_the_papers_nets_have_its_sizes():
    with torch.device("meta"):
        trunk = encoders.classic.scene_alexnet()
        count = sum(p.numel() for p in trunk.parameters())
        below = sum(p.numel() for name, p in trunk.named_parameters() if name.startswith("conv"))
        assert (count, below) == (58_300_480, 3_749_952)
        x, sides = torch.zeros(2, 3, 227, 227), {}
        for name, stage in trunk.named_children():
            x = stage(x)
            sides[name] = tuple(x.shape[1:])
        assert sides["conv1"] == (96, 56, 56) and sides["conv2"] == (256, 27, 27)
        assert sides["conv5"] == (256, 13, 13) and sides["fc6"] == sides["fc7"] == (4096, 13, 13)
        for out in (1, 3):
            head = cross_domain.Head(4096, 13, 227, Paper(), out)
            x, grown = torch.zeros(2, 4096, 13, 13), []
            for layer in head:
                x = layer(x)
                grown += [x.shape[-1]] if isinstance(layer, nn.ConvTranspose2d) else []
            assert grown == [27, 55, 113, 227] and x.shape == (2, out, 227, 227)
        judged = cross_domain.judge(256, Paper().judge)(torch.zeros(2, 256, 13, 13))
        assert judged.shape == (2, 1, 6, 6)


def test_the_papers_trunk_begins_as_its_heads_do():
    """xavier_normal_ with a gain of 0.02 by the shapes of networks.py:90-120, biases 0, gains around 1 by 0.02."""
    with torch.device("cpu"):
        net = Paper().draw("scene_alexnet", sources.open("synthetic:2:64")).net
    shapes = {  # outputs, inputs, kernel
        "conv1": (96, 3, 11), "conv2": (256, 96, 5), "conv3": (384, 256, 3), "conv4": (384, 384, 3),
        "conv5": (256, 384, 3), "fc6": (4096, 256, 6), "fc7": (4096, 4096, 1),
    }  # fmt: skip
    for name, (out, inputs, kernel) in shapes.items():
        layer, norm = (
            next(m for m in net.get_submodule(name) if isinstance(m, kind))
            for kind in (nn.Conv2d, nn.BatchNorm2d)
        )
        std = 0.02 * math.sqrt(2 / ((inputs + out) * kernel**2))
        assert layer.weight.shape == (out, inputs, kernel, kernel)
        assert_close(layer.weight.std().item(), std, rtol=0.02, atol=0)
        assert not layer.bias.any() and not norm.bias.any()
        assert abs(norm.weight.mean() - 1) < 0.01 and 0.015 < norm.weight.std() < 0.025


def test_conv1_of_the_papers_trunk_is_given_three_equal_channels_around_zero():
    """Pixels in [0, 1] less the mean and no more (train.py:19: a deviation of 1); the one channel that is drawn stands for
    all three (model.py:103-105)."""
    source = sources.open("synthetic:4:64")
    encoder = encoders.build("scene_alexnet", 3, 64)
    given = []
    encoder.net.conv1[0].register_forward_pre_hook(lambda _, x: given.append(x[0]))
    image = cross_domain.one_channel(source.__getitems__(torch.arange(4)).image / 255, Rng(1))
    encoder.eval()(image)
    assert torch.equal(given[0][:, 0], given[0][:, 1]) and torch.equal(given[0][:, 0], given[0][:, 2])
    assert_close(given[0].std(), image.std())
    assert_close(given[0].mean(), image.mean() - 0.449)


def test_the_papers_recipe_has_its_numbers():
    c, train = Paper(), Paper.train
    assert (c.contours, c.normals, c.depth, c.adversary) == (1.0, 10.0, 5.0, 0.05)
    assert (train.batch, train.lr, train.epochs, c.sign, POOL) == (224, 1e-3, 30, "released", 128)
    made, _ = method()
    own, judge = made.optimizers(train)
    assert all(group["betas"] == (0.5, 0.999) for group in own.param_groups)
    held = [p for group in own.param_groups for p in group["params"]]
    assert len(held) == sum(1 for _ in (*made.encoder.parameters(), *made.heads.parameters()))
    assert all(group["weight_decay"] == 0 for group in own.param_groups)  # Adam, so nothing decays
    assert len({group["lr"] for group in own.param_groups}) == 1 and train.drops == (18 / 30, 27 / 30)
    assert (judge.defaults["momentum"], judge.defaults["weight_decay"]) == (0.9, 5e-4)
    assert len(judge.param_groups) == 1 and not judge.defaults["nesterov"]  # gains and biases decay as well
    assert judge.defaults["lr"] == made.config.judge_lr and c.judge_lr == 1e-3


def test_a_net_without_maps_and_maps_too_small_to_judge_are_one_line():
    source = sources.open("synthetic:8:16")
    config = methods.recipe("cross_domain")
    with pytest.raises(UserError, match="has no map to foresee from"):
        config().build(encoders.build("mlp:width=8", 3, 16), source)
    with pytest.raises(UserError, match="has no map nowhere; expected --tap stem, stage1"):
        config(tap="nowhere").build(encoders.build("resnet_small:width=8", 3, 16), source)
    with pytest.raises(UserError, match="a judge needs 3 x 3"):
        config(tap="stage3").build(encoders.build("resnet_small:width=8", 3, 16), source)


def test_it_foresees_depth_and_normals_of_scenes_that_it_has_not_seen():
    made, source = method()
    held = made.puzzle(source.__getitems__(torch.arange(48, 64)), "held")

    @torch.no_grad()
    def errors() -> tuple[float, float]:
        found = made.eval().solve(held)
        made.train()
        return (
            float((found["depth"].log() - held.depth.log()).abs().mean()),
            float(normal_loss(found["normals"], held.normals)),
        )

    optimizers = made.optimizers(made.config.train)
    for number in range(80):
        puzzle = made.puzzle(source.__getitems__(Rng(number).permutation(48)[:16]), number)
        loss = made.loss(puzzle)
        loss.total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        made.after_step(loss.carry, Plan.of(80, 80).at(number))
    depth, normals = errors()
    constant = (held.depth.log() - held.depth.log().mean()).abs().mean().item()
    assert depth < 0.6 * constant and normals < 0.15, f"{depth:.2f} of {constant:.2f}, {normals:.2f}"
