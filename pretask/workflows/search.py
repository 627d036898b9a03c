"""A search: trials train on the same images, and their encoders are compared with a reference on the same labeled images.

A trial is an ordinary run in a folder of its own. A finished one is used again, an interrupted one is resumed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretask.config import RunConfig, TrainConfig
from pretask.data.base import Images
from pretask.encoders import Encoder
from pretask.evals import leaks as leaking
from pretask.evals import linear_probe, paired
from pretask.evals.features import Features, embed
from pretask.evals.holdout import splits
from pretask.evals.leaks import Leaks
from pretask.evals.paired import Part, Verdict
from pretask.methods import MethodConfig
from pretask.runtime.device import find_device
from pretask.train import run
from pretask.train.logger import OnLog
from pretask.train.run import Run, parse_card
from pretask.types import LabeledSource, UserError
from pretask.workflows import job as jobs
from pretask.workflows import pretrain
from pretask.workflows.resume import absolute

FOUND_LATER = ("mean", "std", "fraction")
"""settings that the card takes from the weights, and from the number of images that a method takes"""


@dataclass(frozen=True)
class Trial:
    """A run that may exist already."""

    method: str
    settings: RunConfig
    config: MethodConfig
    train: TrainConfig

    @property
    def folder(self) -> Path:
        assert self.settings.out is not None, "a trial has its own folder"
        return self.settings.out

    def existing(self) -> Run | None:
        """The run in the folder, finished or not; None if there is none. Raises UserError if it is another run."""
        if not (self.folder / run.CARD).is_file():
            return None
        found = Run(self.folder)
        if differs := differences(found, self):
            raise UserError(
                f"{self.folder} is a run with other settings ({', '.join(differs)}); choose another --out, or move it away"
            )
        return found

    def trained(self, images: Images, on_log: OnLog | None = None) -> Run:
        """The finished run: the existing one, resumed if it was interrupted, or a new one."""
        found = self.existing()
        if found is None:
            job = jobs.fresh(self.method, self.settings, self.config, self.train, images=images)
            return pretrain.pretrain(job, on_log=on_log)
        if (self.folder / run.DONE).exists():
            return found
        return pretrain.pretrain(jobs.resumed(self.folder, images=images), on_log=on_log)


def differences(found: Run, trial: Trial) -> list[str]:
    """Names of the settings in which a run differs from a trial."""
    name, settings, config, train = parse_card(found.card, found.folder / run.CARD)
    if name != trial.method:
        return ["method"]
    same = {key: getattr(settings, key) for key in (*FOUND_LATER, "out")}
    asked = dataclasses.replace(absolute(trial.settings), **same)
    pairs = ((config, trial.config.resolved()), (train, trial.train), (settings, asked))
    return sorted(key for one, other in pairs for key in unlike(one, other))


def unlike(one: Any, other: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(one) if getattr(one, f.name) != getattr(other, f.name)]


# ---- scores


@dataclass(frozen=True)
class Score:
    """Linear probes on an encoder's pooled features, in %."""

    inner: float
    """mean accuracy on samples held out within the training parts, by which candidates are chosen"""
    outer: np.ndarray  # (T,) accuracy on each outer fold, or of each test sample, for the verdict

    @property
    def value(self) -> float:
        return float(self.outer.mean())


@dataclass(frozen=True)
class Comparison:
    """Encoders on the same labeled images; the first one is the reference."""

    scores: Mapping[str, Score]
    verdicts: Mapping[str, Verdict]
    """of all but the reference"""
    leaks: Leaks | None = None
    """test images that are among the labeled ones too, if that was looked for"""

    @property
    def chosen(self) -> str:
        """Of the encoders that are better than the reference the one that does best on inner folds, or else the reference."""
        better = [name for name, verdict in self.verdicts.items() if verdict.better]
        return max(better, key=lambda name: self.scores[name].inner) if better else next(iter(self.scores))


def compare(
    encoders: Mapping[str, Encoder],
    labeled: LabeledSource,
    test: LabeledSource | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
    leak_seconds: float = 0.0,
) -> Comparison:
    """Compare encoders with the first of them: on repeated folds of `labeled`, or on `test`, of which leaks are looked for so long."""
    options = {"device": find_device(), "progress": progress}
    scores, parts, leaks = {}, [], None
    for name, encoder in encoders.items():
        known = embed(encoder, labeled, **options)
        parts = parts or paired.folds(known.label, seed)  # of the images that can be read
        asked = None if test is None else embed(encoder, test, **options)
        scores[name] = score(known, parts, asked, seed)
        if leak_seconds and asked is not None and test is not None and leaks is None:
            leaks = leaking.find(encoder, labeled, test, known, asked, leak_seconds, seed)
    reference, *others = scores
    gains = {name: scores[name].outer - scores[reference].outer for name in others}
    return Comparison(scores, paired.verdicts(gains, 0.0 if test else paired.overlap(parts)), leaks)


def score(known: Features, parts: Sequence[Part], test: Features | None, seed: int) -> Score:
    """Probes fitted to each part, or, with a test set, to all labeled samples."""
    x, label, classes = known.stages["pool"], known.label, len(known.classes)
    if test is not None:
        choice = linear_probe.choose(x, label, classes, splits(label, seed))
        correct = choice.probe.predict(test.stages["pool"]) == test.label
        return Score(100 * choice.score, 100 * correct.double().numpy())
    inner, outer = [], []
    for part in parts:
        choice = linear_probe.choose(x[part.fit], label[part.fit], classes, splits(label[part.fit], seed))
        inner.append(choice.score)
        outer.append((choice.probe.predict(x[part.test]) == label[part.test]).double().mean().item())
    return Score(100 * float(np.mean(inner)), 100 * np.array(outer))
