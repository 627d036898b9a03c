"""pretask index WEIGHTS --data PATH --out FOLDER: index images by their features, for pretask search."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import WEIGHTS, subject
from pretask.config import DEFAULT_INPUT, DEFAULT_READOUT, InputConfig, ReadoutConfig
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Index images by their features, to search them by example. Called again with the same flags, it adds new images, drops those that are
    gone, and goes on where it was interrupted."""

    data: str
    """images: a folder, a .npz, .parquet or .tar file, hf:NAME, or a torchvision name"""
    out: Path = Path("idx")
    """folder of the index"""
    readout: ReadoutConfig = DEFAULT_READOUT
    input: InputConfig = DEFAULT_INPUT
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    what, chosen = subject(words, "index", WEIGHTS, Flags)
    from pretask.workflows.index import index

    made = index(
        what,
        chosen.data,
        out=chosen.out,
        stage=chosen.readout.stage,
        grid=chosen.readout.grid,
        size=chosen.input.size,
        mean=chosen.input.mean,
        std=chosen.input.std,
        reading=chosen.reading,
    )
    say(
        f"indexed {made.images:,} images in {made.folder}; search them with pretask search {made.folder} --query IMAGE"
    )
