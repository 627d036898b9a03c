"""Tables with an image column, read with Hugging Face `datasets`: `hf:USER/DATA[:CONFIG][:SPLIT]`, Parquet files, and
datasets written by `save_to_disk`.

The hub is accessed only for `hf:` names. Rows stay encoded in a memory map until they are needed.
"""

import glob
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pretask.data import decode, folder, patterns
from pretask.data.base import LABEL_NAMES, Opened, OpenOptions, resolve_labels
from pretask.data.encoded import Items, ItemSubset, collect
from pretask.data.labels import LabelColumns
from pretask.data.ledger import Ledger
from pretask.errors import install_command
from pretask.runtime.console import say
from pretask.types import UserError

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "pixels", "bytes")
ENDINGS = (".parquet",)
SAVED = (("state.json", "dataset_info.json"), ("dataset_dict.json",))
"""files of a dataset written by `save_to_disk`"""
READ = 64
"""rows per read of a stream"""


def understands(spec: str) -> bool:
    """For a folder: whether it has tables, and these contain images or nothing else does."""
    if spec.startswith("hf:") or not (there := patterns.folder_of(spec)):
        return spec.startswith("hf:") or is_parquet(spec)
    root, files = there[0], patterns.find_files(there[0], ENDINGS)
    return is_saved(root) or any(map(holds_images, files)) or bool(files and not has_images_or_shards(root))


def is_parquet(spec: str) -> bool:
    """Whether the spec is a table or a folder with tables."""
    if there := patterns.folder_of(spec):
        return is_saved(there[0]) or bool(patterns.find_files(there[0], ENDINGS))
    return spec.endswith(ENDINGS) and bool(patterns.expand(spec))


def is_saved(root: Path) -> bool:
    return any(all((root / name).is_file() for name in names) for names in SAVED)


def has_images_or_shards(root: Path) -> bool:
    """Whether a folder of tables also has images or tar shards."""
    return bool(patterns.find_files(root, (".tar",))) or folder.holds_images(root)


