"""Test for shortcut learning: `pretask audit METHOD --data PATH`

A trained method solves new puzzles of its training images, unchanged and with each shortcut removed (transforms/shortcuts.py).
The explained share of a shortcut is (accuracy - accuracy without it) / (accuracy - chance). It is an upper bound: removing the
shortcut also removes other information.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretask import methods
from pretask.data import loader
from pretask.data.base import bar
from pretask.evals.confidence import RESAMPLES, quantiles
from pretask.evals.scores import read_json
from pretask.limits import PositiveInt, checked
from pretask.methods import Method, MethodConfig
from pretask.rng import Rng
from pretask.runtime import files
from pretask.train import requirements
from pretask.train.run import Run, title
from pretask.transforms import augment
from pretask.transforms.shortcuts import SHORTCUTS, Shortcut
from pretask.types import Batch, Source, UserError

SCHEMA = 2
FILE = "audit.json"
IMAGES = 500
"""largest number of images whose puzzles are solved"""
BATCH = 64


@dataclass(frozen=True)
class Finding:
    """Accuracy without a shortcut, and its explained share with a 95 % interval, in %.

    The share is None if the accuracy is not above chance.
    """

    shortcut: str
    description: str
    accuracy: float
    explained_share: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def significant(self) -> bool:
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class Audit:
    """Accuracy on the puzzles of `n` images, %, and the findings for each shortcut, the strongest first."""

    method: str
    data: str
    answer: str
    n: int
    accuracy: float
    low: float
    high: float
    chance: float
    findings: Sequence[Finding]

    @property
    def verdict(self) -> str:
        accuracy = f"{self.answer}: accuracy {self.accuracy:.1f} %, chance {self.chance:.1f} %"
        if self.low <= self.chance:
            return f"{accuracy}; not above chance, so there is nothing to explain"
        first = self.findings[0]
        if not first.significant:
            return f"{accuracy}; no shortcut explains a significant share"
        return f"{accuracy}; the strongest shortcut, {first.shortcut}, explains up to {first.explained_share:.0f} % of it"

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | asdict(self), indent=2)


@checked
def audit(run: Run | Path | str, count: PositiveInt = IMAGES, *, progress: bool = True) -> Audit:
    """Score a run with and without each shortcut on its training images; saved in RUN/audit.json, for the report.

        found = pretask.audit("runs/jigsaw-photos-s0")

    Raises UserError if the method predicts no class.
    """
    run = run if isinstance(run, Run) else Run(run)
    found = audit_method(
        run.method, run.source, title(run.card), count, seed=run.card["seed"], progress=progress
    )
    files.write_text(run.folder / FILE, found.to_json() + "\n")
    return found


@torch.no_grad()
def check_choice(config: MethodConfig, source: Source, encoder: str | None) -> None:
    """Raises UserError, before training, if the method predicts no class."""
    built = config.build_encoder(config.spec(encoder), source)
    requirements.check(config, built, source)
    method = config.build(built, source).eval()
    choice(method, method.puzzle(loader.sample(source, 2), 0, "audit"))


@torch.no_grad()
def audit_method(
    method: Method[Any],
    source: Source,
    name: str,
    count: int = IMAGES,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Audit:
    """The audit of a trained method on its training images."""
    method.eval()
    some = loader.sample(source, count, Rng(seed, "audit", "which"))
    unchanged = predict_answers(method, some, None, seed)
    assert unchanged is not None
    with bar(progress) as shown:
        removed = [
            (shortcut, predict_answers(method, some, shortcut, seed))
            for shortcut in shown.track(possible(source), description="removing shortcuts")
        ]
    applicable = [(shortcut, answers) for shortcut, answers in removed if answers is not None]
    return summarize(name, source.name, unchanged, applicable, seed)


def possible(source: Source) -> list[Shortcut]:
    """The shortcuts that a source's images can have."""
    return [shortcut for shortcut in SHORTCUTS if source.channels == 3 or not shortcut.colored]


