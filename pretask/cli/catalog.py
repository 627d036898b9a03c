"""The catalog of methods, parsed from their source files without importing them, which would take seconds.

A method's file describes itself by constants: the docstrings of the module and of its Config classes, and the class
attributes `encoder`, `family` and `needs`, which may be inherited or refer to another class.
"""

import ast
import pkgutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FAMILIES = (
    "pretext tasks",
    "contrastive",
    "self-distillation",
    "distillation",
    "redundancy reduction",
    "clustering",
    "masked and predictive",
    "multimodal and synthetic",
)
"""in display order"""
PACKAGE = Path(__file__).parents[1]
METHODS = "pretask.methods"


@dataclass(frozen=True)
class Recipe:
    """A row of `pretask list`: a method with one of its recipes."""

    method: str
    """"rotnet" or "rotnet:paper\""""
    family: str
    task: str
    """the pretext task or objective, in a few words"""
    asks: str
    """first line of the docstring of its Config"""
    encoder: str
    needs: list[str]
    source: str


def recipes() -> list[Recipe]:
    """All recipes, by method in alphabetical order, the default of each method first."""
    names = [m.name for m in pkgutil.iter_modules([str(PACKAGE / "methods")]) if m.name != "base"]
    return [recipe for name in names for recipe in of_method(name)]


def of_method(name: str) -> list[Recipe]:
    module = f"{METHODS}.{name}"
    source = next(line for line in (ast.get_docstring(parsed(module)) or "").splitlines()[1:] if line.strip())
    return [
        Recipe(
            name if recipe == "Config" else f"{name}:{recipe.lower()}",
            constant(module, made, "family"),
            task(module),
            (ast.get_docstring(made) or "").splitlines()[0],
            constant(module, made, "encoder"),
            sorted(constant(module, made, "needs")),
            source,
        )
        for recipe, made in classes(module).items()
        if is_config(module, made)
    ]


def task(module: str) -> str:
    """`pretext_task` of the method class in a module."""
    for made in classes(module).values():
        for node in made.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pretext_task":
                return ast.literal_eval(node.value)
    raise LookupError(f"{module} has no pretext_task")


@cache
def parsed(module: str) -> ast.Module:
    """ "pretask.methods.rotnet" -> its syntax tree."""
    return ast.parse(PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8"))


def classes(module: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in parsed(module).body if isinstance(node, ast.ClassDef)}


def is_config(module: str, made: ast.ClassDef) -> bool:
    """Whether a class is the Config of its module, or derived from it."""
    own = classes(module)
    return made.name == "Config" or any(
        isinstance(base, ast.Name) and base.id in own and is_config(module, own[base.id])
        for base in made.bases
    )


def constant(module: str, made: ast.ClassDef, name: str) -> Any:
    """The class attribute `name`, possibly inherited."""
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
    """The module and the class that the expression `Class`, `module.Class` or `Class[…]` refers to."""
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
    """Imported name -> module that it comes from."""
    return {
        alias.name: node.module or ""
        for node in parsed(module).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
