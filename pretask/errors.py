"""Errors that the command line reports in one line, without a traceback."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from shlex import quote
from urllib.parse import unquote, urlparse


class UserError(Exception):
    """A mistake that the user can fix. The message says what came, what was expected, and what to do.

    The command line prints it as one line and exits with code 2.
    """


class Stopped(Exception):
    """A run was stopped by a signal, after saving a checkpoint; `code` is the exit code of the process."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def first_line(failure: BaseException) -> str:
    """First line of an exception's message, or the name of its type if it has no message."""
    message = str(failure).strip().splitlines()
    return message[0] if message else type(failure).__name__


def out_of_memory(failure: BaseException) -> bool:
    """Whether an exception means out of memory: Python's own error, CUDA's, or PyTorch's on a CPU, which has no type."""
    marks = ("DefaultCPUAllocator", "std::bad_alloc", "out of memory", "can't start new thread")
    return isinstance(failure, MemoryError) or any(mark in str(failure) for mark in marks)


def install_command(extra: str) -> str:
    """The command that adds an extra of pyproject.toml to this installation.

    It installs pretask again from where it came from (PEP 610), or, where that is gone or unknown, the extra's own packages.
    """
    try:
        found = distribution("pretask")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return f"pip install {quote(f'{Path(__file__).parents[1]}[{extra}]')}"
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    url = origin.get("url", "")
    if url.startswith("file:") and (path := Path(unquote(urlparse(url).path))).exists():
        option = "-e " if origin.get("dir_info", {}).get("editable") else ""
        return f"pip install {option}{quote(f'{path}[{extra}]')}"
    if vcs := origin.get("vcs_info"):
        source = f"pretask[{extra}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
        return f"pip install {quote(source)}"
    needed = [each.replace("'", '"').partition(";") for each in found.requires or []]
    packages = [quote(name.strip()) for name, _, marker in needed if f'extra == "{extra}"' in marker]
    return f"pip install {' '.join(packages)}"
