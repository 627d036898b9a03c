"""Topics of texts: latent Dirichlet allocation of word counts (Blei, Ng, Jordan 2003), by scikit-learn.

A run's folder stores the model in two files, topics.json and topics.safetensors.
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

from pretask.limits import PositiveInt
from pretask.rng import Rng
from pretask.runtime import files, formats
from pretask.text import encodings, words
from pretask.types import UserError

CARD, WEIGHT = "topics.json", "topics.safetensors"
FIELDS: formats.Fields = {
    "perplexity": float,
    "unigram_perplexity": float,
    "num_texts": PositiveInt,
    "english": bool,
    "top_words": tuple[list, ...],
    "vocabulary": list,
}
"""fields of topics.json"""
WORDS = 100_000
"""largest size of the vocabulary: the most frequent words"""
HELD_OUT = 0.1
"""fraction of the texts held out for the perplexity"""
FEW = 5
"""minimum number of passes for LDA in batch mode; with fewer passes it is updated after every CHUNK of texts.

Both take the same time per pass. Total variation distance between learned and true topics (numpy's default_rng(0) draws 40
topics over 2,000 words from Dirichlet(0.05), and 12,500 texts of about 100 words from Dirichlet(1/40);
`LatentDirichletAllocation(40, max_iter=passes, random_state=0, …)` of scikit-learn 1.9):

