"""Fidelity of DINOv2 (Oquab et al. 2023, and the authors' released code)."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import data, encoders
from pretask.config import lr_factor, weight_decay_factor
from pretask.encoders import saved
from pretask.encoders.vit import masked_tokens
from pretask.methods import dinov2, ibot, swav
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.train.trainer import group_lr
from pretask.types import UserError

VIT = "vit_tiny_patch16_224:patch_size=4,embed_dim=24,num_heads=2,depth=2"
SHAPE = "patch_size=4,embed_dim=24,num_heads=2,depth=2,init_values=1.0"
FORMS = [
    f"{VIT},dynamic_img_size=True",
    f"{VIT},global_pool=avg,class_token=False",
    f"vit_small_patch14_reg4_dinov2:{SHAPE},dynamic_img_size=True",
    f"vit_small_patch16_dinov3:{SHAPE},global_pool=token",
    f"vit_small_patch16_rope_mixed_ape_224:{SHAPE}",
    "eva02_tiny_patch14_224:patch_size=4,embed_dim=24,num_heads=2,depth=2",
]
"""a class token or none, register tokens, rotary positions of three kinds, views of any size or of one"""
NARROW = {"prototypes": 32, "width": 16, "patch_width": 12, "hidden": 24, "local_crops": 2, "koleo_batch": 4}
"""small, fast heads"""


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:64:32")


def made(source, config=None, encoder=FORMS[0]):
    torch.manual_seed(0)
    return (config or dinov2.Config(**NARROW)).build(encoders.build(encoder, 3, source.size), source).train()


def puzzle(method, source, n=8, seed=1):
    return method.pretext(source.__getitems__(torch.arange(n)), Rng(seed))


def both(p):
    return torch.cat([p.view1_mask, p.view2_mask])


def with_pixels(images, which, side=4):
    """(B, C, H, W) -> the same, with random pixels in the patches that are true in `which` (B, h, w)."""
    pixels = which.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
    return torch.where(pixels, torch.rand_like(images), images)


# ---- masks


@pytest.mark.parametrize(("count", "probability"), [(8, 0.5), (5, 0.3), (3, 1.0), (4, 0.0)])
def test_each_masked_view_has_a_ratio_from_another_part_of_the_range(count, probability):
    """`data/collate.py`: of 2B views int(2B · probability) are masked, one from each equal part of (0.1, 0.5)."""
    masked = int(2 * count * probability)
    edges = torch.linspace(0.1, 0.5, masked + 1)
    for seed in range(20):
        ratio = dinov2.mask_ratios(count, probability, (0.1, 0.5), Rng(seed))
        assert ratio.shape == (count, 2) and (ratio > 0).sum() == masked
        drawn = ratio[ratio > 0].sort().values
        assert (edges[:-1] <= drawn + 1e-6).all() and (drawn <= edges[1:] + 1e-6).all()


def test_every_view_is_masked_equally_often_with_every_ratio():
    ratio = torch.stack([dinov2.mask_ratios(4, 0.5, (0.1, 0.5), Rng(seed)) for seed in range(4000)])
    assert_close((ratio > 0).float().mean(0), torch.full((4, 2), 0.5), atol=0.03, rtol=0)
    assert_close(ratio.sum(0) / (ratio > 0).sum(0), torch.full((4, 2), 0.3), atol=0.01, rtol=0)
    assert ratio[ratio > 0].min() < 0.101 and ratio.max() > 0.499


def test_ratios_of_two_processes_are_those_of_one():
    whole = dinov2.mask_ratios(8, 0.5, (0.1, 0.5), Rng(3))
    halves = [dinov2.mask_ratios(4, 0.5, (0.1, 0.5), Rng(3, shard=(rank, 2))) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), whole)


def released_mask(most, grid, draw):
    """`data/masking.py` in words: rectangles until none of ten attempts adds patches; none as high or wide as the view."""
    mask = np.zeros(grid, bool)
    while (left := most - mask.sum()) > 0:
        for _ in range(10):
            area, aspect = draw.uniform(4, left), math.exp(draw.uniform(math.log(0.3), -math.log(0.3)))
            high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if high < grid[0] and wide < grid[1]:
                top, first = draw.randint(0, grid[0] - high), draw.randint(0, grid[1] - wide)
                part = mask[top : top + high, first : first + wide]
                if 0 < (~part).sum() <= left:
                    part[:] = True
                    break
        else:
            break
    return mask


@pytest.mark.parametrize("grid", [(16, 16), (12, 12), (6, 6)])
def test_masks_are_distributed_as_the_released_ones(grid):
    """Size, and how many neighbors of a masked patch are masked: rectangles of 4 patches or more, not 25."""
    n, draw = math.prod(grid), random.Random(0)
    most = torch.linspace(0.1, 0.5, 400).mul(n).floor()
    ours = ibot.block_masks(most, grid, Rng(1), dinov2.ATTEMPTS, dinov2.LEAST)
    theirs = torch.stack([torch.from_numpy(released_mask(int(m), grid, draw)) for m in most])

    def described(masks):
        size = masks.sum((1, 2)).float()
        cross = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])[None, None]
        near = F.conv2d(masks[:, None].float(), cross, padding=1)[:, 0]
        return (
            (size / most).mean(),
            near[masks].mean() / 4,
            masks.float().mean(0).std() / masks.float().mean(),
        )

    for one, other, slack in zip(described(ours), described(theirs), (0.03, 0.04, 0.08), strict=True):
        assert abs(one - other) < slack
    assert (ours.sum((1, 2)) <= most).all()


def test_both_views_get_masks_of_their_ratios(source):
    method = made(source, dinov2.Config(**NARROW, mask_probability=1.0, side=1.0))
    p = puzzle(method, source, 16)
    size = both(p).sum((1, 2)) / 64
    assert p.view1_mask.shape == (16, 8, 8) and (p.view1_mask != p.view2_mask).flatten(1).any(1).all()
    assert_close(size.sort().values, torch.linspace(0.1, 0.5, 32), atol=0.08, rtol=0)


# ---- the transformer


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_those_of_the_encoder(source, form):
    method = made(source, encoder=form).eval()
    p, net = puzzle(method, source, 4), method.encoder.net
    with torch.no_grad():
        tokens = masked_tokens(method.encoder, p.view1, method.mask_token)
        none = torch.zeros_like(p.view1_mask)
        assert torch.equal(tokens, masked_tokens(method.encoder, p.view1, method.mask_token, none))
        assert_close(tokens[:, 0], method.encoder(p.view1)["pool"])
        final = net.forward_features(method.encoder.normalized(p.view1))
        assert_close(tokens[:, 1:], net.fc_norm(final[:, net.num_prefix_tokens :]))
    assert tokens.shape[1] == 1 + p.view1_mask[0].numel()


@pytest.mark.parametrize("form", FORMS)
def test_masked_pixels_reach_no_student_token_and_visible_ones_reach_all(source, form):
    method = made(source, dinov2.Config(**NARROW, mask_probability=1.0), form).eval()
    p = puzzle(method, source, 4)

    def tokens(image):
        with torch.no_grad():
            return masked_tokens(method.encoder, image, method.mask_token, p.view1_mask)

    before = tokens(p.view1)
    assert torch.equal(before, tokens(with_pixels(p.view1, p.view1_mask)))
    assert ((before - tokens(with_pixels(p.view1, ~p.view1_mask))).abs().amax(-1) > 1e-5).all()


@pytest.mark.parametrize("form", FORMS)
def test_masked_patches_keep_their_positions(source, form):
    """Only the position distinguishes the tokens of masked patches; random attention makes the difference large."""
    method = made(source, encoder=form).eval()
    p = puzzle(method, source, 1)
    mask = p.view1_mask | (torch.arange(p.view1_mask.shape[-1]) > 2)  # half of the columns
    with torch.no_grad():
        torch.nn.init.normal_(method.mask_token)
        for layer in method.encoder.net.blocks.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight *= 10
        tokens = masked_tokens(method.encoder, p.view1, method.mask_token, mask)[0, 1:]
    assert torch.pdist(tokens[mask.flatten()]).min() > 0.01


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_and_all_its_parameters_learn(source, form):
    method = made(source, dinov2.Config(**NARROW), form)
    loss = method.loss(puzzle(method, source))
    loss.total.backward()
    assert all(w.grad is None for w in method.teacher.parameters())
    trained = {name: w for name, w in method.named_parameters() if w.requires_grad}
    assert [name for name, w in trained.items() if w.grad is None or not w.grad.isfinite().all()] == []
    assert [name for name, w in trained.items() if not w.grad.any()] == []


# ---- Sinkhorn-Knopp


def slow_sinkhorn(cosines, temperature, iterations):
    """`dino_clstoken_loss.sinkhorn_knopp_teacher` as printed, in loops: prototypes first, then samples."""
    rows, columns = len(cosines), len(cosines[0])
    q = [[math.exp(x / temperature) for x in row] for row in cosines]
    total = sum(map(sum, q))
    q = [[x / total for x in row] for row in q]
    for _ in range(iterations):
        of_column = [sum(q[i][k] for i in range(rows)) for k in range(columns)]
        q = [[x / of_column[k] / columns for k, x in enumerate(row)] for row in q]
        q = [[x / sum(row) / rows for x in row] for row in q]
    return [[x * rows for x in row] for row in q]


def cosines_of(rows, columns, seed=1):
    return F.normalize(Rng(seed).normal(rows, 8), dim=1) @ F.normalize(
        Rng(seed + 1).normal(8, columns), dim=0
    )


@pytest.mark.parametrize("temperature", [0.04, 0.07, 1.0])
@pytest.mark.parametrize(("rows", "columns"), [(6, 4), (3, 9), (1, 5)])
@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_is_the_released_one(rows, columns, temperature, iterations):
    cosines = cosines_of(rows, columns)
    found = dinov2.sinkhorn(cosines, torch.tensor(temperature), iterations)
    expected = torch.tensor(slow_sinkhorn(cosines.tolist(), temperature, iterations))
    assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert_close(found, swav.sinkhorn(cosines, temperature, iterations))


def test_targets_are_spread_over_the_prototypes():
    cosines = 0.9 + 0.1 * cosines_of(64, 16)
    cosines[:, 3] = 1.0  # one prototype is near all images
    even = dinov2.sinkhorn(cosines, torch.tensor(0.04), 3)
    assert_close(even.sum(1), torch.ones(64))
    assert even.sum(0).max() < 1.5 * 64 / 16 < 20 < (cosines / 0.04).softmax(1).sum(0).max()


def test_sinkhorn_takes_no_rows_and_extreme_cosines():
    assert dinov2.sinkhorn(torch.zeros(0, 5), torch.tensor(0.04), 3).shape == (0, 5)
    extreme = dinov2.sinkhorn(torch.tensor([[1.0, -1.0], [1.0, -1.0]]), torch.tensor(0.01), 3)
    assert extreme.isfinite().all()


# ---- KoLeo


def slow_koleo(z, group):
    """`koleo_loss.py` in loops, group by group."""
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in z]
    costs = []
    for start in range(0, len(unit), group):
        some = unit[start : start + group]
        for i, a in enumerate(some):
            gaps = [math.dist(a, b) for j, b in enumerate(some) if j != i]
            costs.append(-math.log(min(gaps)))
    return sum(costs) / len(costs)


@pytest.mark.parametrize(("rows", "group"), [(6, 6), (6, 64), (8, 4), (8, 2)])
def test_koleo_is_minus_the_mean_log_distance_to_the_nearest_neighbor(rows, group):
    z = Rng(1).normal(rows, 3)
    assert dinov2.koleo(z, group).item() == pytest.approx(slow_koleo(z.tolist(), group), rel=1e-4)
    assert_close(dinov2.koleo(7 * z, group), dinov2.koleo(z, group))


def test_no_group_of_koleo_is_a_single_row():
    """13 rows in groups of 4 are 5, 4 and 4; one alone would have no neighbor."""
    z = Rng(1).normal(13, 3)
    parts = [len(part) * dinov2.koleo(part, 64) for part in z.split([5, 4, 4])]
    assert_close(dinov2.koleo(z, 4), sum(parts) / 13)


def test_koleo_and_its_gradient_match_lightly():
    lightly = pytest.importorskip("lightly.loss")
    a, b = (Rng(2).normal(16, 5).requires_grad_() for _ in range(2))
    found, expected = dinov2.koleo(a, 16), lightly.KoLeoLoss()(b)
    found.backward()
    expected.backward()
    assert_close(found, expected)
    assert_close(a.grad, b.grad)


def test_koleo_pushes_the_nearest_features_apart():
    z = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.2]], requires_grad=True)
    for _ in range(20):
        (gradient,) = torch.autograd.grad(dinov2.koleo(z, 3), z)
        z = (z - 0.05 * gradient).detach().requires_grad_()
    unit = F.normalize(z.detach(), dim=1)
    assert (unit[0] - unit[1]).norm() > 0.5


def test_koleo_of_equal_features_is_finite():
    z = torch.ones(4, 3, requires_grad=True)
    dinov2.koleo(z, 4).backward()
    assert z.grad.isfinite().all()


# ---- the loss


def slow(method, p):
    """All three losses in loops over views, images and patches, as `ssl_meta_arch.forward_backward` sums them."""
    c, t, mask, b = method.config, method.config.temperature, both(p), len(p.view1)
    encoder, head, patch_head = method.teacher
    local = [p.local_views[:, v] for v in range(p.local_views.shape[1])]
    whole = masked_tokens(encoder, p.both, method.mask_token)
    own = masked_tokens(method.encoder, p.both, method.mask_token, mask)
    temperature = method.teacher_temp.item()

    def cost(target, logits):
        return -sum(q * x for q, x in zip(target, (logits / t).log_softmax(0).tolist(), strict=True))

    target = slow_sinkhorn(head(whole[:, 0]).tolist(), temperature, 3)
    views = [*method.head(own[:, 0]).chunk(2), *(method.head(method.encoder(x)["pool"]) for x in local)]
    of_images = [
        cost(target[b * teacher + i], view[i])
        for teacher in (0, 1)
        for v, view in enumerate(views)
        if v != teacher
        for i in range(b)
    ]
    places = [(i, n) for i in range(2 * b) for n in mask[i].flatten().nonzero().flatten().tolist()]
    logits = [patch_head(whole[i, 1 + n][None])[0].tolist() for i, n in places]
    assigned = dict(zip(places, slow_sinkhorn(logits, temperature, 3) if logits else [], strict=True))
    of_patches = []
    for i in range(2 * b):
        costs = [cost(assigned[j, n], method.patch_head(own[j, 1 + n][None])[0]) for j, n in places if j == i]
        of_patches.append(sum(costs) / max(1, len(costs)))
    spread = sum(slow_koleo(view.tolist(), c.koleo_batch) for view in own[:, 0].chunk(2))
    return sum(of_images) / len(of_images), sum(of_patches) / len(of_patches), spread


@pytest.mark.parametrize("form", [FORMS[0], FORMS[2], FORMS[3]])
def test_loss_is_the_sum_of_three_terms(source, form):
    method = made(source, dinov2.Config(**NARROW, temperature=0.2, koleo=0.3), form)
    method.teacher_temp.fill_(0.09)
    for own, other in zip(method.student, method.teacher, strict=True):  # the teacher is not a copy
        for w, old in zip(own.parameters(), other.parameters(), strict=True):
            old.data = w.data * 0.9
    torch.nn.init.normal_(method.mask_token)
    p = puzzle(method, source, 4)
    with torch.no_grad():
        found, expected = method.loss(p), slow(method, p)
    parts = [found.parts[name].item() for name in ("cls", "patch", "koleo")]
    assert_close(parts, list(expected), atol=1e-4, rtol=1e-4)
    assert_close(found.total.item(), sum(expected[:2]) + 0.3 * expected[2], atol=1e-4, rtol=1e-4)


def test_teacher_sees_unmasked_global_views_and_the_student_masked_ones(source, monkeypatch):
    method, seen = made(source), []
    monkeypatch.setattr(dinov2, "masked_tokens", lambda *given: seen.append(given) or masked_tokens(*given))
    p = puzzle(method, source)
    method.loss(p)
    (teacher, whole, _), (student, shown, _, mask) = seen
    assert teacher is method.teacher[0] and student is method.encoder
    assert torch.equal(whole, p.both) and torch.equal(shown, p.both)
    assert torch.equal(mask, both(p)) and mask.any()


def test_each_head_learns_from_its_own_loss_only(source):
    method = made(source)
    parts = method.loss(puzzle(method, source)).parts
    heads = {"cls": method.head, "patch": method.patch_head}
    for name, loss in parts.items():
        for own, head in heads.items():
            gradients = torch.autograd.grad(loss, [*head.parameters()], retain_graph=True, allow_unused=True)
            reached = [g is not None and bool(g.any()) for g in gradients]
            assert all(reached) if own == name else not any(reached), (name, own)


def test_the_heads_are_not_copies_of_each_other(source):
    method = made(source, dinov2.Config(**NARROW | {"patch_width": 16}))
    one, other = (head.prototypes.weight for head in (method.head, method.patch_head))
    assert one.shape == other.shape and not torch.equal(one, other)


def test_only_masked_patches_get_a_gradient_from_the_patch_loss(source, monkeypatch):
    method, kept = made(source), []
    monkeypatch.setattr(
        dinov2, "masked_tokens", lambda *given: kept.append(masked_tokens(*given)) or kept[-1]
    )
    p = puzzle(method, source)
    loss = method.loss(p)
    [gradient] = torch.autograd.grad(loss.parts["patch"], kept[1])
    assert torch.equal(gradient[:, 1:].abs().sum(2) > 0, both(p).flatten(1))
    assert not gradient[:, 0].any()


def test_koleo_never_compares_the_two_views_of_an_image(source):
    """With two equal views, distances to the other view would be 0."""
    method = made(source, dinov2.Config(**NARROW | {"koleo_batch": 64}, mask_probability=0.0))
    p = puzzle(method, source)
    same = dataclasses.replace(p, view2=p.view1)
    with torch.no_grad():
        assert method.loss(same).parts["koleo"] < 2 * -math.log(1e-4)


@pytest.mark.parametrize("mask", [0, 1])
def test_a_batch_may_have_one_masked_patch_or_none(source, mask):
    method = made(source, dinov2.Config(**NARROW, mask_probability=0.0))
    p = puzzle(method, source)
    assert not both(p).any()
    p.view1_mask[0, 0, :mask] = True
    loss = method.loss(p)
    loss.total.backward()
    assert loss.total.isfinite() and (loss.parts["patch"] > 0) == mask
    assert all(w.grad is not None and w.grad.isfinite().all() for w in method.parameters() if w.requires_grad)


def test_local_views_are_optional(source):
    method = made(source, dinov2.Config(**NARROW | {"local_crops": 0}))
    p = puzzle(method, source)
    with torch.no_grad():
        assert_close(method.loss(p).parts["cls"].item(), slow(method, p)[0], atol=1e-4, rtol=1e-4)


def test_both_initial_losses_are_at_chance(source):
    config = dinov2.Config(
        local_crops=2, prototypes=256, width=4096, patch_width=4096, hidden=16, mask_probability=1.0
    )
    method = made(source, config)
    with torch.no_grad():
        parts = method.loss(puzzle(method, source, 16)).parts
    assert abs(parts["cls"].item() - math.log(256)) < 0.1
    assert abs(parts["patch"].item() - math.log(256)) < 0.1


# ---- the teacher


def test_teacher_moves_by_ema_momentum_and_is_exported(source):
    method = made(source)
    students = [w for part in method.student for w in part.parameters()]
    with torch.no_grad():
        for w in students:
            w += 1
    before = [w.clone() for w in method.teacher.parameters()]
    method.after_step(None, Plan.of(100, 100).at(50))
    momentum = 1 - (1 - 0.99) * (math.cos(math.pi * 0.5) + 1) / 2
    for old, new, student in zip(before, method.teacher.parameters(), students, strict=True):
        assert_close(new, momentum * old + (1 - momentum) * student)
    assert method.export() is method.teacher[0] and method.export() is not method.encoder


def test_stochastic_depth_is_the_same_in_every_block_and_only_in_the_student(source):
    method = made(source, dinov2.Config(**NARROW, drop_path=0.4))
    for net, rate in ((method.encoder.net, 0.4), (method.teacher[0].net, 0.0)):
        rates = [getattr(d, "drop_prob", 0.0) for b in net.blocks for d in (b.drop_path1, b.drop_path2)]
        assert rates == [rate] * 4
    names = made(source).encoder.net.state_dict().keys()
    assert method.export().net.state_dict().keys() == names == method.encoder.net.state_dict().keys()
    image = Rng(1).uniform(8, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(*(method.encoder(image)["pool"] for _ in range(2)))
        assert torch.equal(*(method.teacher[0](image)["pool"] for _ in range(2)))


# ---- schedules and parameter groups


class Cosine:
    """`utils.CosineScheduler`."""

    def __init__(self, base, final, total, warmup=0, start=0.0):
        i = np.arange(total - warmup)
        cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * i / len(i)))
        self.values, self.final = np.concatenate([np.linspace(start, base, warmup), cosine]), final

    def __getitem__(self, i):
        return self.values[i] if i < len(self.values) else self.final


def test_schedules_match_the_released_arrays():
    """`train.build_schedulers` of `vitl14.yaml`, with 10 steps per epoch instead of 1250."""
    paper, train, length = dinov2.Paper(), dinov2.Paper.train, 10
    total, base = 500 * length, 2e-4 * math.sqrt(96 * 32 / 1024)
    lr = Cosine(base, 1e-6, total, 80 * length)
    decay, momentum = Cosine(0.04, 0.2, total), Cosine(0.994, 1.0, total)
    temperature = Cosine(0.07, 0.07, 30 * length, 30 * length, 0.04)
    last = Cosine(base, 1e-6, total, 80 * length)
    last.values[:length] = 0
    plan, frozen = Plan.of(total, total), {"peak": train.lr, "after": paper.freeze_prototypes}
    for step in (0, 1, 9, 10, 11, 150, 299, 300, 301, 799, 800, 801, 2500, 4000, 4999):
        f = plan.at(step).fraction
        a_step = {"abs": 1.01 * base / (80 * length)} if step < 80 * length else {"rel": 1e-6}
        assert train.lr * lr_factor(train, f) == pytest.approx(lr[step], **a_step)
        assert group_lr(frozen, train, plan.at(step)) == pytest.approx(last[step], **a_step)
        assert (group_lr(frozen, train, plan.at(step)) == 0) == (last[step] == 0)
        assert train.weight_decay * weight_decay_factor(train, f) == pytest.approx(decay[step])
        assert dinov2.cosine_momentum(paper.ema_momentum, f) == pytest.approx(momentum[step])
        assert paper.teacher_temp_at(f) == pytest.approx(temperature[step], abs=0.031 / (30 * length))


def test_teacher_temperature_follows_its_schedule(source):
    method = made(source)
    assert method.teacher_temp.item() == pytest.approx(0.04)
    method.after_step(None, Plan.of(100, 100).at(5))
    assert method.teacher_temp.item() == pytest.approx(0.055)
    assert made(
        source, dinov2.Config(**NARROW, teacher_temp_warmup=0.0)
    ).teacher_temp.item() == pytest.approx(0.07)


def released_scales(name, depth, decay, patch_embed):
    """`utils/param_groups.py` in words, for a name in the backbone or, with depth 0, in a head: factors of both rates."""
    layer = depth + 1
    if depth and any(
        x in name for x in ("pos_embed", "patch_embed", "mask_token", "cls_token", "register_tokens")
    ):
        layer = 0
    elif depth and name.startswith("blocks."):
        layer = int(name.split(".")[1]) + 1
    rate = decay ** (depth + 1 - layer) * (patch_embed if "patch_embed" in name else 1.0)
    return rate, 0.0 if name.endswith(".bias") or "norm" in name or "gamma" in name else 1.0


@pytest.mark.parametrize("form", [f"{VIT},init_values=0.1", FORMS[2], FORMS[3]])
@pytest.mark.parametrize(("decay", "patch_embed"), [(0.9, 0.2), (1.0, 0.2), (0.5, 1.0)])
def test_learning_rates_and_weight_decay_are_those_of_the_released_groups(source, form, decay, patch_embed):
    config = dinov2.Config(**NARROW, patch_embed_lr=patch_embed)
    method = made(source, config, form)
    train = dataclasses.replace(config.train, lr=0.1, layer_decay=decay, weight_decay=0.3, bias_lr_scale=0.5)
    [optimizer] = method.optimizers(train)
    assert optimizer.param_groups[0]["lr"] == 0.1  # the one in the log
    settings = {
        id(w): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for w in group["params"]
    }
    trained = {name: w for name, w in method.named_parameters() if w.requires_grad}
    assert settings.keys() == {id(w) for w in trained.values()}
    for name, w in trained.items():
        theirs = name.removeprefix("encoder.net.").replace("reg_token", "register_tokens")
        depth = 2 if theirs != name else 0  # released: the mask token is at the depth of the embeddings
        theirs = theirs.replace("mask_token", "other_token")
        rate, weight = released_scales(theirs, depth, decay, patch_embed)
        rate *= 0.5 if w.ndim <= 1 else 1.0
        assert settings[id(w)] == pytest.approx((0.1 * rate, 0.3 * weight)), name


def test_the_prototypes_of_both_heads_are_frozen_at_first(source):
    method = made(source)
    [alone] = [group for group in method.groups() if "after" in group]
    assert [id(w) for w in alone["params"]] == [
        id(head.prototypes.weight) for head in (method.head, method.patch_head)
    ]
    assert alone["after"] == 0.03
    assert group_lr({**alone, "peak": 1.0}, method.config.train, Plan.of(100, 100).at(2)) == 0.0


# ---- recipes and errors


def test_unsuitable_encoders_are_refused_in_one_line(source):
    for encoder, message in (
        ("resnet_small:width=8", "is not one; try --encoder vit_tiny"),
        ("deit_tiny_distilled_patch16_224:patch_size=4,depth=1", "is not one; try --encoder vit_tiny"),
        (f"{VIT},patch_drop_rate=0.5", "drops some; remove patch_drop_rate"),
        (f"{FORMS[3]},patch_drop_rate=0.5", "drops some; remove patch_drop_rate"),
    ):
        with pytest.raises(UserError, match=message) as wrong:
            made(source, encoder=encoder)
        assert "\n" not in str(wrong.value)
    with pytest.raises(UserError, match="--drop-path needs blocks of two residual layers"):
        made(
            source,
            dinov2.Config(**NARROW, drop_path=0.1),
            "vit_small_patch16_18x2_224:patch_size=4,embed_dim=24,num_heads=2,depth=1",
        )


def test_sides_of_views_are_multiples_of_the_patch(source):
    """At 32 px, 0.6 of the side are 19 px, and 0.2 are 6: 5 patches and 2; a network of one size gets it."""
    config = dinov2.Config(**NARROW, side=0.6, local_size=0.2)
    for form, sides in ((FORMS[0], (20, 8)), (FORMS[3], (20, 8)), (FORMS[1], (32, 32))):
        method = made(source, config, form)
        assert (method.side, method.local_size, method.grid[0]) == (*sides, sides[0] // 4)


def test_high_resolution_continues_from_a_run_with_larger_views(source, tmp_path):
    """Appendix B.2: the same with a lower learning rate. The encoder of the first run fits, its teacher too."""
    first, second = dinov2.Config(), dinov2.HighRes()
    changed = {k for k, v in vars(second).items() if v != vars(first)[k]}
    assert (
        changed == {"side"} and second.train.lr < first.train.lr and second.train.epochs < first.train.epochs
    )
    assert dataclasses.replace(second.train, lr=first.train.lr, epochs=first.train.epochs) == first.train
    low, high = made(source), made(source, dinov2.HighRes(**NARROW))
    assert (low.grid, high.grid, low.local_size, high.local_size) == ((6, 6), (8, 8), 12, 12)
    saved.save_encoder(low.export(), tmp_path)
    saved.load_encoder_weights(high.encoder, tmp_path)
    assert high.loss(puzzle(high, source)).total.isfinite()


def test_predict_finds_the_other_view_of_a_memorized_batch(source):
    wider = {"prototypes": 256, "width": 32, "hidden": 128, "local_crops": 0}
    method = made(
        source,
        dinov2.Config(**NARROW | wider, mask_probability=0.0, koleo=0.0),
        "vit_tiny_patch16_224:patch_size=8,embed_dim=48,num_heads=2,depth=2",
    )
    p = puzzle(method, source, 8, 0)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)

    def found():
        with torch.no_grad():
            return (method.predict(p)["view2"] == p.view2).flatten(1).all(1).float().mean()

    before = found()
    for _ in range(100):
        optimizer.zero_grad()
        method.loss(p).total.backward()
        optimizer.step()
    assert before < 0.4 and found() > 0.9


def test_paper_recipe_matches_the_released_code():
    """`configs/train/vitl14.yaml` over `configs/ssl_default_config.yaml`."""
    paper, train = dinov2.Paper(), dinov2.Paper.train
    assert (paper.prototypes, paper.width, paper.patch_width, paper.hidden) == (131_072, 384, 256, 2048)
    assert (paper.mask_probability, paper.mask_ratio) == (0.5, (0.1, 0.5))
    assert (paper.koleo, paper.koleo_batch, paper.sinkhorn_iterations) == (0.1, 32, 3)
    assert (paper.temperature, paper.teacher_temp, paper.ema_momentum) == (0.1, (0.04, 0.07), 0.994)
    assert (paper.train.layer_decay, paper.patch_embed_lr, paper.drop_path) == (1.0, 0.2, 0.4)
    assert [
        500 * x for x in (paper.teacher_temp_warmup, paper.freeze_prototypes, train.warmup)
    ] == pytest.approx([30, 1, 80])
    assert (paper.views.crop, paper.local_scale, paper.local_crops) == ((0.32, 1.0), (0.05, 0.32), 8)
    assert [(v.blur, v.solarize) for v in (*paper.augmentations(), paper.views)] == [
        (1, 0),
        (0.1, 0.2),
        (0.5, 0),
    ]
    assert (train.batch, train.optimizer, train.clip, train.weight_decay, train.weight_decay_end) == (
        96 * 32,
        "adamw",
        3.0,
        0.04,
        0.2,
    )
    assert train.lr == pytest.approx(2e-4 * 3**0.5) and train.lr_end == 1e-6
    assert train.epochs == round(500 * 1250 * 3072 / 11_797_647)  # `data/datasets/image_net_22k.py`


def test_paper_network_is_the_released_one_in_small():
    """SwiGLU layers whose hidden width is a multiple of 8, 98 of 224 px for local crops."""
    source = data.open("synthetic:2:224")
    small = dataclasses.replace(dinov2.Paper(), prototypes=8)
    method = made(source, small, f"{small.encoder},depth=2")
    assert (method.side, method.local_size, method.grid) == (224, 98, (16, 16))
    block = method.encoder.net.blocks[0]
    assert block.mlp.fc1.out_features == 2 * ((int(4 * 1024 * 2 / 3) + 7) // 8 * 8) == 5472
    assert block.mlp.fc2.in_features == 2736 and block.attn.num_heads == 16
    x = torch.randn(3, 1024)
    a, b = block.mlp.fc1(x).chunk(2, -1)
    assert_close(block.mlp(x), block.mlp.fc2(F.silu(a) * b))  # `layers/swiglu_ffn.py`
    assert_close(block.ls1.gamma, torch.full((1024,), 1e-5))
