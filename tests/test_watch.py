"""Planted collapses are named, and healthy runs are left alone."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from lightning_fabric import Fabric
from small import images_for, small

from pretask import checkpoint, encoders, images, methods, run, sources
from pretask.config import TrainConfig
from pretask.errors import UserError
from pretask.journal import Journal
from pretask.loop import Plan, Trainer
from pretask.methods import Method, MethodConfig
from pretask.rng import Rng
from pretask.states import COMPLETE, DIMENSIONAL, HEALTHY, SHORTCUT
from pretask.types import Loss
from pretask.watch import Watch, spread


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


def trained(config, folder, steps=60, source=None, encoder="resnet_small:width=8"):
    torch.manual_seed(0)
    source = source or sources.open("synthetic:64:16")
    method = config.build(encoders.build(config.spec(encoder), 3, source.size), source)
    trainer = Trainer(Fabric(accelerator="cpu", devices=1), method, source, config.train, folder)
    watch = Watch(method.export(), source, folder)
    watch.due = lambda *_: True  # look after every row
    trainer.fit(Plan.of(steps, 4, config.train.rounds), Journal(folder, steps, 16, True, watch))
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


def test_spread_of_a_constant_of_one_direction_and_of_a_ball():
    constant = spread(torch.ones(64, 16))
    assert constant.relative == 0 and constant.cosine == pytest.approx(1) and constant.std == 0
    line = spread(Rng(0).normal(64, 1) * torch.ones(1, 16))
    assert line.rank == pytest.approx(1, abs=1e-3)
    ball = spread(Rng(0).normal(4096, 16))
    assert ball.rank > 15.9 and abs(ball.cosine) < 0.01 and ball.std == pytest.approx(16**-0.5, rel=0.02)
    assert math.isnan(spread(torch.full((8, 4), math.nan)).rank)


def test_looking_changes_nothing(tmp_path):
    source = sources.open("synthetic:64:16")
    encoder = encoders.build("resnet_small:width=8", 3, 16).train()
    before, state = {k: v.clone() for k, v in encoder.state_dict().items()}, torch.get_rng_state()
    Watch(encoder, source, tmp_path, sources.open_labelled("synthetic:64:16")).look(0, now=True)
    assert encoder.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
