"""A run's folder: names of its files, its card (run.json), and its trained encoder and method."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pretask.data.ledger import Ledger
from pretask.encoders.saved import SHAPE, load_encoder
from pretask.limits import NonNegativeInt, PositiveInt, Seed
from pretask.runtime import files, formats
from pretask.train import checkpoint, continuing
from pretask.transforms.ranges import Range
from pretask.types import Source, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from pretask.data.base import Images
    from pretask.encoders import Encoder
    from pretask.methods import Method
    from pretask.train.plan import Plan
    from pretask.types import Batch

CARD, LOG, MONITOR, DONE = "run.json", "log.jsonl", "monitor.jsonl", "DONE"
FIELDS: formats.Fields = {
    "method": str,
    "recipe": str,
    "config": dict,
    "train": dict,
    "settings": dict,
    "encoder": str,
    "data": str,
    "n": PositiveInt,
    "records": dict,
    "channels": Literal[1, 3],
    "size": PositiveInt,
    "range": formats.RANGE,
    "seed": Seed,
    "plan": tuple[tuple[NonNegativeInt, PositiveInt], ...],
    "steps": PositiveInt,
    "epochs": PositiveInt,
    "precision": str,
    "device": str,
    "instructions": str | None,
    "processes": PositiveInt,
    "threads": PositiveInt,
    "versions": dict[str, str],
    "commit": str | None,
    "command": str | None,
    "started": str,
    "loaded": str | None,
    "fingerprint": str | None,
    "monitor_fingerprint": str | None,
}
"""fields of run.json"""


class CardSource:
    """A source without images: what a run's card says about its data, enough to build its method."""

    provides: frozenset[str] = frozenset()

    def __init__(self, card: Mapping[str, Any]):
        self.name, self.n, self.channels, self.size = card["data"], card["n"], card["channels"], card["size"]
        self.range = Range.from_card(card["range"])
        self.ledger = Ledger()

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, index: "Tensor") -> "Batch":
        raise UserError(
            f"the images of {self.name} are not open; a run's card holds only their number and size"
        )


class Run:
    """A trained run, read from its folder; encoder, method and source are loaded on first use."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if not (self.folder / CARD).is_file():
            raise UserError(f"{folder} is not a run: it has no {CARD}")
        self.card: dict[str, Any] = read_card(self.folder / CARD)

    @property
    def seconds(self) -> float:
        """Total training time; 0 if the run is not finished."""
        done = self.folder / DONE
        return float(done.read_text().split()[0]) if done.exists() else 0.0

    @cached_property
    def encoder(self) -> "Encoder":
        """The trained encoder, in evaluation mode."""
        if not (self.folder / SHAPE).is_file():
            raise UserError(
                f"{self.folder} has no trained encoder yet; finish it: pretask pretrain --resume {self.folder}"
            )
        return load_encoder(self.folder).eval()

    @cached_property
    def method(self) -> "Method[Any]":
        """The method with heads and banks, from the latest checkpoint, in evaluation mode."""
        built = self.build_method()
        latest = self.folder / checkpoint.LATEST
        with files.restoring_from(latest):
            checkpoint.load_method(built, checkpoint.load(latest)["method"])
        return built.eval()

    @cached_property
    def untrained(self) -> "Encoder":
        """The encoder with its initial weights, before `--init`."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.card["seed"])
            encoder = build_encoder(self.card, self.folder / CARD).eval()
        encoder.range = self.card_source.range
        return encoder

    @cached_property
    def initial(self) -> "Encoder | None":
        """The encoder with the weights of `--init` that it started from; None without."""
        if not (self.folder / continuing.INITIAL).is_file():
            return None
        encoder = build_encoder(self.card, self.folder / CARD)
        continuing.load_initial(encoder, self.folder)
        encoder.range = self.card_source.range
        return encoder.eval()

    @cached_property
    def teacher(self) -> "Encoder | None":
        """The frozen encoder that it learned from, which is not in its folder; None without. Raises UserError if it is missing."""
        config = parse_card(self.card, self.folder / CARD)[2]
        teacher = config.open_teacher(self.card_source)
        if teacher:
            teacher.range = self.card_source.range
        return teacher

    def build_method(self) -> "Method[Any]":
        """The method with newly initialized weights."""
        return build_method(self.card, self.folder / CARD)

    @property
    def card_source(self) -> CardSource:
        """The description of the run's images, without the images."""
        return CardSource(self.card)

    @cached_property
    def source(self) -> Source:
        """The images that the run was trained on. Raises UserError if they are missing or have changed."""
        from pretask.data.subset import draw_subset

        settings = parse_card(self.card, self.folder / CARD)[1]
        return draw_subset(self.images(), settings.fraction, settings.seed)

    def images(self, **known: Any) -> "Images":
        """All images of the run's data, before `--fraction`; `known` are arguments of `data.open`."""
        from pretask import data
        from pretask.data import fingerprint
        from pretask.data.base import canvas_fields

        settings = parse_card(self.card, self.folder / CARD)[1]
        found = data.open(settings.data, **canvas_fields(self.card_source), reading=settings.reading, **known)
        if change := fingerprint.describe_changes(self.folder, self.card, found):
            raise UserError(f"the images of this run have changed: {change} in {settings.data}")
        return found


