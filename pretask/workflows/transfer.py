"""Transfer a run to an annotated downstream task, with baselines: `pretask transfer RUN --data FOLDER --task TASK`."""

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from pretask.config import InputConfig
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
from pretask.train.logger import OnLog
from pretask.train.plan import cautions
from pretask.train.run import Run
from pretask.types import UserError
from pretask.viz import sheet
from pretask.workflows import subject
from pretask.workflows.reruns import budget, seed_runs
from pretask.workflows.subject import Candidate, Weights


def task_of(name: str) -> Task[Any]:
    if name not in TASKS:
        raise UserError(f"no task is called {name!r}; there are {', '.join(TASKS)}")
    return getattr(importlib.import_module(f"pretask.tasks.{name}"), TASKS[name])()


@checked
def transfer(
    what: Weights,
    data: str | Path,
    test: str | Path | None = None,
    *,
    task: str,
    seeds: PositiveInt = 1,
    supervised: bool = False,
    finetune: bool = False,
    steps: PositiveInt | None = None,
    size: PositiveInt | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    out: str | Path | None = None,
    reading: Reading = DEFAULT_READING,
    progress: bool = True,
    on_log: OnLog | None = None,
) -> Scores:
    """Transfer an encoder to a task and score it on test images; scores and a sheet are saved in RUN/scores, or in `out`.

        scores = pretask.transfer("runs/rotnet-photos-s0", "VOC2007:trainval", "VOC2007:test", task="detection")

    `data` and `test` are folders in VOC or COCO format, `FOLDER` or `FOLDER:SPLIT`. Without `test` a fifth of the images is
    held out; scenes are cross-validated in five folds. `seeds` and `supervised` are as in `evaluate`. With `finetune`, for
    normals and depth, encoders are fine-tuned with a decoder, and the untrained encoder shows what training on the task alone
    gives. `steps` and `size` (pixels) default to the task's.
    """
    known = task_of(task)
    if seeds > 1 or supervised:
        subject.require_run(what, "--seeds and --supervised")
    loaded = subject.load(what, InputConfig(mean=mean, std=std))
    is_run = isinstance(loaded, Run)
    encoder = loaded.encoder if is_run else loaded
    if finetune and not known.can_finetune:
        raise UserError(f"--finetune is for normals and depth, not for {task}; leave it out")
    if finetune and supervised:
        raise UserError(
            "with --finetune, the untrained encoder is already trained on the labels only; leave out --supervised"
        )
    if steps is not None and known.can_finetune and not (finetune or supervised):
        raise UserError(
            f"{task} on frozen features is solved in closed form, without steps; leave out --steps, or give --finetune"
        )
    plan = Plan(steps, size, device=find_device(), progress=progress, finetune=finetune)
    known.check(encoder, plan)
    options = OpenOptions(reading=reading, progress=progress, range=encoder.range)
    train = known.load(str(data), options)
    unseen = None if test is None else known.load(str(test), dataclasses.replace(options, range=train.range))
    # all checks of run and data come before other seeds are trained
    candidate = (
        Candidate.of_runs(seed_runs(loaded, seeds, on_log)) if is_run else Candidate.of_encoder(what, encoder)
    )
    scores, outcome = evals.transfer(
        known,
        candidate.encoders,
        train,
        unseen,
        name=candidate.name,
        role=candidate.role,
        seeds=candidate.seeds,
        untrained=candidate.untrained,
        published=candidate.published,
        plan=plan,
        supervised_steps=budget(loaded) if is_run and supervised else None,
    )
    ledgers = [
        (each.name, what, ledger)
        for each in (train, unseen)
        if each is not None
        for what, ledger in each.ledgers.items()
    ]
    listed = Ledger()
    for name, _, ledger in ledgers:
        for place, why in ledger.bad.items():
            listed.skip(f"{name}: {place}", why)
    skipped = listed.bad
    notes = [
        *scores.skipped,
        *(cautions(loaded.card) if is_run else ()),
        *(mostly_bad(*each) for each in ledgers),
    ]
    if skipped:
        notes.append(
            f"{len(skipped):,} images or objects could not be used; a file next to the scores lists them"
        )
    scores = dataclasses.replace(scores, skipped=[*filter(None, notes)])
    folder = Path(out) if out else loaded.folder if is_run else None
    if folder is not None:
        path = scores.write(folder)
        write_files(path, outcome, skipped)
        for _, _, ledger in ledgers:
            ledger.where = str(companions(path)[1]) if ledger.bad else ""
    return scores


def mostly_bad(name: str, what: str, ledger: Ledger) -> str:
    """A sentence if more than half of the records cannot be used, otherwise an empty string."""
    bad, n = len(ledger.bad), ledger.found - len(ledger.unwanted) - ledger.other.total()
    if 2 * bad <= n:
        return ""
    return f"most {what} of {name} cannot be used, {bad:,} of {n:,}: {counted(grouped(ledger.bad))}"


def write_files(path: Path, outcome: TaskResult, skipped: Mapping[str, str]) -> None:
    """Write a sheet of test images and the list of unused records next to the scores at `path`, replacing earlier ones."""
    drawn, left_out = companions(path)
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


def companions(path: Path) -> tuple[Path, Path]:
    """Paths of the sheet and the list that belong to the scores at `path`."""
    return path.with_suffix(".png"), path.with_suffix(".bad.csv")


def written(folder: Path | str, scores: Scores) -> list[str]:
    """Existing files of a transfer in a run's folder."""
    path = scores.path(Path(folder))
    return [str(p) for p in (path, *companions(path)) if p.exists()]
