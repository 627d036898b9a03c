"""Fidelity of DenseCL (Wang et al. 2021, and WXinlong/DenseCL at b64bbb6)."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from pretask import data, encoders
from pretask.methods import densecl, moco
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.types import UserError

NOW = Plan.of(10, 10).at(0)


def unit(*shape, seed):
    return F.normalize(Rng(seed).normal(*shape), dim=-1)


def made(encoder="resnet_small:width=16", **config):
    torch.manual_seed(0)
    source = data.open("synthetic:32:32")
    method = (
        dataclasses.replace(densecl.Config(queue=64, side=1.0, grid=7), **config)
        .build(encoders.build(encoder, 3, 32), source)
        .train()
    )
    method.begin(Context(source, [], NOW, Rng(0, "begin")))
    method.puzzle = method.pretext(source.__getitems__(torch.arange(16)), Rng(0))
    return method


def moved(method):
    """The same method with a teacher that differs from its student."""
    with torch.no_grad():
        for p in (*method.teacher.parameters(), *method.dense_teacher.parameters()):
            p.mul_(1.3)
    return method


def slow(method):
    """Loss and mean dense keys, cell by cell; the batch norms are in evaluation mode."""
    t, p = method.config.temperature, method.puzzle
    encoder, projector = method.teacher
    stages1, stages2 = method.encoder(p.view1), encoder(p.view2)
    q, k = (
        F.normalize(head(s["pool"]), dim=1) for head, s in ((method.projector, stages1), (projector, stages2))
    )
    map1, map2 = stages1["stage3"], stages2["stage3"]
    view_loss = dense_loss = 0.0
    mean_keys = []
    cells = [(row, column) for row in range(map1.shape[2]) for column in range(map1.shape[3])]
    for i in range(len(q)):
        view_loss += info_nce(q[i], k[i], method.queue, t) / len(q)
        keys = {at: method.dense_teacher.eval()(map2[i, :, *at][None])[0] for at in cells}
        for at in cells:
            own = map1[i, :, *at]
            other = max(cells, key=lambda c: F.cosine_similarity(own, map2[i, :, *c], dim=0).item())
            query = F.normalize(method.dense_projector(own[None])[0], dim=0)
            key = F.normalize(keys[other], dim=0)
            dense_loss += info_nce(query, key, method.dense_queue, t) / (len(q) * len(cells))
        mean_keys.append(F.normalize(sum(keys.values()) / len(cells), dim=0))
    weight = method.config.lambda_
    return (1 - weight) * view_loss + weight * dense_loss, k, torch.stack(mean_keys)


def info_nce(query, key, queue, t):
    """-log of the softmax of the positive among itself and the queue."""
    negatives = sum(torch.exp(query @ row / t) for row in queue)
    right = torch.exp(query @ key / t)
    return -torch.log(right / (right + negatives))


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_loss_and_keys_are_those_of_the_released_code_written_out(weight):
    """densecl.py:155-219: matches by backbone features, positives by the dense projector, mean dense keys."""
    method = moved(made(lambda_=weight)).eval()
    expected, view_key, dense_key = slow(method)
    loss = method.loss(method.puzzle)
    assert_close(loss.total, expected)
    for found, key in zip(loss.carry, (view_key, dense_key), strict=True):
        assert_close(found, key)
        assert not found.requires_grad


def test_matches_and_dense_loss_equal_lightlys():
    lightly = pytest.importorskip("lightly.loss")
    utils = pytest.importorskip("lightly.models.utils")
    features1, features2 = Rng(1).normal(4, 9, 12), Rng(2).normal(4, 9, 12)
    query, keys = Rng(3).normal(4, 9, 8), Rng(4).normal(4, 9, 8)
    match = densecl.best_match(features1, features2)
    positive = keys.gather(1, match[:, :, None].expand_as(keys))
    assert torch.equal(positive, utils.select_most_similar(features1, features2, keys))
    theirs = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(16, 8))
    theirs.memory_bank.bank = queue = unit(16, 8, seed=5)
    rows = query.flatten(0, 1), positive.flatten(0, 1)
    ours = densecl.info_nce_queue(*map(densecl.unit, rows), queue, 0.2)[0]
    assert_close(ours, theirs(*rows))


def test_cells_of_a_shifted_map_match_their_shifted_counterparts():
    """And a map matches itself in place, whatever the lengths of its features."""
    features = Rng(1).normal(2, 16, 32)
    scaled = features * Rng(2).uniform(2, 16, 1, low=0.1, high=10.0)
    assert torch.equal(densecl.best_match(features, scaled), torch.arange(16).expand(2, 16))
    found = densecl.best_match(features, scaled.roll(3, 1))
    assert torch.equal(found, ((torch.arange(16) + 3) % 16).expand(2, 16))


def test_similarities_of_cells_stay_in_float32_under_autocast():
    one, other = Rng(1).normal(4, 64, 16), Rng(2).normal(4, 64, 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = densecl.best_match(one, other)
    assert torch.equal(half, densecl.best_match(one, other))


def test_loss_with_keys_of_an_unrelated_teacher_is_at_chance():
    method = made(temperature=1.0, width=512)
    with torch.no_grad():
        for head in (method.teacher[1], method.dense_teacher):
            head[-1].weight.copy_(head[-1].weight.roll(1, 0))  # each dimension of a key is another one's
    assert abs(method.loss(method.puzzle).total.item() - math.log(65)) < 0.05


def test_without_the_dense_loss_it_is_moco():
    method = made(lambda_=0.0)
    torch.manual_seed(0)
    config = moco.Config(queue=64, side=1.0)
    plain = config.build(encoders.build("resnet_small:width=16", 3, 32), data.open("synthetic:32:32")).train()
    plain.queue.copy_(method.queue)
    ours, theirs = method.loss(method.puzzle), plain.loss(method.puzzle)
    assert_close(ours.total, theirs.total)
    assert_close(ours.carry[0], theirs.carry)


@pytest.mark.parametrize(("grid", "cells"), [(7, 16), (4, 16), (2, 4), (1, 1)])
def test_a_map_larger_than_the_grid_is_pooled_to_it(grid, cells):
    method = made(grid=grid)  # the map is 4 x 4
    found = method.embed(method.puzzle.view1, method.encoder, method.projector, method.dense_projector)
    assert found.features.shape == (16, cells, 64) and found.dense.shape == (16, cells, 128)
    stage = method.encoder(method.puzzle.view1)["stage3"]
    assert_close(found.features.mean(1), stage.mean((2, 3)), rtol=1e-4, atol=1e-5)
    if cells == 4:
        assert_close(found.features[:, 1], stage[:, :, :2, 2:].mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_dense_projector_is_two_1x1_convolutions_on_the_map():
    """necks.py:376-378: the same weights as convolutions give the same embeddings."""
    method = made(hidden=40, width=24, hidden_bn=densecl.Paper().hidden_bn)
    first, _, last = method.dense_projector
    convolved = nn.Sequential(nn.Conv2d(64, 40, 1), nn.ReLU(), nn.Conv2d(40, 24, 1))
    with torch.no_grad():
        for conv, linear in ((convolved[0], first), (convolved[2], last)):
            conv.weight.copy_(linear.weight[:, :, None, None])
            conv.bias.copy_(linear.bias)
    found = method.embed(method.puzzle.view1, method.encoder, method.projector, method.dense_projector)
    expected = convolved(method.encoder(method.puzzle.view1)["stage3"])
    assert_close(found.dense, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_each_queue_gets_its_own_keys_and_both_teachers_follow():
    method = made()
    old = method.dense_queue.clone(), method.queue.clone()
    assert_close(old[0].norm(dim=1), torch.ones(64))
    assert not torch.equal(*old)
    before = [p.clone() for p in method.dense_teacher.parameters()]
    for p in (
        *method.encoder.parameters(),
        *method.projector.parameters(),
        *method.dense_projector.parameters(),
    ):
        p.data += 1
    view_key, dense_key = unit(16, 128, seed=1), unit(16, 128, seed=2)
    method.after_step((view_key, dense_key), NOW)
    assert torch.equal(method.dense_queue, torch.cat([dense_key, old[0][16:]]))
    assert torch.equal(method.queue, torch.cat([view_key, old[1][16:]]))
    assert method.queue_ptr == method.dense_queue_ptr == 16
    for was, p in zip(before, method.dense_teacher.parameters(), strict=True):
        assert_close(p, was + 0.01, rtol=0, atol=1e-6)


def test_no_gradient_reaches_the_teachers():
    method = made()
    method.loss(method.puzzle).total.backward()
    teachers = (*method.teacher.parameters(), *method.dense_teacher.parameters())
    assert not any(p.requires_grad for p in teachers)
    assert all(p.grad is None for p in teachers)
    assert all(p.grad.any() for p in method.dense_projector.parameters() if p.ndim > 1)


def test_transformers_have_cells_too_and_networks_without_maps_are_refused():
    method = made("vit_tiny_patch16_224:patch_size=8,embed_dim=48,depth=4,num_heads=4", grid=3)
    assert method.loss(method.puzzle).total.isfinite()
    with pytest.raises(UserError, match="densecl needs feature maps, and mlp:width=8 has none"):
        made("mlp:width=8")


def test_recipes_match_the_released_configurations():
    imagenet, coco = densecl.Paper(), densecl.PaperCOCO()
    for recipe in (imagenet, coco):
        assert (recipe.queue, recipe.width, recipe.ema_momentum) == (65_536, 128, 0.999)
        assert (recipe.lambda_, recipe.temperature, recipe.hidden, recipe.hidden_bn) == (
            0.5,
            0.2,
            2048,
            False,
        )
        train = recipe.train
        assert (train.optimizer, train.momentum, train.nesterov, train.batch) == ("sgd", 0.9, False, 256)
        assert (train.weight_decay, train.decay_all, train.warmup, train.lr_end) == (1e-4, True, 0.0, 0.0)
        assert (recipe.views.crop, recipe.views.blur, recipe.side) == ((0.2, 1.0), 0.5, 1.0)
    assert (imagenet.train.lr, imagenet.train.epochs) == (0.03, 200)
    assert (coco.train.lr, coco.train.epochs) == (0.3, 800)


def test_the_paper_grid_is_the_whole_map_of_224_px():
    encoder = encoders.build(densecl.Paper.encoder, 3, 224)
    assert list(encoder.sides.values())[-1] == 7 == densecl.Paper().grid
    assert encoder.net.layer1[0].bn3.weight.eq(1).all()  # resnet.py:304: not zero-initialized
