"""The contract, for every file in pretask/methods and every recipe in it."""

import pytest
import torch
from small import images_for, small

from pretask import api, encoders, methods
from pretask.encoders import Encoder
from pretask.train.run import save_encoder
from pretask.workflows import contract

NAMES = methods.names()


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_the_contract(name, check):
    config = methods.recipe(name)()
    failure = contract.outcome(check, contract.Case.of(config, images_for(name), small(config.encoder)))
    assert failure is None, failure


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_does_not_learn_ends_with_the_weights_that_it_was_given(name, tmp_path):
    """So do its teachers; also where a teacher is exported, or a method draws the first weights itself."""
    config, size = methods.recipe(name)(), images_for(name).size
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
    )
    teacher = getattr(run.method, "teacher", run.encoder)
    for net in (run.encoder, *(part for part in teacher.modules() if isinstance(part, Encoder))):
        left = dict(net.named_parameters())
        assert [k for k, v in given.named_parameters() if not torch.equal(v, left[k])] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_builds_on_its_own_encoder(name):
    for config in methods.recipes(methods.module(name)).values():
        assert config.__doc__ and config.__doc__.splitlines()[0].endswith(".")
