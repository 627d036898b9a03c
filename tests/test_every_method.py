"""The contract, for every file in pretask/methods and every recipe in it."""

import pytest
from small import images_for

from pretask import contract, methods

NAMES = methods.names()
SMALL = {"mlp": "mlp:width=32", "resnet50": "resnet_small:width=16", "resnet18": "resnet_small:width=16"}
"""the same kind of net, narrower, so that a test takes a second"""


def small(encoder: str) -> str:
    name = encoder.split(":")[0]
    return SMALL.get(name, f"{name}:width=16")


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
