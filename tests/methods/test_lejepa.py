"""Fidelity of LeJEPA (Balestriero and LeCun 2025, and the released code)."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import data, encoders
from pretask.config import lr_factor
from pretask.methods import lejepa
from pretask.rng import Rng

ALONG = lejepa.random_directions(16, 256, Rng(0))


@pytest.fixture
def method():
    torch.manual_seed(0)
    source = data.open("synthetic:32:16")
    config = lejepa.Config(local_crops=2, local_size=0.5)
    made = config.build(encoders.build("resnet_small:width=16", 3, 16), source).train()
    made.batch = source.__getitems__(torch.arange(32))
    made.puzzle = made.pretext(made.batch, Rng(0))
    return made


def test_sigreg_has_its_golden_values():
    gaussian = sum(lejepa.sigreg(Rng(s).normal(512, 16), ALONG).item() for s in range(10)) / 10
    assert abs(gaussian - 1.0) < 0.2
    assert_close(lejepa.sigreg(torch.zeros(512, 16), ALONG).item(), 205.8, rtol=1e-3, atol=0)
    assert abs(lejepa.sigreg(F.normalize(Rng(3).normal(512, 16), dim=1), ALONG).item() - 162) < 2


def test_sigreg_is_the_integral():
    """One direction; the integral over the whole axis in fine steps."""
    z, along = Rng(1).normal(40, 3), lejepa.random_directions(3, 1, Rng(2))
    x = (z @ along)[:, 0].double().tolist()
    total, steps = 0.0, 3000
    for i in range(-steps, steps + 1):
        t = 3.0 * i / steps
        phi = math.exp(-(t**2) / 2)
        real, imaginary = (sum(f(t * v) for v in x) / 40 for f in (math.cos, math.sin))
        total += ((real - phi) ** 2 + imaginary**2) * phi * 3.0 / steps * (0.5 if abs(i) == steps else 1)
    assert lejepa.sigreg(z, along).item() == pytest.approx(40 * total, rel=0.02)


def test_values_and_gradients_match_lightly():
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


def test_sigreg_averages_over_views():
    z = Rng(1).normal(2, 64, 16)
    assert_close(lejepa.sigreg(z, ALONG), (lejepa.sigreg(z[0], ALONG) + lejepa.sigreg(z[1], ALONG)) / 2)


def test_loss_is_the_weighted_sum_of_prediction_and_sigreg(method):
    """Centers are means of the global views (eq. 7), and the projector's batch norms see all views at once."""
    p = method.puzzle
    pools = [
        method.encoder(x)["pool"] for x in (p.both, torch.cat([p.local_views[:, 0], p.local_views[:, 1]]))
    ]
    z = method.projector(torch.cat(pools)).unflatten(0, (4, 32))
    prediction, by_size = 0.0, torch.cat([method.projector(pool) for pool in pools]).unflatten(0, (4, 32))
    for n in range(32):
        center = (z[0, n] + z[1, n]) / 2
        for v in range(4):
            prediction += ((center - z[v, n]) ** 2).sum() / (4 * 32 * 64)
    assert (z - by_size).abs().max() > 0.01
    seed = int(method.puzzle.seed)
    sigreg_loss = lejepa.sigreg(z, lejepa.random_directions(64, 256, Rng(seed, "directions")))
    found = method.loss(method.puzzle)
    assert_close(found.parts["prediction"], prediction)
    assert abs(prediction - (z - z.mean(0)).square().mean()) > 0.1 * prediction
    assert_close(found.total, 0.98 * prediction + 0.02 * sigreg_loss)


def test_directions_change_every_step_and_are_shared_by_all_processes(method):
    seeds = [int(method.pretext(method.batch, Rng(0, step)).seed) for step in range(3)]
    assert len({*seeds}) == 3
    other = method.pretext(method.batch, Rng(0, 1, shard=(1, 2)))
    assert int(other.seed) == seeds[1]
    assert_close(ALONG.norm(dim=0), torch.ones(256))


