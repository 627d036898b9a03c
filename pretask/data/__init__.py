"""Image sources: `open(spec)` for pretraining, `open_labeled(spec)` for evaluation.

A spec is a path (folder, `FOLDER:PART`, `.npz`, `.parquet`, `.tar`, `.jsonl`, prepared store) or a name (`cifar10`,
`hf:USER/DATA`, `text:FOLDER`, `scenes:FOLDER`, `list:FILE`, `labels:FILE@DATA`, `synthetic`, `demo`). Each module here with `understands(spec)` and
`load(spec, options)` is one kind of source. A path that no module claims is read as a folder of images, a name as a
torchvision dataset.
"""

import difflib
import importlib
import pkgutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pretask.data.arrays import Arrays
from pretask.data.base import DEFAULTS, Images, Opened, OpenOptions
from pretask.reading import Reading
from pretask.runtime import accounts
from pretask.runtime.console import say
from pretask.types import Batch, UserError

if TYPE_CHECKING:
    from pretask.data.fingerprint import Fingerprint


class LabeledDataset:
    """An image source with its labels, (N,) or multi-label (N, K): the `LabeledSource` that evaluation uses."""

    def __init__(self, images: Images, label: Tensor, classes: list[str]):
        self.images, self.label, self.classes = images, label, classes
        self.name, self.size, self.channels = images.name, images.size, images.channels
        self.provides, self.ledger, self.range = images.provides, images.ledger, images.range

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several labels."""
        return self.label.ndim == 2

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, index: Tensor) -> Batch:
        return self.images.__getitems__(index)

    def files(self, index: Tensor) -> list[str]:
        return self.images.files(index)

    def readable(self, index: Tensor) -> Tensor:
        return self.images.readable(index)

    def fingerprint(self) -> "Fingerprint":
        return self.images.fingerprint()


def open(spec: str | Path, options: OpenOptions = DEFAULTS, **fields: Any) -> Images:
    """Open images without their labels. `fields` are those of `OpenOptions`: `open(spec, size=64)`."""
    return open_spec(str(spec), replace(options, **fields, labels="none")).images


def open_labeled(spec: str | Path, options: OpenOptions = DEFAULTS, **fields: Any) -> LabeledDataset:
    """Open images with their labels. `fields` are those of `OpenOptions`."""
    options = replace(options, **fields, labels="all")
    return labeled(spec, open_spec(str(spec), options), options.reading)


def labeled(spec: str | Path, found: Opened, reading: Reading) -> LabeledDataset:
    """Images opened at `spec`, with their labels. Raises UserError if there are none."""
    if found.label is None:
        raise UserError(f"{spec} has no labels; expected class folders or labels stored with the images")
    if reading.label_separator is None and (joined := [name for name in found.classes if "|" in name]):
        say(f"{spec}: {joined[0]!r} is read as one class; if it is several, use --label-separator '|'")
    return LabeledDataset(found.images, found.label, found.classes)


def require_single_label(source: LabeledDataset, who: str, advice: str) -> None:
    """Raises UserError if the source is multi-label, which `who` does not support."""
    if source.multi_label:
        raise UserError(
            f"{source.name} has several labels per image ({len(source.classes)} classes), but {who} needs one; {advice}"
        )


def open_spec(spec: str, options: OpenOptions) -> Opened:
    """Open any kind of source, with labels as `options.labels` requests."""
    if options.channels not in (None, 1, 3):
        raise UserError(f"got channels={options.channels}; expected 1 (gray) or 3 (color)")
    from pretask.data import image_text, parquet, places

    module = kind(spec)
    if options.labels != "none" and options.reading.label_columns and module not in (image_text, parquet):
        say(f"{spec} is not a table with columns; --labels-from is ignored")
    found = module.load(spec, options)
    if found.images.range.rescales():
        found.images.ledger.range = str(found.images.range)
    accounts.add(found.images.name, found.images.ledger, places.absolute(spec))
    if isinstance(found.images, Arrays) and not found.images.mapped:
        found.images.warn_if_constant()
    return found


def open_with_any_labels(spec: str, options: OpenOptions) -> Opened:
    """Images with whatever valid labels there are: -1 where an image has none."""
    try:
        return open_spec(spec, replace(options, labels="any"))
    except UserError as why:
        found = open_spec(spec, options)  # fails again unless the labels were the reason
        say(f"{found.images.name}: labels ignored: {why}")
        return found


def kind(spec: str) -> ModuleType:
    """The module that opens `spec`."""
    from pretask.data import folder, splits, torchvision_sets

    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    kinds = [module for module in modules if hasattr(module, "understands")]
    named = [each for each in kinds if hasattr(each, "PREFIX") and spec.startswith(each.PREFIX)]
    for module in named or kinds:  # a prefix decides, whatever path follows it
        if module.understands(spec):
            return module
    path, _ = splits.split_spec(spec)
    if path.is_dir():
        return folder
    if path.is_file():
        raise UserError(
            f"{path} has an unknown file type; expected a folder, .npz, .parquet, .tar, .jsonl or .csv"
        )
    if torchvision_sets.is_known(spec):
        return torchvision_sets
    raise UserError(missing(spec, torchvision_sets.names()))


def missing(spec: str, names: list[str]) -> str:
    """Error message for a spec that is neither an existing path nor a known name, with the closest matches."""
    path = Path(spec).expanduser()
    siblings = [str(path.with_name(p.name)) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), siblings, 3) + difflib.get_close_matches(
        spec.lower(), names, 3
    )
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{spec} is neither a file or folder nor a known dataset{hint}"
