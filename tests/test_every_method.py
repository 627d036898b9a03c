"""The contract, for every file in pretask/methods and every recipe in it."""

import pytest
from small import images_for, small

from pretask import contract, methods

NAMES = methods.names()


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_the_contract(name, check):
    config = methods.recipe(name)()
    failure = contract.outcome(check, contract.Case.of(config, images_for(name), small(config.encoder)))
    assert failure is None, failure


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_builds_on_its_own_encoder(name):
    for config in methods.recipes(methods.module(name)).values():
        assert config.__doc__ and config.__doc__.splitlines()[0].endswith(".")
