"""Cross-modal retrieval: find the text of an image, and the images of a text, by their topics.

The distance is TextTopicNet's (Gomez et al. 2017, released code): the divergence KL(text ‖ image) of the topic
distributions. For a run that predicts topics, its own topic model and head are used; for any other encoder, a linear
probe on frozen features predicts topics, trained on the topics of the training texts. Hits are counted as in `retrieval`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretask.data import LabeledDataset
from pretask.data.base import Images
from pretask.data.subset import LabeledSubset
from pretask.evals import linear_probe
from pretask.evals.features import Features, readable
from pretask.evals.measure import Chosen, Result, accuracy
from pretask.text import words as text
from pretask.text.topics import Topics
from pretask.types import Source

AT = (1, 10)


class TextLabeled(LabeledDataset):
    """Images with texts, labeled by the main topic of their text."""

    def __init__(self, images: Images, texts: Sequence[str], topics: Topics):
        self.texts, topic_probs = list(texts), topics.transform(texts)
        names = [f"{k} {' '.join(words)}" for k, words in enumerate(topics.top_words(3))]
        super().__init__(images, topic_probs.argmax(1), names)
        ids = {t: i for i, t in enumerate(dict.fromkeys(texts))}
        self.topic_probs = topic_probs  # (N, K)
        self.text_id = torch.tensor([ids[t] for t in texts])  # (N,) equal for equal texts


@dataclass(frozen=True)
class Head:
    """A run's own topic model and topic head."""

    topics: Topics
    logits: Callable[[Tensor], Tensor]
    """pooled features (N, D) -> (N, K)"""


def read_texts(images: Images) -> list[str]:
    parts = torch.arange(len(images)).split(1024)
    return [t for index in parts for t in text.unpack(images.__getitems__(index).aux["words"])]


def text_targets(source: Source, topics: Topics | None = None) -> tuple[Tensor, Tensor] | None:
    """Topic distributions (N, K), by the source's topic model or by `topics`, and text ids (N,) of the samples whose image
    could be read; None for a source without texts."""
    whole, index = (source.whole, source.index) if isinstance(source, LabeledSubset) else (source, None)
    if not isinstance(whole, TextLabeled):
        return None
    index = torch.arange(len(whole)) if index is None else index
    usable = readable(source)
    index = index if usable is None else index[usable]
    topic_probs = whole.topic_probs if topics is None else topics.transform(whole.texts)
    return topic_probs[index], whole.text_id[index]


def score_text_retrieval(
    train_features: Features,
    test_features: Features,
    train: Source,
    test: Source,
    chosen: Chosen,
    head: Head | None = None,
) -> Iterator[Result]:
    """Hit rates among the texts and among the images of the test set, by the run's own head or by a probe; nothing if the
    sources have no texts."""
    train_targets, test_targets = text_targets(train), text_targets(test, head and head.topics)
    if train_targets is None or test_targets is None:
        return
    if head is None:
        penalty, probs = chosen.probes["pool"].penalty, train_targets[0]
        logits = linear_probe.fit(train_features.stages["pool"], probs, probs.shape[1], penalty).logits
        by: dict[str, Any] = {"penalty": penalty}
    else:
        logits, by = head.logits, {"by": "its own head"}
    probs, text_id = test_targets
    with torch.no_grad():
        distance = kl_divergence(probs, logits(test_features.stages["pool"]))
    relevant = text_id[:, None] == text_id
    first = [i for i, t in enumerate(text_id.tolist()) if t not in text_id[:i].tolist()]  # distinct texts
    for k in AT:
        hit, notes = hits(distance[first].T, relevant[:, first], k), by | {"among": len(first)}
        yield accuracy("text", "pool", hit, notes, k=k)
        yield accuracy("image", "pool", hits(distance, relevant, k), by | {"among": len(text_id)}, k=k)


def kl_divergence(probs: Tensor, logits: Tensor) -> Tensor:
    """Topic distributions of texts (T, K), topic logits of images (N, K) -> KL(text ‖ image) (T, N)."""
    probs = probs / probs.sum(1, keepdim=True)
    negative_entropy = torch.special.xlogy(probs, probs).sum(1, keepdim=True)
    return negative_entropy - probs @ logits.float().log_softmax(1).T


def hits(distance: Tensor, relevant: Tensor, k: int) -> Tensor:
    """(Q, C) distances from queries to candidates, (Q, C) bool -> (Q,) the probability that a relevant candidate is among
    the k nearest.

    Candidates at the same distance are in random order, so that constant features score at chance.
    """
    best = distance.where(relevant, torch.inf).amin(1, keepdim=True)
    nearer, tied = (distance < best).sum(1), (distance == best).sum(1)
    tied_relevant = (relevant & (distance == best)).sum(1)
    places = (k - nearer).clamp(min=0).minimum(tied)  # ranks up to k that tied candidates can take
    miss = torch.ones(len(distance), dtype=torch.float64)
    for drawn in range(int(places.max())):
        irrelevant = ((tied - tied_relevant - drawn) / (tied - drawn).clamp(min=1)).clamp(min=0)
        miss = torch.where(drawn < places, miss * irrelevant, miss)
    return 1 - miss
