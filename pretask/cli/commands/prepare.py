"""pretask prepare PATH --out STORE: decode once, train faster."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

from pretask.cli.flags import subject
from pretask.limits import Count, Share
from pretask.train.progress import say


@dataclass(frozen=True)
class Flags:
    """Decode images once into a memory-mapped store that opens at once and loads at the speed of the disk."""

    out: Path
    """the store's folder, which must not exist"""
    size: Count | None = None
    """side of the images, pixels"""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour"""
    root: Path | None = None
    """where a torchvision data set is"""
    max_bad: Share = 0.1
    """share of unreadable files at which it stops"""


def run(words: list[str]) -> None:
    data, chosen = subject(words, "prepare", "PATH", Flags)
    from pretask import data as sources
    from pretask.data import store

    asked = sources.Asked(chosen.size, chosen.channels, chosen.root, chosen.max_bad, cache_mb=0)
    found = sources.opened_anyhow(data, asked)
    source = found.images
    if found.label is not None:
        source = sources.Labelled(found.images, found.label, found.classes)
    store.prepare(source, chosen.out)
    say(
        f"wrote {chosen.out} ({source.ledger.used:,} images of {source.size} px). Next: give it as --data {quote(str(chosen.out))}"
    )
