"""Which architectures a file of weights fits, by the names and shapes of its tensors.

Shapes alone do not decide: efficientnet_lite0 and tf_efficientnet_lite0 have the same tensors but another padding, and vision
transformers of different releases share shapes but not the mean and standard deviation of their input. So this only lists them.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretask.encoders import layouts
from pretask.runtime import files
from pretask.runtime.console import bar

DEPENDS_ON_SIZE = re.compile(r"pos_embed|relative_position|attn_mask|rope|num_batches_tracked")
"""tensors whose shapes depend on the image size, and counters"""
KNOWN = Path(__file__).with_name("architectures.json")
"""the index of a version of timm, made by scripts/list_architectures.py"""


def fitting(found: Mapping[str, Tensor], progress: bool = True) -> list[str]:
    """The architectures of timm that have exactly these tensors, besides heads."""
    inside = layouts.unwrap(found, ()).tensors
    if layouts.is_transformers(inside):
        inside = layouts.from_transformers(inside)
    return index(progress).get(digest((name, tuple(x.shape)) for name, x in inside.items()), [])


def digest(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """A hash of names and shapes, without heads and without what depends on the image size."""
    kept = sorted(
        (name, *shape)
        for name, shape in shapes
        if not layouts.is_head(name) and not DEPENDS_ON_SIZE.search(name)
    )
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16]


def cache() -> Path:
    """The user's file of architectures that are not in KNOWN, for this version of timm."""
    import timm

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "pretask" / f"architectures-timm-{timm.__version__}.json"


def index(progress: bool = True) -> dict[str, list[str]]:
    """digest -> the architectures of timm with it. Those of a newer timm than KNOWN's are added once, at a second for four."""
    import timm

    found: dict[str, list[str]] = json.loads(KNOWN.read_text())
    listed = {name for names in found.values() for name in names}
    if missing := [name for name in timm.list_models() if name not in listed]:
        for key, names in cached(missing, progress).items():
            found.setdefault(key, []).extend(names)
    return found


def cached(names: list[str], progress: bool) -> dict[str, list[str]]:
    """The index of these architectures, from the user's cache or made and kept there."""
    path = cache()
    try:
        kept = json.loads(path.read_text())
        if {name for each in kept.values() for name in each} == {*names}:
            return kept
    except (OSError, ValueError):
        pass
    made = make(names, progress)
    with contextlib.suppress(OSError, files.Unwritable):  # in a read-only home it is made again the next time
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(made))
    return made


def make(names: Iterable[str], progress: bool) -> dict[str, list[str]]:
    """The index of these architectures, which are built without memory, on the meta device; those that cannot be have key ""."""
    import timm

    names = [*names]
    found: dict[str, list[str]] = {}
    with bar(progress) as shown:
        task = shown.add_task("listing timm's architectures (once)", total=len(names))
        for name in names:
            shown.advance(task)
            shapes = shapes_of(lambda name=name: timm.create_model(name, num_classes=0))
            found.setdefault(digest(shapes.items()) if shapes else "", []).append(name)
    return found


def shapes_of(build: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's tensors; none if it cannot be built on the meta device."""
    try:
        with torch.device("meta"):
            return {name: tuple(x.shape) for name, x in build().state_dict().items()}
    except Exception:  # whatever a network does with values when it is built
        return {}
