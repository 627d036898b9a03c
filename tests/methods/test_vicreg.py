"""Fidelity of VICReg (Bardes et al. 2022, eq. 1 to 6, and the released code)."""

import math

import pytest
import torch
from torch.testing import assert_close

from pretask import data, encoders
from pretask.config import lr_factor
from pretask.methods import vicreg
from pretask.rng import Rng


@pytest.fixture
def method():
    torch.manual_seed(0)
    source = data.open("synthetic:32:16")
    made = vicreg.Config().build(encoders.build("resnet_small:width=16", 3, 16), source)
    made.puzzle = made.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    return made


def test_variance_and_covariance_losses_are_equations_1_and_4():
    z = 0.5 * Rng(1).normal(12, 4)
    mean = [sum(z[i, j] for i in range(12)) / 12 for j in range(4)]
    cov = [
        [sum((z[i, a] - mean[a]) * (z[i, b] - mean[b]) for i in range(12)) / 11 for b in range(4)]
        for a in range(4)
    ]
    variance = sum(max(0, 1 - (cov[j][j] + 1e-4) ** 0.5) for j in range(4)) / 4
    covariance = sum(cov[a][b] ** 2 for a in range(4) for b in range(4) if a != b) / 4
    assert_close(vicreg.variance_loss(z).item(), float(variance))
    assert_close(vicreg.covariance_loss(z).item(), float(covariance))


def test_values_and_gradients_match_lightly(method):
    lightly = pytest.importorskip("lightly.loss")
    z = Rng(1).normal(64, 8).requires_grad_()
    other = z.detach().clone().requires_grad_()
    method.encoder.forward = lambda image: {"pool": image}
    method.projector = torch.nn.Identity()
    ours = method.loss(vicreg.TwoViews(*z.chunk(2))).total
    theirs = lightly.VICRegLoss()(*other.chunk(2))
    ours.backward()
    theirs.backward()
    assert_close(ours, theirs)
    assert_close(z.grad, other.grad)


def test_learning_rates_match_the_released_schedule():
    """`adjust_learning_rate` of `main_vicreg.py`: a base of 0.2 per 256 images, annealed to a thousandth of the peak."""
    train = vicreg.Paper.train
    for epoch in range(0, 1000, 5):
        cosine = 0.5 * (1 + math.cos(math.pi * (epoch - 10) / 990))
        expected = 1.6 * epoch / 10 if epoch < 10 else 1.6 * cosine + 0.0016 * (1 - cosine)
        assert train.lr * lr_factor(train, epoch / 1000) == pytest.approx(expected)


def test_variance_loss_of_constant_rows_is_nearly_1():
    assert vicreg.variance_loss(torch.ones(8, 4)) == pytest.approx(0.99)
    assert vicreg.covariance_loss(torch.ones(8, 4)) == 0


def test_covariance_loss_counts_repeated_columns_and_variance_loss_is_0_for_wide_ones():
    z = 3 * Rng(1).normal(512, 1)
    assert vicreg.variance_loss(z) == 0
    assert vicreg.covariance_loss(z.expand(-1, 2)) == pytest.approx(float(z.var() ** 2), rel=1e-4)


def test_each_term_has_its_own_weight(method):
    parts = method.loss(method.puzzle).parts
    for name in ("invariance", "variance", "covariance"):
        changed = vicreg.Config(**{name: 0.0})
        method.config = changed
        assert method.loss(method.puzzle).parts[name] == 0
    assert parts["variance"] > 0 and parts["invariance"] > 0


def test_features_collapse_without_the_variance_term():
    def spread(weight):
        torch.manual_seed(0)
        source = data.open("synthetic:32:16")
        net = (
            vicreg.Config(variance=weight)
            .build(encoders.build("resnet_small:width=16", 3, 16), source)
            .train()
        )
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        batch = source.__getitems__(torch.arange(32))
        for step in range(40):
            optimizer.zero_grad()
            net.loss(net.pretext(batch, Rng(step))).total.backward()
            optimizer.step()
        p = net.pretext(batch, Rng(99))
        return net.projector(net.encoder(p.view1)["pool"]).std(0).mean().item()

    assert spread(0.0) < 0.05 < 0.12 < spread(25.0)
