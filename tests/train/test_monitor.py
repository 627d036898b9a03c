"""The collapse monitor names planted collapses and reports nothing in healthy runs."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from lightning_fabric import Fabric
from small import images_for, light, small

from pretask import data, encoders, faults, methods
from pretask.config import TrainConfig
from pretask.errors import UserError
from pretask.methods import Method, MethodConfig
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.runtime import files
from pretask.train import checkpoint, run
from pretask.train.health import COMPLETE, CONSTANT_FEATURES, DIMENSIONAL, HEALTHY, INPUT_INDEPENDENT
from pretask.train.logger import RunLogger
from pretask.train.monitor import CollapseMonitor, ShuffleTest, diagnose, feature_stats, frozen, shuffle_test
from pretask.train.plan import Plan
from pretask.train.trainer import Trainer
from pretask.transforms import augment
from pretask.types import Loss


@dataclass(frozen=True)
class Shown:
    image: torch.Tensor


class Planted(Method[Shown]):
    """A method whose loss makes it collapse, in one of several ways."""

    def __init__(self, encoder, fault):
        super().__init__()
        self.encoder, self.fault = encoder, fault
        self.bias = torch.nn.Parameter(torch.zeros(8))

    def pretext(self, batch, rng):
        return Shown(augment.flip(augment.to_float(batch.image), rng))

    def loss(self, p):
        z = self.encoder(p.image)["pool"].float()
        centered = z - z.mean(0)
        if self.fault == "complete":  # features become constant while the loss stays the same
            cost = centered.square().mean() + (1 - z).square().mean()
            return Loss(cost - cost.detach() + 1)
        if self.fault == "one direction":  # features keep only the brightness of an image
            u = torch.ones(z.shape[1]) / z.shape[1] ** 0.5
            along = centered @ u
            rest = centered - along[:, None] * u
            bright = p.image.mean((1, 2, 3))
            target = 5 * (bright - bright.mean()) / bright.std()
            return Loss(rest.square().sum(1).mean() + 0.1 * (along - target).square().mean())
        if self.fault == "shortcut":  # a bias lowers the loss, independent of the image
            return Loss(
                (self.bias - 1).square().sum() + 10 * centered.square().mean() + (1 - z).square().mean()
            )
        return Loss(z.mean() * torch.where(self.bias.sum() != 0, torch.nan, 1.0) + self.bias.sum())

    def export(self):
        return self.encoder


@dataclass(frozen=True)
class Config(MethodConfig):
    fault: str = "complete"
    train: ClassVar[TrainConfig] = TrainConfig(batch=16, optimizer="adamw", lr=1e-2, weight_decay=0.0)

    def build(self, encoder, source):
        return Planted(encoder, self.fault)


def trained(config, folder, steps=60, source=None, encoder="resnet_small:width=8", every=1, train=None):
    """The monitor after a run; it checks at the start of each cycle, every so many steps, and at the end."""
    torch.manual_seed(0)
    source = source or data.open("synthetic:64:16")
    method = config.build(encoders.build(config.spec(encoder), 3, source.size), source)
    train = train or config.train
    trainer = Trainer(Fabric(accelerator="cpu", devices=1), method, source, train, folder)
    monitor, plan = CollapseMonitor(method, source, folder), Plan.of(steps, 4, train.cycles)
    check = monitor.check

    def check_some(progress, now=False):
        begins = plan.at(progress.step).cycle != plan.at(max(progress.step - 1, 0)).cycle
        check(progress, now or begins or progress.step % every == 0)

    monitor.check, monitor.is_due = check_some, lambda *_: False
    trainer.fit(plan, RunLogger(folder, 16, True, monitor))
    return monitor


@pytest.mark.parametrize(
    ("fault", "state"),
    [("complete", COMPLETE), ("one direction", DIMENSIONAL), ("shortcut", CONSTANT_FEATURES)],
)
def test_planted_collapse_is_named_and_last_healthy_checkpoint_is_kept(fault, state, tmp_path):
    monitor = trained(Config(fault=fault), tmp_path, steps=200)
    assert monitor.state == state
    assert 0 < monitor.since < 200
    rows = files.read_rows(tmp_path / run.MONITOR)
    assert next(r["step"] for r in rows if r["state"] == monitor.state) <= monitor.since
    kept = checkpoint.load(tmp_path / checkpoint.HEALTHY)
    assert kept["step"] <= monitor.since


COLLAPSES = {
    f"{method} without {fault.name}": (method, fault)
    for method in faults.names()
    for fault in faults.of(method)
    if fault.named_by == "monitor"
}
EARLY = (
    "byol without teacher",
    "nnclr without own-neighbors",
    "emp_ssl without coding-rate",
    "swav without equal-shares",
    "dino without sharpening",
    "dinov2 without even-assignments",
)
"""faults that show in the first ten steps, so that 40 are enough"""
LATE = ("simsiam without predictor",)
"""faults that take more than 100 steps to show"""
WIDE = ("dinov2 without even-assignments",)
"""faults that take more steps to show with a narrow head"""


@pytest.mark.parametrize("name", COLLAPSES)
def test_methods_without_their_collapse_prevention_are_named(name, tmp_path):
    method, fault = COLLAPSES[name]
    plain = methods.recipe(method)() if name in WIDE else light(method)
    train = TrainConfig(batch=32, optimizer="adamw", lr=3e-3, weight_decay=0.0)
    source = data.open("synthetic:128:16")
    steps = 40 if name in EARLY else 250 if name in LATE else 100
    with faults.planted(method, plain, fault) as config:
        monitor = trained(config, tmp_path, steps, source, small(config.encoder), every=10, train=train)
    assert monitor.state in (INPUT_INDEPENDENT, DIMENSIONAL)
    assert 0 < monitor.since < steps


def test_nonfinite_loss_stops_the_run_and_names_the_step(tmp_path):
    with pytest.raises(UserError, match=r"not finite since step 2;.*checkpoint.pt.*lower --lr"):
        trained(Config(fault="nan"), tmp_path)
    assert all(v.isfinite().all() for v in checkpoint.load(tmp_path / checkpoint.LATEST)["method"].values())


@pytest.mark.parametrize("name", methods.names())
def test_short_run_of_every_method_is_healthy(name, tmp_path):
    config = light(name)
    train = replace(config.train, batch=16)
    monitor = trained(config, tmp_path, 40, images_for(name), small(config.encoder), train=train)
    assert monitor.state == HEALTHY
    last = files.read_rows(tmp_path / run.MONITOR)[-1]
    assert last["shuffled_loss"] > last["probe_loss"]


def test_feature_stats_of_constant_rank_one_and_gaussian_features():
    constant = feature_stats(torch.ones(64, 16))
    assert constant.relative_variance == 0 and constant.cosine == pytest.approx(1) and constant.std == 0
    line = feature_stats(Rng(0).normal(64, 1) * torch.ones(1, 16))
    assert line.rank == pytest.approx(1, abs=1e-3)
    ball = feature_stats(Rng(0).normal(4096, 16))
    assert ball.rank > 15.9 and abs(ball.cosine) < 0.01 and ball.std == pytest.approx(16**-0.5, rel=0.02)
    assert math.isnan(feature_stats(torch.full((8, 4), math.nan)).rank)


@pytest.mark.parametrize("name", methods.names())
def test_check_does_not_change_method_or_rng(name, tmp_path):
    config, source = light(name), images_for(name)
    method = config.build(encoders.build(config.spec(small(config.encoder)), 3, source.size), source).train()
    method.begin(Context(source, [], Plan.of(1, 1).at(0), Rng(0)))
    next(method.children()).eval()
    before, state = {k: v.clone() for k, v in method.state_dict().items()}, torch.get_rng_state()
    modes = [m.training for m in method.modules()]
    labeled = data.open_labeled(f"synthetic:64:{source.size}")
    CollapseMonitor(method, source, tmp_path, labeled).check(Plan.of(9, 1).at(0), now=True)
    assert torch.equal(state, torch.get_rng_state()) and modes == [m.training for m in method.modules()]
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert all(m.track_running_stats for m in method.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_shuffled_answers_raise_the_loss_of_a_network_that_predicts_well():
    """A rotation network that predicts correctly; in the shuffle test each image gets another's rotation."""
    source = data.open("synthetic:8:16")
    method = methods.recipe("rotnet")().build(encoders.build("resnet_small:width=8", 3, 16), source)
    logits = torch.eye(4).repeat(8, 1) * 3
    method.logits = lambda puzzle: logits
    found = shuffle_test(method, source.__getitems__(torch.arange(8)))
    right = math.log(3 + math.exp(3))
    assert found.probe_loss == pytest.approx(right - 3, rel=1e-5)
    assert found.shuffled_loss == pytest.approx(right, rel=1e-5)


