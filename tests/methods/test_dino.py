"""What a faithful DINO must show (Caron et al. 2021, eq. 3 and 4, and the authors' released code)."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import data as sources
from pretask import encoders
from pretask.config import decay, schedule
from pretask.methods import dino
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.train.trainer import rate
from pretask.transforms import augment as images

NARROW = {"prototypes": 32, "width": 16, "hidden": 24, "small": 2}
"""a head that takes no time"""


@pytest.fixture(scope="module")
def source():
    return sources.open("synthetic:64:16")


def made(source, config=None, encoder="resnet_small:width=8"):
    torch.manual_seed(0)
    return (config or dino.Config(**NARROW)).build(encoders.build(encoder, 3, source.size), source).train()


def puzzle(method, source, n=8, seed=1):
    return method.pretext(source.__getitems__(torch.arange(n)), Rng(seed))


def drawn(seed=1, views=4, b=3, k=5):
    """Logits of the teacher (2, B, K), of the student (V, B, K), and a centre (K,)."""
    rng = Rng(seed)
    return rng.normal(2, b, k), rng.normal(views, b, k), rng.normal(k)


def ours(teacher, student, centre, sharp, temperature):
    target = dino.assigned(teacher, centre, torch.tensor(sharp))
    return dino.across(target, (student / temperature).log_softmax(2))


def slow(teacher, student, centre, sharp, temperature):
    """Equation 3 as printed, view by view and image by image, its sum divided by the number of pairs."""

    def share(logits):
        total = sum(math.exp(x) for x in logits)
        return [math.exp(x) / total for x in logits]

    costs = []
    for own, large in enumerate(teacher.tolist()):
        for other, view in enumerate(student.tolist()):
            if own != other:
                for t, s in zip(large, view, strict=True):
                    p = share([(x - c) / sharp for x, c in zip(t, centre.tolist(), strict=True)])
                    q = share([x / temperature for x in s])
                    costs.append(-sum(a * math.log(b) for a, b in zip(p, q, strict=True)))
    return sum(costs) / len(costs)


# ---- the loss


@pytest.mark.parametrize("views", [2, 6])
@pytest.mark.parametrize(("sharp", "temperature"), [(0.04, 0.1), (0.3, 0.5)])
def test_the_loss_is_the_papers_equation(views, sharp, temperature):
    given = drawn(views=views)
    assert_close(ours(*given, sharp, temperature).item(), slow(*given, sharp, temperature))


def test_values_gradients_and_centre_are_those_of_an_independent_implementation(source):
    lightly = pytest.importorskip("lightly.loss")
    teacher, student, centre = drawn(views=5)
    a, b = (student.clone().requires_grad_() for _ in range(2))
    theirs = lightly.DINOLoss(output_dim=5, teacher_temp=0.05, student_temp=0.1, center_momentum=0.9)
    theirs.center.copy_(centre)
    expected = theirs(list(teacher), list(b))
    found = ours(teacher, a, centre, 0.05, 0.1)
    found.backward()
    expected.backward()
    assert_close(found, expected)
    assert_close(a.grad, b.grad)
    method = made(source, dino.Config(**NARROW | {"prototypes": 5}))
    method.centre.copy_(centre)
    method.after_step(teacher.mean(0), Plan.of(1, 1).at(0))
    assert_close(method.centre, theirs.center.flatten())


def test_a_student_view_is_never_compared_with_the_teachers_same_view():
    """The gradient of a view is less the mean of the targets it is compared with, so it tells which they are."""
    teacher, student, centre = drawn(views=4)
    target = dino.assigned(teacher, centre, torch.tensor(0.1))
    log_p = student.log_softmax(2).requires_grad_()
    dino.across(target, log_p).backward()
    parts = -log_p.grad * 6 * 3  # six pairs of three images
    assert_close(parts[0], target[1])
    assert_close(parts[1], target[0])
    for small in (2, 3):
        assert_close(parts[small], target.sum(0))


def test_the_method_scores_all_views_by_its_centre_and_both_temperatures(source):
    """And the head gets all of them at once, as its batch norms show (`utils.MultiCropWrapper`)."""
    method = made(source, dino.Config(**NARROW, temperature=0.2, small_side=0.5))
    method.centre.copy_(Rng(3).normal(32) / 4)
    method.sharpness.fill_(0.09)
    p = puzzle(method, source)
    with torch.no_grad():
        found = method.loss(p)
        pools = [method.encoder(x)["pool"] for x in (p.both, torch.cat([p.small[:, 0], p.small[:, 1]]))]
        student = method.head(torch.cat(pools)).unflatten(0, (4, 8))
        apart = torch.cat([method.head(pool) for pool in pools]).unflatten(0, (4, 8))
        teacher = method.taught(p.both).unflatten(0, (2, 8))
    assert (student - apart).abs().max() > 0.01
    assert_close(found.total.item(), slow(teacher, student, method.centre, 0.09, 0.2), atol=1e-4, rtol=1e-4)


def test_at_the_start_the_loss_is_that_of_guessing_among_the_prototypes(source):
    """In a wide bottleneck all cosines are about 0; then neither softmax is far from even."""
    config = dino.Config(small=2, prototypes=256, width=4096, hidden=16)
    method = made(source, config)
    with torch.no_grad():
        loss = method.loss(puzzle(method, source, 32)).total
    assert abs(loss.item() - math.log(256)) < 0.1


def test_the_log_tells_how_evenly_the_teacher_assigns(source):
    method = made(source)
    p = puzzle(method, source)
    with torch.no_grad():
        q = dino.assigned(method.taught(p.both), method.centre, method.sharpness)
        expected = -(q * q.log()).sum(1).mean()
        assert_close(method.loss(p).parts["entropy"], expected, atol=1e-4, rtol=1e-4)


# ---- the head


def test_logits_are_cosines_whatever_the_lengths(source):
    head = made(source).head.eval()
    x = Rng(1).normal(4, 64)[:, : head.narrow[0].in_features]
    z, w = head.narrow(x), head.prototypes.weight
    expected = F.cosine_similarity(z[:, None], w[None], dim=2)
    assert_close(head(x), expected)
    with torch.no_grad():
        head.prototypes.weight *= torch.arange(1, 33)[:, None]
        head.narrow[-1].weight *= 5
        head.narrow[-1].bias *= 5
    assert_close(head(x), expected)


def test_logits_are_not_rounded_where_the_network_is(source):
    head = made(source).head
    head.narrow = torch.nn.Identity()
    z = Rng(1).normal(64, 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = head(z)
    assert torch.equal(half, head(z))


@pytest.mark.parametrize("norm", [True, False])
def test_batch_norm_in_the_head_is_a_choice(source, norm):
    head = made(source, dino.Config(**NARROW, norm=norm)).head
    assert sum(isinstance(layer, torch.nn.BatchNorm1d) for layer in head.modules()) == 2 * norm
    assert [layer.out_features for layer in head.narrow if isinstance(layer, torch.nn.Linear)] == [24, 24, 16]


# ---- the teacher


def test_small_views_never_reach_the_teacher(source):
    method = made(source, dino.Config(**NARROW, small_side=0.5))
    seen = {"teacher": [], "student": []}
    for name, net in (("teacher", method.teacher[0]), ("student", method.encoder)):
        net.register_forward_pre_hook(lambda module, given, name=name: seen[name].append(given[0]))
    p = puzzle(method, source)
    method.loss(p)
    [taught] = seen["teacher"]
    large, small = seen["student"]
    assert torch.equal(taught, p.both) and torch.equal(large, p.both)
    assert p.small.shape == (8, 2, 3, 8, 8) and len(small) == 16
    for v in range(2):
        assert torch.equal(small[8 * v : 8 * v + 8], p.small[:, v])


def test_the_teacher_gets_no_gradient_and_follows_by_the_rule(source):
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
    keep = 1 - (1 - 0.99) * (math.cos(math.pi * 0.5) + 1) / 2
    for old, new, student in zip(before, method.teacher.parameters(), students, strict=True):
        assert_close(new, keep * old + (1 - keep) * student)


def test_the_centre_moves_towards_the_mean_of_both_large_views_on_all_processes(source):
    method = made(source)
    p = puzzle(method, source)
    with torch.no_grad():
        carry = method.loss(p).carry
        assert_close(carry, method.taught(p.both).mean(0)[None])
        assert not method.centre.any()
        for _ in range(2):
            method.after_step(torch.cat([carry, 3 * carry]), Plan.of(10, 10).at(0))
    assert_close(method.centre, (0.9 * 0.1 + 0.1) * 2 * carry[0])


def test_the_teachers_temperature_rises_and_then_stays(source):
    config = dino.Config(**NARROW)
    steps = [config.sharpness(f) for f in (0.0, 0.025, 0.05, 0.1, 0.5, 1.0)]
    assert steps == pytest.approx([0.04, 0.0475, 0.055, 0.07, 0.07, 0.07])
    assert dataclasses.replace(config, warm=0.0).sharpness(0.0) == 0.07
    method = made(source, config)
    assert method.sharpness.item() == pytest.approx(0.04)
    method.after_step(torch.zeros(1, 32), Plan.of(100, 100).at(5))
    assert method.sharpness.item() == pytest.approx(0.055)


def test_the_teacher_is_exported(source):
    method = made(source)
    assert method.export() is method.teacher[0] and method.export() is not method.encoder


# ---- collapse


def assignments(source, steps=40, **changes):
    """Entropies after a short run of a head without batch norms: of one image's assignment, of their mean."""
    plain = images.Views(crop=(0.5, 1.0), jitter=0.0, grey=0.0)
    knobs = {
        "prototypes": 64,
        "width": 32,
        "hidden": 64,
        "small": 0,
        "side": 1.0,
        "views": plain,
        "keep": 0.9,
    }
    method = made(source, dino.Config(**knobs | changes), "mlp:width=32")
    optimizer = torch.optim.AdamW(method.groups(), lr=3e-3)
    for step in range(steps):
        p = puzzle(method, source, 64, step)
        loss = method.loss(p)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        method.after_step(loss.carry, Plan.of(steps, steps).at(step))
    with torch.no_grad():
        q = dino.assigned(method.taught(p.both), method.centre, method.sharpness)
    return [torch.special.entr(x).sum(-1).mean().item() for x in (q, q.mean(0))]


