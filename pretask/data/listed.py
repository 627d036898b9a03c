"""`list:FILE`: the images whose paths a text file lists, one a line, as `pretask curate` writes it.

Paths are relative to the file. Images are named relative to its folder, or to the folder in a first line "# names relative to: …",
so that they keep the names that they had in a folder of images. A path that a line cannot hold, such as one with a line break, is a
JSON string.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from pretask.data import splits
from pretask.data.base import Opened, OpenOptions, Texts, resolve_labels
from pretask.data.encoded import collect
from pretask.data.folder import LOOSE, Files, top_folder
from pretask.data.ledger import Ledger
from pretask.data.paths import resolve
from pretask.runtime import files
from pretask.types import UserError

PREFIX = "list:"
HEADER = "# names relative to: "
TWICE = "listed twice"


def understands(spec: str) -> bool:
    return spec.startswith(PREFIX)


def load(spec: str, options: OpenOptions) -> Opened:
    path = Path(spec.removeprefix(PREFIX)).expanduser()
    root, names, ledger = read(path)
    if not names:
        raise UserError(
            f"{path} lists no image ({ledger.first_bad() or 'it is empty'}); expected one path a line, relative to the file"
        )
    stored = [os.fsencode(name) for name in names]
    parts = splits.find(stored)
    labels = [(top_folder if parts is None else parts.label)(name) for name in stored]
    resolved = resolve_labels(labels, options, ledger, lambda i: names[i], why=LOOSE)
    if options.labels == "all" and resolved.label is None:
        raise UserError(f"the images in {path} are not in class folders; give their labels with --labels")
    kept = Files(str(root), Texts.of(stored[i] for i in resolved.kept))
    return collect(path.stem, kept, options, resolved.label, resolved.classes, ledger)


def read(path: Path) -> tuple[Path, list[str], Ledger]:
    """The folder that names are relative to, the names of the images, and what was skipped. Raises UserError."""
    try:
        lines = os.fsdecode(path.read_bytes()).split("\n")
    except OSError as failure:
        raise UserError(f"{path} cannot be read: {files.reason(failure)}") from None
    home, ledger, names = Path(os.path.abspath(path.parent)), Ledger(), dict[str, None]()
    root = home
    if lines[0].startswith(HEADER):
        root = Path(os.path.normpath(home / unquoted(lines.pop(0).removeprefix(HEADER))))
    for line in lines:
        if not (line := line.rstrip("\r")):
            continue
        found, why = resolve(home, unquoted(line))
        name = os.path.relpath(home / found, root)
        if why:
            ledger.skip(line, why)
        elif name in names:
            ledger.exclude(line, TWICE)
        else:
            names[name] = None
    return root, [*names], ledger


def write(path: Path, root: Path, names: Iterable[str]) -> None:
    """A list of the images of these names, relative to `root`."""
    home = os.path.abspath(path.parent)
    paths = (os.path.relpath(os.path.join(root, name), home) for name in names)
    lines = [HEADER + quoted(os.path.relpath(root, home)), *map(quoted, paths)]
    files.write_text(path, "".join(f"{line}\n" for line in lines))


def quoted(path: str) -> str:
    """A path as a line."""
    unclear = path.startswith(('"', "#")) or path != path.strip() or "\n" in path or "\r" in path
    return json.dumps(path) if unclear else path


def unquoted(line: str) -> str:
    try:
        return str(json.loads(line)) if line.startswith('"') else line
    except ValueError:  # a name that begins with a quote, in a list that another program wrote
        return line
