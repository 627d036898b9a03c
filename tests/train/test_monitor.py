"""Planted collapses are named, and healthy runs are left alone."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from small import images_for, small

from pretask import data as sources
from pretask import encoders, methods
from pretask.config import TrainConfig
from pretask.errors import UserError
from pretask.methods import Method, MethodConfig, byol, dino, ibot, jule, lejepa, moco, simsiam, swav, vicreg
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.runtime import files as checkpoint
from pretask.train import run
from pretask.train.health import BLIND, COMPLETE, DIMENSIONAL, HEALTHY, SHORTCUT
from pretask.train.logger import Journal
from pretask.train.monitor import Costs, Watch, costs, diagnose, spread, still
from pretask.train.plan import Plan
from pretask.train.trainer import Trainer
from pretask.transforms import augment as images
from pretask.types import Loss


@dataclass(frozen=True)
class Shown:
    image: torch.Tensor


class Planted(Method[Shown]):
    """Losses that end badly, each in its own way."""

    def __init__(self, encoder, fault):
        super().__init__()
        self.encoder, self.fault = encoder, fault
        self.bias = torch.nn.Parameter(torch.zeros(8))

    def pretext(self, batch, rng):
        return Shown(images.flip(images.to_float(batch.image), rng))

    def loss(self, p):
        z = self.encoder(p.image)["pool"].float()
        apart = z - z.mean(0)
        if self.fault == "complete":  # nothing keeps images apart, and the loss does not tell
            cost = apart.square().mean() + (1 - z).square().mean()
            return Loss(cost - cost.detach() + 1)
        if self.fault == "one direction":  # only the brightness of an image is left
            u = torch.ones(z.shape[1]) / z.shape[1] ** 0.5
            along = apart @ u
            rest = apart - along[:, None] * u
            bright = p.image.mean((1, 2, 3))
            target = 5 * (bright - bright.mean()) / bright.std()
            return Loss(rest.square().sum(1).mean() + 0.1 * (along - target).square().mean())
        if self.fault == "shortcut":  # the loss is paid by a bias, whatever the image
            return Loss((self.bias - 1).square().sum() + 10 * apart.square().mean() + (1 - z).square().mean())
        return Loss(z.mean() * torch.where(self.bias.sum() != 0, torch.nan, 1.0) + self.bias.sum())

    def export(self):
        return self.encoder


@dataclass(frozen=True)
class Config(MethodConfig):
    fault: str = "complete"
    train: ClassVar[TrainConfig] = TrainConfig(batch=16, optimizer="adamw", lr=1e-2, weight_decay=0.0)

    def build(self, encoder, source):
        return Planted(encoder, self.fault)


def trained(config, folder, steps=60, source=None, encoder="resnet_small:width=8", every=1):
    torch.manual_seed(0)
    source = source or sources.open("synthetic:64:16")
    method = config.build(encoders.build(config.spec(encoder), 3, source.size), source)
    trainer = Trainer(Fabric(accelerator="cpu", devices=1), method, source, config.train, folder)
    watch = Watch(method, source, folder)
    turn = itertools.count()
    watch.due = lambda *_: next(turn) % every == 0
    trainer.fit(Plan.of(steps, 4, config.train.rounds), Journal(folder, 16, True, watch))
    return watch


@pytest.mark.parametrize(
    ("fault", "state"),
    [("complete", COMPLETE), ("one direction", DIMENSIONAL), ("shortcut", SHORTCUT)],
)
def test_a_planted_collapse_is_named_and_the_last_healthy_weights_are_kept(fault, state, tmp_path):
    watch = trained(Config(fault=fault), tmp_path, steps=200)
    assert watch.state == state
    assert 0 < watch.since < 200
    rows = run.read(tmp_path / run.SEEN)
    assert next(r["step"] for r in rows if r["state"] == watch.state) <= watch.since
    kept = checkpoint.load(tmp_path / checkpoint.HEALTHY)
    assert kept["step"] <= watch.since


def alike(p, z):
    return F.cosine_similarity(p.float(), z.float(), dim=1).mean()


def sharpened(taught, centre, sharpness):
    return (taught / sharpness).softmax(1)


def both_learn(self, pretext):
    """BYOL without a teacher: both sides of the loss have a gradient."""
    z = self.head(self.encoder(pretext.both)["pool"])
    return Loss(2 - 2 * alike(self.predictor(z), torch.cat(z.chunk(2)[::-1])))


@dataclass(frozen=True)
class Fault:
    """What keeps a method from collapse, taken away."""

    of: Any
    knobs: Mapping[str, Any] = field(default_factory=dict)
    instead: Mapping[str, Any] = field(default_factory=dict)


FAULTS = {
    "simsiam, no stop-gradient": Fault(simsiam, instead={"closeness": alike}),
    "byol, no teacher": Fault(byol, instead={"BYOL.loss": both_learn}),
    "moco, no negatives": Fault(
        moco, {"keep": 0.9}, {"among_earlier": lambda q, k, *_: (1 - alike(q, k), torch.zeros(()))}
    ),
    "vicreg, no variance and no covariance": Fault(vicreg, {"variance": 0.0, "covariance": 0.0}),
    "vicreg, no variance": Fault(vicreg, {"variance": 0.0}),
    "lejepa, no Gaussian": Fault(lejepa, {"gaussian": 0.0}),
    "swav, no equal shares": Fault(swav, instead={"codes": lambda s, epsilon, _: (s / epsilon).softmax(1)}),
    "dino, no centring": Fault(dino, {"keep": 0.9}, {"assigned": sharpened}),
    "dino, no sharpening": Fault(dino, {"keep": 0.9, "sharp": (1.0, 1.0)}),
    "ibot, no centring": Fault(ibot, {"keep": 0.9}, {"assigned": sharpened}),
    "jule, no other clusters": Fault(
        jule, instead={"margin_loss": lambda z, places, *_: jule.mean(jule.distances(z, places)[0])}
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_method_without_what_keeps_it_from_collapse_is_named(fault, tmp_path, monkeypatch):
    planted = FAULTS[fault]
    for where, what in planted.instead.items():
        monkeypatch.setattr(f"{planted.of.__name__}.{where}", what)

    class Fast(planted.of.Config):
        train = TrainConfig(batch=32, optimizer="adamw", lr=3e-3, weight_decay=0.0)

    encoder, source = small(Fast.encoder), sources.open("synthetic:128:16")
    watch = trained(Fast(**planted.knobs), tmp_path, 100, source, encoder, every=10)
    assert watch.state in (BLIND, DIMENSIONAL)
    assert 0 < watch.since < 100


def test_a_loss_that_is_not_finite_stops_the_run_and_says_since_when(tmp_path):
    with pytest.raises(UserError, match=r"not finite since step 2;.*checkpoint.pt.*lower --lr"):
        trained(Config(fault="nan"), tmp_path)
    assert all(v.isfinite().all() for v in checkpoint.load(tmp_path / checkpoint.LATEST)["method"].values())


@pytest.mark.parametrize("name", methods.names())
def test_a_healthy_run_is_left_alone(name, tmp_path):
    class Short(methods.recipe(name)):
        train = TrainConfig(**{**vars(methods.recipe(name).train), "batch": 16})

    watch = trained(Short(), tmp_path, steps=40, source=images_for(name), encoder=small(Short.encoder))
    assert watch.state == HEALTHY
    last = run.read(tmp_path / run.SEEN)[-1]
    assert last["swapped"] > last["paid"]


def test_spread_of_a_constant_of_one_direction_and_of_a_ball():
    constant = spread(torch.ones(64, 16))
    assert constant.relative == 0 and constant.cosine == pytest.approx(1) and constant.std == 0
    line = spread(Rng(0).normal(64, 1) * torch.ones(1, 16))
    assert line.rank == pytest.approx(1, abs=1e-3)
    ball = spread(Rng(0).normal(4096, 16))
    assert ball.rank > 15.9 and abs(ball.cosine) < 0.01 and ball.std == pytest.approx(16**-0.5, rel=0.02)
    assert math.isnan(spread(torch.full((8, 4), math.nan)).rank)


@pytest.mark.parametrize("name", methods.names())
def test_looking_changes_nothing(name, tmp_path):
    config, source = methods.recipe(name)(), images_for(name)
    method = config.build(encoders.build(config.spec(small(config.encoder)), 3, source.size), source).train()
    method.begin(Context(source, [], Plan.of(1, 1).at(0), Rng(0)))
    next(method.children()).eval()
    before, state = {k: v.clone() for k, v in method.state_dict().items()}, torch.get_rng_state()
    modes = [m.training for m in method.modules()]
    labelled = sources.open_labelled(f"synthetic:64:{source.size}")
    Watch(method, source, tmp_path, labelled).look(Plan.of(9, 1).at(0), now=True)
    assert torch.equal(state, torch.get_rng_state()) and modes == [m.training for m in method.modules()]
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert all(m.track_running_stats for m in method.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_answers_of_other_images_cost_a_solver_that_can_see_more():
    """A rotation network that answers right: of a batch, each image gets the turn of another."""
    source = sources.open("synthetic:8:16")
    method = methods.recipe("rotnet")().build(encoders.build("resnet_small:width=8", 3, 16), source)
    logits = torch.eye(4).repeat(8, 1) * 3
    method.logits = lambda puzzle: logits
    found = costs(method, source.__getitems__(torch.arange(8)))
    right = math.log(3 + math.exp(3))
    assert found.paid == pytest.approx(right - 3, rel=1e-5)
    assert found.swapped == pytest.approx(right, rel=1e-5)


def test_a_network_that_is_held_still_answers_by_its_batch_and_leaves_nothing_out():
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)).train()
    x = Rng(0).normal(8, 4) + 3
    with still(net):
        answer = net(x)
    assert torch.allclose(answer, (x - x.mean(0)) / x.std(0, correction=0), atol=1e-3)
    assert (net[0].running_mean == 0).all() and net[0].num_batches_tracked == 0
    assert net.training and net[0].track_running_stats and net[1].training


@dataclass(frozen=True)
class Asked:
    image: torch.Tensor
    question: torch.Tensor
    answer: torch.Tensor


class Knowing(Planted):
    """Looks at no image; whether it is right depends on question and answer, which moved together still fit."""

    def pretext(self, batch, rng):
        number = torch.arange(len(batch))
        return Asked(images.to_float(batch.image), number, number**2)

    def loss(self, p):
        return Loss((p.question**2 - p.answer).abs().float().mean() + 0 * self.bias.sum())


def test_a_question_of_several_parts_is_mixed_up_part_by_part():
    source = sources.open("synthetic:8:16")
    net = encoders.build("resnet_small:width=8", 3, 16)
    found = costs(Knowing(net, ""), source.__getitems__(torch.arange(8)))
    assert found.paid == 0 and found.swapped > 1


def test_a_puzzle_of_one_part_cannot_be_mixed_up():
    source = sources.open("synthetic:8:16")
    found = costs(
        Planted(encoders.build("resnet_small:width=8", 3, 16), "complete"),
        source.__getitems__(torch.arange(8)),
    )
    assert math.isfinite(found.paid) and math.isnan(found.swapped)


@pytest.mark.parametrize(
    ("first", "paid", "swapped", "expected"),
    [
        (2.0, 1.0, 1.001, BLIND),
        (2.0, 1.0, 1.1, HEALTHY),  # another answer costs more
        (2.0, 1.99, 1.99, HEALTHY),  # it has hardly fallen
        (2.0, 3.0, 3.0, HEALTHY),  # nor here
        (2.0, 1.0, math.nan, HEALTHY),  # a puzzle of one field has no answer to swap
        (-0.1, -0.9, -0.9, BLIND),
        (-0.1, -0.9, -0.5, HEALTHY),
    ],
)
def test_blind_is_a_loss_that_fell_and_does_not_mind(first, paid, swapped, expected):
    ball = spread(Rng(0).normal(64, 16))
    assert diagnose(ball, ball, Costs(paid, swapped), Costs(first, first)) == expected


def test_what_is_paid_is_compared_within_a_round(tmp_path):
    """As where layers are trained one by one, with a loss of another size."""
    source = sources.open("synthetic:64:16")
    method = methods.recipe("rotnet")().build(encoders.build("resnet_small:width=8", 3, 16), source)
    watch = Watch(method, source, tmp_path)
    watch.starts[0] = Costs(500.0, 500.0)
    method.logits = lambda puzzle: torch.zeros(len(puzzle.turn), 4)  # 1.386, whatever the image
    for step, round, state in ((0, 0, BLIND), (1, 1, HEALTHY), (2, 1, HEALTHY), (3, 0, BLIND)):
        watch.look(replace(Plan.of(9, 9).at(step), round=round), now=True)
        assert watch.state == state
    assert Watch(method, source, tmp_path).starts.keys() == {0, 1}
