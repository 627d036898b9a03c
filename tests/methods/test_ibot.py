"""What a faithful iBOT must show (Zhou et al. 2022, and the authors' released code)."""

import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from pretask import data as sources
from pretask import encoders
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
NARROW = {"prototypes": 32, "width": 16, "hidden": 24, "small": 2}
"""a head that takes no time"""


@pytest.fixture(scope="module")
def source():
    return sources.open("synthetic:64:32")


def made(source, config=None, encoder=FORMS[0]):
    torch.manual_seed(0)
    return (config or ibot.Config(**NARROW)).build(encoders.build(encoder, 3, source.size), source).train()


def puzzle(method, source, n=8, seed=1):
    return method.pretext(source.__getitems__(torch.arange(n)), Rng(seed))


def both(p):
    return torch.cat([p.left_hidden, p.right_hidden])


def patches_of(images, which, side=4):
    """(B, C, H, W) -> the same, with random numbers in the patches that are true in `which` (B, h, w)."""
    pixels = which.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
    return torch.where(pixels, torch.rand_like(images), images)


# ---- masks


def test_half_the_views_hide_a_tenth_to_a_half_of_their_patches(source):
    """The others hide none; shares are drawn evenly between the two, and no patch is left out for good."""
    method = made(source, ibot.Config(**NARROW, side=1.0))
    method.grid = (14, 14)  # as in the paper
    hidden = method.hidden(4000, Rng(1))
    count = hidden.sum((1, 2))
    some = count[count > 0] / 196
    assert abs(len(some) / 4000 - 0.5) < 0.03
    assert 0.06 < some.min() < 0.12 and 0.48 < some.max() <= 0.5
    assert abs(some.mean() - 0.3) < 0.015 and abs(some.std() - 0.4 / math.sqrt(12)) < 0.01
    often = hidden.float().mean(0)
    assert often.min() > 0.01 and often.max() < 0.3
    assert torch.allclose(often, often.flip(0), atol=0.05) and torch.allclose(often, often.flip(1), atol=0.05)


def test_what_is_hidden_is_made_of_rectangles():
    """Most hidden patches have four hidden neighbours or an edge, unlike patches that are drawn one by one."""
    hidden = ibot.rectangles(torch.full((500,), 0.3 * 196), (14, 14), Rng(1))
    lonely = torch.nn.functional.conv2d(
        hidden[:, None].float(), torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])[None, None], padding=1
    )[:, 0][hidden]
    assert (lonely == 0).float().mean() < 0.02 and lonely.mean() > 2.5  # 1.2 one by one


@pytest.mark.parametrize("grid", [(14, 14), (6, 6), (3, 3), (1, 1), (4, 9)])
def test_never_more_is_hidden_than_allowed_and_nearly_as_much(grid):
    n = math.prod(grid)
    most = torch.linspace(0, 0.5 * n, 300)
    count = ibot.rectangles(most, grid, Rng(2)).sum((1, 2))
    assert (count <= most).all()
    assert ((most - count) / n).mean() < 0.5 / n + 0.03


def test_the_two_views_of_an_image_hide_different_patches(source):
    p = puzzle(made(source), source, 32)
    assert p.left_hidden.shape == p.right_hidden.shape == (32, 6, 6) and p.left_hidden.dtype == torch.bool
    assert (p.left_hidden != p.right_hidden).flatten(1).any(1).float().mean() > 0.5


# ---- the masked transformer


@pytest.mark.parametrize("form", FORMS)
def test_with_nothing_hidden_the_tokens_are_those_of_the_encoder(source, form):
    method = made(source, encoder=form).eval()
    p = puzzle(method, source, 4)
    net = method.encoder.net
    with torch.no_grad():
        tokens = method.tokens(method.encoder, p.left)
        assert torch.equal(tokens, method.tokens(method.encoder, p.left, torch.zeros_like(p.left_hidden)))
        assert_close(tokens[:, 0], method.encoder(p.left)["pool"])
        final = net.forward_features(method.encoder.normalised(p.left))
        assert_close(tokens[:, 1:], net.fc_norm(final[:, net.num_prefix_tokens :]))
    assert tokens.shape[1] == 1 + p.left_hidden[0].numel()


