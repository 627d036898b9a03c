"""Saving and restoring a run: written beside, synced, then renamed, so that a reader never sees half a file."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pretask.types import UserError

LATEST, HEALTHY = "checkpoint.pt", "checkpoint-healthy.pt"


def write(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    """Let `fill` write the file `path`, all of it or nothing. Raises UserError if the disk is full."""
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as failure:
        beside.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"could not write {path} ({failure}); {free / 1e6:.0f} MB are free there. Make room, then go on "
            f"with: pretask pretrain --resume {path.parent}"
        ) from None


def write_text(path: Path, text: str) -> None:
    write(path, lambda file: file.write(text.encode()))


def save(path: Path, state: dict[str, Any]) -> None:
    write(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any]:
    """The saved state, on the CPU; nothing but tensors and plain values is ever unpickled."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as failure:
        raise UserError(
            f"{path} is not a checkpoint that can be read: {str(failure).splitlines()[0]}"
        ) from None


def set_aside(folder: Path) -> None:
    """Keep the newest checkpoint, made while all was well, under a name that later ones do not overwrite."""
    latest, kept = folder / LATEST, folder / HEALTHY
    if latest.exists() and not kept.exists():
        shutil.copyfile(latest, kept)
