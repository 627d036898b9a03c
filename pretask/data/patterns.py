"""The files that a path, a pattern, or a folder with splits refers to.

A pattern has `*`, `?`, `[…]`, or numbers as in WebDataset, `train-{000..012}.tar`, all of which must exist. The split of a
file is found from its name or folder, as in Hugging Face: `data/train-00000.parquet`.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pretask.data.splits import ALL, KINDS, LEARNED, NAMES, TRAIN
from pretask.runtime.console import say
from pretask.types import UserError

NAMED = 3
"""missing files named in an error"""


def expand(spec: str) -> list[Path]:
    """The files of a path or pattern, sorted by name for each `*`. Raises UserError if a file of `{000..012}` is missing."""
    path = os.path.expanduser(spec)
    if os.path.exists(path):
        return [Path(path)] if os.path.isfile(path) else []
    every = expanded(path)
    found = {
        each: [each] if os.path.isfile(each) else sorted(glob.glob(each, recursive=True)) for each in every
    }
    missing = [each for each, files in found.items() if not files]
    if missing and len(every) > 1:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UserError(f"{spec} expands to {len(every)} files; missing: {', '.join(missing[:NAMED])}{more}")
    return [Path(file) for files in found.values() for file in files if os.path.isfile(file)]


def expanded(pattern: str) -> list[str]:
    """`a-{08..10}` -> a-08, a-09, a-10; `{a,b}` -> a, b."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if braces is None:
        return [pattern]
    first, last, words = braces.groups()
    if words is None:
        each = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    else:
        each = words.split(",")
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [before + middle + rest for middle in each for rest in expanded(after)]


def relative_names(files: Sequence[str | Path]) -> list[str]:
    """Names of files of one source: their paths relative to their common folder."""
    paths = [os.path.abspath(file) for file in files]
    base = os.path.commonpath(list(map(os.path.dirname, paths)))
    return [os.path.relpath(path, base) for path in paths]


def folder_of(spec: str) -> tuple[Path, str | None] | None:
    """FOLDER or FOLDER:PART -> the folder and the split; None if there is no such folder."""
    whole, (head, _, part) = os.path.expanduser(spec), os.path.expanduser(spec).rpartition(":")
    if os.path.isdir(whole):
        return Path(whole), None
    return (Path(head), part) if head and os.path.isdir(head) else None


def find_files(root: Path, endings: tuple[str, ...]) -> list[Path]:
    """Sorted files with these suffixes in a folder, its subfolder `data`, and subfolders named like splits."""
    likely = {"data", *KINDS}
    folders, found = [os.fspath(root)], []
    for folder in folders:
        try:
            entries = list(os.scandir(folder))
        except OSError:  # reported when the folder is opened
            continue
        for entry in entries:
            if entry.name.lower().endswith(endings) and not entry.name.startswith("."):
                found.append(Path(entry.path))
            elif folder == folders[0] and entry.name.lower() in likely and os.path.isdir(entry.path):
                folders.append(entry.path)
    return sorted(path for path in found if path.is_file())


def other_files(spec: str, endings: tuple[str, ...]) -> Counter[str]:
    """Other files in the folder of a source: suffix -> count, for the ledger; empty for a pattern."""
    count: Counter[str] = Counter()
    if (there := folder_of(spec)) is None:
        return count
    used = set(find_files(there[0], endings))
    for folder, below, files in os.walk(there[0]):
        count["hidden"] += sum(name.startswith(".") for name in (*below, *files))
        below[:] = [name for name in below if not name.startswith(".")]
        rest = (name for name in files if not name.startswith(".") and Path(folder, name) not in used)
        count.update(os.path.splitext(name)[1].lower() or "without suffix" for name in rest)
    return +count


def part_of(path: Path) -> str:
    """The kind of split of a file, by the last word of its relative path that names one; `train` if there is none."""
    words = re.split(r"[^a-z]+", str(path).lower())
    return next((KINDS[word] for word in reversed(words) if word in KINDS), TRAIN)


def files_of_split(root: Path, files: Sequence[Path], part: str | None, labels: bool) -> list[Path]:
    """The files of one split; if none is requested, those of the training splits."""
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(part_of(file.relative_to(root)), []).append(file)
    there = [name for name in NAMES if name in parts]
    if part == ALL or (part is None and len(parts) == 1):
        return list(files)
    if part is not None:
        if found := [f for f in files if f.name == part] or parts.get(KINDS.get(part.lower(), part)):
            return found
        raise UserError(f"{root} has no split {part!r}; it has {', '.join(there)}")
    chosen = [name for name in (LEARNED[:1] if labels else LEARNED) if name in parts]
    if not chosen:
        raise UserError(f"{root} has the splits {', '.join(there)}; choose one, such as {root}:{there[0]}")
    if left := [name for name in there if name not in chosen]:
        say(
            f"{root}: reading {' and '.join(chosen)}, not {' or '.join(left)}; to change this: {root}:{left[0]} or {root}:{ALL}"
        )
    return [file for name in chosen for file in parts[name]]
