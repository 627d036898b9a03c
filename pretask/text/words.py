"""Text in any language: packed as bytes for batches, and split into words."""

import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from torch import Tensor

LONGEST = 8192
"""bytes kept per text, about 1,300 English words"""
SHORTEST = 3
"""smallest number of letters in a word; accents and the parts of Korean syllables count as letters"""
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""characters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters"""


def pack(texts: Iterable[str], longest: int = LONGEST) -> Tensor:
    """N texts -> (N, L) uint8: UTF-8, truncated to at most `longest` bytes between characters, padded with zeros."""
    parts = [t.encode("utf-8", "replace")[:longest].decode("utf-8", "ignore").encode() for t in texts]
    packed = np.zeros((len(parts), max(map(len, parts), default=0)), np.uint8)
    for row, part in zip(packed, parts, strict=True):
        row[: len(part)] = np.frombuffer(part, np.uint8)
    return torch.from_numpy(packed)


def unpack(packed: Tensor) -> list[str]:
    """The inverse of `pack`: (N, L) -> N texts."""
    return [bytes(row).rstrip(b"\0").decode() for row in packed.cpu().numpy()]


def words(text: str) -> list[str]:
    """The words of a text in lower case, without numbers, punctuation and words shorter than SHORTEST.

    In scripts without spaces, character bigrams are used as words, as in search engines.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    found: list[str] = []
    for run in letters().findall(plain.casefold()):
        for part in unspaced().split(run):
            if unspaced().fullmatch(part):
                found += [part[i : i + 2] for i in range(max(1, len(part) - 1))]
            elif len(unicodedata.normalize("NFKD", part)) >= SHORTEST:
                found.append(part)
    return found


@cache
def letters() -> re.Pattern[str]:
    """Matches runs of letters and combining marks, which Python's \\w does not include."""
    marks = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c)[0] == "M")
    return re.compile(rf"(?:[^\W\d_]|[{marks}])+")


@cache
def unspaced() -> re.Pattern[str]:
    return re.compile(f"([{UNSPACED}]+)")


def lemma(word: str, known: frozenset[str]) -> str:
    """The English lemma of a word if it is in `known`, else the word.

    The word is looked up capitalized, so that names do not change: Mars, Wales.
    """
    from simplemma import lemmatize

    found = lemmatize(word.capitalize(), lang="en").casefold()
    return found if found in known else word
