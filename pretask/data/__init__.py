"""Where images come from. `open(spec)` for pretraining; `open_labelled(spec)` for evaluation.

A spec is a path (folder, `.npz`, `.parquet`, `.tar`, `.jsonl`, prepared store) or a name (`cifar10`,
`hf:USER/DATA`, `text:FOLDER`, `scenes:FOLDER`, `synthetic`, `demo`). Each module here that has `understands(spec)` and `load(spec, asked)` is one kind of
source; a folder is what is left for a path, a torchvision data set for a name.
"""

import difflib
import importlib
import pkgutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from torch import Tensor

from pretask.data.base import Asked, Images, Opened
from pretask.runtime import accounts
from pretask.train.progress import say
from pretask.types import Batch, UserError


class Labelled:
    """A source with its labels beside it: what evaluation works on."""

    def __init__(self, images: Images, label: Tensor, classes: list[str]):
        self.images, self.label, self.classes = images, label, classes
        self.name, self.size, self.channels = images.name, images.size, images.channels
        self.provides, self.ledger = images.provides, images.ledger

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, index: Tensor) -> Batch:
        return self.images.__getitems__(index)

    def files(self, index: Tensor) -> list[str]:
        return self.images.files(index)


def open(
    spec: str | Path,
    *,
    size: int | None = None,
    channels: int | None = None,
    root: Path | None = None,
    max_bad: float = 0.1,
    split: str | None = None,
    progress: bool = True,
    cache_mb: int = 2048,
) -> Images:
    """Images alone; whatever labels the data has stay behind. The knobs are those of `Asked`."""
    return opened(str(spec), Asked(size, channels, root, max_bad, split, progress, cache_mb)).images


def open_labelled(
    spec: str | Path,
    *,
    size: int | None = None,
    channels: int | None = None,
    root: Path | None = None,
    max_bad: float = 0.1,
    split: str | None = None,
    progress: bool = True,
    cache_mb: int = 2048,
) -> Labelled:
    """Images with their labels; the knobs are those of `Asked`."""
    found = opened(str(spec), Asked(size, channels, root, max_bad, split, progress, cache_mb, labels="all"))
    if found.label is None:
        raise UserError(f"{spec} has no labels; expected class folders, or labels beside the images")
    return Labelled(found.images, found.label, found.classes)


def opened(spec: str, asked: Asked) -> Opened:
    if asked.channels not in (None, 1, 3):
        raise UserError(f"{asked.channels} channels were asked for; expected 1 (grey) or 3 (colour)")
    found = kind(spec).load(spec, asked)
    accounts.enter(found.images.name, found.images.ledger)
    return found


def opened_anyhow(spec: str, asked: Asked) -> Opened:
    """Images, and their labels as far as there are any of use: -1 where an image has none."""
    try:
        return opened(spec, replace(asked, labels="any"))
    except UserError as why:
        found = opened(spec, asked)  # or it was not for the labels
        say(f"{found.images.name}: its labels are left out: {why}")
        return found


def kind(spec: str) -> ModuleType:
    """The module that opens `spec`."""
    from pretask.data import folder
    from pretask.data import torchvision_sets as downloads

    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    kinds = [module for module in modules if hasattr(module, "understands")]
    named = [each for each in kinds if hasattr(each, "PREFIX") and spec.startswith(each.PREFIX)]
    for module in named or kinds:  # a prefix decides, whatever the path behind it looks like
        if module.understands(spec):
            return module
    path = Path(spec).expanduser()
    if path.is_dir():
        return folder
    if path.is_file():
        raise UserError(
            f"{path} is a file of unknown kind; expected a folder, .npz, .parquet, .tar, .jsonl or .csv"
        )
    if downloads.known(spec):
        return downloads
    raise UserError(missing(spec, downloads.names()))


def missing(spec: str, names: list[str]) -> str:
    """What to say of a spec that is neither there nor known, with the nearest names."""
    path = Path(spec).expanduser()
    beside = [str(path.with_name(p.name)) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), beside, 3) + difflib.get_close_matches(spec.lower(), names, 3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{spec} is neither a file or folder nor a known data set{hint}"
