"""What a faithful LeJEPA must show (Balestriero and LeCun 2025, and the released code)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import encoders, sources
from pretask.methods import lejepa
from pretask.rng import Rng

ALONG = lejepa.directions(16, 256, Rng(0))


@pytest.fixture
def method():
    torch.manual_seed(0)
    source = sources.open("synthetic:32:16")
    config = lejepa.Config(small=2, small_side=0.5)
    made = config.build(encoders.build("resnet_small:width=16", 3, 16), source).train()
    made.batch = source.__getitems__(torch.arange(32))
    made.puzzle = made.pretext(made.batch, Rng(0))
    return made


def test_golden_values():
    gaussian = sum(lejepa.sigreg(Rng(s).normal(512, 16), ALONG).item() for s in range(10)) / 10
    assert abs(gaussian - 1.0) < 0.2
    assert_close(lejepa.sigreg(torch.zeros(512, 16), ALONG).item(), 205.8, rtol=1e-3, atol=0)
    assert abs(lejepa.sigreg(F.normalize(Rng(3).normal(512, 16), dim=1), ALONG).item() - 162) < 2


def test_the_statistic_is_the_integral():
    """One direction, the integral over the whole axis in fine steps."""
    z, along = Rng(1).normal(40, 3), lejepa.directions(3, 1, Rng(2))
    x = (z @ along)[:, 0].double().tolist()
    total, steps = 0.0, 3000
    for i in range(-steps, steps + 1):
        t = 3.0 * i / steps
        phi = math.exp(-(t**2) / 2)
        real, imaginary = (sum(f(t * v) for v in x) / 40 for f in (math.cos, math.sin))
        total += ((real - phi) ** 2 + imaginary**2) * phi * 3.0 / steps * (0.5 if abs(i) == steps else 1)
    assert lejepa.sigreg(z, along).item() == pytest.approx(40 * total, rel=0.02)


def test_values_and_gradients_are_those_of_an_independent_implementation():
    loss = pytest.importorskip("lightly.loss.lejepa_loss")
    theirs = loss.SIGReg(num_vectors=256)
    theirs._generate_unit_vectors = lambda device, dtype, num_features: ALONG
    a = Rng(1).normal(3, 32, 16).requires_grad_()
    b = a.detach().clone().requires_grad_()
    ours, other = lejepa.sigreg(a, ALONG), theirs(b)
    ours.backward()
    other.backward()
    assert_close(ours, other)
    assert_close(a.grad, b.grad)


def test_each_view_is_tested_by_itself():
    z = Rng(1).normal(2, 64, 16)
    assert_close(lejepa.sigreg(z, ALONG), (lejepa.sigreg(z[0], ALONG) + lejepa.sigreg(z[1], ALONG)) / 2)


def test_the_loss_weighs_distance_and_normality(method):
    method.eval()
    z = method.through(lambda image: method.head(method.encoder(image)["pool"]), method.puzzle)
    centre = sum(z) / 4
    apart = sum((view - centre).square().mean() for view in z) / 4
    seed = int(method.puzzle.seed)
    normality = lejepa.sigreg(z, lejepa.directions(64, 256, Rng(seed, "directions")))
    found = method.loss(method.puzzle)
    assert_close(found.parts["apart"], apart)
    assert_close(found.total, 0.98 * apart + 0.02 * normality)


def test_directions_are_drawn_anew_at_every_step_alike_in_all_processes(method):
    seeds = [int(method.pretext(method.batch, Rng(0, step)).seed) for step in range(3)]
    assert len({*seeds}) == 3
    other = method.pretext(method.batch, Rng(0, 1, share=(1, 2)))
    assert int(other.seed) == seeds[1]
    assert_close(ALONG.norm(dim=0), torch.ones(256))


def test_without_the_test_of_normality_all_images_get_the_same_features():
    def spread(weight):
        torch.manual_seed(0)
        source = sources.open("synthetic:32:16")
        config = lejepa.Config(gaussian=weight, small=0)
        net = config.build(encoders.build("resnet_small:width=16", 3, 16), source).train()
        optimizer, batch = torch.optim.AdamW(net.parameters(), lr=1e-2), source.__getitems__(torch.arange(32))
        for step in range(40):
            optimizer.zero_grad()
            net.loss(net.pretext(batch, Rng(step))).total.backward()
            optimizer.step()
        return net.head(net.encoder(net.pretext(batch, Rng(99)).left)["pool"]).std(0).mean().item()

    assert spread(0.0) < 0.1 < 0.3 < spread(0.5)
