"""Package structure: imports go from higher to lower layers without cycles, imports by name included."""

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
LAYERS = next(rule["layers"] for rule in RULES if rule["id"] == "floors")
LEVEL = {package.strip(): level for level, packages in enumerate(LAYERS) for package in packages.split(":")}


def test_imports_follow_the_layers_without_cycles():
    program = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def dynamic_imports() -> list[tuple[str, str]]:
    """(importer, beginning of the imported name) of all imports by name, which the linter does not see."""
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


def test_imports_by_name_follow_the_layers():
    calls = dynamic_imports()
    callers = {importer for importer, _ in calls}
    assert {
        "pretask.data",
        "pretask.methods",
        "pretask.cli.commands",
        "pretask.workflows.transfer",
    } <= callers
    for importer, name in calls:
        if importer == "pretask":
            continue  # the package itself, which exports lazily
        assert (package := re.match(r"pretask\.(\w+)\.", name)), f"{importer} imports {name}"
        assert LEVEL[package[1]] >= LEVEL[importer.split(".")[1]], f"{importer} imports {name}"


def test_no_module_has_the_name_of_an_exported_function():
    """Importing the module would replace the function."""
    modules = {module.name for module in pkgutil.iter_modules(pretask.__path__)}
    assert not modules & {*pretask.__all__}
    assert all(getattr(pretask, name) is not None for name in pretask.__all__)
