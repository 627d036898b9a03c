"""From a run to a task with annotations, beside honest baselines: `pretask transfer RUN --data FOLDER --task TASK`."""

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from pretask.data.base import OpenOptions
from pretask.data.ledger import Ledger, counted, grouped
from pretask.evals.scores import Scores
from pretask.limits import PositiveInt, checked
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime import files
from pretask.runtime.device import find_device
from pretask.tasks import TASKS
from pretask.tasks import base as evals
from pretask.tasks.base import Plan, Task, TaskResult
from pretask.train import run
from pretask.train.logger import OnLog
from pretask.train.plan import cautions
from pretask.train.run import Run
from pretask.types import UserError
from pretask.viz import sheet
from pretask.workflows.reruns import budget, seed_runs


def task_of(name: str) -> Task[Any]:
    if name not in TASKS:
        raise UserError(f"no task is called {name!r}; there are {', '.join(TASKS)}")
    return getattr(importlib.import_module(f"pretask.tasks.{name}"), TASKS[name])()


@checked
def transfer(
    what: Run | str | Path,
    data: str | Path,
    test: str | Path | None = None,
    *,
    task: str,
    seeds: PositiveInt = 1,
    supervised: bool = False,
    finetune: bool = False,
    steps: PositiveInt | None = None,
    size: PositiveInt | None = None,
    reading: Reading = DEFAULT_READING,
    progress: bool = True,
    on_log: OnLog | None = None,
) -> Scores:
    """Take a run's encoder to a task, score it on test images, and keep the scores and a sheet in RUN/scores.

        scores = pretask.transfer("runs/rotnet-photos-s0", "VOC2007:trainval", "VOC2007:test", task="detection")

    `data` and `test` are folders in VOC or COCO form, `FOLDER` or `FOLDER:PART`; without `test` a fifth of the images is
    set aside, of scenes each in turn. `seeds` and `supervised` are those of `evaluate`; with `finetune`, of normals and
    depth, the encoders learn with a decoder, so that the untrained one shows what the task alone teaches; `steps` and
    `size` (pixels) are the task's own if None.
    """
    known, loaded = task_of(task), what if isinstance(what, Run) else Run(what)
    if finetune and not known.can_finetune:
        raise UserError(f"--finetune is for normals and depth, not for {task}; leave it out")
    if finetune and supervised:
        raise UserError("fine-tuned, the untrained encoder is the supervised one; leave out --supervised")
    if steps is not None and known.can_finetune and not (finetune or supervised):
        raise UserError(f"{task} is read off frozen maps in no steps; leave out --steps, or give --finetune")
    plan = Plan(steps, size, device=find_device(), progress=progress, finetune=finetune)
    known.check(loaded.encoder, plan)
    options = OpenOptions(reading=reading, progress=progress, range=loaded.encoder.range)
    train = known.load(str(data), options)
    unseen = None if test is None else known.load(str(test), dataclasses.replace(options, range=train.range))
    # what can be wrong with run and data has been found before other seeds are trained
    family = seed_runs(loaded, seeds, on_log)
    scores, outcome = evals.transfer(
        known,
        [each.encoder for each in family],
        train,
        unseen,
        name=run.title(loaded.card),
        seeds=[each.card["seed"] for each in family],
        untrained=[each.untrained for each in family],
        plan=plan,
        supervised_steps=budget(loaded) if supervised else None,
    )
    books = [
        (each.name, what, ledger)
        for each in (train, unseen)
        if each is not None
        for what, ledger in each.ledgers.items()
    ]
    listed = Ledger()
    for name, _, ledger in books:
        for place, why in ledger.bad.items():
            listed.skip(f"{name}: {place}", why)
    skipped = listed.bad
    notes = [*scores.skipped, *cautions(loaded.card), *(mostly_bad(*each) for each in books)]
    if skipped:
        notes.append(
            f"{len(skipped):,} images or objects could not be used; they are listed beside the scores"
        )
    scores = dataclasses.replace(scores, skipped=[*filter(None, notes)])
    path = scores.write(loaded.folder)
    keep(path, outcome, skipped)
    for _, _, ledger in books:
        ledger.where = str(beside(path)[1]) if ledger.bad else ""
    return scores


def mostly_bad(name: str, what: str, ledger: Ledger) -> str:
    """A sentence where more than half cannot be used; else nothing."""
    bad, n = len(ledger.bad), ledger.found - len(ledger.unwanted) - ledger.other.total()
    if 2 * bad <= n:
        return ""
    return f"most {what} of {name} cannot be used, {bad:,} of {n:,}: {counted(grouped(ledger.bad))}"


def keep(path: Path, outcome: TaskResult, skipped: Mapping[str, str]) -> None:
    """Beside the scores at `path`: a sheet of test images, and what could not be used; those of an earlier call go."""
    drawn, left_out = beside(path)
    files.remove(drawn)
    files.remove(left_out)
    if outcome.pictures:
        made = sheet.paint(
            [sheet.Cell(tuple((name, picture(x)) for name, x in one.items())) for one in outcome.pictures],
            title=path.stem,
        )
        files.write(drawn, lambda file: made.save(file, format="PNG"))
    if skipped:
        files.write_text(left_out, Ledger(skipped).csv())


def picture(x: Tensor) -> Image.Image:
    """(3, H, W) uint8"""
    return Image.fromarray(x.permute(1, 2, 0).contiguous().numpy())


def beside(path: Path) -> tuple[Path, Path]:
    """The sheet and the list that belong to scores."""
    return path.with_suffix(".png"), path.with_suffix(".bad.csv")


def written(folder: Path | str, scores: Scores) -> list[str]:
    """What there is of a transfer in a run's folder."""
    path = scores.path(Path(folder))
    return [str(p) for p in (path, *beside(path)) if p.exists()]
