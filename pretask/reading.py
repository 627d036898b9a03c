"""How images and labels are read, for any kind of source: flags of every command that opens images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pretask.limits import StrictlyAscending, UnitInterval


@dataclass(frozen=True)
class Reading:
    root: Path | None = None
    """folder of torchvision datasets; missing ones are downloaded to it"""
    max_bad: UnitInterval = 0.1
    """fraction of unreadable images at which the command stops"""
    column: str | None = None
    """table column, or member of a shard's records (such as left.jpg), that holds the image"""
    range: Annotated[tuple[float, float], StrictlyAscending()] | None = None
    """values shown as black and white, for images that are not 8-bit (measured on the training images)"""
    labels_from: str | None = None
    """table column that holds the labels, or several separated by commas, one of 0 and 1 per class"""
    label_separator: str | None = None
    """separator between several labels in one text, such as |"""
    encoding: str | None = None
    """encoding of text files, such as cp1252; none: UTF-8, or the detected one"""

    @property
    def label_columns(self) -> list[str]:
        """Names in `labels_from`, each once."""
        named = [name.strip() for name in (self.labels_from or "").split(",")]
        return [name for name in dict.fromkeys(named) if name]


DEFAULT_READING = Reading()
