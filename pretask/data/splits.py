"""Folders with splits: a root folder of images whose subfolders are named `train`, `val`, `test` …

ROOT           the splits to train on: train, unlabeled and extra; with labels, only train
ROOT:val       one split
ROOT:all       all splits
ROOT:classes   no splits: the subfolders are classes with such names

A folder has splits if each of its subfolders with images has one of these names, in upper or lower case, and one of them
is train or unlabeled. Loose images do not change this, unless train is the only split and they outnumber it. Splits may
lie deeper if nothing else does: ROOT/images/train, ROOT/images/val.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretask.data.ledger import Ledger

TRAIN, VAL, TEST, UNLABELED, EXTRA = "train", "val", "test", "unlabeled", "extra"
NAMES = {
    TRAIN: ("train", "training"),
    VAL: ("val", "valid", "validation", "dev"),
    TEST: ("test", "testing", "eval", "evaluation"),
    UNLABELED: ("unlabeled", "unlabelled"),
    EXTRA: ("extra",),
}
"""kind of split -> names of its folders and files, in lower case"""
KINDS = {name: kind for kind, names in NAMES.items() for name in names}
ALL, CLASSES = "all", "classes"
LEARNED = (TRAIN, UNLABELED, EXTRA)
"""splits used for training without labels; with labels only the first"""
LOOSE = "outside the splits"


@dataclass(frozen=True)
class Root:
    """The splits of a folder."""

    base: bytes
    """folder that contains them: "" or ending in a slash"""
    parts: dict[bytes, str]
    """folder name -> kind"""

    def split(self, path: bytes) -> tuple[bytes, bytes]:
        """A path -> its split, "" if outside, and the rest of the path."""
        name, _, rest = path.removeprefix(self.base).partition(b"/")
        inside = path.startswith(self.base) and name in self.parts
        return (name, rest) if inside else (b"", path)

    def label(self, path: bytes) -> str | None:
        """The class folder within a split; None in an unlabeled one."""
        part, rest = self.split(path)
        if b"/" not in rest or self.parts.get(part) in (None, UNLABELED):
            return None
        return os.fsdecode(rest.partition(b"/")[0])

    def take(self, found: Iterable[bytes], kinds: Collection[str], ledger: Ledger) -> list[bytes]:
        """The images in splits of these kinds. All others, damaged or not, become excluded records."""
        kept = []
        for path in found:
            part, _ = self.split(path)
            if self.parts.get(part) in kinds:
                kept.append(path)
            else:
                ledger.exclude(os.fsdecode(path), unused(part))
        for place in list(ledger.bad):
            part, _ = self.split(os.fsencode(place) + b"/")  # it may be the folder of a split
            if part and self.parts[part] not in kinds:
                del ledger.bad[place]
                ledger.exclude(place, unused(part))
        return kept

    def named(self, kinds: Collection[str]) -> list[str]:
        """Folders of these kinds."""
        return [os.fsdecode(self.base + name) for name, kind in self.parts.items() if kind in kinds]


def unused(part: bytes) -> str:
    return f"in {os.fsdecode(part)}/" if part else LOOSE


def find(found: Sequence[bytes]) -> Root | None:
    """The splits of a folder, given the relative paths of its images; None if it has none."""
    base = b""
    while True:
        inside = [path.removeprefix(base) for path in found if path.startswith(base)]
        folders = top_folders(inside)
        kinds = {name: kind for name in folders if (kind := KINDS.get(os.fsdecode(name).lower()))}
        if folders and len(kinds) == len(folders) and {TRAIN, UNLABELED} & {*kinds.values()}:
            loose = len(found) - sum(b"/" in path for path in inside)
            few = loose <= len(found) / 2 or {VAL, TEST} & {*kinds.values()}
            order = list(NAMES)
            return Root(base, dict(sorted(kinds.items(), key=lambda x: order.index(x[1])))) if few else None
        if len(folders) != 1:
            return None
        base += folders[0] + b"/"


def top_folders(paths: Iterable[bytes]) -> list[bytes]:
    return sorted({path.partition(b"/")[0] for path in paths if b"/" in path})


def lookalikes(found: Sequence[bytes]) -> list[str]:
    """Folders named like splits in a root that does not count as one: it has other folders too, or no train."""
    names = [os.fsdecode(name) for name in top_folders(found)]
    kinds = {KINDS.get(name.lower()) for name in names}
    doubtful = kinds & {VAL, TEST} and (TRAIN in kinds or None not in kinds)
    return [name for name in names if name.lower() in KINDS] if doubtful else []


def split_spec(spec: str) -> tuple[Path, str]:
    """FOLDER:PART -> the folder and the split, "" if none. An existing path is never split at its colons."""
    path, (root, _, part) = Path(spec).expanduser(), spec.rpartition(":")
    if part and not path.exists() and root and Path(root).expanduser().is_dir():
        return Path(root).expanduser(), part
    return path, ""


def listed(folders: Sequence[str]) -> str:
    """ "train/ is", "val/ and test/ are" """
    *most, last = [f"{folder}/" for folder in folders]
    return f"{', '.join(most)} and {last} are" if most else f"{last} is"
