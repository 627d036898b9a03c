"""pretask study WEIGHTS --data LABELED: accuracy over images and labels, feature drift in fine-tuning."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretask.cli.flags import WEIGHTS, subject
from pretask.config import DEFAULT_INPUT, InputConfig
from pretask.limits import PositiveFraction, PositiveInt
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import console, say
from pretask.train.progress import Display


@dataclass(frozen=True)
class Flags:
    """Study a run or published weights. data (runs only): how does accuracy depend on the number of pretraining images? Repeats the run on each fraction of its
    images. labels: how many labels are needed, with frozen features and with fine-tuning, compared with training from scratch?
    Takes minutes. change: how far do features drift during fine-tuning (CKA per stage)? Takes minutes. supervised (only on
    request): how does the same encoder do when pretrained with labels, on fewer images, labels or classes? Trains once for each."""

    data: str
    """labeled images: class folders, a .npz, hf:NAME, or a torchvision name"""
    labels: Path | None = None
    """table of path and label for the images of --data, in place of class folders (CSV, TSV or JSONL)"""
    test: str | None = None
    """labeled images to score on (default: a fifth of each class of --data, held out)"""
    ask: tuple[Literal["data", "labels", "change", "supervised"], ...] = ("data", "labels", "change")
    """questions to answer; earlier answers to other questions are kept"""
    fractions: tuple[PositiveFraction, ...] = ()
    """fractions of the run's images and of the labels (default: for data 0.1 0.3, besides 0 and 1; for labels 0.01 0.1 1; for
    supervised 0.1 0.3 1)"""
    seeds: PositiveInt = 1
    """number of seeds to average over; finished runs next to this one are used, missing ones are trained"""
    json: bool = False
    """print only JSON on standard output"""
    out: Path | None = None
    """folder for the answers (default: the run's; none for published weights)"""
    input: InputConfig = DEFAULT_INPUT
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    what, chosen = subject(words, "study", WEIGHTS, Flags)

    from pretask.reports import table
    from pretask.reports.report import LabeledImages, report
    from pretask.train.run import CARD
    from pretask.workflows.study import study

    opened: list[LabeledImages] = []
    with Display() as display:
        found = study(
            what,
            chosen.data,
            chosen.test,
            labels=chosen.labels,
            ask=chosen.ask,
            fractions=chosen.fractions,
            seeds=chosen.seeds,
            size=chosen.input.size,
            mean=chosen.input.mean,
            std=chosen.input.std,
            out=chosen.out,
            reading=chosen.reading,
            on_log=display,
            look=lambda source, pool: opened.append(LabeledImages(source, pool)),
        )
    if chosen.json:
        print(found.to_json())
    else:
        console().print(table.studied(found))
    for caution in found.cautions:
        say(f"Caution: {caution}")
    if (Path(what) / CARD).is_file() and not chosen.out:
        say(f"wrote {what}/study and {report(what, labeled=opened[0])}")
    elif chosen.out:
        say(f"wrote {chosen.out}/study")