def holds_images(file: Path) -> bool:
    """Whether a Parquet file has a column of encoded images; paths do not count."""
    import pyarrow as pa
    from pyarrow.parquet import read_schema

    try:
        schema = read_schema(file)
    except (OSError, ValueError):  # damaged
        return False
    blobs = [
        field.name
        for field in schema
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    ]
    typed = [
        field
        for field in schema
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    return bool(typed) or not set(blobs).isdisjoint(IMAGE_NAMES)


def load(spec: str, options: OpenOptions) -> Opened:
    spec, ledger = spec.removeprefix("hf:"), Ledger()
    if is_local(spec):
        hide_progress(options)
        table, parts = concatenate(files_of_split(spec, options), spec, ledger)
        name = title(spec)
        ledger.other += other_files(spec)
    else:
        (table, name), parts = open_hub(spec, options, streaming=False), {}
    image = image_column(table.features, spec, options.reading.column)
    rows: Items = Rows(encoded_column(table, image), image, base(spec), parts)
    if options.labels == "none":
        return collect(name, rows, options, ledger=ledger)
    columns = label_columns(table, options, spec)
    if not columns and options.labels == "all":
        raise UserError(
            f"{spec} has columns {list(table.features)}; expected a label column, such as `label`"
        )
    cells = [table[column][:] for column in columns]
    classes = class_names(table.features[columns[0]]) if len(cells) == 1 else None
    stored = list(zip(*cells, strict=True)) if len(cells) > 1 else [*cells, [None] * len(table)][0]
    resolved = resolve_labels(stored, options, ledger, rows.name, classes)
    return collect(name, ItemSubset(rows, resolved.kept), options, resolved.label, resolved.classes, ledger)


class Rows:
    """One image per row; paths are relative to `base`. `parts`: file of the table -> its number of rows."""

    def __init__(self, table: Any, column: str, base: Path = Path(), parts: Mapping[str, int] | None = None):
        self.table, self.column, self.base = table, column, base
        self.parts = list(parts or {})
        self.ends = np.cumsum(list((parts or {}).values()))

    def __len__(self) -> int:
        return len(self.table)

    def name(self, i: int) -> str:
        if len(self.parts) < 2:
            return f"row {i}"
        part = int(np.searchsorted(self.ends, i, side="right"))
        return f"{self.parts[part]} row {i - (self.ends[part - 1] if part else 0)}"

    def read(self, i: int) -> decode.Encoded:
        return encoded(self.table[i][self.column], self.base)


def encoded(cell: Any, base: Path = Path()) -> decode.Encoded:
    """A cell of an image column -> bytes or the path of a local file. Raises Unreadable."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and cell:
        return base / cell
    if cell is None or cell == "":
        raise decode.Unreadable("empty")
    if not isinstance(cell, bytes):
        raise decode.Unreadable(f"not an encoded image or a path: {type(cell).__name__}")
    return cell


# ---- opening


def open_table(
    spec: str, options: OpenOptions, streaming: bool, ledger: Ledger | None = None
) -> tuple[Any, str]:
    """The table of one split, and its name; unreadable files are skipped in `ledger`."""
    if is_local(spec):
        hide_progress(options)
        return concatenate(files_of_split(spec, options), spec, ledger)[0], title(spec)
    return open_hub(spec, options, streaming)


def open_hub(spec: str, options: OpenOptions, streaming: bool) -> tuple[Any, str]:
    """The table of a dataset on the hub, and its name."""
    if not spec:
        raise UserError("hf: has no dataset name; expected hf:USER/DATA or a Parquet file")
    datasets = import_datasets()
    hide_progress(options)
    repository, *parts = spec.split(":")
    config = parts[0] if len(parts) > 1 else None
    split = options.split or (parts[-1] if parts else "train")
    try:
        with fast_offline(datasets):
            data = datasets.load_dataset(repository, config, split=split, streaming=streaming)
    except table_errors() as error:
        raise UserError(f"{spec} ({split}) cannot be opened: {cause(error)}") from None
    return data, repository.rpartition("/")[2]


def is_local(spec: str) -> bool:
    if spec.endswith(ENDINGS) and not is_parquet(spec):
        raise UserError(f"{spec} matches no file; expected a file or a pattern such as data/train-*.parquet")
    return is_parquet(spec)


def title(spec: str) -> str:
    """Name of a source."""
    there = patterns.folder_of(spec)
    return there[0].resolve().name if there else Path(spec).stem


def base(spec: str) -> Path:
    """The folder that paths in a table are relative to; the working directory for a hub dataset."""
    if there := patterns.folder_of(spec):
        return there[0]
    return patterns.expand(spec)[0].parent if is_local(spec) else Path()


def files_of_split(spec: str, options: OpenOptions) -> list[Path]:
    """The files or saved tables of one split; all of them if there are no splits."""
    there = patterns.folder_of(spec)
    if there is None:
        return patterns.expand(spec)
    root, part = there
    if is_saved(root):
        files = sorted(path for path in root.iterdir() if is_saved(path)) or [root]
    else:
        files = patterns.find_files(root, ENDINGS)
    return patterns.files_of_split(root, files, options.split or part, options.labels != "none")


def other_files(spec: str) -> Counter[str]:
    """Counts of the other files of a folder of tables; none for a folder written by `save_to_disk`."""
    there = patterns.folder_of(spec)
    return Counter() if there and is_saved(there[0]) else patterns.other_files(spec, ENDINGS)


def concatenate(files: Sequence[Path], spec: str, ledger: Ledger | None = None) -> tuple[Any, dict[str, int]]:
    """Concatenate files to one table; also returns file -> number of rows. Unreadable files are skipped if `ledger` is given."""
    names = patterns.relative_names(files)
    try:
        return table_of(files), {name: rows_in(file) for name, file in zip(names, files, strict=True)}
    except table_errors() as error:
        if ledger is None or len(files) == 1:
            raise UserError(f"{spec} cannot be opened: {cause(error)}") from None
    parts: dict[str, Any] = {}
    for name, file in zip(names, files, strict=True):
        try:
            part = table_of([file])
            import_datasets().concatenate_datasets([*list(parts.values())[:1], part])  # the same columns
            parts[name] = part
        except table_errors() as error:
            ledger.skip(name, f"cannot be opened: {cause(error)}")
    if not parts:
        raise UserError(f"{spec}: none of {len(files)} files can be opened ({ledger.first_bad()})")
    return import_datasets().concatenate_datasets(list(parts.values())), {
        name: len(part) for name, part in parts.items()
    }


def table_of(files: Sequence[Path]) -> Any:
    datasets = import_datasets()
    if files[0].is_dir():
        return datasets.concatenate_datasets([datasets.load_from_disk(str(file)) for file in files])
    names = [
        glob.escape(str(file.absolute())) for file in files
    ]  # or `datasets` would expand them as patterns
    return datasets.load_dataset("parquet", data_files={"train": names}, split="train")


def rows_in(file: Path) -> int:
    from pyarrow.parquet import read_metadata

    return (
        import_datasets().load_from_disk(str(file)).num_rows
        if file.is_dir()
        else read_metadata(file).num_rows
    )


def table_errors() -> tuple[type[Exception], ...]:
    """Exceptions raised when a table is opened."""
    return OSError, ValueError, TypeError, RuntimeError, import_datasets().exceptions.DatasetsError


def cause(error: BaseException) -> str:
    return decode.reason(error.__cause__ or error)


def hide_progress(options: OpenOptions) -> None:
    if not (options.progress and sys.stderr.isatty()):
        import_datasets().disable_progress_bars()


def import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"this source needs the package `datasets`: {install_command('hf')}") from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # no warning for each retry
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # damaged files raise an error too
    return datasets


@contextmanager
def fast_offline(datasets: Any) -> Iterator[None]:
    """Use the cached data immediately if the hub cannot be reached; its client would retry for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if not any(before):
            get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # depends on the HTTP library
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def image_column(features: Any, spec: str, column: str | None = None) -> str:
    """The requested column, or else the first of image type or with a usual name."""
    if column is not None:
        if column not in features:
            raise UserError(f"{spec} has no column {column}; it has {', '.join(features)}")
        return column
    image = import_datasets().Image
    typed = [name for name, kind in features.items() if isinstance(kind, image) or is_struct(kind)]
    named = [name for name in features if name in IMAGE_NAMES]
    if not typed + named:
        raise UserError(
            f"{spec} has columns {list(features)}; expected an image column such as `image`, or --column NAME"
        )
    first, *more = typed or named
    if more:
        say(f"{spec}: reading images from column {first}, not {', '.join(more)}; choose with --column")
    return first


def is_struct(kind: Any) -> bool:
    """Whether a column has the structure of an image without its type."""
    return isinstance(kind, dict) and "bytes" in kind


def encoded_column(table: Any, column: str) -> Any:
    """Only the image column, still encoded."""
    datasets = import_datasets()
    table = table.select_columns([column])
    if isinstance(table.features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image(decode=False))
    return table


def label_columns(table: Any, options: OpenOptions, spec: str) -> list[str]:
    """The columns given by --labels-from, or else the one of label type or with a usual name."""
    if named := options.reading.label_columns:
        LabelColumns(options.reading).check(spec, list(table.features))
        return named
    typed = [name for name, kind in table.features.items() if class_names(kind)]
    named = [name for name in table.features if name in LABEL_NAMES]
    return (typed + named)[:1]


def class_names(kind: Any) -> list[str] | None:
    """Class names of a column of class indices or of lists of them."""
    return getattr(kind, "names", None) or getattr(getattr(kind, "feature", None), "names", None)


# ---- streaming


def stream(files: list[str], called: dict[str, str], column: str) -> Iterator[dict[str, Any]]:
    """Images and unreadable parts of Parquet files as rows of a stream."""
    from pyarrow.parquet import ParquetFile

    for path in files:
        try:
            file = ParquetFile(path)
        except (OSError, ValueError) as error:
            yield {"name": called[path], "why": f"cannot be opened: {decode.reason(error)}"}
            continue
        start = 0
        for group in range(file.num_row_groups):
            yield from rows_of(file, group, start, called[path], column)
            start += file.metadata.row_group(group).num_rows


def rows_of(file: Any, group: int, start: int, name: str, column: str) -> Iterator[dict[str, Any]]:
    """The rows of one row group, which begins with row `start` of the file."""
    at, end = start, start + file.metadata.row_group(group).num_rows
    if column not in file.schema_arrow.names:
        yield from ({"name": f"{name} row {i}", "image": None} for i in range(at, end))
        return
    try:
        for batch in file.iter_batches(READ, row_groups=[group], columns=[column]):
            for cell in batch.column(column).to_pylist():
                yield {"name": f"{name} row {at}", "image": cell}
                at += 1
    except (OSError, ValueError) as error:
        why = f"damaged: {decode.reason(error)}"
        yield from ({"name": f"{name} row {i}", "why": why} for i in range(at, end))


def survey(spec: str, files: Sequence[Path], column: str | None) -> tuple[str, int]:
    """The image column of a stream and its number of rows; an unreadable file counts as one row."""
    from pyarrow.parquet import ParquetFile

    features: dict[str, Any] = {}
    rows, why = 0, ""
    for path in files:
        try:
            file = ParquetFile(path)
        except (OSError, ValueError) as error:
            rows, why = rows + 1, decode.reason(error)
            continue
        rows += file.metadata.num_rows
        features = {**import_datasets().Features.from_arrow_schema(file.schema_arrow), **features}
    if not features:
        raise UserError(f"{spec} cannot be opened: {why}")
    return image_column(features, spec, column), rows
