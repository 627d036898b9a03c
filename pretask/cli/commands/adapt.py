"""pretask adapt WEIGHTS --data PATH --labels LABELED --out FOLDER: continue weights, or keep them if that does not help."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import WEIGHTS, subject
from pretask.config import DEFAULT_INPUT, InputConfig
from pretask.limits import Seed
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import console, say
from pretask.train.progress import Display


@dataclass(frozen=True)
class Flags:
    """Continue weights on your images by three methods, compare the results with the weights as they are on your labels, and
    keep the best. The weights stay as they are unless the 95 % interval of a gain, corrected for the number of methods,
    excludes 0. Run the same command again to go on after an interruption."""

    data: str
    """images to train on, as in pretrain"""
    labels: str
    """labeled images, one label each and 4 or more of each class, in class folders or as a table of path and label; training never
    sees the labels"""
    out: Path
    """folder for the result, a run that all commands take, and for the trials"""
    budget: str = "20m"
    """time for everything, such as 20m or 2h"""
    test: str | None = None
    """labeled images for the verdict (default: repeated folds of --labels)"""
    json: bool = False
    """print only JSON on standard output"""
    leaks: bool = True
    """warn of test images that are among the labeled images too, equal or as near copies"""
    seed: Seed = 0
    """random seed of training and folds"""
    input: InputConfig = DEFAULT_INPUT
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    what, chosen = subject(words, "adapt", WEIGHTS, Flags)

    from pretask.reports import table
    from pretask.workflows.adapt import adapt

    with Display() as display:
        found = adapt(
            what,
            chosen.data,
            chosen.labels,
            out=chosen.out,
            budget=chosen.budget,
            test=chosen.test,
            size=chosen.input.size,
            mean=chosen.input.mean,
            std=chosen.input.std,
            seed=chosen.seed,
            leaks=chosen.leaks,
            reading=chosen.reading,
            on_log=display,
        )
    if chosen.json:
        print(found.to_json())
    else:
        console().print(table.adapted(found))
    say(f"Next: pretask embed {found.folder} --data PATH")