def title(card: Mapping[str, Any]) -> str:
    """The method as on the command line; for a file, the file's name."""
    name = Path(card["method"]).name
    return name if card["recipe"] == "default" else f"{name}:{card['recipe']}"


def read_card(path: Path) -> dict[str, Any]:
    """The card at `path`. Raises UserError if the file is damaged or of another version."""
    return formats.read_json(path, FIELDS)


def record(folder: Path, card: Mapping[str, Any], plan: "Plan") -> None:
    """Write the card with a changed plan; called before the first step of that plan."""
    write_card(folder, {**card, **plan.as_card()})


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    files.write_text(folder / CARD, json.dumps(card, indent=2, default=str) + "\n")


def record_data(folder: Path, ledger: Ledger) -> None:
    """Write the current status of the data's records into the card."""
    card = json.loads((folder / CARD).read_text()) | {"records": ledger.card()}
    files.write_text(folder / CARD, json.dumps(card, indent=2, default=str) + "\n")


def load(folder: Path | str) -> Run:
    """The run in `folder`."""
    return Run(folder)


def parse_card(card: Mapping[str, Any], path: Path | str = CARD) -> tuple[str, Any, Any, Any]:
    """The method's name, RunConfig, method Config and TrainConfig in a card.

    Raises UserError, naming the file `path`, if fields are missing or unknown.
    """
    from pretask import methods
    from pretask.config import RunConfig, TrainConfig

    name = card["method"] if card["recipe"] == "default" else f"{card['method']}:{card['recipe']}"
    wrong: list[str] = []
    config = formats.instance(methods.recipe(name), card["config"], "config", wrong)
    if wrong and card["method"].endswith(".py"):
        formats.refuse(
            path, wrong, f"restore the fields that Config in {card['method']} had when the run began"
        )
    settings = formats.instance(RunConfig, card["settings"], "settings", wrong)
    train = formats.instance(TrainConfig, card["train"], "train", wrong)
    formats.refuse(path, wrong)
    return name, settings, config, train


def build_method(card: Mapping[str, Any], path: Path | str = CARD) -> "Method[Any]":
    """The method of a card, with newly initialized weights."""
    _, _, config, train = parse_card(card, path)
    encoder = build_encoder(card, path)
    continuing.prepare(encoder, train)
    return config.build(encoder, CardSource(card))


def build_encoder(card: Mapping[str, Any], path: Path | str = CARD) -> "Encoder":
    """The encoder of a card, with newly initialized weights."""
    _, settings, config, _ = parse_card(card, path)
    encoder = config.build_encoder(card["encoder"], CardSource(card))
    encoder.normalize_by(settings.mean, settings.std)
    return encoder
