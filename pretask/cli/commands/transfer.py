"""pretask transfer WEIGHTS --data FOLDER --task TASK: transfer the encoder to a downstream task."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import WEIGHTS, subject
from pretask.limits import PositiveFloat, PositiveInt, UnitInterval
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import console, say
from pretask.train.progress import Display


@dataclass(frozen=True)
class Flags:
    """Transfer an encoder to a downstream task and score it there, compared with the same encoder untrained,
    with 95 % intervals.
    Classification and dense prediction use frozen features; detection and segmentation fine-tune."""

    data: str
    """annotated images in VOC or COCO format: FOLDER, or FOLDER:SPLIT such as VOC2007:trainval; for normals and depth,
    scenes:FOLDER"""
    task: str
    """classification (multi-label), detection (boxes), segmentation (a class per pixel), normals (of surfaces) or depth"""
    test: str | None = None
    """annotated images to score on (default: a fifth of --data, held out; for scenes, 5-fold cross-validation)"""
    json: bool = False
    """print only JSON on standard output"""
    seeds: PositiveInt = 1
    """number of seeds to average over; finished runs next to this one are used, missing ones are trained"""
    supervised: bool = False
    """also transfer the same encoder pretrained with the images' classes, for as many images as the run saw; for normals and
    depth, trained with a decoder"""
    finetune: bool = False
    """for normals and depth, fine-tune the encoders with a decoder instead of reading frozen features"""
    steps: PositiveInt | None = None
    """training steps on the task (default: the task's)"""
    size: PositiveInt | None = None
    """image side in pixels; for detection the shorter side (default: the task's)"""
    mean: tuple[UnitInterval, ...] | None = None
    """mean of the input, from 0 to 1, one value or one per channel, for published weights (default: the architecture's)"""
    std: tuple[PositiveFloat, ...] | None = None
    """standard deviation of the input, likewise"""
    out: Path | None = None
    """folder for the scores (default: the run's; none for published weights)"""
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    what, chosen = subject(words, "transfer", WEIGHTS, Flags)

    from pretask.reports import table
    from pretask.reports.report import report
    from pretask.train.run import CARD
    from pretask.workflows.transfer import transfer, written

    with Display() as display:
        scores = transfer(
            what,
            chosen.data,
            chosen.test,
            task=chosen.task,
            seeds=chosen.seeds,
            supervised=chosen.supervised,
            finetune=chosen.finetune,
            steps=chosen.steps,
            size=chosen.size,
            mean=chosen.mean,
            std=chosen.std,
            out=chosen.out,
            reading=chosen.reading,
            on_log=display,
        )
    if chosen.json:
        print(scores.to_json())
    else:
        console().print(table.transferred(scores))
    folder = chosen.out or (Path(what) if (Path(what) / CARD).is_file() else None)
    if folder is not None:
        files = written(folder, scores)
        say(f"wrote {', '.join([*files, *([str(report(what))] if not chosen.out else [])])}")
