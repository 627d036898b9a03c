"""pretask embed RUN --data PATH: frozen features, as a table with file names."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import subject
from pretask.limits import Count, Share
from pretask.train.progress import say


@dataclass(frozen=True)
class Flags:
    """Write the frozen features of images to a table, with file names, and to a NumPy array."""

    data: str
    """images, as for pretrain"""
    out: Path = Path("features.parquet")
    """the table; the .npy is written beside it"""
    stage: str = "pool"
    """of the encoder; a map is averaged over its places"""
    batch: Count = 256
    """images at once"""
    size: Count | None = None
    """side of the images for timm:NAME, pixels (the size its weights were trained at); a run has its own"""
    root: Path | None = None
    """where a torchvision data set is"""
    max_bad: Share = 0.1
    """share of unreadable files at which it stops"""


def run(words: list[str]) -> None:
    what, chosen = subject(words, "embed", "RUN or timm:NAME", Flags)
    from pretask import data as sources
    from pretask.workflows import embed as embedding

    encoder = embedding.encoder_of(what, chosen.size)
    source = sources.open(
        chosen.data,
        size=encoder.size,
        channels=encoder.channels,
        root=chosen.root,
        max_bad=chosen.max_bad,
        cache_mb=0,  # each image is looked at once
    )
    made = embedding.write(encoder, source, chosen.out, chosen.stage, chosen.batch)
    say(f"wrote {made.table} and {made.array} ({made.n} rows of {made.width})")
