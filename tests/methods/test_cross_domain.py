"""Cross-domain learning: losses against their formulas, separate gradients of encoder and discriminator, replay buffers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.testing import assert_close

from pretask import data, encoders, methods
from pretask.data import loader
from pretask.methods import cross_domain
from pretask.methods.cross_domain import (
    BUFFER,
    Paper,
    ReplayBuffer,
    contour_loss,
    depth_loss,
    instance_contours,
    normal_loss,
)
from pretask.rng import Rng
from pretask.train import requirements
from pretask.train.plan import Plan
from pretask.types import UserError

SOURCE = "synthetic:64:32"


def method(**overrides):
    source = data.open(SOURCE)
    torch.manual_seed(0)
    config = methods.recipe("cross_domain")(**overrides)
    return config.build(encoders.build("resnet_small:width=8", 3, 32), source), source


def step(made, source, number: int = 0, batch: int = 16):
    """One training step; its log parts."""
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


def test_contours_are_where_the_3x3_neighborhood_has_several_instances():
    ids = Rng(1).integers(2, 1, 9, 9, high=2).int() * 7
    expected = torch.zeros(2, 1, 9, 9)
    for b in range(2):
        for i in range(9):
            for j in range(9):
                around = ids[b, 0, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
                expected[b, 0, i, j] = float(len(around.unique()) > 1)
    assert torch.equal(instance_contours(ids), expected)
    assert not instance_contours(torch.full((1, 1, 5, 5), 9, dtype=torch.int32)).any()


def test_contour_pixels_have_the_same_total_weight_as_all_others():
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


def test_contour_weights_differ_from_the_released_ones():
    """The released weight also multiplies the other pixels, so the classes are not balanced."""
    contours = torch.zeros(1, 1, 10, 10)
    contours[..., 0] = 1.0
    unsure = torch.zeros_like(contours, requires_grad=True)
    contour_loss(unsure, contours, 0.0).backward()
    assert_close(unsure.grad.sum(), torch.tensor(0.0), atol=1e-6, rtol=0)  # both classes have equal gradients
    released = F.binary_cross_entropy_with_logits(unsure, contours, weight=torch.tensor(9.0))
    (pull,) = torch.autograd.grad(released, unsure)
    assert pull.sum() > 1


def test_images_with_few_contours_are_left_out():
    contours = torch.zeros(2, 1, 20, 20)
    contours[0, 0, 3] = contours[1, 0, 3, :2] = 1.0
    wrong = torch.stack([20 * (2 * contours[0] - 1), torch.full((1, 20, 20), 9.0)])
    assert contour_loss(wrong, contours, 350 / 227**2) < 1e-6
    assert contour_loss(wrong, contours, 0.0) > 1
    assert contour_loss(wrong, torch.zeros_like(contours), 0.1) == 0


def test_perfect_predictions_have_zero_loss():
    source = data.open(SOURCE)
    puzzle = method()[0].puzzle(loader.sample(source, 8), 1)
    assert contour_loss(60 * (2 * puzzle.contours - 1), puzzle.contours, 0.0) < 1e-6
    assert normal_loss(3 * puzzle.normals, puzzle.normals) < 1e-6
    for sign in ("eigen", "released"):
        assert depth_loss(puzzle.depth.log(), puzzle.depth, sign) < 1e-9


def test_normal_loss_is_1_at_right_angles_and_2_for_opposite_normals():
    n = F.normalize(Rng(1).normal(2, 3, 5, 5), dim=1)
    across = torch.linalg.cross(n, F.normalize(Rng(2).normal(2, 3, 5, 5), dim=1), dim=1)
    assert_close(normal_loss(across, n).item(), 1.0, atol=1e-5, rtol=0)
    assert_close(normal_loss(-2 * n, n).item(), 2.0, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("sign", "expected"), [("released", 0.0675), ("eigen", 0.0225)])
def test_depth_wrong_by_a_factor_has_the_expected_loss(sign, expected):
    depth = 1 + 4 * Rng(1).uniform(3, 1, 6, 6)
    assert_close(depth_loss(depth.log() + 0.3, depth, sign).item(), expected, rtol=1e-4, atol=1e-6)


def test_depth_loss_matches_eigens_formula_per_image():
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
def test_unknown_pixels_give_no_loss_and_no_gradient(sign):
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
def test_losses_of_two_half_batches_average_to_that_of_the_whole(sign, monkeypatch):
    """As with two processes: the mean of their losses, each divided by the mean of their counts."""
    depth, normals = 1 + Rng(1).uniform(4, 1, 6, 6), F.normalize(Rng(2).normal(4, 3, 6, 6), dim=1)
    depth[:2, :, :4], normals[:2, :, :4] = 0.0, 0.0
    far, facing = Rng(3).normal(4, 1, 6, 6), Rng(4).normal(4, 3, 6, 6)
    whole = depth_loss(far, depth, sign), normal_loss(facing, normals)
    halves, counts, centers = ((0, 2), (2, 4)), [], []
    for a, b in halves:  # values exchanged between processes
        counts.append([(depth[a:b] > 0).sum().float(), (normals[a:b].square().sum(1) > 0.5).sum().float()])
    mean = [sum(c[k] for c in counts) / 2 for k in (0, 1)]
    error = torch.where(depth > 0, far - depth.clamp(min=1e-3).log(), 0.0)
    centers = torch.stack([error[a:b].sum() / mean[0] for a, b in halves])
    monkeypatch.setattr(cross_domain.distributed, "gather", lambda x: centers)
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


def test_maps_are_cropped_with_the_image():
    """Located by its pixels, each crop has the same position in the image and in every map."""
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
        inside = instance_contours(batch.aux["instances"][b, None])[0, :, i + 1 : i + 23, j + 1 : j + 23]
        assert torch.equal(inside, puzzle.contours[b, :, 1:-1, 1:-1])
    assert len(places) > 3


def test_one_channel_is_repeated_and_the_same_for_the_whole_batch():
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
            ).abs()  # a crop has nearly the mean of its channel
            drawn.append(int(far.sum(0).argmin()))
        channels.add(tuple(drawn))
    assert len({a for a, _ in channels}) == len({b for _, b in channels}) == 3
    assert any(a != b for a, b in channels)


def test_paper_recipe_squeezes_whole_photographs():
    """A ramp from black to white: scaled to the crop's side it keeps both ends (train.py:29), a crop would not."""
    made, source = method(squeeze=Paper().squeeze)
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