def test_without_centring_all_images_go_to_one_prototype(source):
    _, common = assignments(source, norm=False)
    assert common > 0.9 * math.log(64)
    _, common = assignments(source, norm=False, centring=1.0)
    assert common < 0.1


def test_without_sharpening_all_images_are_shared_out_evenly(source):
    own, _ = assignments(source, sharp=(0.3, 0.3))
    assert own > 0.97 * math.log(64)


def test_with_both_every_image_has_its_few_prototypes_and_together_they_have_most(source):
    own, common = assignments(source, sharp=(0.04, 0.04), keep=0.99)
    assert own < 0.5 * math.log(64) and common > 0.7 * math.log(64)


# ---- recipes, groups, answers


def test_the_prototypes_stand_still_at_first_and_decay_as_all_matrices(source):
    """`utils.get_params_groups`: what has more than one dimension is regularized, `last_layer` too."""
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
    for step, still in ((1, True), (29, True), (30, False)):
        before = [w.detach().clone() for w in (last, method.head.narrow[0].weight)]
        for group in optimizer.param_groups:
            group["lr"] = rate(group, dino.Config.train, Plan.of(1000, 1000).at(step))
        optimizer.step()
        assert torch.equal(last, before[0]) == still
        assert not torch.equal(method.head.narrow[0].weight, before[1])


