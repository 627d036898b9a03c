"""What faithful Barlow Twins must show (Zbontar et al. 2021, eq. 1 and 2)."""

import pytest
import torch
from torch.testing import assert_close

from pretask import encoders, sources
from pretask.methods import barlow_twins as barlow
from pretask.rng import Rng


def slow(left, right, weight):
    """Equations 1 and 2, entry by entry."""
    d = left.shape[1]
    a, b = ((x - x.mean(0)) for x in (left, right))
    total = 0.0
    for i in range(d):
        for j in range(d):
            square = (a[:, i].square().sum() * b[:, j].square().sum()).sqrt()
            c = (a[:, i] * b[:, j]).sum() / square
            total += (1 - c) ** 2 if i == j else weight * c**2
    return total


def test_the_loss_is_the_papers_equation():
    left, right = Rng(1).normal(16, 5), Rng(2).normal(16, 5)
    agreement, redundancy = barlow.cost(barlow.correlations(left, right), 0.3)
    assert_close(agreement + redundancy, slow(left, right, 0.3), rtol=1e-4, atol=0)


def test_values_and_gradients_are_those_of_an_independent_implementation():
    lightly = pytest.importorskip("lightly.loss")
    a, b = (Rng(s).normal(16, 5).requires_grad_() for s in (1, 2))
    c, d = (x.detach().clone().requires_grad_() for x in (a, b))
    ours = sum(barlow.cost(barlow.correlations(a, b), 0.0051))
    theirs = lightly.BarlowTwinsLoss(lambda_param=0.0051)(c, d)
    ours.backward()
    theirs.backward()
    assert_close(ours, theirs)
    assert_close(a.grad, c.grad)
    assert_close(b.grad, d.grad)


def test_equal_views_agree_in_every_number():
    z = Rng(1).normal(64, 8)
    agreement, _ = barlow.cost(barlow.correlations(z, 3 * z + 1), 1.0)
    assert agreement < 1e-6


def test_columns_that_repeat_each_other_cost_and_constants_cost_their_agreement():
    z = Rng(1).normal(64, 1).expand(64, 4)
    assert barlow.cost(barlow.correlations(z, z), 1.0)[1] == pytest.approx(12, rel=1e-3)
    agreement, redundancy = barlow.cost(barlow.correlations(torch.ones(64, 4), torch.ones(64, 4)), 1.0)
    assert agreement == pytest.approx(4) and redundancy == 0


def test_the_method_compares_the_two_views():
    torch.manual_seed(0)
    source = sources.open("synthetic:32:16")
    method = barlow.Config().build(encoders.build("resnet_small:width=16", 3, 16), source).eval()
    p = method.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    left, right = (method.head(method.encoder(x)["pool"]) for x in (p.left, p.right))
    expected = sum(barlow.cost(barlow.correlations(left, right), 0.0051)) / method.config.width
    assert_close(method.loss(p).total, expected)


def test_correlations_are_not_rounded_where_the_network_is():
    left, right = Rng(1).normal(16, 5), Rng(2).normal(16, 5)
    with torch.autocast("cpu", torch.bfloat16):
        half = barlow.correlations(left, right)
    assert torch.equal(half, barlow.correlations(left, right))
