"""The contract, for every method in pretask/methods and each of its recipes."""

import dataclasses
from collections import Counter

import pytest
import torch
from small import images_for, light, small

from pretask import api, encoders, methods
from pretask.config import RunConfig, TrainConfig
from pretask.encoders import Encoder
from pretask.encoders.saved import save_encoder
from pretask.workflows import contract

NAMES = methods.names()


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_the_contract(name, check):
    config = light(name)
    failure = contract.run_check(check, contract.Case.of(config, images_for(name), small(config.encoder)))
    assert failure is None, failure


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_learning_rate_0_ends_with_its_initial_weights(name, tmp_path):
    """Teachers too; also if a teacher is exported, or the method initializes the encoder itself."""
    config, size = light(name), images_for(name).size
    torch.manual_seed(1)
    given = encoders.build(config.spec(small(config.encoder)), 3, size)
    (tmp_path / "given").mkdir()
    save_encoder(given, tmp_path / "given")
    run = api.pretrain(
        name,
        f"synthetic:64:{size}",
        tmp_path / "run",
        encoder=small(config.encoder),
        init=tmp_path / "given",
        seed=2,
        steps=2,
        batch=16,
        lr=0.0,
        quiet=True,
        config=config,
    )
    teacher = getattr(run.method, "teacher", run.encoder)
    for net in (run.encoder, *(part for part in teacher.modules() if isinstance(part, Encoder))):
        final = net.state_dict()
        assert [k for k, v in given.named_parameters() if not torch.equal(v, final[k])] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_a_one_sentence_docstring(name):
    for config in methods.recipes(methods.module(name)).values():
        assert config.__doc__ and config.__doc__.splitlines()[0].endswith(".")


def flags(kind: type) -> list[str]:
    """Names of all fields, those of nested dataclasses included, as the command line flattens them."""
    found = []
    for field in dataclasses.fields(kind):
        nested = getattr(kind, field.name, None)
        found += flags(type(nested)) if dataclasses.is_dataclass(nested) else [field.name]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_two_flags_have_one_name(name):
    for recipe in methods.recipes(methods.module(name)).values():
        counts = Counter([*flags(recipe), *flags(TrainConfig), *flags(RunConfig)])
        assert [flag for flag, count in counts.items() if count > 1] == []
