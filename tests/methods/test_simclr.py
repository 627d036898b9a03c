"""Fidelity of SimCLR (Chen et al. 2020, eq. 1)."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from pretask import data, encoders
from pretask.methods import simclr
from pretask.rng import Rng


def unit(n, seed, d=8):
    return F.normalize(Rng(seed).normal(n, d), dim=1)


def slow(z1, z2, temperature):
    """Equation 1 as printed: l(i, j) summed over both directions of every pair."""
    z = torch.cat([z1, z2]).tolist()
    n = len(z1)

    def s(i, k):
        return math.exp(sum(a * b for a, b in zip(z[i], z[k], strict=True)) / temperature)

    def cost(i, j):
        return -math.log(s(i, j) / sum(s(i, k) for k in range(2 * n) if k != i))

    return sum(cost(k, k + n) + cost(k + n, k) for k in range(n)) / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_is_equation_1(temperature):
    z1, z2 = unit(5, 1), unit(5, 2)
    assert_close(simclr.nt_xent(z1, z2, temperature)[0].item(), slow(z1, z2, temperature))


def test_values_and_gradients_match_lightly():
    lightly = pytest.importorskip("lightly.loss")
    a, b = (Rng(s).normal(6, 8).requires_grad_() for s in (1, 2))
    c, d = (x.detach().clone().requires_grad_() for x in (a, b))
    ours = simclr.nt_xent(F.normalize(a, dim=1), F.normalize(b, dim=1), 0.2)[0]
    theirs = lightly.NTXentLoss(temperature=0.2)(c, d)
    ours.backward()
    theirs.backward()
    assert_close(ours, theirs)
    assert_close(a.grad, c.grad)
    assert_close(b.grad, d.grad)


def test_similarities_stay_in_float32_under_autocast():
    z1, z2 = unit(16, 1), unit(16, 2)
    with torch.autocast("cpu", torch.bfloat16):
        half = simclr.nt_xent(z1, z2, 0.1)[0]
    assert half == simclr.nt_xent(z1, z2, 0.1)[0]


def test_loss_of_random_rows_is_at_chance():
    z1, z2 = unit(256, 1, 1024), unit(256, 2, 1024)
    loss, accuracy = simclr.nt_xent(z1, z2, 1.0)
    assert abs(loss.item() - math.log(2 * 256 - 1)) < 0.01 and accuracy < 0.03


def test_loss_is_0_for_identical_pairs_far_from_all_others():
    z = torch.eye(8)
    loss, accuracy = simclr.nt_xent(z, z, 0.05)
    assert loss < 1e-6 and accuracy == 1


def test_a_view_is_never_its_own_positive():
    z = unit(4, 1)
    views = torch.cat([z, -z])  # its own copy would be by far the nearest
    assert simclr.nt_xent(views[:4], views[4:], 0.1)[1] == 0


def test_two_views_of_an_image_differ_and_both_come_from_it():
    source = data.open("synthetic:32:32")
    method = simclr.Config().build(encoders.build("resnet_small:width=16", 3, 32), source)
    plain = simclr.augment.ViewAugmentation(crop=(1.0, 1.0), jitter=0.0, gray=0.0)
    whole = simclr.Config(views=plain, side=1.0).build(method.encoder, source)
    batch = source.__getitems__(torch.arange(32))
    p, q = method.pretext(batch, Rng(1)), whole.pretext(batch, Rng(1))
    assert not torch.equal(p.view1, p.view2)
    image = simclr.augment.to_float(batch.image)
    for view in (q.view1, q.view2):
        nearest = torch.cdist(view.flatten(1), torch.cat([image, image.flip(-1)]).flatten(1)).argmin(1) % 32
        assert (nearest == torch.arange(32)).float().mean() > 0.8  # aspect ratios still vary


def test_predict_finds_the_other_view_of_a_memorized_batch():
    source = data.open("synthetic:32:16")
    torch.manual_seed(0)
    method = simclr.Config().build(encoders.build("resnet_small:width=16", 3, 16), source).train()
    p = method.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    before = (method.predict(p)["view2"] == p.view2).flatten(1).all(1).float().mean()
    for _ in range(30):
        optimizer.zero_grad()
        method.loss(p).total.backward()
        optimizer.step()
    found = (method.predict(p)["view2"] == p.view2).flatten(1).all(1).float().mean()
    assert before < 0.5 and found > 0.9


# ---- the paper's recipes (google-research/simclr at be133b3)


def paper():
    torch.manual_seed(0)
    source = data.open("synthetic:32:16")
    config = dataclasses.replace(simclr.Paper(), hidden=32, width=24)
    method = config.build(encoders.build("resnet_small:width=16", 3, 16), source).train()
    return method, method.pretext(source.__getitems__(torch.arange(32)), Rng(0))


def test_cifar_encoder_is_a_resnet50_whose_stem_keeps_32_pixels():
    """Appendix B.9, on torchvision's ResNet: another first convolution and no pooling give the same features."""
    torchvision = pytest.importorskip("torchvision")
    ours = encoders.build(simclr.Paper.encoder, 3, 32).eval()
    theirs = torchvision.models.resnet50()
    theirs.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    theirs.maxpool, theirs.fc = nn.Identity(), nn.Identity()
    assert sum(p.numel() for p in ours.parameters()) == 23_500_352
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.net.state_dict().values(), strict=True)))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = ours(x)
        assert_close(found["pool"], theirs.eval()(ours.normalized(x)), rtol=1e-4, atol=1e-5)
    assert [found[name].shape[-1] for name in ours.sides] == [32, 32, 16, 8, 4]
    assert encoders.build(simclr.PaperImageNet.encoder, 3, 64).sides["stage1"] == 32  # downsampled