def read(folder: Path) -> Audit | None:
    """The audit in a run's folder, if there is one."""
    if not (folder / FILE).is_file():
        return None
    content = read_json(folder / FILE, SCHEMA)
    findings = [Finding(**f) for f in content.pop("findings")]
    del content["schema"]
    return Audit(**content, findings=findings)


@dataclass(frozen=True)
class Answers:
    """Predictions for one field of the puzzle, without images that have no label, such as images without a seed patch."""

    name: str
    accuracy: Tensor  # (N,) fraction of correct predictions of each image
    num_classes: int


def predict_answers(method: Method[Any], some: Batch, shortcut: Shortcut | None, seed: int) -> Answers | None:
    """Predictions for the puzzles of `some` images with a shortcut removed; None if the puzzles cannot have that shortcut."""
    device = next(method.parameters()).device
    accuracy, labels, name = [], [], ""
    for number in range(0, len(some), BATCH):
        batch = some.rows(slice(number, number + BATCH)).to(device)
        made = puzzle(method, batch, shortcut, Rng(seed, "audit", number, device=device))
        if made is None:
            return None
        name, predicted, label = choice(method, made)
        valid = (label >= 0).view(len(batch), -1)
        score = ((predicted == label).view(len(batch), -1) & valid).sum(1) / valid.sum(1)
        accuracy.append(score[valid.any(1)].cpu())
        labels.append(label[label >= 0].cpu())
    if not len(torch.cat(labels)):
        raise UserError(f"none of the {len(some)} images has a {name}; raise --count")
    return Answers(name, torch.cat(accuracy), int(torch.cat(labels).max()) + 1)


def puzzle(method: Method[Any], batch: Batch, shortcut: Shortcut | None, rng: Rng) -> Any:
    """The puzzle of a batch with a shortcut removed and everything else equal; None if it lacks the tiles that the shortcut needs."""
    if shortcut and shortcut.image:
        cleaned = shortcut.image(augment.to_float(batch.image), rng.child("clue"))
        batch = dataclasses.replace(batch, image=(255 * cleaned).round().to(torch.uint8))
    made: Any = method.pretext(batch, rng)
    if shortcut and shortcut.tiles:
        tiles = {k: v for k, v in vars(made).items() if isinstance(v, Tensor) and v.ndim == 5}
        return (
            dataclasses.replace(made, **{k: shortcut.tiles(v) for k, v in tiles.items()}) if tiles else None
        )
    return made


def choice(method: Method[Any], puzzle: Any) -> tuple[str, Tensor, Tensor]:
    """The first field that is predicted as a class: its name, predictions and labels."""
    for name, predicted in method.predict(puzzle).items():
        label = getattr(puzzle, name)
        if not label.is_floating_point() and label.ndim <= 2 and label.dtype != torch.bool:
            return name, predicted, label
    raise UserError(
        f"{methods.name_of(method)} predicts no class, so there is nothing to audit; "
        "methods that do are, for example, jigsaw, context_prediction and rotnet"
    )


def summarize(
    method: str, data: str, unchanged: Answers, removed: Sequence[tuple[Shortcut, Answers]], seed: int
) -> Audit:
    """Explained shares with their intervals, by the bootstrap over images."""
    n, chance = len(unchanged.accuracy), 100 / unchanged.num_classes
    draws = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))

    def means(of: Answers) -> tuple[float, np.ndarray]:
        values = 100 * of.accuracy.numpy()
        return float(values.mean()), values[draws].mean(1)

    accuracy, resampled = means(unchanged)
    low, high = quantiles(resampled)
    findings = []
    for shortcut, answers in removed:
        remaining, remaining_resampled = means(answers)
        found = Finding(shortcut.name, shortcut.description, remaining)
        if low > chance:
            ends = quantiles(100 * (resampled - remaining_resampled) / np.maximum(resampled - chance, 1e-6))
            share = 100 * (accuracy - remaining) / (accuracy - chance)
            found = Finding(shortcut.name, shortcut.description, remaining, share, *ends)
        findings.append(found)
    findings.sort(key=lambda f: f.accuracy)
    return Audit(method, data, unchanged.name, n, accuracy, low, high, chance, findings)
