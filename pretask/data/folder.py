"""A folder of images, nested in any way; for evaluation, one top-level folder per class."""

import os
from pathlib import Path
from shlex import quote

from pretask.data.base import Asked, Opened, Texts, settle
from pretask.data.encoded import collect
from pretask.data.ledger import Ledger
from pretask.types import UserError

SUFFIXES = frozenset(
    b"jpg jpeg jpe jfif png apng webp bmp dib tif tiff gif pgm ppm pbm pnm avif jp2 heic heif hif jxl".split()
)
VIDEOS = frozenset(b"3gp asf avi flv m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts vob webm wmv".split())

LOOSE = "lies outside the class folders"
"""why an image has no label"""
FIRST = 32
"""bytes that tell what a file is whose ending does not"""
MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"\xff\x0a",
    b"\0\0\0\x0cJXL ",
    b"\0\0\0\x0cjP  ",
)
"""of JPEG, PNG, GIF, TIFF, JPEG XL bare and in a box, JPEG 2000"""
BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
"""of AVIF and HEIF, after `ftyp`"""


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
    found, ledger = scan(root)
    if not found:
        films = any(ending[1:].encode() in VIDEOS for ending in ledger.other)
        ledger.opened(0)
        raise UserError(
            f"{root} holds no images ({ledger.line()}); "
            + (
                f"of its video clips, tracks can be made: pretask track {quote(str(root))} --out tracks"
                if films
                else "expected files ending in .jpg, .png, .webp, .bmp, .tif …"
            )
        )
    kinds = [os.fsdecode(path.split(b"/")[0]) if b"/" in path else None for path in found]
    settled = settle(kinds, asked, ledger, lambda i: os.fsdecode(found[i]), why=LOOSE)
    if asked.labels == "all" and settled.label is None:
        raise UserError(f"{root} has no class folders; expected {root}/CLASS/IMAGE, one folder per class")
    files = Files(str(root), Texts.of(found[i] for i in settled.kept))
    return collect(root.resolve().name, files, asked, settled.label, settled.classes, ledger)


def inside(root: Path, split: str | None) -> Path:
    """The part of a folder that has `train`, `val`, …"""
    if split is None:
        return root
    if not (root / split).is_dir():
        there = sorted(p.name for p in root.iterdir() if p.is_dir())
        raise UserError(f"{root} has no folder {split!r}; it has {there[:10]}")
    return root / split


def scan(root: Path) -> tuple[list[bytes], Ledger]:
    """Relative paths of all images below `root`, in order of file name; and the books, with all else that is there.

    A file is an image by its ending, or, of any other ending, by its first bytes. Hidden entries are not looked into.
    Links are followed, real folders first, and no folder is entered twice.
    """
    base = os.fsencode(root)
    found: list[bytes] = []
    ledger = Ledger()
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
            ledger.leave(os.fsdecode(folder) or ".", (error.strerror or "cannot be entered").lower())
            continue
        for entry in entries:
            relative = os.path.join(folder, entry.name)
            if entry.name.startswith(b"."):
                ledger.other["hidden"] += 1
            elif is_folder(entry):
                (links if entry.is_symlink() else folders).append(relative)
            elif ending(entry.name)[1:] in SUFFIXES:
                if is_file(entry):
                    found.append(relative)
                else:
                    ledger.leave(os.fsdecode(relative), "a broken link, or not a file")
            elif is_file(entry) and is_image(entry.path):
                found.append(relative)
            else:
                ledger.other[os.fsdecode(ending(entry.name)) or "without ending"] += 1
    return sorted(found, key=by_name), ledger


def ending(name: bytes) -> bytes:
    """ ".jpg" of "Photo.JPG"; nothing of a name without a dot."""
    _, dot, last = name.rpartition(b".")
    return (dot + last).lower() if dot else b""


def is_image(path: bytes) -> bool:
    """By its first bytes; not if it cannot be opened."""
    try:
        with open(path, "rb") as file:
            return looks_like_image(file.read(FIRST))
    except OSError:
        return False


def looks_like_image(first: bytes) -> bool:
    boxed = first[4:8] == b"ftyp" and first[8:12] in BRANDS
    riff = first[:4] == b"RIFF" and first[8:12] == b"WEBP"
    bitmap = first[:2] == b"BM" and first[6:10] == bytes(4) and len(first) > 10
    return first.startswith(MAGIC) or boxed or riff or bitmap


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
