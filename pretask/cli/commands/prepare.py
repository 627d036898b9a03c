"""pretask prepare PATH --out STORE: decode once, train faster."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

from pretask.cli.flags import subject
from pretask.limits import PositiveInt
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Decode images once into a memory-mapped store, which opens immediately and loads at disk speed."""

    out: Path
    """folder of the store; it must not exist"""
    size: PositiveInt | None = None
    """image side in pixels (default: from the files, 160 at most)"""
    channels: Literal[1, 3] | None = None
    """1 for gray, 3 for color (default: as in the files)"""
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    data, chosen = subject(words, "prepare", "PATH", Flags)
    from pretask import data as sources
    from pretask.data import store, stream, webdataset

    options = sources.OpenOptions(chosen.size, chosen.channels, chosen.reading, cache_mb=0)
    if not data.startswith(stream.PREFIX) and webdataset.compressed(data):
        data = stream.PREFIX + data
    found = sources.open_with_any_labels(data, options)
    source = found.images
    if found.label is not None:
        source = sources.LabeledDataset(found.images, found.label, found.classes)
    store.prepare(source, chosen.out)
    say(
        f"wrote {chosen.out} ({source.ledger.used:,} images of {source.size} px). Next: use it with --data {quote(str(chosen.out))}"
    )
