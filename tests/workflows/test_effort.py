"""What candidates are given equally: FLOPs by a formula, and lengths whose costs are equal."""

from pathlib import Path

import pytest
from small import teacher
from torch import nn

from pretask import data
from pretask.config import RunConfig
from pretask.methods import distill, rotnet, simclr
from pretask.workflows import effort
from pretask.workflows.effort import StepCost, amount, step_cost, steps
from pretask.workflows.search import Trial

TINY = "resnet_small:width=8"


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(effort, "TIMED", 0.01)


def cost_of(name: str, config, out: Path) -> StepCost:
    images = data.open("synthetic:256:16")
    settings = RunConfig(
        "synthetic:256:16", out=out, encoder=TINY, size=16, accelerator="cpu", precision="32-true"
    )
    return step_cost(Trial(name, settings, config, config.train), images)


def forward_flops(net: nn.Module, channels: int, size: int) -> tuple[float, float]:
    """For one image: of all convolutions and linear layers, and of the first of them."""
    import torch

    found = []

    def count(module, given, out):
        per_output = module.weight[0].numel()
        found.append(2 * per_output * out[0].numel())

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        net.eval()(torch.zeros(1, channels, size, size))
    for hook in hooks:
        hook.remove()
    return sum(found), found[0]


def test_flops_of_a_step_are_those_of_the_layers_forward_and_twice_backward(tmp_path):
    """The first layer has no gradient of its input; each image is turned four ways."""
    from pretask import encoders

    found = cost_of("rotnet", rotnet.Config(), tmp_path / "run")
    net = encoders.build(TINY, 3, 16)
    whole, first = forward_flops(net, 3, 12)  # rotated crops have three quarters of the side
    head = 2 * net.dim * 4
    views = 4 * found.images
    assert found.flops == pytest.approx(views * (3 * whole - first + 3 * head), rel=0.02)
    assert found.before == 0 and found.seconds > 0 and not (tmp_path / "run").exists()


def test_teacher_and_its_stored_features_count(tmp_path):
    """Its projections to the principal components are a tenth or two more."""
    given = teacher()
    plain = cost_of("distill", distill.Config(teacher=given), tmp_path / "a")
    stored = cost_of("distill", distill.Config(teacher=given, stored_views=2), tmp_path / "b")
    own, _ = forward_flops(distill.Config(teacher=given).open_teacher(data.open("synthetic:256:16")), 3, 16)
    assert 1 <= (plain.flops - stored.flops) / (plain.images * own) < 1.3
    assert 1 <= (stored.before - plain.before) / (2 * 256 * own) < 1.3


def test_two_views_cost_more_than_one(tmp_path):
    one = cost_of("simclr", simclr.Config(), tmp_path / "a")
    assert one.flops > 2 * one.images * forward_flops_of_tiny()


def forward_flops_of_tiny() -> float:
    from pretask import encoders

    return forward_flops(encoders.build(TINY, 3, 16), 3, 16)[0]


@pytest.mark.parametrize("match", ["samples", "flops"])
def test_runs_get_equal_amounts_and_take_the_seconds_on_average(match):
    costs = {"fast": StepCost(0.1, 10, 100.0, 0.0), "slow": StepCost(0.4, 40, 900.0, 200_000.0)}
    given = amount(match, 1000.0, costs)
    lengths = {name: steps(match, given, cost) for name, cost in costs.items()}
    spent = [lengths[name] * cost.seconds for name, cost in costs.items()]
    assert sum(spent) / 2 == pytest.approx(1000, rel=0.01)
    if match == "samples":
        assert lengths["fast"] * 10 == pytest.approx(lengths["slow"] * 40, rel=0.01)
    else:
        assert lengths["fast"] * 100 == pytest.approx(lengths["slow"] * 900 + 200_000, rel=0.01)
