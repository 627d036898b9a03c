"""Planted faults: what happens to a method when one part of it is missing or wrong?

The folder is the registry: NAME.py holds the FAULTS of the method NAME. `pretask ablate` trains those that its paper discusses beside
the healthy method; bench/reference.py finds out which ones `pretask verify` sees. No method knows of its faults: they are hyperparameters
outside of what makes sense, and patches of the method's module for the time of a run.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal
from unittest.mock import patch

from pretask.methods import MethodConfig
from pretask.types import UserError

Named = Literal["monitor", "audit", "verify"]


@dataclass(frozen=True)
class Fault:
    name: str
    """what is missing, as in `--without stop-gradient`; or what is wrong"""
    about: str
    """one sentence"""
    config: Mapping[str, Any] = field(default_factory=dict)
    """hyperparameter -> value"""
    patches: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """a name in the method's module, such as regression_loss or BYOL.loss -> what makes the replacement from the original"""
    paper: str = ""
    """what the paper says of it, with the place; "" for plain mistakes, which are no ablations"""
    data: str = "demo"
    """images that show what an ablation does"""
    named_by: Named = "verify"
    """the command that names the fault: the monitor for collapses, the audit for shortcuts, verify for the rest"""


def of(method: str) -> tuple[Fault, ...]:
    """The faults of a method; empty if it has none."""
    if method not in names():
        return ()
    return importlib.import_module(f"{__name__}.{method}").FAULTS


def names() -> list[str]:
    """Methods with faults, in alphabetical order; nothing is imported."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def ablations() -> Iterator[tuple[str, Fault]]:
    """All faults that a paper discusses, with their method."""
    for method in names():
        for fault in of(method):
            if fault.paper:
                yield method, fault


def find(method: str, name: str) -> Fault:
    """Raises UserError."""
    known = {fault.name: fault for fault in of(method) if fault.paper}
    if name not in known:
        usual = " or ".join(f"--without {each}" for each in known)
        raise UserError(
            f"{method} has no ablation {name!r}; {f'give {usual}' if known else 'pretask ablate --list shows all'}"
        )
    return known[name]


@contextmanager
def planted(method: str, config: MethodConfig, fault: Fault) -> Iterator[MethodConfig]:
    """The config with the fault, whose patches hold within the block."""
    module = importlib.import_module(f"pretask.methods.{method}")
    with ExitStack() as patched:
        for path, make in fault.patches.items():
            *owners, name = path.split(".")
            owner = reduce(getattr, owners, module)
            patched.enter_context(patch.object(owner, name, make(getattr(owner, name))))
        yield dataclasses.replace(config, **fault.config)
