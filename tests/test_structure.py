"""The house: imports point downwards, nothing goes in a circle, and what is imported by name follows the same floors."""

import ast
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pretask

ROOT = Path(__file__).parents[1]
RULES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
FLOORS = next(rule["layers"] for rule in RULES if rule["id"] == "floors")
LEVEL = {room.strip(): level for level, rooms in enumerate(FLOORS) for room in rooms.split(":")}


def test_imports_point_downwards_and_nothing_goes_in_a_circle():
    linted = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    ended = subprocess.run([sys.executable, "-c", linted], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


def by_name() -> list[tuple[str, str]]:
    """Modules that import others by a name which a linter does not read, and how these names begin."""
    found = []
    for path in sorted((ROOT / "pretask").rglob("*.py")):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("import_module", "__import__")
            ):
                what = ast.unparse(node.args[0]).strip("f\"'")
                found.append((own, what.replace("{__name__}", own)))
    return found


def test_what_is_imported_by_name_lies_on_no_higher_floor():
    calls = by_name()
    callers = {importer for importer, _ in calls}
    assert {
        "pretask.data",
        "pretask.methods",
        "pretask.cli.commands",
        "pretask.workflows.transfer",
    } <= callers
    for importer, name in calls:
        if importer == "pretask":
            continue  # the package itself, which hands on what is asked for
        assert (room := re.match(r"pretask\.(\w+)\.", name)), f"{importer} imports {name}"
        assert LEVEL[room[1]] >= LEVEL[importer.split(".")[1]], f"{importer} imports {name}"


def test_no_module_takes_the_name_of_a_function_that_the_package_hands_on():
    """Once imported, it would stand in the function's place."""
    modules = {module.name for module in pkgutil.iter_modules(pretask.__path__)}
    assert not modules & {*pretask.__all__}
    assert all(getattr(pretask, name) is not None for name in pretask.__all__)
