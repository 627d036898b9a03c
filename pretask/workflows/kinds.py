"""The kinds of data that encoders are scored on, each with its protocol: labeled images, images with texts, tracks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pretask import data as sources
from pretask.data import LabeledDataset
from pretask.data.base import Images, OpenOptions
from pretask.evals import protocol, track_retrieval
from pretask.evals.protocol import OnFeatures
from pretask.evals.scores import Scores
from pretask.evals.text_retrieval import Head, TextLabeled, read_texts
from pretask.rng import Rng
from pretask.runtime.device import find_device
from pretask.text import topics
from pretask.types import Source, UserError
from pretask.workflows import inputs
from pretask.workflows.reruns import budget
from pretask.workflows.subject import Candidate


@dataclass(frozen=True)
class Extras:
    """Scores requested in addition to the default ones; see `evaluate`."""

    supervised: bool = False
    finetune: bool = False
    nonlinear: bool = False
    svm: bool = False
    leaks: bool = True


class Kind(Protocol):
    """Opened data of one kind."""

    @property
    def sources(self) -> Sequence[Source]:
        """Each source that was opened."""
        ...

    @property
    def shown(self) -> LabeledDataset | None:
        """The labeled images for a report; None if the data has no labels."""
        ...

    def check(self, extras: Extras) -> None:
        """UserError if a requested score is not available for this kind of data."""
        ...

    def score(
        self, candidate: Candidate, extras: Extras, *, progress: bool = True, look: OnFeatures | None = None
    ) -> Scores:
        """Scores by the protocol of this kind of data. `look` is called with the images `shown` and their features."""
        ...


@dataclass(frozen=True)
class LabeledImages:
    """Images with one or several classes each; without `test` a part of them is set aside."""

    train: LabeledDataset
    test: LabeledDataset | None

    @property
    def sources(self) -> Sequence[Source]:
        return [self.train] if self.test is None else [self.train, self.test]

    @property
    def shown(self) -> LabeledDataset:
        return self.train if self.test is None else self.test

    def check(self, extras: Extras) -> None:
        if extras.nonlinear or extras.svm:
            sources.require_single_label(self.train, "--nonlinear or --svm", "leave them out")

    def heads(self, candidate: Candidate) -> Sequence[Head]:
        return []

    def score(
        self, candidate: Candidate, extras: Extras, *, progress: bool = True, look: OnFeatures | None = None
    ) -> Scores:
        return protocol.evaluate(
            candidate.encoders,
            self.train,
            self.test,
            name=candidate.name,
            role=candidate.role,
            seeds=candidate.seeds,
            untrained=candidate.untrained,
            published=candidate.published,
            heads=self.heads(candidate),
            supervised_steps=budget(candidate.runs[0]) if extras.supervised else None,
            finetune=extras.finetune,
            nonlinear=extras.nonlinear,
            svm=extras.svm,
            leaks=extras.leaks,
            device=find_device(),
            on_features=look,
            progress=progress,
        )


class TextImages(LabeledImages):
    """Images with texts; their labels are the main topics of the texts."""

    def heads(self, candidate: Candidate) -> Sequence[Head]:
        """The topic heads of runs whose method predicts topics."""
        made = [(each, each.method.topic_head()) for each in candidate.runs if has_topics(each.folder)]
        return [Head(topics.Topics.load(each.folder), head) for each, head in made if head is not None]


@dataclass(frozen=True)
class Tracks:
    """Tracks of moving objects in video clips, made by `pretask track`. No probe is trained on them, so they need no labels."""

    tracks: Images
    test: Any = None
    """the value of --test, which `check` refuses"""

    @property
    def sources(self) -> Sequence[Source]:
        return [self.tracks]

    @property
    def shown(self) -> None:
        return None

    def check(self, extras: Extras) -> None:
        if extras != Extras() or self.test is not None:
            raise UserError(
                f"{self.tracks.name} holds tracks, which have no labels to train on; give held-out tracks as --data, without --test or training flags"
            )

    def score(
        self, candidate: Candidate, extras: Extras, *, progress: bool = True, look: OnFeatures | None = None
    ) -> Scores:
        return track_retrieval.evaluate(
            candidate.encoders,
            self.tracks,
            name=candidate.name,
            role=candidate.role,
            seeds=candidate.seeds,
            untrained=candidate.untrained,
            device=find_device(),
            progress=progress,
        )


# ---- opening


def open_kind(data: Any, test: Any, options: OpenOptions, folder: Path | None = None) -> Kind:
    """Open `data`, and `test` if given, as the kind of data that they hold. Topics of texts are loaded from a run's `folder` if
    it has any, otherwise learned from `data`."""
    found = inputs.open_with_labels(data, options)
    if {"tracked", "clip", "span"} <= found.images.provides:
        return Tracks(found.images, test)
    if found.label is None and "words" in found.images.provides and not options.reading.label_columns:
        return with_topics(data, test, found.images, options, folder)
    train = inputs.labeled(data, found, options)
    return LabeledImages(train, None if test is None else inputs.unseen(test, train, options))


def with_topics(
    data: Any, test: Any, images: Images, options: OpenOptions, folder: Path | None
) -> TextImages:
    texts = read_texts(images)
    if folder is not None and has_topics(folder):
        learned = topics.Topics.load(folder)
    else:
        learned = topics.learn(texts, Rng(0, "topics"))
    train = TextLabeled(images, texts, learned)
    if test is None:
        return TextImages(train, None)
    unseen = sources.open_spec(str(test), replace(options, range=images.range)).images
    if "words" not in unseen.provides:
        raise UserError(f"{test} has no texts, and {data} has; give two sets of images with texts")
    return TextImages(train, TextLabeled(unseen, read_texts(unseen), learned))


def has_topics(folder: Path) -> bool:
    return (folder / topics.CARD).is_file()
