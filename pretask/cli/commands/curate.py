"""pretask curate WEIGHTS --data PATH --out FOLDER: duplicates, leaks, outliers, unusable images, clusters, and a list to keep."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import WEIGHTS, subject
from pretask.config import DEFAULT_INPUT, DEFAULT_READOUT, InputConfig, ReadoutConfig
from pretask.limits import Seed
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Find what should not be in a collection of images: duplicates, copies of test images, outliers, and unusable images (unreadable, flat,
    blurred, too dark or bright, tiny, of extreme shape, gray among color). Writes tables, a page with pictures, and keep.txt, which
    every command reads as --data list:FOLDER/keep.txt. Nothing is deleted. Called again, it goes on, or updates the folder."""

    data: str
    """images: a folder, a .npz, .parquet or .tar file, hf:NAME, or a torchvision name"""
    test: str | None = None
    """images to test on later; those that are in --data too are leaks, and not kept"""
    out: Path = Path("curated")
    """folder for the results"""
    json: bool = False
    """print only the summary, as JSON, on standard output"""
    seed: Seed = 0
    """random seed of copies, pairs and clusters"""
    readout: ReadoutConfig = DEFAULT_READOUT
    input: InputConfig = DEFAULT_INPUT
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    what, chosen = subject(words, "curate", WEIGHTS, Flags)
    from pretask.reports import curation
    from pretask.workflows.curate import curate, sentences

    found = curate(
        what,
        chosen.data,
        chosen.test,
        out=chosen.out,
        stage=chosen.readout.stage,
        grid=chosen.readout.grid,
        size=chosen.input.size,
        mean=chosen.input.mean,
        std=chosen.input.std,
        seed=chosen.seed,
        reading=chosen.reading,
    )
    page = curation.write(found)
    if chosen.json:
        print(found.to_json())
    else:
        print("\n".join(sentences(found.summary)))
    say(
        f"wrote {page} and {page.with_name('explorer.html')}; train on what is kept with --data list:{found.folder / 'keep.txt'}"
    )
