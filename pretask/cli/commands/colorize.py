"""pretask colorize RUN --data PATH: grey photographs in colour."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import subject
from pretask.limits import Positive, Share
from pretask.train.progress import console, say


@dataclass(frozen=True)
class Flags:
    """Paint images with the colours that a run of colorization or color_proxy expects in them: PNG files, a sheet of
    before and after, and a page on which visitors guess which of two images is real. Images that have colours are
    painted from their lightness alone, and the answers are scored against the truth."""

    data: str
    """images, grey or in colour: a folder, a .npz, .parquet or .tar file, hf:NAME, or a torchvision name"""
    out: Path = Path("coloured")
    """the folder that is made; files keep their names, and their size up to 1600 px"""
    temperature: Positive | None = None
    """of the distribution of which the mean is painted: small is vivid, 1 is safe (the run's own, 0.38 by default)"""
    json: bool = False
    """print the scores as JSON, and nothing else, on standard output"""
    root: Path | None = None
    """where a torchvision data set is"""
    max_bad: Share = 0.1
    """share of unreadable files at which it stops"""


def run(words: list[str]) -> None:
    what, chosen = subject(words, "colorize", "RUN", Flags)

    from pretask import data as sources
    from pretask.reports import table
    from pretask.train.run import Run
    from pretask.workflows import colorize as colorizing

    trained = Run(what)
    source = sources.open(
        chosen.data,
        size=trained.card["size"],
        channels=3,
        root=chosen.root,
        max_bad=chosen.max_bad,
        cache_mb=0,  # files are painted at their own size
    )
    made = colorizing.colorize(trained, source, chosen.out, chosen.temperature)
    if chosen.json:
        print(made.to_json())
    elif made.scores:
        console().print(table.coloured(made))
    say(f"wrote {made.n} images to {made.folder}. Look at {made.folder / 'sheet.png'}")
    if made.scores:
        say(f"Which are real? Let visitors guess: {made.folder / 'turing.html'}")
