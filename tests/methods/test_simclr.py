"""What a faithful SimCLR must show (Chen et al. 2020, eq. 1)."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from pretask import data as sources
from pretask import encoders
from pretask.methods import simclr
from pretask.rng import Rng


def unit(n, seed, d=8):
    return F.normalize(Rng(seed).normal(n, d), dim=1)


def slow(left, right, temperature):
    """Equation 1 as printed: l(i, j) summed over both directions of every pair."""
    z = torch.cat([left, right]).tolist()
    n = len(left)

    def s(i, k):
        return math.exp(sum(a * b for a, b in zip(z[i], z[k], strict=True)) / temperature)

    def cost(i, j):
        return -math.log(s(i, j) / sum(s(i, k) for k in range(2 * n) if k != i))

    return sum(cost(k, k + n) + cost(k + n, k) for k in range(n)) / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_the_loss_is_the_papers_equation(temperature):
    left, right = unit(5, 1), unit(5, 2)
    assert_close(simclr.nt_xent(left, right, temperature)[0].item(), slow(left, right, temperature))


def test_values_and_gradients_are_those_of_an_independent_implementation():
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


def test_similarities_are_not_rounded_where_the_network_is():
    left, right = unit(16, 1), unit(16, 2)
    with torch.autocast("cpu", torch.bfloat16):
        half = simclr.nt_xent(left, right, 0.1)[0]
    assert half == simclr.nt_xent(left, right, 0.1)[0]


def test_at_random_the_loss_is_that_of_guessing_among_the_other_views():
    left, right = unit(256, 1, 1024), unit(256, 2, 1024)
    loss, accuracy = simclr.nt_xent(left, right, 1.0)
    assert abs(loss.item() - math.log(2 * 256 - 1)) < 0.01 and accuracy < 0.03


def test_identical_pairs_far_from_all_others_cost_nothing():
    z = torch.eye(8)
    loss, accuracy = simclr.nt_xent(z, z, 0.05)
    assert loss < 1e-6 and accuracy == 1


def test_a_view_is_never_its_own_partner():
    z = unit(4, 1)
    apart = torch.cat([z, -z])  # its own copy would win by far
    assert simclr.nt_xent(apart[:4], apart[4:], 0.1)[1] == 0


def test_two_views_of_an_image_differ_and_both_come_from_it():
    source = sources.open("synthetic:32:32")
    method = simclr.Config().build(encoders.build("resnet_small:width=16", 3, 32), source)
    plain = simclr.images.Views(crop=(1.0, 1.0), jitter=0.0, grey=0.0)
    whole = simclr.Config(views=plain, side=1.0).build(method.encoder, source)
    batch = source.__getitems__(torch.arange(32))
    p, q = method.pretext(batch, Rng(1)), whole.pretext(batch, Rng(1))
    assert not torch.equal(p.left, p.right)
    image = simclr.images.to_float(batch.image)
    for view in (q.left, q.right):
        nearest = torch.cdist(view.flatten(1), torch.cat([image, image.flip(-1)]).flatten(1)).argmin(1) % 32
        assert (nearest == torch.arange(32)).float().mean() > 0.8  # aspect ratios still differ


def test_solving_finds_the_other_view_of_a_puzzle_learnt_by_heart():
    source = sources.open("synthetic:32:16")
    torch.manual_seed(0)
    method = simclr.Config().build(encoders.build("resnet_small:width=16", 3, 16), source).train()
    p = method.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    before = (method.solve(p)["right"] == p.right).flatten(1).all(1).float().mean()
    for _ in range(30):
        optimizer.zero_grad()
        method.loss(p).total.backward()
        optimizer.step()
    found = (method.solve(p)["right"] == p.right).flatten(1).all(1).float().mean()
    assert before < 0.5 and found > 0.9


# ---- the paper's runs (google-research/simclr at be133b3)


def paper():
    torch.manual_seed(0)
    source = sources.open("synthetic:32:16")
    config = dataclasses.replace(simclr.Paper(), hidden=32, width=24)
    method = config.build(encoders.build("resnet_small:width=16", 3, 16), source).train()
    return method, method.pretext(source.__getitems__(torch.arange(32)), Rng(0))


def test_the_network_for_cifar_is_a_resnet_50_whose_stem_leaves_32_pixels():
    """Appendix B.9, on torchvision's ResNet: another first convolution, no pooling; the same features."""
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
        assert_close(found["pool"], theirs.eval()(ours.normalised(x)), rtol=1e-4, atol=1e-5)
    assert [found[name].shape[-1] for name in ours.sides] == [32, 32, 16, 8, 4]
    assert encoders.build(simclr.PaperImageNet.encoder, 3, 64).sides["stage1"] == 32  # halved


def test_the_head_ends_with_a_batch_norm_of_gains_alone():
    """model_util.py:103-120: the last layer has neither bias nor ReLU, its batch norm no `center`."""
    method, p = paper()
    method.head[-1].weight.data.uniform_(0.5, 2.0)
    linear, norm, _, last, _ = method.head
    z = method.encoder(p.both)["pool"] @ linear.weight.T
    z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
    z = z.relu() @ last.weight.T
    z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() * method.head[-1].weight
    assert_close(torch.cat(method.project(p)), F.normalize(z, dim=1), rtol=1e-3, atol=1e-5)
    trained = [tuple(q.shape) for q in method.head.parameters() if q.requires_grad]
    assert trained == [(32, method.encoder.dim), (32,), (32,), (24, 32), (24,)]


def test_a_step_of_gains_and_biases_is_that_of_the_released_sum_over_both_directions():
    """objective.py:86-90, lars_optimizer.py: no trust ratio and no decay for them, so the loss's scale tells."""
    ours, p = paper()
    theirs = copy.deepcopy(ours)
    (optimizer,) = ours.optimizers(simclr.Paper.train)
    ours.loss(p).total.backward()
    optimizer.step()
    left, right = theirs.project(p)
    apart = torch.eye(len(left)) * -1e9
    one = torch.cat([left @ right.T, left @ left.T + apart], 1) / 0.5
    other = torch.cat([right @ left.T, right @ right.T + apart], 1) / 0.5
    own = torch.arange(len(left))
    (F.cross_entropy(one, own) + F.cross_entropy(other, own)).backward()
    rate = 1.0 * 512 / 256
    for (name, new), old in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if old.ndim == 1 and old.requires_grad:
            assert_close(new, old - rate * old.grad, rtol=1e-4, atol=1e-5, msg=name)
        elif old.ndim > 1:
            decayed = old.grad + 1e-6 * old
            expected = old - rate * 0.001 * old.norm() / decayed.norm() * decayed
            assert (new - expected).norm() < 1e-3 * (expected - old).norm(), name


def test_recipes_are_those_of_the_released_commands():
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