def test_frozen_network_uses_batch_statistics_and_no_dropout():
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)).train()
    x = Rng(0).normal(8, 4) + 3
    with frozen(net):
        answer = net(x)
    assert torch.allclose(answer, (x - x.mean(0)) / x.std(0, correction=0), atol=1e-3)
    assert (net[0].running_mean == 0).all() and net[0].num_batches_tracked == 0
    assert net.training and net[0].track_running_stats and net[1].training


@dataclass(frozen=True)
class Question:
    image: torch.Tensor
    question: torch.Tensor
    answer: torch.Tensor


class Exact(Planted):
    """Ignores the image; the loss is 0 while question and answer belong together, even if both are shifted."""

    def pretext(self, batch, rng):
        number = torch.arange(len(batch))
        return Question(augment.to_float(batch.image), number, number**2)

    def loss(self, p):
        return Loss((p.question**2 - p.answer).abs().float().mean() + 0 * self.bias.sum())


def test_fields_of_a_puzzle_are_shuffled_one_at_a_time():
    source = data.open("synthetic:8:16")
    net = encoders.build("resnet_small:width=8", 3, 16)
    found = shuffle_test(Exact(net, ""), source.__getitems__(torch.arange(8)))
    assert found.probe_loss == 0 and found.shuffled_loss > 1


