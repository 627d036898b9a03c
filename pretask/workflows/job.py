"""A job: everything that training needs to know before it starts or resumes a run."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from pretask import data as sources
from pretask import encoders, limits, methods
from pretask.config import UNCHANGED, Changes, RunConfig, TrainConfig
from pretask.data import LabeledDataset, splits
from pretask.data.base import Images, canvas_fields
from pretask.data.subset import draw_subset
from pretask.encoders import origins
from pretask.encoders.origins import Origin
from pretask.methods import MethodConfig
from pretask.methods.base.views import ViewConfig
from pretask.runtime.console import say
from pretask.train.run import CARD, Run, parse_card
from pretask.transforms.ranges import Range
from pretask.types import UserError
from pretask.workflows import length, resume


@dataclass(frozen=True)
class Job:
    method: str
    """as on the command line"""
    settings: RunConfig
    config: MethodConfig
    train: TrainConfig
    folder: Path
    images: Images
    """all images of the data"""
    source: Images
    """the images to train on"""
    labeled: LabeledDataset | None
    """images that only the monitor sees"""
    encoder: str
    """spec of the encoder"""
    began: float
    """time.monotonic() of the start; a budget counts from there"""
    opening: float
    """seconds taken to open the images"""
    origin: Origin | None = None
    """where the weights of --init come from"""
    command: str | None = None
    card: dict[str, Any] | None = None
    """of a resumed run"""
    changes: Changes = UNCHANGED
    """to a resumed run"""

    @property
    def requested(self) -> RunConfig | Changes:
        """The config that holds the requested `steps` and `budget`."""
        return self.settings if self.card is None else self.changes

    @property
    def budget(self) -> float | None:
        """Requested training time in seconds."""
        return None if self.requested.budget is None else length.parse_duration(self.requested.budget)


def fresh(
    method: str,
    settings: RunConfig,
    config: MethodConfig | None = None,
    train: TrainConfig | None = None,
    *,
    images: Images | None = None,
    command: str | None = None,
    began: float | None = None,
) -> Job:
    """The job of a new run of `method` ("rotnet", "rotnet:paper" or "./my_puzzle.py"). Raises UserError for invalid settings.

    `config` and `train` default to the recipe; `images` are those of `settings.data`, if already open.
    """
    began = time.monotonic() if began is None else began
    config = config or methods.recipe(method)()
    train = train or config.train
    folder = run_folder(method, settings)
    check_out(folder)
    for part in (settings, config, train):
        limits.check(part)
    check_budget(settings)
    config = config.resolved()
    if config.continues and not settings.init:
        raise UserError(
            f"{method} continues from weights: give --init, such as --init timm:{config.encoder.partition(':')[0]}"
        )
    if train.pull and not settings.init:
        raise UserError("--pull is toward the weights of --init; give --init, or leave out --pull")
    if train.pull and settings.strategy == "fsdp":
        raise UserError("--pull needs whole weights; leave out --strategy fsdp")
    origin = origins.locate(settings.init, settings.encoder) if settings.init else None
    opening = time.monotonic()
    if images is None:
        images = sources.open(settings.data, size=settings.size, reading=settings.reading)
    settings = limited(method, settings, config, images)
    source, labeled = split_sources(images, settings)
    opening = time.monotonic() - opening
    return Job(
        method, settings, config, train, folder, images, source, labeled, encoder_spec(config, settings, origin),
        began, opening, origin, command,
    )  # fmt: skip


def encoder_spec(config: MethodConfig, settings: RunConfig, origin: Origin | None) -> str:
    """The encoder that is asked for, or else that of the weights to start from, or else the recipe's."""
    if settings.encoder or origin is None:
        return config.spec(settings.encoder)
    spec = origin.architecture
    if isinstance(config, ViewConfig):  # views may be smaller than images, and of several sizes
        spec = encoders.with_dynamic_size(spec)
    return config.spec(spec)


def resumed(
    folder: Path,
    changes: Changes = UNCHANGED,
    *,
    images: Images | None = None,
    began: float | None = None,
) -> Job:
    """The job that resumes the run in `folder` with its own settings except `changes`. Raises UserError if it cannot.

    `images` are those that it was trained on, if already open.
    """
    began = time.monotonic() if began is None else began
    limits.check(changes)
    check_budget(changes)
    card = resume.relocated(Run(folder).card, changes)
    method, settings, config, train = parse_card(card, folder / CARD)
    settings = replace(settings, devices=changes.devices)
    opening = time.monotonic()
    if images is None:
        images = resume.open_images(settings, folder, Range.from_card(card["range"]))
    resume.check(folder, card, images)
    source, labeled = split_sources(images, settings)
    opening = time.monotonic() - opening
    return Job(
        method, settings, config, train, folder, images, source, labeled, card["encoder"], began, opening,
        card=card, changes=changes,
    )  # fmt: skip


def check_budget(settings: RunConfig | Changes) -> None:
    """Raises UserError, before anything is opened, if the budget is not a duration."""
    if settings.budget is not None:
        length.parse_duration(settings.budget)


def limited(method: str, settings: RunConfig, config: MethodConfig, images: Images) -> RunConfig:
    """The settings with the fraction of the images that the method takes, if there are more."""
    most, n = config.most_images(), len(images)
    if most is None or settings.fraction * n <= most:
        return settings
    say(
        f"{method} trains on {most:,} of {n:,} images; pretask pretrain {method} --help says which flag changes that"
    )
    return replace(settings, fraction=most / n)


def split_sources(images: Images, settings: RunConfig) -> tuple[Images, LabeledDataset | None]:
    """The images to train on, and the labeled images of the monitor."""
    source = draw_subset(images, settings.fraction, settings.seed)
    if not settings.monitor:
        return source, None
    labeled = sources.open_labeled(settings.monitor, **canvas_fields(source), reading=settings.reading)
    sources.require_single_label(
        labeled,
        "--monitor",
        "select one column of labels with --labels-from, or score the run with pretask evaluate",
    )
    return source, labeled


def run_folder(method: str, settings: RunConfig) -> Path:
    """The folder of a run: `settings.out`, or runs/METHOD-DATA-sSEED."""
    path, part = splits.split_spec(settings.data)
    data = Path(settings.data.rstrip("/").split(":")[-1]).stem or "data"
    if path.exists():  # its name may contain colons
        data = f"{path.resolve().stem}-{part}".strip("-").replace(":", "-").replace("/", "-")
    title = Path(method).stem if method.endswith(".py") else method.replace(":", "-")
    return settings.out or Path("runs") / f"{title}-{data}-s{settings.seed}"


def check_out(folder: Path) -> None:
    """Raises UserError unless a run can be written there: the folder is empty or missing, and its parent is writable."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} exists; choose another --out, or continue it: pretask pretrain --resume {quote(str(folder))}"
        )
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file, so no run can be written to {folder}; choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there} is not writable; choose another --out")
