"""Texts as bytes and as words."""

import pytest
import torch

from pretask import text


def test_texts_come_back_from_their_bytes():
    texts = ["", "plain", "ß 東京 🪐", "x" * 10_000]
    packed = text.pack(texts)
    assert packed.dtype == torch.uint8 and packed.shape == (4, text.LONGEST)
    assert text.unpack(packed) == [t[: text.LONGEST] for t in texts]


def test_a_text_is_cut_between_two_characters():
    assert text.unpack(text.pack(["aé" * 3], 5)) == ["aéa"]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("The 3 Cats' running-wheels, in 1999!", "the cats running wheels"),
        ("STRASSE und Straße", "strasse und strasse"),
        ("l’été à Noël, déjà vu", "été noël déjà"),  # one of two letters and an accent is long enough
        ("ﬁne soft\u00adware", "fine software"),
        ("Космос — это ВСЁ", "космос это всё"),
        ("हिन्दी में", "हिन्दी में"),  # marks belong to their letters
        ("서울은 나", "서울은"),
        ("東京都に住む", "東京 京都 都に に住 住む"),
        ("ABC東京def", "abc 東京 def"),
        ("xy_zz a1b2 e=mc²", ""),
    ],
)
def test_words_of_many_languages(written: str, words: str):
    assert text.words(written) == words.split()


@pytest.mark.parametrize(
    ("word", "one"),
    [
        ("cats", "cat"), ("galaxies", "galaxy"), ("boxes", "box"), ("men", "man"), ("wolves", "wolf"),
        ("glass", "glass"), ("mars", "mars"), ("churches", "church"), ("masses", "mass"), ("gas", "gas"),
    ],
)  # fmt: skip
def test_english_plurals_that_have_a_known_singular(word: str, one: str):
    known = frozenset(["cat", "galaxy", "box", "man", "wolf", "glas", "glass", "church", "mass"])
    assert text.singular(word, known) == one
