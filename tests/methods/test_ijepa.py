"""Fidelity of I-JEPA (Assran et al. 2023, and the authors' released code)."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import data, encoders
from pretask.config import lr_factor, weight_decay_factor
from pretask.encoders.vit import encode_visible, patchify, scatter_tokens, unpatchify
from pretask.methods import ijepa
from pretask.rng import Rng
from pretask.train import requirements
from pretask.train.plan import Plan
from pretask.types import UserError

VIT = "vit_tiny_patch16_224:patch_size=4,embed_dim=48,depth=2,global_pool=avg,fc_norm=False,class_token=False"


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:64:32")


def made(source, encoder=VIT, **config):
    torch.manual_seed(0)
    recipe = ijepa.Config(**config)
    return recipe.build(recipe.build_encoder(encoder, source), source)


def puzzle(method, source, seed=0, n=16):
    return method.pretext(source.__getitems__(torch.arange(n)), Rng(seed))


# ---- blocks


@pytest.mark.parametrize(
    ("area", "aspect", "sides"),
    [(0.15, 1.0, (3, 3)), (0.2, 1.5, (4, 3)), (0.2, 0.75, (3, 4)), (1.0, 1.0, (8, 8)), (1.0, 4.0, (8, 4))],
)
def test_block_size_follows_from_area_and_aspect_and_fits(area, aspect, sides):
    assert ijepa.block_size(torch.tensor(area), torch.tensor(aspect), (8, 8)) == sides


def test_block_position_is_anywhere_that_it_fits():
    at = ijepa.block_masks((2, 3), (4, 5), Rng(0).uniform(500, 2))
    assert at.shape == (500, 4, 5) and (at.sum((1, 2)) == 6).all()
    corners = {(int(rows.any(1).int().argmax()), int(rows.any(0).int().argmax())) for rows in at}
    assert corners == {(r, c) for r in range(3) for c in range(3)}
    for one in at:
        rows, columns = one.any(1).nonzero()[:, 0], one.any(0).nonzero()[:, 0]
        assert one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


@pytest.mark.parametrize("seed", range(8))
def test_blocks_are_four_rectangles_of_one_size_disjoint_from_the_context(source, seed):
    p = puzzle(made(source), source, seed)
    assert p.masked.shape[:2] == (16, 4) and 6 <= p.masked.shape[2] <= 15
    for visible, blocks in zip(p.visible, p.masked, strict=True):
        assert len(set(visible.tolist())) == len(visible) > ijepa.MIN_KEEP
        assert not set(visible.tolist()) & set(blocks.flatten().tolist())
        for block in blocks:
            rows, columns = (block // 8).unique(), (block % 8).unique()
            assert len(rows) * len(columns) == len(block)
            assert rows[-1] - rows[0] + 1 == len(rows) and columns[-1] - columns[0] + 1 == len(columns)


def test_a_nearly_empty_context_is_replaced_by_everything_outside_the_blocks(source):
    method = made(source, context_scale=(0.02, 0.02))
    p = puzzle(method, source)
    assert p.visible.shape[1] > ijepa.MIN_KEEP


def test_contexts_cover_all_of_an_image(source):
    method = made(source)
    counts = torch.cat([puzzle(method, source, seed).visible.flatten() for seed in range(20)]).bincount(
        minlength=64
    )
    assert (counts > 0).all() and counts.max() < 6 * counts.float().mean()


def test_puzzle_shows_the_context_and_grays_the_rest(source):
    p = puzzle(made(source), source)
    shown, whole = patchify(p.shown, (4, 4)), patchify(p.image, (4, 4))
    for i in range(16):
        context = torch.zeros(64, dtype=torch.bool)
        context[p.visible[i]] = True
        assert torch.equal(shown[i][context], whole[i][context])
        assert (shown[i][~context] == ijepa.GRAY).all()


# ---- prediction


def test_masked_pixels_change_the_target_but_not_the_prediction(source):
    method = made(source).eval()
    p = puzzle(method, source)
    flat = p.masked.flatten(1)
    noisy_image = unpatchify(
        scatter_tokens(patchify(p.image, (4, 4)), flat, torch.rand(*flat.shape, 48)), (8, 8), (4, 4)
    )
    noisy = dataclasses.replace(p, image=noisy_image)
    with torch.no_grad():
        assert torch.equal(method.predicted(p), method.predicted(noisy))
        assert (method.target(p) - method.target(noisy)).abs().mean() > 0.05


def test_loss_is_smooth_l1_to_the_teachers_normalized_tokens(source):
    method = made(source).eval()
    p = puzzle(method, source, n=4)
    with torch.no_grad():
        tokens = method.teacher.net.forward_features((p.image - method.teacher.mean) / method.teacher.std)
        predicted, total, count = method.predicted(p), 0.0, 0
        for i in range(4):
            for m, block in enumerate(p.masked[i]):
                for t, place in enumerate(block):
                    token = tokens[i, place]
                    token = (token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt()
                    d = (predicted[i, m, t] - token).abs()
                    total += torch.where(d < 1, d.square() / 2, d - 0.5).sum()
                    count += len(d)
        assert_close(method.loss(p).total, total / count)


def test_each_block_is_predicted_alone_and_each_patch_by_its_position(source):
    method = made(source).eval()
    p = puzzle(method, source)
    alone = dataclasses.replace(p, masked=p.masked[:, 2:3])
    mixed = torch.randperm(p.masked.shape[2])
    with torch.no_grad():
        every = method.predicted(p)
        assert_close(method.predicted(alone), every[:, 2:3], atol=1e-5, rtol=1e-4)
        other = method.predicted(dataclasses.replace(p, masked=p.masked[..., mixed]))
        assert_close(other, every[:, :, mixed], atol=1e-5, rtol=1e-4)
        assert (every[:, 0, 0] - every[:, 0, 1]).abs().mean() > 1e-3


@pytest.mark.parametrize("form", [VIT, VIT.replace(",class_token=False", ""), f"{VIT},reg_tokens=2"])
def test_prefix_tokens_reach_the_predictor(source, form):
    method = made(source, form).eval()
    p = puzzle(method, source, n=4)
    tokens = encode_visible(method.encoder, p.shown, p.visible)
    assert tokens.shape[1] == p.visible.shape[1] + method.encoder.net.num_prefix_tokens
    assert method.predicted(p).shape == (*p.masked.shape, 48) == method.target(p).shape


# ---- the teacher


def test_teacher_gets_no_gradient_and_moves_by_ema_momentum(source):
    method = made(source)
    method.loss(puzzle(method, source)).total.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    before = [p.clone() for p in method.teacher.parameters()]
    for p in method.encoder.parameters():
        p.data += 1
    method.after_step(None, Plan.of(10, 10).at(0))
    for old, p in zip(before, method.teacher.parameters(), strict=True):
        assert_close(p, old + 0.02, rtol=0, atol=1e-5)


def test_ema_momentum_is_annealed_linearly(source):
    """Appendix A.1, and `momentum_scheduler` of `src/train.py`: at a quarter of the run 0.98 has become 0.985."""
    method = made(source, ema_momentum=0.98)
    before = [p.clone() for p in method.teacher.parameters()]
    for p in method.encoder.parameters():
        p.data += 1
    method.after_step(None, Plan.of(8, 8).at(2))
    for old, p in zip(before, method.teacher.parameters(), strict=True):
        assert_close(p, old + 0.015, rtol=0, atol=1e-5)


def test_paper_recipe_matches_appendix_a1():
    train = ijepa.Paper.train
    assert (train.epochs, train.batch, ijepa.Paper().ema_momentum, ijepa.Paper().predictor_width) == (
        600,
        2048,
        0.996,
        384,
    )
    for epoch in range(0, 600, 5):
        turn = math.pi * (epoch - 15) / 585
        lr = 1e-4 + 9e-4 * epoch / 15 if epoch < 15 else 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(turn)) / 2
        assert train.lr * lr_factor(train, epoch / 600) == pytest.approx(lr)
        weight_decay = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * epoch / 600)) / 2  # `CosineWDSchedule`
        assert train.weight_decay * weight_decay_factor(train, epoch / 600) == pytest.approx(weight_decay)


def test_blocks_reach_the_last_row_and_the_last_column(source):
    """The released sampler draws corners below `height - h`, which excludes them."""
    masked = torch.cat([puzzle(made(source), source, seed).masked.flatten() for seed in range(10)])
    counts = masked.bincount(minlength=64).view(8, 8)
    assert (counts[-1] > 0).all() and (counts[:, -1] > 0).all()


def test_the_teacher_is_exported(source):
    method = made(source)
    assert method.export() is method.teacher


def test_features_collapse_with_a_gradient_through_the_teacher(source):
    """A planted collapse: student and target are one network, both trained."""

    def spread(planted):
        method = made(source)
        if planted:
            del method.teacher
            method.teacher = method.encoder
            method.target = lambda p: type(method).target.__wrapped__(method, p)
        optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
        for step in range(20):
            loss = method.loss(puzzle(method, source, step, 32)).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x = method.encoder.eval()(puzzle(method, source, 99, 32).image)["pool"]
        return F.normalize(x, dim=1).std(0).mean().item()

    assert spread(True) < 0.5 * spread(False)


# ---- errors


@pytest.mark.parametrize(
    ("encoder", "config", "message"),
    [
        ("resnet_small:width=8", {}, "plain vision transformer"),
        (VIT, {"predictor_width": 30}, "not a multiple of 4"),
    ],
)
def test_unsupported_settings_are_refused_in_one_line(source, encoder, config, message):
    with pytest.raises(UserError, match=message):
        made(source, encoder, **config)


def test_images_need_at_least_sixteen_patches(source):
    net = encoders.build(VIT.replace("patch_size=4", "patch_size=16"), source.channels, source.size)
    with pytest.raises(UserError, match=r"ijepa takes images of 64 px or more.*a smaller patch_size"):
        requirements.check(ijepa.Config(), net, source)
