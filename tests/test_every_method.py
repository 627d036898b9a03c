"""The contract, for every file in pretask/methods and every recipe in it."""

import pytest

from pretask import contract, methods, sources

NAMES = methods.names()
SMALL = {"mlp": "mlp:width=32", "resnet50": "resnet_small:width=16", "resnet18": "resnet_small:width=16"}
"""the same kind of net, narrower, so that a test takes a second"""


@pytest.fixture(scope="module")
def source():
    return sources.open("synthetic:64:32")


def small(encoder: str) -> str:
    name = encoder.split(":")[0]
    return SMALL.get(name, f"{name}:width=16")


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_the_contract(name, check, source):
    config = methods.recipe(name)()
    failure = contract.outcome(check, contract.Case.of(config, source, small(config.encoder)))
    assert failure is None, failure


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_builds_on_its_own_encoder(name):
    for config in methods.recipes(methods.module(name)).values():
        assert config.__doc__ and config.__doc__.splitlines()[0].endswith(".")
