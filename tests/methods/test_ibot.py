"""Fidelity of iBOT (Zhou et al. 2022, and the authors' released code)."""

import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from pretask import data, encoders
from pretask.methods import dino, ibot
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.types import UserError

VIT = "vit_tiny_patch16_224:patch_size=4,embed_dim=24,num_heads=2,depth=1"
FORMS = [
    f"{VIT},dynamic_img_size=True",
    VIT,
    f"{VIT},global_pool=avg",
    f"{VIT},global_pool=avg,fc_norm=False,class_token=False",
    f"{VIT},reg_tokens=2,no_embed_class=True,pre_norm=True",
]
"""views of any size or of one, a class token or none, the last norm before or after pooling, registers"""
NARROW = {"prototypes": 32, "width": 16, "hidden": 24, "local_crops": 2}
"""a small, fast head"""


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:64:32")


def made(source, config=None, encoder=FORMS[0]):
    torch.manual_seed(0)
    return (config or ibot.Config(**NARROW)).build(encoders.build(encoder, 3, source.size), source).train()


def puzzle(method, source, n=8, seed=1):
    return method.pretext(source.__getitems__(torch.arange(n)), Rng(seed))


def both(p):
    return torch.cat([p.view1_mask, p.view2_mask])


def patches_of(images, which, side=4):
    """(B, C, H, W) -> the same, with random pixels in the patches that are true in `which` (B, h, w)."""
    pixels = which.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
    return torch.where(pixels, torch.rand_like(images), images)


# ---- masks


def test_half_the_views_have_10_to_50_percent_of_their_patches_masked(source):
    """The others have no mask; ratios are uniform in this range, and every patch is masked at times."""
    method = made(source, ibot.Config(**NARROW, side=1.0))
    method.grid = (14, 14)  # as in the paper
    mask = method.draw_masks(4000, Rng(1))
    count = mask.sum((1, 2))
    some = count[count > 0] / 196
    assert abs(len(some) / 4000 - 0.5) < 0.03
    assert 0.06 < some.min() < 0.12 and 0.48 < some.max() <= 0.5
    assert abs(some.mean() - 0.3) < 0.015 and abs(some.std() - 0.4 / math.sqrt(12)) < 0.01
    often = mask.float().mean(0)
    assert often.min() > 0.01 and often.max() < 0.3
    assert torch.allclose(often, often.flip(0), atol=0.05) and torch.allclose(often, often.flip(1), atol=0.05)


def test_masks_are_unions_of_rectangles():
    """Most masked patches have four masked neighbors or an edge, unlike patches drawn one by one."""
    mask = ibot.block_masks(torch.full((500,), 0.3 * 196), (14, 14), Rng(1))
    neighbors = torch.nn.functional.conv2d(
        mask[:, None].float(), torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])[None, None], padding=1
    )[:, 0][mask]
    assert (neighbors == 0).float().mean() < 0.02 and neighbors.mean() > 2.5  # 1.2 one by one


@pytest.mark.parametrize("grid", [(14, 14), (6, 6), (3, 3), (1, 1), (4, 9)])
def test_masks_nearly_reach_but_never_exceed_their_limit(grid):
    n = math.prod(grid)
    most = torch.linspace(0, 0.5 * n, 300)
    count = ibot.block_masks(most, grid, Rng(2)).sum((1, 2))
    assert (count <= most).all()
    assert ((most - count) / n).mean() < 0.5 / n + 0.03


def test_the_two_views_of_an_image_have_different_masks(source):
    p = puzzle(made(source), source, 32)
    assert p.view1_mask.shape == p.view2_mask.shape == (32, 6, 6) and p.view1_mask.dtype == torch.bool
    assert (p.view1_mask != p.view2_mask).flatten(1).any(1).float().mean() > 0.5


# ---- the masked transformer


