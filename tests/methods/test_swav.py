"""Fidelity of SwAV (Caron et al. 2020, eq. 2 to 5, and the released code)."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import data, encoders
from pretask.config import lr_factor
from pretask.methods import swav
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.train.trainer import group_lr


@pytest.fixture
def method():
    torch.manual_seed(0)
    source = data.open("synthetic:32:16")
    config = swav.Config(prototypes=32, local_crops=2, local_size=0.5)
    made = config.build(encoders.build("resnet_small:width=16", 3, 16), source).train()
    made.puzzle = made.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    return made


def cosines(n, k, seed=0):
    return F.normalize(Rng(seed).normal(n, 8), dim=1) @ F.normalize(Rng(seed, "k").normal(k, 8), dim=1).T


def test_codes_have_row_sums_1_and_converge_to_equal_column_sums():
    q = swav.sinkhorn(cosines(24, 6), 0.05, 500)
    assert_close(q.sum(1), torch.ones(24))
    assert_close(q.sum(0), torch.full((6,), 4.0), rtol=1e-3, atol=0)
    assert (q >= 0).all()


def test_codes_have_the_form_of_the_optimum():
    """Q = Diag(u) exp(S / ε) Diag(v) (eq. 5): the rest after removing both factors is constant."""
    s = cosines(12, 5)
    rest = swav.sinkhorn(s, 0.5, 200).log() - s / 0.5
    assert_close(
        rest - rest.mean(0) - rest.mean(1, keepdim=True) + rest.mean(), torch.zeros(12, 5), rtol=0, atol=1e-4
    )


def test_codes_are_even_even_if_one_prototype_is_nearest_to_all():
    s = cosines(16, 4) * 0.01
    s[:, 0] += 1
    assert (s.argmax(1) == 0).all()
    assert_close(swav.sinkhorn(s, 0.05, 3).sum(0), torch.full((4,), 4.0), rtol=0.05, atol=0)


def test_values_and_gradients_match_lightly(method):
    lightly = pytest.importorskip("lightly.loss")
    scores = (0.5 * Rng(1).normal(4, 32, 8)).requires_grad_()
    other = scores.detach().clone().requires_grad_()
    ours = method.swapped_loss(scores)
    theirs = lightly.SwaVLoss()([other[0], other[1]], [other[2], other[3]])
    ours.backward()
    theirs.sum().backward()
    assert_close(ours, theirs[0])
    assert_close(scores.grad, other.grad)


def test_initial_loss_is_at_chance(method):
    assert abs(method.loss(method.puzzle).total - math.log(32)) < 1.0
    assert_close(method.swapped_loss(torch.zeros(4, 32, 32)).item(), math.log(32))


def test_a_view_does_not_predict_its_own_code(method):
    """The loss is highest for two confident views that disagree."""
    own, other = (
        20 * F.one_hot(torch.arange(32) % 4, 4).float(),
        20 * F.one_hot((torch.arange(32) + 1) % 4, 4).float(),
    )
    different, equal = (method.swapped_loss(torch.stack([own, view]) * 0.05) for view in (other, own))
    assert different > 5 and equal < 0.01


def test_local_views_predict_codes_but_provide_none(method):
    assert method.puzzle.local_views.shape == (32, 2, 3, 8, 8)
    scores = method.scores(method.forward_views(method.project, method.puzzle))
    assert scores.shape == (4, 32, 32)
    leaf = scores.detach().clone().requires_grad_()
    method.swapped_loss(leaf).backward()
    assert (leaf.grad.flatten(1).abs().sum(1) > 0).all()
    large = swav.MultiCrop(method.puzzle.view1, method.puzzle.view2, method.puzzle.local_views[:, :0])
    assert method.forward_views(method.project, large).shape == (2, 32, 128)


def test_local_views_keep_the_order_of_their_images(method):
    method.eval()
    every = method.forward_views(method.project, method.puzzle)
    assert_close(every[1], method.project(method.encoder(method.puzzle.view2)["pool"]))
    assert_close(every[3], method.project(method.encoder(method.puzzle.local_views[:, 1])["pool"]))


def test_batch_norms_of_the_projector_see_all_views_at_once(method):
    """`forward` of `src/resnet50.py`: one size after the other through the network, all together through the head."""
    p, z = method.puzzle, method.forward_views(method.project, method.puzzle)
    pools = [
        method.encoder(x)["pool"] for x in (p.both, torch.cat([p.local_views[:, 0], p.local_views[:, 1]]))
    ]
    assert_close(z, F.normalize(method.projector(torch.cat(pools)), dim=1).unflatten(0, (4, 32)))
    separate = torch.cat([F.normalize(method.projector(pool), dim=1) for pool in pools]).unflatten(0, (4, 32))
    assert (method.scores(z) - method.scores(separate)).abs().max() > 0.02
    assert_close(method.loss(p).total, method.swapped_loss(method.scores(z)))


def test_scores_are_cosines(method):
    z = method.project(method.encoder(method.puzzle.view1)["pool"])
    before = method.scores(z)
    assert_close(before, F.cosine_similarity(z[:, None], method.prototypes.weight[None], dim=2))
    with torch.no_grad():
        method.prototypes.weight.mul_(7)
    assert_close(method.scores(z), before)


def test_prototypes_are_frozen_at_first(method):
    train = swav.Config().train
    (optimizer,) = method.optimizers(train)
    (frozen,) = [g for g in optimizer.param_groups if "after" in g]
    (weight,) = frozen["params"]
    assert weight is method.prototypes.weight and frozen["weight_decay"] == train.weight_decay
    frozen["peak"] = 1.0
    assert (
        group_lr(frozen, train, Plan.of(200, 200).at(1)) == 0
        and group_lr(frozen, train, Plan.of(200, 200).at(100)) > 0
    )


# ---- the queue (sec. 3.1, "Working with small batches")


def with_queue(rows, start=0.5, **config):
    torch.manual_seed(0)
    source = data.open("synthetic:32:16")
    config = swav.Config(prototypes=8, width=6, local_crops=1, queue=rows, queue_start=start, **config)
    return config.build(encoders.build("resnet_small:width=16", 3, 16), source).train()


def rows_of(seed, n=4):
    return F.normalize(Rng(seed).normal(n, 2, 6), dim=2)


def slow_codes(rows, epsilon):
    """Sinkhorn-Knopp in loops: columns get equal sums, then rows a sum of 1; three times."""
    q = [[math.exp(s / epsilon) for s in row] for row in rows]
    for _ in range(3):
        columns = [sum(column) for column in zip(*q, strict=True)]
        q = [[x / c for x, c in zip(row, columns, strict=True)] for row in q]
        q = [[x / sum(row) for x in row] for row in q]
    return torch.tensor(q)


def test_codes_of_a_batch_are_computed_together_with_a_full_queue():
    method = with_queue(8)
    for step, seed in enumerate((1, 2, 3)):
        method.after_step(rows_of(seed), Plan.of(4, 4).at(min(3, step + 2)))
    z = F.normalize(Rng(9).normal(3, 5, 6), dim=2)
    own = method.scores(z)
    earlier = torch.cat([rows_of(3), rows_of(2)])  # (8, 2, D), the oldest rows have left
    for view in (0, 1):
        every = torch.cat([method.scores(earlier[:, view]), own[view]])
        expected = slow_codes(every.tolist(), 0.05)[8:]
        assert_close(method.assign(view, own[view]), expected)
        alone = slow_codes(own[view].tolist(), 0.05)
        assert (alone - expected).abs().max() > 0.05
    costs = [
        -(method.assign(view, own[view]) * (own[other] / 0.1).log_softmax(1)).sum(1).mean()
        for view in (0, 1)
        for other in range(3)
        if other != view
    ]
    assert_close(method.swapped_loss(own), sum(costs) / 4)


def test_queue_scores_use_the_current_prototypes():
    method = with_queue(4, start=0.0)
    method.after_step(rows_of(1), Plan.of(4, 4).at(0))
    own = method.scores(F.normalize(Rng(9).normal(5, 6), dim=1))
    before = method.assign(0, own)
    with torch.no_grad():
        method.prototypes.weight.copy_(method.prototypes.weight.flip(0))
    assert (method.assign(0, own) - before).abs().max() > 1e-3


def test_queue_is_filled_from_queue_start_on_and_used_once_it_is_full():
    method = with_queue(8)
    own = method.scores(F.normalize(Rng(9).normal(5, 6), dim=1))
    alone = slow_codes(own.tolist(), 0.05)
    for step in range(3):  # the first two are before `queue_start`
        assert_close(method.assign(0, own), alone)
        method.after_step(rows_of(step), Plan.of(4, 4).at(step))
    assert method.queue_filled == 4
    assert_close(method.assign(0, own), alone)
    method.after_step(rows_of(3), Plan.of(4, 4).at(3))
    assert (method.assign(0, own) - alone).abs().max() > 1e-3


def test_queue_is_saved_in_the_state_dict():
    method, again = with_queue(8, start=0.0), with_queue(8, start=0.0)
    for seed in (1, 2):
        method.after_step(rows_of(seed), Plan.of(4, 4).at(0))
    again.load_state_dict(method.state_dict())
    own = method.scores(F.normalize(Rng(9).normal(5, 6), dim=1))
    assert torch.equal(again.assign(1, own), method.assign(1, own))
    assert (with_queue(8).assign(1, own) - method.assign(1, own)).abs().max() > 1e-3


def test_carry_holds_projections_of_both_global_views_and_may_exceed_the_queue(method):
    method.eval()
    carry = method.loss(method.puzzle).carry
    for view, image in enumerate((method.puzzle.view1, method.puzzle.view2)):
        assert_close(carry[:, view], method.project(method.encoder(image)["pool"]))
    short = with_queue(3, start=0.0)
    short.after_step(rows_of(1), Plan.of(4, 4).at(0))
    assert torch.equal(short.queue, rows_of(1)[:3].transpose(0, 1)) and short.queue_filled == 3


def test_recipes_use_a_queue_only_for_small_batches():
    """Sec. 3.1: if there are fewer images than prototypes; `scripts/swav_*_pretrain.sh`."""
    for config in (swav.Config(), swav.Paper(), swav.Paper256()):
        assert (config.train.batch < config.prototypes) == (config.queue > 0)
    assert (swav.Paper256().queue, swav.Paper256().queue_start * swav.Paper256.train.epochs) == (3840, 15)


# ---- the released recipes


def test_learning_rates_match_the_released_scripts():
    """`scripts/swav_800ep_pretrain.sh` and `swav_200ep_bs256_pretrain.sh`, by the formula of `main_swav.py`."""
    runs = ((swav.Paper.train, 800, 10, 0.3, 4.8, 0.0048), (swav.Paper256.train, 200, 0, 0.0, 0.6, 0.0006))
    for train, epochs, warmup, start, peak, end in runs:
        for epoch in range(0, epochs, 5):
            if epoch < warmup:
                expected = start + (peak - start) * epoch / warmup
            else:
                turn = math.pi * (epoch - warmup) / (epochs - warmup)
                expected = end + 0.5 * (peak - end) * (1 + math.cos(turn))
            assert train.lr * lr_factor(train, epoch / epochs) == pytest.approx(expected)


def test_paper_recipe_applies_larc_to_every_parameter(method):
    """NVIDIA/apex, `LARC(clip=False)` around SGD, written out: without an exception for gains, biases or prototypes."""
    train = dataclasses.replace(swav.Paper.train, weight_decay=0.1)
    (optimizer,) = method.optimizers(train)
    method.loss(method.puzzle).total.backward()
    names = {p: name for name, p in method.named_parameters()}
    before = {p: p.detach().clone() for p in names}
    optimizer.step()
    for p, old in before.items():
        norm, grad_norm = old.norm(), p.grad.norm()
        if norm > 0 and grad_norm > 0:
            trust = 0.001 * norm / (grad_norm + 0.1 * norm + 1e-8)
            expected = old - 4.8 * trust * (p.grad + 0.1 * old)
        else:
            expected = old - 4.8 * p.grad
        assert_close(p.detach(), expected, msg=lambda m, p=p: f"{names[p]}: {m}")
