"""The shortcut audit: how far is a puzzle solved by cheating? `pretask audit METHOD --data PATH`

A solver answers fresh puzzles of images that it has learned from, as they are and without each clue (clues.py). A clue
explains (accuracy - accuracy without it) / (accuracy - chance) of what is solved: at most so much of it was read off that
clue, the rest went with it.
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
from pretask.methods import Method, MethodConfig
from pretask.rng import Rng
from pretask.runtime import files as checkpoint
from pretask.train.run import Run, title
from pretask.transforms import augment as images
from pretask.transforms.shortcuts import CLUES, Clue
from pretask.types import Batch, Source, UserError

SCHEMA = 1
FILE = "audit.json"
IMAGES = 500
"""whose puzzles are answered, at most"""
BATCH = 64


@dataclass(frozen=True)
class Finding:
    """Accuracy without a clue and the share that it explains with a 95 % interval, in %.

    The shares are None where nothing is solved that could be explained.
    """

    clue: str
    told_by: str
    accuracy: float
    explains: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def sure(self) -> bool:
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class Audit:
    """What a solver scored on the puzzles of `n` images, %, and what that is made of; the most telling clue first."""

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
        said = f"{self.answer}: {self.accuracy:.1f} % right, {self.chance:.1f} by chance"
        if self.low <= self.chance:
            return f"{said}; nothing is solved that a clue could explain"
        first = self.findings[0]
        if not first.sure:
            return f"{said}; no clue explains any of it"
        return f"{said}; the strongest clue, {first.clue}, explains up to {first.explains:.0f} % of it"

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | asdict(self), indent=2)


def audit(run: Run | Path | str, count: int = IMAGES, *, progress: bool = True) -> Audit:
    """Score a run's solver with and without each clue, on its own images; kept in RUN/audit.json, for the report.

        found = pretask.audit("runs/jigsaw-photos-s0")

    UserError if none of the method's answers is right or wrong.
    """
    run = run if isinstance(run, Run) else Run(run)
    found = of(run.method, run.source, title(run.card), count, seed=run.card["seed"], progress=progress)
    checkpoint.write_text(run.folder / FILE, found.to_json() + "\n")
    return found


@torch.no_grad()
def check_choice(config: MethodConfig, source: Source, encoder: str | None) -> None:
    """UserError before any training if none of the method's answers will be right or wrong."""
    method = config.build(config.draw(config.spec(encoder), source), source).eval()
    choice(method, method.puzzle(loader.sample(source, 2), 0, "audit"))


@torch.no_grad()
def of(
    method: Method[Any],
    source: Source,
    name: str,
    count: int = IMAGES,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Audit:
    """The audit of a solver on images that it has learned from."""
    method.eval()
    some = loader.sample(source, count, Rng(seed, "audit", "which"))
    whole = answered(method, some, None, seed)
    assert whole is not None
    with bar(progress) as shown:
        without = [
            (clue, answered(method, some, clue, seed))
            for clue in shown.track(possible(source), description="taking clues away")
        ]
    held = [(clue, answers) for clue, answers in without if answers is not None]
    return judged(name, source.name, whole, held, seed)


def possible(source: Source) -> list[Clue]:
    """The clues that its images can hold."""
    return [clue for clue in CLUES if source.channels == 3 or not clue.coloured]


def read(folder: Path) -> Audit | None:
    """The audit that a run's folder holds."""
    if not (folder / FILE).is_file():
        return None
    content = json.loads((folder / FILE).read_text())
    findings = [Finding(**f) for f in content.pop("findings")]
    del content["schema"]
    return Audit(**content, findings=findings)


@dataclass(frozen=True)
class Answers:
    """To one kind of question; images that give none, such as those without a seed, are left out."""

    name: str
    right: Tensor  # (N,) share of each image's questions that was answered rightly
    kinds: int  # of answers, which are numbered from 0


def answered(method: Method[Any], some: Batch, clue: Clue | None, seed: int) -> Answers | None:
    """The answers to the puzzles of `some` images without a clue; None for puzzles that cannot hold it."""
    device = next(method.parameters()).device
    right, truths, name = [], [], ""
    for number in range(0, len(some), BATCH):
        batch = some.rows(slice(number, number + BATCH)).to(device)
        made = puzzle(method, batch, clue, Rng(seed, "audit", number, device=device))
        if made is None:
            return None
        name, answer, truth = choice(method, made)
        asked = (truth >= 0).view(len(batch), -1)
        score = ((answer == truth).view(len(batch), -1) & asked).sum(1) / asked.sum(1)
        right.append(score[asked.any(1)].cpu())
        truths.append(truth[truth >= 0].cpu())
    if not len(torch.cat(truths)):
        raise UserError(
            f"none of the {len(some)} images has a right answer to {name}; audit more of them with --images"
        )
    return Answers(name, torch.cat(right), int(torch.cat(truths).max()) + 1)


def puzzle(method: Method[Any], batch: Batch, clue: Clue | None, rng: Rng) -> Any:
    """The puzzle of a batch without a clue, otherwise the same as with it; None where it has no tiles to hold it."""
    if clue and clue.image:
        cleaned = clue.image(images.to_float(batch.image), rng.child("clue"))
        batch = dataclasses.replace(batch, image=(255 * cleaned).round().to(torch.uint8))
    made: Any = method.pretext(batch, rng)
    if clue and clue.tiles:
        tiles = {k: v for k, v in vars(made).items() if isinstance(v, Tensor) and v.ndim == 5}
        return dataclasses.replace(made, **{k: clue.tiles(v) for k, v in tiles.items()}) if tiles else None
    return made


def choice(method: Method[Any], puzzle: Any) -> tuple[str, Tensor, Tensor]:
    """The first answer that is one of several: its name, what was answered, what is true."""
    for name, answer in method.solve(puzzle).items():
        truth = getattr(puzzle, name)
        if not truth.is_floating_point() and truth.ndim <= 2 and truth.dtype != torch.bool:
            return name, answer, truth
    raise UserError(
        f"{methods.called(method)} has no answer that is right or wrong, so there is nothing to audit; "
        "methods with a choice are, for example, jigsaw, context_prediction and rotnet"
    )


def judged(
    method: str, data: str, whole: Answers, without: Sequence[tuple[Clue, Answers]], seed: int
) -> Audit:
    """Shares with their intervals, by the bootstrap over images."""
    n, chance = len(whole.right), 100 / whole.kinds
    draws = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))

    def means(of: Answers) -> tuple[float, np.ndarray]:
        right = 100 * of.right.numpy()
        return float(right.mean()), right[draws].mean(1)

    accuracy, again = means(whole)
    low, high = quantiles(again)
    findings = []
    for clue, answers in without:
        left, left_again = means(answers)
        found = Finding(clue.name, clue.told_by, left)
        if low > chance:
            ends = quantiles(100 * (again - left_again) / np.maximum(again - chance, 1e-6))
            share = 100 * (accuracy - left) / (accuracy - chance)
            found = Finding(clue.name, clue.told_by, left, share, *ends)
        findings.append(found)
    findings.sort(key=lambda f: f.accuracy)
    return Audit(method, data, whole.name, n, accuracy, low, high, chance, findings)