| passes | batch mode | every 2,000 texts | the same with scikit-learn's decay 0.7 and offset 10 |
|---|---|---|---|
| 1 | .77 | .32 | .45 |
| 3 | .33 | .26 | |
| 5 | .23 | .26 | |
| 20 | .19 | .26 | .35 |
"""
CHUNK, DECAY, OFFSET = 2000, 0.5, 1.0
"""texts per online update, and the weight (OFFSET + n)^-DECAY of the n-th (gensim's defaults)"""
MIN_PROBABILITY = 0.01
"""smaller topic probabilities are set to 0 (the default of gensim, used in the paper); also a pseudo-count"""
ENGLISH = "english"


@dataclass(frozen=True)
class Topics:
    """A topic model: V words, and for each of K topics the frequency of each word."""

    vocabulary: list[str]
    weight: Tensor  # (K, V) float64, pseudo-counts
    english: bool
    """whether words are lemmatized"""
    perplexity: float
    """held-out perplexity"""
    unigram_perplexity: float
    """held-out perplexity of the unigram baseline, which only has the word frequencies"""
    num_texts: int
    """number of training texts"""

    def transform(self, texts: Sequence[str]) -> Tensor:
        """N texts -> topic probabilities (N, K); uniform for texts without words of the vocabulary."""
        bags = tokenize(texts, ENGLISH if self.english else "", frozenset(self.vocabulary))
        counts, _ = count_words(bags, vocabulary=self.vocabulary)
        probs = torch.from_numpy(restore_model(self.weight.numpy()).transform(counts)).float()
        return probs * (probs >= MIN_PROBABILITY)

    def top_words(self, count: int = 10) -> list[list[str]]:
        """The most relevant words of each topic: relevance with λ 0.6 (Sievert, Shirley 2014)."""
        p = self.weight / self.weight.sum(1, keepdim=True)
        relevance = p.log() - 0.4 * p.mean(0).log()
        best = relevance.topk(min(count, len(self.vocabulary)), dim=1).indices
        return [[self.vocabulary[i] for i in row] for row in best.tolist()]

    def files(self) -> dict[str, bytes]:
        """Name -> content, for a run's folder."""
        numbers = {
            formats.KEY: formats.FORMAT,
            "perplexity": self.perplexity,
            "unigram_perplexity": self.unigram_perplexity,
            "num_texts": self.num_texts,
        }
        words = {"english": self.english, "top_words": self.top_words(), "vocabulary": self.vocabulary}
        card = json.dumps(numbers | words, indent=1, ensure_ascii=False) + "\n"
        return {CARD: card.encode(), WEIGHT: save({"weight": self.weight})}

    @classmethod
    def load(cls, folder: Path) -> "Topics":
        """From a run's folder. Raises UserError if it has no topics."""
        if not (folder / CARD).is_file():
            raise UserError(f"{folder} has no {CARD}; expected a run of text_topic")
        card = formats.read_json(folder / CARD, FIELDS)
        with files.restoring_from(folder / CARD):
            weight = load_file(folder / WEIGHT)["weight"]
            rest = (card[name] for name in ("english", "perplexity", "unigram_perplexity", "num_texts"))
            return cls(card["vocabulary"], weight, *rest)


def learn(
    texts: Sequence[str],
    rng: Rng,
    topics: int = 40,
    stop_words: str = ENGLISH,
    min_df: int = 5,
    max_df: float = 0.5,
    passes: int = 20,
) -> Topics:
    """Fit a topic model to nine tenths of the texts and hold out the rest; duplicate texts count as often as they occur.

    Words in fewer than `min_df` texts, or in more than a fraction `max_df` of them, are ignored.
    """
    bags = tokenize(texts, stop_words)
    counts, vocabulary = count_words(bags, min_df=min_df, max_df=max_df, max_features=WORDS)
    distinct, which = np.unique(np.array(texts, dtype=object), return_inverse=True)
    if len(distinct) < 2:
        raise UserError(
            f"all {len(texts)} texts are the same, so there are no topics; expected different ones"
        )
    held_out = (rng.child("held").permutation(len(distinct)).cpu().numpy() < HELD_OUT * len(distinct))[which]
    model = lda(topics, int(rng.generator.initial_seed() % 2**31), passes)
    model.fit(counts[~held_out])
    unseen = [bag for bag, out in zip(bags, held_out, strict=True) if out]
    frequency = np.asarray(counts[~held_out].sum(0)).ravel() + MIN_PROBABILITY
    return Topics(
        vocabulary,
        torch.from_numpy(model.components_),
        stop_words == ENGLISH,
        perplexity(model, unseen, vocabulary),
        perplexity(restore_model(frequency[None]), unseen, vocabulary),
        int(sum(~held_out)),
    )


def perplexity(model: Any, bags: list[list[str]], vocabulary: list[str]) -> float:
    """Perplexity of every second word of the texts, given topics inferred from the others (Wallach et al. 2009, sec. 5.1)."""
    observed, target = (count_words([bag[i::2] for bag in bags], vocabulary=vocabulary)[0] for i in (0, 1))
    p = model.transform(observed) @ (model.components_ / model.components_.sum(1, keepdims=True))
    target = target.tocoo()
    return float(np.exp(-(target.data * np.log(p[target.row, target.col])).sum() / max(1, target.data.sum())))


def lda(topics: int, seed: int = 0, passes: int = 1) -> Any:
    """An untrained scikit-learn model."""
    from sklearn.decomposition import LatentDirichletAllocation

    method = "online" if passes < FEW else "batch"
    schedule = {"batch_size": CHUNK, "learning_decay": DECAY, "learning_offset": OFFSET}
    return LatentDirichletAllocation(
        topics, learning_method=method, max_iter=passes, random_state=seed, **schedule
    )


def restore_model(weight: np.ndarray) -> Any:
    """The scikit-learn model with these topics (K, V)."""
    from scipy.special import psi

    model = lda(len(weight))
    model.components_, model.doc_topic_prior_, model.n_features_in_ = weight, 1 / len(weight), weight.shape[1]
    model.exp_dirichlet_component_ = np.exp(psi(weight) - psi(weight.sum(1, keepdims=True)))
    return model


def tokenize(texts: Sequence[str], stop_words: str, known: frozenset[str] | None = None) -> list[list[str]]:
    """The words of each text without stop words; English words as their lemma, if that is `known` too."""
    bags = [words.words(t) for t in texts]
    known = known or frozenset(word for bag in bags for word in bag)
    excluded = load_stop_words(stop_words)
    every = {word for bag in bags for word in bag}
    lemmas = {word: words.lemma(word, known) if stop_words == ENGLISH else word for word in every}
    return [[lemmas[word] for word in bag if word not in excluded] for bag in bags]


def load_stop_words(name: str) -> frozenset[str]:
    """The stop words of "english", of a file, or none for ""."""
    if name == ENGLISH:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        return ENGLISH_STOP_WORDS
    if not name:
        return frozenset()
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"--stop-words {name} is not a file; expected {ENGLISH}, a file of words, or '' for none"
        )
    return frozenset(words.words(encodings.read(path)[0]))


def count_words(bags: list[list[str]], **limits: Any) -> tuple[Any, list[str]]:
    """Sparse word counts (N, V), and the V words."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter: Any = CountVectorizer(analyzer=list, **limits)  # type: ignore[arg-type]
    try:
        counts = counter.transform(bags) if "vocabulary" in limits else counter.fit_transform(bags)
    except ValueError:
        raise UserError(
            f"no word of these {len(bags)} texts is in {limits['min_df']} of them or more and in at most "
            f"{limits['max_df']:.0%}; lower --min-df or raise --max-df"
        ) from None
    return counts, counter.get_feature_names_out().tolist()
