"""What faithful Barlow Twins must show (Zbontar et al. 2021, eq. 1 and 2)."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pretask import data as sources
from pretask import encoders
from pretask.config import schedule
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
    expected = sum(barlow.cost(barlow.correlations(left, right), 0.0051))
    assert_close(method.loss(p).total, expected)


def test_correlations_are_not_rounded_where_the_network_is():
    left, right = Rng(1).normal(16, 5), Rng(2).normal(16, 5)
    with torch.autocast("cpu", torch.bfloat16):
        half = barlow.correlations(left, right)
    assert torch.equal(half, barlow.correlations(left, right))


# ---- the released run (facebookresearch/barlowtwins at 8e8d284, main.py)


def small():
    torch.manual_seed(0)
    source = sources.open("synthetic:32:16")
    config = dataclasses.replace(barlow.Paper(), width=24, hidden=32)
    method = config.build(encoders.build("resnet_small:width=16", 3, 16), source).train()
    views = method.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    return method.double(), dataclasses.replace(views, left=views.left.double(), right=views.right.double())


def released_loss(method, views):
    """Each view by itself through all batch norms; the sum over the whole matrix, undivided."""
    norm = nn.BatchNorm1d(method.config.width, affine=False).double()
    one, other = (norm(method.head(method.encoder(view)["pool"])) for view in views)
    c = one.T @ other / len(one)
    here = torch.eye(len(c), dtype=torch.bool)
    return (c[here] - 1).pow(2).sum() + 0.0051 * c[~here].pow(2).sum()


def released_step(params, velocity, rate):
    """LARS by hand: 0.2 for matrices, whose step is a thousandth of their length, 0.0048 for all else."""
    for p, v in zip(params, velocity, strict=True):
        step = p.grad
        if p.ndim > 1:
            step = step + 1e-6 * p
            step = step * 0.001 * p.norm() / step.norm()
        v.mul_(0.9).add_(step)
        p.data -= rate * (0.2 if p.ndim > 1 else 0.0048) * v


def test_two_steps_are_those_of_the_released_run():
    """Of the old recipe, which divided the loss by the width, gains moved 197 times less."""
    ours, views = small()
    theirs = copy.deepcopy(ours)
    (optimizer,) = ours.optimizers(barlow.Paper.train)
    params = list(theirs.parameters())
    begun, velocity = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params]
    for _ in range(2):
        optimizer.zero_grad()
        ours.loss(views).total.backward()
        optimizer.step()
        theirs.zero_grad()
        released_loss(theirs, (views.left, views.right)).backward()
        released_step(params, velocity, 2048 / 256)
    for (name, p), q, was in zip(ours.named_parameters(), params, begun, strict=True):
        assert (q - was).norm() > 0, name
        assert (p - q).norm() < 1e-3 * (q - was).norm(), name


def test_rates_rise_and_fall_as_in_the_released_run():
    train, epochs = barlow.Paper.train, 1000

    def released(epoch):
        if epoch < 10:
            return epoch / 10
        q = 0.5 * (1 + math.cos(math.pi * (epoch - 10) / (epochs - 10)))
        return q + 0.001 * (1 - q)

    for epoch in (0, 3, 9.9, 10, 50, 200, 500, 800, 990, 999.9):
        assert_close(schedule(train, epoch / epochs), released(epoch), rtol=1e-6, atol=1e-9)
    assert_close((train.lr, train.lr * train.vector_lr), (0.2 * 8, 0.0048 * 8))


def test_the_head_is_the_released_one():
    """Three matrices without biases, the first two followed by batch norm and ReLU."""
    method, _ = small()
    shapes = [(type(x).__name__, [tuple(p.shape) for p in x.parameters()]) for x in method.head]
    middle = [("BatchNorm1d", [(32,), (32,)]), ("ReLU", [])]
    assert shapes == [
        ("Linear", [(32, method.encoder.dim)]),
        *middle,
        ("Linear", [(32, 32)]),
        *middle,
        ("Linear", [(24, 32)]),
    ]
