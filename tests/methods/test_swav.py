"""What a faithful SwAV must show (Caron et al. 2020, eq. 2 to 5, and the released code)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import encoders, sources
from pretask.loop import rate
from pretask.methods import swav
from pretask.plan import Plan
from pretask.rng import Rng


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
    method.through = lambda net, pretext: scores
    ours = method.loss(method.puzzle).total
    theirs = lightly.SwaVLoss()([other[0], other[1]], [other[2], other[3]])
    ours.backward()
    theirs.sum().backward()
    assert_close(ours, theirs[0])
    assert_close(scores.grad, other.grad)


def test_at_the_start_every_prototype_is_as_likely(method):
    assert abs(method.loss(method.puzzle).total - math.log(32)) < 1.0
    method.through = lambda net, pretext: torch.zeros(4, 32, 32)
    assert_close(method.loss(method.puzzle).total.item(), math.log(32))


def test_a_view_is_not_asked_for_its_own_code(method):
    """Two views that disagree, each sure of itself, cost the most."""
    own, other = (
        20 * F.one_hot(torch.arange(32) % 4, 4).float(),
        20 * F.one_hot((torch.arange(32) + 1) % 4, 4).float(),
    )
    method.through = lambda net, pretext: torch.stack([own, other]) * 0.05
    apart = method.loss(method.puzzle).total
    method.through = lambda net, pretext: torch.stack([own, own]) * 0.05
    assert apart > 5 and method.loss(method.puzzle).total < 0.01


def test_small_views_are_asked_but_give_no_codes(method):
    assert method.puzzle.small.shape == (32, 2, 3, 8, 8)
    scores = method.through(method.scores, method.puzzle)
    assert scores.shape == (4, 32, 32)
    for view in range(4):
        leaf = scores.detach().clone().requires_grad_()
        method.through = lambda net, pretext, leaf=leaf: leaf
        method.loss(method.puzzle).total.backward()
        assert leaf.grad[view].abs().sum() > 0
    del method.through
    alone = method.through(
        method.scores, swav.Crops(method.puzzle.left, method.puzzle.right, method.puzzle.small[:, :0])
    )
    assert alone.shape == (2, 32, 32)


def test_small_views_come_in_the_order_of_their_images(method):
    method.eval()
    every = method.through(method.scores, method.puzzle)
    assert_close(every[1], method.scores(method.puzzle.right))
    assert_close(every[3], method.scores(method.puzzle.small[:, 1]))


def test_scores_are_cosines(method):
    before = method.scores(method.puzzle.left)
    assert before.abs().max() <= 1 + 1e-5
    with torch.no_grad():
        method.prototypes.weight.mul_(7)
    assert_close(method.scores(method.puzzle.left), before)


def test_prototypes_stand_still_at_first(method):
    train = swav.Config().train
    (optimizer,) = method.optimizers(train)
    (held,) = [g for g in optimizer.param_groups if "after" in g]
    (weight,) = held["params"]
    assert weight is method.prototypes.weight and held["weight_decay"] == 0
    held["peak"] = 1.0
    assert (
        rate(held, train, Plan.of(200, 200).at(1)) == 0 and rate(held, train, Plan.of(200, 200).at(100)) > 0
    )
