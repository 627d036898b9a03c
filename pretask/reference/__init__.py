"""Recordings of correct runs, NAME.json for every method: five seeds each, made by bench/reference.py.

A file holds the setup, the method's constants and recipe at the time, the commit, and what every run showed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretask.types import UserError

FORMAT = 1
"""of the files"""
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Reference:
    method: str
    commit: str | None
    setup: Mapping[str, Any]
    """fields of recording.Setup"""
    constants: Mapping[str, Any]
    """fields of the method's default config and of its training recipe"""
    runs: Sequence[Mapping[str, Any]]
    """fields of recording.Recording, by seed"""


def names() -> list[str]:
    """Methods with a reference, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(method: str) -> Reference:
    """The reference of a method. Raises UserError."""
    path = FOLDER / f"{method}.json"
    if not path.is_file():
        raise UserError(f"there is no reference for {method!r}; there are {', '.join(names())}")
    found = json.loads(path.read_text())
    assert found.pop("format") == FORMAT, f"{path} has another format"
    return Reference(**found)