def test_solving_finds_the_other_view_of_a_puzzle_learnt_by_heart(source):
    method = made(source, dino.Config(prototypes=256, width=32, hidden=128, small=0), "mlp:width=128")
    p = puzzle(method, source, 32, 0)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)

    def found():
        with torch.no_grad():
            return (method.solve(p)["right"] == p.right).flatten(1).all(1).float().mean()

    before = found()
    for _ in range(60):
        optimizer.zero_grad()
        method.loss(p).total.backward()
        optimizer.step()
    assert before < 0.5 and found() > 0.9


def test_the_paper_recipe_is_that_of_the_released_code():
    paper, train = dino.Paper(), dino.Paper.train
    assert (paper.prototypes, paper.width, paper.hidden, paper.norm) == (65_536, 256, 2048, False)
    assert (paper.temperature, paper.sharp, paper.centring, paper.keep) == (0.1, (0.04, 0.07), 0.9, 0.996)
    assert paper.warm * train.epochs == pytest.approx(30) and paper.frozen * train.epochs == pytest.approx(1)
    assert (paper.views.crop, paper.small_crop, paper.small) == ((0.4, 1.0), (0.05, 0.4), 8)
    assert [(v.blur, v.solarize) for v in (*paper.pair(), paper.views)] == [
        (1, 0),
        (0.1, 0.2),
        (0.5, 0),
    ]
    assert (train.epochs, train.batch, train.optimizer, train.clip) == (300, 1024, "adamw", 3.0)
    assert train.lr == pytest.approx(0.002) and train.warmup * train.epochs == pytest.approx(10)
    source = sources.open("synthetic:2:224")
    narrow = dataclasses.replace(paper, prototypes=8)
    method = made(source, narrow, f"{paper.encoder},embed_dim=12,num_heads=1,depth=3")
    assert (method.side, method.small_side) == (224, 96)
    for net, rates in ((method.encoder, [0, 0.05, 0.1]), (method.teacher[0], [0, 0, 0])):
        assert [getattr(block.drop_path1, "drop_prob", 0) for block in net.net.blocks] == pytest.approx(rates)


def test_learning_rate_and_weight_decay_go_the_released_ways():
    """`utils.cosine_scheduler` with `--min_lr 1e-6 --weight_decay 0.04 --weight_decay_end 0.4`."""
    train = dino.Paper.train
    for epoch in range(0, 300, 10):
        turn = math.pi * (epoch - 10) / 290
        rising = 0.002 * epoch / 10 if epoch < 10 else 1e-6 + 0.5 * (0.002 - 1e-6) * (1 + math.cos(turn))
        assert train.lr * schedule(train, epoch / 300) == pytest.approx(rising)
        heavier = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * epoch / 300))
        assert train.weight_decay * decay(train, epoch / 300) == pytest.approx(heavier)
