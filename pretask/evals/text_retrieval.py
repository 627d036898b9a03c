"""Image and text: which text goes with an image, and which image with a text, by the topics of both.

As TextTopicNet retrieves (Gomez et al. 2017, released code): by the divergence KL(text ‖ image) of their topics. A run that
foretells topics says itself which an image has, and what a topic is; for any other encoder a linear probe on frozen features
says it, trained on the topics of the training texts. Hits are counted as `retrieval` counts them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretask.data import Labelled
from pretask.data.base import Images
from pretask.evals import linear_probe as linear
from pretask.evals.features import Features, readable
from pretask.evals.holdout import Part
from pretask.evals.measure import Chosen, Result, accuracy
from pretask.text import words as text
from pretask.text.topics import Topics
from pretask.types import Source

AT = (1, 10)


class Told(Labelled):
    """Images with texts, labelled: the class of an image is the main topic of its text."""

    def __init__(self, images: Images, texts: Sequence[str], topics: Topics):
        self.texts, share = list(texts), topics.of(texts)
        named = [f"{k} {' '.join(words)}" for k, words in enumerate(topics.top(3))]
        super().__init__(images, share.argmax(1), named)
        number = {t: i for i, t in enumerate(dict.fromkeys(texts))}
        self.share = share  # (N, K)
        self.which = torch.tensor([number[t] for t in texts])  # (N,) each different text has a number


@dataclass(frozen=True)
class Head:
    """What a run itself has to say about topics."""

    topics: Topics
    logits: Callable[[Tensor], Tensor]
    """pooled features (N, D) -> (N, K)"""


def texts_of(images: Images) -> list[str]:
    parts = torch.arange(len(images)).split(1024)
    return [t for index in parts for t in text.unpack(images.__getitems__(index).aux["words"])]


def told(source: Source, topics: Topics | None = None) -> tuple[Tensor, Tensor] | None:
    """Topics (N, K), the source's own or others, and texts (N,) of the samples whose image could be read; None of a source
    without texts."""
    whole, index = (source.whole, source.index) if isinstance(source, Part) else (source, None)
    if not isinstance(whole, Told):
        return None
    index = torch.arange(len(whole)) if index is None else index
    kept = readable(source)
    index = index if kept is None else index[kept]
    share = whole.share if topics is None else topics.of(whole.texts)
    return share[index], whole.which[index]


def by_text(
    of_train: Features,
    of_test: Features,
    train: Source,
    test: Source,
    chosen: Chosen,
    head: Head | None = None,
) -> Iterator[Result]:
    """Hits among the texts, and among the images, of the test set, by the run's own head or else by a probe; nothing where
    the sources have no texts."""
    known, unseen = told(train), told(test, head and head.topics)
    if known is None or unseen is None:
        return
    if head is None:
        penalty = chosen.probes["pool"].penalty
        logits = linear.fit(of_train.stages["pool"], known[0], known[0].shape[1], penalty).logits
        by: dict[str, Any] = {"penalty": penalty}
    else:
        logits, by = head.logits, {"by": "its own head"}
    with torch.no_grad():
        apart, which = between(unseen[0], logits(of_test.stages["pool"])), unseen[1]
    own = which[:, None] == which
    first = [i for i, w in enumerate(which.tolist()) if w not in which[:i].tolist()]
    for k in AT:
        yield accuracy(
            f"text@{k}", "pool", hits(apart[first].T, own[:, first], k), by | {"among": len(first)}
        )
        yield accuracy(f"image@{k}", "pool", hits(apart, own, k), by | {"among": len(which)})


def between(share: Tensor, logits: Tensor) -> Tensor:
    """Topics of texts (T, K), a probe's logits for images (N, K) -> KL(text ‖ image) (T, N)."""
    share = share / share.sum(1, keepdim=True)
    known = torch.special.xlogy(share, share).sum(1, keepdim=True)
    return known - share @ logits.float().log_softmax(1).T


def hits(apart: Tensor, own: Tensor, k: int) -> Tensor:
    """(Q, C) distances from queries to candidates, and which are the right ones -> (Q,): whether one is among the k nearest.

    Of candidates at the same distance each comes first equally often, so that a constant answer scores by chance.
    """
    best = apart.where(own, torch.inf).amin(1, keepdim=True)
    nearer, level = (apart < best).sum(1), (apart == best).sum(1)
    right = (own & (apart == best)).sum(1)
    places = (k - nearer).clamp(min=0).minimum(level)  # that are left for those at the distance of the best
    missed = torch.ones(len(apart), dtype=torch.float64)
    for drawn in range(int(places.max())):
        left = ((level - right - drawn) / (level - drawn).clamp(min=1)).clamp(min=0)
        missed = torch.where(drawn < places, missed * left, missed)
    return 1 - missed