@pytest.mark.parametrize("form", FORMS)
def test_hidden_pixels_reach_no_token_of_the_student_and_seen_ones_all(source, form):
    method = made(source, ibot.Config(**NARROW, masked=1.0), form).eval()
    p = puzzle(method, source, 4)
    hidden = p.left_hidden
    with torch.no_grad():
        before = method.tokens(method.encoder, p.left, hidden)
        same = method.tokens(method.encoder, patches_of(p.left, hidden), hidden)
        other = method.tokens(method.encoder, patches_of(p.left, ~hidden), hidden)
    assert torch.equal(before, same)
    assert ((before - other).abs().amax(-1) > 1e-5).all()


def test_the_learned_token_stands_at_the_hidden_patches_own_places(source):
    """Slow: patch by patch, before the transformer's blocks."""
    method = made(source, ibot.Config(**NARROW, masked=1.0), VIT).eval()
    assert not method.unknown.any()  # at first (`masked_embed`)
    torch.nn.init.normal_(method.unknown)
    p, net, given = puzzle(method, source, 4), method.encoder.net, []
    net.blocks.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.no_grad():
        method.tokens(method.encoder, p.left, p.left_hidden)
        embedded = net.patch_embed(method.encoder.normalised(p.left))
        for i in range(4):
            for n, gone in enumerate(p.left_hidden[i].flatten().tolist()):
                patch = method.unknown if gone else embedded[i, n]
                assert_close(given[0][i, 1 + n], patch + net.pos_embed[0, 1 + n])


def test_the_teacher_sees_the_whole_large_views_and_the_student_masked_ones(source):
    method = made(source)
    seen = []
    method.tokens = lambda net, image, hidden=None, inner=method.tokens: (
        seen.append((net, image, hidden)) or inner(net, image, hidden)
    )
    p = puzzle(method, source)
    method.loss(p)
    (teacher, whole, none), (student, shown, hidden), (again, small, neither) = seen
    assert teacher is method.teacher[0] and student is again is method.encoder
    assert torch.equal(whole, p.both) and torch.equal(shown, p.both)
    assert torch.equal(small, torch.cat([p.small[:, 0], p.small[:, 1]]))
    assert none is neither is None and torch.equal(hidden, both(p)) and hidden.any()


# ---- the loss


def test_the_loss_of_patches_is_that_of_an_independent_implementation():
    lightly = pytest.importorskip("lightly.loss")
    hidden = Rng(1).coin(6, 3, 4, p=0.3)
    hidden[2] = False  # an image that hides nothing
    m = int(hidden.sum())
    teacher, student, centre = Rng(2).normal(m, 5), Rng(3).normal(m, 5), Rng(4).normal(5)
    a, b = (student.clone().requires_grad_() for _ in range(2))
    theirs = lightly.IBOTPatchLoss(output_dim=5, teacher_temp=0.05, student_temp=0.1)
    theirs.center.center = centre[None]
    expected = theirs(teacher, b, hidden)
    target = dino.assigned(teacher, centre, torch.tensor(0.05))
    found = ibot.each_image(-(target * (a / 0.1).log_softmax(1)).sum(1), hidden.flatten(1))
    found.backward()
    expected.backward()
    assert_close(found, expected)
    assert_close(a.grad, b.grad)


