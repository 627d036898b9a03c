#!/usr/bin/env python3
"""Set up everything on a machine with only Python 3.11+ and pip, then run the demo, the tests or the docs.

    python3 dev.py demo        install pretask and run `pretask demo`
    python3 dev.py test        install the test tools too; lint, types and tests, of the docs as well
    python3 dev.py test tests/transforms/test_augment.py   the tests of one file
    python3 dev.py pin         update constraints.txt, the tested versions

The environment is .venv in this folder; uv installs into it, and is itself fetched with pip if it is missing.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENV = HERE / ".venv"
BIN = ENV / ("Scripts" if os.name == "nt" else "bin")


def run(*command: object) -> None:
    print("$", *command, flush=True)
    done = subprocess.run([str(c) for c in command], cwd=HERE)
    if done.returncode:
        sys.exit(done.returncode)


def run_beside(command: Sequence[object], main: Sequence[object]) -> None:
    """Run both at once; the output of `command` is shown when `main` is done. Exits if one of them fails."""
    with tempfile.TemporaryFile("w+") as output:
        print("$", *command, "  (beside the next)", flush=True)
        beside = subprocess.Popen(
            [str(c) for c in command], cwd=HERE, stdout=output, stderr=subprocess.STDOUT
        )
        print("$", *main, flush=True)
        code = subprocess.run([str(c) for c in main], cwd=HERE).returncode
        other = beside.wait()
        output.seek(0)
        print("$", *command)
        print(output.read(), end="", flush=True)
    if code or other:
        sys.exit(code or other)


def uv() -> str:
    """The path of uv: the one on this machine, or one installed into .venv-uv."""
    found = shutil.which("uv")
    if found:
        return found
    tools = HERE / ".venv-uv"
    own = tools / BIN.name / "uv"
    if not own.exists():
        venv.create(tools, with_pip=True)
        run(tools / BIN.name / "python", "-m", "pip", "install", "--quiet", "uv")
    return str(own)


def install(extras: str) -> None:
    tool = uv()
    if not (BIN / "python").exists():
        run(tool, "venv", "--quiet", "--python", sys.executable, ENV)
    python = BIN / "python"
    options = ["--quiet", "--compile-bytecode", "--python", python, "-c", "constraints.txt"]
    run(tool, "pip", "install", *options, "-e", f".[{extras}]")


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit(f"pretask needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    verb, rest = (sys.argv[1] if len(sys.argv) > 1 else "help"), sys.argv[2:]
    if verb == "demo":
        install("all")
        run(BIN / "python", "-m", "pretask", "demo", *rest)
    elif verb == "test":
        install("test,docs")
        python = BIN / "python"
        pytest = [python, "-m", "pytest", "-n", "2", "--dist", "worksteal", *rest]
        if rest:
            run(*pytest)
        else:
            run(python, "-m", "ruff", "check", ".")
            run(python, "-m", "ruff", "format", "--check", ".")
            run(BIN / "codespell")
            run_beside([python, "-m", "pyright"], pytest)
    elif verb == "pin":
        files = [
            "--extra",
            "test",
            "--extra",
            "docs",
            "--universal",
            "--no-annotate",
            "--no-header",
            "--upgrade",
        ]
        run(uv(), "pip", "compile", "pyproject.toml", *files, "--no-emit-index-url", "-o", "constraints.txt")
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
