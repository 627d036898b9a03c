"""Fidelity of BYOL (Grill et al. 2020, eq. 2 and algorithm 1)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import data, encoders
from pretask.encoders.heads import cosine_momentum, update_ema
from pretask.methods import byol
from pretask.rng import Rng
from pretask.train.plan import Plan


@pytest.fixture
def method():
    torch.manual_seed(0)
    source = data.open("synthetic:32:16")
    made = byol.Config().build(encoders.build("resnet_small:width=16", 3, 16), source).train()
    made.puzzle = made.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    return made


def test_regression_loss_is_equation_2():
    p, z = Rng(1).normal(5, 8), Rng(2).normal(5, 8)
    slow = 0.0
    for a, b in zip(p.tolist(), z.tolist(), strict=True):
        a, b = ([v / math.hypot(*x) for v in x] for x in (a, b))
        slow += sum((u - v) ** 2 for u, v in zip(a, b, strict=True)) / 5
    assert_close(byol.regression_loss(p, z).item(), slow)
    assert byol.regression_loss(p, p).abs() < 1e-5
    assert_close(byol.regression_loss(p, -3 * p), torch.tensor(4.0))


def test_values_and_gradients_match_lightly():
    lightly = pytest.importorskip("lightly.loss")
    a, b = Rng(1).normal(6, 8).requires_grad_(), Rng(2).normal(6, 8)
    c = a.detach().clone().requires_grad_()
    byol.regression_loss(a, b).backward()
    (2 + 2 * lightly.NegativeCosineSimilarity()(c, b)).backward()
    assert_close(a.grad, c.grad)


def test_each_view_predicts_the_teachers_projection_of_the_other(method):
    method.eval()  # so that batch norms do not mix the views
    p, (encoder, projector) = method.puzzle, method.teacher

    def predicted(x):
        return method.predictor(method.projector(method.encoder(x)["pool"]))

    def target(x):
        return projector(encoder(x)["pool"])

    crossed = byol.regression_loss(predicted(p.view1), target(p.view2)) + byol.regression_loss(
        predicted(p.view2), target(p.view1)
    )
    assert_close(method.loss(p).total, crossed / 2)


def test_no_gradient_reaches_the_teacher(method):
    method.loss(method.puzzle).total.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert not any(
        p is q for group in method.groups() for p in group["params"] for q in method.teacher.parameters()
    )


def test_teacher_starts_as_the_student_and_moves_by_ema_momentum(method):
    before = [p.clone() for p in method.teacher.parameters()]
    students = [*method.encoder.parameters(), *method.projector.parameters()]
    for old, p in zip(before, students, strict=True):
        assert torch.equal(old, p)
        p.data += 1
    method.after_step(None, Plan.of(10, 10).at(0))
    for old, p in zip(before, method.teacher.parameters(), strict=True):
        assert_close(p, old + 0.01)


def test_ema_momentum_is_annealed_to_1():
    assert cosine_momentum(0.99, 0.0) == pytest.approx(0.99)
    assert cosine_momentum(0.99, 0.5) == pytest.approx(0.995)
    assert cosine_momentum(0.99, 1.0) == pytest.approx(1.0)
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = a.weight.clone()
    update_ema(a, b, 1.0)
    assert torch.equal(a.weight, before)
    update_ema(a, b, 0.0)
    assert torch.equal(a.weight, b.weight)


def test_views_of_the_paper_differ_in_blur_and_solarization():
    view1, view2 = byol.Paper().augmentations()
    assert (view1.blur, view1.solarize, view2.blur, view2.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert byol.Config().augmentations() == (byol.Config().views,) * 2


def test_loss_of_random_rows_is_that_of_orthogonal_rows():
    p, z = Rng(1).normal(64, 4096), Rng(2).normal(64, 4096)
    assert abs(byol.regression_loss(p, z) - 2) < 0.02
    assert F.cosine_similarity(p, z, dim=1).abs().max() < 0.1
