"""Fidelity of Barlow Twins (Zbontar et al. 2021, eq. 1 and 2)."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pretask import data, encoders
from pretask.config import lr_factor
from pretask.methods import barlow_twins as barlow
from pretask.rng import Rng


def slow(z1, z2, weight):
    """Equations 1 and 2, entry by entry."""
    d = z1.shape[1]
    a, b = ((x - x.mean(0)) for x in (z1, z2))
    total = 0.0
    for i in range(d):
        for j in range(d):
            square = (a[:, i].square().sum() * b[:, j].square().sum()).sqrt()
            c = (a[:, i] * b[:, j]).sum() / square
            total += (1 - c) ** 2 if i == j else weight * c**2
    return total


def test_loss_is_equation_1():
    z1, z2 = Rng(1).normal(16, 5), Rng(2).normal(16, 5)
    invariance, redundancy = barlow.loss_terms(barlow.cross_correlation(z1, z2), 0.3)
    assert_close(invariance + redundancy, slow(z1, z2, 0.3), rtol=1e-4, atol=0)


def test_values_and_gradients_match_lightly():
    lightly = pytest.importorskip("lightly.loss")
    a, b = (Rng(s).normal(16, 5).requires_grad_() for s in (1, 2))
    c, d = (x.detach().clone().requires_grad_() for x in (a, b))
    ours = sum(barlow.loss_terms(barlow.cross_correlation(a, b), 0.0051))
    theirs = lightly.BarlowTwinsLoss(lambda_param=0.0051)(c, d)
    ours.backward()
    theirs.backward()
    assert_close(ours, theirs)
    assert_close(a.grad, c.grad)
    assert_close(b.grad, d.grad)


def test_invariance_term_is_0_for_equal_views():
    z = Rng(1).normal(64, 8)
    invariance, _ = barlow.loss_terms(barlow.cross_correlation(z, 3 * z + 1), 1.0)
    assert invariance < 1e-6


def test_loss_of_repeated_and_of_constant_columns():
    z = Rng(1).normal(64, 1).expand(64, 4)
    assert barlow.loss_terms(barlow.cross_correlation(z, z), 1.0)[1] == pytest.approx(12, rel=1e-3)
    invariance, redundancy = barlow.loss_terms(
        barlow.cross_correlation(torch.ones(64, 4), torch.ones(64, 4)), 1.0
    )
    assert invariance == pytest.approx(4) and redundancy == 0


def test_method_correlates_the_two_views():
    torch.manual_seed(0)
    source = data.open("synthetic:32:16")
    method = barlow.Config().build(encoders.build("resnet_small:width=16", 3, 16), source).eval()
    p = method.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    z1, z2 = (method.projector(method.encoder(x)["pool"]) for x in (p.view1, p.view2))
    expected = sum(barlow.loss_terms(barlow.cross_correlation(z1, z2), 0.0051))
    assert_close(method.loss(p).total, expected)


def test_correlations_stay_in_float32_under_autocast():
    z1, z2 = Rng(1).normal(16, 5), Rng(2).normal(16, 5)
    with torch.autocast("cpu", torch.bfloat16):
        half = barlow.cross_correlation(z1, z2)
    assert torch.equal(half, barlow.cross_correlation(z1, z2))


# ---- the released recipe (facebookresearch/barlowtwins at 8e8d284, main.py)


def small():
    torch.manual_seed(0)
    source = data.open("synthetic:32:16")
    config = dataclasses.replace(barlow.Paper(), width=24, hidden=32)
    method = config.build(encoders.build("resnet_small:width=16", 3, 16), source).train()
    views = method.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    return method.double(), dataclasses.replace(views, view1=views.view1.double(), view2=views.view2.double())


def released_loss(method, views):
    """Each view separately through all batch norms; the sum over the whole matrix, undivided."""
    norm = nn.BatchNorm1d(method.config.width, affine=False).double()
    one, other = (norm(method.projector(method.encoder(view)["pool"])) for view in views)
    c = one.T @ other / len(one)
    here = torch.eye(len(c), dtype=torch.bool)
    return (c[here] - 1).pow(2).sum() + 0.0051 * c[~here].pow(2).sum()


def released_step(params, velocity, rate):
    """LARS written out: 0.2 for matrices, whose step has 0.001 of their norm, 0.0048 for all else."""
    for p, v in zip(params, velocity, strict=True):
        step = p.grad
        if p.ndim > 1:
            step = step + 1e-6 * p
            step = step * 0.001 * p.norm() / step.norm()
        v.mul_(0.9).add_(step)
        p.data -= rate * (0.2 if p.ndim > 1 else 0.0048) * v


def test_two_steps_match_the_released_run():
    """With an earlier recipe, which divided the loss by the width, gains moved 197 times less."""
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
        released_loss(theirs, (views.view1, views.view2)).backward()
        released_step(params, velocity, 2048 / 256)
    for (name, p), q, was in zip(ours.named_parameters(), params, begun, strict=True):
        assert (q - was).norm() > 0, name
        assert (p - q).norm() < 1e-3 * (q - was).norm(), name


def test_learning_rates_match_the_released_schedule():
    train, epochs = barlow.Paper.train, 1000

    def released(epoch):
        if epoch < 10:
            return epoch / 10
        q = 0.5 * (1 + math.cos(math.pi * (epoch - 10) / (epochs - 10)))
        return q + 0.001 * (1 - q)

    for epoch in (0, 3, 9.9, 10, 50, 200, 500, 800, 990, 999.9):
        assert_close(lr_factor(train, epoch / epochs), released(epoch), rtol=1e-6, atol=1e-9)
    assert_close((train.lr, train.lr * train.bias_lr_scale), (0.2 * 8, 0.0048 * 8))


def test_projector_is_the_released_one():
    """Three matrices without biases, the first two followed by batch norm and ReLU."""
    method, _ = small()
    shapes = [(type(x).__name__, [tuple(p.shape) for p in x.parameters()]) for x in method.projector]
    middle = [("BatchNorm1d", [(32,), (32,)]), ("ReLU", [])]
    assert shapes == [
        ("Linear", [(32, method.encoder.dim)]),
        *middle,
        ("Linear", [(32, 32)]),
        *middle,
        ("Linear", [(24, 32)]),
    ]
