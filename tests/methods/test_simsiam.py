"""Fidelity of SimSiam (Chen and He 2021, eq. 1 and algorithm 1)."""

import math

import pytest
import torch
from torch.testing import assert_close

from pretask import data, encoders
from pretask.config import TrainConfig
from pretask.methods import simsiam
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.train.trainer import group_lr


@pytest.fixture
def method():
    torch.manual_seed(0)
    source = data.open("synthetic:32:16")
    made = simsiam.Config().build(encoders.build("resnet_small:width=16", 3, 16), source).train()
    made.puzzle = made.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    return made


def test_loss_is_equation_1_with_a_stop_gradient_on_the_target():
    lightly = pytest.importorskip("lightly.loss")
    p, z, other = (Rng(s).normal(5, 8).requires_grad_() for s in (1, 2, 1))
    slow = sum(
        sum(u * v for u, v in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
        for a, b in zip(p.tolist(), z.tolist(), strict=True)
    )
    found = simsiam.mean_cosine_similarity(p, z)
    assert_close(found.item(), slow / 5)
    (-found).backward()
    lightly.NegativeCosineSimilarity()(other, z.detach()).backward()
    assert_close(p.grad, other.grad)
    assert z.grad is None


def test_each_view_predicts_the_projection_of_the_other(method):
    method.eval()
    p = method.puzzle
    (z1, z2) = (method.projector(method.encoder(x)["pool"]) for x in (p.view1, p.view2))
    crossed = simsiam.mean_cosine_similarity(method.predictor(z1), z2) + simsiam.mean_cosine_similarity(
        method.predictor(z2), z1
    )
    assert_close(method.loss(p).total, -crossed / 2)


def test_logged_std_drops_to_0_on_collapse(method):
    assert method.loss(method.puzzle).parts["std"] > 0.3
    with torch.no_grad():
        method.projector[0][-1].weight.zero_()  # the final batch norm then outputs 0
        method.projector[0][-1].bias.zero_()
    assert method.loss(method.puzzle).parts["std"] < 1e-3


def test_features_collapse_without_the_stop_gradient(method, monkeypatch):
    """The paper's figure 2 in small: the loss falls to its minimum and the features lose their spread."""

    def trained(stop):
        torch.manual_seed(0)
        net = simsiam.Config().build(
            encoders.build("resnet_small:width=16", 3, 16), data.open("synthetic:32:16")
        )
        if not stop:
            cosine = torch.nn.functional.cosine_similarity
            monkeypatch.setattr(
                simsiam, "mean_cosine_similarity", lambda p, z: cosine(p.float(), z.float(), dim=1).mean()
            )
        optimizer = torch.optim.AdamW(net.train().parameters(), lr=1e-3)
        batch = data.open("synthetic:32:16").__getitems__(torch.arange(32))
        for step in range(160):
            loss = net.loss(net.pretext(batch, Rng(step)))
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
        return loss.total.item(), loss.parts["std"].item()

    healthy, collapsed = trained(True), trained(False)
    assert collapsed[0] < healthy[0] - 0.2
    assert collapsed[1] < 0.6 < 0.85 < healthy[1]


def test_paper_recipe_decays_gains_and_biases(method):
    """`main_simsiam.py`: one SGD over all parameters, `--wd 1e-4`."""
    (optimizer,) = method.optimizers(simsiam.Paper.train)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}
    assert not any(group["nesterov"] for group in optimizer.param_groups)


def test_learning_rate_of_the_predictor_is_not_annealed(method):
    train = TrainConfig(lr=0.1, warmup=0.0)
    (optimizer,) = method.optimizers(train)
    predictor_params = {id(p) for p in method.predictor.parameters()}
    for group in optimizer.param_groups:
        steady = {id(p) for p in group["params"]} <= predictor_params
        group["peak"] = group["lr"]
        assert group_lr(group, train, Plan.of(10, 10).at(9)) == pytest.approx(
            0.1 if steady else 0.1 * (1 + math.cos(0.9 * math.pi)) / 2
        )
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len([*method.parameters()])
