"""What a run that goes on needs to know: where its images are now, and whether it goes on to the same bits."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretask import data
from pretask.data import fingerprint, in_memory, places
from pretask.transforms.ranges import Range
from pretask.types import UserError

if TYPE_CHECKING:
    from pretask.config import Changes, RunConfig
    from pretask.data.base import Images

DECIDING = ("pretask", "torch", "torchvision", "timm", "numpy", "pillow")
"""packages that numbers depend on"""
MACHINE = ("precision", "device", "instructions", "processes", "threads")
"""entries of a card on which they depend as well"""
MONITORED = "monitor_fingerprint"
"""in a card, of the images of --monitor"""


# ---- places


def absolute(settings: "RunConfig") -> "RunConfig":
    """The same in any working directory."""
    reading = dataclasses.replace(settings.reading, root=fixed(settings.reading.root))
    return dataclasses.replace(
        settings,
        data=places.absolute(settings.data),
        monitor=settings.monitor and places.absolute(settings.monitor),
        init=fixed(settings.init),
        plan=fixed(settings.plan),
        reading=reading,
    )


def fixed(path: Path | None) -> Path | None:
    return path and Path(os.path.abspath(path))


def relocated(card: Mapping[str, Any], changes: "Changes") -> dict[str, Any]:
    """The card of a run whose images are now where `changes` says, as far as it says so."""
    moved: dict[str, Any] = {}
    if changes.data:
        moved["data"] = places.absolute(changes.data)
    settings = card["settings"] | moved
    if changes.monitor:
        settings["monitor"] = places.absolute(changes.monitor)
    if changes.root:
        settings["reading"] = settings["reading"] | {"root": str(fixed(changes.root))}
    return {**card, **moved, "settings": settings}


def opened(settings: "RunConfig", folder: Path, range: Range) -> "Images":
    """The images of the run in `folder`. Raises UserError if they are not there."""
    try:
        return data.open(settings.data, size=settings.size, range=range, reading=settings.reading)
    except UserError as gone:
        if settings.data == in_memory.SPEC:  # which says what to do
            raise
        raise UserError(
            f"the images of {folder} cannot be opened: {gone}; if they were moved, say where they are with --data PLACE"
        ) from None


def check(folder: Path, card: Mapping[str, Any], images: "Images") -> None:
    """UserError if these are not the images of the run in `folder`."""
    if told := fingerprint.describe_changes(folder, card, images):
        raise UserError(
            f"{places.short(card['data'])} does not hold the images that {folder} was trained on: {told}; "
            "say where these are with --data PLACE, or start a new run"
        )


# ---- bits


def remarks(card: Mapping[str, Any], now: Mapping[str, Any], watched: "Images | None") -> list[str]:
    """Why the run of a card may go on otherwise than it would have; `now` has the entries of a new card."""
    told = []
    if not card.get(fingerprint.KEY):
        told.append(
            "Whether its images are the same as before cannot be checked: an older version began this run"
        )
    if watched and card[MONITORED] and card[MONITORED] != watched.fingerprint().digest:
        told.append(
            "The images of --monitor have changed: its scores before and after are not of the same images"
        )
    if changed := differing(card, now):
        told.append(f"Goes on, but no longer bit for bit: {', '.join(changed)}")
    return told


def differing(card: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What numbers depend on and is another now: "torch 2.8.0 → 2.9.1"; what an old card does not tell is left out."""
    before, after = ({k: x[k] for k in (*MACHINE, "commit") if x.get(k)} for x in (card, now))
    for entries, whole in ((before, card), (after, now)):
        entries |= {k: v for k, v in whole.get("versions", {}).items() if k in DECIDING}
    both = [key for key in before if key in after]
    return [f"{key} {before[key]} → {after[key]}" for key in both if before[key] != after[key]]
