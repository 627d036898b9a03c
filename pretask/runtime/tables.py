"""Tables of results: CSV files, NumPy arrays, and pandas' data frames where pandas is installed."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretask.errors import UserError
from pretask.runtime import files

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Table:
    """Columns of equal length. Names of files may have any characters, and bytes that are not UTF-8."""

    columns: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> "Table":
        return cls({name: [row[k] for row in rows] for k, name in enumerate(names)})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> Sequence[Any]:
        return self.columns[name]

    def rows(self) -> list[tuple[Any, ...]]:
        return list(zip(*self.columns.values(), strict=True))

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns as arrays."""
        return {name: np.asarray(values) for name, values in self.columns.items()}

    def frame(self) -> "pandas.DataFrame":
        """The table as a data frame. Raises UserError if pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UserError("a data frame needs pandas: pip install pandas") from None
        return pandas.DataFrame(self.arrays())

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([[shown(value) for value in row] for row in self.rows()])
        return text.getvalue()

    def write(self, path: Path) -> None:
        files.write_text(path, self.csv())


def shown(value: Any) -> Any:
    """Numbers with six digits; whether something holds as 1 or 0."""
    if isinstance(value, bool | np.bool_):
        return int(value)
    return f"{value:.6g}" if isinstance(value, float | np.floating) else value
