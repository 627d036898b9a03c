"""From a run to a task with annotations, beside honest baselines: `pretask transfer RUN --data FOLDER --task TASK`."""

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from pretask.data.ledger import Ledger
from pretask.evals.protocol import Scores
from pretask.runtime import files as checkpoint
from pretask.runtime.device import find_device
from pretask.tasks import TASKS
from pretask.tasks import base as evals
from pretask.tasks.base import Outcome, Plan, Task
from pretask.train import run
from pretask.train.logger import Tell
from pretask.train.plan import cautions
from pretask.train.run import Run
from pretask.types import UserError
from pretask.viz import puzzle as sheet
from pretask.workflows.evaluate import budget, sisters


def task_of(name: str) -> Task:
    if name not in TASKS:
        raise UserError(f"no task is called {name!r}; there are {', '.join(TASKS)}")
    module: Any = importlib.import_module(f"pretask.evals.{TASKS[name]}")
    return module


def transfer(
    what: Run | str | Path,
    data: str | Path,
    test: str | Path | None = None,
    *,
    task: str,
    seeds: int = 1,
    supervised: bool = False,
    finetune: bool = False,
    steps: int | None = None,
    size: int | None = None,
    max_bad: float = 0.1,
    progress: bool = True,
    tell: Tell | None = None,
) -> Scores:
    """Take a run's encoder to a task, score it on test images, and keep the scores and a sheet in RUN/scores.

        scores = pretask.transfer("runs/rotnet-photos-s0", "VOC2007:trainval", "VOC2007:test", task="detection")

    `data` and `test` are folders in VOC or COCO form, `FOLDER` or `FOLDER:PART`; without `test` a fifth of the images is
    set aside, of scenes each in turn. `seeds` and `supervised` are those of `evaluate`; with `finetune`, of normals and
    depth, the encoders learn with a decoder, so that the untrained one shows what the task alone teaches; `steps` and
    `size` (pixels) are the task's own if None.
    """
    known, loaded = task_of(task), what if isinstance(what, Run) else Run(what)
    for flag, given in (("--steps", steps), ("--size", size)):
        if given is not None and given < 1:
            raise UserError(f"{flag} {given} is no number to work with; give 1 or more, or leave it out")
    if finetune and not known.TUNES:
        raise UserError(f"--finetune is for normals and depth, not for {task}; leave it out")
    if finetune and supervised:
        raise UserError("fine-tuned, the untrained encoder is the supervised one; leave out --supervised")
    if steps is not None and known.TUNES and not (finetune or supervised):
        raise UserError(f"{task} is read off frozen maps in no steps; leave out --steps, or give --finetune")
    plan = Plan(steps, size, device=find_device(), progress=progress, tuned=finetune)
    known.check(loaded.encoder, plan)
    train, unseen = (
        None if spec is None else known.load(str(spec), max_bad, progress) for spec in (data, test)
    )
    # what can be wrong with run and data has been found before other seeds are trained
    family = sisters(loaded, seeds, tell)
    scores, outcome = evals.transfer(
        known,
        f"fine-tuned {task}" if finetune else task,
        [each.encoder for each in family],
        train,
        unseen,
        name=run.title(loaded.card),
        seeds=[each.card["seed"] for each in family],
        fresh=[each.untrained for each in family],
        plan=plan,
        supervised_steps=budget(loaded) if supervised else None,
    )
    skipped = {
        f"{each.name}: {place}": why for each in (train, unseen) if each for place, why in each.bad.items()
    }
    scores = dataclasses.replace(scores, skipped=[*scores.skipped, *cautions(loaded.card)])
    if skipped:
        said = f"{len(skipped)} images or objects could not be used; they are listed beside the scores"
        scores = dataclasses.replace(scores, skipped=[*scores.skipped, said])
    keep(scores.write(loaded.folder), outcome, skipped)
    return scores


def keep(path: Path, outcome: Outcome, skipped: Mapping[str, str]) -> None:
    """Beside the scores at `path`: a sheet of test images, and what could not be used; those of an earlier call go."""
    drawn, left_out = beside(path)
    checkpoint.remove(drawn)
    checkpoint.remove(left_out)
    if outcome.pictures:
        made = sheet.paint(
            [sheet.Cell(tuple((name, picture(x)) for name, x in one.items())) for one in outcome.pictures],
            title=path.stem,
        )
        checkpoint.write(drawn, lambda file: made.save(file, format="PNG"))
    if skipped:
        checkpoint.write_text(left_out, Ledger(skipped).csv())


def picture(x: Tensor) -> Image.Image:
    """(3, H, W) uint8"""
    return Image.fromarray(x.permute(1, 2, 0).contiguous().numpy())


def beside(path: Path) -> tuple[Path, Path]:
    """The sheet and the list that belong to scores."""
    return path.with_suffix(".png"), path.with_suffix(".bad.csv")


def files(folder: Path | str, scores: Scores) -> list[str]:
    """What there is of a transfer in a run's folder."""
    path = scores.path(Path(folder))
    return [str(p) for p in (path, *beside(path)) if p.exists()]
