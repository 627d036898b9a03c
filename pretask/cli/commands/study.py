"""pretask study RUN --data LABELLED: how much data, how many labels, how much do features change, and with labels?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretask.cli.flags import subject
from pretask.limits import Count, Part, Share
from pretask.train.progress import Display, console, say


@dataclass(frozen=True)
class Flags:
    """Ask a run of any method some questions. data: what is it worth on fewer images? It is trained again on shares of its
    images. labels: what is it worth with fewer labels, frozen and trained on, beside the same network from scratch? change:
    how like themselves do its features stay, stage by stage, when it is trained on? The first takes as long as the run for
    every share, the others minutes. supervised, if you ask for it: what would the same network have learned with labels, on
    fewer images, with fewer labels, of fewer classes? It takes as long as the run for each of them."""

    data: str
    """labelled images: class folders, a .npz, hf:NAME, or a torchvision name"""
    test: str | None = None
    """labelled images to score on (a fifth of each class of --data, set aside)"""
    ask: tuple[Literal["data", "labels", "change", "supervised"], ...] = ("data", "labels", "change")
    """the questions; answers to the others stay"""
    shares: tuple[Part, ...] = ()
    """of the run's images and of the labels (data: 0.1 0.3, beside 0 and 1; labels: 0.01 0.1 1; supervised: 0.1 0.3 1)"""
    seeds: Count = 1
    """ask so many runs with other seeds too; those beside it are used, missing ones are trained"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""
    root: Path | None = None
    """where a torchvision data set is"""
    max_bad: Share = 0.1
    """share of unreadable files at which it stops"""


def run(words: list[str]) -> None:
    what, chosen = subject(words, "study", "RUN", Flags)

    from pretask.reports import report, table
    from pretask.workflows.study import study

    with Display() as display:
        found = study(
            what,
            chosen.data,
            chosen.test,
            ask=chosen.ask,
            shares=chosen.shares,
            seeds=chosen.seeds,
            root=chosen.root,
            max_bad=chosen.max_bad,
            tell=display,
        )
    if chosen.json:
        print(found.to_json())
    else:
        console().print(table.studied(found))
    page = report(what, chosen.test or chosen.data, root=chosen.root, max_bad=chosen.max_bad)
    for caution in found.cautions:
        say(f"Caution: {caution}")
    say(f"wrote {what}/study and {page}")
