"""Topics of texts: latent Dirichlet allocation of word counts (Blei, Ng, Jordan 2003), by scikit-learn.

What was learned lies in two files of a run's folder, topics.json and topics.safetensors, for new texts and readers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pretask.rng import Rng
from pretask.runtime import files as checkpoint
from pretask.text import words as text
from pretask.types import UserError

CARD, WEIGHT = "topics.json", "topics.safetensors"
WORDS = 100_000
"""of the vocabulary, at most: the most frequent ones"""
HELD = 0.1
"""share of the texts that are not learned from, for the perplexity"""
FEW = 5
"""passes from which on the topics are updated once a pass, by all texts; in fewer passes after every CHUNK of texts.

Either way a pass takes the same time. How far the topics are from those that texts were made of (half of the sum of
absolute differences; numpy's default_rng(0) draws 40 topics over 2,000 words by Dirichlet(0.05), and 12,500 texts of about
100 words by Dirichlet(1/40); `LatentDirichletAllocation(40, max_iter=passes, random_state=0, …)` of scikit-learn 1.9):

| passes | once a pass | every 2,000 texts | the same with scikit-learn's decay 0.7 and offset 10 |
|---|---|---|---|
| 1 | .77 | .32 | .45 |
| 3 | .33 | .26 | |
| 5 | .23 | .26 | |
| 20 | .19 | .26 | .35 |
"""
CHUNK, DECAY, OFFSET = 2000, 0.5, 1.0
"""texts of an update, and how much the n-th counts: (OFFSET + n)^-DECAY (gensim's defaults)"""
FLOOR = 0.01
"""a smaller share of a text is none (the default of gensim, which made the paper's)"""
ENGLISH = "english"


@dataclass(frozen=True)
class Topics:
    """What was learned of texts: V words, and for each of K topics how often it has each of them."""

    vocabulary: list[str]
    weight: Tensor  # (K, V) float64, pseudo-counts
    english: bool
    """whether forms count as their lemma"""
    perplexity: float
    """of texts that were held out: among so many words, as it were, each one is chosen"""
    chance: float
    """the same if all that is known is how frequent each word is"""
    learned: int
    """texts that were learned from"""

    def of(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, K) shares; of one that has no word of the vocabulary all are alike."""
        bags = cleaned(texts, ENGLISH if self.english else "", frozenset(self.vocabulary))
        counts, _ = counted(bags, vocabulary=self.vocabulary)
        shares = torch.from_numpy(revived(self.weight.numpy()).transform(counts)).float()
        return shares * (shares >= FLOOR)

    def top(self, count: int = 10) -> list[list[str]]:
        """By which words each topic stands out: frequent in it, and in it more than elsewhere.

        Relevance with λ 0.6 (Sievert, Shirley 2014).
        """
        p = self.weight / self.weight.sum(1, keepdim=True)
        relevance = p.log() - 0.4 * p.mean(0).log()
        best = relevance.topk(min(count, len(self.vocabulary)), dim=1).indices
        return [[self.vocabulary[i] for i in row] for row in best.tolist()]

    def files(self) -> dict[str, bytes]:
        """Name -> content, for a run's folder."""
        numbers = {"perplexity": self.perplexity, "chance": self.chance, "learned": self.learned}
        card = numbers | {"english": self.english, "top": self.top(), "vocabulary": self.vocabulary}
        told = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
        return {CARD: told.encode(), WEIGHT: save({"weight": self.weight})}

    @classmethod
    def load(cls, folder: Path) -> "Topics":
        """From a run's folder; UserError if it has none."""
        if not (folder / CARD).is_file():
            raise UserError(f"{folder} has no {CARD}: it is no run of a method that learns topics")
        with checkpoint.belonging(folder / CARD):
            card = json.loads((folder / CARD).read_text())
            weight = load_file(folder / WEIGHT)["weight"]
            rest = (card[name] for name in ("english", "perplexity", "chance", "learned"))
            return cls(card["vocabulary"], weight, *rest)


def learn(
    texts: Sequence[str],
    rng: Rng,
    topics: int = 40,
    stop: str = ENGLISH,
    fewest: int = 5,
    most: float = 0.5,
    passes: int = 20,
) -> Topics:
    """Of texts, of which a tenth is held out, in `passes` over them; a text that occurs twice counts twice.

    Words in fewer than `fewest` texts, or in more than a share `most` of them, are left out.
    """
    bags = cleaned(texts, stop)
    counts, vocabulary = counted(bags, min_df=fewest, max_df=most, max_features=WORDS)
    distinct, which = np.unique(np.array(texts, dtype=object), return_inverse=True)
    if len(distinct) < 2:
        raise UserError(
            f"all {len(texts)} texts are the same, so there are no topics; expected different ones"
        )
    held = (rng.child("held").permutation(len(distinct)).cpu().numpy() < HELD * len(distinct))[which]
    model = allocation(topics, int(rng.generator.initial_seed() % 2**31), passes)
    model.fit(counts[~held])
    unseen = [bag for bag, out in zip(bags, held, strict=True) if out]
    frequency = np.asarray(counts[~held].sum(0)).ravel() + FLOOR
    return Topics(
        vocabulary,
        torch.from_numpy(model.components_),
        stop == ENGLISH,
        perplexity(model, unseen, vocabulary),
        perplexity(revived(frequency[None]), unseen, vocabulary),
        int(sum(~held)),
    )


def perplexity(model: Any, bags: list[list[str]], vocabulary: list[str]) -> float:
    """Of every second word of texts, by topics that are read off the others (Wallach et al. 2009, sec. 5.1)."""
    given, asked = (counted([bag[i::2] for bag in bags], vocabulary=vocabulary)[0] for i in (0, 1))
    p = model.transform(given) @ (model.components_ / model.components_.sum(1, keepdims=True))
    there = asked.tocoo()
    return float(np.exp(-(there.data * np.log(p[there.row, there.col])).sum() / max(1, there.data.sum())))


def allocation(topics: int, seed: int = 0, passes: int = 1) -> Any:
    from sklearn.decomposition import LatentDirichletAllocation

    way = "online" if passes < FEW else "batch"
    course = {"batch_size": CHUNK, "learning_decay": DECAY, "learning_offset": OFFSET}
    return LatentDirichletAllocation(
        topics, learning_method=way, max_iter=passes, random_state=seed, **course
    )


def revived(weight: np.ndarray) -> Any:
    """The model that had these topics."""
    from scipy.special import psi

    model = allocation(len(weight))
    model.components_, model.doc_topic_prior_, model.n_features_in_ = weight, 1 / len(weight), weight.shape[1]
    model.exp_dirichlet_component_ = np.exp(psi(weight) - psi(weight.sum(1, keepdims=True)))
    return model


def cleaned(texts: Sequence[str], stop: str, known: frozenset[str] | None = None) -> list[list[str]]:
    """The words of each text that may say what it is about; English ones as their lemma, if that is `known` too."""
    bags = [text.words(t) for t in texts]
    known = known or frozenset(word for bag in bags for word in bag)
    left_out = stop_words(stop)
    every = {word for bag in bags for word in bag}
    one = {word: text.lemma(word, known) if stop == ENGLISH else word for word in every}
    return [[one[word] for word in bag if word not in left_out] for bag in bags]


def stop_words(stop: str) -> frozenset[str]:
    """Of "english", a file with words, or "": none."""
    if stop == ENGLISH:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        return ENGLISH_STOP_WORDS
    if not stop:
        return frozenset()
    path = Path(stop).expanduser()
    if not path.is_file():
        raise UserError(f"--stop {stop} is no file of words; expected {ENGLISH}, a path, or '' for none")
    return frozenset(text.words(path.read_text(encoding="utf-8", errors="replace")))


def counted(bags: list[list[str]], **limits: Any) -> tuple[Any, list[str]]:
    """(N, V) sparse counts, and the V words."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter: Any = CountVectorizer(analyzer=list, **limits)  # type: ignore[arg-type]
    try:
        counts = counter.transform(bags) if "vocabulary" in limits else counter.fit_transform(bags)
    except ValueError:
        raise UserError(
            f"no word of these {len(bags)} texts is in {limits['min_df']} of them or more and in at most "
            f"{limits['max_df']:.0%}; lower --fewest or raise --most"
        ) from None
    return counts, counter.get_feature_names_out().tolist()
