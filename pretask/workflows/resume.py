"""Checks before a run is resumed: where its images are now, and whether its results will be bit-identical."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretask import data
from pretask.data import fingerprint, in_memory, places
from pretask.encoders import origins
from pretask.transforms.ranges import Range
from pretask.types import UserError

if TYPE_CHECKING:
    from pretask.config import Changes, RunConfig
    from pretask.data.base import Images

DECIDING = ("pretask", "torch", "torchvision", "timm", "numpy", "pillow")
"""packages that affect numerical results"""
MACHINE = ("precision", "device", "instructions", "processes", "threads")
"""card entries that also affect them"""
MONITORED = "monitor_fingerprint"
"""card entry: fingerprint of the --monitor images"""


# ---- paths


def absolute(settings: "RunConfig") -> "RunConfig":
    """The settings with absolute paths."""
    reading = dataclasses.replace(settings.reading, root=absolute_path(settings.reading.root))
    return dataclasses.replace(
        settings,
        data=places.absolute(settings.data),
        monitor=settings.monitor and places.absolute(settings.monitor),
        init=settings.init and origins.absolute(settings.init),
        plan=absolute_path(settings.plan),
        reading=reading,
    )


def absolute_path(path: Path | None) -> Path | None:
    return path and Path(os.path.abspath(path))


def relocated(card: Mapping[str, Any], changes: "Changes") -> dict[str, Any]:
    """The card of a run with the new paths in `changes`, if any."""
    moved: dict[str, Any] = {}
    if changes.data:
        moved["data"] = places.absolute(changes.data)
    settings = card["settings"] | moved
    if changes.monitor:
        settings["monitor"] = places.absolute(changes.monitor)
    if changes.root:
        settings["reading"] = settings["reading"] | {"root": str(absolute_path(changes.root))}
    return {**card, **moved, "settings": settings}


def open_images(settings: "RunConfig", folder: Path, range: Range) -> "Images":
    """The images of the run in `folder`. Raises UserError if they cannot be opened."""
    try:
        return data.open(settings.data, size=settings.size, range=range, reading=settings.reading)
    except UserError as gone:
        if settings.data == in_memory.SPEC:  # this message already names the next step
            raise
        raise UserError(
            f"the images of {folder} cannot be opened: {gone}; if they were moved, give their new location with --data PATH"
        ) from None


def check(folder: Path, card: Mapping[str, Any], images: "Images") -> None:
    """UserError if these are not the images of the run in `folder`."""
    if difference := fingerprint.describe_changes(folder, card, images):
        raise UserError(
            f"{places.short(card['data'])} does not hold the images that {folder} was trained on: {difference}; "
            "give the location of the original images with --data PATH, or start a new run"
        )


# ---- reproducibility


def remarks(card: Mapping[str, Any], now: Mapping[str, Any], monitored: "Images | None") -> list[str]:
    """Why a resumed run may differ from an uninterrupted one; `now` has the entries of a new card."""
    found = []
    if not card.get(fingerprint.KEY):
        found.append(
            "Cannot check whether the images of this run are the same as before: it was started by an older version"
        )
    if monitored and card[MONITORED] and card[MONITORED] != monitored.fingerprint().digest:
        found.append("The --monitor images have changed: scores before and after are not of the same images")
    if changed := differing(card, now):
        found.append(f"Continues, but not bit for bit: {', '.join(changed)}")
    return found


def differing(card: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Changed entries that affect numerical results, such as "torch 2.8.0 → 2.9.1"; entries missing in an old card are omitted."""
    before, after = ({k: x[k] for k in (*MACHINE, "commit") if x.get(k)} for x in (card, now))
    for entries, whole in ((before, card), (after, now)):
        entries |= {k: v for k, v in whole.get("versions", {}).items() if k in DECIDING}
    both = [key for key in before if key in after]
    return [f"{key} {before[key]} → {after[key]}" for key in both if before[key] != after[key]]
