"""Specs of data that do not depend on the working directory."""

import os
import re
from pathlib import Path

from pretask import data
from pretask.data import (
    demo,
    image_text,
    in_memory,
    label_file,
    listed,
    patterns,
    scenes,
    synthetic,
    torchvision_sets,
)
from pretask.types import UserError

NAMES = (in_memory, synthetic, demo, torchvision_sets)
"""kinds of data without a path"""
PREFIXES = ("hf-stream:", "hf:", image_text.PREFIX, listed.PREFIX, scenes.PREFIX)
ENDS = ":#"
"""separators between a path and its column, split or number of images"""


def absolute(spec: str) -> str:
    """A spec of a file, folder or pattern with an absolute path; any other spec unchanged."""
    try:
        kind = data.kind(spec)
        if kind is scenes:
            return of_scenes(spec)
        if kind is label_file:
            table, images = label_file.split(spec)
            return label_file.spec_of(found(table), absolute(images))
    except UserError:  # no longer exists
        return spec
    if kind in NAMES:
        return spec
    prefix = next((p for p in PREFIXES if spec.startswith(p)), "")
    path = spec.removeprefix(prefix)
    ends = [len(path), *(i for i in reversed(range(1, len(path))) if path[i] in ENDS)]
    for end in ends:
        if is_there(path[:end]):
            return prefix + found(path[:end]) + path[end:]
    return spec if prefix else found(path)


def of_scenes(spec: str) -> str:
    folder, photographs = scenes.split(spec)
    return f"{scenes.PREFIX}{found(folder)}" + (f"+{absolute(photographs)}" if photographs else "")


def is_there(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path)) or bool(patterns.expand(path))


def found(path: str | Path) -> str:
    return os.path.abspath(os.path.expanduser(path))


def short(spec: str) -> str:
    """A spec for display: an absolute path is shortened to its last part."""
    return re.sub(r"(^|:|\+|@)/(?:[^+@]*/)?", r"\1", spec)
