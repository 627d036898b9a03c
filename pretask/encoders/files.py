"""Files of weights: safetensors, and PyTorch checkpoints, read without running any code that is in them."""

import argparse
import codecs
import pathlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretask.errors import UserError, first_line

SUFFIXES = (".safetensors", ".pth", ".pt", ".pth.tar", ".bin", ".ckpt")
TRAINING_STATE = ("optim", "lr_sched", "sched", "scaler", "callbacks", "loops", "fp16")
"""parts of a checkpoint that hold no weights, by the beginnings of their names"""


def allowed() -> list[Any]:
    """Types besides PyTorch's own that training scripts leave in checkpoints, and that only hold values."""
    import numpy as np
    from numpy._core import multiarray

    numpy: Any = multiarray
    scalar, array = numpy.scalar, numpy._reconstruct
    dtypes = {type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")}
    encode: Any = codecs.encode  # how pickle stores the bytes of a NumPy scalar
    return [
        argparse.Namespace,
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        (pathlib.PosixPath, "pathlib._local.PosixPath"),  # its name in Python 3.13
        np.dtype,
        np.ndarray,
        (scalar, "numpy.core.multiarray.scalar"),  # before NumPy 2
        (scalar, "numpy._core.multiarray.scalar"),
        (array, "numpy.core.multiarray._reconstruct"),
        (array, "numpy._core.multiarray._reconstruct"),
        (encode, "_codecs.encode"),
        *dtypes,
    ]


def read(path: Path) -> dict[str, Tensor]:
    """All tensors in a file, nested names joined by dots: "state_dict.module.conv1.weight". Raises UserError."""
    if not path.is_file():
        raise UserError(f"no weights at {path}; expected a file ending in {', '.join(SUFFIXES)}")
    found = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    tensors = flatten(found) if isinstance(found, Mapping) else {}
    if not tensors:
        raise UserError(
            f"{path} holds no named tensors but a {type(found).__name__}; expected the state_dict of a network"
        )
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as wrong:
        raise UserError(f"{path} cannot be read as safetensors: {first_line(wrong)}") from None


def read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(allowed()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as wrong:
        if forbidden := re.search(r"GLOBAL (\S+)", str(wrong)):
            raise UserError(unsafe(path, forbidden[1])) from None
        raise UserError(f"{path} cannot be read as a PyTorch file: {first_line(wrong)}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as wrong:
        raise UserError(f"{path} cannot be read as a PyTorch file: {first_line(wrong)}") from None


def unsafe(path: Path, kind: str) -> str:
    """Why a file is not read, and how to save its weights alone."""
    return (
        f"{path} holds objects of {kind}, which could run code, so it is not read. If you trust the file, save its weights "
        f"alone: import torch; whole = torch.load({str(path)!r}, weights_only=False); "
        "torch.save(whole['state_dict'], 'weights.pth')  (or the key under which it keeps them)"
    )


def flatten(found: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    """The tensors of nested dictionaries, without the state of optimizers."""
    flat: dict[str, Tensor] = {}
    for key, value in found.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            flat[name] = value
        elif isinstance(value, Mapping) and not str(key).startswith(TRAINING_STATE):
            flat |= flatten(value, f"{name}.")
    return flat
