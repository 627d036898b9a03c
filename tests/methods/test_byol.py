"""What a faithful BYOL must show (Grill et al. 2020, eq. 2 and algorithm 1)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import data as sources
from pretask import encoders
from pretask.encoders.heads import follow, rising
from pretask.methods import byol
from pretask.rng import Rng
from pretask.train.plan import Plan


@pytest.fixture
def method():
    torch.manual_seed(0)
    source = sources.open("synthetic:32:16")
    made = byol.Config().build(encoders.build("resnet_small:width=16", 3, 16), source).train()
    made.puzzle = made.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    return made


def test_the_distance_is_the_papers_equation():
    p, z = Rng(1).normal(5, 8), Rng(2).normal(5, 8)
    slow = 0.0
    for a, b in zip(p.tolist(), z.tolist(), strict=True):
        a, b = ([v / math.hypot(*x) for v in x] for x in (a, b))
        slow += sum((u - v) ** 2 for u, v in zip(a, b, strict=True)) / 5
    assert_close(byol.distance(p, z).item(), slow)
    assert byol.distance(p, p).abs() < 1e-5
    assert_close(byol.distance(p, -3 * p), torch.tensor(4.0))


def test_values_and_gradients_are_those_of_an_independent_implementation():
    lightly = pytest.importorskip("lightly.loss")
    a, b = Rng(1).normal(6, 8).requires_grad_(), Rng(2).normal(6, 8)
    c = a.detach().clone().requires_grad_()
    byol.distance(a, b).backward()
    (2 + 2 * lightly.NegativeCosineSimilarity()(c, b)).backward()
    assert_close(a.grad, c.grad)


def test_each_view_foresees_the_teachers_features_of_the_other(method):
    method.eval()  # so that each view can be passed alone
    p, (encoder, head) = method.puzzle, method.teacher

    def foreseen(x):
        return method.predictor(method.head(method.encoder(x)["pool"]))

    def seen(x):
        return head(encoder(x)["pool"])

    crossed = byol.distance(foreseen(p.left), seen(p.right)) + byol.distance(foreseen(p.right), seen(p.left))
    assert_close(method.loss(p).total, crossed / 2)


def test_no_gradient_reaches_the_teacher(method):
    method.loss(method.puzzle).total.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert not any(
        p is q for group in method.groups() for p in group["params"] for q in method.teacher.parameters()
    )


def test_the_teacher_begins_as_the_student_and_follows_it(method):
    before = [p.clone() for p in method.teacher.parameters()]
    students = [*method.encoder.parameters(), *method.head.parameters()]
    for old, p in zip(before, students, strict=True):
        assert torch.equal(old, p)
        p.data += 1
    method.after_step(None, Plan.of(10, 10).at(0))
    for old, p in zip(before, method.teacher.parameters(), strict=True):
        assert_close(p, old + 0.01)


def test_what_a_teacher_keeps_rises_to_all():
    assert rising(0.99, 0.0) == pytest.approx(0.99)
    assert rising(0.99, 0.5) == pytest.approx(0.995)
    assert rising(0.99, 1.0) == pytest.approx(1.0)
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    kept = a.weight.clone()
    follow(a, b, 1.0)
    assert torch.equal(a.weight, kept)
    follow(a, b, 0.0)
    assert torch.equal(a.weight, b.weight)


def test_the_papers_views_differ_in_blur_and_solarisation():
    left, right = byol.Paper().pair()
    assert (left.blur, left.solarize, right.blur, right.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert byol.Config().pair() == (byol.Config().views,) * 2


def test_at_random_the_loss_is_that_of_orthogonal_rows():
    p, z = Rng(1).normal(64, 4096), Rng(2).normal(64, 4096)
    assert abs(byol.distance(p, z) - 2) < 0.02
    assert F.cosine_similarity(p, z, dim=1).abs().max() < 0.1