@pytest.mark.parametrize("form", FORMS)
def test_tokens_without_a_mask_are_those_of_the_encoder(source, form):
    method = made(source, encoder=form).eval()
    p = puzzle(method, source, 4)
    net = method.encoder.net
    with torch.no_grad():
        tokens = method.tokens(method.encoder, p.view1)
        assert torch.equal(tokens, method.tokens(method.encoder, p.view1, torch.zeros_like(p.view1_mask)))
        assert_close(tokens[:, 0], method.encoder(p.view1)["pool"])
        final = net.forward_features(method.encoder.normalized(p.view1))
        assert_close(tokens[:, 1:], net.fc_norm(final[:, net.num_prefix_tokens :]))
    assert tokens.shape[1] == 1 + p.view1_mask[0].numel()


@pytest.mark.parametrize("form", FORMS)
def test_masked_pixels_reach_no_student_token_and_visible_ones_reach_all(source, form):
    method = made(source, ibot.Config(**NARROW, mask_probability=1.0), form).eval()
    p = puzzle(method, source, 4)
    mask = p.view1_mask
    with torch.no_grad():
        before = method.tokens(method.encoder, p.view1, mask)
        same = method.tokens(method.encoder, patches_of(p.view1, mask), mask)
        other = method.tokens(method.encoder, patches_of(p.view1, ~mask), mask)
    assert torch.equal(before, same)
    assert ((before - other).abs().amax(-1) > 1e-5).all()


def test_mask_token_gets_the_masked_patches_position_embeddings(source):
    """Slow reference: patch by patch, before the transformer's blocks."""
    method = made(source, ibot.Config(**NARROW, mask_probability=1.0), VIT).eval()
    assert not method.mask_token.any()  # initial value (`masked_embed`)
    torch.nn.init.normal_(method.mask_token)
    p, net, given = puzzle(method, source, 4), method.encoder.net, []
    net.blocks.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.no_grad():
        method.tokens(method.encoder, p.view1, p.view1_mask)
        embedded = net.patch_embed(method.encoder.normalized(p.view1))
        for i in range(4):
            for n, masked in enumerate(p.view1_mask[i].flatten().tolist()):
                patch = method.mask_token if masked else embedded[i, n]
                assert_close(given[0][i, 1 + n], patch + net.pos_embed[0, 1 + n])


def test_teacher_sees_unmasked_global_views_and_the_student_masked_ones(source):
    method = made(source)
    seen = []
    method.tokens = lambda net, image, mask=None, inner=method.tokens: (
        seen.append((net, image, mask)) or inner(net, image, mask)
    )
    p = puzzle(method, source)
    method.loss(p)
    (teacher, whole, no_mask1), (student, shown, mask), (again, local, no_mask2) = seen
    assert teacher is method.teacher[0] and student is again is method.encoder
    assert torch.equal(whole, p.both) and torch.equal(shown, p.both)
    assert torch.equal(local, torch.cat([p.local_views[:, 0], p.local_views[:, 1]]))
    assert no_mask1 is no_mask2 is None and torch.equal(mask, both(p)) and mask.any()


# ---- the loss


def test_patch_loss_and_gradients_match_lightly():
    lightly = pytest.importorskip("lightly.loss")
    mask = Rng(1).coin(6, 3, 4, p=0.3)
    mask[2] = False  # an image without a mask
    m = int(mask.sum())
    teacher, student, center = Rng(2).normal(m, 5), Rng(3).normal(m, 5), Rng(4).normal(5)
    a, b = (student.clone().requires_grad_() for _ in range(2))
    theirs = lightly.IBOTPatchLoss(output_dim=5, teacher_temp=0.05, student_temp=0.1)
    theirs.center.center = center[None]
    expected = theirs(teacher, b, mask)
    target = dino.teacher_probs(teacher, center, torch.tensor(0.05))
    found = ibot.mean_per_image(-(target * (a / 0.1).log_softmax(1)).sum(1), mask.flatten(1))
    found.backward()
    expected.backward()
    assert_close(found, expected)
    assert_close(a.grad, b.grad)