def slow(method, p):
    """Both losses from the text, in loops over views, images and patches.

    The head gets all tokens of the large views at once, then all of the small ones (`main_ibot.py`): with batch norms
    these count together, without them it makes no difference.
    """
    t, hidden, b = method.config.temperature, both(p), len(p.left)
    encoder, head = method.teacher
    small = torch.cat([p.small[:, i] for i in range(p.small.shape[1])])
    taught = head(method.tokens(encoder, p.both))
    own = method.head(method.tokens(method.encoder, p.both, hidden))
    own_small = method.head(method.tokens(method.encoder, small))[:, 0]
    (whole, patches), (own_whole, own_patches) = ((x[:, 0], x[:, 1:]) for x in (taught, own))
    views = torch.cat([own_whole, own_small]).unflatten(0, (-1, b))

    def cost(teacher, student, centre):
        target = ((teacher - centre) / method.sharpness).softmax(0)
        return -(target * (student / t).log_softmax(0)).sum().item()

    of_images = [
        cost(whole[b * own + i], views[v][i], method.centre)
        for own in (0, 1)
        for v in range(len(views))
        if v != own
        for i in range(b)
    ]
    of_patches = []
    for i in range(2 * b):
        which = hidden[i].flatten().nonzero().flatten().tolist()
        costs = [cost(patches[i, n], own_patches[i, n], method.patch_centre) for n in which]
        of_patches.append(sum(costs) / max(1, len(costs)))
    return sum(of_images) / len(of_images), sum(of_patches) / len(of_patches)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("form", FORMS[:3])
def test_the_loss_is_the_sum_of_both_and_each_has_its_own_centre(source, form, norm):
    method = made(source, ibot.Config(**NARROW, norm=norm, temperature=0.2), form)
    method.centre.copy_(Rng(3).normal(32) / 4)
    method.patch_centre.copy_(Rng(4).normal(32) / 4)
    method.sharpness.fill_(0.09)
    p = puzzle(method, source, 4)
    with torch.no_grad():
        found, expected = method.loss(p), slow(method, p)
    close = {"atol": 1e-4, "rtol": 1e-4}
    assert_close((found.parts["images"].item(), found.parts["patches"].item()), expected, **close)
    assert_close(found.total.item(), sum(expected), **close)


def test_patches_that_are_not_hidden_are_not_scored(source):
    """No gradient reaches their tokens from the loss of patches; from each hidden one it does."""
    method = made(source, ibot.Config(**NARROW, norm=False))
    p, kept = puzzle(method, source), []
    method.tokens = lambda *given, inner=method.tokens: kept.append(inner(*given)) or kept[-1]
    loss = method.loss(p)
    [gradient] = torch.autograd.grad(loss.parts["patches"], kept[1])
    assert torch.equal(gradient[:, 1:].abs().sum(2) > 0, both(p).flatten(1))
    assert not gradient[:, 0].any()


@pytest.mark.parametrize("hidden", [0, 1])
def test_a_batch_may_hide_one_patch_or_none(source, hidden):
    method = made(source, ibot.Config(**NARROW, masked=0.0))
    p = puzzle(method, source)
    p.left_hidden[0, 0, :hidden] = True
    loss = method.loss(p)
    loss.total.backward()
    assert loss.total.isfinite() and all(x.isfinite().all() for x in method.state_dict().values())
    assert (loss.parts["patches"] > 0) == hidden


def test_without_any_hidden_patch_the_loss_of_patches_is_0_and_that_of_images_is_dinos(source):
    method = made(source, ibot.Config(**NARROW, masked=0.0, norm=False))
    p = puzzle(method, source)
    loss = method.loss(p)
    assert not both(p).any() and loss.parts["patches"] == 0
    assert_close(loss.total, dino.DINO.loss(method, p).total)
    loss.total.backward()
    assert not method.unknown.grad.any()


def test_without_small_views_there_are_two(source):
    method = made(source, ibot.Config(**NARROW | {"small": 0}, masked=0.0, norm=False))
    p = puzzle(method, source)
    assert_close(method.loss(p).total, dino.DINO.loss(method, p).total)


def test_at_the_start_both_losses_are_those_of_guessing_among_the_prototypes(source):
    config = ibot.Config(small=2, prototypes=256, width=4096, hidden=16, masked=1.0)
    method = made(source, config)
    with torch.no_grad():
        parts = method.loss(puzzle(method, source, 16)).parts
    assert abs(parts["images"].item() - math.log(256)) < 0.1
    assert abs(parts["patches"].item() - math.log(256)) < 0.1


# ---- what is remembered