def test_puzzle_of_one_field_has_no_shuffled_loss():
    source = data.open("synthetic:8:16")
    found = shuffle_test(
        Planted(encoders.build("resnet_small:width=8", 3, 16), "complete"),
        source.__getitems__(torch.arange(8)),
    )
    assert math.isfinite(found.probe_loss) and math.isnan(found.shuffled_loss)


@pytest.mark.parametrize(
    ("first", "probe_loss", "shuffled_loss", "expected"),
    [
        (2.0, 1.0, 1.001, INPUT_INDEPENDENT),
        (2.0, 1.0, 1.1, HEALTHY),  # a wrong answer raises the loss
        (2.0, 1.99, 1.99, HEALTHY),  # the loss has hardly fallen
        (2.0, 3.0, 3.0, HEALTHY),  # the loss has risen
        (2.0, 1.0, math.nan, HEALTHY),  # a puzzle of one field cannot be shuffled
        (-0.1, -0.9, -0.9, INPUT_INDEPENDENT),
        (-0.1, -0.9, -0.5, HEALTHY),
    ],
)
def test_input_independent_means_the_loss_fell_and_ignores_shuffling(
    first, probe_loss, shuffled_loss, expected
):
    ball = feature_stats(Rng(0).normal(64, 16))
    assert diagnose(ball, ball, ShuffleTest(probe_loss, shuffled_loss), ShuffleTest(first, first)) == expected


def test_losses_are_compared_within_a_cycle(tmp_path):
    """Layer-wise training, for example, has losses of different scale in each cycle."""
    source = data.open("synthetic:64:16")
    method = methods.recipe("rotnet")().build(encoders.build("resnet_small:width=8", 3, 16), source)
    monitor = CollapseMonitor(method, source, tmp_path)
    monitor.starts[0] = ShuffleTest(500.0, 500.0)
    method.logits = lambda puzzle: torch.zeros(len(puzzle.rotation), 4)  # 1.386 for every image
    for step, cycle, state in (
        (0, 0, INPUT_INDEPENDENT),
        (1, 1, HEALTHY),
        (2, 1, HEALTHY),
        (3, 0, INPUT_INDEPENDENT),
    ):
        monitor.check(replace(Plan.of(9, 9).at(step), cycle=cycle), now=True)
        assert monitor.state == state
    assert CollapseMonitor(method, source, tmp_path).starts.keys() == {0, 1}
