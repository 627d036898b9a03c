"""What the commands on a collection of images share: opening it, its features in a folder, and the folder itself."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pretask import data as sources
from pretask.collection import store
from pretask.collection.store import Collection
from pretask.config import InputConfig, ReadoutConfig
from pretask.data.base import Images, canvas_fields
from pretask.encoders.readout import Readout
from pretask.reading import Reading
from pretask.types import UserError
from pretask.workflows.readout import open_readout
from pretask.workflows.subject import Weights

FEATURES = "features"
"""folder of the features in the folder of a command"""


@dataclass(frozen=True)
class Opened:
    """A collection with its features."""

    readout: Readout
    source: Images
    collection: Collection
    x: Tensor  # (N, D)
    positions: Tensor  # (N,) in the source

    @property
    def names(self) -> list[str]:
        return list(self.collection.names)

    def __len__(self) -> int:
        return len(self.collection)


def opened(
    what: Weights,
    data: str | Path,
    out: Path,
    which: ReadoutConfig,
    input: InputConfig,
    reading: Reading,
    progress: bool = True,
) -> Opened:
    """Images of `data` and their features, which are kept in `out`. Raises UserError if `out` holds something else."""
    check_out(out)
    readout = open_readout(what, which, input)
    return opened_by(readout, data, out / FEATURES, reading, progress)


def opened_by(
    readout: Readout, data: str | Path, folder: Path, reading: Reading, progress: bool = True
) -> Opened:
    source = open_images(data, readout, reading, progress)
    collection = store.collect(folder, readout, source, progress)
    return Opened(readout, source, collection, collection.rows(), collection.positions(source))


def open_images(data: str | Path, readout: Readout, reading: Reading, progress: bool = True) -> Images:
    """Images as the encoder sees them, read from the disk when they are needed."""
    fields = canvas_fields(readout.encoder)
    return sources.open(str(data), **fields, reading=reading, progress=progress, cache_mb=0)


def check_out(out: Path) -> None:
    """Makes the folder of a command. Raises UserError if it exists and no such command made it."""
    is_ours = (out / FEATURES).is_dir()
    if out.exists() and not is_ours and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists; choose another --out")
    (out / FEATURES).mkdir(parents=True, exist_ok=True)
