"""EMP-SSL against its released code (Tong et al. 2023)."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import data, encoders
from pretask.config import lr_factor
from pretask.methods import emp_ssl
from pretask.rng import Rng


@pytest.fixture
def method():
    torch.manual_seed(0)
    source = data.open("synthetic:16:32")
    made = emp_ssl.Config(num_patches=5, width=24).build(
        encoders.build("resnet_small:width=16", 3, 32), source
    )
    made.puzzle = made.train().pretext(source.__getitems__(torch.arange(16)), Rng(0))
    return made


def rows(*shape, seed=0):
    return F.normalize(Rng(seed).normal(*shape), dim=-1)


def with_embeddings(method, z):
    """The loss of given embeddings (P, B, D), which the network is made to return."""
    method.encoder.forward = lambda _: {"pool": z.flatten(0, 1)}
    method.projector = torch.nn.Identity()
    p, b = z.shape[:2]
    image = torch.zeros(b, p, 3, 8, 8)
    return method.loss(emp_ssl.Patches(image[:, :1], image[:, 1:]))


# ---- the coding rate


@pytest.mark.parametrize(("b", "d"), [(6, 20), (20, 6)])
def test_coding_rate_is_the_sum_over_singular_values(b, d):
    """½ log det(I + D/(Bε) ZᵀZ) = ½ Σ log(1 + D/(Bε) σ²), as released: the rate of each patch, then their mean."""
    z = rows(3, b, d)
    expected = [
        sum(0.5 * math.log(1 + d / (b * 0.2) * float(s) ** 2) for s in torch.linalg.svdvals(one.double()))
        for one in z
    ]
    assert_close(emp_ssl.total_coding_rate(z, 0.2), torch.tensor(expected), rtol=1e-4, atol=0)
    assert_close(emp_ssl.total_coding_rate(z[0], 0.2), torch.tensor(expected[0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("b", "d"), [(6, 20), (20, 6)])
def test_rate_is_largest_for_orthogonal_rows_and_smallest_for_equal_ones(b, d):
    """Orthogonal rows, or orthogonal columns of equal length if there are more rows than dimensions."""
    best = torch.linalg.qr(Rng(1).normal(max(b, d), max(b, d)))[0][:b, :d] * max(1.0, (b / d) ** 0.5)
    largest = emp_ssl.largest_coding_rate(b, d, 0.2)
    assert_close(emp_ssl.total_coding_rate(best, 0.2).item(), largest, rtol=1e-4, atol=0)
    equal = emp_ssl.total_coding_rate(rows(1, d).expand(b, -1), 0.2).item()
    assert equal == pytest.approx(0.5 * math.log(1 + d / 0.2), rel=1e-4)
    for seed in range(5):
        assert equal < emp_ssl.total_coding_rate(rows(b, d, seed=seed), 0.2) < largest


@pytest.mark.parametrize("b", [6, 30])
def test_both_terms_match_lightly(b, method):
    """Its loss adds the coding rate; the released code subtracts it (loss.py:90)."""
    lightly = pytest.importorskip("lightly.loss.emp_ssl_loss")
    z = rows(5, b, 12).requires_grad_()
    other = z.detach().clone().requires_grad_()
    ours = with_embeddings(method, z)
    rate, invariance = lightly.tcr_loss(other, 0.2), lightly.invariance_loss(other)
    assert_close(ours.parts["coding_rate"], rate)
    assert_close(ours.parts["similarity"], -invariance)
    ours.total.backward()
    (100 * invariance - rate).backward()
    expected = (
        other.grad - (other.grad * other).sum(2, keepdim=True) * other
    )  # rows are normalized again here
    assert_close(z.grad, expected.detach(), rtol=1e-3, atol=1e-5)


# ---- the loss


def test_loss_is_the_released_one_up_to_constants(method):
    """main.py:87-102 and 157-166 in loops: -200 · cosine - rate there, 100 here."""
    z = rows(5, 8, 12)
    cosine = rate = 0.0
    for patch in z:
        for i in range(8):
            mean = sum(z[p, i] for p in range(5)) / 5
            cosine += float(patch[i] @ mean / mean.norm()) / (5 * 8)
        rate += float(torch.logdet(torch.eye(12) + 12 / (8 * 0.2) * patch.T @ patch)) / 2 / 5
    found = with_embeddings(method, z)
    assert_close(found.parts["similarity"].item(), cosine, rtol=1e-4, atol=0)
    assert_close(found.parts["coding_rate"].item(), rate, rtol=1e-4, atol=0)
    constant = 100 + emp_ssl.largest_coding_rate(8, 12, 0.2)
    assert_close(found.total.item(), -100 * cosine - rate + constant, rtol=1e-4, atol=0)


def test_loss_is_0_if_patches_agree_and_images_are_orthogonal(method):
    best = torch.linalg.qr(Rng(1).normal(12, 12))[0][:8].expand(5, -1, -1)
    assert abs(with_embeddings(method, best).total.item()) < 1e-3
    assert with_embeddings(method, best.clone().roll(1, 1)).total.item() < 1e-3
    mixed = torch.cat([best[:4], best[:1].roll(1, 1)])
    assert with_embeddings(method, mixed).total.item() > 5


def test_embeddings_of_the_network_enter_patch_by_patch(method):
    """The batch norms see all patches at once, as released; the rate is that of 16 images, not of 80 crops."""
    p = method.puzzle
    crops = torch.cat([p.all[:, i] for i in range(5)])
    z = F.normalize(method.projector(method.encoder(crops)["pool"]), dim=1).unflatten(0, (5, 16))
    found = method.loss(p)
    assert_close(found.parts["coding_rate"], emp_ssl.total_coding_rate(z, 0.2).mean())
    similarity = sum(F.cosine_similarity(z[i], z.mean(0)).mean() for i in range(5)) / 5
    assert_close(found.parts["similarity"], similarity)


def test_patches_of_another_image_raise_the_loss(method):
    p = method.puzzle
    assert p.first.shape[:2] == (16, 2) and p.rest.shape[:2] == (16, 3)
    method.config = dataclasses.replace(method.config, invariance=10.0)
    optimizer = torch.optim.AdamW(method.groups(), lr=3e-3)
    for _ in range(10):
        optimizer.zero_grad()
        method.loss(p).total.backward()
        optimizer.step()
    moved = emp_ssl.Patches(p.first.roll(1, 0), p.rest)
    assert method.loss(moved).total > 1.2 * method.loss(p).total


def test_features_collapse_without_the_coding_rate(monkeypatch):
    def spread():
        torch.manual_seed(0)
        source = data.open("synthetic:32:16")
        config = emp_ssl.Config(num_patches=4, width=32, invariance=30.0)
        net = config.build(encoders.build("resnet_small:width=16", 3, 16), source).train()
        optimizer, batch = torch.optim.AdamW(net.parameters(), lr=1e-2), source.__getitems__(torch.arange(32))
        for step in range(30):
            optimizer.zero_grad()
            net.loss(net.pretext(batch, Rng(step))).total.backward()
            optimizer.step()
        z = F.normalize(net.projector(net.encoder(net.pretext(batch, Rng(99)).first[:, 0])["pool"]), dim=1)
        return z.std(0).mean().item() * 32**0.5

    healthy = spread()
    monkeypatch.setattr(emp_ssl, "total_coding_rate", lambda z, epsilon: torch.zeros(len(z)))
    assert spread() < 0.1 < 0.5 < healthy


# ---- patches


def test_patches_are_squares_of_a_quarter_of_the_image_at_its_own_resolution():
    """A ramp over the columns: half of its range in each patch, at other places in each."""
    torch.manual_seed(0)
    views = emp_ssl.PatchAugmentation(flip=0.0, jitter_p=0.0, gray=0.0, solarize=0.0)
    config = emp_ssl.Config(num_patches=6, views=views)
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8)
    for image in (ramp.expand(64, 64), ramp[:, None].expand(64, 64)):
        source = data.arrays.Arrays("ramp", image.expand(8, 3, 64, 64).clone())
        method = config.build(encoders.build("resnet_small:width=4", 3, 64), source)
        found = method.pretext(source.__getitems__(torch.arange(8)), Rng(0)).all  # (8, 6, 3, 32, 32)
        assert found.shape == (8, 6, 3, 32, 32)
        along = found[:, :, 0, 0] if image[0, 1] != image[0, 0] else found[:, :, 0, :, 0]
        assert_close(along[..., -1] - along[..., 0], torch.full((8, 6), 31 / 63), atol=0.02, rtol=0)
        assert len(along[..., 0].flatten().unique()) > 40
        assert along[..., 0].min() < 0.05 and along[..., -1].max() > 0.95


def test_color_jitter_of_a_patch_is_the_released_one():
    views = emp_ssl.Paper().views
    assert views.jitter_strengths == pytest.approx((0.4, 0.4, 0.4, 0.2))
    assert (views.crop, views.flip, views.jitter_p, views.gray, views.blur, views.solarize) == (
        (0.25, 0.25), 0.5, 0.8, 0.2, 0.1, 0.1,
    )  # fmt: skip


# ---- the released command


def test_paper_recipe_matches_the_released_command():
    """`main.py --data cifar10 --epoch 30 --patch_sim 200 --num_patches 20 --lr 0.3`, and its defaults."""
    paper, train = emp_ssl.Paper(), emp_ssl.Paper.train
    assert (paper.num_patches, paper.invariance, paper.epsilon, train.batch, train.epochs) == (
        20,
        200,
        0.2,
        100,
        30,
    )
    assert (train.optimizer, train.lr, train.weight_decay, train.nesterov) == ("lars", 0.3, 1e-4, True)
    for fraction in (0.0, 0.1, 0.5, 0.9, 1.0):
        cosine = 0.5 * (1 + math.cos(math.pi * fraction))
        assert train.lr * lr_factor(train, min(fraction, 1 - 1e-9)) == pytest.approx(0.3 * cosine, abs=1e-6)
    source = data.open("synthetic:4:32")
    method = paper.build(encoders.build(paper.encoder, 3, 32), source)
    assert sum(p.numel() for p in method.encoder.parameters()) == 11_168_832 and method.side == 32
    widths = [(x.in_features, x.out_features) for x in method.projector if isinstance(x, torch.nn.Linear)]
    assert widths == [(512, 4096), (4096, 4096), (4096, 1024)]


def test_steps_are_those_of_the_released_optimizer():
    """lars.py:234-249 in front of SGD with Nesterov momentum; biases and gains get neither its step nor decay.

    A large weight with a small gradient would get a longer step, which the clipping prevents; a small weight with a large
    gradient gets a shorter one.
    """
    source, paper = data.open("synthetic:4:16"), emp_ssl.Paper()
    torch.manual_seed(0)
    method = emp_ssl.Config(width=8, hidden=8).build(encoders.build("resnet_small:width=4", 3, 16), source)
    (optimizer,) = method.optimizers(paper.train)
    params = dict(method.named_parameters())
    slow = {name: p.detach().clone() for name, p in params.items()}
    momentum = {name: torch.zeros_like(p) for name, p in slow.items()}
    lr, eta, decay = paper.train.lr, 0.005, 1e-4
    clipped = set()
    for step in range(3):
        for k, (name, p) in enumerate(params.items()):
            p.grad = Rng(step, k).normal(*p.shape) * (1e-4 if k % 2 else 1.0)
            g = p.grad.clone()
            if p.ndim > 1:
                ratio = eta * slow[name].norm() / (g.norm() + decay * slow[name].norm() + 1e-8) / lr
                clipped.add(bool(ratio > 1))
                g = (g + decay * slow[name]) * min(float(ratio), 1.0)
            momentum[name] = 0.9 * momentum[name] + g
            slow[name] -= lr * (g + 0.9 * momentum[name])
        optimizer.step()
    assert clipped == {True, False}
    for name, p in params.items():
        assert_close(p.detach(), slow[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
