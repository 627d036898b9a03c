"""What the texts around the images are about: each topic's words, and the images whose texts are most about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pretask.data import loader
from pretask.text import words as text
from pretask.text.topics import CARD, Topics
from pretask.types import Source
from pretask.viz import puzzle as sheet

LOOKED_AT = 2000
"""images, from all over the source"""
TYPICAL = 6
"""images of each topic"""


@dataclass(frozen=True)
class Subject:
    """A topic: its words, of how many images it is the main one, and the most typical of these."""

    words: str
    count: int
    pictures: Sequence[Image.Image]


@dataclass(frozen=True)
class Subjects:
    """All topics, the most frequent first, and how well they foresee words."""

    all: Sequence[Subject]
    perplexity: float
    chance: float


def read(folder: Path, source: Source) -> Subjects | None:
    """Of a run that learned topics, as LOOKED_AT images show them; None of any other."""
    if not (folder / CARD).is_file() or "words" not in source.provides:
        return None
    found, some = Topics.load(folder), loader.sample(source, LOOKED_AT)
    share = found.of(text.unpack(some.aux["words"]))
    main = share.argmax(1)
    subjects = []
    for k, words in enumerate(found.top()):
        mine = (main == k).nonzero()[:, 0]
        best = mine[share[mine, k].argsort(descending=True, stable=True)[:TYPICAL]]
        pictures = sheet.pictures(some.image[best]) if len(best) else []
        subjects.append(Subject(", ".join(words), len(mine), pictures))
    return Subjects(sorted(subjects, key=lambda s: -s.count), found.perplexity, found.chance)
