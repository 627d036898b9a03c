"""Topics of the texts around the images: the words of each topic, and its most typical images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pretask.data import loader
from pretask.text import words as text
from pretask.text.topics import CARD, Topics
from pretask.types import Source
from pretask.viz import sheet

SAMPLE = 2000
"""maximum number of images, spread over the source"""
TYPICAL = 6
"""images shown per topic"""


@dataclass(frozen=True)
class Topic:
    """A topic: its words, the number of images with this main topic, and the most typical ones."""

    words: str
    count: int
    pictures: Sequence[Image.Image]


@dataclass(frozen=True)
class TopicTable:
    """All topics, most frequent first, and their held-out perplexity."""

    all: Sequence[Topic]
    perplexity: float
    unigram_perplexity: float


def read(folder: Path, source: Source) -> TopicTable | None:
    """The topics of a run, with the images of a sample; None if the run has no topics."""
    if not (folder / CARD).is_file() or "words" not in source.provides:
        return None
    found, some = Topics.load(folder), loader.sample(source, SAMPLE)
    probs = found.transform(text.unpack(some.aux["words"]))
    main = probs.argmax(1)
    shown = []
    for k, words in enumerate(found.top_words()):
        mine = (main == k).nonzero()[:, 0]
        best = mine[probs[mine, k].argsort(descending=True, stable=True)[:TYPICAL]]
        pictures = sheet.pictures(some.image[best]) if len(best) else []
        shown.append(Topic(", ".join(words), len(mine), pictures))
    return TopicTable(sorted(shown, key=lambda s: -s.count), found.perplexity, found.unigram_perplexity)
