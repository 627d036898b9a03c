"""What a faithful SwAV must show (Caron et al. 2020, eq. 2 to 5, and the released code)."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import data as sources
from pretask import encoders
from pretask.config import schedule
from pretask.methods import swav
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.train.trainer import rate


@pytest.fixture
def method():
    torch.manual_seed(0)
    source = sources.open("synthetic:32:16")
    config = swav.Config(prototypes=32, small=2, small_side=0.5)
    made = config.build(encoders.build("resnet_small:width=16", 3, 16), source).train()
    made.puzzle = made.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    return made


def cosines(n, k, seed=0):
    return F.normalize(Rng(seed).normal(n, 8), dim=1) @ F.normalize(Rng(seed, "k").normal(k, 8), dim=1).T


def test_codes_are_shares_of_rows_and_in_the_end_even_over_prototypes():
    q = swav.codes(cosines(24, 6), 0.05, 500)
    assert_close(q.sum(1), torch.ones(24))
    assert_close(q.sum(0), torch.full((6,), 4.0), rtol=1e-3, atol=0)
    assert (q >= 0).all()


def test_codes_have_the_form_of_the_optimum():
    """Q = Diag(u) exp(S / ε) Diag(v) (eq. 5): what is left after both factors is the same everywhere."""
    s = cosines(12, 5)
    rest = swav.codes(s, 0.5, 200).log() - s / 0.5
    assert_close(
        rest - rest.mean(0) - rest.mean(1, keepdim=True) + rest.mean(), torch.zeros(12, 5), rtol=0, atol=1e-4
    )


def test_one_prototype_that_all_are_near_to_is_shared_out():
    s = cosines(16, 4) * 0.01
    s[:, 0] += 1
    assert (s.argmax(1) == 0).all()
    assert_close(swav.codes(s, 0.05, 3).sum(0), torch.full((4,), 4.0), rtol=0.05, atol=0)


def test_values_and_gradients_are_those_of_an_independent_implementation(method):
    lightly = pytest.importorskip("lightly.loss")
    scores = (0.5 * Rng(1).normal(4, 32, 8)).requires_grad_()
    other = scores.detach().clone().requires_grad_()
    ours = method.swapped(scores)
    theirs = lightly.SwaVLoss()([other[0], other[1]], [other[2], other[3]])
    ours.backward()
    theirs.sum().backward()
    assert_close(ours, theirs[0])
    assert_close(scores.grad, other.grad)


def test_at_the_start_every_prototype_is_as_likely(method):
    assert abs(method.loss(method.puzzle).total - math.log(32)) < 1.0
    assert_close(method.swapped(torch.zeros(4, 32, 32)).item(), math.log(32))


def test_a_view_is_not_asked_for_its_own_code(method):
    """Two views that disagree, each sure of itself, cost the most."""
    own, other = (
        20 * F.one_hot(torch.arange(32) % 4, 4).float(),
        20 * F.one_hot((torch.arange(32) + 1) % 4, 4).float(),
    )
    apart, together = (method.swapped(torch.stack([own, view]) * 0.05) for view in (other, own))
    assert apart > 5 and together < 0.01


def test_small_views_are_asked_but_give_no_codes(method):
    assert method.puzzle.small.shape == (32, 2, 3, 8, 8)
    scores = method.scores(method.through(method.embedded, method.puzzle))
    assert scores.shape == (4, 32, 32)
    leaf = scores.detach().clone().requires_grad_()
    method.swapped(leaf).backward()
    assert (leaf.grad.flatten(1).abs().sum(1) > 0).all()
    large = swav.Crops(method.puzzle.left, method.puzzle.right, method.puzzle.small[:, :0])
    assert method.through(method.embedded, large).shape == (2, 32, 128)


def test_small_views_come_in_the_order_of_their_images(method):
    method.eval()
    every = method.through(method.embedded, method.puzzle)
    assert_close(every[1], method.embedded(method.encoder(method.puzzle.right)["pool"]))
    assert_close(every[3], method.embedded(method.encoder(method.puzzle.small[:, 1])["pool"]))


def test_the_head_gets_all_views_at_once_as_its_batch_norm_shows(method):
    """`forward` of `src/resnet50.py`: one size after the other through the net, all together through the head."""
    p, z = method.puzzle, method.through(method.embedded, method.puzzle)
    pools = [method.encoder(x)["pool"] for x in (p.both, torch.cat([p.small[:, 0], p.small[:, 1]]))]
    assert_close(z, F.normalize(method.head(torch.cat(pools)), dim=1).unflatten(0, (4, 32)))
    apart = torch.cat([F.normalize(method.head(pool), dim=1) for pool in pools]).unflatten(0, (4, 32))
    assert (method.scores(z) - method.scores(apart)).abs().max() > 0.02
    assert_close(method.loss(p).total, method.swapped(method.scores(z)))


def test_scores_are_cosines(method):
    z = method.embedded(method.encoder(method.puzzle.left)["pool"])
    before = method.scores(z)
    assert_close(before, F.cosine_similarity(z[:, None], method.prototypes.weight[None], dim=2))
    with torch.no_grad():
        method.prototypes.weight.mul_(7)
    assert_close(method.scores(z), before)


def test_prototypes_stand_still_at_first(method):
    train = swav.Config().train
    (optimizer,) = method.optimizers(train)
    (held,) = [g for g in optimizer.param_groups if "after" in g]
    (weight,) = held["params"]
    assert weight is method.prototypes.weight and held["weight_decay"] == train.weight_decay
    held["peak"] = 1.0
    assert (
        rate(held, train, Plan.of(200, 200).at(1)) == 0 and rate(held, train, Plan.of(200, 200).at(100)) > 0
    )


# ---- the queue (sec. 3.1, "Working with small batches")


def with_queue(rows, start=0.5, **knobs):
    torch.manual_seed(0)
    source = sources.open("synthetic:32:16")
    config = swav.Config(prototypes=8, width=6, small=1, queue=rows, queue_start=start, **knobs)
    return config.build(encoders.build("resnet_small:width=16", 3, 16), source).train()


def rows_of(seed, n=4):
    return F.normalize(Rng(seed).normal(n, 2, 6), dim=2)


def slow_codes(rows, epsilon):
    """Sinkhorn and Knopp in loops: prototypes get equal shares, then every row a sum of 1; three times."""
    q = [[math.exp(s / epsilon) for s in row] for row in rows]
    for _ in range(3):
        columns = [sum(column) for column in zip(*q, strict=True)]
        q = [[x / c for x, c in zip(row, columns, strict=True)] for row in q]
        q = [[x / sum(row) for x in row] for row in q]
    return torch.tensor(q)


def test_a_full_queue_is_shared_out_with_the_batch_and_forgotten():
    method = with_queue(8)
    for step, seed in enumerate((1, 2, 3)):
        method.after_step(rows_of(seed), Plan.of(4, 4).at(min(3, step + 2)))
    z = F.normalize(Rng(9).normal(3, 5, 6), dim=2)
    own = method.scores(z)
    earlier = torch.cat([rows_of(3), rows_of(2)])  # (8, 2, D), the first rows are gone
    for view in (0, 1):
        every = torch.cat([method.scores(earlier[:, view]), own[view]])
        expected = slow_codes(every.tolist(), 0.05)[8:]
        assert_close(method.codes_of(view, own[view]), expected)
        alone = slow_codes(own[view].tolist(), 0.05)
        assert (alone - expected).abs().max() > 0.05
    costs = [
        -(method.codes_of(view, own[view]) * (own[other] / 0.1).log_softmax(1)).sum(1).mean()
        for view in (0, 1)
        for other in range(3)
        if other != view
    ]
    assert_close(method.swapped(own), sum(costs) / 4)


def test_a_queue_counts_by_the_prototypes_of_today():
    method = with_queue(4, start=0.0)
    method.after_step(rows_of(1), Plan.of(4, 4).at(0))
    own = method.scores(F.normalize(Rng(9).normal(5, 6), dim=1))
    before = method.codes_of(0, own)
    with torch.no_grad():
        method.prototypes.weight.copy_(method.prototypes.weight.flip(0))
    assert (method.codes_of(0, own) - before).abs().max() > 1e-3


def test_a_queue_that_is_not_full_is_not_counted_and_starts_when_it_is_told():
    method = with_queue(8)
    own = method.scores(F.normalize(Rng(9).normal(5, 6), dim=1))
    alone = slow_codes(own.tolist(), 0.05)
    for step in range(3):  # the first two are before half of the run
        assert_close(method.codes_of(0, own), alone)
        method.after_step(rows_of(step), Plan.of(4, 4).at(step))
    assert method.queued == 4
    assert_close(method.codes_of(0, own), alone)
    method.after_step(rows_of(3), Plan.of(4, 4).at(3))
    assert (method.codes_of(0, own) - alone).abs().max() > 1e-3


def test_a_queue_goes_with_the_weights_onto_the_disk():
    method, again = with_queue(8, start=0.0), with_queue(8, start=0.0)
    for seed in (1, 2):
        method.after_step(rows_of(seed), Plan.of(4, 4).at(0))
    again.load_state_dict(method.state_dict())
    own = method.scores(F.normalize(Rng(9).normal(5, 6), dim=1))
    assert torch.equal(again.codes_of(1, own), method.codes_of(1, own))
    assert (with_queue(8).codes_of(1, own) - method.codes_of(1, own)).abs().max() > 1e-3


def test_what_is_carried_are_the_features_of_both_large_views_and_may_exceed_the_queue(method):
    method.eval()
    carry = method.loss(method.puzzle).carry
    for view, image in enumerate((method.puzzle.left, method.puzzle.right)):
        assert_close(carry[:, view], method.embedded(method.encoder(image)["pool"]))
    short = with_queue(3, start=0.0)
    short.after_step(rows_of(1), Plan.of(4, 4).at(0))
    assert torch.equal(short.queue, rows_of(1)[:3].transpose(0, 1)) and short.queued == 3


def test_a_small_batch_has_a_queue_and_a_large_one_has_none():
    """Sec. 3.1: where there are fewer images than prototypes; `scripts/swav_*_pretrain.sh`."""
    for config in (swav.Config(), swav.Paper(), swav.Paper256()):
        assert (config.train.batch < config.prototypes) == (config.queue > 0)
    assert (swav.Paper256().queue, swav.Paper256().queue_start * swav.Paper256.train.epochs) == (3840, 15)


# ---- the released runs


def test_the_learning_rates_are_those_of_the_released_scripts():
    """`scripts/swav_800ep_pretrain.sh` and `swav_200ep_bs256_pretrain.sh`, by the formula of `main_swav.py`."""
    runs = ((swav.Paper.train, 800, 10, 0.3, 4.8, 0.0048), (swav.Paper256.train, 200, 0, 0.0, 0.6, 0.0006))
    for train, epochs, warmup, start, peak, end in runs:
        for epoch in range(0, epochs, 5):
            if epoch < warmup:
                expected = start + (peak - start) * epoch / warmup
            else:
                turn = math.pi * (epoch - warmup) / (epochs - warmup)
                expected = end + 0.5 * (peak - end) * (1 + math.cos(turn))
            assert train.lr * schedule(train, epoch / epochs) == pytest.approx(expected)


def test_every_step_of_the_paper_recipe_is_fitted_to_its_weight_as_by_larc(method):
    """NVIDIA/apex, `LARC(clip=False)` around SGD, written out: gains, biases and prototypes have no exception."""
    train = dataclasses.replace(swav.Paper.train, weight_decay=0.1)
    (optimizer,) = method.optimizers(train)
    method.loss(method.puzzle).total.backward()
    names = {p: name for name, p in method.named_parameters()}
    before = {p: p.detach().clone() for p in names}
    optimizer.step()
    for p, old in before.items():
        long, steep = old.norm(), p.grad.norm()
        if long > 0 and steep > 0:
            fitted = 0.001 * long / (steep + 0.1 * long + 1e-8)
            expected = old - 4.8 * fitted * (p.grad + 0.1 * old)
        else:
            expected = old - 4.8 * p.grad
        assert_close(p.detach(), expected, msg=lambda m, p=p: f"{names[p]}: {m}")
