"""A folder of images, nested in any way; for evaluation, one top-level folder per class."""

import os
from pathlib import Path

import numpy as np

from pretask.sources.common import Asked, Opened, Texts, numbered
from pretask.sources.encoded import collect
from pretask.types import UserError

SUFFIXES = frozenset(b"jpg jpeg jpe jfif png apng webp bmp dib tif tiff gif pgm ppm pbm pnm avif jp2".split())
VIDEOS = frozenset(b"3gp asf avi flv m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts vob webm wmv".split())

LOOSE = "lies outside the class folders"
"""why an image has no label"""


class Files:
    """Paths below a folder, in one array."""

    def __init__(self, root: str, paths: Texts):
        self.root, self.paths = root, paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        return self.paths[i]

    def read(self, i: int) -> Path:
        return Path(self.root, self.paths[i])


def load(spec: str, asked: Asked) -> Opened:
    root = inside(Path(spec).expanduser(), asked.split)
    found, bad = scan(root)
    if not found:
        others = sum(1 for _ in root.iterdir())
        films = any(p.suffix[1:].lower().encode() in VIDEOS for p in root.rglob("*"))
        raise UserError(
            f"{root} holds no images ({others} entries of other kinds); "
            + (
                f"of its video clips, tracks can be made: pretask track {root} --out tracks"
                if films
                else "expected files ending in .jpg, .png, .webp, .bmp, .tif …"
            )
        )
    label, classes = None, []
    if asked.labels:
        loose = [path for path in found if b"/" not in path]
        found = [path for path in found if b"/" in path]
        if not found:
            raise UserError(f"{root} has no class folders; expected {root}/CLASS/IMAGE, one folder per class")
        bad |= {os.fsdecode(path): LOOSE for path in loose}
        label, classes = numbered(np.array([os.fsdecode(path.split(b"/")[0]) for path in found]))
    return collect(root.resolve().name, Files(str(root), Texts.of(found)), asked, label, classes, bad)


def inside(root: Path, split: str | None) -> Path:
    """The part of a folder that has `train`, `val`, …"""
    if split is None:
        return root
    if not (root / split).is_dir():
        there = sorted(p.name for p in root.iterdir() if p.is_dir())
        raise UserError(f"{root} has no folder {split!r}; it has {there[:10]}")
    return root / split


def scan(root: Path) -> tuple[list[bytes], dict[str, str]]:
    """Relative paths of all images below `root`, in order of file name; and what could not be looked at.

    Hidden entries are passed over. Links are followed, real folders first, and no folder is entered twice.
    """
    base = os.fsencode(root)
    found: list[bytes] = []
    bad: dict[str, str] = {}
    entered: set[tuple[int, int]] = set()
    folders, links = [b""], []
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        path = os.path.join(base, folder)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(path), key=lambda e: e.name, reverse=True)
        except OSError as error:
            bad[os.fsdecode(folder) or "."] = (error.strerror or "cannot be entered").lower()
            continue
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            relative = os.path.join(folder, entry.name)
            if is_folder(entry):
                (links if entry.is_symlink() else folders).append(relative)
            elif entry.name.rpartition(b".")[2].lower() in SUFFIXES:
                if is_file(entry):
                    found.append(relative)
                else:
                    bad[os.fsdecode(relative)] = "a broken link, or not a file"
    return sorted(found, key=by_name), bad


def by_name(path: bytes) -> tuple[bytes, bytes]:
    """Which folder a file lies in, its class perhaps, does not decide its place, or a run would depend on it."""
    return path.rpartition(b"/")[2], path


def is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_file(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False
