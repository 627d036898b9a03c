"""pretask colorize RUN --data PATH: colorize gray images."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import subject
from pretask.limits import PositiveFloat
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import console, say


@dataclass(frozen=True)
class Flags:
    """Colorize images with a run of colorization or color_proxy. Writes PNG files, a contact sheet, and a page on which
    visitors guess which of two images is real. Color images are colorized from their lightness and scored against
    their true colors."""

    data: str
    """images, gray or in color: a folder, a .npz, .parquet or .tar file, hf:NAME, or a torchvision name"""
    out: Path = Path("colored")
    """folder to create; images keep their names, and their size up to 1600 px"""
    temperature: PositiveFloat | None = None
    """temperature of the annealed mean: small values give vivid colors, 1 gives safe ones (default: the run's, usually 0.38)"""
    json: bool = False
    """print only the scores, as JSON, on standard output"""
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    what, chosen = subject(words, "colorize", "RUN", Flags)

    from pretask import data as sources
    from pretask.data.folder import with_all_splits
    from pretask.reports import table
    from pretask.train.run import Run
    from pretask.workflows import colorize

    trained = Run(what)
    source = sources.open(
        with_all_splits(chosen.data),
        size=trained.card["size"],
        channels=3,
        range=trained.card_source.range,
        reading=chosen.reading,
        cache_mb=0,  # files are colorized at their own size
    )
    made = colorize.colorize(trained, source, chosen.out, chosen.temperature)
    if chosen.json:
        print(made.to_json())
    elif made.scores:
        console().print(table.colored(made))
    say(f"wrote {made.n} images to {made.folder}. Look at {made.folder / 'sheet.png'}")
    if made.scores:
        say(f"Which are real? Let visitors guess: {made.folder / 'turing.html'}")
