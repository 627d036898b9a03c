"""pretask audit METHOD --data PATH: test for shortcut learning."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretask.cli.flags import method_flags, opening, parse
from pretask.limits import PositiveInt, Seed
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import console, say
from pretask.train.progress import Display

if TYPE_CHECKING:
    from pretask.train.run import Run


@dataclass(frozen=True)
class RunFlags:
    """Test a run for shortcut learning: solve its puzzles with each known shortcut removed (color fringes, vignetting, JPEG
    grid, continuing edges, …)."""

    count: PositiveInt = 500
    """maximum number of images whose puzzles are solved"""
    json: bool = False
    """print only JSON on standard output"""


@dataclass(frozen=True)
class MethodFlags:
    """Test for shortcut learning: train a small network briefly, then solve its puzzles with each known shortcut removed
    (color fringes, vignetting, JPEG grid, continuing edges, …). The method's own flags switch its countermeasures on and
    off."""

    data: str
    """images to train and test on"""
    out: Path | None = None
    """folder in which to keep the trained network as a run, with its report (default: not kept)"""
    budget: str = "2m"
    """training time, such as 90s or 10m"""
    steps: PositiveInt | None = None
    """training steps, instead of --budget"""
    encoder: str | None = None
    """architecture of the network (default: the recipe's)"""
    size: PositiveInt | None = None
    """image side in pixels"""
    seed: Seed = 0
    """random seed of weights, data order and puzzles"""
    reading: Reading = DEFAULT_READING
    count: PositiveInt = 500
    """maximum number of images whose puzzles are solved"""
    json: bool = False
    """print only JSON on standard output"""


def run(words: list[str]) -> None:
    what, rest = opening(words, "audit", "METHOD or RUN")
    if what is None:
        parse(MethodFlags, ["--help"], "audit METHOD")
    elif Path(what).is_dir() or ("/" in what and ".py" not in what):
        from pretask.train.run import Run

        flags = parse(RunFlags, rest, f"audit {what}")
        show(Run(what), flags.count, flags.json, kept=True)
    else:
        from pretask import methods

        chosen = parse(method_flags(what, MethodFlags, methods.recipe(what).train), rest, f"audit {what}")
        with tempfile.TemporaryDirectory() as folder:
            trained = train(what, chosen, chosen.run.out or Path(folder) / "run")
            show(trained, chosen.run.count, chosen.run.json, kept=chosen.run.out is not None)


def train(method: str, chosen: Any, out: Path) -> "Run":
    """The run of a method with the chosen flags, in the folder `out`."""
    from pretask import data as sources
    from pretask.config import RunConfig
    from pretask.workflows import audit as auditing
    from pretask.workflows.job import fresh
    from pretask.workflows.pretrain import pretrain

    flags: MethodFlags = chosen.run
    source = sources.open(flags.data, size=flags.size, reading=flags.reading)
    auditing.check_choice(chosen.method, source, flags.encoder)
    settings = RunConfig(
        flags.data,
        out,
        encoder=flags.encoder,
        size=flags.size,
        steps=flags.steps,
        budget=flags.budget,
        seed=flags.seed,
        reading=flags.reading,
    )
    job = fresh(method, settings, chosen.method, chosen.train, images=source)
    with Display() as display:
        return pretrain(job, on_log=display)


def show(trained: "Run", count: int, json: bool, kept: bool) -> None:
    from pretask.reports import table
    from pretask.reports.report import report
    from pretask.workflows.audit import audit

    found = audit(trained, count)
    if json:
        print(found.to_json())
    else:
        console().print(table.audited(found))
    if kept:
        say(f"wrote {trained.folder}/audit.json and {report(trained.folder)}")
