"""Saving and restoring a run: written beside, synced, then renamed, so that a reader never sees half a file."""

import errno
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pretask.types import UserError

try:
    import fcntl
except ImportError:
    fcntl = None

LATEST, HEALTHY, LOCK = "checkpoint.pt", "checkpoint-healthy.pt", ".lock"


class Unwritable(UserError):
    """A full disk, a folder that may not be written: nothing of the file is left, and what was there still is."""

    def __init__(self, path: Path, failure: BaseException):
        super().__init__(f"could not write {path}: {reason(failure)}")


def reason(failure: BaseException) -> str:
    """The operating system's words; torch.save hides them behind an error of its own."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return str(failure)


# ---- writing


def write(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    """Let `fill` write the file `path`, all of it or nothing. Raises Unwritable."""
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as failure:
        raise Unwritable(path, failure) from None
    finally:
        remove(beside)


def write_text(path: Path, text: str) -> None:
    """As UTF-8; file names that are no UTF-8 keep their bytes."""
    write(path, lambda file: file.write(text.encode(errors="surrogateescape")))


def write_folder(path: Path, fill: Callable[[Path], Any]) -> None:
    """Let `fill` write the files of a new folder `path`, all of them or nothing. Raises Unwritable."""
    beside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(beside)  # of a process that was killed
        beside.mkdir()
        fill(beside)
        beside.replace(path)
        sync(path.parent)
    except (OSError, Unwritable) as failure:
        raise Unwritable(path, failure) from None
    finally:
        remove(beside)


def remove(path: Path) -> None:
    """A file or folder that may be there."""
    try:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:  # below a file, or on a disk that is read only: then it was never written
        pass


def sync(path: Path) -> None:
    """Until it is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """In here no other process may be; UserError if one is.

    The system lets go of the lock when this process ends, however it does, and the processes that it starts have no part in
    it (as they would have in one of `flock`): after a kill a run can be resumed at once.
    """
    if fcntl is None:  # Windows
        yield
        return
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as failure:
            if failure.errno in (errno.EACCES, errno.EAGAIN):  # any other: a file system without locks
                file.seek(0)
                who = file.read().strip() or "which does not say its number"
                raise UserError(
                    f"{folder} is in use by another process ({who}); wait for its end, or end it"
                ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


# ---- checkpoints


def save(path: Path, state: dict[str, Any]) -> None:
    write(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any]:
    """The saved state, on the CPU; nothing but tensors and plain values is ever unpickled."""
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
    except Exception as failure:
        raise UserError(
            f"{path} is not a checkpoint that can be read: {' '.join(str(failure).splitlines()[:1])}"
        ) from None
    return state


@contextmanager
def belonging(path: Path) -> Iterator[None]:
    """What was read from `path` goes where it belongs in here, or it is named: a file can be wrong in any way."""
    try:
        yield
    except UserError:
        raise
    except Exception as wrong:
        what = f"it lacks {wrong}" if isinstance(wrong, KeyError) else str(wrong).splitlines()[0]
        raise UserError(f"{path} is damaged, or of another run: {what}") from None


def set_aside(folder: Path) -> None:
    """Keep the newest checkpoint, made while all was well, under a name that later ones do not overwrite."""
    latest, kept = folder / LATEST, folder / HEALTHY
    if latest.exists() and not kept.exists():
        with latest.open("rb") as newest:
            write(kept, lambda file: shutil.copyfileobj(newest, file))