def test_features_collapse_without_sigreg():
    def spread(weight):
        torch.manual_seed(0)
        source = data.open("synthetic:32:16")
        config = lejepa.Config(lambda_=weight, local_crops=0)
        net = config.build(encoders.build("resnet_small:width=16", 3, 16), source).train()
        optimizer, batch = torch.optim.AdamW(net.parameters(), lr=1e-2), source.__getitems__(torch.arange(32))
        for step in range(40):
            optimizer.zero_grad()
            net.loss(net.pretext(batch, Rng(step))).total.backward()
            optimizer.step()
        return net.projector(net.encoder(net.pretext(batch, Rng(99)).view1)["pool"]).std(0).mean().item()

    assert spread(0.0) < 0.1 < 0.3 < spread(0.5)


# ---- the released demo (rbalestr-lab/lejepa, MINIMAL.md)


def test_all_four_views_of_the_demo_are_global():
    torch.manual_seed(0)
    source, paper = data.open("synthetic:16:32"), lejepa.Paper()
    method = paper.build(encoders.build("resnet_small:width=16", 3, 32), source).train()
    p = method.pretext(source.__getitems__(torch.arange(16)), Rng(0))
    assert p.view1.shape == p.view2.shape == p.local_views[:, 0].shape == p.local_views[:, 1].shape
    pools = torch.cat(
        [method.encoder(x)["pool"] for x in (p.both, torch.cat([p.local_views[:, 0], p.local_views[:, 1]]))]
    )
    z = method.projector(pools).unflatten(0, (4, 16))
    assert_close(method.loss(p).parts["prediction"], (z.mean(0) - z).square().mean())
    widths = [(x.in_features, x.out_features) for x in method.projector if isinstance(x, torch.nn.Linear)]
    assert widths == [(method.encoder.dim, 512), (512, 2048), (2048, 2048), (2048, 16)]


def test_paper_recipe_matches_the_demo():
    """`python mnist.py +lamb=0.02 +V=4 +proj_dim=16 +lr=2e-3 +bs=256 +epochs=800`, and the script's own constants."""
    paper, train = lejepa.Paper(), lejepa.Paper.train
    assert (paper.lambda_, 2 + paper.local_crops, paper.width, train.lr, train.batch, train.epochs) == (
        0.02, 4, 16, 2e-3, 256, 800,
    )  # fmt: skip
    assert (paper.num_slices, train.weight_decay, train.optimizer) == (256, 0.05, "adamw")
    for views in (*paper.augmentations(), dataclasses.replace(paper.views, crop=paper.local_scale)):
        assert (views.crop, views.gray, views.flip, views.blur, views.solarize) == (
            (0.08, 1),
            0.2,
            0.5,
            0.5,
            0.2,
        )
    for epoch in range(0, 800, 20):  # LinearLR from 0.01, then CosineAnnealingLR to 1e-3
        cosine = 1e-3 + (2e-3 - 1e-3) * (1 + math.cos(math.pi * (epoch - 1) / 799)) / 2
        expected = 0.01 * 2e-3 if epoch == 0 else cosine
        assert train.lr * lr_factor(train, epoch / 800) == pytest.approx(expected)


def test_demo_has_weight_decay_on_all_parameters_and_stochastic_depth():
    source = data.open("synthetic:4:128")
    encoder = encoders.build(f"{lejepa.Paper.encoder},embed_dim=12,num_heads=1,depth=3", 3, 128)
    method = lejepa.Paper().build(encoder, source)
    (optimizer,) = method.optimizers(lejepa.Paper.train)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.05}
    assert [getattr(block.drop_path1, "drop_prob", 0) for block in encoder.net.blocks] == pytest.approx(
        [0, 0.05, 0.1]
    )
    assert (method.side, method.local_size) == (128, 128)
