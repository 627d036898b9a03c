"""Fidelity of DINO (Caron et al. 2021, eq. 3 and 4, and the authors' released code)."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import data, encoders
from pretask.config import lr_factor, weight_decay_factor
from pretask.methods import dino
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.train.trainer import group_lr
from pretask.transforms import augment

NARROW = {"prototypes": 32, "width": 16, "hidden": 24, "local_crops": 2}
"""a small, fast head"""


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:64:16")


def made(source, config=None, encoder="resnet_small:width=8"):
    torch.manual_seed(0)
    return (config or dino.Config(**NARROW)).build(encoders.build(encoder, 3, source.size), source).train()


def puzzle(method, source, n=8, seed=1):
    return method.pretext(source.__getitems__(torch.arange(n)), Rng(seed))


def drawn(seed=1, views=4, b=3, k=5):
    """Random teacher logits (2, B, K), student logits (V, B, K) and a center (K,)."""
    rng = Rng(seed)
    return rng.normal(2, b, k), rng.normal(views, b, k), rng.normal(k)


def ours(teacher, student, center, teacher_temp, temperature):
    target = dino.teacher_probs(teacher, center, torch.tensor(teacher_temp))
    return dino.cross_view_loss(target, (student / temperature).log_softmax(2))


def slow(teacher, student, center, teacher_temp, temperature):
    """Equation 3 as printed, view by view and image by image, its sum divided by the number of pairs."""

    def softmax(logits):
        total = sum(math.exp(x) for x in logits)
        return [math.exp(x) / total for x in logits]

    costs = []
    for own, large in enumerate(teacher.tolist()):
        for other, view in enumerate(student.tolist()):
            if own != other:
                for t, s in zip(large, view, strict=True):
                    p = softmax([(x - c) / teacher_temp for x, c in zip(t, center.tolist(), strict=True)])
                    q = softmax([x / temperature for x in s])
                    costs.append(-sum(a * math.log(b) for a, b in zip(p, q, strict=True)))
    return sum(costs) / len(costs)


# ---- the loss


@pytest.mark.parametrize("views", [2, 6])
@pytest.mark.parametrize(("teacher_temp", "temperature"), [(0.04, 0.1), (0.3, 0.5)])
def test_loss_is_equation_3(views, teacher_temp, temperature):
    given = drawn(views=views)
    assert_close(ours(*given, teacher_temp, temperature).item(), slow(*given, teacher_temp, temperature))


def test_values_gradients_and_center_match_lightly(source):
    lightly = pytest.importorskip("lightly.loss")
    teacher, student, center = drawn(views=5)
    a, b = (student.clone().requires_grad_() for _ in range(2))
    theirs = lightly.DINOLoss(output_dim=5, teacher_temp=0.05, student_temp=0.1, center_momentum=0.9)
    theirs.center.copy_(center)
    expected = theirs(list(teacher), list(b))
    found = ours(teacher, a, center, 0.05, 0.1)
    found.backward()
    expected.backward()
    assert_close(found, expected)
    assert_close(a.grad, b.grad)
    method = made(source, dino.Config(**NARROW | {"prototypes": 5}))
    method.center.copy_(center)
    method.after_step(teacher.mean(0), Plan.of(1, 1).at(0))
    assert_close(method.center, theirs.center.flatten())


def test_a_view_is_never_compared_with_itself():
    """The gradient of a view is minus the mean of the targets that it is compared with, which identifies them."""
    teacher, student, center = drawn(views=4)
    target = dino.teacher_probs(teacher, center, torch.tensor(0.1))
    log_p = student.log_softmax(2).requires_grad_()
    dino.cross_view_loss(target, log_p).backward()
    parts = -log_p.grad * 6 * 3  # six pairs of three images
    assert_close(parts[0], target[1])
    assert_close(parts[1], target[0])
    for local in (2, 3):
        assert_close(parts[local], target.sum(0))


def test_loss_uses_center_and_both_temperatures_on_all_views(source):
    """The head gets all views at once, as its batch norms show (`utils.MultiCropWrapper`)."""
    method = made(source, dino.Config(**NARROW, temperature=0.2, local_size=0.5))
    method.center.copy_(Rng(3).normal(32) / 4)
    method.teacher_temp.fill_(0.09)
    p = puzzle(method, source)
    with torch.no_grad():
        found = method.loss(p)
        pools = [
            method.encoder(x)["pool"] for x in (p.both, torch.cat([p.local_views[:, 0], p.local_views[:, 1]]))
        ]
        student = method.head(torch.cat(pools)).unflatten(0, (4, 8))
        separate = torch.cat([method.head(pool) for pool in pools]).unflatten(0, (4, 8))
        teacher = method.teacher_logits(p.both).unflatten(0, (2, 8))
    assert (student - separate).abs().max() > 0.01
    assert_close(found.total.item(), slow(teacher, student, method.center, 0.09, 0.2), atol=1e-4, rtol=1e-4)


def test_initial_loss_is_at_chance(source):
    """In a wide bottleneck all cosines are about 0, so both softmaxes are nearly uniform."""
    config = dino.Config(local_crops=2, prototypes=256, width=4096, hidden=16)
    method = made(source, config)
    with torch.no_grad():
        loss = method.loss(puzzle(method, source, 32)).total
    assert abs(loss.item() - math.log(256)) < 0.1


def test_logged_entropy_is_that_of_the_teacher(source):
    method = made(source)
    p = puzzle(method, source)
    with torch.no_grad():
        q = dino.teacher_probs(method.teacher_logits(p.both), method.center, method.teacher_temp)
        expected = -(q * q.log()).sum(1).mean()
        assert_close(method.loss(p).parts["entropy"], expected, atol=1e-4, rtol=1e-4)


# ---- the head


def test_logits_are_cosines_at_any_weight_norm(source):
    head = made(source).head.eval()
    x = Rng(1).normal(4, 64)[:, : head.bottleneck[0].in_features]
    z, w = head.bottleneck(x), head.prototypes.weight
    expected = F.cosine_similarity(z[:, None], w[None], dim=2)
    assert_close(head(x), expected)
    with torch.no_grad():
        head.prototypes.weight *= torch.arange(1, 33)[:, None]
        head.bottleneck[-1].weight *= 5
        head.bottleneck[-1].bias *= 5
    assert_close(head(x), expected)


def test_logits_stay_in_float32_under_autocast(source):
    head = made(source).head
    head.bottleneck = torch.nn.Identity()
    z = Rng(1).normal(64, 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = head(z)
    assert torch.equal(half, head(z))


@pytest.mark.parametrize("use_bn_in_head", [True, False])
def test_batch_norms_in_the_head_are_optional(source, use_bn_in_head):
    head = made(source, dino.Config(**NARROW, use_bn_in_head=use_bn_in_head)).head
    assert sum(isinstance(layer, torch.nn.BatchNorm1d) for layer in head.modules()) == 2 * use_bn_in_head
    assert [layer.out_features for layer in head.bottleneck if isinstance(layer, torch.nn.Linear)] == [
        24,
        24,
        16,
    ]


# ---- the teacher


def test_teacher_never_sees_local_views(source):
    method = made(source, dino.Config(**NARROW, local_size=0.5))
    seen = {"teacher": [], "student": []}
    for name, net in (("teacher", method.teacher[0]), ("student", method.encoder)):
        net.register_forward_pre_hook(lambda module, given, name=name: seen[name].append(given[0]))
    p = puzzle(method, source)
    method.loss(p)
    [teacher_logits] = seen["teacher"]
    large, local = seen["student"]
    assert torch.equal(teacher_logits, p.both) and torch.equal(large, p.both)
    assert p.local_views.shape == (8, 2, 3, 8, 8) and len(local) == 16
    for v in range(2):
        assert torch.equal(local[8 * v : 8 * v + 8], p.local_views[:, v])


def test_teacher_gets_no_gradient_and_moves_by_ema_momentum(source):
    method = made(source)
    loss = method.loss(puzzle(method, source))
    loss.total.backward()
    assert all(w.grad is None and not w.requires_grad for w in method.teacher.parameters())
    students = [*method.encoder.parameters(), *method.head.parameters()]
    with torch.no_grad():
        for w in students:
            w += 1
    before = [w.clone() for w in method.teacher.parameters()]
    method.after_step(loss.carry, Plan.of(100, 100).at(50))
    ema_momentum = 1 - (1 - 0.99) * (math.cos(math.pi * 0.5) + 1) / 2
    for old, new, student in zip(before, method.teacher.parameters(), students, strict=True):
        assert_close(new, ema_momentum * old + (1 - ema_momentum) * student)


def test_center_moves_towards_the_mean_of_both_global_views_on_all_processes(source):
    method = made(source)
    p = puzzle(method, source)
    with torch.no_grad():
        carry = method.loss(p).carry
        assert_close(carry, method.teacher_logits(p.both).mean(0)[None])
        assert not method.center.any()
        for _ in range(2):
            method.after_step(torch.cat([carry, 3 * carry]), Plan.of(10, 10).at(0))
    assert_close(method.center, (0.9 * 0.1 + 0.1) * 2 * carry[0])


def test_teacher_temperature_is_warmed_up_linearly(source):
    config = dino.Config(**NARROW)
    steps = [config.teacher_temp_at(f) for f in (0.0, 0.025, 0.05, 0.1, 0.5, 1.0)]
    assert steps == pytest.approx([0.04, 0.0475, 0.055, 0.07, 0.07, 0.07])
    assert dataclasses.replace(config, teacher_temp_warmup=0.0).teacher_temp_at(0.0) == 0.07
    method = made(source, config)
    assert method.teacher_temp.item() == pytest.approx(0.04)
    method.after_step(torch.zeros(1, 32), Plan.of(100, 100).at(5))
    assert method.teacher_temp.item() == pytest.approx(0.055)


def test_the_teacher_is_exported(source):
    method = made(source)
    assert method.export() is method.teacher[0] and method.export() is not method.encoder


# ---- collapse


def assignments(source, steps=40, **changes):
    """Teacher entropies after a short run of a head without batch norms: per image, and of the mean over images."""
    plain = augment.ViewAugmentation(crop=(0.5, 1.0), jitter=0.0, gray=0.0)
    config = {
        "prototypes": 64,
        "width": 32,
        "hidden": 64,
        "local_crops": 0,
        "side": 1.0,
        "views": plain,
        "ema_momentum": 0.9,
    }
    method = made(source, dino.Config(**config | changes), "mlp:width=32")
    optimizer = torch.optim.AdamW(method.groups(), lr=3e-3)
    for step in range(steps):
        p = puzzle(method, source, 64, step)
        loss = method.loss(p)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        method.after_step(loss.carry, Plan.of(steps, steps).at(step))
    with torch.no_grad():
        q = dino.teacher_probs(method.teacher_logits(p.both), method.center, method.teacher_temp)
    return [torch.special.entr(x).sum(-1).mean().item() for x in (q, q.mean(0))]


def test_without_centering_one_prototype_dominates(source):
    _, overall = assignments(source, use_bn_in_head=False)
    assert overall > 0.9 * math.log(64)
    _, overall = assignments(source, use_bn_in_head=False, center_momentum=1.0)
    assert overall < 0.1


def test_without_sharpening_teacher_outputs_are_uniform(source):
    per_image, _ = assignments(source, teacher_temp=(0.3, 0.3))
    assert per_image > 0.97 * math.log(64)


def test_centering_and_sharpening_together_prevent_collapse(source):
    per_image, overall = assignments(source, teacher_temp=(0.04, 0.04), ema_momentum=0.99)
    assert per_image < 0.5 * math.log(64) and overall > 0.7 * math.log(64)


# ---- recipes, parameter groups, predictions


def test_prototypes_are_frozen_at_first_and_have_weight_decay(source):
    """`utils.get_params_groups`: everything with more than one dimension has weight decay, `last_layer` too."""
    method = made(source)
    [optimizer] = method.optimizers(dataclasses.replace(dino.Config.train, weight_decay=0.5, warmup=0.0))
    trained = [w for w in method.parameters() if w.requires_grad]
    assert sorted(map(id, trained)) == sorted(id(w) for g in optimizer.param_groups for w in g["params"])
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    method.loss(puzzle(method, source)).total.backward()
    last = method.head.prototypes.weight
    [alone] = [g for g in optimizer.param_groups if any(w is last for w in g["params"])]
    assert alone["weight_decay"] == 0.5 and len(alone["params"]) == 1
    for step, frozen in ((1, True), (29, True), (30, False)):
        before = [w.detach().clone() for w in (last, method.head.bottleneck[0].weight)]
        for group in optimizer.param_groups:
            group["lr"] = group_lr(group, dino.Config.train, Plan.of(1000, 1000).at(step))
        optimizer.step()
        assert torch.equal(last, before[0]) == frozen
        assert not torch.equal(method.head.bottleneck[0].weight, before[1])


def test_predict_finds_the_other_view_of_a_memorized_batch(source):
    method = made(source, dino.Config(prototypes=256, width=32, hidden=128, local_crops=0), "mlp:width=128")
    p = puzzle(method, source, 32, 0)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)

    def found():
        with torch.no_grad():
            return (method.predict(p)["view2"] == p.view2).flatten(1).all(1).float().mean()

    before = found()
    for _ in range(60):
        optimizer.zero_grad()
        method.loss(p).total.backward()
        optimizer.step()
    assert before < 0.5 and found() > 0.9


def test_paper_recipe_matches_the_released_code():
    paper, train = dino.Paper(), dino.Paper.train
    assert (paper.prototypes, paper.width, paper.hidden, paper.use_bn_in_head) == (65_536, 256, 2048, False)
    assert (paper.temperature, paper.teacher_temp, paper.center_momentum, paper.ema_momentum) == (
        0.1,
        (0.04, 0.07),
        0.9,
        0.996,
    )
    assert paper.teacher_temp_warmup * train.epochs == pytest.approx(
        30
    ) and paper.freeze_prototypes * train.epochs == pytest.approx(1)
    assert (paper.views.crop, paper.local_scale, paper.local_crops) == ((0.4, 1.0), (0.05, 0.4), 8)
    assert [(v.blur, v.solarize) for v in (*paper.augmentations(), paper.views)] == [
        (1, 0),
        (0.1, 0.2),
        (0.5, 0),
    ]
    assert (train.epochs, train.batch, train.optimizer, train.clip) == (300, 1024, "adamw", 3.0)
    assert train.lr == pytest.approx(0.002) and train.warmup * train.epochs == pytest.approx(10)
    source = data.open("synthetic:2:224")
    small = dataclasses.replace(paper, prototypes=8)
    method = made(source, small, f"{paper.encoder},embed_dim=12,num_heads=1,depth=3")
    assert (method.side, method.local_size) == (224, 96)
    for net, rates in ((method.encoder, [0, 0.05, 0.1]), (method.teacher[0], [0, 0, 0])):
        assert [getattr(block.drop_path1, "drop_prob", 0) for block in net.net.blocks] == pytest.approx(rates)


def test_learning_rate_and_weight_decay_match_the_released_schedules():
    """`utils.cosine_scheduler` with `--min_lr 1e-6 --weight_decay 0.04 --weight_decay_end 0.4`."""
    train = dino.Paper.train
    for epoch in range(0, 300, 10):
        turn = math.pi * (epoch - 10) / 290
        cosine_momentum = (
            0.002 * epoch / 10 if epoch < 10 else 1e-6 + 0.5 * (0.002 - 1e-6) * (1 + math.cos(turn))
        )
        assert train.lr * lr_factor(train, epoch / 300) == pytest.approx(cosine_momentum)
        heavier = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * epoch / 300))
        assert train.weight_decay * weight_decay_factor(train, epoch / 300) == pytest.approx(heavier)
