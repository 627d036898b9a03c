"""Open labeled images: a path or name, or a pair (images, labels) in memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretask import data as sources
from pretask.data import LabeledDataset, image_text, in_memory, label_file, splits
from pretask.data.base import Opened, OpenOptions, resolve_labels
from pretask.data.folder import evaluation_split
from pretask.data.subset import Subset
from pretask.runtime import accounts
from pretask.types import UserError


def with_labels(data: Any, labels: str | Path | None) -> Any:
    """Images with the labels of a table of path and label, if one is given. Raises UserError for images in memory."""
    if labels is None:
        return data
    if not isinstance(data, str | Path):
        raise UserError(
            "labels from a table are those of files; give images in memory as a pair (images, labels)"
        )
    return label_file.spec_of(labels, str(data))


def labeled_spec(labels: Any, data: str | Path) -> Any:
    """Labeled images; of a table, those that it names, relative to `data` or to the table."""
    is_table = isinstance(labels, str | Path) and Path(labels).suffix.lower() in image_text.ROWS
    return (
        label_file.spec_of(labels, str(data)) if is_table and Path(labels).expanduser().is_file() else labels
    )


def split_paths(data: Any, test: Any = None) -> tuple[Any, Any]:
    """Training and test data; for a dataset with splits, its own splits."""
    place = data if test is None else test
    found = evaluation_split(str(place)) if isinstance(place, str | Path) else None
    if found is None:
        return data, test
    part, rest = found
    rest = f"; {splits.listed(rest)} not used" if rest else ""
    trained = f"trained on {splits.TRAIN}/, " if test is None else ""
    accounts.say_once(f"{Path(place).resolve().name}: {trained}tested on {part}/{rest}")
    return f"{data}:{splits.TRAIN}" if test is None else data, f"{place}:{part}"


def labeled_pair(data: Any, test: Any, options: OpenOptions) -> tuple[LabeledDataset, LabeledDataset | None]:
    """Training images and test images, if any, with the same value range."""
    train = labeled(data, open_with_labels(data, options), options)
    return train, None if test is None else unseen(test, train, options)


def single_labels(
    labels: Any, test: Any, options: OpenOptions
) -> tuple[LabeledDataset, LabeledDataset | None]:
    """Images with one label each to choose or learn by, and test images, if any. Raises UserError for several labels per image."""
    train, tested = labeled_pair(*split_paths(labels, test), options)
    for source, flag in ((train, "--labels"), (tested, "--test")):
        if source is not None:
            sources.require_single_label(source, flag, "select one column of labels with --labels-from")
    return train, tested


def unseen(test: Any, train: LabeledDataset, options: OpenOptions) -> LabeledDataset:
    """Labeled test images, with the value range of the training images."""
    options = replace(options, range=train.range)
    return labeled(test, open_with_labels(test, options), options)


def open_with_labels(data: Any, options: OpenOptions) -> Opened:
    """Open a path or name, or a pair (images, labels), with all of its labels."""
    options = replace(options, labels="all")
    if isinstance(data, str | Path):
        return sources.open_spec(str(data), options)
    try:
        images, labels = data
        labels = array_of(labels)
    except (TypeError, ValueError):
        raise UserError("labeled images in memory must be a pair (images, labels)") from None
    source = in_memory.from_array(images, options)
    if len(labels) != len(source):
        raise UserError(f"{len(source)} images came with {len(labels)} labels; expected one for each")
    settled = resolve_labels(labels, options, source.ledger, str)
    if settled.label is None:
        raise UserError("the images in memory have no labels; give one label, or a list of labels, per image")
    whole = len(settled.kept) == len(source)
    images = source if whole else Subset(source, torch.from_numpy(settled.kept))
    return Opened(images, settled.label, settled.classes)


def labeled(data: Any, found: Opened, options: OpenOptions) -> LabeledDataset:
    """Opened data as a labeled source. Raises UserError if it has no labels."""
    if isinstance(data, str | Path):
        return sources.labeled(data, found, options.reading)
    assert found.label is not None, "images in memory have labels"
    return LabeledDataset(found.images, found.label, found.classes)


def array_of(labels: Any) -> Any:
    """(N,) or (N, K) labels as an array; lists of lists of labels stay lists."""
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    if isinstance(labels, list | tuple) and any(isinstance(x, list | tuple | set) for x in labels):
        return [list(x) if isinstance(x, tuple | set) else x for x in labels]
    found = np.asarray(labels)
    if found.ndim not in (1, 2):
        raise ValueError
    return found
