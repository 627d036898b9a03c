"""Texts as bytes and as words."""

import pytest
import torch

from pretask.text import words as text


def test_unpack_is_the_inverse_of_pack():
    texts = ["", "plain", "ß 東京 🪐", "x" * 10_000]
    packed = text.pack(texts)
    assert packed.dtype == torch.uint8 and packed.shape == (4, text.LONGEST)
    assert text.unpack(packed) == [t[: text.LONGEST] for t in texts]


def test_texts_are_truncated_between_characters():
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
        ("churches", "church"), ("heroes", "hero"), ("buses", "bus"), ("knives", "knife"), ("mice", "mouse"),
        ("news", "news"), ("mars", "mars"), ("glass", "glass"), ("gas", "gas"), ("wales", "wales"),
        ("physics", "physics"), ("lens", "lens"), ("paris", "paris"), ("painted", "paint"), ("zyxes", "zyxes"),
    ],
)  # fmt: skip
def test_english_words_become_their_lemma_and_names_do_not_change(word: str, one: str):
    known = "cat galaxy box man wolf church hero bus knife mouse new mar glas gla wale physic len pari paint"
    assert text.lemma(word, frozenset([*known.split(), word])) == one


@pytest.mark.parametrize("word", ["cats", "heroes", "buses", "knives", "painted"])
def test_unknown_lemmas_are_not_used(word: str):
    assert text.lemma(word, frozenset([word, "her", "her", "buse", "knif"])) == word