def test_each_centre_moves_towards_its_own_mean_on_all_processes(source):
    """That of the patches counts all of them, hidden or not, as the teacher sees them."""
    method = made(source)
    p = puzzle(method, source)
    encoder, head = method.teacher
    with torch.no_grad():
        taught = head(method.tokens(encoder, p.both))
        of_images, of_patches = method.loss(p).carry
        assert_close(of_images, taught[:, 0].mean(0)[None])
        assert_close(of_patches, taught[:, 1:].flatten(0, 1).mean(0)[None])
        carry = tuple(torch.cat([x, 3 * x]) for x in (of_images, of_patches))
        before = [w.clone() for w in method.teacher.parameters()]
        for w in (*method.encoder.parameters(), *method.head.parameters()):
            w += 1
        method.after_step(carry, Plan.of(100, 100).at(50))
    assert_close(method.centre, 0.1 * 2 * of_images[0])
    assert_close(method.patch_centre, 0.1 * 2 * of_patches[0])
    assert method.sharpness.item() == pytest.approx(0.07)
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        assert ((new - old).abs() > 0).all()


def test_the_teacher_gets_no_gradient_and_everything_else_does(source):
    method = made(source, ibot.Config(**NARROW, masked=1.0))
    method.loss(puzzle(method, source)).total.backward()
    assert all(w.grad is None for w in method.teacher.parameters())
    assert all(w.grad is not None and w.grad.any() for w in method.parameters() if w.requires_grad)


# ---- recipes and mistakes


def test_an_encoder_that_is_no_plain_transformer_is_refused_in_one_line(source):
    for encoder in ("resnet_small:width=8", "deit_tiny_distilled_patch16_224:patch_size=4,depth=1"):
        with pytest.raises(UserError, match="is none; try --encoder vit_tiny") as wrong:
            made(source, encoder=encoder)
        assert "\n" not in str(wrong.value)


def test_small_views_are_small_where_the_transformer_takes_any_size(source):
    some, one = made(source), made(source, encoder=VIT)
    assert (some.side, some.small_side, some.grid) == (24, 12, (6, 6))
    assert (one.side, one.small_side, one.grid) == (32, 32, (8, 8))
    assert made(source, encoder=ibot.Config.encoder).grid == (6, 6)


def test_the_paper_recipe_is_that_of_the_released_code():
    paper, train = ibot.Paper(), ibot.Paper.train
    assert (paper.prototypes, paper.width, paper.hidden, paper.norm) == (8192, 256, 2048, False)
    assert (paper.masked, paper.hides) == (0.5, (0.1, 0.5))
    assert (paper.temperature, paper.sharp, paper.centring, paper.keep) == (0.1, (0.04, 0.07), 0.9, 0.996)
    assert paper.warm * train.epochs == pytest.approx(30) and paper.frozen * train.epochs == pytest.approx(1)
    assert (paper.views.crop, paper.small_crop, paper.small) == ((0.25, 1.0), (0.05, 0.25), 10)
    assert [(v.blur, v.solarize) for v in (*paper.pair(), paper.views)] == [
        (1, 0),
        (0.1, 0.2),
        (0.5, 0),
    ]
    assert (train.epochs, train.batch, train.optimizer, train.clip) == (800, 1024, "adamw", 3.0)
    assert train.lr == pytest.approx(0.002) and train.warmup * train.epochs == pytest.approx(10)
    narrow = dataclasses.replace(paper, prototypes=8)
    method = made(
        sources.open("synthetic:2:224"), narrow, f"{paper.encoder},embed_dim=12,num_heads=1,depth=3"
    )
    assert (method.side, method.small_side, method.grid) == (224, 96, (14, 14))
    for net, rates in ((method.encoder, [0, 0.05, 0.1]), (method.teacher[0], [0, 0, 0])):
        assert [getattr(block.drop_path1, "drop_prob", 0) for block in net.net.blocks] == pytest.approx(rates)
    assert (train.lr_end, train.weight_decay, train.weight_decay_end) == (1e-6, 0.04, 0.4)