def slow(method, p):
    """Both losses as in the text, in loops over views, images and patches.

    The head gets all tokens of the global views at once, then all of the local ones (`main_ibot.py`), which matters to
    batch norms only.
    """
    t, mask, b = method.config.temperature, both(p), len(p.view1)
    encoder, head = method.teacher
    local = torch.cat([p.local_views[:, i] for i in range(p.local_views.shape[1])])
    teacher_logits = head(method.tokens(encoder, p.both))
    own = method.head(method.tokens(method.encoder, p.both, mask))
    own_local = method.head(method.tokens(method.encoder, local))[:, 0]
    (whole, patches), (own_whole, own_patches) = ((x[:, 0], x[:, 1:]) for x in (teacher_logits, own))
    views = torch.cat([own_whole, own_local]).unflatten(0, (-1, b))

    def cost(teacher, student, center):
        target = ((teacher - center) / method.teacher_temp).softmax(0)
        return -(target * (student / t).log_softmax(0)).sum().item()

    of_images = [
        cost(whole[b * own + i], views[v][i], method.center)
        for own in (0, 1)
        for v in range(len(views))
        if v != own
        for i in range(b)
    ]
    of_patches = []
    for i in range(2 * b):
        which = mask[i].flatten().nonzero().flatten().tolist()
        costs = [cost(patches[i, n], own_patches[i, n], method.patch_center) for n in which]
        of_patches.append(sum(costs) / max(1, len(costs)))
    return sum(of_images) / len(of_images), sum(of_patches) / len(of_patches)


@pytest.mark.parametrize("use_bn_in_head", [True, False])
@pytest.mark.parametrize("form", FORMS[:3])
def test_loss_is_the_sum_of_both_losses_with_separate_centers(source, form, use_bn_in_head):
    method = made(source, ibot.Config(**NARROW, use_bn_in_head=use_bn_in_head, temperature=0.2), form)
    method.center.copy_(Rng(3).normal(32) / 4)
    method.patch_center.copy_(Rng(4).normal(32) / 4)
    method.teacher_temp.fill_(0.09)
    p = puzzle(method, source, 4)
    with torch.no_grad():
        found, expected = method.loss(p), slow(method, p)
    close = {"atol": 1e-4, "rtol": 1e-4}
    assert_close((found.parts["cls"].item(), found.parts["patch"].item()), expected, **close)
    assert_close(found.total.item(), sum(expected), **close)


def test_only_masked_patches_get_a_gradient_from_the_patch_loss(source):
    """Every masked one does."""
    method = made(source, ibot.Config(**NARROW, use_bn_in_head=False))
    p, kept = puzzle(method, source), []
    method.tokens = lambda *given, inner=method.tokens: kept.append(inner(*given)) or kept[-1]
    loss = method.loss(p)
    [gradient] = torch.autograd.grad(loss.parts["patch"], kept[1])
    assert torch.equal(gradient[:, 1:].abs().sum(2) > 0, both(p).flatten(1))
    assert not gradient[:, 0].any()


@pytest.mark.parametrize("mask", [0, 1])
def test_a_batch_may_have_one_masked_patch_or_none(source, mask):
    method = made(source, ibot.Config(**NARROW, mask_probability=0.0))
    p = puzzle(method, source)
    p.view1_mask[0, 0, :mask] = True
    loss = method.loss(p)
    loss.total.backward()
    assert loss.total.isfinite() and all(x.isfinite().all() for x in method.state_dict().values())
    assert (loss.parts["patch"] > 0) == mask


def test_without_masked_patches_the_loss_is_dinos(source):
    method = made(source, ibot.Config(**NARROW, mask_probability=0.0, use_bn_in_head=False))
    p = puzzle(method, source)
    loss = method.loss(p)
    assert not both(p).any() and loss.parts["patch"] == 0
    assert_close(loss.total, dino.DINO.loss(method, p).total)
    loss.total.backward()
    assert not method.mask_token.grad.any()


def test_local_views_are_optional(source):
    method = made(
        source, ibot.Config(**NARROW | {"local_crops": 0}, mask_probability=0.0, use_bn_in_head=False)
    )
    p = puzzle(method, source)
    assert_close(method.loss(p).total, dino.DINO.loss(method, p).total)


def test_both_initial_losses_are_at_chance(source):
    config = ibot.Config(local_crops=2, prototypes=256, width=4096, hidden=16, mask_probability=1.0)
    method = made(source, config)
    with torch.no_grad():
        parts = method.loss(puzzle(method, source, 16)).parts
    assert abs(parts["cls"].item() - math.log(256)) < 0.1
    assert abs(parts["patch"].item() - math.log(256)) < 0.1