# ---- encoder and discriminator


def moved(before: dict, net: nn.Module) -> bool:
    return any(not torch.equal(v, before[k]) for k, v in net.named_parameters())


def snapshot(net: nn.Module) -> dict:
    return {k: v.detach().clone() for k, v in net.named_parameters()}


def test_encoder_and_discriminator_get_no_gradient_of_each_others_losses():
    made, source = method()
    puzzle = made.puzzle(loader.sample(source, 16), 1)
    encoder, discriminator = [*made.encoder.parameters()], [*made.discriminator.parameters()]
    parts = made.loss(puzzle).parts
    both = [*encoder, *made.heads.parameters()]
    assert all(
        g is None
        for g in torch.autograd.grad(parts["discriminator"], both, allow_unused=True, retain_graph=True)
    )
    for name in ("adversarial", "contours", "depth", "normals"):
        found = torch.autograd.grad(parts[name], discriminator, allow_unused=True, retain_graph=True)
        assert all(g is None for g in found), name
    assert any(g is not None for g in torch.autograd.grad(parts["adversarial"], encoder, allow_unused=True))


def test_photographs_give_no_gradient_to_the_encoder():
    ends = []
    for gray in (False, True):
        made, source = method()
        made.encoder.apply(lambda m: setattr(m, "momentum", 0.0) if isinstance(m, nn.BatchNorm2d) else None)
        puzzle = made.puzzle(loader.sample(source, 16), 1)
        if gray:
            puzzle.photograph.fill_(0.5)
        loss = made.loss(puzzle).total
        ends.append(torch.autograd.grad(loss, [*made.encoder.parameters(), *made.heads.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_discriminator_is_trained_with_its_own_learning_rate():
    for rate in (1e-3, 0.0):
        made, source = method(discriminator_lr=rate)
        discriminator, encoder = snapshot(made.discriminator), snapshot(made.encoder)
        step(made, source)
        assert moved(encoder, made.encoder)
        still = all(torch.equal(v, discriminator[k]) for k, v in made.discriminator.named_parameters())
        assert still == (rate == 0)


def test_with_adversarial_weight_0_the_encoder_ignores_the_discriminator():
    made, source = method(adversarial=0.0)
    puzzle = made.puzzle(loader.sample(source, 16), 1)
    encoder = [*made.encoder.parameters()]
    before = torch.autograd.grad(made.loss(puzzle).total, encoder)
    for p in made.discriminator.parameters():
        p.data.mul_(3.0)
    after = torch.autograd.grad(made.loss(puzzle).total, encoder)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_adversarial_losses_match_the_formulas():
    """From the logits of a discriminator in eval mode, which can be recomputed."""
    made, source = method()
    for p in made.discriminator.parameters():
        p.data.mul_(5.0)
    made.discriminator.eval()
    puzzle = made.puzzle(loader.sample(source, 16), 1)
    parts = made.loss(puzzle).parts
    rendered, real = (
        made.discriminator(made.encoder(x)[made.feature_layer]).flatten().tolist()
        for x in (puzzle.image, puzzle.photograph)
    )
    photo = [-math.log(1 / (1 + math.exp(-v))) for v in rendered]
    assert_close(parts["adversarial"].item(), sum(photo) / len(photo), rtol=1e-4, atol=1e-6)
    fake = [-math.log(1 - 1 / (1 + math.exp(-v))) for v in rendered]
    true = [-math.log(1 / (1 + math.exp(-v))) for v in real]
    expected = (sum(fake) / len(fake) + sum(true) / len(true)) / 2
    assert_close(parts["discriminator"].item(), expected, rtol=1e-4, atol=1e-6)
    right = [v < 0 for v in rendered] + [v > 0 for v in real]
    assert_close(parts["discriminator_accuracy"].item(), sum(right) / len(right))


def test_untrained_discriminator_loss_is_at_chance():
    made, source = method()
    parts = made.loss(made.puzzle(loader.sample(source, 16), 1)).parts
    assert_close(parts["discriminator"].item(), math.log(2), atol=0.02, rtol=0)
    assert_close(parts["adversarial"].item(), math.log(2), atol=0.02, rtol=0)
    assert_close(parts["contours"].item(), 2 * math.log(2) * 0.9, atol=0.15, rtol=0)


# ---- replay buffers


class SequentialBuffer:
    """Processes maps one by one, like the buffer in utils.py:24-44 of the released code, with given draws."""

    def __init__(self):
        self.count = []

    def query(self, maps, draw):
        returned = []
        for new, (exchanged, which) in zip(maps, draw.tolist(), strict=True):
            if len(self.count) < BUFFER:
                self.count.append(new)
                returned.append(new)
            elif exchanged < 0.5:
                place = int(which * BUFFER)
                returned.append(self.count[place])
                self.count[place] = new
            else:
                returned.append(new)
        return torch.stack(returned)


@pytest.mark.parametrize("batch", [10, 224])
def test_buffer_matches_the_released_one_map_by_map(batch):
    """The released batch of 224 fills the buffer and replaces its own maps in the first step."""
    buffer, slow = ReplayBuffer(2, 1), SequentialBuffer()
    for number in range(40 if batch == 10 else 4):
        maps, draw = Rng(number).normal(batch, 2, 1, 1), Rng(number, "draw").uniform(batch, 2)
        seen = buffer.sample(maps, draw)
        assert torch.equal(seen, slow.query(maps, draw)), number
        buffer.store(maps, draw)
        assert int(buffer.count) == len(slow.count) == min(BUFFER, batch * (number + 1))
        assert torch.equal(buffer.maps[: int(buffer.count)], torch.stack(slow.count)), number


def test_a_second_process_gets_only_stored_maps(monkeypatch):
    """In a first batch on two processes, the second has the slots from 112 on and no access to those before."""
    monkeypatch.setattr(cross_domain.distributed, "rank", lambda: 1)
    maps = 1 + Rng(1).uniform(112, 2, 1, 1)
    seen = ReplayBuffer(2, 1).sample(maps, Rng(2).uniform(112, 2))
    assert (seen > 0).all() and not torch.equal(seen, maps)


def test_replaced_maps_are_stored():
    buffer = ReplayBuffer(1, 1)
    buffer.store(torch.arange(float(BUFFER)).view(-1, 1, 1, 1), torch.zeros(BUFFER, 2))
    draw = torch.tensor([[0.1, 0.5], [0.9, 0.25]])
    new = torch.tensor([500.0, 600.0]).view(-1, 1, 1, 1)
    assert buffer.sample(new, draw).flatten().tolist() == [64.0, 600.0]
    buffer.store(new, draw)
    assert buffer.maps[64].item() == 500.0 and buffer.maps[32].item() == 32.0


def test_only_after_step_stores_maps():
    made, source = method()
    step(made, source)
    assert int(made.rendered.count) == int(made.photographed.count) == 16
    assert not torch.equal(made.rendered.maps[:16], made.photographed.maps[:16])
    assert "rendered.maps" in made.state_dict()


# ---- the paper


def test_paper_networks_have_the_published_sizes():
    with torch.device("meta"):
        encoder = encoders.classic.scene_alexnet()
        count = sum(p.numel() for p in encoder.parameters())
        below = sum(p.numel() for name, p in encoder.named_parameters() if name.startswith("conv"))
        assert (count, below) == (58_300_480, 3_749_952)
        x, sides = torch.zeros(2, 3, 227, 227), {}
        for name, stage in encoder.named_children():
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
        logits = cross_domain.patch_discriminator(256, Paper().discriminator)(torch.zeros(2, 256, 13, 13))
        assert logits.shape == (2, 1, 6, 6)


def test_paper_encoder_is_initialized_like_the_heads():
    """xavier_normal_ with a gain of 0.02 by the shapes of networks.py:90-120, biases 0, gains around 1 by 0.02."""
    with torch.device("cpu"):
        net = Paper().build_encoder("scene_alexnet", data.open("synthetic:2:64")).net
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


def test_paper_encoder_input_is_three_equal_centered_channels():
    """Pixels in [0, 1] minus the mean, not scaled (train.py:19: standard deviation 1); the selected channel is repeated three
    times (model.py:103-105)."""
    source = data.open("synthetic:4:64")
    encoder = encoders.build("scene_alexnet", 3, 64)
    given = []
    encoder.net.conv1[0].register_forward_pre_hook(lambda _, x: given.append(x[0]))
    image = cross_domain.one_channel(source.__getitems__(torch.arange(4)).image / 255, Rng(1))
    encoder.eval()(image)
    assert torch.equal(given[0][:, 0], given[0][:, 1]) and torch.equal(given[0][:, 0], given[0][:, 2])
    assert_close(given[0].std(), image.std())
    assert_close(given[0].mean(), image.mean() - 0.449)


def test_paper_recipe_matches_the_released_settings():
    c, train = Paper(), Paper.train
    assert (c.contours, c.normals, c.depth, c.adversarial) == (1.0, 10.0, 5.0, 0.05)
    assert (train.batch, train.lr, train.epochs, c.sign, BUFFER) == (224, 1e-3, 30, "released", 128)
    made, _ = method()
    own, discriminator = made.optimizers(train)
    assert all(group["betas"] == (0.5, 0.999) for group in own.param_groups)
    held = [p for group in own.param_groups for p in group["params"]]
    assert len(held) == sum(1 for _ in (*made.encoder.parameters(), *made.heads.parameters()))
    assert all(group["weight_decay"] == 0 for group in own.param_groups)  # Adam without weight decay
    assert len({group["lr"] for group in own.param_groups}) == 1 and train.milestones == (18 / 30, 27 / 30)
    assert (discriminator.defaults["momentum"], discriminator.defaults["weight_decay"]) == (0.9, 5e-4)
    assert len(discriminator.param_groups) == 1 and not discriminator.defaults["nesterov"]  # all decay
    assert discriminator.defaults["lr"] == made.config.discriminator_lr and c.discriminator_lr == 1e-3


def test_encoders_without_maps_and_too_small_maps_are_user_errors():
    source = data.open("synthetic:8:16")
    config = methods.recipe("cross_domain")
    with pytest.raises(UserError, match="needs feature maps, and mlp:width=8 has none"):
        config().build(encoders.build("mlp:width=8", 3, 16), source)
    with pytest.raises(UserError, match="has no map nowhere; expected --feature-layer stem, stage1"):
        config(feature_layer="nowhere").build(encoders.build("resnet_small:width=8", 3, 16), source)
    with pytest.raises(UserError, match=r"takes images of 19 px or more.*, or an earlier --feature-layer"):
        requirements.check(
            config(feature_layer="stage3"), encoders.build("resnet_small:width=8", 3, 16), source
        )


def test_depth_and_normals_of_unseen_scenes_are_predicted():
    made, source = method()
    held = made.puzzle(source.__getitems__(torch.arange(48, 64)), "held")

    @torch.no_grad()
    def errors() -> tuple[float, float]:
        found = made.eval().predict(held)
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
