"""A run folder: the names of its files, its card (run.json), its rows of numbers, its trained parts."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretask.data.ledger import Ledger
from pretask.types import Source, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from pretask.encoders import Encoder
    from pretask.methods import Method
    from pretask.train.plan import Plan
    from pretask.types import Batch

CARD, LOG, SEEN, DONE = "run.json", "log.jsonl", "watch.jsonl", "DONE"
WEIGHTS, SHAPE = "encoder.safetensors", "encoder.json"
DECIDES = {"method", "recipe", "config", "train", "settings", "encoder", "n", "channels", "size", "steps"}
"""entries of a card without which a run cannot go on"""


# ---- rows of numbers


def append(path: Path, row: Mapping[str, Any]) -> None:
    try:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as failure:
        from pretask.runtime import files as checkpoint

        raise checkpoint.Unwritable(path, failure) from None


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; none if there is no file. A last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    if lines and not lines[-1].endswith("}"):
        lines.pop()
    return [json.loads(line) for line in lines]


def rewind(path: Path, step: int) -> None:
    """Forget the rows of `step` and later: a resumed run writes them again."""
    from pretask.runtime import files as checkpoint

    if path.exists():
        rows = [row for row in read(path) if row["step"] < step]
        checkpoint.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


# ---- encoders on disk


def save_encoder(encoder: "Encoder", folder: Path) -> None:
    """encoder.safetensors, with the names that timm gives the weights, and encoder.json beside it."""
    from safetensors.torch import save

    from pretask.runtime import distributed
    from pretask.runtime import files as checkpoint

    state = distributed.gathered(encoder.net.state_dict())  # by all processes, written by the first
    if distributed.rank():
        return
    weights = {name: value.contiguous().cpu() for name, value in state.items()}
    checkpoint.write(folder / WEIGHTS, lambda file: file.write(save(weights)))
    shape = {
        "name": encoder.name,
        "channels": encoder.channels,
        "size": encoder.size,
        "mean": encoder.mean.flatten().tolist(),
        "std": encoder.std.flatten().tolist(),
        "stages": encoder.widths,
    }
    checkpoint.write_text(folder / SHAPE, json.dumps(shape, indent=2) + "\n")


def load_encoder_weights(encoder: "Encoder", path: Path) -> None:
    """Weights from a run's folder or a .safetensors file into `encoder`; all of them fit, or UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"no weights at {path}; expected a run's folder or a .safetensors file")
    try:
        encoder.net.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as wrong:
        first = "; ".join(line.strip() for line in str(wrong).splitlines()[:2])
        raise UserError(f"the weights in {path} are not those of {encoder.name}: {first}") from None


# ---- a run


class Described:
    """The images that a run was trained on, as far as its card tells: enough to build its method without them."""

    provides: frozenset[str] = frozenset()

    def __init__(self, card: Mapping[str, Any]):
        self.name, self.n, self.channels, self.size = card["data"], card["n"], card["channels"], card["size"]
        self.ledger = Ledger()

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, index: "Tensor") -> "Batch":
        raise UserError(
            f"the images of {self.name} are not open; a run's card knows their number and size alone"
        )


class Run:
    """A trained run, read from its folder; its parts are built when they are first asked for."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if not (self.folder / CARD).is_file():
            raise UserError(f"{folder} is not a run: it has no {CARD}")
        self.card: dict[str, Any] = read_card(self.folder / CARD)

    @cached_property
    def encoder(self) -> "Encoder":
        """The network that was trained, alone, in evaluation mode."""
        from pretask import encoders
        from pretask.runtime import files as checkpoint

        if not (self.folder / SHAPE).is_file():
            raise UserError(
                f"{self.folder} has no trained encoder yet; finish it: pretask pretrain --resume {self.folder}"
            )
        with checkpoint.belonging(self.folder / SHAPE):
            shape = json.loads((self.folder / SHAPE).read_text())
            built = encoders.build(shape["name"], shape["channels"], shape["size"])
        load_encoder_weights(built, self.folder)
        return built.eval()

    @cached_property
    def method(self) -> "Method[Any]":
        """The whole solver with its heads and banks, from the newest checkpoint, in evaluation mode."""
        from pretask.runtime import files as checkpoint

        built = self.drawn()
        latest = self.folder / checkpoint.LATEST
        with checkpoint.belonging(latest):
            built.load_state_dict(checkpoint.load(latest)["method"])
        return built.eval()

    @cached_property
    def untrained(self) -> "Encoder":
        """The network as the run began, `--init` aside: some methods draw its first weights themselves."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.card["seed"])
            return self.drawn().export().eval()

    def drawn(self) -> "Method[Any]":
        """The solver with weights drawn anew."""
        _, _, config, _ = revive(self.card)
        described = Described(self.card)
        return config.build(config.draw(self.card["encoder"], described), described)

    @cached_property
    def source(self) -> Source:
        """What the run was trained on, opened again."""
        from pretask import data as sources
        from pretask.data.subset import drawn

        _, settings, _, _ = revive(self.card)
        whole = sources.open(
            settings.data,
            size=self.card["size"],
            channels=self.card["channels"],
            root=settings.root,
            max_bad=settings.max_bad,
        )
        return drawn(whole, settings.share, settings.seed)


def title(card: Mapping[str, Any]) -> str:
    """The method as on the command line; one from a file by the file's name."""
    name = Path(card["method"]).name
    return name if card.get("recipe", "default") == "default" else f"{name}:{card['recipe']}"


def read_card(path: Path) -> dict[str, Any]:
    """What decided a run; UserError if its file was damaged."""
    try:
        card = json.loads(path.read_text())
        missing = DECIDES - set(card)
    except (OSError, ValueError, TypeError) as wrong:
        raise UserError(f"{path} cannot be read: {wrong}") from None
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}; it is not the card of a run")
    return card


def record(folder: Path, card: Mapping[str, Any], plan: "Plan") -> None:
    """The card of a run whose plan has changed; written before a step is made by it."""
    from pretask.runtime import files as checkpoint

    checkpoint.write_text(folder / CARD, json.dumps({**card, **plan.as_card()}, indent=2, default=str) + "\n")


def load(folder: Path | str) -> Run:
    """The run in `folder`."""
    return Run(folder)


def revive(card: Mapping[str, Any]) -> tuple[str, Any, Any, Any]:
    """The method's name, Settings, method Config and TrainConfig that a card describes."""
    from pretask import methods
    from pretask.config import TrainConfig
    from pretask.workflows.pretrain import Settings

    name = card["method"] if card["recipe"] == "default" else f"{card['method']}:{card['recipe']}"
    config = _dataclass(methods.recipe(name), card["config"])
    return name, _dataclass(Settings, card["settings"]), config, _dataclass(TrainConfig, card["train"])


def _dataclass(kind: type, values: Mapping[str, Any]) -> Any:
    """A frozen dataclass from plain JSON values: nested ones, tuples and paths get their types back."""
    import dataclasses
    from typing import get_args, get_origin, get_type_hints

    hints = get_type_hints(kind)

    def typed(hint: Any, value: Any) -> Any:
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return _dataclass(hint, value)
        if isinstance(value, list) and tuple in map(get_origin, (hint, *get_args(hint))):
            return tuple(value)
        if isinstance(value, str) and (hint is Path or Path in get_args(hint)):
            return Path(value)
        return value

    fields = {f.name for f in dataclasses.fields(kind)}
    return kind(**{name: typed(hints[name], value) for name, value in values.items() if name in fields})
