"""A folder of images, nested at any depth; for evaluation, one top-level folder per class."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import numpy as np

from pretask.data import imagefolder, splits
from pretask.data.base import Opened, OpenOptions, Texts, resolve_labels
from pretask.data.encoded import collect
from pretask.data.ledger import NO_LABEL, Ledger
from pretask.data.splits import TRAIN, Root
from pretask.runtime import accounts
from pretask.types import UserError

SUFFIXES = frozenset(
    b"jpg jpeg jpe jfif png apng webp bmp dib tif tiff gif pgm ppm pbm pnm avif jp2 heic heif hif jxl".split()
)
VIDEOS = frozenset(b"3gp asf avi flv m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts vob webm wmv".split())

LOOSE = "outside the class folders"
"""why an image has no label"""
FIRST = 32
"""leading bytes read from files with an unknown suffix to detect images"""
MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"\xff\x0a",
    b"\0\0\0\x0cJXL ",
    b"\0\0\0\x0cjP  ",
)
"""of JPEG, PNG, GIF, TIFF, BigTIFF, JPEG XL (codestream and container), JPEG 2000"""
BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
"""of AVIF and HEIF, after `ftyp`"""


class Files:
    """Image files below a folder, their paths in one array."""

    def __init__(self, root: str, paths: Texts):
        self.root, self.paths = root, paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        return self.paths[i]

    def read(self, i: int) -> Path:
        return Path(self.root, self.paths[i])

    def sizes(self) -> np.ndarray:
        return np.array([size(os.path.join(self.root, self.paths[i])) for i in range(len(self))], np.int64)

    def stamps(self) -> np.ndarray:
        """(N, 2) int64 size and time of change of each file; -1 for a missing one."""
        paths = (os.path.join(self.root, self.paths[i]) for i in range(len(self)))
        return np.array([stamp(path) for path in paths], np.int64).reshape(-1, 2)


def load(spec: str, options: OpenOptions) -> Opened:
    root, part = splits.split_spec(spec)
    part, name = options.split or part, root.resolve().name
    if part not in ("", splits.ALL, splits.CLASSES):
        root, name = part_of(root, part), f"{name}:{part}"
    found, ledger = scan(root)
    if not found:
        has_videos = any(suffix[1:].encode() in VIDEOS for suffix in ledger.other)
        ledger.set_size(0)
        raise UserError(
            f"{root} contains no images ({ledger.summary()}); "
            + (
                f"to extract tracks from its videos: pretask track {quote(str(root))} --out tracks"
                if has_videos
                else "expected files with suffix .jpg, .png, .webp, .bmp, .tif …"
            )
        )
    parts = splits.find(found) if part in ("", splits.ALL) else None
    if part == "" and parts is None and (similar := splits.lookalikes(found)):
        accounts.say_once(
            f"{name}: {splits.listed(similar)} read as ordinary folders; to read one of them: {root}:{similar[0]}"
        )
    if parts is not None and part != splits.ALL:
        found = training_images(root, found, parts, options, ledger)
    labels, why = [(top_folder if parts is None else parts.label)(path) for path in found], LOOSE
    if options.labels != "none" and (table := imagefolder.labels(root, found, ledger)) is not None:
        labels, why = [table.get(path) for path in found], NO_LABEL
    resolved = resolve_labels(labels, options, ledger, lambda i: os.fsdecode(found[i]), why=why)
    if options.labels == "all" and resolved.label is None:
        where = root if parts is None else root / TRAIN
        raise UserError(f"{root} has no class folders; expected {where}/CLASS/IMAGE, one folder per class")
    files = Files(str(root), Texts.of(found[i] for i in resolved.kept))
    return collect(name, files, options, resolved.label, resolved.classes, ledger)


def part_of(root: Path, part: str) -> Path:
    """The folder of a split, by its name or an equivalent one."""
    if (root / part).is_dir():
        return root / part
    parts = splits.find(scan(root)[0])
    there = [] if parts is None else parts.named(splits.NAMES)
    same = [name for name in there if splits.KINDS.get(part.lower()) == splits.KINDS[Path(name).name.lower()]]
    if not same:
        there = there or sorted(p.name for p in root.iterdir() if p.is_dir())[:10]
        raise UserError(f"{root} has no split {part!r}; it has {', '.join(there) or 'no folders'}")
    return root / same[0]


def with_all_splits(spec: str) -> str:
    """The spec with all splits of a root of splits, for commands that do not train; any other spec unchanged."""
    return f"{spec}:{splits.ALL}" if names_a_folder(spec) else spec


def names_a_folder(spec: str) -> bool:
    """Whether this is a folder of images without a split."""
    from pretask import data

    return Path(spec).expanduser().is_dir() and data.kind(spec).__name__ == __name__


def evaluation_split(spec: str) -> tuple[str, list[str]] | None:
    """The split of a root of splits to test on (the first of test and val that has class folders), and the unused splits.

    None for other specs.
    """
    if not names_a_folder(spec):
        return None
    found, _ = scan(Path(spec).expanduser())
    parts = splits.find(found)
    if parts is None or TRAIN not in parts.parts.values():
        return None
    labeled = {parts.split(path)[0] for path in found if parts.label(path) is not None}
    suitable = [
        name
        for kind in (splits.TEST, splits.VAL)
        for name, is_a in parts.parts.items()
        if is_a == kind and name in labeled
    ]
    rest = [
        os.fsdecode(name) for name, kind in parts.parts.items() if name not in suitable[:1] and kind != TRAIN
    ]
    return (os.fsdecode(parts.base + suitable[0]), rest) if suitable else None


def training_images(
    root: Path, found: list[bytes], parts: Root, options: OpenOptions, ledger: Ledger
) -> list[bytes]:
    """The images of a root of splits that may be trained on; prints which splits are used."""
    kinds = {TRAIN} if options.labels == "all" else {*splits.LEARNED}
    used, rest = parts.named(kinds), parts.named({*parts.parts.values()} - kinds)
    if not used:
        raise UserError(f"{root} has no {TRAIN}/; it has {splits.listed(rest).rpartition(' ')[0]}")
    if rest:
        accounts.say_once(
            f"{root.resolve().name}: {splits.listed(used)} used, {splits.listed(rest)} not; to use all: "
            f"{root}:{splits.ALL}; if these folders are classes: {root}:{splits.CLASSES}"
        )
    return parts.take(found, kinds, ledger)


def top_folder(path: bytes) -> str | None:
    first, slash, _ = path.partition(b"/")
    return os.fsdecode(first) if slash else None


def scan(root: Path) -> tuple[list[bytes], Ledger]:
    """Relative paths of all images below `root`, sorted by file name, and the ledger of everything else.

    A file is an image by its suffix or else by its first bytes. Hidden files and folders are not read.
    """
    found: list[bytes] = []
    ledger = Ledger()
    for relative, entry in walk(os.fsencode(root), ledger):
        if ending(entry.name)[1:] in SUFFIXES:
            if is_file(entry):
                found.append(relative)
            else:
                ledger.skip(os.fsdecode(relative), why_no_file(entry.path))
        elif is_file(entry) and is_image(entry.path):
            found.append(relative)
        else:
            ledger.other[os.fsdecode(ending(entry.name)) or "without suffix"] += 1
    return sorted(found, key=by_name), ledger


def walk(base: bytes, ledger: Ledger) -> Iterator[tuple[bytes, os.DirEntry[bytes]]]:
    """Relative path and entry of all files below a folder. Hidden entries and unreadable folders go into the ledger.

    Links are followed after real folders, and no folder is entered twice.
    """
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
            ledger.skip(os.fsdecode(folder) or ".", (error.strerror or "cannot be opened").lower())
            continue
        for entry in entries:
            relative = os.path.join(folder, entry.name)
            if entry.name.startswith(b"."):
                ledger.other["hidden"] += 1
            elif is_folder(entry):
                (links if entry.is_symlink() else folders).append(relative)
            else:
                yield relative, entry


def holds_images(root: Path) -> bool:
    """Whether a folder has files with an image suffix."""
    for _, folders, files in os.walk(os.fsencode(root)):
        folders[:] = [folder for folder in folders if not folder.startswith(b".")]
        if any(ending(file)[1:] in SUFFIXES and not file.startswith(b".") for file in files):
            return True
    return False


def ending(name: bytes) -> bytes:
    """Suffix in lower case: ".jpg" for "Photo.JPG", "" for a name without a dot."""
    _, dot, last = name.rpartition(b".")
    return (dot + last).lower() if dot else b""


def is_image(path: bytes) -> bool:
    """Whether a file is an image, by its first bytes; False if it cannot be opened."""
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


def why_no_file(path: bytes) -> str:
    """Why a path is not a regular file."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        known = {errno.ENOENT: "broken link", errno.ELOOP: "broken link: it points to itself"}
        return known.get(error.errno or 0, (error.strerror or "cannot be read").lower())
    return "not a file: " + (
        "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    )


def by_name(path: bytes) -> tuple[bytes, bytes]:
    """Sort key: file name before folder, so that the order of a run does not depend on the classes."""
    return path.rpartition(b"/")[2], path


def size(path: str) -> int:
    """Size in bytes; -1 for a missing file."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def stamp(path: str) -> tuple[int, int]:
    """Size and time of change in nanoseconds; -1 for a missing file."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def is_file(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False
