"""Saving and loading checkpoints."""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretask.errors import UserError, out_of_memory
from pretask.limits import NonNegativeFloat, NonNegativeInt
from pretask.runtime import formats
from pretask.runtime.files import write

LATEST, HEALTHY = "checkpoint.pt", "checkpoint-healthy.pt"
FIELDS: formats.Fields = {
    "step": NonNegativeInt,
    "seconds": NonNegativeFloat,
    "begun": int,
    "weights": Tensor | None,
    "method": dict,
    "optimizers": list,
    "records": list,
}
"""fields of a checkpoint"""
OPTIMIZER_STATE = {
    "Adam": {"step", "exp_avg", "exp_avg_sq"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "SGD": {"momentum_buffer"},
    "Lars": {"momentum_buffer"},
}
"""what each optimizer stores for every weight"""


def save(path: Path, state: dict[str, Any]) -> None:
    write(path, lambda file: torch.save({formats.KEY: formats.FORMAT, **state}, file))


def load(path: Path) -> dict[str, Any]:
    """The saved state, on the CPU. Raises UserError if it is damaged or of another format."""
    state = unpickled(path)
    formats.check(path, state, FIELDS)
    return state


def unpickled(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of any format; only tensors and plain values are unpickled."""
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
    except Exception as failure:
        if out_of_memory(failure):
            raise
        raise UserError(
            f"{path} is not a readable checkpoint: {' '.join(str(failure).splitlines()[:1])}"
        ) from None
    return state


def load_method(method: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights and buffers by name. ValueError, in one line, if any is missing, unknown or has another shape."""
    own = method.state_dict()
    wrong = formats.name_differences(own, state, "method.")
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            wrong.append(f"method.{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}")
    if wrong:
        raise ValueError("; ".join(wrong))
    method.load_state_dict(state)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any], place: str) -> None:
    """Load the state of an optimizer, by the position of each weight. ValueError, in one line, if anything is missing.

    PyTorch checks only the number of weights, and initializes missing state without an error.
    """
    wrong = formats.name_differences({"state", "param_groups"}, state, f"{place}.")
    if not wrong:
        for i, (own, found) in enumerate(zip(optimizer.param_groups, state["param_groups"], strict=True)):
            wrong += formats.name_differences(own, found, f"{place}.param_groups.{i}.")
        names = OPTIMIZER_STATE.get(type(optimizer).__name__, set())
        for i, memory in state["state"].items():
            wrong += formats.name_differences(names | memory.keys(), memory, f"{place}.state.{i}.")
    if wrong:
        raise ValueError("; ".join(wrong))
    optimizer.load_state_dict(state)


def set_aside(folder: Path) -> None:
    """Keep the latest checkpoint, saved while the run was healthy, under a name that later ones do not overwrite."""
    latest, kept = folder / LATEST, folder / HEALTHY
    if latest.exists() and not kept.exists():
        with latest.open("rb") as newest:
            write(kept, lambda file: shutil.copyfileobj(newest, file))
