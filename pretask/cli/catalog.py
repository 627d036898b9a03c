"""The methods that ship with the package, read from their files as text: importing them takes seconds, this none.

A method's file says what it is in plain constants: the docstrings of the module and of its Config classes, and their
`encoder` and `needs`, which may be inherited or another class's.
"""

import ast
import pkgutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
METHODS = "pretask.methods"


@dataclass(frozen=True)
class Recipe:
    """A recipe, as `pretask list` shows it."""

    method: str
    """"rotnet" or "rotnet:paper\""""
    asks: str
    encoder: str
    needs: list[str]
    source: str


def recipes() -> list[Recipe]:
    """Of every method in alphabetical order, each method's default first."""
    names = [m.name for m in pkgutil.iter_modules([str(PACKAGE / "methods")]) if m.name != "base"]
    return [recipe for name in names for recipe in of_method(name)]


def of_method(name: str) -> list[Recipe]:
    module = f"{METHODS}.{name}"
    source = next(line for line in (ast.get_docstring(parsed(module)) or "").splitlines()[1:] if line.strip())
    return [
        Recipe(
            name if recipe == "Config" else f"{name}:{recipe.lower()}",
            (ast.get_docstring(made) or "").splitlines()[0],
            constant(module, made, "encoder"),
            sorted(constant(module, made, "needs")),
            source,
        )
        for recipe, made in classes(module).items()
        if is_config(module, made)
    ]


@cache
def parsed(module: str) -> ast.Module:
    """ "pretask.methods.rotnet" -> its syntax tree."""
    return ast.parse(PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8"))


def classes(module: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in parsed(module).body if isinstance(node, ast.ClassDef)}


def is_config(module: str, made: ast.ClassDef) -> bool:
    """Whether a class is the Config of its module, or one of its descendants there."""
    own = classes(module)
    return made.name == "Config" or any(
        isinstance(base, ast.Name) and base.id in own and is_config(module, own[base.id])
        for base in made.bases
    )


def constant(module: str, made: ast.ClassDef, name: str) -> Any:
    """What a class calls `name`: its own, or the nearest ancestor's."""
    for node in made.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return evaluated(module, node.value)
    return constant(*found(module, made.bases[0]), name)


def evaluated(module: str, value: ast.expr | None) -> Any:
    """A literal, a frozenset of literals, or `Other.name`."""
    if isinstance(value, ast.Call):
        return frozenset(ast.literal_eval(value.args[0]) if value.args else ())
    if isinstance(value, ast.Attribute):
        return constant(*found(module, value.value), value.attr)
    assert value is not None
    return ast.literal_eval(value)


def found(module: str, name: ast.expr) -> tuple[str, ast.ClassDef]:
    """The module and the class that `Class`, `module.Class` or `Class[…]` mean in a module."""
    if isinstance(name, ast.Subscript):
        return found(module, name.value)
    if isinstance(name, ast.Attribute):
        assert isinstance(name.value, ast.Name)
        other = f"{imported(module)[name.value.id]}.{name.value.id}"
        return other, classes(other)[name.attr]
    assert isinstance(name, ast.Name)
    if name.id in classes(module):
        return module, classes(module)[name.id]
    return found(imported(module)[name.id], name)


def imported(module: str) -> dict[str, str]:
    """Name -> the module that it was imported from."""
    return {
        alias.name: node.module or ""
        for node in parsed(module).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