def test_projector_ends_with_a_batch_norm_without_bias():
    """model_util.py:103-120: the last layer has neither bias nor ReLU, its batch norm no `center`."""
    method, p = paper()
    method.projector[-1].weight.data.uniform_(0.5, 2.0)
    linear, norm, _, last, _ = method.projector
    z = method.encoder(p.both)["pool"] @ linear.weight.T
    z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
    z = z.relu() @ last.weight.T
    z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() * method.projector[-1].weight
    assert_close(torch.cat(method.project(p)), F.normalize(z, dim=1), rtol=1e-3, atol=1e-5)
    trained = [tuple(q.shape) for q in method.projector.parameters() if q.requires_grad]
    assert trained == [(32, method.encoder.dim), (32,), (32,), (24, 32), (24,)]


def test_a_step_of_gains_and_biases_matches_the_released_sum_over_both_directions():
    """objective.py:86-90, lars_optimizer.py: they have no trust ratio and no decay, so the scale of the loss matters."""
    ours, p = paper()
    theirs = copy.deepcopy(ours)
    (optimizer,) = ours.optimizers(simclr.Paper.train)
    ours.loss(p).total.backward()
    optimizer.step()
    z1, z2 = theirs.project(p)
    mask = torch.eye(len(z1)) * -1e9
    one = torch.cat([z1 @ z2.T, z1 @ z1.T + mask], 1) / 0.5
    other = torch.cat([z2 @ z1.T, z2 @ z2.T + mask], 1) / 0.5
    own = torch.arange(len(z1))
    (F.cross_entropy(one, own) + F.cross_entropy(other, own)).backward()
    rate = 1.0 * 512 / 256
    for (name, new), old in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if old.ndim == 1 and old.requires_grad:
            assert_close(new, old - rate * old.grad, rtol=1e-4, atol=1e-5, msg=name)
        elif old.ndim > 1:
            decayed = old.grad + 1e-6 * old
            expected = old - rate * 0.001 * old.norm() / decayed.norm() * decayed
            assert (new - expected).norm() < 1e-3 * (expected - old).norm(), name


def test_recipes_match_the_released_commands():
    small, large = simclr.Paper(), simclr.PaperImageNet()
    for recipe in (small, large):
        train = recipe.train
        assert (train.optimizer, train.weight_decay, train.momentum, train.nesterov) == (
            "lars",
            1e-6,
            0.9,
            False,
        )
        assert train.warmup * train.epochs == 10 and (recipe.hidden, recipe.width) == (2048, 128)
        assert recipe.views.crop == (0.08, 1.0)
    assert (small.train.batch, small.train.epochs, small.train.lr, small.temperature) == (512, 1000, 2.0, 0.5)
    assert (large.train.batch, large.train.epochs, large.train.lr, large.temperature) == (4096, 100, 4.8, 0.1)
    assert (small.views.jitter, small.views.blur) == (0.5, 0.0)
    assert (large.views.jitter, large.views.blur) == (1.0, 0.5)