# ---- state


def test_each_center_moves_towards_its_own_mean_on_all_processes(source):
    """The patches' mean is over all of them, masked or not, as the teacher sees them."""
    method = made(source)
    p = puzzle(method, source)
    encoder, head = method.teacher
    with torch.no_grad():
        teacher_logits = head(method.tokens(encoder, p.both))
        of_images, of_patches = method.loss(p).carry
        assert_close(of_images, teacher_logits[:, 0].mean(0)[None])
        assert_close(of_patches, teacher_logits[:, 1:].flatten(0, 1).mean(0)[None])
        carry = tuple(torch.cat([x, 3 * x]) for x in (of_images, of_patches))
        before = [w.clone() for w in method.teacher.parameters()]
        for w in (*method.encoder.parameters(), *method.head.parameters()):
            w += 1
        method.after_step(carry, Plan.of(100, 100).at(50))
    assert_close(method.center, 0.1 * 2 * of_images[0])
    assert_close(method.patch_center, 0.1 * 2 * of_patches[0])
    assert method.teacher_temp.item() == pytest.approx(0.07)
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        assert ((new - old).abs() > 0).all()


def test_teacher_gets_no_gradient_and_all_other_parameters_do(source):
    method = made(source, ibot.Config(**NARROW, mask_probability=1.0))
    method.loss(puzzle(method, source)).total.backward()
    assert all(w.grad is None for w in method.teacher.parameters())
    assert all(w.grad is not None and w.grad.any() for w in method.parameters() if w.requires_grad)


# ---- recipes and errors


def test_encoders_other_than_plain_vits_are_refused_in_one_line(source):
    for encoder in ("resnet_small:width=8", "deit_tiny_distilled_patch16_224:patch_size=4,depth=1"):
        with pytest.raises(UserError, match="is not one; try --encoder vit_tiny") as wrong:
            made(source, encoder=encoder)
        assert "\n" not in str(wrong.value)


def test_local_views_are_smaller_if_the_vit_takes_any_size(source):
    some, one = made(source), made(source, encoder=VIT)
    assert (some.side, some.local_size, some.grid) == (24, 12, (6, 6))
    assert (one.side, one.local_size, one.grid) == (32, 32, (8, 8))
    assert made(source, encoder=ibot.Config.encoder).grid == (6, 6)


def test_paper_recipe_matches_the_released_code():
    paper, train = ibot.Paper(), ibot.Paper.train
    assert (paper.prototypes, paper.width, paper.hidden, paper.use_bn_in_head) == (8192, 256, 2048, False)
    assert (paper.mask_probability, paper.mask_ratio) == (0.5, (0.1, 0.5))
    assert (paper.temperature, paper.teacher_temp, paper.center_momentum, paper.ema_momentum) == (
        0.1,
        (0.04, 0.07),
        0.9,
        0.996,
    )
    assert paper.teacher_temp_warmup * train.epochs == pytest.approx(
        30
    ) and paper.freeze_prototypes * train.epochs == pytest.approx(1)
    assert (paper.views.crop, paper.local_scale, paper.local_crops) == ((0.25, 1.0), (0.05, 0.25), 10)
    assert [(v.blur, v.solarize) for v in (*paper.augmentations(), paper.views)] == [
        (1, 0),
        (0.1, 0.2),
        (0.5, 0),
    ]
    assert (train.epochs, train.batch, train.optimizer, train.clip) == (800, 1024, "adamw", 3.0)
    assert train.lr == pytest.approx(0.002) and train.warmup * train.epochs == pytest.approx(10)
    small = dataclasses.replace(paper, prototypes=8)
    method = made(data.open("synthetic:2:224"), small, f"{paper.encoder},embed_dim=12,num_heads=1,depth=3")
    assert (method.side, method.local_size, method.grid) == (224, 96, (14, 14))
    for net, rates in ((method.encoder, [0, 0.05, 0.1]), (method.teacher[0], [0, 0, 0])):
        assert [getattr(block.drop_path1, "drop_prob", 0) for block in net.net.blocks] == pytest.approx(rates)
    assert (train.lr_end, train.weight_decay, train.weight_decay_end) == (1e-6, 0.04, 0.4)
