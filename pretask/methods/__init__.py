"""The folder is the registry: every module here that defines `Config` is a method with the name of the module.

A method outside the package is a Python file with the same content, named by its path: `./my_puzzle.py`.
"""

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pretask.methods.base.method import Method, MethodConfig, Minimum
from pretask.types import UserError

__all__ = ["Method", "MethodConfig", "Minimum", "module", "name_of", "names", "recipe", "recipes", "summary"]

OUTSIDE = "pretask_method_"
"""in front of the name of a file outside of the package, among Python's modules"""


def names() -> list[str]:
    """Built-in methods, in alphabetical order; nothing is imported."""
    return [m.name for m in pkgutil.iter_modules(__path__) if m.name != "base"]


def module(name: str) -> ModuleType:
    """The module of a method: a built-in name, or the path of a Python file."""
    if name.endswith(".py"):
        return outside(Path(name))
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names())}"
        raise UserError(f"no method is called {name!r}; {hint}")
    return importlib.import_module(f"{__name__}.{name}")


def outside(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"no method file at {path}; write one with a `Config`, as the tutorial shows")
    name = f"{OUTSIDE}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    if not hasattr(found, "Config"):
        raise UserError(f"{path} defines no `Config`; a method file needs one, as the tutorial shows")
    return found


def name_of(method: Method[Any] | MethodConfig) -> str:
    """The name of a method: that of its module, or of its file without folder and suffix."""
    return type(method).__module__.rpartition(".")[2].removeprefix(OUTSIDE)


def recipes(of: ModuleType) -> dict[str, type[MethodConfig]]:
    """Recipe name -> Config class: "default" is `Config`, every subclass in the file is one by its own name."""
    base = of.Config
    others = {
        name.lower(): value
        for name, value in vars(of).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }
    return {"default": base, **others}


def recipe(method: str) -> type[MethodConfig]:
    """The Config class that "rotnet", "rotnet:paper" or "./my_puzzle.py" names."""
    name, _, chosen = method.partition(":")
    found = recipes(module(name))
    if (chosen or "default") not in found:
        raise UserError(f"{name} has no recipe {chosen!r}; there are {', '.join(found)}")
    return found[chosen or "default"]


def summary(config: type[MethodConfig]) -> str:
    """The first line of a recipe's docstring, which a user's own method may lack."""
    return (config.__doc__ or "a puzzle without a description").strip().splitlines()[0]
