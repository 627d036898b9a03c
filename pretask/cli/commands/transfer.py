"""pretask transfer RUN --data FOLDER --task TASK: take the encoder to images with boxes or masks."""

from dataclasses import dataclass

from pretask.cli.flags import subject
from pretask.limits import Count, Share
from pretask.train.progress import Display, console, say


@dataclass(frozen=True)
class Flags:
    """Take a run's encoder to another task and score it there: linear SVMs on frozen features, a detector or a
    segmenter trained on. Beside it the same encoder untrained, taken there in the same way, with 95 % intervals."""

    data: str
    """annotated images in VOC or COCO form: FOLDER, or FOLDER:PART for a part of it, such as VOC2007:trainval; of normals
    and depth, scenes:FOLDER"""
    task: str
    """classification (which classes an image shows), detection (where they are), segmentation (each pixel's class),
    normals (how surfaces are turned) or depth"""
    test: str | None = None
    """annotated images to score on (a fifth of --data, set aside; of scenes each fifth in turn)"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""
    seeds: Count = 1
    """repeat the run with so many seeds; runs beside it are used, missing ones are trained"""
    supervised: bool = False
    """add the same encoder trained first with the images' classes, on as many images as the run saw; of normals and depth,
    trained with a decoder"""
    finetune: bool = False
    """of normals and depth, let the encoders learn with a decoder: the untrained one shows what the task alone teaches"""
    steps: Count | None = None
    """of training on the task (the task's own)"""
    size: Count | None = None
    """side of the images, pixels; of detection the shorter one (the task's own)"""
    max_bad: Share = 0.1
    """share of unreadable images at which it stops"""


def run(words: list[str]) -> None:
    what, chosen = subject(words, "transfer", "RUN", Flags)

    from pretask.reports import report, table
    from pretask.workflows.transfer import files, transfer

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
            max_bad=chosen.max_bad,
            tell=display,
        )
    if chosen.json:
        print(scores.to_json())
    else:
        console().print(table.transferred(scores))
    say(f"wrote {', '.join(files(what, scores))} and {report(what)}")
