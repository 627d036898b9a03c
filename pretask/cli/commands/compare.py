"""pretask compare --data PATH --labels LABELED --out FOLDER: does pretraining pay on your images, and by which method?"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pretask.cli import commands
from pretask.cli.flags import parse
from pretask.errors import UserError
from pretask.limits import PositiveInt, Seed
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import console, say
from pretask.train.progress import Display

if TYPE_CHECKING:
    from pretask.workflows.compare import Compared

HELP = """\
pretask compare --data PATH --labels LABELED --out FOLDER   compare methods within a time budget; --help lists all flags
pretask compare --resume FOLDER                             continue an interrupted comparison
pretask compare FOLDER --methods a,b                        add methods to a finished one"""


@dataclass(frozen=True)
class Flags:
    """Find out whether to pretrain on your images, with which method, and from which weights, within a time budget. All
    candidates train for a short time, the better half longer, and the finalists with several seeds; the test images are used
    once, for a table with the published weights, the untrained encoder, raw pixels and k-means patches.

    pretask compare --resume FOLDER continues an interrupted comparison; pretask compare FOLDER --methods a,b adds methods."""

    data: str
    """images to train on, as in pretrain"""
    labels: str
    """labeled images, one label each, in class folders or as a table of path and label; training never sees the labels"""
    out: Path
    """folder for the tables, the page and the runs"""
    budget: str = "1h"
    """time for everything, such as 30m or 2h"""
    test: str | None = None
    """labeled images for the final table (default: a fifth of --labels)"""
    methods: str = ""
    """methods to try, separated by commas (default: five of unlike kinds, and with --init three that use the weights)"""
    init: str | None = None
    """published weights to compare with and to start from: timm:NAME, ARCH@FILE, or a run"""
    encoders: tuple[str, ...] = ()
    """architectures that candidates train, unless they continue the weights of --init (default: the one of --init, or a small ResNet)"""
    seeds: PositiveInt = 3
    """seeds of each finalist"""
    match: Literal["seconds", "samples", "flops"] = "seconds"
    """what all runs of a rung are given equally; --budget holds in any case"""
    size: PositiveInt | None = None
    """image side in pixels, as in pretrain"""
    seed: Seed = 0
    """first random seed"""
    json: bool = False
    """print only JSON on standard output"""
    leaks: bool = True
    """warn of test images that are among the labeled images too, equal or as near copies"""
    reading: Reading = DEFAULT_READING


@dataclass(frozen=True)
class More:
    """Add methods to a finished comparison, or go on with an interrupted one."""

    methods: str = ""
    """methods to add, separated by commas"""
    json: bool = False
    """print only JSON on standard output"""


def run(words: list[str]) -> None:
    if words[:1] in ([], ["-h"]):
        print(HELP)
        return
    as_json, found = again(words) if words[0] == "--resume" or not words[0].startswith("-") else fresh(words)

    from pretask.reports import comparison

    page = comparison.write(found)
    if as_json:
        print(found.to_json())
    else:
        console().print(comparison.table(found))
    say(f"wrote {page}")


def again(words: list[str]) -> tuple[bool, "Compared"]:
    """`--resume FOLDER` or `FOLDER --methods a,b`."""
    from pretask.workflows.compare import resume

    folder, rest = (words[1:2], words[2:]) if words[0] == "--resume" else (words[:1], words[1:])
    if not folder:
        raise UserError("--resume needs the folder of a comparison")
    chosen = parse(More, rest, "compare FOLDER")
    with Display() as display:
        return chosen.json, resume(folder[0], split(chosen.methods), on_log=display, began=commands.began)


def fresh(words: list[str]) -> tuple[bool, "Compared"]:
    from pretask.workflows.compare import compare

    chosen = parse(Flags, words, "compare")
    with Display() as display:
        found = compare(
            chosen.data,
            chosen.labels,
            chosen.test,
            out=chosen.out,
            budget=chosen.budget,
            methods=split(chosen.methods),
            init=chosen.init,
            encoders=chosen.encoders,
            seeds=chosen.seeds,
            match=chosen.match,
            size=chosen.size,
            seed=chosen.seed,
            leaks=chosen.leaks,
            reading=chosen.reading,
            on_log=display,
            began=commands.began,
        )
    return chosen.json, found


def split(methods: str) -> list[str]:
    return [name.strip() for name in methods.split(",") if name.strip()]
