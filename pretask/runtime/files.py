"""Atomic file writes: written to a temporary file, synced and renamed, so that readers never see half a file."""

import errno
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pretask.errors import UserError, out_of_memory

try:
    import fcntl
except ImportError:
    fcntl = None

LOCK = ".lock"


class Unwritable(UserError):
    """A file could not be written, as on a full disk. No part of it is left, and a previous version is unchanged."""

    def __init__(self, path: Path, failure: BaseException):
        super().__init__(f"could not write {path}: {reason(failure)}")


def reason(failure: BaseException) -> str:
    """The operating system's message; torch.save replaces it by another error."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return str(failure)


# ---- atomic writes


def write(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    """Let `fill` write the file `path` atomically. Raises Unwritable."""
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as failure:
        raise Unwritable(path, failure) from None
    finally:
        remove(temporary)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; file names in it that are not UTF-8 keep their bytes."""
    write(path, lambda file: file.write(text.encode(errors="surrogateescape")))


def write_folder(path: Path, fill: Callable[[Path], Any]) -> None:
    """Let `fill` write the files of a new folder `path` atomically. Raises Unwritable."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)  # left by a killed process
        temporary.mkdir()
        fill(temporary)
        temporary.replace(path)
        sync(path.parent)
    except (OSError, Unwritable) as failure:
        raise Unwritable(path, failure) from None
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists."""
    try:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:  # inside a file or on a read-only disk, so it was never written
        pass


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder within the block; UserError if another process holds it.

    The system releases the lock however this process ends, and child processes do not inherit it (as they would with
    `flock`), so a killed run can be resumed at once.
    """
    if fcntl is None:  # Windows
        yield
        return
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as failure:
            if failure.errno in (errno.EACCES, errno.EAGAIN):  # other errors: a file system without locks
                file.seek(0)
                who = file.read().strip() or "process number unknown"
                raise UserError(
                    f"{folder} is in use by another process ({who}); wait until it ends, or stop it"
                ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


# ---- JSON lines


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON in which numbers that are not finite, which JSON does not know, are null."""
    known = json.loads(json.dumps(value), parse_constant=lambda _: None)
    return json.dumps(known, indent=indent, allow_nan=False)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    try:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as failure:
        raise Unwritable(path, failure) from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl file; none if there is no file. An incomplete last line, left by a crash, is skipped."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    if lines and not lines[-1].endswith("}"):
        lines.pop()
    return [json.loads(line) for line in lines]


def rewind_rows(path: Path, step: int) -> None:
    """Remove the rows of `step` and later, which a resumed run writes again."""
    if path.exists():
        rows = [row for row in read_rows(path) if row["step"] < step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def restoring_from(path: Path) -> Iterator[None]:
    """Turn any error while restoring data from `path` into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as wrong:
        if out_of_memory(wrong):
            raise
        what = f"it lacks {wrong}" if isinstance(wrong, KeyError) else str(wrong).splitlines()[0]
        raise UserError(f"{path} is damaged or belongs to another run: {what}") from None
