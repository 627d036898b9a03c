"""Fidelity of NNCLR (Dwibedi et al. 2021, sec. 3.2), which has no released code."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import data, encoders
from pretask.methods import nnclr
from pretask.methods.base.context import Context
from pretask.methods.base.views import TwoViews
from pretask.rng import Rng
from pretask.train.plan import Plan

NOW = Plan.of(10, 10).at(0)
WIDTH = nnclr.Config().width


def unit(n, seed, d=8):
    return F.normalize(Rng(seed).normal(n, d), dim=1)


def made(**config):
    torch.manual_seed(0)
    source = data.open("synthetic:32:16")
    method = (
        dataclasses.replace(nnclr.Config(queue=64), **config)
        .build(encoders.build("resnet_small:width=16", 3, 16), source)
        .train()
    )
    method.begin(Context(source, [], NOW, Rng(0, "begin")))
    method.puzzle = method.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    return method


def friend(z, queue):
    """The row of the queue with the largest cosine similarity to `z`, row by row."""
    return max(queue, key=lambda row: float(F.cosine_similarity(row, z, dim=0)))


def info_nce(query, keys, i, t):
    """-log of the softmax over all keys of the i-th."""
    s = [torch.exp(query @ key / t) for key in keys]
    return -torch.log(s[i] / sum(s))


def slow(z1, z2, p1, p2, queue, t):
    """Both views' neighbors find the other's predictions, and the predictions the neighbors: four terms per image."""
    n1, n2 = ([friend(z.detach(), queue) for z in zs] for zs in (z1, z2))
    p1, p2 = (list(F.normalize(p, dim=1)) for p in (p1, p2))
    total = 0.0
    for i in range(len(z1)):
        for neighbors, predictions in ((n1, p2), (n2, p1)):
            total += info_nce(neighbors[i], predictions, i, t) + info_nce(predictions[i], neighbors, i, t)
    return total / (4 * len(z1))


def test_loss_and_gradients_are_those_of_section_3_2_written_out():
    method, reference = made(), made()
    z = reference.projector(reference.encoder(reference.puzzle.both)["pool"])
    p = reference.predictor(z)
    expected = slow(*z.chunk(2), *p.chunk(2), reference.queue, 0.1)
    total = method.loss(method.puzzle).total
    assert_close(total, expected)
    total.backward()
    expected.backward()
    for (name, a), b in zip(method.named_parameters(), reference.parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_neighbors_and_queue_match_lightly():
    lightly = pytest.importorskip("lightly.models.modules")
    queue, place = unit(16, 1), torch.zeros((), dtype=torch.int64)
    theirs = lightly.NNMemoryBankModule(size=(16, 8))
    theirs.bank, theirs.bank_ptr = queue.clone(), torch.zeros(1, dtype=torch.int64)
    for step in range(6):  # the queue is replaced one and a half times
        z = unit(4, 10 + step)
        assert torch.equal(nnclr.nearest(z, queue), theirs(z, update=True))
        nnclr.enqueue(queue, place, z)
        assert torch.equal(queue, theirs.bank)


def test_each_term_is_lightlys_loss_with_the_rest_of_the_batch_as_its_memory_bank():
    """By itself lightly's loss is SimCLR's: it also compares neighbors with neighbors and predictions with predictions."""
    lightly = pytest.importorskip("lightly.loss")
    method = made(temperature=0.2)
    z, p = method.embed(method.puzzle.both)
    (p1, p2), (n1, n2) = p.detach().chunk(2), nnclr.nearest(z.detach(), method.queue).chunk(2)
    losses = []
    for query, key in ((n1, p2), (p2, n1), (n2, p1), (p1, n2)):
        for i in range(len(query)):
            theirs = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(len(key) - 1, WIDTH))
            theirs.memory_bank.bank = torch.cat([key[:i], key[i + 1 :]])
            losses.append(theirs(query[i : i + 1], key[i : i + 1]))
    assert_close(made(temperature=0.2).loss(method.puzzle).total.detach(), torch.stack(losses).mean())


def test_initial_loss_is_at_chance():
    method = made(temperature=1.0, width=512)
    loss = method.loss(method.puzzle)
    assert abs(loss.total.item() - math.log(32)) < 0.05 and loss.parts["accuracy"] < 0.15


def test_loss_is_0_if_every_prediction_is_its_neighbor_and_no_other(monkeypatch):
    method = made(temperature=0.05)
    rows = torch.eye(32, WIDTH).repeat(2, 1)
    monkeypatch.setattr(method, "embed", lambda image: (rows, rows))
    method.queue[:32] = rows[:32]
    loss = method.loss(method.puzzle)
    assert loss.total < 1e-6 and loss.parts["accuracy"] == 1


def test_similarities_stay_in_float32_under_autocast():
    z, queue = unit(16, 1), unit(2048, 2)
    with torch.autocast("cpu", torch.bfloat16):
        half = nnclr.nearest(z, queue)
    assert torch.equal(half, nnclr.nearest(z, queue))


def test_only_embeddings_of_view1_enter_the_queue_and_the_oldest_leave_first():
    method = made(queue=40)
    old = method.queue.clone()
    assert_close(old.norm(dim=1), torch.ones(40))
    carry = method.loss(method.puzzle).carry
    both = method.projector(method.encoder(method.puzzle.both)["pool"])
    assert_close(carry, F.normalize(both[:32], dim=1))
    assert not carry.requires_grad
    method.after_step(carry, NOW)
    assert torch.equal(method.queue, torch.cat([carry, old[32:]])) and method.queue_ptr == 32
    method.after_step(-carry, NOW)
    assert (
        torch.equal(method.queue, torch.cat([-carry[8:], carry[24:], -carry[:8]])) and method.queue_ptr == 24
    )


def test_two_processes_share_negatives_and_their_mean_loss_is_that_of_one(monkeypatch):
    method = made().eval()  # so that batch norms do not mix the rows
    whole = method.loss(method.puzzle).total
    z, p = method.embed(method.puzzle.both)
    known = [*p.chunk(2), *nnclr.nearest(z, method.queue).chunk(2)]
    losses, carries = [], []
    for rank in (0, 1):
        own = slice(16 * rank, 16 * rank + 16)

        def gather(x, own=own):
            return next(rows for rows in known if torch.allclose(rows[own], x, atol=1e-5))

        processes = SimpleNamespace(rank=lambda rank=rank: rank, gather=gather, gather_rows=gather)
        monkeypatch.setattr(nnclr, "distributed", processes)
        loss = method.loss(TwoViews(method.puzzle.view1[own], method.puzzle.view2[own]))
        losses.append(loss.total)
        carries.append(loss.carry)
    assert_close(torch.stack(losses).mean(), whole)
    assert_close(torch.cat(carries), z[:32])


def test_all_processes_begin_with_the_same_queue():
    one, other = made(), made()
    other.begin(Context(data.open("synthetic:32:16"), [], NOW, Rng(0, "begin", shard=(1, 2))))
    assert torch.equal(one.queue, other.queue)


def test_predict_finds_the_other_view_of_a_memorized_batch():
    method = made()
    p = method.puzzle
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    before = (method.predict(p)["view2"] == p.view2).flatten(1).all(1).float().mean()
    for _ in range(40):
        optimizer.zero_grad()
        loss = method.loss(p)
        loss.total.backward()
        optimizer.step()
        method.after_step(loss.carry, NOW)
    found = (method.predict(p)["view2"] == p.view2).flatten(1).all(1).float().mean()
    assert before < 0.5 and found > 0.9


# ---- the paper's recipe, as reproduced by others


def layers(net):
    return [(type(x).__name__, [tuple(p.shape) for p in x.parameters()]) for x in net]


def test_heads_are_those_that_the_paper_describes():
    """Quoted in lightly's heads.py: all layers of the projector end in a batch norm, the last one without a ReLU;
    only the hidden layer of the predictor does."""

    def hidden(i, o):
        return [("Linear", [(o, i)]), ("BatchNorm1d", [(o,), (o,)]), ("ReLU", [])]

    method = made(hidden=40, width=24, predictor_hidden=48)
    dim = method.encoder.dim
    end = [("Linear", [(24, 40)]), ("BatchNorm1d", [(24,), (24,)])]
    assert layers(method.projector) == [*hidden(dim, 40), *hidden(40, 40), *end]
    assert layers(method.predictor) == [*hidden(24, 48), ("Linear", [(24, 48), (24,)])]


def test_recipe_matches_the_reproduction():
    """clane9/vissl at fc6cd41, configs/config/pretrain/nnclr/nnclr_8node_resnet.yaml."""
    recipe = nnclr.Paper()
    train, (one, other) = recipe.train, recipe.augmentations()
    assert (recipe.queue, recipe.width, recipe.temperature) == (98_304, 256, 0.1)
    assert (recipe.hidden, recipe.predictor_hidden) == (2048, 4096)
    assert (train.optimizer, train.batch, train.epochs, train.momentum) == ("lars", 64 * 8 * 8, 1000, 0.9)
    assert (train.lr, train.lr_start, train.weight_decay, train.decay_all) == (0.3 * 16, 0.6, 1e-6, False)
    assert train.warmup * train.epochs == 10
    assert one.crop == other.crop == (0.08, 1.0)
    assert ((one.blur, one.solarize), (other.blur, other.solarize)) == ((1.0, 0.0), (0.1, 0.2))
    assert recipe.queue % train.batch == 0
