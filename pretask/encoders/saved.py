"""An encoder on disk: encoder.safetensors and encoder.json."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pretask.limits import PositiveFloat, PositiveInt
from pretask.runtime import files, formats
from pretask.transforms.ranges import Range
from pretask.types import UserError

if TYPE_CHECKING:
    from pretask.encoders import Encoder

WEIGHTS, SHAPE = "encoder.safetensors", "encoder.json"
FIELDS: formats.Fields = {
    "name": str,
    "channels": Literal[1, 3],
    "size": PositiveInt,
    "range": formats.RANGE,
    "mean": tuple[float, ...],
    "std": tuple[PositiveFloat, ...],
    "stages": dict[str, int],
}
"""fields of encoder.json"""


def save_encoder(encoder: "Encoder", folder: Path) -> None:
    """Write encoder.safetensors, with timm's names of the weights, and encoder.json."""
    from safetensors.torch import save

    from pretask.runtime import distributed

    state = distributed.to_full(encoder.net.state_dict())  # gathered by all processes, written by the first
    if distributed.rank():
        return
    weights = {name: value.contiguous().cpu() for name, value in state.items()}
    files.write(folder / WEIGHTS, lambda file: file.write(save(weights)))
    shape = {
        formats.KEY: formats.FORMAT,
        "name": encoder.name,
        "channels": encoder.channels,
        "size": encoder.size,
        "range": encoder.range.card(),
        "mean": encoder.mean.flatten().tolist(),
        "std": encoder.std.flatten().tolist(),
        "stages": encoder.widths,
    }
    files.write_text(folder / SHAPE, json.dumps(shape, indent=2) + "\n")


def read_shape(folder: Path) -> dict[str, Any]:
    """encoder.json in `folder`. Raises UserError."""
    return formats.read_json(folder / SHAPE, FIELDS)


def load_encoder_weights(encoder: "Encoder", path: Path) -> None:
    """Load the weights in a folder that `save_encoder` wrote. Raises UserError unless names and shapes match."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = path / WEIGHTS
    if not path.is_file():
        raise UserError(f"no weights at {path}; expected those of a trained encoder")
    try:
        encoder.net.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as wrong:
        first = "; ".join(line.strip() for line in str(wrong).splitlines()[:2])
        raise UserError(f"the weights in {path} do not fit {encoder.name}: {first}") from None


def load_encoder(folder: Path) -> "Encoder":
    """The encoder that `save_encoder` wrote to a run's folder. Raises UserError."""
    from pretask import encoders

    shape = read_shape(folder)
    with files.restoring_from(folder / SHAPE):
        encoder = encoders.build(shape["name"], shape["channels"], shape["size"])
        encoder.range = Range.from_card(shape["range"])
    encoder.normalize_by(shape["mean"], shape["std"])
    load_encoder_weights(encoder, folder)
    return encoder
