"""Tables with an image column, by Hugging Face `datasets`: `hf:USER/DATA[:CONFIG][:SPLIT]`, parquet files.

The hub is asked only for a name that says so. Rows stay encoded, in a memory map, until they are needed.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pretask.data import decode
from pretask.data.base import Asked, Opened, settle
from pretask.data.encoded import Chosen, Items, collect
from pretask.data.ledger import Ledger
from pretask.types import UserError

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "pixels", "bytes")
LABEL_NAMES = ("label", "labels", "cls", "class", "target", "fine_label")


def understands(spec: str) -> bool:
    return spec.startswith("hf:") or parquet(spec)


def parquet(spec: str) -> bool:
    path = Path(spec).expanduser()
    files = path.parent.glob(path.name) if spec.endswith(".parquet") else path.glob("*.parquet")
    return any(files)


def load(spec: str, asked: Asked) -> Opened:
    table, name = fetched(spec.removeprefix("hf:"), asked, streaming=False)
    image = image_column(table.features, spec)
    rows: Items = Rows(undecoded(table, image), image)
    if asked.labels == "none":
        return collect(name, rows, asked)
    ledger, column = Ledger(), label_column(table)
    if column is None and asked.labels == "all":
        raise UserError(
            f"{spec} has columns {list(table.features)}; expected a label column, such as `label`"
        )
    stored = [None] * len(table) if column is None else table[column][:]
    classes = getattr(table.features[column], "names", None) if column else None
    settled = settle(stored, asked, ledger, rows.name, classes)
    return collect(name, Chosen(rows, settled.kept), asked, settled.label, settled.classes, ledger)


class Rows:
    """One image per row."""

    def __init__(self, table: Any, column: str):
        self.table, self.column = table, column

    def __len__(self) -> int:
        return len(self.table)

    def name(self, i: int) -> str:
        return f"row {i}"

    def read(self, i: int) -> decode.Encoded:
        return encoded(self.table[i][self.column])


def encoded(cell: Any) -> decode.Encoded:
    """What `datasets` keeps for an image: bytes, or the path of a local file."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str):
        return Path(cell)
    if not isinstance(cell, bytes):
        raise decode.Unreadable("empty")
    return cell


def fetched(spec: str, asked: Asked, streaming: bool) -> tuple[Any, str]:
    """The table of one split, and its name."""
    if not spec:
        raise UserError("hf: names no data set; expected hf:USER/DATA, or a parquet file")
    datasets = imported()
    if not (asked.progress and sys.stderr.isatty()):
        datasets.disable_progress_bars()
    path, split = Path(spec).expanduser(), asked.split or "train"
    if path.is_dir():
        where, name = ("parquet", None, {"data_dir": str(path)}), path.name
    elif spec.endswith((".parquet", ".tar")):
        if not any(path.parent.glob(path.name)):
            raise UserError(
                f"{spec} matches no file; expected a file or a pattern such as data/train-*.parquet"
            )
        kind = "webdataset" if spec.endswith(".tar") else "parquet"
        where, name, split = (kind, None, {"data_files": {"train": str(path)}}), path.stem, "train"
    else:
        repository, *parts = spec.split(":")
        config = parts[0] if len(parts) > 1 else None
        split = asked.split or (parts[-1] if parts else "train")
        where, name = (repository, config, {}), repository.rpartition("/")[2]
    try:
        kind, config, files = where
        with promptly(datasets) if not files else nullcontext():
            return datasets.load_dataset(kind, config, **files, split=split, streaming=streaming), name
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{spec} ({split}) cannot be opened: {decode.reason(error.__cause__ or error)}"
        ) from None


def imported() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("this data needs the package `datasets`: pip install 'pretask[hf]'") from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries, one warning each
    logging.getLogger("datasets").setLevel(
        logging.CRITICAL
    )  # what is wrong with a file comes as an error too
    return datasets


@contextmanager
def promptly(datasets: Any) -> Iterator[None]:
    """Where the hub cannot be reached its client tries for half a minute; in here it then takes what it has stored."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if not any(before):
            get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # of whichever library it connects with
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def image_column(features: Any, spec: str) -> str:
    datasets = imported()
    typed = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    named = [name for name in features if name in IMAGE_NAMES]
    if not typed + named:
        raise UserError(f"{spec} has columns {list(features)}; expected an image column, such as `image`")
    return (typed + named)[0]


def undecoded(table: Any, column: str) -> Any:
    """Only the image column, as stored."""
    datasets = imported()
    table = table.select_columns([column])
    if isinstance(table.features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image(decode=False))
    return table


def label_column(table: Any) -> str | None:
    datasets = imported()
    typed = [name for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    named = [name for name in table.features if name in LABEL_NAMES]
    return next(iter(typed + named), None)
