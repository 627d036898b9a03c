"""pretask embed WEIGHTS --data PATH: write frozen features to a table."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import WEIGHTS, subject
from pretask.config import DEFAULT_INPUT, DEFAULT_READOUT, InputConfig, ReadoutConfig
from pretask.limits import PositiveInt
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Write frozen features of images to a Parquet table with file names, and to a NumPy array."""

    data: str
    """images: a folder, a .npz, .parquet or .tar file, hf:NAME, or a torchvision name"""
    out: Path = Path("features.parquet")
    """path of the table; the .npy file gets the same name"""
    batch: PositiveInt = 256
    """images per forward pass"""
    explore: bool = False
    """also write explorer.html: one offline page with a map of the images"""
    readout: ReadoutConfig = DEFAULT_READOUT
    input: InputConfig = DEFAULT_INPUT
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    what, chosen = subject(words, "embed", WEIGHTS, Flags)
    from pretask import data as sources
    from pretask.data.base import canvas_fields
    from pretask.data.folder import with_all_splits
    from pretask.workflows import embed
    from pretask.workflows.readout import open_readout

    readout = open_readout(what, chosen.readout, chosen.input)
    source = sources.open(
        with_all_splits(chosen.data),
        **canvas_fields(readout.encoder),
        reading=chosen.reading,
        cache_mb=0,  # each image is read once
    )
    made = embed.write(readout, source, chosen.out, chosen.batch)
    if chosen.explore:
        from pretask.workflows import explore

        say(f"wrote {explore.of_features(made, source)}")
    say(f"wrote {made.table} and {made.array} ({made.n} rows of {made.width}: {readout})")
