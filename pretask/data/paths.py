"""Finds the file that a table row, an article or an annotation refers to, whichever program wrote the path."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

SHOWN = 80
"""characters of a path shown in a reason"""
WEB = re.compile(r"[a-z][a-z0-9+.-]+://|//", re.I)


def resolve(folder: Path, name: Any) -> tuple[str, str]:
    """The path of the file relative to `folder`, and ""; or `name` itself, and why there is no such file.

    If there is no file `name`, backslashes are read as `/`, %20 as a space, ~ as a home folder and file:// as a path.
    """
    if not isinstance(name, str) or not name.strip():
        return "", "has no image path"
    if name.startswith("data:"):
        return name, "its image is an inline data URL; store it as a file"
    local = re.sub("^file://(localhost)?(?=/)", "", name, flags=re.I)
    if WEB.match(local):
        return name, "its image is a URL; download it and use its path"
    for likely in spellings(local):
        if not missing(folder, likely):
            return likely, ""
    return name, missing(folder, local)


def spellings(name: str) -> Iterator[str]:
    """A path as it is, then its other possible readings."""
    yield name
    plain = name.strip().replace("\\", "/")
    yield plain
    yield unquote(plain)
    if plain.startswith("~"):
        yield os.path.expanduser(plain)


def missing(folder: Path, name: str) -> str:
    """Why there is no file of that name; "" if it exists."""
    try:
        mode = os.stat(folder / name).st_mode
    except ValueError:  # NUL, or half a surrogate pair
        return "not a path: invalid characters"
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return f"path too long: {len(name):,} characters"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return f"no such file: {shown(name)}"
        return f"{(error.strerror or 'cannot be read').lower()}: {shown(name)}"
    return "" if stat.S_ISREG(mode) else f"not a file: {shown(name)}"


def shown(name: str) -> str:
    """The last SHOWN characters of a path."""
    return name if len(name) <= SHOWN else f"…{name[-SHOWN:]}"
