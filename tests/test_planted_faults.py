"""Every planted fault changes what is computed, and is gone afterwards."""

import dataclasses
import importlib
from functools import reduce

import pytest
import torch
from lightning_fabric import Fabric
from small import images_for, light, small

from pretask import faults, methods
from pretask.errors import UserError
from pretask.methods import MethodConfig
from pretask.train.logger import RunLogger
from pretask.train.plan import Plan
from pretask.train.trainer import Trainer

ALL = [(method, fault) for method in faults.names() for fault in faults.of(method)]


def test_every_method_has_two_faults_or_more_with_names_of_their_own():
    assert faults.names() == methods.names()
    for method in methods.names():
        names = [fault.name for fault in faults.of(method)]
        assert len(set(names)) == len(names) >= 2


def weights(config: MethodConfig, method: str, folder) -> torch.Tensor:
    """The weights of a small network after some steps."""
    torch.manual_seed(0)
    source = images_for(method)
    train = dataclasses.replace(config.train, batch=16)
    folder.mkdir()
    built = config.build(config.build_encoder(config.spec(small(config.encoder)), source), source)
    trainer = Trainer(Fabric(accelerator="cpu", devices=1), built, source, train, folder, workers=1)
    trainer.fit(Plan.of(2 * train.cycles, 4, train.cycles), RunLogger(folder, 16, True, None))
    return torch.cat([p.detach().flatten() for p in built.parameters()])


@pytest.mark.parametrize(("method", "fault"), ALL, ids=[f"{method}: {fault.name}" for method, fault in ALL])
def test_a_fault_changes_what_is_learned_and_is_gone_afterwards(method, fault, tmp_path):
    config = light(method)
    module = importlib.import_module(f"pretask.methods.{method}")
    before = [reduce(getattr, path.split("."), module) for path in fault.patches]
    with faults.planted(method, config, fault) as broken:
        wrong = weights(broken, method, tmp_path / "wrong")
    assert before == [reduce(getattr, path.split("."), module) for path in fault.patches]
    right = weights(config, method, tmp_path / "right")
    assert wrong.shape != right.shape or not torch.equal(wrong, right)


def test_ablations_are_of_many_methods_and_some_are_no_collapse():
    found = list(faults.ablations())
    assert len(found) >= 12 and len({method for method, _ in found}) >= 10
    assert sum(fault.named_by != "monitor" for _, fault in found) >= 4


def test_what_can_be_left_out_is_listed_in_the_error():
    with pytest.raises(
        UserError, match="simsiam has no ablation 'x'; give --without stop-gradient or --without predictor"
    ):
        faults.find("simsiam", "x")
    with pytest.raises(UserError, match="pretask ablate --list shows all"):
        faults.find("rotnet", "x")
